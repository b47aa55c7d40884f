"""One axis after the other: kernels against polynomials, whole grids against scipy."""

import numpy as np
import pytest
from scipy.interpolate import BarycentricInterpolator, RegularGridInterpolator

from fengwu_ghr.grid import LatLonGrid, regular_gaussian_grid, regular_grid
from fengwu_ghr.interpolation import Kernel, Separable, around, keys, lagrange, linear

KERNELS = {"linear": linear, "lagrange": lagrange, "keys": keys}


@pytest.fixture
def nodes(rng: np.random.Generator) -> np.ndarray:
    """Four unequally spaced nodes for each of 50 points."""
    return np.cumsum(rng.uniform(0.5, 1.5, (50, 4)), axis=1)


def between(nodes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    share = rng.uniform(0, 1, len(nodes))
    return nodes[:, 1] + share * (nodes[:, 2] - nodes[:, 1])


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_weights_sum_to_one(kernel: Kernel, nodes: np.ndarray, rng: np.random.Generator) -> None:
    np.testing.assert_allclose(kernel(nodes, between(nodes, rng)).sum(axis=1), 1, rtol=1e-13)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("node", [1, 2])
def test_a_node_itself_has_all_the_weight(kernel: Kernel, nodes: np.ndarray, node: int) -> None:
    equal = np.broadcast_to(np.arange(4.0), nodes.shape) if kernel is keys else nodes
    expected = np.broadcast_to(np.arange(4) == node, nodes.shape)
    np.testing.assert_array_equal(kernel(equal, equal[:, node]), expected)


@pytest.mark.parametrize(("kernel", "degree"), [(linear, 1), (lagrange, 3)], ids=["linear", "lagrange"])
def test_polynomials_are_exact(
    kernel: Kernel, degree: int, nodes: np.ndarray, rng: np.random.Generator
) -> None:
    points, polynomial = between(nodes, rng), np.polynomial.Polynomial(rng.normal(size=degree + 1))
    result = np.sum(kernel(nodes, points) * polynomial(nodes), axis=1)
    np.testing.assert_allclose(result, polynomial(points), rtol=1e-11)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize(("count", "start"), [(72, 0.0), (73, -180.0), (40, 17.3), (5, 359.9)])
def test_rows_of_the_circle_sum_to_one(kernel: Kernel, count: int, start: float) -> None:
    matrix = around(start + 360 / count * np.arange(count), np.linspace(-400, 400, 321), kernel)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=2e-7)


def test_points_on_nodes_take_their_values(rng: np.random.Generator) -> None:
    longitude = 0.09 * np.arange(4000)
    values = rng.normal(size=4000).astype(np.float32)
    # Another way to write the same longitudes differs from them by rounding.
    matrix = around(longitude, np.linspace(0, 360, 4000, endpoint=False) - 720, lagrange)
    np.testing.assert_array_equal(matrix @ values, values)


@pytest.mark.parametrize("source", [regular_grid(5.0), regular_gaussian_grid(16)], ids=str)
def test_linear_inside_equals_scipy(source: LatLonGrid, rng: np.random.Generator) -> None:
    values = rng.normal(size=source.shape).astype(np.float32)
    target = LatLonGrid(np.linspace(80, -80, 53), np.linspace(1, 350, 61))
    oracle = RegularGridInterpolator((source.latitude[::-1], source.longitude), values[::-1].astype(float))
    expected = oracle(tuple(np.meshgrid(target.latitude, target.longitude, indexing="ij")))
    result = _interpolate(source, target, linear, values)
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_cubic_on_unequal_latitudes_equals_scipy(rng: np.random.Generator) -> None:
    source = regular_gaussian_grid(16)
    values = rng.normal(size=source.shape).astype(np.float32)
    latitude = rng.uniform(-70, 70, 20)
    target = LatLonGrid(np.sort(latitude)[::-1], source.longitude)
    result = _interpolate(source, target, lagrange, values)
    for row, at in enumerate(target.latitude):
        first = np.count_nonzero(source.latitude >= at) - 2
        nearest = slice(first, first + 4)
        oracle = BarycentricInterpolator(source.latitude[nearest], values[nearest].astype(float))
        np.testing.assert_allclose(result[row], oracle(at), atol=2e-6)


def _interpolate(source: LatLonGrid, target: LatLonGrid, kernel: Kernel, values: np.ndarray) -> np.ndarray:
    axes = source.latitude, source.longitude, target.latitude, target.longitude
    return Separable(*axes, kernel)(values, is_vector=False)
