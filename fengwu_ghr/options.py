"""What the verbs share: their options, how texts become values, errors that become exit codes."""

import functools
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from fengwu_ghr.errors import FengwuError, Interrupted, UsageError

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log every detail.")]
Model = Annotated[
    str | None, typer.Option("--model", help="Checkpoint folder, model name or untrained architecture.")
]
Inputs = Annotated[list[Path] | None, typer.Option("--input", help="GRIB file; may be given several times.")]
Date = Annotated[
    str | None, typer.Option(help="Initial date, YYYYMMDD, where the input holds several times.")
]
Time = Annotated[str | None, typer.Option(help="Initial hour, HH (UTC), with --date.")]
Config = Annotated[
    Path | None, typer.Option("--config", help="TOML file; flags and overrides come after it.")
]
MoreFiles = Annotated[
    list[str] | None, typer.Argument(help="More input files, or overrides section.key=value.")
]
Budget = Annotated[
    str | None, typer.Option("--memory-budget", help="Bound on the memory of the process, as 20GiB.")
]
Threads = Annotated[int | None, typer.Option(help="Threads; default one per core.")]
Store = Annotated[Path, typer.Argument(help="A run store, NAME.zarr.")]


def verb(command: Callable[..., None]) -> Callable[..., None]:
    """Turn errors into messages and exit codes; stop cleanly on Ctrl-C and SIGTERM."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        quiet, verbose = (options.get(name, False) for name in ("quiet", "verbose"))
        if code := exit_code(lambda: command(*args, **options), quiet=quiet, verbose=verbose):
            raise typer.Exit(code)

    return run


def exit_code(work: Callable[[], object], *, quiet: bool = False, verbose: bool = False) -> int:
    """Does the work, its errors turned into messages, SIGTERM into Ctrl-C; gives the exit code of the process."""
    from fengwu_ghr import console

    signal.signal(signal.SIGTERM, _interrupt)
    console.set_verbosity(quiet=quiet, verbose=verbose)
    try:
        work()
    except FengwuError as error:
        return console.report_error(error)
    except KeyboardInterrupt:
        stopped = Interrupted("stopped; what is committed stands, run the same command again to resume")
        return console.report_error(stopped)
    except BrokenPipeError:
        pass
    return 0


def show_version(wanted: bool) -> bool:
    """Print the version and stop, where it is wanted."""
    if wanted:
        from importlib.metadata import version

        typer.echo(version("fengwu_ghr"))
        raise typer.Exit
    return wanted


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def initial_time(date: str | None, time: str | None) -> str | None:
    """--date and --time as one time."""
    if date is None and time is not None:
        raise UsageError(f"--time {time} needs --date")
    return None if date is None else f"{date} {(time or '00').zfill(2)}"


def list_of(text: str | None, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    """The parts of `1,2,3`; none of nothing."""
    try:
        return tuple(kind(part.strip()) for part in (text or "").split(",") if part.strip())
    except ValueError:
        raise UsageError(f"a list of numbers is written 1,2,3; got {text!r}") from None


def place(text: str) -> tuple[float, float]:
    """Latitude and longitude."""
    try:
        values = list_of(text, float)
    except UsageError:
        values = ()
    if len(values) != 2:
        raise UsageError(f"a place is written latitude,longitude, as 52.5,13.4; got {text!r}")
    return values[0], values[1]
