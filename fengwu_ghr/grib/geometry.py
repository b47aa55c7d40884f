"""From a GRIB header to a grid, and to the order in which the values were sent.

Headers hold rounded degrees (10^-3 in GRIB1, 10^-6 in GRIB2): coordinates are rebuilt from the first and last point
and the number of points between them, never by adding up a rounded increment.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import numpy as np
from jaxtyping import Float64

from fengwu_ghr.grid import LatLonGrid, ReducedGaussianGrid, gaussian_latitudes

I_NEGATIVE, J_POSITIVE, J_CONSECUTIVE, ALTERNATING, STAGGERED = 0x80, 0x40, 0x20, 0x10, 0x0F
"""Scanning mode flags: GRIB2 table 3.4, GRIB1 table 8."""
HIGHEST_GAUSSIAN_NUMBER = 4000

_POLE_TOLERANCE = 1e-4
_CIRCLE_TOLERANCE = 2e-3
_GAUSSIAN_TOLERANCE = 2e-3
_INCREMENT_TOLERANCE = {1: 1e-3, 2: 2e-6}

_OTHER_GRIDS = {
    "sh": "spherical harmonics; transform them to a grid first, for instance with `cdo sp2gpl`",
    "healpix": "a HEALPix grid",
    "lambert": "a Lambert conformal projection",
    "lambert_azimuthal_equal_area": "a Lambert azimuthal projection",
    "polar_stereographic": "a polar stereographic projection",
    "mercator": "a Mercator projection",
    "rotated_ll": "a rotated pole",
    "rotated_gg": "a rotated pole",
    "reduced_ll": "a reduced latitude-longitude grid",
    "unstructured_grid": "an unstructured grid, whose coordinates are in another file",
}


@dataclass(frozen=True)
class Geometry:
    """What a header says about the grid. Degrees; None for what it leaves out."""

    edition: int
    grid_type: str
    points: int
    scan: int
    columns: int | None
    rows: int | None
    number: int | None
    row_points: tuple[int, ...] | None
    first: tuple[float | None, float | None]
    last: tuple[float | None, float | None]
    increments: tuple[float | None, float | None]


@dataclass(frozen=True, eq=False)
class Layout:
    """A grid, and how the values of a message are put on it (see `worker.orient`); rows is 0 for a flat field."""

    grid: LatLonGrid | ReducedGaussianGrid
    rows: int
    columns: int
    scan: int
    roll: int

    @property
    def recipe(self) -> dict[str, int]:
        return {"rows": self.rows, "columns": self.columns, "scan": self.scan, "roll": self.roll}


@lru_cache(maxsize=64)
def lay_out(geometry: Geometry) -> Layout:
    """The grid of a header. Raises ValueError that names the cause when it is none of ours or contradicts itself."""
    if geometry.grid_type in ("regular_ll", "regular_gg"):
        return _regular(geometry)
    if geometry.grid_type == "reduced_gg":
        return _reduced_gaussian(geometry)
    kind = _OTHER_GRIDS.get(geometry.grid_type, f"of grid type {geometry.grid_type!r}")
    raise ValueError(f"it is {kind}; regular_ll, regular_gg and global reduced_gg are read")


def _regular(geometry: Geometry) -> Layout:
    columns, rows = geometry.columns, geometry.rows
    if not columns or not rows or columns * rows != geometry.points:
        raise ValueError(f"its grid is {rows} x {columns}, but it holds {geometry.points} values")
    if geometry.scan & STAGGERED or (geometry.edition == 1 and geometry.scan & ALTERNATING):
        raise ValueError(f"its scanning mode {geometry.scan} staggers rows or columns, or means nothing")
    latitude = _gaussian_rows(geometry) if geometry.grid_type == "regular_gg" else _even_rows(geometry)
    longitude, roll = _columns(geometry)
    is_whole = geometry.grid_type == "regular_gg" and geometry.number and rows == 2 * geometry.number
    grid = LatLonGrid(latitude, longitude, f"F{geometry.number}" if is_whole else "")
    return Layout(grid, rows, columns, geometry.scan, roll)


def _corners(geometry: Geometry) -> tuple[float, float, float, float]:
    """Northern and southern row, western and eastern column, as the scanning mode orders them."""
    (lat1, lon1), (lat2, lon2) = geometry.first, geometry.last
    if lat1 is None or lon1 is None or lat2 is None or lon2 is None:
        raise ValueError("its header leaves out the first or the last grid point")
    north, south = (lat2, lat1) if geometry.scan & J_POSITIVE else (lat1, lat2)
    west, east = (lon2, lon1) if geometry.scan & I_NEGATIVE else (lon1, lon2)
    if north < south:
        raise ValueError(
            f"its rows run from {lat1} to {lat2} degrees, against its scanning mode {geometry.scan}"
        )
    return north, south, west, east


def _even_rows(geometry: Geometry) -> Float64[np.ndarray, " lat"]:
    north, south, _, _ = _corners(geometry)
    assert geometry.rows
    _check_increment(geometry, "latitude", geometry.increments[1], geometry.rows - 1, north - south)
    return np.linspace(_snap(north, 90.0), _snap(south, -90.0), geometry.rows)


def _columns(geometry: Geometry) -> tuple[Float64[np.ndarray, " lon"], int]:
    """Longitudes, and how many columns from the west the first of them lies: not zero on whole circles only."""
    _, _, west, east = _corners(geometry)
    assert geometry.columns
    steps = geometry.columns - 1
    span = (east - west) % 360
    if steps and span < 1e-9:
        raise ValueError(f"its first and last column are the same meridian, {west} degrees")
    _check_increment(geometry, "longitude", geometry.increments[0], steps, span)
    step = span / steps if steps else 360.0
    if abs(span + step - 360) > min(_CIRCLE_TOLERANCE, step / 4):
        return west % 360 + np.linspace(0, span, geometry.columns), 0
    step = 360 / geometry.columns
    roll = ceil(-west / step - _CIRCLE_TOLERANCE)
    start = west + roll * step
    start = 0.0 if abs(start) < 1e-6 else start
    return start + step * np.arange(geometry.columns), roll % geometry.columns


def _check_increment(geometry: Geometry, axis: str, increment: float | None, steps: int, span: float) -> None:
    """An increment is only a check on the corners; GRIB2 allows to leave it out."""
    if increment is None or not steps or (geometry.grid_type == "regular_gg" and axis == "latitude"):
        return
    tolerance = _INCREMENT_TOLERANCE[geometry.edition] * (steps + 1)
    if abs(increment * steps - span) > tolerance:
        raise ValueError(
            f"its {axis}s span {span:g} degrees, but {steps} steps of {increment:g} make {increment * steps:g}"
        )


def _gaussian_rows(geometry: Geometry) -> Float64[np.ndarray, " lat"]:
    """Gaussian latitudes, all or those of an area; the header's are rounded and only say which."""
    north, south, _, _ = _corners(geometry)
    assert geometry.rows
    every = gaussian_latitudes(_gaussian_number(geometry))
    first = int(np.argmin(np.abs(every - north)))
    found = every[first : first + geometry.rows]
    ends = (found[0], found[-1])
    if found.size < geometry.rows or np.abs(np.subtract(ends, (north, south))).max() > _GAUSSIAN_TOLERANCE:
        raise ValueError(
            f"its {geometry.rows} rows from {north} to {south} degrees are no Gaussian latitudes "
            f"of N = {geometry.number}"
        )
    return found


def _gaussian_number(geometry: Geometry) -> int:
    if not geometry.number or not 1 < geometry.number <= HIGHEST_GAUSSIAN_NUMBER:
        raise ValueError(f"N = {geometry.number} is no number of Gaussian latitudes")
    return geometry.number


def _reduced_gaussian(geometry: Geometry) -> Layout:
    number, row_points = _gaussian_number(geometry), geometry.row_points or ()
    if geometry.scan:
        raise ValueError(f"reduced Gaussian grids are read in scanning mode 0 only; it has {geometry.scan}")
    north, south, west, east = _corners(geometry)
    every = gaussian_latitudes(number)
    off = max(abs(every[0] - north), abs(every[-1] - south), abs(west))
    is_whole = len(row_points) == 2 * number and sum(row_points) == geometry.points and min(row_points) > 0
    # The last longitude is that of the longest row, or, with some writers, of the regular grid of that N.
    last = min(abs(360 - 360 / columns - east) for columns in (max(row_points, default=1), 4 * number))
    if not is_whole or max(off, last) > _GAUSSIAN_TOLERANCE:
        raise ValueError(
            f"it is a part of a reduced Gaussian grid (N = {number}, {geometry.points} of {sum(row_points)} points, "
            f"from latitude {north}, longitude {west} to {south}, {east}); these are read when they cover the globe"
        )
    grid = ReducedGaussianGrid(np.array(row_points, np.int64), f"N{number}")
    octahedral = ReducedGaussianGrid.octahedral(number)
    return Layout(octahedral if grid == octahedral else grid, 0, geometry.points, 0, 0)


def _snap(latitude: float, pole: float) -> float:
    return pole if abs(latitude - pole) < _POLE_TOLERANCE else latitude
