"""The verbs of `fengwu-ghr nowcast`: train, forecast, verify, demo."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fengwu_ghr.errors import UsageError
from fengwu_ghr.options import Quiet, Threads, Verbose, list_of, verb

if TYPE_CHECKING:
    from fengwu_ghr.nowcast.scores import Scored
    from fengwu_ghr.nowcast.sequence import RadarSequence
    from fengwu_ghr.nowcast.train import NowcastSettings

app = typer.Typer(
    no_args_is_help=True,
    help="Radar echoes over the next two hours, from radar alone.",
    rich_markup_mode=None,
)

_DEFAULT = "impa-net-advection"
Settings = Annotated[Path, typer.Argument(help="A TOML file, as configs/nowcast.toml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="section.key=value in place of what the file says.")
]
Radar = Annotated[
    list[Path],
    typer.Option(
        help="Radar files or a folder of them: .npz, NetCDF, HDF5, GIF, GRIB2, GeoTIFF. Several times."
    ),
]
Bridge = Annotated[
    bool, typer.Option("--bridge", help="Fill gaps of up to 15 minutes by interpolation in time.")
]
Every = Annotated[int, typer.Option(help="Use every n-th frame only, counted back from the last.")]


@app.command(epilog="Example: fengwu-ghr nowcast train configs/nowcast.toml data=radar --output runs/impa")
@verb
def train(
    config: Settings,
    output: Annotated[Path, typer.Option(help="Folder of the run; the checkpoint is OUTPUT/model.")],
    more: Overrides = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a nowcast on generated storms and on the events of the settings; the same command goes on after a stop."""
    from fengwu_ghr import console
    from fengwu_ghr.nowcast.train import train_nowcast
    from fengwu_ghr.nowcast.weights import NowcastModel

    with console.StepProgress(quiet=quiet) as progress:
        made = train_nowcast(_settings(config, more), output, progress)
    card = NowcastModel.open(made).card
    console.show_facts("Model", [("folder", made), ("name", card.name), *card.provenance.items()])


@app.command(epilog="Example: fengwu-ghr nowcast forecast --input radar/ --output nowcast.zarr --grib grib")
@verb
def forecast(
    input: Radar,
    output: Annotated[Path, typer.Option(help="The run store, NAME.zarr.")],
    model: Annotated[
        str, typer.Option(help="Folder of a nowcast checkpoint, or the packaged one.")
    ] = _DEFAULT,
    grib: Annotated[Path | None, typer.Option(help="Folder for GRIB2, one file a lead.")] = None,
    time: Annotated[
        str | None, typer.Option(help="Of the last frame that is used; default the last there is.")
    ] = None,
    leads: Annotated[
        int | None, typer.Option(help="Frames to forecast; default all that the model gives.")
    ] = None,
    every: Every = 1,
    bridge: Bridge = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a run store that is there.")
    ] = False,
    threads: Threads = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Nowcast from radar frames: Zarr, and GRIB2 where it is asked for, with steps of minutes."""
    from fengwu_ghr import console
    from fengwu_ghr.config import asked_time
    from fengwu_ghr.nowcast.forecast import frames_until, run_nowcast
    from fengwu_ghr.nowcast.weights import resolve_nowcast

    _use_threads(threads)
    chosen = resolve_nowcast(model)
    sequence = _every(frames_until(_read(input, bridge), asked_time(time)), every)
    with console.StepProgress(quiet=quiet) as progress:
        made = run_nowcast(
            sequence, chosen, output, leads=leads, grib=grib, overwrite=overwrite, progress=progress
        )
    facts: list[tuple[str, object]] = [
        ("store", made.store), ("from", f"{made.initial_time:%Y-%m-%d %H:%M} UTC"),
        ("leads", f"{made.leads}, to +{made.leads * made.minutes} min"),
        ("network", console.human_duration(made.seconds)),
    ]  # fmt: skip
    console.show_facts("Nowcast", facts + ([("GRIB", grib)] if grib else []))


@app.command(epilog="Example: fengwu-ghr nowcast verify --forecast nowcast.zarr --truth radar/")
@verb
def verify(
    config: Annotated[
        Path | None, typer.Argument(help="Settings with events for tests, as configs/nowcast.toml.")
    ] = None,
    more: Overrides = None,
    model: Annotated[
        list[str] | None, typer.Option(help="NAME=FOLDER of a checkpoint. Several times.")
    ] = None,
    baselines: Annotated[
        str | None, typer.Option(help="As 'persistence,pysteps S-PROG'; default all that can run here.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for sums, scores.csv and table.md.")] = None,
    spacing: Annotated[int, typer.Option(help="Minutes between starts.")] = 20,
    forecast: Annotated[
        Path | None, typer.Option(help="A run store of a nowcast, instead of CONFIG.")
    ] = None,
    truth: Annotated[list[Path] | None, typer.Option(help="Radar files of what came. Several times.")] = None,
    threads: Threads = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score nowcasts: one run store against what came, or models and baselines on the test events of CONFIG."""
    from fengwu_ghr import console
    from fengwu_ghr.nowcast.table import COLUMNS

    _use_threads(threads)
    if forecast is not None:
        if config is not None or not truth:
            raise UsageError("a run store is verified with --forecast and --truth, and without a CONFIG")
        _show_store(forecast, truth)
        return
    if config is None or output is None:
        raise UsageError("give CONFIG.toml and --output, or --forecast and --truth")
    from fengwu_ghr.nowcast.verification import compare

    with console.StepProgress(quiet=quiet) as progress:
        made = compare(
            _settings(config, more),
            model or [],
            _baselines(baselines),
            output,
            spacing=spacing,
            progress=progress,
        )
    console.show_table("HSS and more, leads of 30 to 120 minutes pooled", COLUMNS, made.compared.rows())
    console.show_facts("Verification", [(path.name, path) for path in made.files])


@app.command(epilog="Example: fengwu-ghr nowcast demo --output nowcast-demo")
@verb
def demo(
    output: Annotated[Path, typer.Option(help="Folder for everything the demonstration makes.")] = Path(
        "nowcast-demo"
    ),
    model: Annotated[
        str, typer.Option(help="Folder of a nowcast checkpoint, or the packaged one.")
    ] = _DEFAULT,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Nowcast two hours of generated storms: Zarr, GRIB, scores against what came, a picture and an animation."""
    from fengwu_ghr import console
    from fengwu_ghr.nowcast.demo import run_nowcast_demo

    with console.StepProgress(quiet=quiet) as progress:
        made = run_nowcast_demo(output, model=model, progress=progress)
    for name, sums in made.sums.items():
        _show_scores(name, sums)
    facts = [
        ("store", made.result.store),
        ("GRIB", made.result.files[0].parent),
        *((p.name, p) for p in made.pictures),
    ]
    console.show_facts("Demonstration", facts)


def _settings(path: Path, more: list[str] | None) -> "NowcastSettings":
    from fengwu_ghr.config import read_settings
    from fengwu_ghr.nowcast.train import NowcastSettings

    return read_settings(NowcastSettings, path, overrides=more or ())


def _read(paths: list[Path], bridge: bool) -> "RadarSequence":
    from fengwu_ghr.nowcast.radar import read_radar

    return read_radar(paths, bridge=bridge)


def _every(sequence: "RadarSequence", every: int) -> "RadarSequence":
    if every < 1:
        raise UsageError(f"--every counts frames, 1 or more; got {every}")
    return sequence.every(every, first=(len(sequence) - 1) % every)


def _baselines(text: str | None) -> tuple[str, ...]:
    from fengwu_ghr.nowcast.child import has_pysteps
    from fengwu_ghr.nowcast.comparison import BASELINES, PYSTEPS_BASELINES

    if text is not None:
        return list_of(text, str)
    return (*BASELINES, *(PYSTEPS_BASELINES if has_pysteps() else ()))


def _show_store(path: Path, truth: list[Path]) -> None:
    from fengwu_ghr.nowcast.verification import verify_store

    _show_scores(str(path), verify_store(path, _read(truth, False)))


def _show_scores(name: str, sums: "Scored") -> None:
    from fengwu_ghr import console
    from fengwu_ghr.nowcast.table import by_lead

    columns, rows = by_lead(sums)
    half_hours = [row for row in rows if int(row[0]) % 30 == 0]
    console.show_table(name, columns, half_hours or rows)


def _use_threads(threads: int | None) -> None:
    from fengwu_ghr.nowcast.predict import use_threads

    if threads is not None:
        use_threads(threads)
