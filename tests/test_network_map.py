"""Between product grid and network grid: there, back, beyond the poles, for both registrations."""

import analytic
import numpy as np
import pytest
import torch

from fengwu_ghr.grid import (
    NetworkGrid,
    ReducedGaussianGrid,
    backbone_grid,
    product_grid,
    regular_grid,
)
from fengwu_ghr.regrid import NetworkMap, Regridder

ALL = [(analytic.scalar, False), (analytic.eastward, True), (analytic.northward, True)]
DEFAULT_AND_FULL_SCALES = [20, 10, pytest.param(1, marks=pytest.mark.full)]

RETURN_ERROR = {
    ("nested", 20): 4e-6,
    ("nested", 10): 7e-7,
    ("nested", 1): 7e-7,
    ("pixel", 20): 1e-3,
    ("pixel", 10): 3e-4,
    ("pixel", 1): 3e-5,
}
"""Largest error anywhere of product -> network -> product, for harmonics up to degree 5 of order one.

`nested` is fourth order down to float32. `pixel` is first order each way, as a cubic convolution with a = -0.75 is,
whose slopes are too steep by half: the price of what published weights were trained with. Most of it cancels.
"""
PIXEL_ERROR = 6e-3
"""One way, at scale 20."""
POLE_ERROR = {
    ("nested", 20): 2e-7,
    ("nested", 10): 2e-7,
    ("nested", 1): 2e-7,
    ("pixel", 20): 5e-5,
    ("pixel", 10): 1.2e-5,
    ("pixel", 1): 3e-7,
}
"""Likewise in the two pole rows."""


def mapped(registration: str, scale: int) -> NetworkMap:
    return NetworkMap(NetworkGrid(scale, registration))


def axes(network: NetworkGrid) -> tuple[np.ndarray, np.ndarray]:
    """Latitude and longitude of the network's rows and columns by the definitions, latitudes beyond 90 included."""
    (rows, columns), k = network.shape, network.scale
    i, j = np.arange(rows), np.arange(columns)
    if network.registration == "nested":
        return 90 + k * (1 - i) / 12, k * (j - 1) / 12
    n, m = network.product.shape
    return 90 - 0.09 * k * ((i + 0.5) * n / rows - 0.5), 0.09 * k * ((j + 0.5) * m / columns - 0.5)


@pytest.mark.parametrize("registration", ["nested", "pixel"])
@pytest.mark.parametrize("scale", DEFAULT_AND_FULL_SCALES)
@pytest.mark.parametrize(("field", "is_vector"), ALL)
def test_fields_come_back(registration: str, scale: int, field: analytic.Field, is_vector: bool) -> None:
    there_and_back = mapped(registration, scale)
    values = analytic.on(product_grid(scale), field)
    network = there_and_back.from_source(values, product_grid(scale), is_vector=is_vector, smooth=True)
    error = np.abs(there_and_back.to_product(network, is_vector=is_vector, smooth=True) - values)
    assert network.shape == there_and_back.network.shape
    assert error.max() < RETURN_ERROR[registration, scale]
    assert error[[0, -1]].max() < POLE_ERROR[registration, scale]


@pytest.mark.parametrize(
    ("registration", "tolerance"), [("nested", 4e-6), ("pixel", PIXEL_ERROR)], ids=["nested", "pixel"]
)
@pytest.mark.parametrize(("field", "is_vector"), ALL)
def test_the_network_sees_the_field_where_its_rows_are(
    registration: str, tolerance: float, field: analytic.Field, is_vector: bool
) -> None:
    """Beyond the poles too, where the formulas run on."""
    network = NetworkGrid(20, registration)
    values = analytic.on(network.product, field)
    result = NetworkMap(network).from_source(values, network.product, is_vector=is_vector, smooth=True)
    latitude, longitude = axes(network)
    np.testing.assert_allclose(result, field(latitude[:, None], longitude[None, :]), atol=tolerance)


@pytest.mark.parametrize("registration", ["nested", "pixel"])
@pytest.mark.parametrize(("field", "is_vector"), ALL)
def test_the_way_back_reads_the_field_where_the_rows_are(
    registration: str, field: analytic.Field, is_vector: bool
) -> None:
    network = NetworkGrid(20, registration)
    latitude, longitude = axes(network)
    values = field(latitude[:, None], longitude[None, :]).astype(np.float32)
    for smooth, tolerance in ((True, 2e-6 if registration == "nested" else PIXEL_ERROR), (False, 2e-3)):
        result = NetworkMap(network).to_product(values, is_vector=is_vector, smooth=smooth)
        np.testing.assert_allclose(result, analytic.on(network.product, field), atol=tolerance)


@pytest.mark.parametrize("registration", ["nested", "pixel"])
@pytest.mark.parametrize("smooth", [True, False])
def test_constants_stay(registration: str, smooth: bool) -> None:
    both_ways = mapped(registration, 20)
    values = np.full(product_grid(20).shape, 273.15, np.float32)
    network = both_ways.from_source(values, product_grid(20), is_vector=False, smooth=smooth)
    np.testing.assert_allclose(network, 273.15, rtol=1e-6)
    back = both_ways.to_product(network, is_vector=False, smooth=smooth)
    np.testing.assert_allclose(back, 273.15, rtol=1e-6)


@pytest.mark.parametrize("is_vector", [False, True])
def test_nested_rows_beyond_the_poles_are_mirrored(is_vector: bool, rng: np.random.Generator) -> None:
    values = rng.normal(size=product_grid(20).shape).astype(np.float32)
    field = mapped("nested", 20).from_source(values, product_grid(20), is_vector=is_vector, smooth=True)
    sign = -1 if is_vector else 1
    np.testing.assert_array_equal(field[0], sign * np.roll(field[2], 108))
    np.testing.assert_array_equal(field[-1], sign * np.roll(field[-3], 108))


@pytest.mark.parametrize("is_vector", [False, True])
@pytest.mark.parametrize("smooth", [False, True])
def test_the_middle_subfield_is_the_field_on_the_backbone_grid(
    is_vector: bool, smooth: bool, rng: np.random.Generator
) -> None:
    source = regular_grid(3.0)
    values = rng.normal(size=source.shape).astype(np.float32)
    field = mapped("nested", 20).from_source(values, source, is_vector=is_vector, smooth=smooth)
    expected = Regridder(source, backbone_grid(20)).apply(values, is_vector=is_vector, smooth=smooth)
    np.testing.assert_allclose(field[1::3, 1::3], expected, atol=1e-6)


def torch_resize(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """In float64, as torch rounds the coordinates to the type of the values."""
    tensor = torch.from_numpy(values.astype(np.float64))[None, None]
    return torch.nn.functional.interpolate(tensor, shape, mode="bicubic", align_corners=False)[0, 0].numpy()


def test_pixel_resize_is_that_of_torch_away_from_edges(rng: np.random.Generator) -> None:
    network = NetworkGrid(20, "pixel")
    values = rng.normal(size=network.product.shape).astype(np.float32)
    result = NetworkMap(network).from_source(values, network.product, is_vector=False, smooth=True)
    expected = torch_resize(values, network.shape)
    np.testing.assert_allclose(result[3:-3, 3:-3], expected[3:-3, 3:-3], atol=2e-6)


@pytest.mark.parametrize("is_vector", [False, True])
def test_pixel_resize_is_that_of_torch_on_the_sphere_unrolled(
    is_vector: bool, rng: np.random.Generator
) -> None:
    """Three times as many rows and columns on either side of the same cells: no edge is near."""
    network = NetworkGrid(20, "pixel")
    (rows, columns), (network_rows, network_columns) = network.product.shape, network.shape
    values = rng.normal(size=(rows, columns)).astype(np.float32)
    far_side = np.roll(values[-2:0:-1], columns // 2, axis=1) * (-1 if is_vector else 1)
    circle = np.concatenate([values, far_side])
    unrolled = np.tile(circle[np.arange(-rows, 2 * rows) % len(circle)], 3)
    expected = torch_resize(unrolled, (3 * network_rows, 3 * network_columns))
    expected = expected[network_rows : 2 * network_rows, network_columns : 2 * network_columns]
    result = NetworkMap(network).from_source(values, network.product, is_vector=is_vector, smooth=True)
    np.testing.assert_allclose(result, expected, atol=2e-6)


@pytest.mark.parametrize("registration", ["nested", "pixel"])
def test_any_source_will_do(registration: str) -> None:
    source = ReducedGaussianGrid.octahedral(48)
    both_ways = mapped(registration, 20)
    for field, is_vector in ALL:
        values = analytic.on(source, field)
        network = both_ways.from_source(values, source, is_vector=is_vector, smooth=True)
        back = both_ways.to_product(network, is_vector=is_vector, smooth=True)
        np.testing.assert_allclose(back, analytic.on(product_grid(20), field), atol=8e-3)


@pytest.mark.parametrize("registration", ["nested", "pixel"])
def test_a_field_of_another_shape_is_refused(registration: str) -> None:
    with pytest.raises(ValueError, match=r"has shape \(111, 216\); got \(101, 200\)"):
        mapped(registration, 20).to_product(np.zeros((101, 200), np.float32), is_vector=False, smooth=True)
