"""Scores of validation: area-weighted RMSE, in physical units, of forecasts from some validation states."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from fengwu_ghr.errors import InputError
from fengwu_ghr.grid import LatLonGrid, NetworkGrid
from fengwu_ghr.training.dataset import Samples, evenly_spaced
from fengwu_ghr.training.losses import mean_one_rows
from fengwu_ghr.training.world import STEP_HOURS, World

SCORED = ("z500", "t850", "2t", "u850")
SCORED_STEPS = (1, 4, 12, 20)
"""Lead steps of validation: 6, 24, 72 and 120 hours."""

Step = Callable[[Tensor, int, Sequence[datetime]], Tensor]
"""Normalised states (batch, channel, row, column), the steps behind them, their valid times -> what follows."""


@dataclass(frozen=True, eq=False)
class Scores:
    """RMSE of SCORED by lead, of forecasts from `windows` evenly spaced states, `at_once` of them at a time."""

    samples: Samples
    windows: int
    grid: LatLonGrid | NetworkGrid
    at_once: int = 1

    def of(self, step: Step, device: torch.device) -> dict[str, float]:
        """By channel and lead, as `z500 24 h`; leads as far as the series reach.

        Raises InputError where no series has two states.
        """
        leads = [lead for lead in SCORED_STEPS if self.samples.count(lead + 1)]
        if not leads:
            raise InputError(f"validation needs series of two states or more in {self.samples.world.folder}")
        length = leads[-1] + 1
        chosen = evenly_spaced(range(self.samples.count(length)), self.windows)
        squares = torch.zeros(len(leads), len(SCORED))
        for first in range(0, len(chosen), self.at_once):
            numbers = chosen[first : first + self.at_once]
            state = self._analyses(numbers, length, 0).to(device)
            for lead in range(1, length):
                times = [self.samples.frame_time(number, length, lead - 1) for number in numbers]
                state = step(state, lead - 1, times)
                if lead in leads:
                    errors = state.cpu() - self._analyses(numbers, length, lead)
                    total = len(numbers) * scored_squares(errors, self.samples.world, self.grid)
                    squares[leads.index(lead)] += total
        rmse = (squares / len(chosen)).sqrt().tolist()
        return {
            f"{name} {lead * STEP_HOURS} h": value
            for lead, values in zip(leads, rmse)
            for name, value in zip(SCORED, values)
        }

    def _analyses(
        self, numbers: list[int], length: int, step: int
    ) -> Float32[Tensor, "batch channel row column"]:
        return torch.stack([self.samples.frame(number, length, step) for number in numbers])


def scored_squares(
    errors: Float32[Tensor, "batch channel row column"], world: World, grid: LatLonGrid | NetworkGrid
) -> Float[Tensor, " scored"]:
    """Area mean squared errors of the channels SCORED, in squared physical units, from errors of normalised states."""
    channels = [world.channels.index(name) for name in SCORED]
    rows = torch.from_numpy(mean_one_rows(grid)).float()
    by_row = errors[:, channels].square().mean(dim=(0, 3))
    variance = torch.from_numpy(world.statistics.normalisation.std)[channels].square()
    return variance * (by_row @ rows) / rows.numel()
