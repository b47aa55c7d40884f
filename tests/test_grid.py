"""Grids against numpy's and scipy's quadratures, against exact areas, and against their definitions."""

import numpy as np
import pytest
import torch
from scipy.special import roots_legendre

from fengwu_ghr.grid import (
    SCALES,
    LatLonGrid,
    NetworkGrid,
    ReducedGaussianGrid,
    backbone_grid,
    gaussian_latitudes,
    named_grid,
    product_grid,
    regular_gaussian_grid,
    regular_grid,
)


def box(latitude: list[float], longitude: list[float]) -> LatLonGrid:
    return LatLonGrid(np.array(latitude, float), np.array(longitude, float))


def test_the_three_grids_at_scale_one() -> None:
    assert product_grid().shape == (2001, 4000)
    assert backbone_grid().shape == (721, 1440)
    assert NetworkGrid().shape == (2163, 4320)
    np.testing.assert_allclose(product_grid().latitude, 90 - 0.09 * np.arange(2001), atol=1e-11)
    np.testing.assert_allclose(product_grid().longitude, 0.09 * np.arange(4000), atol=1e-11)


@pytest.mark.parametrize(
    ("scale", "backbone", "network", "product"),
    [(20, (37, 72), (111, 216), (101, 200)), (10, (73, 144), (219, 432), (201, 400))],
)
def test_the_demo_scales(
    scale: int, backbone: tuple[int, int], network: tuple[int, int], product: tuple[int, int]
) -> None:
    grid = NetworkGrid(scale)
    assert (grid.backbone.shape, grid.shape, grid.product.shape) == (backbone, network, product)


@pytest.mark.parametrize("scale", SCALES)
def test_both_poles_belong_to_every_grid(scale: int) -> None:
    network = NetworkGrid(scale)
    for grid in (network.product, network.backbone, network.inner):
        assert grid.reaches_poles
        assert grid.is_global
        assert (grid.latitude[0], grid.latitude[-1]) == (90, -90)


def test_names() -> None:
    names = [product_grid(k).name for k in (1, 10, 20)] + [NetworkGrid(1).name, backbone_grid(1).name]
    assert names == ["0p09", "0p9", "1p8", "net-0p09", "0p25"]
    for name in (*names[:3], "0p25", "5p0", "F32", "O32"):
        assert named_grid(name).name == name
    with pytest.raises(ValueError, match="no grid is named 'N32'; there are 0p09"):
        named_grid("N32")


@pytest.mark.parametrize("scale", [0, 3, 7, 81])
def test_a_scale_must_divide_80(scale: int) -> None:
    for make in (product_grid, backbone_grid, NetworkGrid):
        with pytest.raises(ValueError, match=f"divide 80.*got {scale}"):
            make(scale)


def test_a_registration_must_be_known() -> None:
    with pytest.raises(ValueError, match=r"registration must be one of .* got 'centred'"):
        NetworkGrid(20, "centred")


@pytest.mark.parametrize(
    ("latitude", "longitude", "message"),
    [
        ([0, 10], [0, 1], "latitude must strictly decrease"),
        ([10, 10], [0, 1], "latitude must strictly decrease"),
        ([10, 0], [1, 0], "longitude must strictly increase"),
        ([], [0, 1], "latitude must strictly decrease"),
        ([10, np.nan], [0, 1], "latitude must strictly decrease"),
        ([np.nan], [0, 1], r"lie in \[-90, 90\]"),
        ([91, 0], [0, 1], r"lie in \[-90, 90\]"),
        ([10, 0], [0, 360], "span less than 360"),
        ([10, 0], [0, np.inf], "span less than 360"),
    ],
)
def test_impossible_grids_are_refused(latitude: list[float], longitude: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        box(latitude, longitude)


def test_regular_grids_divide_the_meridian() -> None:
    assert regular_grid(1.5).shape == (121, 240)
    with pytest.raises(ValueError, match=r"must divide 180 degrees; got 0.7"):
        regular_grid(0.7)


def test_equality_is_of_coordinates_not_names() -> None:
    one, other = regular_grid(5.0), backbone_grid(20)
    renamed = LatLonGrid(one.latitude.copy(), one.longitude + 1e-12, "another name")
    assert one == other == renamed
    assert len({one, other, renamed}) == 1
    assert one != product_grid(20)
    assert one != ReducedGaussianGrid.octahedral(8)


@pytest.mark.parametrize("number", [16, 80, 320])
def test_gaussian_latitudes_are_the_roots_of_legendre(number: int) -> None:
    roots, _ = roots_legendre(2 * number)
    np.testing.assert_allclose(gaussian_latitudes(number), np.rad2deg(np.arcsin(roots[::-1])), atol=1e-10)


def test_gaussian_latitudes_of_o1280() -> None:
    """As in the headers of ECMWF's files, in microdegrees."""
    latitude = gaussian_latitudes(1280)
    assert round(latitude[0], 6) == 89.946188
    np.testing.assert_array_equal(latitude, -latitude[::-1])


def test_reduced_gaussian_grids() -> None:
    grid = ReducedGaussianGrid.octahedral(1280)
    assert grid.points == 6_599_680
    assert list(grid.row_points[[0, 1, 1279, 1280, -1]]) == [20, 24, 5136, 5136, 20]
    assert list(grid.row_starts[:3]) == [0, 20, 44]
    assert grid.row_starts[-1] + 20 == grid.points
    assert str(grid) == "O1280 of 6599680 points"
    assert grid == ReducedGaussianGrid(grid.row_points.copy())
    assert grid != ReducedGaussianGrid.octahedral(640)


@pytest.mark.parametrize("points", [[], [20, 24, 20], [20, 3]])
def test_impossible_reduced_grids_are_refused(points: list[int]) -> None:
    with pytest.raises(ValueError, match="even number of rows of at least 4 points"):
        ReducedGaussianGrid(np.array(points, np.int64))


GRIDS = [product_grid(20), regular_gaussian_grid(32), box([75, 45, 0, -60], [0, 90, 180, 270])]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_areas_fill_the_sphere(grid: LatLonGrid) -> None:
    assert grid.row_weights.min() > 0
    np.testing.assert_allclose([grid.row_weights.sum(), grid.cell_areas().sum()], 1, rtol=1e-12)
    assert grid.cell_areas().shape == grid.shape


def test_polar_rows_are_half_cells() -> None:
    """The cap of half a step: (1 - sin(90 - step / 2)) / 2 of the sphere. cos(90) would give nothing."""
    exact = (1 - np.cos(np.deg2rad(0.9))) / 2
    np.testing.assert_allclose(product_grid(20).row_weights[[0, -1]], exact, rtol=1e-9)


@pytest.mark.parametrize("grid", [product_grid(20), regular_gaussian_grid(32)], ids=str)
def test_area_means_of_known_fields(grid: LatLonGrid) -> None:
    """Over the sphere sin² of latitude is 1/3, the fourth power 1/5; midpoint rule, steps below 3 degrees."""
    sine = np.sin(np.deg2rad(grid.latitude))
    np.testing.assert_allclose(grid.row_weights @ sine**2, 1 / 3, atol=3e-4)
    np.testing.assert_allclose(grid.row_weights @ sine**4, 1 / 5, atol=5e-4)


def test_what_is_global() -> None:
    assert regular_grid(2.5).is_global
    assert regular_gaussian_grid(32, longitude_start=-180).is_global
    assert LatLonGrid(np.linspace(88.75, -88.75, 72), -178.75 + 2.5 * np.arange(144)).is_global
    north = LatLonGrid(np.linspace(90, 0, 37), 2.5 * np.arange(144))
    assert north.is_periodic
    assert not north.is_global
    assert not LatLonGrid(np.linspace(90, -90, 73), 2.5 * np.arange(143)).is_global
    assert not box([90], [0, 90, 180, 270]).is_global


def test_a_crop_may_cross_the_dateline() -> None:
    grid = regular_grid(10.0)
    rows, columns = grid.crop(40, 160, 20, -160)
    assert list(grid.latitude[rows]) == [40, 30, 20]
    assert list(grid.longitude[columns]) == [160, 170, 180, 190, 200]
    assert list(grid.longitude[grid.crop(0, -10, 0, 10)[1]]) == [350, 0, 10]


def test_a_crop_around_the_globe_keeps_every_column() -> None:
    grid = regular_grid(10.0)
    assert sorted(grid.crop(90, -180, -90, 180)[1]) == list(range(36))
    assert list(grid.crop(90, 0, -90, 360)[1]) == list(range(36))


@pytest.mark.parametrize("sides", [(4, 0, 1, 90), (40, 3, 20, 7), (20, 0, 40, 90)])
def test_an_empty_crop_is_refused(sides: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match="no grid point lies in north"):
        regular_grid(10.0).crop(*sides)


@pytest.mark.parametrize("scale", SCALES)
def test_nested_rows_and_columns(scale: int) -> None:
    """Row i at 90 + k (1 - i) / 12, column j at k (j - 1) / 12; the middle sub-field is the backbone grid."""
    network = NetworkGrid(scale)
    rows, columns = network.shape
    np.testing.assert_allclose(
        network.inner.latitude, 90 + scale * (1 - np.arange(1, rows - 1)) / 12, atol=1e-9
    )
    np.testing.assert_allclose(network.inner.longitude, scale * (np.arange(columns) - 1) / 12, atol=1e-9)
    middle = LatLonGrid(network.inner.latitude[0::3], network.inner.longitude[1::3])
    assert middle == network.backbone


def test_subfields_are_strided_views() -> None:
    network = NetworkGrid(40)
    values = np.arange(2 * np.prod(network.shape), dtype=np.float32).reshape(2, *network.shape)
    fields = network.subfields(values)
    assert len(fields) == 9
    for index, field in enumerate(fields):
        assert field.shape == (2, *network.backbone.shape)
        assert np.shares_memory(field, values)
        np.testing.assert_array_equal(field, values[:, index // 3 :: 3, index % 3 :: 3])


@pytest.mark.parametrize("as_tensor", [False, True])
def test_rows_beyond_the_poles(as_tensor: bool, rng: np.random.Generator) -> None:
    network = NetworkGrid(20)
    before = rng.normal(size=(2, *network.shape)).astype(np.float32)
    sign, offset = np.array([1, -1], np.float32), np.array([0, 0.25], np.float32)
    values = before.copy()
    arrays = [torch.from_numpy(a) if as_tensor else a for a in (values, sign, offset)]
    network.refill_beyond_poles(arrays[0], sign=arrays[1], offset=arrays[2])
    np.testing.assert_array_equal(values[:, 1:-1], before[:, 1:-1])
    for outer, inside in ((0, 2), (-1, -3)):
        np.testing.assert_array_equal(values[0, outer], np.roll(before[0, inside], 108))
        np.testing.assert_array_equal(values[1, outer], 0.25 - np.roll(before[1, inside], 108))


def test_pixel_grids_have_no_rows_beyond_the_poles(rng: np.random.Generator) -> None:
    network = NetworkGrid(20, "pixel")
    values = rng.normal(size=(1, *network.shape)).astype(np.float32)
    before = values.copy()
    network.refill_beyond_poles(values, sign=-np.ones(1, np.float32), offset=np.zeros(1, np.float32))
    np.testing.assert_array_equal(values, before)
