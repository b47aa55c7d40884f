"""Forecasts of a period against analyses, with IFS-HRES as the baseline: scores, significance, a report; resumable.

    python -m pipelines.verify_hres configs/verify_hres.toml [verify.key=value ...]

Makes the climatology first where `climatology_from` names the analyses to make it of.
"""

import sys
from contextlib import closing
from pathlib import Path

from fengwu_ghr import console
from fengwu_ghr.config import Section, VerifySection, parse_threshold, read_settings
from fengwu_ghr.errors import UsageError
from fengwu_ghr.options import exit_code
from fengwu_ghr.progress import Progress
from fengwu_ghr.verify.climate_build import ClimateSettings, build_climate
from fengwu_ghr.verify.job import Verified, run_verification
from fengwu_ghr.verify.opening import open_analyses
from pipelines.arguments import configuration


class Settings(Section):
    """`climatology_from`: analyses of years that are not verified, of which verify.climatology is made."""

    verify: VerifySection
    climatology_from: tuple[Path, ...] = ()
    harmonics: int = 2


def run(path: Path, overrides: list[str]) -> Verified:
    """The verification; what is there of climatology and sums is not made again."""
    settings = read_settings(Settings, path, overrides=overrides)
    if not settings.verify.baselines:
        raise UsageError('name the baseline: [verify.baselines] hres = "hres.zarr"')
    with console.StepProgress(quiet=False) as progress:
        if settings.climatology_from:
            make_climatology(settings, progress)
        return run_verification(settings.verify, progress=progress)


def make_climatology(settings: Settings, progress: Progress) -> None:
    """Of every channel of the analyses, with the percentiles that the thresholds ask for."""
    target = settings.verify.climatology
    if target is None:
        raise UsageError("climatology_from needs verify.climatology: where it is to be kept")
    percentiles: dict[str, tuple[float, ...]] = {}
    for name, _, is_percentile, value in map(parse_threshold, settings.verify.thresholds):
        if is_percentile:
            percentiles[name] = (*percentiles.get(name, ()), value)
    with closing(open_analyses(settings.climatology_from)) as analyses:
        wanted = settings.verify.channels or tuple(map(str, analyses.channels))
        names = tuple(dict.fromkeys((*wanted, *percentiles)))
        build_climate(
            analyses, names, target, ClimateSettings(settings.harmonics, percentiles), progress=progress
        )


def main(arguments: list[str]) -> int:
    """Exit code as of the command line."""
    return exit_code(lambda: console.show_verified(run(*configuration("verify_hres", arguments))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
