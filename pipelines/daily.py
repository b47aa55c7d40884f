"""Every day: the newest analysis in, its forecast as Zarr and GRIB, scores of the forecasts that came due, a report.

    python -m pipelines.daily configs/daily_demo.toml [section.key=value ...]

What a timer calls, as often as it likes: what is there is not made again, what was stopped goes on.
"""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from fengwu_ghr import console
from fengwu_ghr.catalogue import resolve_model
from fengwu_ghr.checkpoint import Checkpoint
from fengwu_ghr.config import (
    ComputeSection,
    ForecastSection,
    Instant,
    ModelSection,
    Section,
    VerifySection,
    parse_time,
    read_settings,
)
from fengwu_ghr.errors import InputError, UsageError
from fengwu_ghr.forecast import ForecastResult, run_forecast
from fengwu_ghr.grib.decode import plan_analysis
from fengwu_ghr.hindcast.arrival import Arrivals
from fengwu_ghr.hindcast.season import Season
from fengwu_ghr.hindcast.settings import DatesSection, HindcastConfig, SeasonInput, SeasonOutput, matching
from fengwu_ghr.options import exit_code
from fengwu_ghr.store import RunStore
from fengwu_ghr.verify.job import Verified, run_verification
from fengwu_ghr.verify.pairing import NothingToVerify
from pipelines.arguments import configuration


class Newest(Section):
    """Which analyses are looked for: those of every so many hours (from 00 UTC), so many days back from `until`."""

    every_hours: int = Field(24, gt=0, le=24)
    look_back_days: int = Field(10, gt=0)
    until: Instant | None = None
    """Now, where it is not given."""

    def times(self) -> Iterator[datetime]:
        """Candidates, the newest first."""
        until = self.until or datetime.now(UTC).replace(tzinfo=None)
        midnight = until.replace(hour=0, minute=0, second=0, microsecond=0)
        step = timedelta(hours=self.every_hours)
        last = midnight + (until - midnight) // step * step
        for back in range(int(timedelta(days=self.look_back_days) / step) + 1):
            yield last - back * step


class Settings(Section):
    """`folder` holds everything: forecasts/TIME.zarr, grib/TIME, scores.

    `input.files` are templates as in a hindcast; one without a time names a file that is replaced every day.
    """

    folder: Path
    model: ModelSection
    input: SeasonInput
    newest: Newest = Newest()
    forecast: ForecastSection = ForecastSection()
    compute: ComputeSection = ComputeSection()
    verify: VerifySection | None = None

    @model_validator(mode="before")
    @classmethod
    def _verifies_its_forecasts(cls, tree: Any) -> Any:
        match tree:
            case {"verify": {**verify}, "folder": folder}:
                own = {"forecast": str(Path(folder, "forecasts")), "output": str(Path(folder, "scores"))}
                return {**tree, "verify": own | verify}
        return tree


def _check_useful(settings: Settings) -> None:
    """Raises UsageError for keys of others that would do nothing here."""
    if settings.input.wait_minutes:
        raise UsageError("the daily job does not wait for input (input.wait_minutes): call it again")
    if settings.verify is not None and settings.verify.online:
        raise UsageError("the daily job verifies when the truth has come: leave verify.online out")


def run(path: Path, overrides: list[str]) -> None:
    """The newest forecast is there, and the scores of all that have a truth."""
    settings = read_settings(Settings, path, overrides=overrides)
    _check_useful(settings)
    checkpoint = Checkpoint.open(resolve_model(settings.model.name))
    newest = newest_time(settings, checkpoint)
    for time in sorted({*unfinished(settings, newest, checkpoint), newest}):
        result = forecast(settings, time, checkpoint)
        facts = [("run store", result.store), ("GRIB", f"{len(result.grib_files)} files")]
        console.show_facts(f"Forecast from {time:%Y-%m-%d %H} UTC", facts)
    if settings.verify is not None:
        verified = verify(settings, settings.verify)
        if verified is not None:
            console.show_verified(verified)


def unfinished(settings: Settings, newest: datetime, checkpoint: Checkpoint) -> Iterator[datetime]:
    """Forecasts of the last days that were stopped, and whose input is still there."""
    if not settings.input.names_times:
        return
    for path in (settings.folder / "forecasts").glob("*.zarr"):
        time = parse_time(path.stem)
        if newest - time > timedelta(days=settings.newest.look_back_days):
            continue  # years of them need not be opened
        with RunStore.open(path) as store:
            is_complete = store.committed(time) == store.plan.leads
        names = settings.input.names(time, before=time - checkpoint.step)
        if not is_complete and not Arrivals().lacking_for_sure(names):
            yield time


def forecast(settings: Settings, time: datetime, checkpoint: Checkpoint) -> ForecastResult:
    """That from this analysis; nothing is computed where it is complete."""
    stamp = f"{time:%Y%m%d%H}"
    output = SeasonOutput(
        zarr=settings.folder / "forecasts" / f"{stamp}.zarr", grib=settings.folder / "grib" / stamp
    )
    own = HindcastConfig(
        model=settings.model,
        dates=DatesSection(times=(time,)),
        input=settings.input,
        output=output,
        forecast=settings.forecast,
        compute=settings.compute,
    )
    config = Season(own, checkpoint).forecast_config(time)
    with console.LeadProgress(quiet=False) as progress:
        return run_forecast(config, reporter=progress)


def newest_time(settings: Settings, checkpoint: Checkpoint) -> datetime:
    """Of the newest analysis that is there whole. Raises InputError naming what was looked for."""
    names, arrivals = settings.input.names, Arrivals()
    if not settings.input.names_times:
        if lacking := arrivals.lacking_for_sure(settings.input.files):
            raise InputError(
                f"the analysis is not there: {', '.join(lacking)} (from {Path.cwd()}); call again when it is, "
                "or see to input.files"
            )
        files = [path for name in settings.input.files for path in matching(name)]
        return plan_analysis(files, checkpoint.channels.channels).valid_time
    for time in settings.newest.times():
        if not arrivals.lacking_for_sure(names(time, before=time - checkpoint.step)):
            return time
    times = list(settings.newest.times())
    raise InputError(
        f"no analysis between {times[-1]:%Y-%m-%d %H} and {times[0]:%Y-%m-%d %H} UTC is there, of "
        f"{', '.join(settings.input.files)}; see to the input, or set newest.look_back_days or newest.until"
    )


def verify(settings: Settings, verification: VerifySection) -> Verified | None:
    """The scores of all forecasts that have a truth by now; None where none has."""
    stores = tuple(sorted((settings.folder / "forecasts").glob("*.zarr")))
    with console.StepProgress(quiet=False) as progress:
        try:
            return run_verification(verification.model_copy(update={"forecast": stores}), progress=progress)
        except NothingToVerify as nothing:
            console.show_facts("Verification", [("not yet", nothing)])
            return None


def main(arguments: list[str]) -> int:
    """Exit code as of the command line."""
    return exit_code(lambda: run(*configuration("daily", arguments)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
