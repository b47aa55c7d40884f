"""The model as the rollout sees it: put states in, step, get the newest state out."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from fengwu_ghr.grid import NetworkGrid
from fengwu_ghr.variables import ChannelSet

MasterState = Float32[np.ndarray, "channel row column"]
"""A state on the network grid, normalised, float32: what the rollout carries, whatever the engine computes in."""


@runtime_checkable
class Stepper(Protocol):
    """One model on one device.

    `history` counts the states it needs; `numerics` holds all that decides the bits of its results, as flat
    JSON-able values, and stands in the manifest.
    """

    network: NetworkGrid
    channel_set: ChannelSet
    history: int
    step_hours: int
    numerics: dict[str, str | int]

    def put(self, states: Sequence[MasterState], valid_time: datetime) -> None:
        """Copy in the newest `history` master states, oldest first; the last is valid at `valid_time`."""

    def step(self, index: int) -> None:
        """Advance by `step_hours`; `index` 0 is the step that leaves the initial time."""

    def get(self, out: MasterState, *, age: int = 0) -> None:
        """Copy the newest state into `out`; `age` 1 is the one before it, where history is 2."""


@runtime_checkable
class Sender(Protocol):
    """A stepper that may copy its states out by itself, while it goes on stepping."""

    sends: bool

    def allocate(self) -> list[MasterState]:
        """Arrays for the newest `history` states that the device copies to by itself."""

    def send(self, out: Sequence[MasterState]) -> Callable[[], None]:
        """Start copying the newest `history` states, oldest first; what it returns waits until they are there."""
