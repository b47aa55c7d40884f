"""From radar frames to frames of the next two hours, in memory."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float32
from torch import Tensor

from fengwu_ghr.errors import InputError, UsageError
from fengwu_ghr.nowcast.model import DOWN, SCALE, NowcastNet
from fengwu_ghr.nowcast.motion import Motion, estimate_motion, places_along, sample
from fengwu_ghr.nowcast.samples import network_fields
from fengwu_ghr.nowcast.sequence import DRY, MOST, RadarSequence

NO_ECHO = 7.0
"""dBZ: what a network gives below this is dry (0.1 mm/h)."""
_AT_ONCE = 4  # leads decoded together: more were not faster, and each takes memory

Frame = Float32[np.ndarray, "row column"]


def use_threads(count: int) -> None:
    """Networks of this process compute on so many threads. Raises UsageError for less than one."""
    if count < 1:
        raise UsageError(f"a nowcast needs one thread or more; got {count}")
    torch.set_num_threads(count)


@dataclass(frozen=True, eq=False)
class Start:
    """The last frames that are known, the motion in them, and where what was observed will be."""

    frames: RadarSequence
    motion: Motion

    @classmethod
    def of(cls, frames: RadarSequence) -> "Start":
        """Of the last frames of a sequence. Raises InputError for fewer than three."""
        if len(frames) < 3:
            raise InputError(f"{frames.source}: motion is seen in three frames; there are {len(frames)}")
        return cls(frames, estimate_motion(frames.values, minutes=frames.minutes))

    @property
    def last(self) -> tuple[Float32[Tensor, "row column"], Bool[Tensor, "row column"]]:
        """The last frame, zero where unknown, and where it is known."""
        values = torch.from_numpy(self.frames.values[-1])
        return torch.nan_to_num(values), ~values.isnan()

    def origins(self, leads: int) -> list[Float32[Tensor, "2 row column"]]:
        """For each lead, where what arrives at every pixel is now."""
        rows, columns = self.motion.shape
        return places_along(self.motion, -leads, range(rows), range(columns))


def predict(
    network: NowcastNet,
    frames: RadarSequence,
    *,
    leads: int,
    static: Mapping[str, Float32[Tensor, "row column"]] | None = None,
) -> Iterator[Frame]:
    """dBZ at 1, 2 ... steps after the last frame; NaN where it would come from beyond what was observed.

    `frames` are at 1 km, the last ones are used. From frames without any echo the forecast is dry. Raises InputError
    for too few frames, ValueError for more leads than the network has.
    """
    a = network.architecture
    if leads > a.leads:
        raise ValueError(f"{a.name} gives {a.leads} leads; got {leads}")
    if len(frames) < a.inputs:
        raise InputError(
            f"{frames.source}: {a.name} starts from {a.inputs} frames; there are {len(frames)} up to {frames.times[-1]}"
        )
    start = Start.of(frames[slice(len(frames) - a.inputs, None)])
    origins = start.origins(leads)
    with torch.inference_mode():
        yield from _frames(network, start, origins, static)


def _frames(
    network: NowcastNet,
    start: Start,
    origins: list[Float32[Tensor, "2 row column"]],
    static: Mapping[str, Float32[Tensor, "row column"]] | None,
) -> Iterator[Frame]:
    last, known = start.last
    is_dry = not bool(np.any(start.frames.values > DRY))
    rows, columns = last.shape
    seen = _seen(start, advected=network.architecture.advection)
    fields = network_fields(seen, start.frames.zr, network.architecture.fields, static)
    fields = F.pad(fields, (0, -columns % DOWN, 0, -rows % DOWN))[None]
    latent, skip = network.latent(fields, torch.tensor([float(start.frames.minutes)]))
    for first in range(0, len(origins), _AT_ONCE):
        part = latent[:, first : first + _AT_ONCE][:, : len(origins) - first]
        made = network.decode(part, skip, fields[:, -1, 0])[0, :, :rows, :columns] * SCALE
        for values, places in zip(made, origins[first:]):
            moved, sure = sample(values, known, places)
            shown = moved if network.architecture.advection else values
            shown = torch.zeros_like(shown) if is_dry else shown
            yield _finished(shown, sure)


def _seen(start: Start, *, advected: bool) -> Float32[Tensor, "time row column"]:
    """The frames, zero where unknown; with advection each where the paths through the pixels of the last one were."""
    values = torch.from_numpy(start.frames.values)
    filled = torch.nan_to_num(values)
    if not advected:
        return filled
    rows, columns = values.shape[1:]
    before = places_along(start.motion, 1 - len(values), range(rows), range(columns))[::-1]
    moved = [sample(v, ~known.isnan(), places)[0] for v, known, places in zip(filled, values, before)]
    return torch.stack([*moved, filled[-1]])


def _finished(values: Float32[Tensor, "row column"], sure: Bool[Tensor, "row column"]) -> Frame:
    values = torch.where(values < NO_ECHO, DRY, values.clamp(max=MOST))
    return torch.where(sure, values, torch.nan).numpy()


def extrapolate(frames: RadarSequence, *, leads: int) -> Iterator[Frame]:
    """The last frame carried along the motion in the last three: the baseline without any network."""
    start = Start.of(frames)
    last, known = start.last
    for places in start.origins(leads):
        values, sure = sample(last, known, places)
        yield torch.where(sure, values, torch.nan).numpy()
