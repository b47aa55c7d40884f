"""State: the atmosphere at one time. The one noun that everything takes and returns."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np
from jaxtyping import Float32

from fengwu_ghr.grid import LatLonGrid
from fengwu_ghr.variables import Channel


@dataclass(frozen=True, eq=False)
class State:
    """Physical values (registry units) of some channels on one grid.

    `valid_time` is naive UTC; `lead` is zero for an analysis. Raises ValueError when the parts do not fit.
    """

    values: Float32[np.ndarray, "channel lat lon"]
    channels: tuple[Channel, ...]
    grid: LatLonGrid
    valid_time: datetime
    lead: timedelta = timedelta(0)

    def __post_init__(self) -> None:
        expected = (len(self.channels), *self.grid.shape)
        if self.values.shape != expected or self.values.dtype != np.float32:
            raise ValueError(
                f"a state of {len(self.channels)} channels on {self.grid} holds float32 {expected}; "
                f"got {self.values.dtype} {self.values.shape}"
            )
        if len(set(self.channels)) != len(self.channels):
            twice = sorted({str(c) for c in self.channels if self.channels.count(c) > 1})
            raise ValueError(f"channels must be distinct; given twice: {', '.join(twice)}")
        if self.valid_time.tzinfo is not None:
            raise ValueError(f"times are naive UTC; got {self.valid_time.isoformat()}")

    @property
    def initial_time(self) -> datetime:
        return self.valid_time - self.lead

    def __getitem__(self, channel: Channel) -> Float32[np.ndarray, "lat lon"]:
        """The field of one channel; raises KeyError naming what there is."""
        if channel not in self.channels:
            raise KeyError(f"no {channel} here; there are {', '.join(map(str, self.channels))}")
        return self.values[self.channels.index(channel)]

    def select(self, channels: Sequence[Channel]) -> "State":
        """The same state with these channels, in this order."""
        rows = [self.channels.index(channel) for channel in channels]
        return replace(self, values=self.values[rows], channels=tuple(channels))
