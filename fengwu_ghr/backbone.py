"""The backbone: the 0.25-degree network on one page. Fields to tokens, a trunk of windowed attention, and back.

Fields are normalised, (batch, channel, lat, lon); tokens lie on their grid, (batch, row, column, width).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from fengwu_ghr.attention.window import from_windows, self_attention, to_windows
from fengwu_ghr.forcing import FORCINGS, Forcing
from fengwu_ghr.grid import backbone_grid

EPSILON = 1e-6
DECONVOLUTION = 3
"""Fields are finally spread from points three grid steps apart; the patch is that or a power of two times that."""

JointKind = Literal["none", "means", "wave", "dense"]
"""What a global block sees of the nine sub-fields: its own alone, the means of all, all estimated, all exactly."""

Step = int | Int64[Tensor, ""]
"""A lead step, counted from 0; as a tensor where a graph is told it when it runs."""

_DOUBLINGS = {3: 0, 6: 1, 12: 2}


@dataclass(frozen=True)
class Architecture:
    """Everything that fixes the shapes and the meaning of the weights; raises ValueError where parts do not fit.

    A patch covers `stride` + 1 rows and `stride` columns, so that the patches of a grid with both poles meet the
    last row; stride 3, 6 or 12 leaves none, one or two doublings to the decoder. `windows` take turns, then comes
    a global block. `res_after` lists the blocks that a RES block follows, `lora_steps` counts the sets of adapters,
    each of which serves `lora_group` lead steps in a row. `sharing` is how many points to every side a tendency is
    averaged over (0: not at all); `diffusion` smooths departures from a mean state, by set of adapters. `joint` has
    the global blocks see all nine sub-fields (`joint_phase`: told which is which), `joint_retrieval` is the share of
    the clusters that wave attention attends to exactly. Input is
    `history` states, the oldest first, and what `forcings` names; output is the next state or its tendency.
    """

    name: str
    scale: int
    channels: int
    width: int
    depth: int
    heads: int
    stride: int
    windows: tuple[tuple[int, int], ...]
    decoder_width: int
    up_blocks: tuple[int, ...]
    res_after: tuple[int, ...]
    res_window: tuple[int, int]
    res_mlp: Literal["convolution", "plain"]
    phase_embedding: bool
    lora_rank: int
    lora_steps: int
    lora_alpha: float = 1.0
    lora_group: int = 1
    mlp_ratio: int = 4
    history: int = 1
    predicts: Literal["state", "tendency"] = "tendency"
    split: Literal["pixel", "token"] = "pixel"
    forcings: tuple[Forcing, ...] = ()
    sharing: int = 0
    diffusion: bool = False
    joint: JointKind = "none"
    joint_phase: bool = False
    joint_retrieval: float = 0.05

    def __post_init__(self) -> None:
        broken = [f"{rule} (got {value})" for holds, rule, value in self._rules() if not holds]
        if broken:
            raise ValueError(f"the architecture {self.name} needs {'; '.join(broken)}")

    def _rules(self) -> Iterator[tuple[bool, str, object]]:
        rows, columns = self.grid_shape
        fits = self.stride in _DOUBLINGS and (rows - 1) % self.stride == columns % self.stride == 0
        yield fits, f"a stride of 3, 6 or 12 that divides {rows - 1} rows and {columns} columns", self.stride
        counts = (self.channels, self.width, self.depth, self.heads, self.decoder_width, self.mlp_ratio)
        yield min(*counts, *self.up_blocks) > 0, "positive counts and widths", counts
        divides = self.heads > 0 and self.width % self.heads == 0 and self.width % 4 == 0
        yield divides, f"a width that {self.heads} heads and 4 divide", self.width
        yield self.doublings <= len(self.up_blocks), f"{self.doublings} or more up_blocks", self.up_blocks
        sizes = [size for window in (*self.windows, self.res_window) for size in window]
        yield min(sizes) > 0, "positive windows", (self.windows, self.res_window)
        rising = sorted({block for block in self.res_after if 0 <= block < self.depth})
        yield rising == list(self.res_after), "rising block numbers in res_after", self.res_after
        ranked = self.lora_steps == 0 or min(self.lora_steps, self.lora_rank) > 0
        yield ranked, "a positive lora_rank where there are lora_steps", (self.lora_rank, self.lora_steps)
        yield self.lora_group > 0, "one or more lead steps per set of adapters in lora_group", self.lora_group
        yield self.history in (1, 2), "a history of 1 or 2", self.history
        shared = self.sharing == 0 or (self.predicts == "tendency" and self.split == "pixel")
        yield shared and self.sharing >= 0, "tendencies and the pixel-level split for sharing", self.sharing
        yield self.lora_steps > 0 or not self.diffusion, "adapters, whose sets diffusion has", self.diffusion
        told = self.joint != "none" or not self.joint_phase
        yield told, "joint global attention for joint_phase", self.joint
        yield 0 <= self.joint_retrieval <= 1, "a share from 0 to 1 in joint_retrieval", self.joint_retrieval
        ordered = tuple(forcing for forcing in FORCINGS if forcing in self.forcings)
        yield (
            ordered == self.forcings,
            f"forcings once each, in the order {', '.join(FORCINGS)}",
            self.forcings,
        )

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Rows and columns of the backbone grid."""
        return backbone_grid(self.scale).shape

    @property
    def token_shape(self) -> tuple[int, int]:
        rows, columns = self.grid_shape
        return (rows - 1) // self.stride, columns // self.stride

    @property
    def patch(self) -> tuple[int, int]:
        return self.stride + 1, self.stride

    @property
    def doublings(self) -> int:
        return _DOUBLINGS.get(self.stride, 0)


_SIZES: dict[str, dict[str, Any]] = {
    # The published size: plain RES blocks as in its 30-block package, no phase embedding.
    "ghr-4b": {
        "width": 3072, "depth": 24, "heads": 16, "decoder_width": 1024, "up_blocks": (1024, 768, 256),
        "res_mlp": "plain", "phase_embedding": False, "lora_rank": 16,
    },
    "ghr-large": {
        "width": 1024, "depth": 24, "heads": 16, "decoder_width": 512, "up_blocks": (512, 384, 256),
        "lora_rank": 16,
    },
    "ghr-base": {
        "width": 768, "depth": 12, "heads": 12, "decoder_width": 384, "up_blocks": (384, 256, 128),
        "lora_rank": 8,
    },
    "ghr-small": {
        "width": 512, "depth": 8, "heads": 8, "decoder_width": 256, "up_blocks": (256, 128, 64), "lora_rank": 4,
    },
    "ghr-tiny": {
        "width": 128, "depth": 4, "heads": 2, "decoder_width": 32, "up_blocks": (32, 32, 24), "lora_rank": 4,
    },
}  # fmt: skip
_OURS: dict[str, Any] = {"res_mlp": "convolution", "phase_embedding": True, "lora_steps": 40}
ARCHITECTURES = tuple(_SIZES)

_FINE: dict[str, Any] = {"stride": 12, "windows": ((10, 10), (5, 20), (20, 5))}
_COARSE: dict[str, Any] = {"stride": 3, "windows": ((6, 6), (3, 12), (12, 4)), "up_blocks": ()}


def architecture(name: str, *, scale: int = 1, channels: int = 69, **changes: Any) -> Architecture:
    """The architecture of this name at this scale, with these fields changed.

    At scales up to 5 the patches are the published (13, 12); coarser grids take (4, 3) and need no up-blocks.
    A RES block follows every global block and its window is one sub-field. Raises ValueError for other names.
    """
    if name not in _SIZES:
        raise ValueError(f"no architecture is named {name!r}; there are {', '.join(_SIZES)}")
    size = _OURS | _SIZES[name]
    fields = size | (_FINE if scale <= 5 else _COARSE) | changes
    rows, columns = backbone_grid(scale).shape
    period, stride = len(fields["windows"]) + 1, fields["stride"]
    size["res_after"] = tuple(range(period - 1, fields["depth"], period))
    size["res_window"] = ((rows - 1) // stride, columns // stride)
    return Architecture(**{"name": name, "scale": scale, "channels": channels, **size, **fields})


class Linear(nn.Linear):
    """A linear layer that is the same at every lead step."""

    def forward(self, tokens: Tensor, step: Step | None = None) -> Tensor:
        return super().forward(tokens)


LinearFactory = Callable[[int, int], Linear]
"""Makes the layers that a transfer may adapt, from the widths of their input and output."""


Mixer = Callable[[Tensor, Step | None], Tensor]
"""From normed tokens and the lead step to what attention adds to each."""


class Block(nn.Module):
    """Pre-norm attention, in windows or (`window` None) over the whole grid, then a two-layer perceptron."""

    def __init__(
        self, width: int, heads: int, *, window: tuple[int, int] | None, mlp_ratio: int, linear: LinearFactory
    ) -> None:
        super().__init__()
        self.window, self.heads = window, heads
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.qkv = linear(width, 3 * width)
        self.proj = linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.fc1 = linear(width, mlp_ratio * width)
        self.fc2 = linear(mlp_ratio * width, width)

    def forward(
        self,
        tokens: Float[Tensor, "batch row column width"],
        step: Step | None = None,
        mixer: Mixer | None = None,
    ) -> Float[Tensor, "batch row column width"]:
        """`mixer` takes the place of `attend`."""
        mix = mixer or self.attend
        tokens = tokens + mix(self.norm1(tokens), step)
        return tokens + self.fc2(F.gelu(self.fc1(self.norm2(tokens), step)), step)

    def attend(
        self, tokens: Float[Tensor, "batch row column width"], step: Step | None
    ) -> Float[Tensor, "batch row column width"]:
        rows, columns = tokens.shape[1:3]
        window = self.window or (rows, columns)
        qkv = self.qkv(to_windows(tokens, window=window), step)
        mixed = self.proj(self_attention(qkv, heads=self.heads), step)
        return from_windows(mixed, rows=rows, columns=columns, window=window)


class UpBlock(nn.Module):
    """A residual block of two 3 x 3 convolutions, then, when it doubles, nearest-neighbour doubling and a third.

    The shape of diffusers' UpDecoderBlock2D with one layer.
    """

    def __init__(self, inputs: int, outputs: int, *, doubles: bool) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(_groups(inputs), inputs, eps=EPSILON)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(_groups(outputs), outputs, eps=EPSILON)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None
        self.upsample = nn.Conv2d(outputs, outputs, 3, padding=1) if doubles else None

    def forward(self, features: Float[Tensor, "batch _ _ _"]) -> Float[Tensor, "batch _ _ _"]:
        change = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(features))))))
        features = (self.shortcut(features) if self.shortcut else features) + change
        if self.upsample is None:
            return features
        return self.upsample(F.interpolate(features, scale_factor=2.0, mode="nearest"))


class Decoder(nn.Module):
    """Tokens to fields: a norm, a narrowing, the up-blocks, and a deconvolution that restores the odd last row."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(architecture.width, eps=EPSILON)
        self.narrow = nn.Linear(architecture.width, architecture.decoder_width, bias=False)
        widths = (architecture.decoder_width, *architecture.up_blocks)
        self.up_blocks = nn.ModuleList(
            UpBlock(inputs, outputs, doubles=index < architecture.doublings)
            for index, (inputs, outputs) in enumerate(pairwise(widths))
        )
        kernel = (DECONVOLUTION + 1, DECONVOLUTION)
        self.deconvolution = nn.ConvTranspose2d(
            widths[-1], architecture.channels, kernel, DECONVOLUTION, bias=False
        )

    def features(self, tokens: Float[Tensor, "batch _ _ width"]) -> Float[Tensor, "batch feature _ _"]:
        """What the deconvolution spreads: one vector per 3 x 3 grid points."""
        features = self.narrow(self.norm(tokens)).permute(0, 3, 1, 2)  # channels last in memory
        for block in self.up_blocks:
            features = block(features)
        return features

    def forward(self, tokens: Float[Tensor, "batch _ _ width"]) -> Float[Tensor, "batch channel _ _"]:
        return self.deconvolution(self.features(tokens))


class Backbone(nn.Module):
    """The pretrained network: `history` normalised states on the backbone grid in, the next one out.

    `linear` makes the layers of the trunk, so that a transfer can have them follow the lead step. The parameters
    mean nothing until `initialise` or a checkpoint fills them.
    """

    def __init__(self, architecture: Architecture, *, linear: LinearFactory = Linear) -> None:
        super().__init__()
        self.architecture = a = architecture
        self.patch = nn.Conv2d(a.history * a.channels, a.width, a.patch, a.stride)
        # A layer of their own, the sum of both: the same as more channels, and the states' weights stay as they are.
        self.forcing_patch = (
            nn.Conv2d(len(a.forcings), a.width, a.patch, a.stride, bias=False) if a.forcings else None
        )
        self.position = nn.Parameter(torch.empty(*a.token_shape, a.width))
        cycle = (*a.windows, None)
        self.blocks = nn.ModuleList(
            Block(a.width, a.heads, window=cycle[i % len(cycle)], mlp_ratio=a.mlp_ratio, linear=linear)
            for i in range(a.depth)
        )
        self.decoder = Decoder(architecture)

    def forward(
        self,
        fields: Float[Tensor, "batch inputs lat lon"],
        step: Step | None = None,
        forcing: Float[Tensor, "batch forcing lat lon"] | None = None,
    ) -> Float[Tensor, "batch channel lat lon"]:
        """The next states. Raises ValueError where `forcing` and the architecture differ."""
        tokens = self.run(self.embed(fields, forcing), range(len(self.blocks)), step)
        return self.finish(self.decoder(tokens), fields[:, -self.architecture.channels :])

    def embed(
        self,
        fields: Float[Tensor, "batch inputs lat lon"],
        forcing: Float[Tensor, "batch forcing lat lon"] | None = None,
    ) -> Float[Tensor, "batch row column width"]:
        """One token per patch, with its place on the globe added."""
        return self.to_tokens(fields, forcing) + self.position

    def to_tokens(
        self,
        fields: Float[Tensor, "batch inputs _ _"],
        forcing: Float[Tensor, "batch forcing _ _"] | None = None,
    ) -> Float[Tensor, "batch _ _ width"]:
        """One token per patch of a field of any size, without its place."""
        # Channels last: the strided sub-fields are gathered in the order in which the convolution reads them.
        fields = fields.to(self.patch.weight.dtype).contiguous(memory_format=torch.channels_last)
        tokens = self.patch(fields)
        if self.forcing_patch is not None and forcing is not None:
            tokens = tokens + self.forcing_patch(forcing.to(tokens.dtype))
        elif self.forcing_patch is not None or forcing is not None:
            wanted, got = self.architecture.forcings, "none" if forcing is None else "some"
            raise ValueError(f"the network needs the forcings {wanted}; got {got}")
        return tokens.permute(0, 2, 3, 1)

    def run(
        self, tokens: Float[Tensor, "batch row column width"], blocks: Sequence[int], step: Step | None
    ) -> Float[Tensor, "batch row column width"]:
        """The tokens after these blocks of the trunk."""
        for index in blocks:
            tokens = self.blocks[index](tokens, step)
        return tokens

    def finish(
        self, decoded: Float[Tensor, "batch channel _ _"], newest: Float[Tensor, "batch channel _ _"]
    ) -> Float[Tensor, "batch channel _ _"]:
        """The next state: what was decoded, added to the newest state where the network predicts a tendency."""
        return newest + decoded if self.architecture.predicts == "tendency" else decoded.to(newest.dtype)


def _groups(channels: int) -> int:
    """32 groups, fewer where a group would hold less than four channels."""
    return gcd(32, max(1, channels // 4))
