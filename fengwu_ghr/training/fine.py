"""Fine forecasts in training: a differentiable step on the network grid."""

from collections.abc import Sequence
from datetime import datetime

import torch
from jaxtyping import Float32
from torch import Tensor

from fengwu_ghr.grid import NetworkGrid
from fengwu_ghr.training.world import STEP_HOURS, World
from fengwu_ghr.transfer import TransferModel


class FineForecast:
    """A transferred model as a rollout uses it: after every step the rows beyond the poles are refilled."""

    def __init__(self, model: TransferModel, world: World) -> None:
        self.model = model
        self._network = NetworkGrid(world.scale)
        self._forcing = model.forcing_fields(self._network, step_hours=STEP_HOURS)
        is_vector = [channel.definition.is_vector for channel in world.channels.channels]
        sign, offset = world.statistics.normalisation.across_pole(is_vector)
        self._sign, self._offset = torch.from_numpy(sign)[:, None], torch.from_numpy(offset)[:, None]

    @property
    def device(self) -> torch.device:
        return self.model.backbone.position.device

    def step(
        self, states: Float32[Tensor, "batch channel row column"], lead: int, times: Sequence[datetime]
    ) -> Float32[Tensor, "batch channel row column"]:
        """The states that follow those valid at these times, after `lead` steps already made; differentiable."""
        forcing = None if self._forcing is None else self._forcing.at(times)
        following = self.refilled(self.model(states, lead, forcing))
        diffusion = self.model.diffusion
        return following if diffusion is None else self.refilled(diffusion(following, lead))

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
