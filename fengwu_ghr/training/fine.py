"""Fine forecasts in training: a differentiable step on the network grid, and scores of rollouts of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from fengwu_ghr.errors import InputError
from fengwu_ghr.grid import NetworkGrid
from fengwu_ghr.training.dataset import Samples, Window
from fengwu_ghr.training.losses import mean_one_rows
from fengwu_ghr.training.pretrain import SCORED, SCORED_STEPS, STEP_HOURS
from fengwu_ghr.training.world import World
from fengwu_ghr.transfer import TransferModel


class FineForecast:
    """A transferred model as a rollout uses it: after every step the rows beyond the poles are refilled."""

    def __init__(self, model: TransferModel, world: World) -> None:
        self.model = model
        self._network = NetworkGrid(world.scale)
        is_vector = [channel.definition.is_vector for channel in world.channels.channels]
        sign, offset = world.statistics.normalisation.across_pole(is_vector)
        self._sign, self._offset = torch.from_numpy(sign)[:, None], torch.from_numpy(offset)[:, None]

    @property
    def device(self) -> torch.device:
        return self.model.backbone.position.device

    def step(
        self, states: Float32[Tensor, "batch channel row column"], lead: int
    ) -> Float32[Tensor, "batch channel row column"]:
        """The next states, of the step that follows `lead` others, differentiable."""
        return self.refilled(self.model(states, lead))

    def refilled(
        self, states: Float32[Tensor, "batch channel row column"]
    ) -> Float32[Tensor, "batch channel row column"]:
        """The states with the rows beyond the poles as `NetworkGrid.refill_beyond_poles` makes them, bit for bit.

        In new memory, since autograd would follow writing into a state much more slowly.
        """
        if not self._network.has_rows_beyond_poles:
            return states
        sign, offset = self._sign.to(states.device), self._offset.to(states.device)
        half = states.shape[3] // 2
        first, last = (states[:, :, row].roll(half, dims=2) * sign + offset for row in (2, -3))
        return torch.cat([first[:, :, None], states[:, :, 1:-1], last[:, :, None]], dim=2)


@dataclass(frozen=True, eq=False)
class FineScores:
    """Area-weighted RMSE in physical units, on the network grid, of forecasts from some validation states."""

    samples: Samples
    windows: int

    def of(self, forecast: FineForecast) -> dict[str, float]:
        """By channel and lead, as `z500 24 h`; leads as far as the series reach."""
        steps = [step for step in SCORED_STEPS if self.samples.count(step + 1)]
        if not steps:
            raise InputError(f"validation needs series of two states or more in {self.samples.world.folder}")
        starts = evenly_spaced(self.samples.windows(steps[-1] + 1), self.windows)
        squares = torch.zeros(len(steps), len(SCORED))
        for window in starts:
            for row, (step, state) in enumerate(self._rollout(forecast, window, steps)):
                squares[row] += self._squares(state, Window(window.series, window.start + step))
        rmse = (squares / len(starts)).sqrt().tolist()
        return {
            f"{name} {step * STEP_HOURS} h": value
            for step, values in zip(steps, rmse)
            for name, value in zip(SCORED, values)
        }

    def _rollout(
        self, forecast: FineForecast, window: Window, steps: list[int]
    ) -> Iterator[tuple[int, Float32[Tensor, "channel row column"]]]:
        """The forecast from this window's first state at each of these steps."""
        state = self._analysis(window)[None].to(forecast.device)
        for lead in range(steps[-1]):
            state = forecast.step(state, lead)
            if lead + 1 in steps:
                yield lead + 1, state[0].cpu()

    def _squares(
        self, state: Float32[Tensor, "channel row column"], valid: Window
    ) -> Float32[Tensor, " scored"]:
        """Area mean squared errors of the scored channels in physical units."""
        world = self.samples.world
        rows = torch.from_numpy(mean_one_rows(NetworkGrid(world.scale))).float()
        channels = [world.channels.index(name) for name in SCORED]
        std = torch.from_numpy(world.statistics.normalisation.std)[channels]
        errors = std[:, None, None] * (state - self._analysis(valid))[channels]
        return errors.square().mean(dim=2) @ rows / rows.numel()

    def _analysis(self, window: Window) -> Float32[Tensor, "channel row column"]:
        return torch.from_numpy(self.samples.state(*window))


def evenly_spaced(windows: Sequence[Window], count: int) -> list[Window]:
    """So many of them, from the first to the last; all where there are fewer."""
    places = np.linspace(0, len(windows) - 1, min(count, len(windows))).astype(int)
    return [windows[place] for place in np.unique(places)]
