"""A hindcast from its configuration to its summary: planned, handed out, verified; or continued where it stopped."""

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from time import perf_counter

from fengwu_ghr.durable import lock
from fengwu_ghr.engine.torch_engine import chosen_options
from fengwu_ghr.hindcast.arrival import Arrivals, LateInput, told_absent
from fengwu_ghr.hindcast.cluster import hosts, open_client, resources, this_machine
from fengwu_ghr.hindcast.farm import Farm, ForecastWork, log_line
from fengwu_ghr.hindcast.ledger import Ledger
from fengwu_ghr.hindcast.planning import (
    RECORD,
    NoSample,
    Settled,
    recorded_compute,
    sample_plan,
    settle,
    states,
    verification_notes,
)
from fengwu_ghr.hindcast.season import Season
from fengwu_ghr.hindcast.settings import HindcastConfig, absolute
from fengwu_ghr.hindcast.task import CLIENT_LOCK, Outcome
from fengwu_ghr.progress import Progress
from fengwu_ghr.store import RunStore
from fengwu_ghr.target import LOCK, is_store
from fengwu_ghr.verify.job import Verified, run_on_sums, run_verification
from fengwu_ghr.verify.kept import KeptSums
from fengwu_ghr.verify.pairing import NothingToVerify

LOG = logging.getLogger("fengwu_ghr")

_BUSY = "another hindcast command is at work on {} (--status shows how far it is)"


@dataclass
class HindcastResult:
    """Where the forecasts are, which initial times failed and why, and what the others took."""

    store: Path
    total: int
    finished: list[Outcome] = field(default_factory=list)
    """In this run."""
    before: int = 0
    """Initial times that were finished when it began."""
    failed: dict[datetime, str] = field(default_factory=dict)
    absent: dict[datetime, str] = field(default_factory=dict)
    """Those whose input did not come."""
    left: dict[datetime, str] = field(default_factory=dict)
    """Those that another run has to take up, as they are at work elsewhere or begun on another kind of machine."""
    seconds: float = 0.0


def run_hindcast(config: HindcastConfig, *, progress: Progress, retry_failed: bool = False) -> HindcastResult:
    """Every initial time is finished, or the result says why not; what was finished before is not touched.

    Raises UsageError where another command works on the store; the errors of `plan_season`; OutputError and
    ResourceError from whichever initial time met them first.
    """
    start = perf_counter()
    season = Season.of(absolute(config))
    result = HindcastResult(season.config.output.zarr, len(season.times))
    waiting = deque(_due(season, result, retry_failed=retry_failed))
    if waiting:
        # Before workers are started, or jobs submitted.
        _check_alone(season.config.output.zarr)
        recorded_compute(season)
        _compute(season, waiting, result, progress, retry_failed=retry_failed)
    result.seconds = perf_counter() - start
    return result


def _due(season: Season, result: HindcastResult, *, retry_failed: bool) -> Iterator[datetime]:
    """The initial times to be computed; those that are finished or have failed are entered in the result."""
    for state in states(season):
        if state.stage == "finished":
            result.before += 1
        elif state.stage == "failed" and not retry_failed:
            result.failed[state.time] = state.reason
        else:
            yield state.time


def _compute(
    season: Season,
    waiting: deque[datetime],
    result: HindcastResult,
    progress: Progress,
    *,
    retry_failed: bool,
) -> None:
    arrivals = Arrivals()
    try:
        sample = sample_plan(season, waiting, arrivals, waits=True)
    except NoSample as none:
        _note_all(season, waiting, result, arrivals, none)
        return
    for note in verification_notes(sample):
        progress.note(f"verification: {note}")
    machine = this_machine(season.config, sample)
    with open_client(season.config, machine) as client:
        progress.note(f"Dask dashboard: {client.dashboard_link}")
        settled = settle(season, sample, hosts(client, progress.note))
        _make_store(settled)
        with _alone(settled.season) as ledger:
            told, model = settled.season.config.model_dump_json(), season.checkpoint.digest
            work = ForecastWork(told, settled.plan.memory.batch, model, replaces=retry_failed)
            stall = 60 * season.config.cluster.stall_minutes
            farm = Farm(client, work, stall, resources(season.config))
            late = LateInput(settled.season, waiting, arrivals)
            _listen(farm, waiting, late, result, ledger, progress, steps=season.steps)


def _note_all(
    season: Season, waiting: Iterable[datetime], result: HindcastResult, arrivals: Arrivals, none: NoSample
) -> None:
    """Nothing can be computed: the ledger says why. Raises the error where nothing ever was: settings may be wrong."""
    path = season.config.output.zarr
    if not is_store(path):
        raise none
    with _alone(season) as ledger:
        for time, problem in none.problems.items():
            ledger.failed(time, problem.exit_code, str(problem))
    result.failed |= {time: str(problem) for time, problem in none.problems.items()}
    lacking = {time: arrivals.lacking(season.input_names(time)) for time in waiting}
    result.absent = {time: told_absent(names) for time, names in lacking.items() if time not in none.problems}


@contextmanager
def _alone(season: Season) -> Iterator[Ledger]:
    """No other command hands out the initial times of the store, nor replaces it. Raises UsageError where one does."""
    path = season.config.output.zarr
    with ExitStack() as held:
        held.enter_context(lock(path / LOCK, holder=f"another process is replacing {path}", shared=True))
        held.enter_context(lock(path / CLIENT_LOCK, holder=_BUSY.format(path)))
        yield Ledger(held.enter_context(RunStore.open(path)), season.config.wanted)


def _check_alone(path: Path) -> None:
    """Raises UsageError where another command works on the store."""
    if is_store(path):
        lock(path / CLIENT_LOCK, holder=_BUSY.format(path)).close()


def _make_store(settled: Settled) -> None:
    season = settled.season
    card, compute = season.checkpoint.card, season.config.compute
    record = {
        "model": {"name": card.name, "sha256": season.checkpoint.digest},
        "compute": {
            "device": compute.device,
            "precision": compute.precision,
            "threads": compute.threads,
            "batch": settled.plan.memory.batch,
            **chosen_options(compute),
        },
    }
    attributes = {
        "title": f"{card.name} forecasts",
        "source": card.description,
        "license": card.licence,
        RECORD: record,
    }
    RunStore.create(season.config.output.zarr, season.store_plan, attributes, write=()).close()


def _listen(
    farm: Farm,
    waiting: deque[datetime],
    late: LateInput,
    result: HindcastResult,
    ledger: Ledger,
    progress: Progress,
    *,
    steps: int,
) -> None:
    """Until every initial time has its outcome, or its input has not come in time."""
    total = len(waiting) + len(late.absent)
    progress.begin("hindcast", 0, steps * total)
    shown = -1
    for outcome in farm.run(waiting, lambda: late.may_come):
        if outcome is not None:
            _enter(outcome, result, ledger, progress)
        late.look(is_idle=not waiting and not farm.steps_done)
        ended = len(result.finished) + len(result.left) + len(result.failed.keys() & late.asked)
        done = steps * ended + sum(farm.steps_done.values())
        if done != shown:
            shown = done
            progress.stepped(done, {"dates": ended, "of": total, "at work on": len(farm.steps_done)})
    result.absent = late.absent


def _enter(outcome: Outcome, result: HindcastResult, ledger: Ledger, progress: Progress) -> None:
    progress.note(log_line(outcome))
    if outcome.finished:
        result.finished.append(outcome)
        return
    if outcome.is_left:
        result.left[outcome.time] = outcome.reason
        return
    result.failed[outcome.time] = outcome.reason
    if not outcome.is_noted:
        ledger.failed(outcome.time, 1, outcome.reason)


def verify_hindcast(config: HindcastConfig, *, progress: Progress) -> Verified | None:
    """The scores of what is finished so far; None where no verification is asked for.

    Raises NothingToVerify where nothing has a truth yet, and the errors of `verify.job`.
    """
    settings = absolute(config).verify
    if settings is None:
        return None
    if not settings.online:
        return run_verification(settings, progress=progress)
    if not KeptSums(settings.output).pairs:
        raise NothingToVerify("no initial time that is finished had its truth")
    return run_on_sums([settings.output], settings.output)
