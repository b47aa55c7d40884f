"""Fields known everywhere on the sphere, beyond the poles too: polynomials of the Cartesian coordinates.

A polynomial of degree n in (x, y, z) holds the spherical harmonics up to degree n. Latitudes above 90 are meant: the
formulas go on down the far side, where a vector's components along "east" and "north" have changed their signs.
"""

from collections.abc import Callable

import numpy as np

from fengwu_ghr.grid import LatLonGrid, ReducedGaussianGrid

Field = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Latitudes and longitudes in degrees, broadcast against each other -> float64 values."""


def scalar(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Harmonics up to degree 5; values within about ±1.2, another value at either pole."""
    x, y, z = _cartesian(latitude, longitude)
    return x * y + z**3 - 0.5 * x**4 * z + 0.3 * (x**4 - 6 * x * x * y * y + y**4) * z


def eastward(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    return _component(_wind, latitude, longitude, 0)


def northward(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    return _component(_wind, latitude, longitude, 1)


def constant_eastward(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    return _component(_constant, latitude, longitude, 0)


def constant_northward(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    return _component(_constant, latitude, longitude, 1)


def on(grid: LatLonGrid | ReducedGaussianGrid, field: Field) -> np.ndarray:
    """The field on a grid, float32, flat on reduced ones."""
    if isinstance(grid, LatLonGrid):
        return field(grid.latitude[:, None], grid.longitude[None, :]).astype(np.float32)
    rows = [field(lat, 360 / n * np.arange(n)) for lat, n in zip(grid.latitude, grid.row_points)]
    return np.concatenate(rows).astype(np.float32)


def _wind(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, ...]:
    """Solid-body rotation about a tilted axis, and half the gradient of x y + x² z + z²."""
    a, b, c = 0.6, -0.3, 0.5
    rotation = b * z - c * y, c * x - a * z, a * y - b * x
    gradient = y + 2 * x * z, x, x * x + 2 * z
    return tuple(r + 0.5 * g for r, g in zip(rotation, gradient))


def _constant(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, ...]:
    """The same wind in space everywhere: it blows straight over both poles."""
    return np.full_like(x, 0.8), np.full_like(x, -0.6), np.zeros_like(x)


def _component(
    vectors: Callable[..., tuple[np.ndarray, ...]], latitude: np.ndarray, longitude: np.ndarray, which: int
) -> np.ndarray:
    """Along the unit vector to the east (0) or north (1)."""
    phi, lam = np.broadcast_arrays(np.deg2rad(latitude), np.deg2rad(longitude))
    east = -np.sin(lam), np.cos(lam), np.zeros_like(lam)
    north = -np.sin(phi) * np.cos(lam), -np.sin(phi) * np.sin(lam), np.cos(phi)
    vector = vectors(*_cartesian(latitude, longitude))
    return sum(a * b for a, b in zip(vector, (east, north)[which]))


def _cartesian(latitude: np.ndarray, longitude: np.ndarray) -> tuple[np.ndarray, ...]:
    phi, lam = np.broadcast_arrays(np.deg2rad(latitude), np.deg2rad(longitude))
    return np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)
