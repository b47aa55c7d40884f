"""Samples from a world: windows of consecutive normalised states, and the order in which training draws them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache, partial
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from fengwu_ghr.errors import InputError
from fengwu_ghr.grid import SUBFIELDS_PER_AXIS, NetworkGrid
from fengwu_ghr.regrid import NetworkMap
from fengwu_ghr.remap import remap_state
from fengwu_ghr.training.world import Series, World

Coarsening = Literal["area", "strided"]

IN_MEMORY = 6 * 2**30
"""Bytes of states that are held in memory; more are read from disk whenever they are drawn."""

State = Float32[np.ndarray, "channel row column"]
Item = TypeVar("Item")


class Window(NamedTuple):
    """Consecutive states of one series: its number in `Samples.series`, and the first state."""

    series: int
    start: int


class Samples(ABC):
    """The normalised states of one split of a world, float32, all of one shape.

    States that fit into `in_memory` bytes are read once. Raises InputError where a split has no series, or naming
    member and time of a state that is not finite.
    """

    def __init__(
        self, world: World, split: str, *, shape: tuple[int, int], in_memory: int = IN_MEMORY
    ) -> None:
        self.world, self.split, self.shape = world, split, shape
        self.series: Sequence[Series] = world.series(split)
        if len(self) == 0:
            raise InputError(f"{world.folder} has no {split} states; simulate that split first")
        state_bytes = 4 * len(world.channels) * shape[0] * shape[1]
        self._held = [self._whole(s) for s in self.series] if len(self) * state_bytes <= in_memory else []

    def __len__(self) -> int:
        """How many states there are."""
        return sum(len(series) for series in self.series)

    @abstractmethod
    def read(self, series: Series, index: int) -> State:
        """One state in physical units on the grid of the samples."""

    def state(self, series: int, index: int) -> State:
        """One normalised state, finite; not to be written to."""
        if self._held:
            return self._held[series][index]
        return self._normalised(self.series[series], index)

    def valid_time(self, series: int, index: int) -> datetime:
        return self.series[series].times[index]

    def windows(self, length: int) -> Sequence[Window]:
        """Every run of `length` consecutive states, series by series."""
        return _windows(tuple(len(series) for series in self.series), length)

    def count(self, length: int) -> int:
        """How many samples of this length there are."""
        return len(self.windows(length))

    def sample(self, index: int, length: int) -> Float32[Tensor, "time channel row column"]:
        """The states of the window of this number, 0 <= index < count(length); may share memory."""
        return self._states(self.windows(length)[index], length)

    def frame(self, index: int, length: int, step: int) -> Float32[Tensor, "channel row column"]:
        """State number `step` of `sample(index, length)`, without reading the others; may share memory."""
        window = self.windows(length)[index]
        return torch.from_numpy(self.state(window.series, window.start + step))

    def frame_time(self, index: int, length: int, step: int) -> datetime:
        """When `frame(index, length, step)` is valid."""
        window = self.windows(length)[index]
        return self.valid_time(window.series, window.start + step)

    def _states(self, window: Window, length: int) -> Float32[Tensor, "time channel row column"]:
        if self._held:
            return torch.from_numpy(self._held[window.series][window.start : window.start + length])
        states = [self.state(window.series, window.start + step) for step in range(length)]
        return torch.from_numpy(np.stack(states))

    def _whole(self, series: Series) -> Float32[np.ndarray, "time channel row column"]:
        held = np.empty((len(series), len(self.world.channels), *self.shape), np.float32)
        for index, state in enumerate(held):
            state[:] = self._normalised(series, index)
        return held

    def _normalised(self, series: Series, index: int) -> State:
        state = self.world.statistics.normalisation.normalise(self.read(series, index))
        if not np.isfinite(state).all():
            channel = self.world.channels.names[int(np.argmin(np.isfinite(state).all(axis=(1, 2))))]
            raise InputError(
                f"training states must be finite; {channel} of member {series.member} ({series.split}) at "
                f"{series.times[index]:%Y-%m-%dT%H} is not; simulate that series again"
            )
        return state


class CoarseSamples(Samples):
    """Area means on the backbone grid: to the fine states what ERA5 is to a fine analysis."""

    def __init__(self, world: World, split: str, *, in_memory: int = IN_MEMORY) -> None:
        shape = NetworkGrid(world.scale).backbone.shape
        super().__init__(world, split, shape=shape, in_memory=in_memory)

    def read(self, series: Series, index: int) -> State:
        return series.coarse(index)


class FineSamples(Samples):
    """Fine states on the network grid, made as a forecast makes its first state of an analysis.

    Interpolated from the product grid, kept to the bounds of the variables, the rows beyond the poles refilled.
    A state of the demo scale takes 7 MB, and 20 ms to make: by default none is held.
    """

    def __init__(self, world: World, split: str, *, in_memory: int = 0) -> None:
        network = NetworkGrid(world.scale)
        self._to_network = partial(NetworkMap(network).from_source, source=world.fine_grid)
        super().__init__(world, split, shape=network.shape, in_memory=in_memory)

    def read(self, series: Series, index: int) -> State:
        return remap_state(series.fine(index), self.world.channels.channels, self._to_network)


class StridedSamples(Samples):
    """Sub-fields of the fine states, each window nine times: an ablation, for it has seen the fine data.

    Sample 9 w + k is window w on sub-field k = 3 a + b, values[a::3, b::3] of the network grid.
    """

    def __init__(self, world: World, split: str, *, in_memory: int = IN_MEMORY) -> None:
        self._fine = FineSamples(world, split, in_memory=in_memory)
        super().__init__(world, split, shape=NetworkGrid(world.scale).backbone.shape, in_memory=0)

    def read(self, series: Series, index: int) -> State:
        return self._fine.read(series, index)

    def count(self, length: int) -> int:
        return SUBFIELDS_PER_AXIS**2 * super().count(length)

    def sample(self, index: int, length: int) -> Float32[Tensor, "time channel row column"]:
        window, k = divmod(index, SUBFIELDS_PER_AXIS**2)
        return _subfield(self._fine.sample(window, length), k)

    def frame(self, index: int, length: int, step: int) -> Float32[Tensor, "channel row column"]:
        window, k = divmod(index, SUBFIELDS_PER_AXIS**2)
        return _subfield(self._fine.frame(window, length, step), k)

    def frame_time(self, index: int, length: int, step: int) -> datetime:
        return self._fine.frame_time(index // SUBFIELDS_PER_AXIS**2, length, step)


def backbone_samples(
    world: World, split: str, *, coarsening: Coarsening, in_memory: int = IN_MEMORY
) -> Samples:
    """What a backbone is trained on: area means, or (`strided`, the ablation) sub-fields of the fine states."""
    kind = CoarseSamples if coarsening == "area" else StridedSamples
    return kind(world, split, in_memory=in_memory)


def draw(number: int, *, count: int, stream: tuple[int, ...]) -> int:
    """The sample, of `count`, that a run sees as its n-th: every epoch is a permutation fixed by stream and epoch."""
    epoch, place = divmod(number, count)
    return int(_permutation(count, (*stream, epoch))[place])


def evenly_spaced(items: Sequence[Item], count: int) -> list[Item]:
    """So many of them, from the first to the last; all where there are fewer."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)
    return [items[place] for place in np.unique(places)]


def noise_generator(number: int, *, stream: tuple[int, ...], device: torch.device) -> torch.Generator:
    """Random numbers for the n-th sample of a run, the same however the run was cut into attempts or ranks."""
    (seed,) = np.random.SeedSequence([*stream, number]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(seed) >> 1)


def _subfield(values: Float32[Tensor, "*time row column"], k: int) -> Float32[Tensor, "*time row3 column3"]:
    """Sub-field k = 3 a + b: every third row from a on, every third column from b on."""
    n = SUBFIELDS_PER_AXIS
    return values[..., k // n :: n, k % n :: n]


@lru_cache(maxsize=4)
def _permutation(count: int, stream: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(stream).permutation(count)


@lru_cache(maxsize=64)
def _windows(lengths: tuple[int, ...], length: int) -> tuple[Window, ...]:
    if length < 1:
        raise ValueError(f"a window holds one state or more; got {length}")
    return tuple(
        Window(series, start) for series, states in enumerate(lengths) for start in range(states - length + 1)
    )
