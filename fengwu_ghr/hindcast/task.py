"""One initial time on one worker: claimed, computed, made durable, committed.

A worker holds the model once. It takes two initial times: while one is computed, the analysis of the next is read.
"""

import logging
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from threading import Lock
from time import monotonic, perf_counter, sleep
from typing import TYPE_CHECKING, Any

from fengwu_ghr.durable import is_locked
from fengwu_ghr.engine.stepper import Stepper
from fengwu_ghr.engine.torch_engine import Compute
from fengwu_ghr.errors import FengwuError, InputError, OutputError, ResourceError, UsageError
from fengwu_ghr.forecast import ForecastRun, is_due, make_stepper, online_verification, prepare
from fengwu_ghr.hindcast.ledger import Ledger
from fengwu_ghr.hindcast.season import Season
from fengwu_ghr.hindcast.settings import HindcastConfig
from fengwu_ghr.preflight import ForecastPlan
from fengwu_ghr.resume import Attempt, changes, find_attempt_in, settle_compute
from fengwu_ghr.store import RunStore
from fengwu_ghr.verify.pairing import NothingToVerify

if TYPE_CHECKING:
    from fengwu_ghr.verify.online import OnlineVerification

LOG = logging.getLogger("fengwu_ghr")

CLIENT_LOCK = "_hindcast.lock"
"""In the store: held by the command that hands out initial times."""
CLAIM_SECONDS = 1.0
"""Between two attempts to claim what another process is writing."""

Tell = Callable[[Mapping[str, Any]], None]
"""Hears what happens: `stage` (reading, ready, computing), or how many steps are `done`."""


@dataclass(frozen=True)
class Outcome:
    """How an initial time ended: finished, failed with a reason, or left as it was for another run."""

    time: datetime
    finished: bool
    reason: str = ""
    seconds: Mapping[str, float] | None = None
    is_noted: bool = True
    """In the ledger; not where a worker died before it could."""
    is_left: bool = False
    """For another run to take up; the reason says why not this one."""

    def facts(self) -> dict[str, Any]:
        """As plain values, for a log."""
        ended = "finished" if self.finished else "left" if self.is_left else "failed"
        found: dict[str, Any] = {"time": self.time.isoformat(), "outcome": ended}
        if self.reason:
            found["reason"] = self.reason
        return found | {"seconds": {name: round(value, 2) for name, value in (self.seconds or {}).items()}}


@dataclass
class Worker:
    """What a process keeps while it works on a season: the store, the model, and whose turn it is."""

    season: Season
    batch: int
    store: RunStore
    claim_patience: float
    replaces: bool = False
    """Whether what a failed attempt left is discarded where it began with other input."""

    def __post_init__(self) -> None:
        self._reading, self._computing = Lock(), Lock()
        self._stepper: Stepper | None = None
        self._compute: Compute | None = None
        self.ledger = Ledger(self.store, self.season.config.wanted)

    @classmethod
    def of(cls, config: HindcastConfig, *, batch: int, model: str, replaces: bool) -> "Worker":
        """Raises UsageError where this machine does not see the locks of others, or has another model of this name."""
        if not is_locked(config.output.zarr / CLIENT_LOCK):
            raise UsageError(
                f"a worker does not see the lock on {config.output.zarr}: its file system does not carry locks from "
                "one machine to another, and two workers could write one initial time; use one that does (NFS 4, "
                "GPFS, Lustre mounted with -o flock), or workers on one machine"
            )
        season = Season.of(config)
        if season.checkpoint.digest != model:
            raise UsageError(
                f"a worker has another model at {season.checkpoint.folder} ({season.checkpoint.digest[:12]}, not "
                f"{model[:12]}); give all machines the same, and start the workers again"
            )
        store = RunStore.open(config.output.zarr)
        return cls(season, batch, store, 60 * config.cluster.stall_minutes, replaces)

    def forecast(self, time: datetime, tell: Tell) -> Outcome:
        """The initial time is finished, or has failed and the ledger says why.

        Raises OutputError and ResourceError: others would fail as well.
        """
        with ExitStack() as claim:
            try:
                claim.enter_context(_claimed(self.store, time, patience=self.claim_patience))
            except UsageError as error:  # another process is at it: no failure of the initial time
                return Outcome(time, False, str(error), is_left=True)
            except InputError as error:  # its manifest is damaged
                self.ledger.failed(time, error.exit_code, str(error))
                return Outcome(time, False, str(error))
            if self.store.finished(time) == self.season.config.wanted:
                return Outcome(time, True)
            self.ledger.began(time)
            try:
                seconds = self._complete(time, tell)
            except (OutputError, ResourceError):
                raise
            except _OfAnotherKind as kind:
                return Outcome(time, False, str(kind), is_left=True)
            except Exception as error:
                return self._failed(time, error)
            self.ledger.finished(time, seconds)
            return Outcome(time, True, seconds=seconds)

    def _failed(self, time: datetime, error: Exception) -> Outcome:
        """Ours are for users; anything else is a bug, whose place the journal keeps."""
        if isinstance(error, FengwuError):
            self.ledger.failed(time, error.exit_code, str(error))
            return Outcome(time, False, str(error))
        reason = f"{type(error).__name__}: {error} (a bug; the journal of the store has its place)"
        self.ledger.failed(time, 1, reason, "".join(traceback.format_exception(error)))
        return Outcome(time, False, reason)

    def _complete(self, time: datetime, tell: Tell) -> dict[str, float]:
        """Every product of the initial time is there; seconds by activity, `all` without waiting for its turn."""
        begun = perf_counter()
        tell({"stage": "reading"})
        plan = self.season.plan(time, batch=self.batch)
        if self.replaces and changes(plan, self.store.provenance(time)):
            self.store.discard(time)
            plan = self._replacing(plan)
        attempt = find_attempt_in(self.store, plan)
        with _watching(plan, attempt) as watch, ExitStack() as reading:
            run = ForecastRun(plan, self.store, _Reporter(tell, reading), watch)
            if not is_due(plan, attempt, watch):
                run.complete(attempt, None, None)
                return {"all": perf_counter() - begun}
            _check_kind(plan, attempt)
            reading.enter_context(self._reading)
            with run.clock.measure("read"):
                prepared = prepare(plan, attempt, run.reporter)
            tell({"stage": "ready"})
            with self._computing:
                start = perf_counter()
                tell({"stage": "computing"})
                run.complete(attempt, prepared, self._stepper_for(plan, prepared.compute))
                return {"all": perf_counter() - start, **run.clock.seconds}

    @staticmethod
    def _replacing(plan: ForecastPlan) -> ForecastPlan:
        """The same forecast, which may replace the GRIB files of another."""
        output = plan.config.output.model_copy(update={"overwrite": True})
        return replace(plan, config=plan.config.model_copy(update={"output": output}))

    def _stepper_for(self, plan: ForecastPlan, compute: Compute) -> Stepper:
        """The model, loaded once for all initial times that are computed alike."""
        if self._stepper is None or self._compute != compute:
            self._stepper = None  # two do not fit
            self._stepper, self._compute = make_stepper(plan, compute), compute
        return self._stepper


class _OfAnotherKind(Exception):
    """The initial time was begun on a machine that rounds otherwise, and waits for one of that kind."""


def _check_kind(plan: ForecastPlan, attempt: Attempt) -> None:
    """Raises _OfAnotherKind where this worker would not go on with the bytes with which the forecast was begun."""
    try:
        settle_compute(plan, attempt)
    except UsageError as other:
        raise _OfAnotherKind(f"it waits for a worker like the one that began it: {other}") from None


@dataclass
class _Reporter:
    """Tells of a forecast; the next analysis may be read once this one is stepping."""

    tell: Tell
    reading: ExitStack

    def note(self, text: str) -> None:
        LOG.debug(text)

    def begin(self, done: int, total: int) -> None:
        self.reading.close()
        self.tell({"done": done})

    def stepped(self, done: int, lead: timedelta) -> None:
        self.tell({"done": done})


@contextmanager
def _watching(plan: ForecastPlan, attempt: Attempt) -> Iterator["OnlineVerification | None"]:
    """What scores the leads; None where that is not asked for, or the initial time has no truth (yet)."""
    with ExitStack() as opened:
        try:
            watch = opened.enter_context(online_verification(plan, attempt))
        except NothingToVerify as nothing:
            LOG.debug("%s is not scored: %s", plan.initial_time, nothing)
            watch = None
        yield watch


@contextmanager
def _claimed(store: RunStore, time: datetime, *, patience: float) -> Iterator[None]:
    """The initial time is ours inside. Another process that has it may finish it first: it is waited for.

    Raises UsageError where it does not let go.
    """
    deadline = monotonic() + patience
    while True:
        try:
            store.claim(time)
            break
        except UsageError:
            if monotonic() > deadline:
                raise
        sleep(CLAIM_SECONDS)
    try:
        yield
    finally:
        store.release(time)
