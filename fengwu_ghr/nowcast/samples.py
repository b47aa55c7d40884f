"""Samples: crops of windows, as the network sees them and as what it should give.

With advection everything is seen from the air of the last frame: earlier frames and later truths are taken where the
paths through its pixels were and will be. So nothing that leaves a crop is lost, and the loss needs no warped forecast.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, Shaped
from torch import Tensor

from fengwu_ghr.nowcast.events import Block, Window
from fengwu_ghr.nowcast.model import FIELDS, RAIN_SCALE, SCALE, NowcastArchitecture
from fengwu_ghr.nowcast.motion import Motion, estimate_motion, pixels, places_along, sample
from fengwu_ghr.nowcast.sequence import ZR, RadarSequence
from fengwu_ghr.nowcast.storms import generate_storms

HORIZON = 120.0
"""Minutes that a nowcast reaches."""
_STORMS_SHARED = 4  # samples from one generated sequence: making it takes longer than learning from it
_STORM_MINUTES = (5, 10)


@dataclass(frozen=True, eq=False)
class Sample:
    """Fields over their scales, truth over SCALE, at these leads (counted from 0); unknown is zero."""

    fields: Float32[Tensor, "time field row column"]
    truth: Float32[Tensor, "lead row column"]
    known: Bool[Tensor, "lead row column"]
    leads: Int64[Tensor, " lead"]
    minutes: int

    @property
    def places(self) -> Float32[Tensor, " lead"]:
        """How late each lead is, from 0 now to 1 at HORIZON."""
        return ((self.leads + 1) * (self.minutes / HORIZON)).clamp(max=1.0).float()


@dataclass(frozen=True, eq=False)
class Batch:
    fields: Float32[Tensor, "batch time field row column"]
    truth: Float32[Tensor, "batch lead row column"]
    known: Bool[Tensor, "batch lead row column"]
    leads: Int64[Tensor, "batch lead"]
    minutes: Float32[Tensor, " batch"]
    places: Float32[Tensor, "batch lead"]

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> "Batch":
        return cls(
            torch.stack([s.fields for s in samples]),
            torch.stack([s.truth for s in samples]),
            torch.stack([s.known for s in samples]),
            torch.stack([s.leads for s in samples]),
            torch.tensor([float(s.minutes) for s in samples]),
            torch.stack([s.places for s in samples]),
        )


def network_fields(
    frames: Float32[Tensor, "time row column"],
    zr: ZR,
    fields: int,
    static: Mapping[str, Float32[Tensor, "row column"]] | None = None,
) -> Float32[Tensor, "time field row column"]:
    """The first `fields` of FIELDS over their scales, of dBZ that are zero where unknown; static ones the same always.

    A static field that is not given is zero.
    """
    rain = torch.from_numpy(zr.rain_rate(frames.numpy())) / RAIN_SCALE
    found = [frames / SCALE, rain]
    for name in FIELDS[2:]:
        given = (static or {}).get(name)
        found.append(torch.zeros_like(frames) if given is None else given.expand_as(frames))
    return torch.stack(found[:fields], dim=1)


class Cutter:
    """Cuts samples out of blocks, for one architecture."""

    def __init__(self, blocks: Sequence[Block], architecture: NowcastArchitecture, *, size: int) -> None:
        self.blocks, self.architecture, self.size = blocks, architecture, size
        self.motions: dict[Window, Motion] = {}

    def crop(self, window: Window, rng: np.random.Generator, *, leads: int) -> Sample:
        """A crop where there is weather, turned and mirrored by chance, with so many of its leads, drawn by chance."""
        block = self.blocks[window.block]
        chosen = torch.from_numpy(np.sort(rng.choice(window.leads, min(leads, window.leads), replace=False)))
        if len(chosen) < leads:
            chosen = torch.cat([chosen, chosen[-1:].expand(leads - len(chosen))])
        corner = self._corner(block.frames, window, int(chosen[leads // 2]), rng)
        made = self.cut(window, corner, chosen)
        return _turned(made, int(rng.integers(4)), bool(rng.integers(2)))

    def cut(self, window: Window, corner: tuple[int, int], leads: Int64[Tensor, " lead"]) -> Sample:
        """The crop with this corner. Parts beyond the grid are unknown."""
        frames, a = self.blocks[window.block].frames, self.architecture
        rows, columns = (range(start, start + self.size) for start in corner)
        motion = self._motion(window) if a.advection else Motion.still(frames.grid.shape)
        seen = range(window.now - (a.inputs - 1) * window.stride, window.now + 1, window.stride)
        here = pixels(rows, columns)
        before = [here, *places_along(motion, 1 - a.inputs, rows, columns)][::-1]
        inputs = [_at(frames, index, places)[0] for index, places in zip(seen, before)]
        ahead = places_along(motion, int(leads.max()) + 1, rows, columns)
        later = [window.now + (int(lead) + 1) * window.stride for lead in leads]
        truths = [_at(frames, i, ahead[int(lead)], nearest=True) for i, lead in zip(later, leads)]
        return Sample(
            network_fields(torch.stack(inputs), frames.zr, a.fields),
            torch.stack([truth for truth, _ in truths]) / SCALE,
            torch.stack([known for _, known in truths]),
            leads,
            frames.minutes * window.stride,
        )

    def _motion(self, window: Window) -> Motion:
        if window not in self.motions:
            frames = self.blocks[window.block].frames
            seen = frames.values[window.now - 2 * window.stride : window.now + 1 : window.stride]
            self.motions[window] = estimate_motion(seen, minutes=frames.minutes * window.stride)
        return self.motions[window]

    def _corner(
        self, frames: RadarSequence, window: Window, lead: int, rng: np.random.Generator
    ) -> tuple[int, int]:
        """Around a pixel with an echo, a strong one as often as a weak one; anywhere where there is none."""
        threshold = float(rng.choice([20.0, 35.0, 42.0]))
        later = frames.values[window.now + (lead + 1) * window.stride]
        found = np.flatnonzero(later >= threshold)
        if found.size == 0:
            found = np.flatnonzero(~np.isnan(later))
        place = np.unravel_index(rng.choice(found), later.shape) if found.size else (0, 0)
        jitter = rng.integers(-self.size // 2, self.size // 2 + 1, 2) // 2 - self.size // 2
        low, high = 0, [max(0, extent - self.size) for extent in later.shape]
        row, column = (int(np.clip(p + j, low, h)) for p, j, h in zip(place, jitter, high))
        return row, column


class StormCutter:
    """Cuts samples out of generated storms; the n-th is the same always."""

    def __init__(self, architecture: NowcastArchitecture, *, size: int, seed: int) -> None:
        self.architecture, self.size, self.seed = architecture, size, seed

    def crop(self, number: int, rng: np.random.Generator, *, leads: int) -> Sample:
        minutes = _STORM_MINUTES[number // _STORMS_SHARED % len(_STORM_MINUTES)]
        a = self.architecture
        ahead = min(a.leads, int(HORIZON) // minutes)
        frames, velocity = _storm(
            (self.seed, number // _STORMS_SHARED), a.inputs + ahead, 2 * self.size, minutes
        )
        cutter = Cutter([Block("storms", frames)], a, size=self.size)
        window = Window(0, a.inputs - 1, 1, ahead)
        cutter.motions[window] = Motion.steady(frames.grid.shape, velocity)
        return cutter.crop(window, rng, leads=leads)


@lru_cache(maxsize=4)
def _storm(
    seed: tuple[int, ...], frames: int, size: int, minutes: int
) -> tuple[RadarSequence, tuple[float, float]]:
    made = generate_storms(seed=seed, frames=frames, size=size, minutes=minutes)
    return made.frames, made.velocity


def _at(
    frames: RadarSequence, index: int, places: Float32[Tensor, "2 row column"], *, nearest: bool = False
) -> tuple[Float32[Tensor, "row column"], Bool[Tensor, "row column"]]:
    """A frame at places, and where it is known there; only the part of the frame that they need is looked at."""
    low = places.amin(dim=(1, 2)).floor().int().tolist()
    high = places.amax(dim=(1, 2)).ceil().int().tolist()
    ranges = [range(max(0, a - 1), min(size, b + 2)) for a, b, size in zip(low, high, frames.grid.shape)]
    if not all(ranges):
        nothing = torch.zeros(places.shape[1:])
        return nothing, nothing > 0
    part = torch.from_numpy(
        frames.values[index, ranges[0].start : ranges[0].stop, ranges[1].start : ranges[1].stop]
    )
    corner = torch.tensor([r.start for r in ranges], dtype=torch.float32)[:, None, None]
    return sample(torch.nan_to_num(part), ~part.isnan(), places - corner, nearest=nearest)


def _turned(made: Sample, quarters: int, mirrored: bool) -> Sample:
    def turned(values: Shaped[Tensor, "*batch row column"]) -> Shaped[Tensor, "*batch row column"]:
        values = torch.rot90(values, quarters, (-2, -1))
        return values.flip(-1) if mirrored else values

    return Sample(turned(made.fields), turned(made.truth), turned(made.known), made.leads, made.minutes)
