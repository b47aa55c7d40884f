"""Interpolation on the sphere, one axis after the other, without edges.

Longitude is a circle, and so is a meridian: beyond a pole it goes on down the other side, half a turn away, where
vector components have the opposite sign. Both axes are therefore interpolated as periodic functions.
"""

from collections.abc import Callable
from itertools import permutations

import numpy as np
from scipy.sparse import csr_matrix

KEYS_A = -0.75
"""Of the cubic convolution in torch and OpenCV, which published weights have seen (Keys' own is -0.5)."""

SNAP = 1e-6
"""In grid steps: nearer than this, a target point is the source point."""

_POLE = 1e-6  # degrees: a target row this close is at the pole
_TWIN = 1e-3  # degrees: a row this close to its own mirror image, across a pole, is at the pole
_ROWS_AT_A_TIME = 32  # a transposed block of rows stays in the second-level cache

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Coordinates of four nodes per target point, and the points -> four weights per point, which sum to one."""


class Separable:
    """Interpolates along each circle of latitude, then along the meridians, which run on beyond the poles.

    Latitudes fall; longitudes rise evenly around the circle, from anywhere. Sparse weights per axis: a few hundred kB.
    """

    def __init__(
        self,
        latitude: np.ndarray,
        longitude: np.ndarray,
        target_latitude: np.ndarray,
        target_longitude: np.ndarray,
        kernel: Kernel,
    ) -> None:
        ring, row_of = _meridian(latitude)
        nodes, weights = _taps(ring, 90 - target_latitude, kernel)
        used, position = np.unique(nodes, return_inverse=True)
        self._near, self._far = (row_of[used[side]] for side in (used < latitude.size, used >= latitude.size))
        self._along_meridian = _matrix(position.reshape(nodes.shape), weights, used.size)
        self._along_row = around(longitude, target_longitude, kernel)
        self._along_row_opposite = around(longitude, target_longitude + 180, kernel)
        self._longitude, self._target_longitude = np.deg2rad(longitude), np.deg2rad(target_longitude)
        self._poles = [
            (row, row_of[nodes[row]], weights[row])
            for row in np.flatnonzero(np.abs(np.abs(target_latitude) - 90) < _POLE)
        ]

    def __call__(self, values: np.ndarray, *, is_vector: bool) -> np.ndarray:
        rows = np.empty((self._near.size + self._far.size, self._target_longitude.size), np.float32)
        far = rows[self._near.size :]
        _apply_along_rows(self._along_row, values, self._near, rows)
        _apply_along_rows(self._along_row_opposite, values, self._far, far)
        if is_vector:
            np.negative(far, out=far)
        result = self._along_meridian @ rows
        for row, sources, weights in self._poles:
            used = weights != 0
            at_pole = self._vector_at_pole if is_vector else _scalar_at_pole
            result[row] = at_pole(values[sources[used]], weights[used])
        return result

    def _vector_at_pole(self, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """a cos λ + b sin λ, a and b from the source rows; seen from beyond the pole they are the same."""
        wave = np.sum(rows * np.exp(-1j * self._longitude), axis=1) * (2 / self._longitude.size)
        return np.real(weights @ wave * np.exp(1j * self._target_longitude))


def _scalar_at_pole(rows: np.ndarray, weights: np.ndarray) -> np.floating:
    return weights @ rows.mean(axis=1, dtype=np.float64)


def _apply_along_rows(matrix: csr_matrix, values: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    for start in range(0, rows.size, _ROWS_AT_A_TIME):
        block = rows[start : start + _ROWS_AT_A_TIME]
        out[start : start + block.size] = (matrix @ values[block].T).T


def _meridian(latitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colatitudes of a whole great circle through both poles, ascending, and the source row at each.

    Down this side are all rows, up the far side again those that are not at a pole (and not, on pixel grids, the
    twins of a row that lies beyond it itself).
    """
    near = 90 - latitude
    far = 360 - near[::-1]
    is_new = (far > near[-1] + _TWIN) & (far < near[0] + 360 - _TWIN)
    rows = np.arange(latitude.size)
    return np.concatenate([near, far[is_new]]), np.concatenate([rows, rows[::-1][is_new]])


def around(longitude: np.ndarray, target: np.ndarray, kernel: Kernel) -> csr_matrix:
    """The (target, source) matrix that interpolates along one circle of evenly spaced longitudes; rows sum to one."""
    return _matrix(*_taps(longitude, target, kernel), longitude.size)


def _taps(nodes: np.ndarray, points: np.ndarray, kernel: Kernel) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the four nodes around every point of a circle of 360 degrees, and their weights."""
    turn = np.arange(-2, nodes.size + 2)
    unrolled = nodes[turn % nodes.size] + 360.0 * (turn // nodes.size)
    points = nodes[0] + (points - nodes[0]) % 360
    first = np.searchsorted(unrolled, points, side="right") - 2
    around = np.clip(first, 0, unrolled.size - 4)[:, None] + np.arange(4)
    coordinates = unrolled[around]
    for node in coordinates[:, 1], coordinates[:, 2]:
        step = coordinates[:, 2] - coordinates[:, 1]
        points = np.where(np.abs(points - node) < SNAP * step, node, points)
    return turn[around] % nodes.size, kernel(coordinates, points)


def _matrix(columns: np.ndarray, weights: np.ndarray, size: int) -> csr_matrix:
    starts = np.arange(0, columns.size + 1, columns.shape[1])
    matrix = csr_matrix((weights.ravel().astype(np.float32), columns.ravel(), starts), (len(columns), size))
    # A node without weight must not pass on its NaN.
    matrix.eliminate_zeros()
    return matrix


def linear(nodes: np.ndarray, points: np.ndarray) -> np.ndarray:
    t = _fraction(nodes, points)
    return np.stack([0 * t, 1 - t, t, 0 * t], axis=1)


def lagrange(nodes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """w_k = Π_{m ≠ k} (x - x_m) / (x_k - x_m)."""
    weights = np.ones(nodes.shape)
    for k, m in permutations(range(4), 2):
        weights[:, k] *= (points - nodes[:, m]) / (nodes[:, k] - nodes[:, m])
    return weights


def keys(nodes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Cubic convolution on equal steps (Keys 1981), with a = -0.75; only constants are reproduced exactly."""
    t, a = _fraction(nodes, points), KEYS_A
    d = np.stack([1 + t, t, 1 - t, 2 - t], axis=1)
    inside = ((a + 2) * d - (a + 3)) * d * d + 1
    outside = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, inside, outside)


def _fraction(nodes: np.ndarray, points: np.ndarray) -> np.ndarray:
    return (points - nodes[:, 1]) / (nodes[:, 2] - nodes[:, 1])
