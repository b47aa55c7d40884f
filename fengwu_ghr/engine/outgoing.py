"""Master states on their way to the writers: on a GPU they are copied while the rollout goes on."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fengwu_ghr.engine.finite import Seen
from fengwu_ghr.engine.stepper import MasterState, Sender, Stepper

SETS = 2
"""Sets of pinned arrays: one is written from, into the other the next state is copied."""


class Handover:
    """Fetches the newest states of a stepper into arrays that writers may read.

    A plain stepper copies at once, into `states`; one that can send copies into two sets of its own in turn.
    """

    def __init__(self, stepper: Stepper, states: Sequence[MasterState]) -> None:
        self._stepper, self._turn = stepper, 0
        self._sets = [list(states)]
        if isinstance(stepper, Sender) and stepper.sends:
            self._sets = [stepper.allocate() for _ in range(SETS)]

    def take(self, released: Callable[[], None]) -> tuple[list[MasterState], Callable[[], None]]:
        """The newest states, oldest first, valid once what comes beside them returns.

        With one set of arrays `released` must return before they are overwritten. Two sets need no waiting: whoever
        hands over a lead waits for the lead before it.
        """
        states = self._sets[self._turn]
        self._turn = (self._turn + 1) % len(self._sets)
        if isinstance(self._stepper, Sender) and self._stepper.sends:
            return states, self._stepper.send(states)
        released()
        for age, state in enumerate(reversed(states)):
            self._stepper.get(state, age=age)
        return states, _is_there


class Outgoing:
    """Copies from a GPU into pinned memory, on a stream of their own."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._done: torch.cuda.Event | None = None

    def send(self, states: Sequence[Tensor], out: Sequence[MasterState], seen: Seen) -> Callable[[], None]:
        """Starts copying; what it returns waits for the copy and raises if the states are not finite."""
        ready = torch.cuda.current_stream().record_event()
        sums = torch.empty(seen.sums.shape, pin_memory=True)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(ready)
            for state, target in zip(states, out):
                torch.from_numpy(target).copy_(state, non_blocking=True)
            sums.copy_(seen.sums, non_blocking=True)
            seen.sums.record_stream(self._stream)
            done = self._done = self._stream.record_event()
        here = Seen(seen.index, seen.step_hours, seen.parts, sums)

        def arrived() -> None:
            done.synchronize()
            here.check()

        return arrived

    def hold(self) -> None:
        """What is enqueued from now on waits until the states have been copied, and may overwrite them."""
        if self._done is not None:
            torch.cuda.current_stream().wait_event(self._done)


def pinned(shape: Sequence[int]) -> MasterState:
    """An array in memory that a GPU copies to by itself."""
    return np.asarray(torch.empty(tuple(shape), dtype=torch.float32, pin_memory=True).numpy())


def _is_there() -> None:
    """Copied already."""
