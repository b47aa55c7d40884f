"""The whole chain on the embedded world: an analysis is made and written as GRIB, forecast, exported and drawn."""

from datetime import datetime, timedelta
from pathlib import Path

from fengwu_ghr.config import ForecastSection, InputSection, ModelSection, OutputSection, RunConfig
from fengwu_ghr.forecast import ForecastResult, Reporter, run_forecast
from fengwu_ghr.grib.encode import GribEncoder, write_messages
from fengwu_ghr.grid import regular_grid
from fengwu_ghr.synthetic import synthetic_state
from fengwu_ghr.variables import channel_set

INITIAL_TIME = datetime(2024, 1, 1, 0)
MODEL = "ghr-tiny-1p8"
LEAD_TIME_HOURS = 120


def demo_config(folder: Path) -> RunConfig:
    """The demonstration's run: five days at 1.8 degrees from the analysis in the folder, Zarr and GRIB out."""
    return RunConfig(
        model=ModelSection(name=MODEL),
        input=InputSection(files=(folder / "analysis.grib2",)),
        forecast=ForecastSection(lead_time_hours=LEAD_TIME_HOURS),
        output=OutputSection(zarr=folder / "forecast.zarr", grib=folder / "grib", overwrite=True),
    )


def write_demo_analysis(path: Path) -> None:
    """A complete analysis of the embedded world at 2.5 degrees, as GRIB2."""
    grid, channels = regular_grid(2.5), channel_set("ghr-69").channels
    state = synthetic_state(grid, channels, initial_time=INITIAL_TIME)
    encoder = GribEncoder(grid)
    messages = [
        (c, encoder.encode(c, state[c], initial_time=INITIAL_TIME, lead=timedelta(0))) for c in channels
    ]
    write_messages(path, messages)


def run_demo(folder: Path, *, reporter: Reporter) -> ForecastResult:
    """Make the input and forecast from it; everything lies in the folder afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    config = demo_config(folder)
    write_demo_analysis(config.input.files[0])
    return run_forecast(config, reporter=reporter)
