"""The autoregressive rollout: master state in, master states out, one at a time, and how to go on after a stop."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from time import perf_counter

from fengwu_ghr.engine.stepper import MasterState, Stepper

ASSUMED_WRITE_BYTES_PER_SECOND = 3e8
"""Durable write speed taken for granted until one restart state has been written and measured."""


@dataclass(frozen=True)
class Start:
    """Where a rollout begins: the newest `history` master states, oldest first, after `step` steps.

    The last state is valid at `valid_time`.
    """

    step: int
    states: Sequence[MasterState]
    valid_time: datetime


def rollout(stepper: Stepper, start: Start, *, steps: int) -> Iterator[int]:
    """Step until `steps` steps lie behind the initial time; yields their count after each.

    The state itself stays with the stepper: whoever consumes the count fetches it with `stepper.get`. Every step
    is told its true index from the initial time, also after a restart.
    """
    if len(start.states) != stepper.history:
        raise ValueError(f"the model needs {stepper.history} states to start from; got {len(start.states)}")
    stepper.put(start.states, start.valid_time)
    for index in range(start.step, steps):
        stepper.step(index)
        yield index + 1


@dataclass
class RestartSchedule:
    """Decides after which steps to save the master state, so that saving takes at most `share` of the wall time."""

    state_bytes: int
    share: float = 0.05
    last_save: float = field(default_factory=perf_counter)
    save_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.save_seconds = self.save_seconds or self.state_bytes / ASSUMED_WRITE_BYTES_PER_SECOND

    def is_due(self) -> bool:
        return self.save_seconds <= self.share * (perf_counter() - self.last_save)

    def saved(self, seconds: float) -> None:
        """Note that a save has just ended, and how long it took."""
        self.save_seconds, self.last_save = seconds, perf_counter()
