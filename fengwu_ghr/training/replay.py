"""Replay: forecasts under way, each waiting to be taken one step further by the model in training.

A rollout of forty steps cannot be differentiated whole. The buffer keeps states the model made itself, at all lead
steps; training takes a few of them one step on, differentiates that step alone, and puts the results back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64
from pydantic import Field
from torch import Tensor

from fengwu_ghr.config import Section
from fengwu_ghr.errors import InputError
from fengwu_ghr.training.dataset import Samples, Window


class ReplaySettings(Section):
    """How many forecasts are under way, and how they end."""

    entries: int = Field(48, gt=0)
    """Forecasts under way at once; each keeps one state of the network grid in memory."""

    lead_steps: int = Field(40, gt=0)
    """The last lead step that is trained; a forecast that has reached it ends."""

    restart_share: float = Field(0.02, ge=0, le=1)
    """The chance of every forecast to end whenever it has been taken a step on."""


@dataclass(frozen=True)
class Leg:
    """One forecast from where it is to the next step: its entry, where it is valid, the steps that lie behind it."""

    entry: int
    valid: Window
    lead: int

    @property
    def target(self) -> Window:
        """The analysis that verifies the step."""
        return Window(self.valid.series, self.valid.start + 1)


class ReplayBuffer:
    """Forecasts under way: of each the state, the analysis it corresponds to, and the steps it has made.

    A forecast that ends, at the last lead step, at the end of its series or by chance, makes room for one that
    begins, with an analysis. All draws are fixed by `stream` and the number of the training step. `tensors` is all
    that the buffer remembers: given back to `restore`, training goes on as if it had never been stopped. Raises
    InputError where no analysis is followed by another.
    """

    def __init__(self, samples: Samples, settings: ReplaySettings, *, stream: tuple[int, ...]) -> None:
        self._samples, self._settings, self._fixed = samples, settings, stream
        shape = len(samples.world.channels), *samples.shape
        self._states: Float32[Tensor, "entry channel row column"] = torch.empty(settings.entries, *shape)
        # Whole numbers; float64, since what a task remembers is made of floats.
        self._legs: Float64[Tensor, "entry 3"] = torch.zeros(settings.entries, 3, dtype=torch.float64)
        if samples.count(2) == 0:
            raise InputError(f"replay needs training series of two states or more in {samples.world.folder}")
        beginnings = self._stream(0)
        for entry in range(settings.entries):
            self._begin(entry, beginnings)

    def __getitem__(self, entry: int) -> Float32[Tensor, "channel row column"]:
        """The state of this entry; not to be written to."""
        return self._states[entry]

    def draw(self, step: int, count: int) -> list[Leg]:
        """What training step `step` takes, no entry twice. Raises ValueError where there are fewer than `count`."""
        entries = len(self._states)
        if count > entries:
            raise ValueError(f"a training step takes {count} forecasts; the replay buffer holds {entries}")
        return [self._leg(int(entry)) for entry in self._stream(1, step).permutation(entries)[:count]]

    def put(
        self, step: int, legs: Sequence[Leg], results: Sequence[Float32[Tensor, "channel row column"]]
    ) -> None:
        """These legs have been flown: their entries hold the results, one step on, or forecasts that begin."""
        stream = self._stream(2, step)
        for leg, result in zip(legs, results, strict=True):
            by_chance = stream.random() < self._settings.restart_share
            if by_chance or leg.lead + 1 >= self._settings.lead_steps or self._is_last(leg.target):
                self._begin(leg.entry, stream)
            else:
                self._states[leg.entry] = result
                self._legs[leg.entry] = torch.tensor([*leg.target, leg.lead + 1.0])

    def tensors(self) -> dict[str, Tensor]:
        """All that the buffer remembers."""
        return {"states": self._states, "legs": self._legs}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The buffer is what it was when `tensors` gave these. Raises KeyError or RuntimeError for others."""
        self._states.copy_(tensors["states"])
        self._legs.copy_(tensors["legs"])

    def _begin(self, entry: int, stream: np.random.Generator) -> None:
        starts = self._samples.windows(2)
        series, start = starts[int(stream.integers(len(starts)))]
        self._states[entry] = torch.from_numpy(self._samples.state(series, start))
        self._legs[entry] = torch.tensor([series, start, 0.0])

    def _leg(self, entry: int) -> Leg:
        series, start, lead = map(int, self._legs[entry].tolist())
        return Leg(entry, Window(series, start), lead)

    def _is_last(self, window: Window) -> bool:
        return window.start + 1 >= len(self._samples.series[window.series])

    def _stream(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng((*self._fixed, *purpose))
