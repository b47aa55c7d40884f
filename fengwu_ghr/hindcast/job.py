"""A hindcast from its configuration to its summary: planned, handed out, verified; or continued where it stopped."""

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any

from fengwu_ghr.durable import lock
from fengwu_ghr.engine.torch_engine import chosen_options
from fengwu_ghr.errors import InputError, UsageError
from fengwu_ghr.forecast import online_verification
from fengwu_ghr.hindcast.cluster import Host, hosts, open_client, resources, this_machine
from fengwu_ghr.hindcast.farm import LOOK_SECONDS, Farm, ForecastWork, log_line
from fengwu_ghr.hindcast.ledger import DateState, Ledger
from fengwu_ghr.hindcast.season import Season, check_recorded
from fengwu_ghr.hindcast.settings import HindcastConfig, absolute
from fengwu_ghr.hindcast.task import CLIENT_LOCK, Outcome
from fengwu_ghr.preflight import ForecastPlan
from fengwu_ghr.progress import Progress
from fengwu_ghr.resume import Attempt, check_budget, differing
from fengwu_ghr.skeleton import check_resumable, read_attribute
from fengwu_ghr.store import RunStore
from fengwu_ghr.target import LOCK, is_occupied, is_store
from fengwu_ghr.verify.job import Verified, run_on_sums, run_verification
from fengwu_ghr.verify.kept import KeptSums
from fengwu_ghr.verify.pairing import NothingToVerify

LOG = logging.getLogger("fengwu_ghr")

RECORD = "hindcast"
"""The attribute of the store that says how all initial times are computed."""
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
    seconds: float = 0.0


class NoSample(InputError):
    """Of no initial time is the input there and sound; `problems` are of those that are there."""

    def __init__(self, message: str, problems: Mapping[datetime, InputError]) -> None:
        super().__init__(message)
        self.problems = problems


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
        _check_alone(season.config.output.zarr)  # before workers are started, or jobs submitted
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


def states(season: Season) -> list[DateState]:
    """Of every initial time, also where there is no store yet. Raises UsageError where it is of something else."""
    path = season.config.output.zarr
    if not is_occupied(path):
        return [DateState(time, "waiting") for time in season.times]
    _check_season(season, path)
    with RunStore.open(path) as store:
        return Ledger(store, season.config.wanted).states()


def _check_season(season: Season, path: Path) -> None:
    """Raises UsageError unless the store is of this season."""
    check_resumable(path, season.store_plan)
    recorded = read_attribute(path, RECORD)
    if recorded is None:
        raise UsageError(f"{path} is the run store of a single forecast; write to another output.zarr")
    check_recorded(season, recorded, path)


def plan_hindcast(config: HindcastConfig) -> list[tuple[str, object]]:
    """What the season would take, in words. Raises the errors that it would begin with."""
    season = Season.of(absolute(config))
    found = states(season)
    stages = Counter(state.stage for state in found)
    due = [state.time for state in found if state.stage not in ("finished", "failed")]
    times, plan = season.times, season.store_plan
    facts: list[tuple[str, object]] = [
        ("initial times", f"{len(times)}, {times[0]:%Y-%m-%d %H} ... {times[-1]:%Y-%m-%d %H} UTC"),
        ("there already", f"{stages['finished']} finished, {stages['failed']} failed"),
        ("products", f"{len(plan.channels)} channels, {len(plan.leads)} leads on {plan.grid}"),
        ("store", f"about {plan.predicted_bytes / 1e9:.3g} GB in all"),
    ]
    if not due:
        return [*facts, ("to do", "nothing")]
    absent = sum(bool(season.missing_inputs(time)) for time in due)
    return [*facts, ("input", f"there for {len(due) - absent} of {len(due)}"), *_cost(season, due)]


def _cost(season: Season, due: Sequence[datetime]) -> list[tuple[str, object]]:
    sample = sample_plan(season, due, waits=False)
    notes = _verification_notes(sample)
    machine = this_machine(season.config, sample)
    plan = settle(season, sample, [machine]).plan
    seconds = plan.seconds_per_step * season.steps
    hours = len(due) * seconds / machine.workers / 3600
    return [
        ("workers", f"{machine.workers} like this machine's, {plan.threads} threads each"),
        ("memory", f"{plan.memory.peak / 2**30:.2f} of {plan.memory.budget / 2**30:.2f} GiB a worker"),
        ("disk", f"about {plan.disk_bytes / 1e9:.3g} GB in all, with GRIB and a restart state"),
        ("time", f"about {seconds:.3g} s an initial time, {hours:.3g} h for the {len(due)} to do"),
        *(("verification", note) for note in notes),
    ]


def _compute(
    season: Season,
    waiting: deque[datetime],
    result: HindcastResult,
    progress: Progress,
    *,
    retry_failed: bool,
) -> None:
    try:
        sample = sample_plan(season, waiting, waits=True)
    except NoSample as none:
        _note_all(season, waiting, result, none)
        return
    for note in _verification_notes(sample):
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
            _listen(settled.season, farm, waiting, result, ledger, progress)


def _note_all(season: Season, waiting: Iterable[datetime], result: HindcastResult, none: NoSample) -> None:
    """Nothing can be computed: the ledger says why. Raises the error where nothing ever was: settings may be wrong."""
    path = season.config.output.zarr
    if not is_store(path):
        raise none
    with _alone(season) as ledger:
        for time, problem in none.problems.items():
            ledger.failed(time, problem.exit_code, str(problem))
    result.failed |= {time: str(problem) for time, problem in none.problems.items()}
    result.absent = {time: _told_absent(season, time) for time in waiting if time not in none.problems}


def _told_absent(season: Season, time: datetime) -> str:
    return f"not there: {', '.join(season.missing_inputs(time))}"


def _verification_notes(sample: ForecastPlan) -> list[str]:
    """What will be left out of the scores. Raises what would fail for all initial times."""
    try:
        with online_verification(sample, Attempt(None, frozenset())) as watch:
            return list(watch.notes) if watch else []
    except NothingToVerify as nothing:
        return [
            f"{nothing} (from {sample.initial_time:%Y-%m-%d %H}; such initial times are forecast without scores)"
        ]


def sample_plan(season: Season, times: Sequence[datetime] | deque[datetime], *, waits: bool) -> ForecastPlan:
    """The plan of one of these forecasts; once the input of any is there, where one `waits` for it.

    Raises NoSample with the error of the first where none can be planned.
    """
    patience = monotonic() + 60 * season.config.input.wait_minutes * waits
    while monotonic() < patience and all(season.missing_inputs(time) for time in times):
        sleep(LOOK_SECONDS)
    problems: dict[datetime, InputError] = {}
    for time in times:
        if season.missing_inputs(time):
            continue
        try:
            return season.plan(time, is_here=season.config.is_computed_here)
        except InputError as error:
            problems[time] = error
    first = next(iter(problems.values()), None)
    raise NoSample(str(first) if first else _told_missing(season, times[0]), problems)


def _told_missing(season: Season, time: datetime) -> str:
    names = ", ".join(season.missing_inputs(time))
    return f"no initial time has its input: of {time:%Y-%m-%d %H:%M} is not there {names}"


@dataclass(frozen=True)
class Settled:
    """How every initial time is computed, whoever computes it."""

    season: Season
    plan: ForecastPlan
    """Of one of them."""


def settle(season: Season, sample: ForecastPlan, machines: Sequence[Host]) -> Settled:
    """What the store has recorded; where it is new, what suits the smallest of these machines.

    Raises UsageError where other numerics are asked for than were recorded, ResourceError where those do not fit.
    """
    compute, path = season.config.compute, season.config.output.zarr
    budget = compute.memory_budget or min(machine.memory_budget for machine in machines)
    threads = compute.threads or min(machine.threads for machine in machines)
    recorded = read_attribute(path, RECORD)["compute"] if is_store(path) else None
    if recorded is not None:
        _check_numerics(season, recorded)
        threads = compute.threads or recorded["threads"]
    fixed = season.with_compute(threads=threads, memory_budget=budget)
    plan = sample.computed_by(fixed.config.compute)
    if recorded is None:
        return Settled(fixed, plan)
    check_budget(plan, recorded["batch"])
    return Settled(fixed, replace(plan, memory=plan.memory_with(recorded["batch"])))


def _check_numerics(season: Season, recorded: Mapping[str, Any]) -> None:
    compute = season.config.compute
    asked = {
        "batch": recorded["batch"],
        "threads": compute.threads or recorded["threads"],
        "device": compute.device,
        "precision": compute.precision,
        **chosen_options(compute),
    }
    changed = [f"{name}: {old} -> {new}" for name, old, new in differing(recorded, asked)]
    if changed and not compute.accept_numerics:
        raise UsageError(
            f"{season.config.output.zarr} was planned with other numerics ({'; '.join(changed)}), so that its "
            "forecasts would differ; take those, set compute.accept_numerics, or write to another output.zarr"
        )


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
    season: Season,
    farm: Farm,
    waiting: deque[datetime],
    result: HindcastResult,
    ledger: Ledger,
    progress: Progress,
) -> None:
    """Until every initial time has its outcome, or its input has not come in time."""
    late = LateInput(season, waiting)
    steps, total = season.steps, len(waiting) + len(late.absent)
    progress.begin("hindcast", 0, steps * total)
    shown = -1
    for outcome in farm.run(waiting, lambda: late.may_come):
        if outcome is not None:
            _enter(outcome, result, ledger, progress)
        late.look(is_idle=not waiting and not farm.steps_done)
        ended = len(result.finished) + len(result.failed.keys() & late.asked)
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
    result.failed[outcome.time] = outcome.reason
    if not outcome.is_noted:
        ledger.failed(outcome.time, 1, outcome.reason)


class LateInput:
    """Initial times whose input is not there yet: they are taken out of those that wait, and given back when it is."""

    def __init__(
        self, season: Season, waiting: deque[datetime], *, now: Callable[[], float] = monotonic
    ) -> None:
        self._season, self._waiting, self._now = season, waiting, now
        self.asked = set(waiting)
        missing = [time for time in waiting if season.missing_inputs(time)]
        self.absent = {time: _told_absent(season, time) for time in missing}
        for time in self.absent:
            waiting.remove(time)
        self._patience = 60 * season.config.input.wait_minutes
        self._idle_since: float | None = None

    @property
    def may_come(self) -> bool:
        """Whether it is worth while to wait."""
        if not self.absent or not self._patience:
            return False
        return self._idle_since is None or self._now() - self._idle_since < self._patience

    def look(self, *, is_idle: bool) -> None:
        """What has come waits for its turn; `is_idle` where there is nothing else to do."""
        came = [time for time in self.absent if not self._season.missing_inputs(time)]
        for time in came:
            del self.absent[time]
            self._waiting.append(time)
        if not is_idle or came:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = self._now()


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
