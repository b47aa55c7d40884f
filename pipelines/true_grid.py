"""The true grid: a small backbone on 721 x 1440 fields of a simulated world, carried to 2001 x 4000 by the split.

    python -m pipelines.true_grid configs/transfer_0p09.toml [section.key=value ...]

Simulates, pretrains, forecasts a day from a held-out analysis in GRIB, and scores it against the next one beside
persistence. The simulator resolves nothing below 240 km: this proves the plumbing, not skill.
"""

import sys
from pathlib import Path

from fengwu_ghr import console
from fengwu_ghr.config import (
    ForecastSection,
    InputSection,
    ModelSection,
    OutputSection,
    RunConfig,
    VerifySection,
    read_settings,
)
from fengwu_ghr.engine.torch_engine import check_device
from fengwu_ghr.errors import InputError
from fengwu_ghr.forecast import run_forecast
from fengwu_ghr.options import exit_code
from fengwu_ghr.training import chain
from fengwu_ghr.training.reference import initial_conditions
from fengwu_ghr.variables import HEADLINE
from fengwu_ghr.verify.job import Verified, run_verification
from pipelines.arguments import configuration


def run(path: Path, overrides: list[str]) -> Verified:
    """The scores of the day; model, analyses and run store lie in the folders that the configuration names."""
    settings = read_settings(chain.ChainSettings, path, overrides=overrides)
    check_device(settings.pretrain.train.device)
    with console.StepProgress(quiet=False) as progress:
        world = chain.run_simulate(settings, progress)
        backbone = chain.run_pretrain(settings, progress)[0]
    analyses = initial_conditions(world)
    if len(analyses) < 2:
        raise InputError(
            f"a test segment of two days or more is needed; {path} gives {len(analyses)} analyses"
        )
    config = RunConfig(
        model=ModelSection(name=str(backbone)),
        input=InputSection(files=(analyses[0],)),
        forecast=ForecastSection(lead_time_hours=24),
        output=OutputSection(zarr=settings.folder / "forecast.zarr", overwrite=True),
    )
    with console.LeadProgress(quiet=False) as reporter:
        result = run_forecast(config, reporter=reporter)
    asked = VerifySection(
        forecast=(result.store,),
        truth=(analyses[1],),
        channels=HEADLINE,
        regions=("globe",),
        output=settings.folder / "verification",
    )
    with console.StepProgress(quiet=False) as progress:
        return run_verification(asked, progress=progress)


def main(arguments: list[str]) -> int:
    """Exit code as of the command line."""
    return exit_code(lambda: console.show_verified(run(*configuration("true_grid", arguments))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
