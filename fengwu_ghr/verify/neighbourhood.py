"""Neighbourhoods: how far one must look around a point for a forecast of an event to be useful.

The fractions skill score, Roberts and Lean (2008), Monthly Weather Review 136: 1 - <(Pf - Po)²> / (<Pf²> + <Po²>), P
being the fraction of the neighbourhood in which the event is. Numerators and denominators are pooled over dates.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float64

from fengwu_ghr.grid import LatLonGrid
from fengwu_ghr.projected_grid import EARTH_RADIUS_KM
from fengwu_ghr.verify.regions import Regions
from fengwu_ghr.verify.statistics import Sums, field_sums

FRACTIONS = ("squared_difference", "squared_fractions")


def fraction_sums(
    forecast: Bool[np.ndarray, "event lat lon"],
    truth: Bool[np.ndarray, "event lat lon"],
    *,
    kilometres: float,
    regions: Regions,
) -> Sums:
    """Area-weighted sums, by event and region, of (Pf - Po)² and Pf² + Po² in boxes of this width.

    A box spans as many kilometres along the meridian as along the parallel, at most half the circle; fractions are of
    area. It closes over the dateline of a global grid and ends at the poles and at the edges of a limited one.
    """
    fractions = [fractions_of(events, regions.grid, kilometres=kilometres) for events in (forecast, truth)]
    sums = {
        "squared_difference": (fractions[0] - fractions[1]) ** 2,
        "squared_fractions": fractions[0] ** 2 + fractions[1] ** 2,
    }
    return field_sums(sums, regions=regions)


def fss(dated: Sums) -> Float64[np.ndarray, "*axes"]:
    """The fractions skill score; NaN where the event is nowhere."""
    total = dated.total()
    difference, fractions = (total.mean(name) for name in FRACTIONS)
    share = np.divide(difference, fractions, out=np.full(fractions.shape, np.nan), where=fractions > 0)
    return 1 - share


def fractions_of(
    events: Bool[np.ndarray, "event lat lon"], grid: LatLonGrid, *, kilometres: float
) -> Float64[np.ndarray, "event lat lon"]:
    """The fraction of area, in the box of this width around each point, in which the event is."""
    if events.shape[1:] != grid.shape:
        raise ValueError(f"events of shape {events.shape} are not on {grid}")
    columns = _half_columns(grid, kilometres)
    along = np.empty(events.shape)
    for row, half in enumerate(columns):
        along[:, row] = _mean_around(events[:, row].astype(np.float64), half, periodic=grid.is_periodic)
    return _mean_of_rows(along, grid.row_weights, _half_rows(grid, kilometres))


@lru_cache(maxsize=64)
def _half_columns(grid: LatLonGrid, kilometres: float) -> tuple[int, ...]:
    """By row, columns on either side of a point that belong to its box: no more than half the circle in all."""
    step = np.deg2rad(360 / grid.shape[1] if grid.is_periodic else np.diff(grid.longitude).mean())
    widths = EARTH_RADIUS_KM * np.cos(np.deg2rad(grid.latitude)) * step
    most = (grid.shape[1] // 2 - 1) // 2
    halves = np.floor(kilometres / 2 / np.maximum(widths, 1e-6))
    return tuple(np.minimum(halves, most).astype(int).tolist())


def _half_rows(grid: LatLonGrid, kilometres: float) -> int:
    step = np.deg2rad(np.abs(np.diff(grid.latitude)).mean())
    return int(kilometres / 2 / (EARTH_RADIUS_KM * step))


def _mean_around(
    values: Float64[np.ndarray, "event lon"], half: int, *, periodic: bool
) -> Float64[np.ndarray, "event lon"]:
    """The mean of each value and `half` neighbours on either side; fewer at an edge."""
    if half == 0:
        return values
    count = values.shape[1]
    if periodic:
        values = np.concatenate([values[:, -half:], values, values[:, :half]], axis=1)
        sums = _running(values)
        return (sums[:, 2 * half + 1 :] - sums[:, :count]) / (2 * half + 1)
    sums, places = _running(values), np.arange(count)
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, count)
    return (sums[:, high] - sums[:, low]) / (high - low)


def _mean_of_rows(
    values: Float64[np.ndarray, "event lat lon"], weights: Float64[np.ndarray, " lat"], half: int
) -> Float64[np.ndarray, "event lat lon"]:
    """The area-weighted mean of each row and `half` rows on either side; fewer at the poles."""
    if half == 0:
        return values
    count = weights.size
    places = np.arange(count)
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, count)
    sums = np.concatenate(
        [np.zeros_like(values[:, :1]), np.cumsum(values * weights[:, None], axis=1)], axis=1
    )
    areas = np.concatenate([[0.0], np.cumsum(weights)])
    return (sums[:, high] - sums[:, low]) / (areas[high] - areas[low])[:, None]


def _running(values: Float64[np.ndarray, "event lon"]) -> Float64[np.ndarray, "event more"]:
    return np.concatenate([np.zeros_like(values[:, :1]), np.cumsum(values, axis=1)], axis=1)
