"""The farm: hands initial times to workers, hears of them, and survives what becomes of both."""

import json
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from queue import Empty, Queue
from threading import Lock
from time import monotonic
from typing import Any, Protocol, runtime_checkable
from uuid import uuid4

from distributed import Client, Future, KilledWorker, get_worker

from fengwu_ghr.errors import FengwuError, Interrupted
from fengwu_ghr.hindcast.cluster import GONE, TURNS
from fengwu_ghr.hindcast.settings import HindcastConfig
from fengwu_ghr.hindcast.task import Outcome
from fengwu_ghr.hindcast.task import Worker as DateWorker

LOG = logging.getLogger("fengwu_ghr")

STRIKES = 3
"""So often may a worker die or hang over an initial time before that one is given up."""
LOOK_SECONDS = 1.0
RESULT_SECONDS = 30
SILENT_SECONDS = 60
ACTIVE = ("opening", "reading", "computing")
"""Stages in which an initial time can be why its worker dies or hangs; `ready` it waits for its turn."""


@runtime_checkable
class Work(Protocol):
    """What is done with one initial time, on a worker; `topic` is where it tells of it."""

    def __call__(self, time: datetime, topic: str) -> Outcome:
        """The outcome of this initial time."""


@dataclass(frozen=True)
class ForecastWork:
    """The forecast of a season; a process opens the season once."""

    config: str
    batch: int
    model: str
    """The digest of the model that all workers must have."""
    replaces: bool = False

    def __call__(self, time: datetime, topic: str) -> Outcome:
        worker = get_worker()

        def tell(what: Mapping[str, Any]) -> None:
            worker.log_event(topic, {"time": time.isoformat(), "worker": worker.address, **what})

        tell({"stage": "opening"})
        with _OPENING:
            opened = _worker_of(self)
        return opened.forecast(time, tell)


_OPENING = Lock()


@lru_cache(maxsize=1)
def _worker_of(work: ForecastWork) -> DateWorker:
    config = HindcastConfig.model_validate_json(work.config)
    return DateWorker.of(config, batch=work.batch, model=work.model, replaces=work.replaces)


@dataclass
class _Turn:
    """An initial time that has been handed out."""

    future: Future
    stage: str = ""
    worker: str = ""
    done: int = 0


@dataclass
class Farm:
    """Hands out initial times, at most two a worker, and takes back what fails with its worker."""

    client: Client
    work: Work
    stall_seconds: float
    resources: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.topic = f"fengwu-ghr-{uuid4().hex}"
        self._heard: Queue[tuple[str, Any]] = Queue()
        self._turns: dict[datetime, _Turn] = {}
        self._strikes: Counter[datetime] = Counter()
        self._suspects: deque[datetime] = deque()
        self._last_heard: dict[str, float] = {}
        self._workers, self._counted, self._heard_last = 0, -LOOK_SECONDS, monotonic()
        self.client.subscribe_topic(self.topic, lambda event: self._heard.put(("event", event[1])))

    @property
    def steps_done(self) -> dict[datetime, int]:
        """Of the initial times that are handed out."""
        return {time: turn.done for time, turn in self._turns.items()}

    def run(self, waiting: deque[datetime], more: Callable[[], bool]) -> Iterator[Outcome | None]:
        """An outcome for every initial time that waits, as they come; None when something else was heard, or nothing.

        Whoever listens may add to those that wait, as long as there may be `more`. Raises what would fail for all;
        Interrupted when the scheduler is gone.
        """
        while waiting or self._turns or self._suspects or more():
            self._hand_out(waiting)
            yield self._listen(waiting)
            yield from self._given_up(waiting)

    @property
    def _room(self) -> int:
        """Turns that are free; the workers are counted now and then."""
        if monotonic() - self._counted >= LOOK_SECONDS:
            self._workers = len(self.client.scheduler_info(n_workers=-1)["workers"])
            self._counted = monotonic()
        return TURNS * max(1, self._workers) - len(self._turns)

    def _hand_out(self, waiting: deque[datetime]) -> None:
        for _ in range(min(self._room, len(waiting))):
            self._begin(waiting.popleft())
        if self._suspects and not self._turns:
            self._begin(self._suspects.popleft())

    def _begin(self, time: datetime) -> None:
        future = self.client.submit(
            self.work,
            time,
            self.topic,
            key=f"{time:%Y%m%dT%H%M}-{uuid4().hex}",
            pure=False,
            resources=dict(self.resources) or None,
        )
        self._turns[time] = _Turn(future)
        future.add_done_callback(lambda ended: self._heard.put(("done", (time, ended))))

    def _listen(self, waiting: deque[datetime]) -> Outcome | None:
        """What is heard next: an outcome, or nothing that ends an initial time."""
        try:
            kind, what = self._heard.get(timeout=LOOK_SECONDS)
        except Empty:
            self._check_scheduler()
            self._wonder()
            return None
        self._heard_last = monotonic()
        if kind == "event":
            self._note(what)
            return None
        time, future = what
        turn = self._turns.get(time)
        if turn is None or turn.future.key != future.key:
            return None  # it was taken from its worker meanwhile
        del self._turns[time]
        return self._ended(time, turn, waiting)

    def _wonder(self) -> None:
        """Somebody who waits is told why nothing happens."""
        if self._turns and not self._workers and monotonic() - self._heard_last > SILENT_SECONDS:
            self._heard_last = monotonic()
            LOG.warning("no worker is there; initial times wait for one (Ctrl-C stops)")

    def _note(self, what: Mapping[str, Any]) -> None:
        self._last_heard[what["worker"]] = monotonic()
        turn = self._turns.get(datetime.fromisoformat(what["time"]))
        if turn is not None:
            turn.worker, turn.stage = what["worker"], what.get("stage", turn.stage)
            turn.done = what.get("done", turn.done)

    def _ended(self, time: datetime, turn: _Turn, waiting: deque[datetime]) -> Outcome | None:
        if turn.future.status == "finished":
            self._last_heard[turn.worker] = monotonic()
            try:
                return turn.future.result(timeout=RESULT_SECONDS)
            except TimeoutError:  # its worker died before it had told; what is finished is found so
                waiting.appendleft(time)
                return None
        if turn.future.status in ("cancelled", "lost"):
            self._check_scheduler(is_cancelled=turn.future.status == "cancelled")
            waiting.appendleft(
                time
            )  # its worker died before the result was fetched: what is finished is found so
            return None
        error = turn.future.exception()
        if not isinstance(error, KilledWorker):
            raise (
                error if isinstance(error, FengwuError) else RuntimeError(f"a worker failed: {error}")
            ) from error
        return self._struck(time, turn, waiting, "its worker died; perhaps it had too little memory")

    def _struck(self, time: datetime, turn: _Turn, waiting: deque[datetime], reason: str) -> Outcome | None:
        """The initial time has its turn again; the last one alone, so that no other pays for it."""
        self._strikes[time] += turn.stage != "ready"
        if self._strikes[time] < STRIKES:
            LOG.debug("%s begins again: %s", time, reason)
            if self._strikes[time] < STRIKES - 1:
                waiting.appendleft(time)
            else:
                self._suspects.append(time)
            return None
        return Outcome(time, False, f"given up after {STRIKES} attempts: {reason}", is_noted=False)

    def _given_up(self, waiting: deque[datetime]) -> Iterator[Outcome]:
        """Workers from which nothing was heard for too long are started again."""
        silent = monotonic() - self.stall_seconds
        active = {turn.worker for turn in self._turns.values() if turn.stage in ACTIVE}
        for address in [a for a in active if self._last_heard.get(a, silent) < silent]:
            yield from self._restart(address, waiting)

    def _restart(self, address: str, waiting: deque[datetime]) -> Iterator[Outcome]:
        minutes = self.stall_seconds / 60
        LOG.warning("nothing was heard of worker %s for %.3g min: it is started again", address, minutes)
        self._last_heard[address] = monotonic()
        for time, turn in list(self._turns.items()):
            if turn.worker == address:
                del self._turns[time]
                turn.future.cancel()
                outcome = self._struck(time, turn, waiting, f"nothing was heard of it for {minutes:.3g} min")
                if outcome is not None:
                    yield outcome
        try:
            self.client.restart_workers([address], timeout=60, raise_for_error=False)
        except (ValueError, KeyError):  # it has no nanny, or is gone
            LOG.warning(
                "worker %s cannot be started again from here; its initial times go to others", address
            )

    def _check_scheduler(self, *, is_cancelled: bool = False) -> None:
        if is_cancelled or self.client.status != "running":
            raise Interrupted(GONE)


def log_line(outcome: Outcome) -> str:
    """The outcome as a line of JSON."""
    return json.dumps(outcome.facts())
