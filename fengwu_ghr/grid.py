"""Grids: where the numbers are. Latitudes fall from north to south, longitudes rise eastward, both in degrees."""

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

BACKBONE_ROWS, BACKBONE_COLUMNS = 721, 1440
PRODUCT_ROWS, PRODUCT_COLUMNS = 2001, 4000
SUBFIELDS_PER_AXIS = 3
SCALES = (1, 2, 4, 5, 8, 10, 16, 20, 40, 80)
REGISTRATIONS = ("nested", "pixel", "backbone")

_DEGREES_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class LatLonGrid:
    """A tensor-product grid: every latitude with every longitude.

    `latitude` strictly decreases within [-90, 90]; `longitude` strictly increases over less than 360 degrees
    (it may start anywhere). Regular Gaussian grids are of this kind too.
    """

    latitude: Float64[np.ndarray, " lat"]
    longitude: Float64[np.ndarray, " lon"]
    name: str = ""

    def __post_init__(self) -> None:
        for values, sign, axis in ((self.latitude, -1, "latitude"), (self.longitude, 1, "longitude")):
            if values.size == 0 or not np.all(sign * np.diff(values) > 0):
                order = "decrease" if sign < 0 else "increase"
                raise ValueError(f"a grid's {axis} must strictly {order}; got {_brief(values)}")
        if not np.abs(self.latitude).max() <= 90 + 1e-9:
            raise ValueError(f"latitudes must lie in [-90, 90]; got {_brief(self.latitude)}")
        if not self.longitude[-1] - self.longitude[0] < 360:
            raise ValueError(f"longitudes must span less than 360 degrees; got {_brief(self.longitude)}")

    @property
    def shape(self) -> tuple[int, int]:
        return self.latitude.size, self.longitude.size

    @property
    def points(self) -> int:
        return self.latitude.size * self.longitude.size

    @cached_property
    def key(self) -> str:
        """A hash of the coordinates; equal grids have equal keys, whatever their names."""
        return _digest("latlon", self.latitude, self.longitude)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LatLonGrid) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __str__(self) -> str:
        rows, columns = self.shape
        return f"{self.name or 'lat-lon grid'} {rows} x {columns}"

    @cached_property
    def is_periodic(self) -> bool:
        """Whether the longitudes close the circle: uniform, and one more step comes back to the first."""
        steps = np.diff(self.longitude)
        closing = self.longitude[0] + 360 - self.longitude[-1]
        return bool(
            steps.size and np.allclose(np.append(steps, closing), closing, atol=_DEGREES_TOLERANCE * 10)
        )

    @property
    def reaches_poles(self) -> bool:
        return bool(abs(self.latitude[0] - 90) < 1e-6 and abs(self.latitude[-1] + 90) < 1e-6)

    @property
    def is_global(self) -> bool:
        """Whether the whole sphere is covered: periodic, and no polar cap wider than one and a half rows."""
        if self.latitude.size < 2 or not self.is_periodic:
            return False
        widest = 1.5 * np.abs(np.diff(self.latitude)).max()
        return bool(90 - self.latitude[0] < widest and self.latitude[-1] + 90 < widest)

    @cached_property
    def row_edges(self) -> Float64[np.ndarray, " edge"]:
        """Latitudes between the rows, clipped at the poles: a row at a pole is half a cell."""
        middle = (self.latitude[:-1] + self.latitude[1:]) / 2
        first = min(90.0, 2 * self.latitude[0] - middle[0]) if middle.size else 90.0
        last = max(-90.0, 2 * self.latitude[-1] - middle[-1]) if middle.size else -90.0
        return np.concatenate([[first], middle, [last]])

    @cached_property
    def row_weights(self) -> Float64[np.ndarray, " lat"]:
        """Area of one cell of each row, from the sines of the cell edges; sums to one over the rows."""
        areas = -np.diff(np.sin(np.deg2rad(self.row_edges)))
        return areas / areas.sum()

    def cell_areas(self) -> Float64[np.ndarray, "lat lon"]:
        """Share of the grid's area in each cell; sums to one. Columns are taken as equally wide."""
        rows, columns = self.shape
        return np.broadcast_to(self.row_weights[:, None] / columns, (rows, columns))

    def crop(
        self, north: float, west: float, south: float, east: float
    ) -> tuple[slice, Int64[np.ndarray, " column"]]:
        """Rows and columns inside a box; `west` > `east` crosses the dateline. Raises ValueError when empty."""
        rows = np.flatnonzero((self.latitude <= north + 1e-9) & (self.latitude >= south - 1e-9))
        offset = np.mod(self.longitude - west + 1e-9, 360)
        width = np.mod(east - west, 360) if np.mod(east - west, 360) or east == west else 360.0
        columns = np.flatnonzero(offset <= width + 2e-9)
        columns = columns[np.argsort(offset[columns])].astype(np.int64)
        if rows.size == 0 or columns.size == 0:
            raise ValueError(f"no grid point lies in north {north}, west {west}, south {south}, east {east}")
        return slice(int(rows[0]), int(rows[-1]) + 1), columns


@dataclass(frozen=True, eq=False)
class ReducedGaussianGrid:
    """Gaussian latitudes with `row_points[i]` equally spaced longitudes each, from longitude 0 eastward.

    `row_points` has 2N entries, north to south: classic (N) or octahedral (O, 16 + 4i).
    """

    row_points: Int64[np.ndarray, " lat"]
    name: str = ""

    def __post_init__(self) -> None:
        if self.row_points.size == 0 or self.row_points.size % 2 or np.any(self.row_points < 4):
            raise ValueError(
                "a reduced Gaussian grid needs an even number of rows of at least 4 points each; "
                f"got {self.row_points.size} rows, {_brief(self.row_points)}"
            )

    @classmethod
    def octahedral(cls, number: int) -> "ReducedGaussianGrid":
        """O<number>: 20 points nearest the poles, four more on every row towards the equator."""
        north = 20 + 4 * np.arange(number, dtype=np.int64)
        return cls(np.concatenate([north, north[::-1]]), f"O{number}")

    @cached_property
    def latitude(self) -> Float64[np.ndarray, " lat"]:
        return gaussian_latitudes(self.row_points.size // 2)

    @property
    def points(self) -> int:
        return int(self.row_points.sum())

    @cached_property
    def row_starts(self) -> Int64[np.ndarray, " lat"]:
        """Index of the first point of each row in the flat field."""
        return np.concatenate([[0], np.cumsum(self.row_points)[:-1]]).astype(np.int64)

    @cached_property
    def key(self) -> str:
        return _digest("reduced_gg", self.row_points)

    @property
    def is_global(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ReducedGaussianGrid) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __str__(self) -> str:
        return f"{self.name or 'reduced Gaussian grid'} of {self.points} points"


@dataclass(frozen=True)
class NetworkGrid:
    """The grid the network works on: three backbone points to one, along both axes.

    `nested`: row i at 90 + k (1 - i) / 12, column j at k (j - 1) / 12, so that the middle sub-field lies on the
    backbone grid. The first and last rows lie beyond the poles: they are the third and the third-last rolled by
    half the columns, with vector components negated.
    `pixel`: the product grid resized cell by cell, as published GHR weights were trained; no row beyond the poles.
    `backbone`: no transfer at all; a model that works on the backbone grid, and whose products stay there.
    """

    scale: int = 1
    registration: str = "nested"

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ValueError(f"the scale must divide 80, one of {SCALES}; got {self.scale}")
        if self.registration not in REGISTRATIONS:
            raise ValueError(f"the registration must be one of {REGISTRATIONS}; got {self.registration!r}")

    @property
    def name(self) -> str:
        return f"net-{_degrees_name(self.scale * 0.09)}" if self.is_transferred else self.backbone.name

    @property
    def is_transferred(self) -> bool:
        """Whether nine sub-fields make a state."""
        return self.registration != "backbone"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, those beyond the poles included: 2163 x 4320 at scale 1."""
        rows, columns = self.backbone.shape
        if not self.is_transferred:
            return rows, columns
        return SUBFIELDS_PER_AXIS * rows, SUBFIELDS_PER_AXIS * columns

    @property
    def backbone(self) -> LatLonGrid:
        return backbone_grid(self.scale)

    @property
    def product(self) -> LatLonGrid:
        return product_grid(self.scale) if self.is_transferred else self.backbone

    @property
    def has_rows_beyond_poles(self) -> bool:
        return self.registration == "nested"

    @cached_property
    def inner(self) -> LatLonGrid:
        """The nested rows from pole to pole, without the two beyond them: 2161 x 4320 at scale 1."""
        rows, columns = self.shape
        step = self.scale / 12
        latitude = 90 - step * np.arange(rows - 2)
        latitude[-1] = -90.0
        return LatLonGrid(latitude, step * (np.arange(columns) - 1.0), f"{self.name}-inner")

    def subfields(
        self, values: Float32[np.ndarray, "channel row column"]
    ) -> list[Float32[np.ndarray, "channel lat lon"]]:
        """The nine strided views in the order k = 3 a + b, sub-field (a, b) being values[a::3, b::3]."""
        n = SUBFIELDS_PER_AXIS
        return [values[:, a::n, b::n] for a in range(n) for b in range(n)]

    def refill_beyond_poles(
        self,
        values: Float32[Any, "channel row column"],
        *,
        sign: Float32[Any, " channel"],
        offset: Float32[Any, " channel"],
    ) -> None:
        """Rebuild, in place, the first and last rows as sign x (rows inside) + offset; nothing for `pixel`.

        `Normalisation.across_pole` gives both: vector components change sign when one walks over a pole. Only
        slices are used, so that numpy arrays and tensors on any device are served alike.
        """
        if not self.has_rows_beyond_poles:
            return
        half = values.shape[2] // 2
        for outer, source in ((0, 2), (-1, -3)):
            for here, opposite in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
                values[:, outer, here] = values[:, source, opposite] * sign[:, None] + offset[:, None]


@lru_cache
def product_grid(scale: int = 1) -> LatLonGrid:
    """The grid of the products, 0.09 degrees times `scale`, both poles included: 2001 x 4000 at scale 1."""
    _check_scale(scale)
    rows, columns = (PRODUCT_ROWS - 1) // scale + 1, PRODUCT_COLUMNS // scale
    return _regular(rows, columns, _degrees_name(0.09 * scale))


@lru_cache
def backbone_grid(scale: int = 1) -> LatLonGrid:
    """The grid of the pretrained backbone, 0.25 degrees times `scale`: 721 x 1440 at scale 1."""
    _check_scale(scale)
    rows, columns = (BACKBONE_ROWS - 1) // scale + 1, BACKBONE_COLUMNS // scale
    return _regular(rows, columns, _degrees_name(0.25 * scale))


def regular_grid(degrees: float) -> LatLonGrid:
    """The global grid with both poles and this step, which must divide 180."""
    rows = round(180 / degrees)
    if abs(rows * degrees - 180) > 1e-6:
        raise ValueError(f"the step of a regular global grid must divide 180 degrees; got {degrees}")
    return _regular(rows + 1, 2 * rows, _degrees_name(degrees))


def regular_gaussian_grid(number: int, *, longitude_start: float = 0.0) -> LatLonGrid:
    """F<number>: 2N Gaussian latitudes, 4N longitudes."""
    longitude = longitude_start + 90 / number * np.arange(4 * number)
    return LatLonGrid(gaussian_latitudes(number), longitude, f"F{number}")


@lru_cache(maxsize=16)
def gaussian_latitudes(number: int) -> Float64[np.ndarray, " lat"]:
    """The 2N roots of the Legendre polynomial of that degree, in degrees, north to south.

    Newton's method on the three-term recurrence, from the asymptotic first guess cos(π (i + 3/4) / (2N + 1/2)).
    """
    degree = 2 * number
    x = np.cos(np.pi * (np.arange(number) + 0.75) / (degree + 0.5))
    for _ in range(6):
        previous, current = np.ones_like(x), x.copy()
        for n in range(2, degree + 1):
            previous, current = current, ((2 * n - 1) * x * current - (n - 1) * previous) / n
        x = x - current * (x * x - 1) / (degree * (x * current - previous))
    north = np.rad2deg(np.arcsin(x))
    latitudes = np.concatenate([north, -north[::-1]])
    latitudes.flags.writeable = False
    return latitudes


def known_grid(grid: LatLonGrid) -> LatLonGrid:
    """The regular global grid that this one is but for the rounding of its coordinates, else the grid itself."""
    rows, columns = grid.shape
    if columns != 2 * (rows - 1):
        return grid
    exact = next(
        (g for k in SCALES for g in (product_grid(k), backbone_grid(k)) if g.shape == grid.shape), None
    )
    exact = exact or regular_grid(180 / (rows - 1))
    close = (
        np.allclose(getattr(grid, axis), getattr(exact, axis), atol=1e-4)
        for axis in ("latitude", "longitude")
    )
    return exact if all(close) else grid


def named_grid(name: str) -> LatLonGrid | ReducedGaussianGrid:
    """The grid of this name: `0p09`, `0p25`, `1p8` and so on, `1p5`, `F320`, `O1280`. Raises ValueError for others."""
    if name == "1p5":  # on which WMO's scores are exchanged
        return regular_grid(1.5)
    for scale in SCALES:
        for grid in (product_grid(scale), backbone_grid(scale)):
            if grid.name == name:
                return grid
    if name[:1] in ("F", "O") and name[1:].isdigit() and int(name[1:]) > 1:
        number = int(name[1:])
        return regular_gaussian_grid(number) if name[0] == "F" else ReducedGaussianGrid.octahedral(number)
    known = ", ".join(make(scale).name for make in (product_grid, backbone_grid) for scale in SCALES)
    raise ValueError(f"no grid is named {name!r}; there are {known}, 1p5, and Gaussian ones as F320, O1280")


def _regular(rows: int, columns: int, name: str) -> LatLonGrid:
    return LatLonGrid(np.linspace(90, -90, rows), np.arange(columns) * (360 / columns), name)


def _degrees_name(degrees: float) -> str:
    whole, _, part = f"{degrees:.4f}".rstrip("0").rstrip(".").partition(".")
    return f"{whole}p{part}" if part else f"{whole}p0"


def _check_scale(scale: int) -> None:
    if scale not in SCALES:
        raise ValueError(f"the scale must divide 80, one of {SCALES}; got {scale}")


def _digest(kind: str, *arrays: np.ndarray) -> str:
    digest = hashlib.sha256(kind.encode())
    for values in arrays:
        digest.update(np.ascontiguousarray(np.round(values, 7) + 0.0).tobytes())
    return digest.hexdigest()[:32]


def _brief(values: np.ndarray) -> str:
    if values.size <= 4:
        return str(values.tolist())
    return f"{values[0]:g}, {values[1]:g} ... {values[-1]:g} ({values.size} values)"
