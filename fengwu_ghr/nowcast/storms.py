"""Generated storms: cells that are carried along, grow, decay and merge over a veil of weak rain.

For pretraining, the demonstration and tests: the real events are few and not ours to pass on. Nothing about their
numbers is fitted to any radar.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from jaxtyping import Float32
from scipy.ndimage import gaussian_filter, shift

from fengwu_ghr.nowcast.sequence import DRY, RadarSequence
from fengwu_ghr.projected_grid import ProjectedGrid
from fengwu_ghr.projection import Projection

PROJECTION = Projection("+proj=lcc +lat_1=48 +lat_2=52 +lat_0=50 +lon_0=10 +a=6371229")
START = datetime(2020, 6, 1, 12)


@dataclass(frozen=True)
class Storms:
    """A sequence, and the velocity (pixels a step) that carried everything but the cells' own drift."""

    frames: RadarSequence
    velocity: tuple[float, float]


def generate_storms(*, seed: int | tuple[int, ...], frames: int, size: int, minutes: int) -> Storms:
    """So many frames on size x size km; the same seed gives the same storms."""
    rng = np.random.default_rng(seed)
    speed, heading = rng.uniform(0.1, 1.2), rng.uniform(0, 2 * np.pi)  # km a minute
    velocity = speed * minutes * np.array([np.sin(heading), np.cos(heading)])
    values = _veil(rng, frames, size, velocity)
    area = (size + frames * speed * minutes) ** 2
    for _ in range(rng.poisson(area * 10 ** rng.uniform(-3.3, -2.3)) + 1):
        _add_cell(values, rng, velocity, minutes)
    np.maximum(values, DRY, out=values)
    values[values < 7] = DRY
    grid = ProjectedGrid.of_corners(
        PROJECTION, (0.0, 0.0), (1000.0, 1000.0), (size, size), "generated storms"
    )
    times = [START + timedelta(minutes=minutes) * n for n in range(frames)]
    found = RadarSequence.of(values, times, grid, source="generated storms")
    return Storms(found, (float(velocity[0]), float(velocity[1])))


def _veil(
    rng: np.random.Generator, frames: int, size: int, velocity: np.ndarray
) -> Float32[np.ndarray, "time row column"]:
    """Smooth noise above a level, carried along and slowly changing into other noise."""
    margin = int(np.ceil(frames * np.abs(velocity).max())) + 1
    scale, level, height = rng.uniform(6, 25), rng.uniform(0.2, 1.6), rng.uniform(12, 22)
    first, last = (_noise(rng, size + 2 * margin, scale) for _ in range(2))
    found = np.empty((frames, size, size), np.float32)
    for n in range(frames):
        share = n / max(frames - 1, 1) * 0.8
        mixed = first * np.float32(np.cos(share)) + last * np.float32(np.sin(share))
        moved = shift(mixed, n * velocity, order=1, mode="nearest")[
            margin : margin + size, margin : margin + size
        ]
        found[n] = height * np.sqrt(np.maximum(moved - level, 0))
    return found


def _noise(rng: np.random.Generator, size: int, scale: float) -> Float32[np.ndarray, "row column"]:
    smooth = gaussian_filter(rng.standard_normal((size, size)).astype(np.float32), scale)
    rough = gaussian_filter(rng.standard_normal((size, size)).astype(np.float32), scale / 4)
    mixed = smooth / smooth.std() + np.float32(0.4) * rough / rough.std()
    return (mixed / mixed.std()).astype(np.float32)


def _add_cell(
    values: Float32[np.ndarray, "time row column"],
    rng: np.random.Generator,
    velocity: np.ndarray,
    minutes: int,
) -> None:
    """One cell: an ellipse whose height rises and falls, seen against what else is there."""
    frames, size = values.shape[:2]
    own = velocity + rng.normal(0, 0.12, 2) * minutes
    reach = float(np.abs(own).max()) * frames
    begin = rng.uniform(-reach, size + reach, 2)
    peak, life, born = rng.gamma(9, 4.4), rng.uniform(20, 110), rng.uniform(-60, frames * minutes)
    along, across, turn = rng.uniform(3, 9), rng.uniform(2, 5), rng.uniform(0, np.pi)
    box = int(3 * max(along, across)) + 2
    for n in range(frames):
        age = (n * minutes - born) / life
        height = min(peak, 62.0) * np.sin(np.pi * age) ** 0.7 if 0 < age < 1 else 0.0
        if height > 5:
            _stamp(values[n], begin + n * own, height, (along, across, turn), box)


def _stamp(
    frame: Float32[np.ndarray, "row column"],
    centre: np.ndarray,
    height: float,
    shape: tuple[float, float, float],
    box: int,
) -> None:
    """The larger of the field and an ellipse that falls off like a Gaussian."""
    along, across, turn = shape
    low = np.maximum(np.round(centre).astype(int) - box, 0)
    high = np.minimum(np.round(centre).astype(int) + box + 1, frame.shape[0])
    if np.any(low >= high):
        return
    y, x = np.ogrid[low[0] : high[0], low[1] : high[1]]
    y, x = y - centre[0], x - centre[1]
    p, q = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    echo = height * np.exp(-0.5 * ((p / along) ** 2 + (q / across) ** 2)) ** 0.5
    part = frame[low[0] : high[0], low[1] : high[1]]
    np.maximum(part, echo.astype(np.float32), out=part)
