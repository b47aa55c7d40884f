"""How echoes move: a smooth velocity from three frames, paths along it, fields sampled on them.

Velocity and places are (row, column) in pixels; velocity is per step. Lucas and Kanade (1981), DARPA Image
Understanding Workshop, by windowed least squares from coarse to fine; semi-Lagrangian paths as in Germann and Zawadzki
(2002), Mon. Wea. Rev. 130.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import Tensor

CELL = 4
"""Pixels along each side of the cells on which velocity is known."""

_LEVELS = (16, 8, 4)
"""Pixels per cell, from coarse to fine; the last is CELL."""
_ROUNDS = 3
_WINDOW, _REACH = 24.0, 48.0
"""Pixels (km): the window of the least squares, and how far velocity reaches to where there is no echo."""
_FASTEST = 2.4
"""Pixels (km) a minute: 40 m/s."""

Flow = Float32[np.ndarray, "2 row column"]


@dataclass(frozen=True, eq=False)
class Motion:
    """A steady velocity on cells of CELL pixels of a field of this shape."""

    velocity: Flow
    shape: tuple[int, int]

    @classmethod
    def still(cls, shape: tuple[int, int]) -> "Motion":
        """Nothing moves."""
        cells = tuple(-(-size // CELL) for size in shape)
        return cls(np.zeros((2, *cells), np.float32), shape)

    @classmethod
    def steady(cls, shape: tuple[int, int], velocity: tuple[float, float]) -> "Motion":
        """Everything moves alike."""
        still = cls.still(shape).velocity
        return cls(still + np.array(velocity, np.float32)[:, None, None], shape)

    def paths(
        self, start: Float32[Tensor, "2 row column"], steps: int
    ) -> list[Float32[Tensor, "2 row column"]]:
        """Where what is at `start` is after 1, 2 ... steps; of negative `steps` where it was before.

        Each step is taken with the velocity of its middle, by two iterations. Beyond the field velocity is that of its
        edge.
        """
        velocity = torch.from_numpy(self.velocity)
        places, found = start, []
        for _ in range(abs(steps)):
            move = torch.zeros_like(places)
            for _ in range(2):
                middle = places + move / 2
                move = _sampled(velocity, (middle - (CELL - 1) / 2) / CELL, "bilinear")
                move = move if steps > 0 else -move
            places = places + move
            found.append(places)
        return found


def pixels(
    rows: range, columns: range, *, every: int = 1, offset: float = 0.0
) -> Float32[Tensor, "2 row column"]:
    """The places of these pixels, or of every so many of them."""
    y = torch.arange(rows.start, rows.stop, every, dtype=torch.float32) + offset
    x = torch.arange(columns.start, columns.stop, every, dtype=torch.float32) + offset
    return torch.stack(torch.meshgrid(y, x, indexing="ij"))


def places_along(
    motion: Motion, steps: int, rows: range, columns: range
) -> list[Float32[Tensor, "2 row column"]]:
    """For each of 1, 2 ... steps, where what is at these pixels goes to; of negative `steps` where it comes from.

    Paths are followed on cells, as velocity is smooth, and spread to pixels.
    """
    wider = (range(axis.start - CELL, axis.stop + 2 * CELL) for axis in (rows, columns))
    cells, here = pixels(*wider, every=CELL, offset=(CELL - 1) / 2), pixels(rows, columns)
    found = []
    for places in motion.paths(cells, steps):
        spread = F.interpolate((places - cells)[None], scale_factor=CELL, mode="bilinear")[0]
        found.append(here + spread[:, CELL : CELL + len(rows), CELL : CELL + len(columns)])
    return found


def sample(
    values: Float32[Tensor, "row column"],
    known: Bool[Tensor, "row column"],
    places: Float32[Tensor, "2 here there"],
    *,
    nearest: bool = False,
) -> tuple[Float32[Tensor, "here there"], Bool[Tensor, "here there"]]:
    """The values at these places, and where they are known: inside, and with no unknown pixel taking part.

    Unknown places are zero.
    """
    fields = torch.stack([torch.where(known, values, 0.0), known.float()])
    rows, columns = values.shape
    inside = (places[0] > -0.5) & (places[0] < rows - 0.5) & (places[1] > -0.5) & (places[1] < columns - 0.5)
    found, share = _sampled(fields, places, "nearest" if nearest else "bilinear")
    sure = inside & (share > 0.999)
    return torch.where(sure, found, 0.0), sure


def _sampled(
    fields: Float32[Tensor, "field row column"], places: Float32[Tensor, "2 here there"], mode: str
) -> Float32[Tensor, "field here there"]:
    """At places in pixels; beyond the edges the value there."""
    rows, columns = fields.shape[1:]
    scale = torch.tensor([max(rows - 1, 1), max(columns - 1, 1)], dtype=torch.float32)[:, None, None]
    grid = (places / scale * 2 - 1).flip(0).permute(1, 2, 0)  # (here, there, x and y)
    return F.grid_sample(fields[None], grid[None], mode=mode, padding_mode="border", align_corners=True)[0]


def estimate_motion(frames: Float[np.ndarray, "time row column"], *, minutes: float) -> Motion:
    """The velocity that best carries each frame into the next; still where there is no echo at all.

    Frames are dBZ, NaN where unknown, `minutes` apart, two at least: the last three are used.
    """
    used = [np.nan_to_num(frame, nan=0.0).astype(np.float32) for frame in frames[-3:]]
    still = Motion.still(used[0].shape)
    flow: Flow = np.zeros((2, 1, 1), np.float32)
    for cell in _LEVELS:
        small = [_pooled(frame, cell) for frame in used]
        if min(small[0].shape) < 2:
            continue
        flow = _resized(2 * flow, small[0].shape)  # in cells of half the size
        for _ in range(_ROUNDS):
            flow = _improved(flow, small, cell, most=_FASTEST * minutes / cell)
    return Motion(_resized(CELL * flow, still.velocity.shape[1:]), still.shape)


def _improved(flow: Flow, frames: Sequence[np.ndarray], cell: int, *, most: float) -> Flow:
    """The flow, in cells a step, with one more step of Gauss and Newton."""
    normal, right = np.zeros((3, *frames[0].shape)), np.zeros((2, *frames[0].shape))
    grid = np.indices(frames[0].shape, np.float32)
    for before, after in pairwise(frames):
        back = map_coordinates(before, grid - flow / 2, order=1, mode="nearest")
        ahead = map_coordinates(after, grid + flow / 2, order=1, mode="nearest")
        gy, gx = np.gradient((back + ahead) / 2)
        change = ahead - back
        normal += gy * gy, gy * gx, gx * gx
        right -= gy * change, gx * change
    window = _WINDOW / cell
    yy, yx, xx = (gaussian_filter(part, window) for part in normal)
    by, bx = (gaussian_filter(part, window) for part in right)
    damping = 0.02 * (yy + xx).mean() + 1e-6
    determinant = (yy + damping) * (xx + damping) - yx**2
    step = np.stack([by * (xx + damping) - bx * yx, bx * (yy + damping) - by * yx]) / determinant
    better = np.clip(flow + np.clip(step, -1, 1), -most, most)
    return _spread(better, (yy * xx - yx**2) / (yy + xx + damping), _REACH / cell)


def _spread(flow: np.ndarray, trust: np.ndarray, reach: float) -> Flow:
    """Means of the flow weighted by trust, over some distance; far from any echo the mean of all."""
    trust = np.maximum(trust, 0)
    little = 0.01 * trust.mean() + 1e-9
    weight = gaussian_filter(trust, reach / 2) + little
    overall = (flow * trust).sum(axis=(1, 2)) / (trust.sum() + 1e-9)
    smooth = [
        (gaussian_filter(part * trust, reach / 2) + little * mean) / weight
        for part, mean in zip(flow, overall)
    ]
    return np.stack(smooth).astype(np.float32)


def _pooled(frame: np.ndarray, cell: int) -> np.ndarray:
    """Means over cells; the last ones of a frame that does not divide hold fewer pixels."""
    rows, columns = (-(-size // cell) * cell for size in frame.shape)
    padded = np.pad(frame, ((0, rows - frame.shape[0]), (0, columns - frame.shape[1])), mode="edge")
    return padded.reshape(rows // cell, cell, columns // cell, cell).mean(axis=(1, 3))


def _resized(flow: Flow, shape: tuple[int, ...]) -> Float32[np.ndarray, "2 new_row new_column"]:
    """The same numbers on other cells."""
    return F.interpolate(torch.from_numpy(flow)[None], size=shape, mode="bilinear")[0].numpy()
