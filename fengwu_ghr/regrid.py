"""Regridding: any global field on any latitude-longitude grid, exact at the poles and across the dateline.

Arithmetic is float32, its weights rounded from float64: rounding stays within 1e-6 of the largest value that enters
a point. Missing values (NaN) spread to the points whose stencil touches them. Cubic stencils overshoot and nothing
is clipped here: callers know the bounds of a variable, its `minimum` and `maximum`.
"""

import hashlib
import logging
import os
import zlib
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock
from uuid import uuid4

import numpy as np
from jaxtyping import Float32
from scipy.sparse import block_diag, csr_matrix

from fengwu_ghr.config import cache_folder
from fengwu_ghr.errors import InputError
from fengwu_ghr.grid import LatLonGrid, NetworkGrid, ReducedGaussianGrid
from fengwu_ghr.interpolation import SNAP, Kernel, Separable, around, keys, lagrange, linear

METHOD_VERSION = 1
"""Enters the names of cached weights: raised whenever the same grids give other weights."""

CAP_POINTS, CAP_COLUMNS = 128, 720
"""Rows of reduced grids with fewer points than the first make up the caps, where all are given the second."""

_HEADER_WORDS = 16  # 64 bytes; the first word is the checksum of all others
_ROWS_AT_A_TIME = 32

_log = logging.getLogger(__name__)
_building = Lock()


class Regridder:
    """Maps fields of one global grid to another grid, global or not.

    Latitude-longitude and regular Gaussian sources are interpolated along each axis with four points (Lagrange cubic,
    on unequal steps too), or with two where a field is not smooth. Reduced Gaussian sources are interpolated linearly
    along the two rows next to a point and between them; near the poles, where rows have few points, as the others.
    At a pole itself a scalar has one value, the mean of its
    ring, and a vector component the zonal wavenumber one of its ring: a constant vector in the tangent plane.

    Weights of reduced grids are kept below `cache_dir` ($FENGWU_GHR_CACHE, else the user's cache folder).
    Raises InputError when `source` does not cover the globe.
    """

    def __init__(
        self,
        source: LatLonGrid | ReducedGaussianGrid,
        target: LatLonGrid,
        *,
        cache_dir: Path | None = None,
    ) -> None:
        if isinstance(source, LatLonGrid) and not source.is_global:
            raise InputError(
                f"regridding needs a field of the whole globe; {source} covers {_extent(source)}"
            )
        self.source, self.target = source, target
        self._shape = source.shape if isinstance(source, LatLonGrid) else (source.points,)
        self._cache_dir = cache_dir

    def apply(
        self, values: Float32[np.ndarray, "*points"], *, is_vector: bool = False, smooth: bool = True
    ) -> Float32[np.ndarray, "lat lon"]:
        """The field on the target grid, in new memory; a copy where both grids are equal. Threads may share this.

        `is_vector` marks one component of a vector along east or north; `smooth=False` keeps within the values of
        the points around. Raises ValueError when `values` is not on the source grid.
        """
        if values.shape != self._shape:
            raise ValueError(f"a field on {self.source} has shape {self._shape}; got {values.shape}")
        if self.source == self.target:
            return values.copy()
        return (self._cubic if smooth else self._linear)(values, is_vector=is_vector)

    @cached_property
    def _cubic(self) -> "Separable | _FourPoint":
        return self._method(lagrange)

    @cached_property
    def _linear(self) -> "Separable | _FourPoint":
        return self._method(linear)

    def _method(self, kernel: Kernel) -> "Separable | _FourPoint":
        source, target = self.source, self.target
        if isinstance(source, ReducedGaussianGrid):
            return _four_point(source, target, kernel, self._cache_dir or cache_folder("weights"))
        return Separable(source.latitude, source.longitude, target.latitude, target.longitude, kernel)


class NetworkMap:
    """Both ways between physical fields on a user's grid, the network grid and the product grid.

    `nested`: sources are interpolated to the rows from pole to pole, and the rows beyond them mirrored.
    `pixel`: sources come to the product grid first and are stretched from there as published weights were trained,
    for every variable: cell-centred cubic convolution, but across the dateline and the poles instead of clamped
    edges. The way back is the same convolution, whose error of first order undoes that of the way there: smooth
    fields come back 4 to 10 times closer than by Lagrange cubics.
    `backbone`: sources are interpolated to the grid itself, which is that of the products too.
    """

    def __init__(self, network: NetworkGrid, *, cache_dir: Path | None = None) -> None:
        self.network = network
        self._cache_dir = cache_dir
        self._is_nested = network.registration == "nested"
        self._entrance = network.inner if self._is_nested else network.product
        self._regridders: dict[LatLonGrid | ReducedGaussianGrid, Regridder] = {}

    def from_source(
        self,
        values: Float32[np.ndarray, "*points"],
        source: LatLonGrid | ReducedGaussianGrid,
        *,
        is_vector: bool,
        smooth: bool,
    ) -> Float32[np.ndarray, "row column"]:
        """The field on the network grid, the rows beyond the poles included. Raises as Regridder does."""
        regridder = self._regridders.get(source)
        if regridder is None:
            regridder = Regridder(source, self._entrance, cache_dir=self._cache_dir)
            self._regridders[source] = regridder
        field = regridder.apply(values, is_vector=is_vector, smooth=smooth)
        if self._is_nested:
            return self._with_outer_rows(field, is_vector=is_vector)
        if not self.network.is_transferred:
            return field
        return self._stretch(field, is_vector=is_vector)

    def to_product(
        self, values: Float32[np.ndarray, "row column"], *, is_vector: bool, smooth: bool
    ) -> Float32[np.ndarray, "lat lon"]:
        """The field of the network grid on the product grid. Raises ValueError for another shape."""
        if values.shape != self.network.shape:
            raise ValueError(
                f"a field on {self.network.name} has shape {self.network.shape}; got {values.shape}"
            )
        if self._is_nested:
            return self._inner_to_product.apply(values[1:-1], is_vector=is_vector, smooth=smooth)
        if not self.network.is_transferred:
            return values
        return (self._shrink if smooth else self._shrink_linearly)(values, is_vector=is_vector)

    def _with_outer_rows(self, inner: np.ndarray, *, is_vector: bool) -> np.ndarray:
        field = np.empty((1, *self.network.shape), np.float32)
        field[0, 1:-1] = inner
        sign = np.full(1, -1 if is_vector else 1, np.float32)
        self.network.refill_beyond_poles(field, sign=sign, offset=np.zeros(1, np.float32))
        return field[0]

    @cached_property
    def _inner_to_product(self) -> Regridder:
        return Regridder(self.network.inner, self.network.product)

    @cached_property
    def _stretch(self) -> Separable:
        product = self.network.product
        return Separable(product.latitude, product.longitude, *_pixel_axes(self.network), keys)

    @cached_property
    def _shrink(self) -> Separable:
        return self._from_pixels(keys)

    @cached_property
    def _shrink_linearly(self) -> Separable:
        return self._from_pixels(linear)

    def _from_pixels(self, kernel: Kernel) -> Separable:
        product = self.network.product
        return Separable(*_pixel_axes(self.network), product.latitude, product.longitude, kernel)


def _pixel_axes(network: NetworkGrid) -> tuple[np.ndarray, np.ndarray]:
    """Latitudes and longitudes of a field resized cell by cell: (i + 1/2) n / m - 1/2 in product rows and columns.

    The first row lies 0.04 of a step beyond the pole, the last likewise: a latitude above 90 is meant.
    """
    product = network.product
    row, column = ((np.arange(m) + 0.5) * n / m - 0.5 for n, m in zip(product.shape, network.shape))
    return 90 - row * 180 / (product.shape[0] - 1), column * 360 / product.shape[1]


class _FourPoint:
    """From a reduced Gaussian grid: two points on each of two rows, but for the caps around the poles."""

    def __init__(self, source: ReducedGaussianGrid, target: LatLonGrid, kernel: Kernel, folder: Path) -> None:
        self._shape = target.shape
        # Two threads that ask at once would otherwise both build, and hold, the same weights.
        with _building:
            self._body = _body(source, target, folder)
        short = max(1, int(np.count_nonzero(source.row_points[: source.latitude.size // 2] < CAP_POINTS)))
        edge = source.latitude[short - 1]
        north, south = slice(short + 1), slice(-short - 1, None)
        caps = (target.latitude > edge, north), (target.latitude < -edge, south)
        self._caps = [
            (inside, _Cap(source, rows, target.latitude[inside], target.longitude, kernel))
            for inside, rows in caps
            if inside.any()
        ]

    def __call__(self, values: np.ndarray, *, is_vector: bool) -> np.ndarray:
        result = (self._body @ values).reshape(self._shape)
        for inside, cap in self._caps:
            result[inside] = cap(values, is_vector=is_vector)
        return result


# Kept in memory: callers make a regridder per field.
_four_point = lru_cache(maxsize=4)(_FourPoint)


class _Cap:
    """The outermost rows of a reduced grid, brought to as many points each, and interpolated across the pole.

    They have 20 points and a few more: linear interpolation of a wind that blows straight over the pole, wavenumber
    one along such a row, would be wrong by 1.2 %; by 0.03 % where the caps end.
    """

    def __init__(
        self,
        source: ReducedGaussianGrid,
        rows: slice,
        target_latitude: np.ndarray,
        target_longitude: np.ndarray,
        kernel: Kernel,
    ) -> None:
        counts, starts = source.row_points[rows], source.row_starts[rows]
        longitude = 360 / CAP_COLUMNS * np.arange(CAP_COLUMNS)
        self._points = slice(int(starts[0]), int(starts[-1] + counts[-1]))
        self._widen = block_diag(
            [around(360 / n * np.arange(n), longitude, kernel) for n in counts], "csr", np.float32
        )
        self._across = Separable(source.latitude[rows], longitude, target_latitude, target_longitude, kernel)

    def __call__(self, values: np.ndarray, *, is_vector: bool) -> np.ndarray:
        rows = self._widen @ values[self._points]
        return self._across(rows.reshape(-1, CAP_COLUMNS), is_vector=is_vector)


@lru_cache(maxsize=2)
def _body(source: ReducedGaussianGrid, target: LatLonGrid, folder: Path) -> csr_matrix:
    """The matrix from the flat source to the flat target, from the cache or built; caps hold placeholders.

    Kept in memory, where smooth and other fields share it: 256 MB at 0.09 degrees.
    """
    text = f"four-point {METHOD_VERSION} {source.key} {target.key}"
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.weights"
    words = _load(path, 2 * 4 * target.points)
    if words is None:
        words = _build(source, target)
        _save(path, words)
    columns, weights = np.split(words[_HEADER_WORDS:], 2)
    starts = np.arange(0, columns.size + 1, 4, dtype=np.int32)
    parts = weights.view(np.float32), columns.view(np.int32), starts
    return csr_matrix(parts, (target.points, source.points), copy=False)


def _build(source: ReducedGaussianGrid, target: LatLonGrid) -> np.ndarray:
    """Header, indices (int32) and weights (float32), four per target point, as one array of 32-bit words."""
    words = np.zeros(_HEADER_WORDS + 8 * target.points, np.uint32)
    columns, weights = (part.reshape(*target.shape, 4) for part in np.split(words[_HEADER_WORDS:], 2))
    for start in range(0, target.shape[0], _ROWS_AT_A_TIME):
        rows = slice(start, start + _ROWS_AT_A_TIME)
        _fill(
            source,
            target.latitude[rows],
            target.longitude,
            columns[rows].view(np.int32),
            weights[rows].view(np.float32),
        )
    words[0] = zlib.crc32(words[1:].data)
    return words


def _fill(
    source: ReducedGaussianGrid,
    latitude: np.ndarray,
    longitude: np.ndarray,
    columns: np.ndarray,
    weights: np.ndarray,
) -> None:
    north = np.clip(
        np.searchsorted(-source.latitude, -latitude, side="right") - 1, 0, source.latitude.size - 2
    )
    above, below = source.latitude[north], source.latitude[north + 1]
    t = _snapped(np.clip((above - latitude) / (above - below), 0, 1))
    for k, (row, share) in enumerate(((north, 1 - t), (north + 1, t))):
        count, start = source.row_points[row][:, None], source.row_starts[row][:, None]
        position = longitude % 360 * (count / 360)
        first = np.floor(position + SNAP)
        s = _snapped(position - first)
        first = first.astype(np.int32) % count
        columns[..., 2 * k], columns[..., 2 * k + 1] = start + first, start + (first + 1) % count
        weights[..., 2 * k], weights[..., 2 * k + 1] = share[:, None] * (1 - s), share[:, None] * s
    # A point without weight must not pass on its NaN: the heaviest takes its place.
    row, column, point = np.nonzero(weights == 0)
    columns[row, column, point] = columns[row, column, weights[row, column].argmax(axis=1)]


def _snapped(t: np.ndarray) -> np.ndarray:
    return np.where(np.abs(t) < SNAP, 0.0, np.where(np.abs(1 - t) < SNAP, 1.0, t))


def _load(path: Path, count: int) -> np.ndarray | None:
    """The words of a cached file, mapped into memory; None when there is none or it is damaged."""
    try:
        words = np.memmap(path, np.uint32, mode="r")
    except (OSError, ValueError) as error:
        if path.exists():
            _log.warning("%s cannot be read (%s): building these weights again", path, error)
        return None
    if words.size != _HEADER_WORDS + count or zlib.crc32(words[1:].data) != words[0]:
        _log.warning("%s is damaged: building these weights again", path)
        return None
    return words


def _save(path: Path, words: np.ndarray) -> None:
    """The file is there, whole, unless the folder cannot be written: then it is built again next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, words)
    except OSError as error:
        _log.warning(
            "cannot keep regridding weights in %s (%s): they are built at every start", path.parent, error
        )


def _write(path: Path, words: np.ndarray) -> None:
    # A name of its own: other processes may be writing the same weights.
    unfinished = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with open(unfinished, "wb") as file:
            file.write(words.data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _extent(grid: LatLonGrid) -> str:
    edges = grid.latitude[0], grid.latitude[-1], grid.longitude[0], grid.longitude[-1]
    return "latitude {:g} to {:g}, longitude {:g} to {:g}".format(*edges)
