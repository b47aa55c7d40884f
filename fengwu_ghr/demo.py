"""The whole chain on the embedded world: a held-out analysis of it is forecast, exported, drawn and verified.

The world is simulated; the model was trained on other years of it. `pipelines.embed` makes what is embedded.
"""

from pathlib import Path

from fengwu_ghr.config import (
    ForecastSection,
    InputSection,
    ModelSection,
    OutputSection,
    RunConfig,
    VerifySection,
)
from fengwu_ghr.forecast import ForecastResult, Reporter, run_forecast
from fengwu_ghr.progress import Progress
from fengwu_ghr.variables import HEADLINE
from fengwu_ghr.verify.job import Verified, run_verification

MODEL = "ghr-demo"
LEAD_TIME_HOURS = 240

EMBEDDED = Path(__file__).parent / "embedded"
ANALYSIS, TRUTH = "analysis.grib2", "truth.grib2"
NUMERICAL, NORMALS = "numerical.grib2", "normals"
"""The forecast of a coarser simulator from the same analysis, and the climatology of the training years."""


def demo_config(folder: Path, *, lead_time_hours: int = LEAD_TIME_HOURS) -> RunConfig:
    """The demonstration's run: at 1.8 degrees from the embedded analysis, Zarr and GRIB out."""
    return RunConfig(
        model=ModelSection(name=MODEL),
        input=InputSection(files=(EMBEDDED / ANALYSIS,)),
        forecast=ForecastSection(lead_time_hours=lead_time_hours),
        output=OutputSection(zarr=folder / "forecast.zarr", grib=folder / "grib", overwrite=True),
    )


def run_demo(folder: Path, *, reporter: Reporter) -> ForecastResult:
    """Forecast from the embedded analysis; everything lies in the folder afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    return run_forecast(demo_config(folder), reporter=reporter)


def verify_demo(folder: Path, *, progress: Progress) -> Verified:
    """The run in this folder against the embedded truth, beside the numerical baseline and persistence."""
    settings = VerifySection(
        forecast=(folder / "forecast.zarr",),
        truth=(EMBEDDED / TRUTH,),
        baselines={"numerical": (EMBEDDED / NUMERICAL,)},
        climatology=EMBEDDED / NORMALS,
        channels=HEADLINE,
        leads_hours=tuple(range(24, LEAD_TIME_HOURS + 1, 24)),  # of which there is a truth
        thresholds=("10ws>=15", "2t>=303.15"),
        output=folder / "verification",
    )
    return run_verification(settings, progress=progress)
