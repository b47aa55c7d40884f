"""The whole chain on the embedded world: a held-out analysis of it is forecast, exported, drawn and scored.

The world is simulated; the model was trained on other years of it. `pipelines.embed` makes what is embedded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from fengwu_ghr.config import ForecastSection, InputSection, ModelSection, OutputSection, RunConfig
from fengwu_ghr.forecast import ForecastResult, Reporter, run_forecast
from fengwu_ghr.grib.decode import plan_analysis, read_analysis
from fengwu_ghr.grib.pool import WorkerPool
from fengwu_ghr.store import RunStore
from fengwu_ghr.variables import HEADLINE, channel
from fengwu_ghr.verify import metrics
from fengwu_ghr.verify.statistics import DatedSums, state_sums

MODEL = "ghr-demo"
LEAD_TIME_HOURS = 240

_EMBEDDED = Path(__file__).parent / "embedded"
ANALYSIS, TRUTH = _EMBEDDED / "analysis.grib2", _EMBEDDED / "truth.grib2"


@dataclass(frozen=True)
class Score:
    """The RMSE of one channel at one lead, in registry units, of the forecast and of persistence."""

    channel: str
    lead: timedelta
    forecast: float
    persistence: float


def demo_config(folder: Path, *, lead_time_hours: int = LEAD_TIME_HOURS) -> RunConfig:
    """The demonstration's run: at 1.8 degrees from the embedded analysis, Zarr and GRIB out."""
    return RunConfig(
        model=ModelSection(name=MODEL),
        input=InputSection(files=(ANALYSIS,)),
        forecast=ForecastSection(lead_time_hours=lead_time_hours),
        output=OutputSection(zarr=folder / "forecast.zarr", grib=folder / "grib", overwrite=True),
    )


def run_demo(folder: Path, *, reporter: Reporter) -> ForecastResult:
    """Forecast from the embedded analysis; everything lies in the folder afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    return run_forecast(demo_config(folder), reporter=reporter)


def score_demo(path: Path, *, days: Sequence[int] = (1, 3, 5, 10)) -> list[Score]:
    """The run in this store against the embedded truth, as of `score_run`."""
    return score_run(path, [TRUTH], days=days)


def score_run(path: Path, truth: Sequence[Path], *, days: Sequence[int]) -> list[Score]:
    """A run against analyses in GRIB files after so many days, beside persistence of its own analysis.

    Area-weighted RMSE over the globe. Days beyond the run are left out.
    """
    channels = tuple(map(channel, HEADLINE))
    with RunStore.open(path) as store, WorkerPool(1) as pool:
        initial_time, grid = store.plan.initial_times[0], store.plan.grid
        committed = store.committed(initial_time)
        leads = [lead for day in days if (lead := timedelta(days=day)) in committed]
        analysis = np.stack([store.read(c, initial_time, timedelta(0)) for c in channels])
        ours, persistence = (DatedSums(HEADLINE, str(grid)) for _ in range(2))
        for lead in leads:
            true = _truth(truth, initial_time + lead, pool)
            forecast = np.stack([store.read(c, initial_time, lead) for c in channels])
            for table, fields in ((ours, forecast), (persistence, analysis)):
                table.add(initial_time, lead, state_sums(fields, true, areas=grid.cell_areas()))
    return list(_scores(ours, persistence))


def _truth(files: Sequence[Path], valid_time: datetime, pool: WorkerPool) -> np.ndarray:
    channels = tuple(map(channel, HEADLINE))
    found = read_analysis(plan_analysis(list(files), channels, initial_time=valid_time, pool=pool), pool=pool)
    return np.stack([found.fields[c].values for c in channels])


def _scores(ours: DatedSums, persistence: DatedSums) -> Iterator[Score]:
    pair = [metrics.rmse(table.stacked()) for table in (ours, persistence)]
    for row, name in enumerate(HEADLINE):
        for column, lead in enumerate(ours.leads):
            values = (float(rmse[column, row]) for rmse in pair)
            yield Score(name, lead, *values)
