"""The verbs of verification: `fengwu-ghr verify` and `fengwu-ghr climatology`."""

from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fengwu_ghr.errors import InputError, UsageError
from fengwu_ghr.options import Quiet, Verbose, list_of, verb

if TYPE_CHECKING:
    from fengwu_ghr.config import VerifySection
    from fengwu_ghr.grid import LatLonGrid
    from fengwu_ghr.verify.job import Verified

Paths = list[Path] | None
_FORMS = "run store, WeatherBench-2 Zarr, NetCDF, GRIB files or a folder of them"


@verb
def verify(
    more: Annotated[
        list[str] | None,
        typer.Argument(help="CONFIG.toml with a section [verify], overrides verify.key=value."),
    ] = None,
    forecast: Annotated[
        Paths, typer.Option(help=f"What is verified: {_FORMS}. May be given several times.")
    ] = None,
    truth: Annotated[
        Paths, typer.Option(help="What is taken for the truth: analyses, in the same forms.")
    ] = None,
    baseline: Annotated[
        list[str] | None, typer.Option(help="What it is compared with, as NAME=PATH or PATH; several times.")
    ] = None,
    climatology: Annotated[
        Path | None,
        typer.Option(help="Of fengwu-ghr climatology; needed for ACC, activity, percentiles, SEEPS."),
    ] = None,
    stations: Annotated[
        Paths,
        typer.Option(help="Reports: SYNOP BUFR, METAR or ISD as Parquet or CSV. May be given several times."),
    ] = None,
    orography: Annotated[
        Path | None,
        typer.Option(help="Height of the model's surface: 2t is brought to the height of stations."),
    ] = None,
    land_mask: Annotated[Path | None, typer.Option(help="GRIB or NetCDF; default from shores.")] = None,
    channels: Annotated[
        str | None, typer.Option(help="As z500,t850,2t; default all that all sources have.")
    ] = None,
    regions: Annotated[str | None, typer.Option(help="As globe,tropics,land; default all.")] = None,
    leads: Annotated[str | None, typer.Option(help="Hours, as 24,72,120; default all.")] = None,
    first: Annotated[str | None, typer.Option(help="First initial time, as 2020-06-01T00.")] = None,
    last: Annotated[str | None, typer.Option(help="Last initial time.")] = None,
    grid: Annotated[
        str | None, typer.Option(help="Evaluation grid: native (of the forecast), 0p25, 1p5, 1p8 ...")
    ] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(help="An event: '2t>=303.15', '10ws>=p98', 'tp24h>=10'. Several times."),
    ] = None,
    sums: Annotated[
        Paths,
        typer.Option(
            help="OUTPUT of earlier verifications, whose sums are read instead of any fields. Several times."
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for sums, scores and the report.")] = None,
    workers: Annotated[int | None, typer.Option(help="Threads; default one per core.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler instead.")] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Verify forecasts against analyses, a baseline and stations: scores, significance and a report to read.

    Every initial time and lead leaves one file of sums in OUTPUT/sums: the same command goes on where it was stopped,
    and an added date costs only that date.
    """
    from fengwu_ghr import console
    from fengwu_ghr.verify.job import run_verification

    flags = {
        "forecast": forecast,
        "truth": truth,
        "baselines": _baselines(baseline),
        "climatology": climatology,
        "stations": stations,
        "orography": orography,
        "land_mask": land_mask,
        "channels": list_of(channels, str),
        "regions": list_of(regions, str),
        "leads_hours": list_of(leads, int),
        "first": first,
        "last": last,
        "grid": grid,
        "thresholds": threshold,
        "output": output,
        "workers": workers,
        "scheduler": scheduler,
    }
    if sums:
        console.show_verified(_of_sums(sums, flags, more or []))
        return
    settings = _settings(flags, more or [])
    with console.StepProgress(quiet=quiet) as progress:
        made = run_verification(settings, progress=progress)
    console.show_verified(made)


@verb
def climatology(
    analyses: Annotated[list[Path], typer.Argument(help="Analyses: Zarr, NetCDF, run stores or GRIB files.")],
    output: Annotated[Path, typer.Option(help="The climatology, a folder of Zarr arrays.")],
    channels: Annotated[
        str | None, typer.Option(help="As z500,t850,2t,10ws,tp24h; default all there are.")
    ] = None,
    harmonics: Annotated[
        int, typer.Option(help="Annual harmonics of the mean; 0 for periods below a year.")
    ] = 2,
    percentiles: Annotated[
        list[str] | None, typer.Option(help="As 2t=5,95: for thresholds such as '2t>=p95'. Several times.")
    ] = None,
    grid: Annotated[
        str | None, typer.Option(help="0p25, 1p5 ...: area means of the analyses; default their own.")
    ] = None,
    first: Annotated[str | None, typer.Option(help="First valid time that counts.")] = None,
    last: Annotated[str | None, typer.Option(help="Last valid time that counts.")] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make a climatology from analyses: means, deviations and percentiles by place, day of the year and hour."""
    from fengwu_ghr import console
    from fengwu_ghr.verify.climate_build import ClimateSettings, build_climate
    from fengwu_ghr.verify.job import chosen_times
    from fengwu_ghr.verify.opening import open_analyses

    source = open_analyses(analyses)
    percents = {_known(name): values for name, values in _percentiles(percentiles).items()}
    asked = list_of(channels, str) or tuple(map(str, source.channels))
    names = (*map(_known, asked), *percents)
    settings = ClimateSettings(harmonics, percents, _grid(grid))
    times = chosen_times(source.valid_times, first, last)
    with closing(source), console.StepProgress(quiet=quiet) as progress:
        made = build_climate(
            source, tuple(dict.fromkeys(names)), output, settings, progress=progress, times=times
        )
    periods = ", ".join(map(str, made.covers))
    console.show_facts(
        "Climatology", [("folder", output), ("of", periods), ("channels", ", ".join(made.channels))]
    )


def add_to(app: typer.Typer) -> None:
    """The verbs are verbs of this application."""
    example = "Example: fengwu-ghr verify --forecast run.zarr --truth analyses.grib2 --output scores"
    app.command(epilog=example)(verify)
    app.command(epilog="Example: fengwu-ghr climatology era5.zarr --output normals --percentiles 2t=5,95")(
        climatology
    )


def _settings(flags: dict[str, Any], more: list[str]) -> "VerifySection":
    from fengwu_ghr.config import load_verification

    files = [text for text in more if "=" not in text]
    if len(files) > 1:
        raise UsageError(f"give one configuration; got {', '.join(files)}")
    path = Path(files[0]) if files else None
    return load_verification(path, flags=flags, overrides=[text for text in more if "=" in text])


def _of_sums(folders: list[Path], flags: dict[str, Any], more: list[str]) -> "Verified":
    """The report of sums that are there already, of the dates and leads asked for."""
    from fengwu_ghr.verify.job import chosen_times, run_on_sums
    from fengwu_ghr.verify.kept import KeptSums

    allowed = ("output", "first", "last", "leads_hours")
    given = [f"--{name.replace('_', '-')}" for name, value in flags.items() if value and name not in allowed]
    if given or more:
        raise UsageError(
            "--sums takes --output, --first, --last and --leads; the sums decide the rest: leave out "
            f"{', '.join([*given, *more])}"
        )
    if flags["output"] is None:
        raise UsageError("verify --sums needs --output: where scores and report are to be written")
    times = sorted({time for folder in folders for time, _ in KeptSums.open(folder).pairs})
    if not times:
        raise InputError(f"{', '.join(map(str, folders))} holds no sums yet")
    kept = set(chosen_times(times, flags["first"], flags["last"]))
    leads = {timedelta(hours=hours) for hours in flags["leads_hours"]}
    return run_on_sums(
        folders, flags["output"], wanted=lambda pair: pair[0] in kept and (not leads or pair[1] in leads)
    )


def _baselines(texts: list[str] | None) -> dict[str, list[str]]:
    """By name, the paths; a path alone is named after itself."""
    found: dict[str, list[str]] = {}
    for text in texts or []:
        name, equals, path = text.partition("=")
        found.setdefault(name if equals else Path(text).stem, []).append(path if equals else text)
    return found


def _percentiles(texts: list[str] | None) -> dict[str, tuple[float, ...]]:
    found = {}
    for text in texts or []:
        name, equals, values = text.partition("=")
        if not equals:
            raise UsageError(f"percentiles are written channel=5,95; got {text!r}")
        found[name] = list_of(values, float)
        if not all(0 < value < 100 for value in found[name]):
            raise UsageError(f"percentiles lie between 0 and 100; got {text!r}")
    return found


def _grid(name: str | None) -> "LatLonGrid | None":
    from fengwu_ghr.grid import LatLonGrid, named_grid

    try:
        grid = named_grid(name) if name else None
    except ValueError as error:
        raise UsageError(f"--grid: {error}") from None
    if grid is not None and not isinstance(grid, LatLonGrid):
        raise UsageError(f"a climatology is made on a latitude-longitude grid; got --grid {name}")
    return grid


def _known(name: str) -> str:
    from fengwu_ghr.verify.quantities import canonical

    try:
        return canonical(name)
    except ValueError as error:
        raise UsageError(str(error)) from None
