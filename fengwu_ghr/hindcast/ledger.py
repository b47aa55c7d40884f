"""The ledger: what happened to every initial time of a season, and how far all of them are. The store alone tells.

What exists stands in the manifests. Beside them a journal says what happened: who began, how long it took, why it
failed. Nothing is decided by a clock: those of several machines differ.
"""

import os
import socket
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np

from fengwu_ghr.errors import UsageError
from fengwu_ghr.hindcast.settings import HindcastConfig
from fengwu_ghr.manifest import Manifest, stamp
from fengwu_ghr.store import RunStore

JOURNAL = "_journal"
"""The folder in a run store."""
RECENT = 200
"""So many initial times, the last that were finished, tell the pace."""

Stage = Literal["finished", "running", "failed", "waiting"]


@dataclass(frozen=True)
class DateState:
    """One initial time: finished, being computed, failed (and why), or waiting for its turn."""

    time: datetime
    stage: Stage
    reason: str = ""


class Ledger:
    """Of the store of one season. `wanted` is what the finished ones were finished with."""

    def __init__(self, store: RunStore, wanted: str) -> None:
        self.store, self.wanted = store, wanted

    def began(self, time: datetime) -> None:
        """This process is at work on the initial time; called by whoever has claimed it."""
        self._note(time, {"kind": "began"})

    def finished(self, time: datetime, seconds: Mapping[str, float]) -> None:
        """Every product is there, after so many seconds (`all`, and by activity)."""
        self.store.finish(time, self.wanted)
        self._note(time, {"kind": "finished", "seconds": {k: round(v, 3) for k, v in seconds.items()}})

    def failed(self, time: datetime, exit_code: int, reason: str, details: str = "") -> None:
        """No product will come of it unless the cause is removed."""
        about = {"details": details} if details else {}
        self._note(time, {"kind": "failed", "exit_code": exit_code, "reason": reason, **about})

    def state(self, time: datetime) -> DateState:
        """How far the initial time is."""
        if self.store.finished(time) == self.wanted:
            return DateState(time, "finished")
        if self.store.is_claimed(time):
            return DateState(time, "running")
        last = self._journal(time).last()
        if last is not None and last["kind"] == "failed":
            return DateState(time, "failed", last["reason"])
        return DateState(time, "waiting")

    def states(self) -> list[DateState]:
        """Of all initial times."""
        return [self.state(time) for time in self.store.plan.initial_times]

    def seconds(self, times: Iterable[datetime]) -> list[dict[str, float]]:
        """What those of these initial times took that are finished."""
        last = (self._journal(time).last() for time in times)
        return [entry["seconds"] for entry in last if entry is not None and entry["kind"] == "finished"]

    def processes(self, times: Iterable[datetime]) -> int:
        """How many processes are at work on these initial times: one may have claimed the next one too."""
        last = (self._journal(time).last() for time in times)
        return len({(entry["host"], entry["process"]) for entry in last if entry is not None})

    def _journal(self, time: datetime) -> Manifest:
        return Manifest(self.store.path / JOURNAL / f"{stamp(time)}.jsonl")

    def _note(self, time: datetime, entry: dict[str, Any]) -> None:
        journal = self._journal(time)
        journal.path.parent.mkdir(exist_ok=True)
        journal.cut_torn_line()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        who = {"host": socket.gethostname(), "process": os.getpid(), "at": now}
        journal.append({**entry, **who}, durable=False)


@dataclass(frozen=True)
class Survey:
    """How far a season is, and how long the rest will take at the pace of the last ones."""

    counts: Mapping[Stage, int]
    failed: Sequence[DateState]
    processes: int
    seconds_each: float | None

    @classmethod
    def of(cls, config: HindcastConfig) -> "Survey":
        """Read from the store alone. Raises InputError where it is none, UsageError where it has other dates."""
        path = config.output.zarr
        with RunStore.open(path) as store:
            if store.plan.initial_times != config.dates.all:
                raise UsageError(f"{path} has other initial times than this configuration")
            ledger = Ledger(store, config.wanted)
            states = ledger.states()
            finished = [state.time for state in states if state.stage == "finished"]
            running = [state.time for state in states if state.stage == "running"]
            took = [seconds["all"] for seconds in ledger.seconds(finished[-RECENT:])]
            return cls(
                counts=Counter(state.stage for state in states),
                failed=[state for state in states if state.stage == "failed"],
                processes=ledger.processes(running),
                seconds_each=float(np.median(took)) if took else None,
            )

    def counted(self) -> list[tuple[str, object]]:
        """How many initial times are at each stage."""
        return [(stage, self.counts.get(stage, 0)) for stage in ("finished", "running", "failed", "waiting")]

    @property
    def left(self) -> int:
        """Initial times that are not finished and have not failed."""
        return self.counts.get("running", 0) + self.counts.get("waiting", 0)

    @property
    def seconds_to_go(self) -> float | None:
        """At the pace of the last ones, by the processes at work now; None where nothing tells."""
        if self.seconds_each is None or not self.processes:
            return None
        return self.left * self.seconds_each / self.processes
