"""Diffusion: after every step, departures from the mean state are smoothed a little, as numerical models do.

What is smaller than a few grid lengths cannot be known after a day, and a network that sees patches can hardly take it
out. The mean keeps what does not move: orography and coasts. Weights are positive and sum to one: no wave is amplified.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fengwu_ghr.backbone import Step

MOST = 0.25
"""Of a value that goes to each neighbour of a row: with it the shortest wave is gone at once."""
FIRST = 0.045
"""The same before training: a standard deviation of 0.3 grid lengths a step."""
_SHARPNESS = 20.0
"""Of the sigmoid, so that shares move as fast as weights do under one learning rate."""


def set_for(step: Step, *, group: int, sets: int) -> Step:
    """Which of the sets, each for `group` lead steps in a row, serves this one; the last serves all beyond."""
    if isinstance(step, Tensor):
        return torch.div(step, group, rounding_mode="floor").clamp(max=sets - 1)
    return min(step // group, sets - 1)


class Diffusion(nn.Module):
    """A share for every set of lead steps and channel, and the mean state (normalised, float32) that is kept."""

    def __init__(self, channels: int, shape: tuple[int, int], *, sets: int, group: int) -> None:
        super().__init__()
        self.group = group
        self.logits = nn.Parameter(torch.empty(sets, channels))
        self.register_buffer("mean", torch.empty(channels, *shape, dtype=torch.float32))
        self.mean: Tensor

    @torch.no_grad()
    def start(self) -> None:
        """Every share is the first one; the mean is zero until it is filled in."""
        first = torch.tensor(FIRST / MOST).logit() / _SHARPNESS
        self.logits.copy_(first.expand_as(self.logits))
        self.mean.zero_()

    def shares(self, step: Step) -> Float[Tensor, " channel"]:
        """What each neighbour in a row, then in a column, gets at this lead step, counted from 0."""
        logits = self.logits[set_for(step, group=self.group, sets=self.logits.shape[0])].float()
        return MOST * (_SHARPNESS * logits).sigmoid()

    def forward(
        self, states: Float[Tensor, "batch channel row column"], step: Step
    ) -> Float[Tensor, "batch channel row column"]:
        """The states after diffusion; the circle is closed, beyond the last rows they repeat."""
        return self.of_channels(states, self.mean, self.shares(step))

    def write(self, state: Float[Tensor, "channel row column"], step: int) -> None:
        """The same in place, channel by channel, so that one more field is in memory and not one more state."""
        shares = self.shares(step)
        for channel in range(len(state)):
            own = slice(channel, channel + 1)
            state[own] = self.of_channels(state[None, own], self.mean[own], shares[own])[0]

    @staticmethod
    def of_channels(
        states: Float[Tensor, "batch channel row column"],
        mean: Float[Tensor, "channel row column"],
        shares: Float[Tensor, " channel"],
    ) -> Float[Tensor, "batch channel row column"]:
        """Some of the channels, given their mean and shares."""
        share = shares[:, None, None].to(states)
        departure = states - mean
        wide = F.pad(departure, (1, 1, 0, 0), mode="circular")
        across = departure + share * (wide[..., :-2] + wide[..., 2:] - 2 * departure)
        tall = F.pad(across, (0, 0, 1, 1), mode="replicate")
        return mean + across + share * (tall[..., :-2, :] + tall[..., 2:, :] - 2 * across)
