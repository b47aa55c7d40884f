"""RES blocks: the nine sub-fields exchange what each did not see, as tokens of the fine grid.

Tokens of the nine lie in one tensor (9 · batch, row, column, width), in the order k = 3 a + b for X[a::3, b::3];
folded, token (i, j) of sub-field (a, b) is token (3 i + a, 3 j + b) of the fine grid.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fengwu_ghr.attention.window import from_windows, self_attention, to_windows
from fengwu_ghr.backbone import EPSILON, Architecture
from fengwu_ghr.grid import SUBFIELDS_PER_AXIS

N = SUBFIELDS_PER_AXIS
SUBFIELDS = N * N


def fold(tokens: Float[Tensor, "nine_batch down across width"]) -> Float[Tensor, "batch tall wide width"]:
    """The tokens of each nine where they lie on the fine grid."""
    _, rows, columns, width = tokens.shape
    grid = tokens.reshape(-1, N, N, rows, columns, width)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(-1, N * rows, N * columns, width)


def unfold(tokens: Float[Tensor, "batch tall wide width"]) -> Float[Tensor, "nine_batch down across width"]:
    """The inverse of `fold`."""
    batch, tall, wide, width = tokens.shape
    grid = tokens.reshape(batch, tall // N, N, wide // N, N, width)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(-1, tall // N, wide // N, width)


class ConvolutionMLP(nn.Module):
    """Two 3 x 3 convolutions over the token grid with a SiLU between: it can tell the nine apart."""

    reach = 2
    """Rows of tokens to every side that a token is changed by."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    @property
    def last_layer(self) -> nn.Conv2d:
        return self.conv2

    def forward(
        self, tokens: Float[Tensor, "batch tall wide width"], *, parts: int
    ) -> Float[Tensor, "batch tall wide width"]:
        grid = self.conv2(F.silu(self.conv1(tokens.permute(0, 3, 1, 2))))
        return grid.permute(0, 2, 3, 1)


class PlainMLP(nn.Module):
    """The perceptron of the trunk, token by token, in `parts` to bound its hidden layer."""

    reach = 0

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, ratio * width)
        self.fc2 = nn.Linear(ratio * width, width)

    @property
    def last_layer(self) -> nn.Linear:
        return self.fc2

    def forward(
        self, tokens: Float[Tensor, "batch tall wide width"], *, parts: int
    ) -> Float[Tensor, "batch tall wide width"]:
        rows = tokens.chunk(parts, dim=1)
        return torch.cat([self.fc2(F.gelu(self.fc1(part))) for part in rows], dim=1)


class RES(nn.Module):
    """Regional Enhanced Simulation: pre-norm attention in windows of the folded tokens, then an MLP.

    Its last layers start at zero, so that transfer starts exactly at the split. The phase embedding (9 x width,
    also from zero) tells the block which of the nine a token came from; positions alone do not.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        self.window, self.heads = a.res_window, a.heads
        self.phase = nn.Parameter(torch.empty(SUBFIELDS, a.width)) if a.phase_embedding else None
        self.norm1 = nn.LayerNorm(a.width, eps=EPSILON)
        self.qkv = nn.Linear(a.width, 3 * a.width)
        self.proj = nn.Linear(a.width, a.width)
        self.norm2 = nn.LayerNorm(a.width, eps=EPSILON)
        self.mlp = ConvolutionMLP(a.width) if a.res_mlp == "convolution" else PlainMLP(a.width, a.mlp_ratio)

    @property
    def last_layers(self) -> dict[str, nn.Linear | nn.Conv2d]:
        """The layers that close the two residual branches."""
        return {"proj": self.proj, "mlp": self.mlp.last_layer}

    def forward(
        self, tokens: Float[Tensor, "nine_batch down across width"], *, batch: int = SUBFIELDS
    ) -> Float[Tensor, "nine_batch down across width"]:
        """The nine after exchange; `batch` windows are worked on at a time."""
        folded = fold(tokens)
        folded = folded + self.attend(self.norm1(self.with_phase(folded)), batch)
        parts = -(-SUBFIELDS // batch)
        return unfold(folded + self.mlp(self.norm2(self.with_phase(folded)), parts=parts))

    def attend(
        self, tokens: Float[Tensor, "batch tall wide width"], batch: int
    ) -> Float[Tensor, "batch tall wide width"]:
        mixed = self.mix(to_windows(tokens, window=self.window), batch)
        _, rows, columns, _ = tokens.shape
        return from_windows(mixed, rows=rows, columns=columns, window=self.window)

    def mix(
        self, groups: Float[Tensor, "group token width"], batch: int
    ) -> Float[Tensor, "group token width"]:
        """Attention inside each of these windows, `batch` at a time."""
        mixed = [self.proj(self_attention(self.qkv(some), heads=self.heads)) for some in groups.split(batch)]
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)

    def change(
        self, tokens: Float[Tensor, "batch tall wide width"], rows: slice, *, parts: int
    ) -> Float[Tensor, "batch band wide width"]:
        """What the MLP says of these rows alone, given all of them."""
        top, bottom = max(rows.start - self.mlp.reach, 0), min(rows.stop + self.mlp.reach, tokens.shape[1])
        band = self.mlp(tokens[:, top:bottom], parts=parts)
        return band[:, rows.start - top : rows.stop - top]

    def with_phase(self, tokens: Float[Tensor, "batch tall wide width"]) -> Tensor:
        """The tokens, each told which of the nine it came from."""
        if self.phase is None:
            return tokens
        _, tall, wide, width = tokens.shape
        # Fine row 3 i + a, fine column 3 j + b: the phases repeat every three tokens both ways.
        return tokens + self.phase.view(N, N, width).repeat(tall // N, wide // N, 1)
