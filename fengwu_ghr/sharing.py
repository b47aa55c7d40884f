"""Sharing: what the nine sub-fields predict, averaged with what their neighbours do, on the fine grid.

The nine see the same large scales and err apart; interleaved, their errors are grain. Every tendency becomes a weighted
mean of those around it. Weights are positive and sum to one, so that no wave is amplified, whatever is learned.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

BANDS = 6
"""Kernels between equator and pole, the same on both hemispheres; rows between two take of both."""
_SHARPNESS = 20.0
"""Of the softmax, so that weights move as fast as others do under one learning rate."""


class Sharing(nn.Module):
    """A kernel for every channel and band of latitude, `radius` points to every side.

    It begins with half of the weight at the point itself and the rest spread evenly.
    """

    def __init__(self, channels: int, rows: int, *, radius: int) -> None:
        super().__init__()
        self.radius, self.rows = radius, rows
        self.logits = nn.Parameter(torch.empty(BANDS, channels, (2 * radius + 1) ** 2))

    def start(self) -> None:
        """Half of the weight lies at the point itself."""
        points = self.logits.shape[2]
        nn.init.zeros_(self.logits)
        with torch.no_grad():
            self.logits[..., points // 2] = torch.log(torch.tensor(points - 1.0)) / _SHARPNESS

    def weights(self) -> Float[Tensor, "channel row point"]:
        """Of every neighbour, positive, summing to one over the points."""
        kernels = (_SHARPNESS * self.logits.float()).softmax(dim=2)
        return torch.einsum("rb,bcp->crp", _shares_of_bands(self.rows).to(kernels), kernels)

    def forward(
        self, tendency: Float[Tensor, "batch channel row column"]
    ) -> Float[Tensor, "batch channel row column"]:
        """The tendencies, each the mean of those around it; the circle is closed, beyond the last rows they repeat."""
        return self.of_channels(tendency, self.weights())

    def of_channels(
        self,
        tendency: Float[Tensor, "batch channel row column"],
        weights: Float[Tensor, "channel row point"],
    ) -> Float[Tensor, "batch channel row column"]:
        """The same for some of the channels, given their weights."""
        r, (rows, columns) = self.radius, tendency.shape[2:]
        wide = F.pad(tendency, (r, r, 0, 0), mode="circular")
        wide = F.pad(wide, (0, 0, r, r), mode="replicate")
        result = torch.zeros_like(tendency)
        places = [(down, across) for down in range(2 * r + 1) for across in range(2 * r + 1)]
        for point, (down, across) in enumerate(places):
            part = wide[:, :, down : down + rows, across : across + columns]
            result = torch.addcmul(result, part, weights[:, :, point, None].to(part))
        return result


def _shares_of_bands(rows: int) -> Float[Tensor, "row band"]:
    """What every row takes of the kernels of the two bands it lies between, linear from equator to pole."""
    distance = torch.linspace(-1, 1, rows).abs() * (BANDS - 1)
    lower = distance.floor().clamp(max=BANDS - 2)
    share = (distance - lower)[:, None]
    first, second = (F.one_hot(lower.long() + step, BANDS) for step in (0, 1))
    return first * (1 - share) + second * share
