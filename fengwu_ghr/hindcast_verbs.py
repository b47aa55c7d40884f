"""The verbs of many initial times, and of proof: `fengwu-ghr hindcast` and `fengwu-ghr reproduce`."""

from datetime import datetime, timedelta
from importlib.util import find_spec
from math import isinf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fengwu_ghr.errors import ConformanceError, FengwuError, SomeFailed, UsageError
from fengwu_ghr.options import Quiet, Store, Verbose, verb

if TYPE_CHECKING:
    from fengwu_ghr.hindcast.job import HindcastResult
    from fengwu_ghr.hindcast.ledger import Survey
    from fengwu_ghr.hindcast.settings import HindcastConfig

_SHOWN = 10


@verb
def hindcast(
    config: Annotated[Path, typer.Argument(help="CONFIG.toml; configs/hindcast.toml shows every key.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="section.key=value, as dates.every_hours=12.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Workers on this machine.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler instead.")] = None,
    status: Annotated[
        bool, typer.Option("--status", help="Say how far it is, from the store alone.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take, without computing.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try initial times again that failed before.")
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Forecast from many initial times, each once; run again after any stop to go on.

    All initial times are in one run store. One that fails is noted with its reason and does not stop the others
    (exit 7 at the end). --status may be asked at any time, also while it runs on other machines.
    """
    if sum((status, dry_run, retry_failed)) > 1:
        raise UsageError("--status, --dry-run and --retry-failed exclude each other")
    settings = _settings(config, overrides or [], workers, scheduler)
    if status:
        _show_status(settings)
        return
    _check_dask()
    if dry_run:
        _show_plan(settings)
    else:
        _run(settings, retry_failed=retry_failed, quiet=quiet)


@verb
def reproduce(
    store: Store,
    lead_time: Annotated[int, typer.Option(help="Lead time in hours.")],
    time: Annotated[str | None, typer.Option(help="Initial time; default: the store's first.")] = None,
    model: Annotated[str | None, typer.Option(help="Where the weights are now.")] = None,
    input_: Annotated[
        list[Path] | None, typer.Option("--input", help="Where the input is now; may be given several times.")
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compute a committed lead again from its provenance, and prove its bytes or say what differs (exit 4)."""
    from fengwu_ghr import console
    from fengwu_ghr.config import asked_time
    from fengwu_ghr.reproduce import reproduce as compute_again

    with console.LeadProgress(quiet=quiet) as progress:
        found = compute_again(
            store,
            asked_time(time),
            timedelta(hours=lead_time),
            reporter=progress,
            model=model,
            files=tuple(input_ or ()),
        )
    rows = [
        (str(channel), "unknown" if isinf(worst) else f"{worst:.3g}")
        for channel, worst in found.differing.items()
    ]
    if rows:
        console.show_table("Fields with other bytes", ("field", "largest difference"), rows)
    what = f"+{lead_time} h from {found.initial_time:%Y-%m-%d %H:%M}"
    why = "; ".join(found.causes) or "though nothing recorded differs: the store or this machine is at fault"
    if not found.is_equal:
        raise ConformanceError(
            f"{what} is not reproduced: {len(rows)} of {found.fields} fields have other bytes; {why}"
        )
    console.OUT.print(f"{what} is reproduced: {found.fields} of {found.fields} fields have the same bytes")
    for cause in found.causes:
        console.OUT.print(f"although {cause}", markup=False)


def add_to(app: typer.Typer) -> None:
    """The verbs are verbs of this application."""
    app.command(epilog="Example: fengwu-ghr reproduce run.zarr --time 2024-01-01T00 --lead-time 120")(
        reproduce
    )
    app.command(epilog="Example: fengwu-ghr hindcast configs/hindcast.toml --workers 2")(hindcast)


def _settings(
    path: Path, overrides: list[str], workers: int | None, scheduler: str | None
) -> "HindcastConfig":
    from fengwu_ghr.config import read_settings
    from fengwu_ghr.hindcast.settings import HindcastConfig

    if workers and scheduler:
        raise UsageError("the workers of a scheduler are its own: give --workers or --scheduler")
    given = {"workers": workers} if workers else {"scheduler": scheduler, "workers": 0} if scheduler else {}
    more = [f"cluster.{name}={value}" for name, value in given.items()]
    return read_settings(HindcastConfig, path, overrides=[*overrides, *more])


def _run(config: "HindcastConfig", *, retry_failed: bool, quiet: bool) -> None:
    from fengwu_ghr import console
    from fengwu_ghr.hindcast.job import run_hindcast

    with console.StepProgress(quiet=quiet) as progress:
        result = run_hindcast(config, progress=progress, retry_failed=retry_failed)
    _show_result(result)
    try:
        _verify(config, quiet=quiet)
    except FengwuError as problem:
        if not result.failed:
            raise
        console.show_facts("Verification", [("failed", problem)])
    _raise_for_failed(result)


def _verify(config: "HindcastConfig", *, quiet: bool) -> None:
    from fengwu_ghr import console
    from fengwu_ghr.hindcast.job import verify_hindcast
    from fengwu_ghr.verify.pairing import NothingToVerify

    try:
        with console.StepProgress(quiet=quiet) as progress:
            verified = verify_hindcast(config, progress=progress)
    except NothingToVerify as nothing:
        console.show_facts("Verification", [("not yet", nothing)])
        return
    if verified is not None:
        console.show_verified(verified)


def _check_dask() -> None:
    if find_spec("distributed") is None:
        raise UsageError("hindcast needs Dask's distributed: pip install 'fengwu_ghr[cluster]'")


def _raise_for_failed(result: "HindcastResult") -> None:
    problems = {**result.failed, **result.absent, **result.left}
    if not problems:
        return
    if result.failed:
        remedy = "remove the causes, then run the same command with --retry-failed"
    elif result.left:
        remedy = "run the same command again where what is said of them can be had"
    else:
        remedy = "run the same command again when their input is there"
    raise SomeFailed(f"{len(problems)} of {result.total} initial times are not there; {remedy}")


def _show_result(result: "HindcastResult") -> None:
    from fengwu_ghr import console

    activities = ("all", "read", "compute", "write", "verify")
    rows = []
    for outcome in sorted(result.finished, key=lambda o: o.time):
        seconds = outcome.seconds or {}
        rows.append((f"{outcome.time:%Y-%m-%d %H}", *(f"{seconds.get(name, 0):.1f}" for name in activities)))
    if rows:
        shown = (
            rows if len(rows) <= _SHOWN else [*rows[: _SHOWN - 1], ("...", *[""] * len(activities)), rows[-1]]
        )
        console.show_table("Finished now, seconds", ("initial time", *activities), shown)
    _show_problems({**result.failed, **result.absent, **result.left})
    facts: list[tuple[str, object]] = [
        ("run store", result.store),
        ("finished", f"{len(result.finished) + result.before} of {result.total}, {len(result.finished)} now"),
        ("failed", len(result.failed)),
    ]
    if result.absent:
        facts.append(("without input", len(result.absent)))
    if result.left:
        facts.append(("left for another run", len(result.left)))
    facts.append(("time", console.human_duration(result.seconds)))
    console.show_facts("Hindcast", facts)


def _show_problems(problems: dict[datetime, str]) -> None:
    from fengwu_ghr import console

    rows = [(f"{time:%Y-%m-%d %H}", reason) for time, reason in sorted(problems.items())]
    if rows:
        console.show_table("Not there", ("initial time", "why"), rows)


def _show_status(config: "HindcastConfig") -> None:
    from fengwu_ghr import console
    from fengwu_ghr.hindcast.ledger import Survey
    from fengwu_ghr.hindcast.settings import absolute

    found = Survey.of(absolute(config))
    _show_problems({state.time: state.reason for state in found.failed})
    console.show_facts("Hindcast", [*found.counted(), ("pace", _pace(found)), ("to go", _to_go(found))])


def _pace(found: "Survey") -> str:
    from fengwu_ghr.console import human_duration

    if found.seconds_each is None:
        return "unknown until one is finished"
    return f"{human_duration(found.seconds_each)} an initial time, {found.processes} workers at work"


def _to_go(found: "Survey") -> str:
    from fengwu_ghr.console import human_duration

    if not found.left:
        return "nothing"
    seconds = found.seconds_to_go
    return "unknown: nobody is at work" if seconds is None else f"about {human_duration(seconds)}"


def _show_plan(config: "HindcastConfig") -> None:
    from fengwu_ghr import console
    from fengwu_ghr.hindcast.planning import plan_hindcast

    console.show_facts("The hindcast that would run", plan_hindcast(config))
