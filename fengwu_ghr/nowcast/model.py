"""The nowcast network on one page: encoder, translator, decoder. IMPA-Net, and SimVP and TAU in the same frame.

IMPA-Net: Cui et al. (2026), arXiv 2604.24224; what it leaves open is ours and named so in docs/nowcast.md. SimVP with
gSTA: Tan et al. (2022), arXiv 2211.12509. TAU: Tan et al. (2023), arXiv 2206.12126. Fields are (batch, time, field,
row, column), reflectivity first and divided by SCALE; latent frames lie on a grid four times as coarse.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

SCALE = 70.0
"""dBZ that the network sees as 1."""
RAIN_SCALE = 50.0
"""mm/h that it sees as 1."""
FIELDS = ("reflectivity", "rain rate", "topography", "along-slope wind")
"""What a network may be told; of the last two, static, zeros stand in where they are not given."""
DOWN = 4
"""Pixels per latent point along each axis."""

_SQUEEZE = 25  # latent points: 100 km, about a training crop, so that a forecast does not depend on the domain's size


@dataclass(frozen=True)
class NowcastArchitecture:
    """Everything that fixes the shapes and the meaning of the weights; raises ValueError where parts do not fit.

    `advection`: the network works on echoes as seen from the air that carries them: inputs are brought to the last
    frame along their paths before it, what it gives is carried on after it. This is ours, not the paper's. `mixer`
    exchanges fields within blocks of 2 x 2 pixels, before the encoder.
    """

    name: str
    translator: Literal["impa", "gsta", "tau"] = "impa"
    mixer: bool = True
    advection: bool = False
    fields: int = 4
    inputs: int = 4
    leads: int = 24
    stem: int = 8
    hidden: int = 16
    width: int = 64
    depth: int = 4
    ratio: int = 2

    def __post_init__(self) -> None:
        broken = [f"{rule} (got {value})" for holds, rule, value in self._rules() if not holds]
        if broken:
            raise ValueError(f"the architecture {self.name} needs {'; '.join(broken)}")

    def _rules(self) -> Iterator[tuple[bool, str, object]]:
        sizes = (self.leads, self.stem, self.hidden, self.width, self.depth, self.ratio)
        yield min(sizes) > 0, "positive leads and widths", sizes
        yield self.translator in ("impa", "gsta", "tau"), "a translator impa, gsta or tau", self.translator
        yield 1 <= self.fields <= len(FIELDS), f"1 to {len(FIELDS)} fields", self.fields
        yield (
            not self.mixer or self.fields == 4,
            "4 fields where they are mixed in blocks of 2 x 2",
            self.fields,
        )
        yield self.inputs >= 3, "3 or more input frames, as motion is seen in three", self.inputs


class SpatialMixer(nn.Module):
    """Fields permuted within blocks of 2 x 2 pixels: no parameter, no number lost, and its own inverse.

    Channel k then holds at position j of each block what field j had at position k: every channel shows all four
    fields side by side. The permutation is our reading of the abstract. Rows and columns are even.
    """

    def forward(self, x: Float[Tensor, "frame four row column"]) -> Float[Tensor, "frame four row column"]:
        frames, fields, rows, columns = x.shape
        blocks = F.pixel_unshuffle(x, 2).reshape(
            frames, fields, fields, rows // 2, columns // 2
        )  # (field, position)
        return F.pixel_shuffle(blocks.transpose(1, 2).reshape(frames, -1, rows // 2, columns // 2), 2)


class ChannelNorm(nn.Module):
    """Each point's channels have mean 0 and variance 1, then a scale and an offset of their own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(
        self, x: Float[Tensor, "batch channel row column"]
    ) -> Float[Tensor, "batch channel row column"]:
        centred = x - x.mean(dim=1, keepdim=True)
        scaled = centred * torch.rsqrt(centred.square().mean(dim=1, keepdim=True) + 1e-6)
        return scaled * self.weight[:, None, None] + self.bias[:, None, None]


def _conv(inside: int, outside: int, kernel: int = 3, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, kernel, stride, kernel // 2), nn.GELU())


def _depthwise(channels: int, kernel: int, *, dilation: int = 1) -> nn.Conv2d:
    reach = dilation * (kernel - 1) // 2
    return nn.Conv2d(channels, channels, kernel, padding=reach, dilation=dilation, groups=channels)


class Encoder(nn.Module):
    """Each frame by itself: full resolution for the skip, then halved twice."""

    def __init__(self, a: NowcastArchitecture) -> None:
        super().__init__()
        self.mixer = SpatialMixer() if a.mixer else nn.Identity()
        self.stem = _conv(a.fields, a.stem)
        self.halved = nn.Sequential(_conv(a.stem, a.hidden, stride=2), _conv(a.hidden, a.hidden))
        self.latent = _conv(a.hidden, a.hidden, stride=2)

    def forward(
        self, x: Float[Tensor, "frame field row column"]
    ) -> tuple[
        Float[Tensor, "frame hidden coarse_row coarse_column"], Float[Tensor, "frame stem row column"]
    ]:
        skip = self.stem(self.mixer(x))
        return self.latent(self.halved(skip)), skip


class LargeKernel(nn.Module):
    """A depth-wise kernel of 23 points (90 km) as 5 x 5 and a dilated 7 x 7."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.near, self.far = _depthwise(channels, 5), _depthwise(channels, 7, dilation=3)

    def forward(
        self, x: Float[Tensor, "batch channel row column"]
    ) -> Float[Tensor, "batch channel row column"]:
        return self.far(self.near(x))


class SqueezeExcite(nn.Module):
    """A factor for every channel from means over 100 km around; Hu et al. (2018) with means that are not global."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        least = max(channels // 4, 8)
        self.gate = nn.Sequential(
            nn.Conv2d(channels, least, 1), nn.ReLU(), nn.Conv2d(least, channels, 1), nn.Sigmoid()
        )

    def forward(
        self, x: Float[Tensor, "batch channel row column"]
    ) -> Float[Tensor, "batch channel row column"]:
        for kernel in ((_SQUEEZE, 1), (1, _SQUEEZE)):
            padding = kernel[0] // 2, kernel[1] // 2
            x = F.avg_pool2d(x, kernel, 1, padding, count_include_pad=False)
        return self.gate(x)


class Impa(nn.Module):
    """Multi-scale attention: kernels of 3, 5, 7 and 23 points side by side, gated, squeezed and excited."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = _conv(width, width, 1)
        self.scales = nn.ModuleList([*(_depthwise(width, k) for k in (3, 5, 7)), LargeKernel(width)])
        self.merge = nn.Conv2d(4 * width, 2 * width, 1)
        self.excite = SqueezeExcite(width)
        self.leave = nn.Conv2d(width, width, 1)

    def forward(self, x: Float[Tensor, "batch width row column"]) -> Float[Tensor, "batch width row column"]:
        entered = self.enter(x)
        found, gate = self.merge(torch.cat([scale(entered) for scale in self.scales], dim=1)).chunk(2, dim=1)
        return self.leave(gate.sigmoid() * self.excite(entered) * found)


class Gsta(nn.Module):
    """Gated spatiotemporal attention of SimVP: one large kernel, half of it a gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.kernel = _conv(width, width, 1), LargeKernel(width)
        self.split, self.leave = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Float[Tensor, "batch width row column"]) -> Float[Tensor, "batch width row column"]:
        found, gate = self.split(self.kernel(self.enter(x))).chunk(2, dim=1)
        return self.leave(gate.sigmoid() * found)


class Tau(nn.Module):
    """Temporal attention unit: what a large kernel sees, times a factor per channel, times the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.kernel = _conv(width, width, 1), LargeKernel(width)
        self.static, self.dynamic = nn.Conv2d(width, width, 1), SqueezeExcite(width)
        self.leave = nn.Conv2d(width, width, 1)

    def forward(self, x: Float[Tensor, "batch width row column"]) -> Float[Tensor, "batch width row column"]:
        entered = self.enter(x)
        return self.leave(self.dynamic(entered) * self.static(self.kernel(entered)) * entered)


_ATTENTION = {"impa": Impa, "gsta": Gsta, "tau": Tau}


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), both scaled by small learned factors."""

    def __init__(self, a: NowcastArchitecture) -> None:
        super().__init__()
        wide = a.ratio * a.width
        self.attention = nn.Sequential(ChannelNorm(a.width), _ATTENTION[a.translator](a.width))
        self.mlp = nn.Sequential(
            ChannelNorm(a.width), nn.Conv2d(a.width, wide, 1), _depthwise(wide, 3), nn.GELU(),
            nn.Conv2d(wide, a.width, 1),
        )  # fmt: skip
        self.scales = nn.Parameter(torch.full((2, a.width, 1, 1), 0.1))

    def forward(self, x: Float[Tensor, "batch width row column"]) -> Float[Tensor, "batch width row column"]:
        x = x + self.scales[0] * self.attention(x)
        return x + self.scales[1] * self.mlp(x)


class Translator(nn.Module):
    """Latent input frames -> latent frames of all leads; told how many minutes a step has."""

    def __init__(self, a: NowcastArchitecture) -> None:
        super().__init__()
        self.leads = a.leads
        self.enter = nn.Conv2d(a.inputs * a.hidden + 1, a.width, 1)
        self.blocks = nn.Sequential(*(Block(a) for _ in range(a.depth)))
        self.leave = nn.Sequential(ChannelNorm(a.width), nn.Conv2d(a.width, a.leads * a.hidden, 1))

    def forward(
        self, latent: Float[Tensor, "batch time hidden row column"], minutes: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch lead hidden row column"]:
        stacked = latent.flatten(1, 2)
        told = (minutes / 10)[:, None, None, None].expand(-1, 1, *stacked.shape[2:])
        seen = self.blocks(self.enter(torch.cat([stacked, told], dim=1)))
        return self.leave(seen).unflatten(1, (self.leads, -1))


class Decoder(nn.Module):
    """Each lead by itself: doubled twice, joined with the last frame at full resolution; a change of reflectivity.

    The last layer begins at zero, so that a forecast is persistence, or advection, before training.
    """

    def __init__(self, a: NowcastArchitecture) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.Conv2d(a.hidden, 4 * a.hidden, 3, padding=1), nn.PixelShuffle(2), nn.GELU(),
            nn.Conv2d(a.hidden, 4 * a.stem, 3, padding=1), nn.PixelShuffle(2), nn.GELU(),
        )  # fmt: skip
        self.join, self.skip = (nn.Conv2d(a.stem, a.stem, 3, padding=1) for _ in range(2))
        self.read = nn.Conv2d(a.stem, 1, 1)
        nn.init.zeros_(self.read.weight)
        nn.init.zeros_(self.read.bias)  # type: ignore[arg-type]

    def forward(
        self,
        latent: Float[Tensor, "batch lead hidden coarse_row coarse_column"],
        skip: Float[Tensor, "batch stem row column"],
    ) -> Float[Tensor, "batch lead row column"]:
        batch, leads = latent.shape[:2]
        joined = self.join(self.up(latent.flatten(0, 1))).unflatten(0, (batch, leads))
        joined = F.gelu(joined + self.skip(skip)[:, None])
        return self.read(joined.flatten(0, 1)).unflatten(0, (batch, leads))[:, :, 0]


class NowcastNet(nn.Module):
    """Reflectivity at every lead, over SCALE, from some frames; unknown pixels are zero in both."""

    def __init__(self, architecture: NowcastArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.encoder, self.translator = Encoder(architecture), Translator(architecture)
        self.decoder = Decoder(architecture)

    def forward(
        self,
        fields: Float[Tensor, "batch time field row column"],
        minutes: Float[Tensor, " batch"],
        leads: Int64[Tensor, "batch lead"] | None = None,
    ) -> Float[Tensor, "batch lead row column"]:
        """A change is added to the last frame. Rows and columns divide by DOWN.

        `leads`, counted from 0, chooses for each sample those that are decoded; all where it is left out.
        """
        latent, last = self.latent(fields, minutes)
        if leads is not None:
            latent = latent[torch.arange(len(latent))[:, None], leads]
        return self.decode(latent, last, fields[:, -1, 0])

    def latent(
        self, fields: Float[Tensor, "batch time field row column"], minutes: Float[Tensor, " batch"]
    ) -> tuple[
        Float[Tensor, "batch lead hidden coarse_row coarse_column"], Float[Tensor, "batch stem row column"]
    ]:
        """Latent frames of every lead, and the last frame at full resolution."""
        encoded, skip = self.encoder(fields.flatten(0, 1))
        frames = encoded.unflatten(0, fields.shape[:2])
        return self.translator(frames, minutes), skip.unflatten(0, fields.shape[:2])[:, -1]

    def decode(
        self,
        latent: Float[Tensor, "batch lead hidden coarse_row coarse_column"],
        skip: Float[Tensor, "batch stem row column"],
        last: Float[Tensor, "batch row column"],
    ) -> Float[Tensor, "batch lead row column"]:
        """Leads by themselves, so that a forecast can take a few at a time."""
        return last[:, None] + self.decoder(latent, skip)


def build_network(architecture: NowcastArchitecture, *, seed: int) -> NowcastNet:
    """The untrained network; the same seed gives the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return NowcastNet(architecture)
