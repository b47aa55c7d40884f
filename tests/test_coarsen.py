"""Area means against a brute force that cuts the sphere into cells of a tenth of a degree, which fit both grids."""

import numpy as np
import pytest

from fengwu_ghr.coarsen import AreaMean
from fengwu_ghr.grid import LatLonGrid, backbone_grid, product_grid, regular_gaussian_grid, regular_grid

CELL_CENTRED = LatLonGrid(np.linspace(88.75, -88.75, 72), -178.75 + 2.5 * np.arange(144), "cell-centred")
PAIRS = [
    (product_grid(20), backbone_grid(20)),
    (product_grid(80), backbone_grid(80)),
    (CELL_CENTRED, regular_grid(10.0)),
    (backbone_grid(20), product_grid(20)),
]
ANY_PAIRS = [
    *PAIRS,
    (regular_gaussian_grid(32), backbone_grid(20)),
    (regular_gaussian_grid(24), CELL_CENTRED),
]


def by_brute_force(values: np.ndarray, source: LatLonGrid, target: LatLonGrid) -> np.ndarray:
    """Each of 1800 x 3600 cells belongs to the nearest row and column of either grid."""
    latitude, longitude = 89.95 - 0.1 * np.arange(1800), 0.05 + 0.1 * np.arange(3600)
    areas = np.sin(np.deg2rad(latitude + 0.05)) - np.sin(np.deg2rad(latitude - 0.05))
    rows, columns = (
        [nearest(points, of) for of in axes]
        for points, axes in (
            (latitude, (source.latitude, target.latitude)),
            (longitude, (source.longitude, target.longitude)),
        )
    )
    everywhere = values.astype(np.float64)[rows[0]][:, columns[0]]
    cells = (rows[1][:, None] * target.shape[1] + columns[1]).ravel()
    weights = np.broadcast_to(areas[:, None], everywhere.shape)
    total, area = (
        np.bincount(cells, what.ravel(), target.points) for what in (everywhere * weights, weights)
    )
    return (total / area).reshape(target.shape)


def nearest(points: np.ndarray, axis: np.ndarray) -> np.ndarray:
    distance = np.abs(points[:, None] - axis) % 360
    return np.minimum(distance, 360 - distance).argmin(axis=1)


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=str)
def test_means_are_those_of_a_brute_force(
    source: LatLonGrid, target: LatLonGrid, rng: np.random.Generator
) -> None:
    values = rng.standard_normal(source.shape).astype(np.float32)
    expected = by_brute_force(values, source, target)
    np.testing.assert_allclose(AreaMean(source, target).apply(values), expected, atol=2e-6)


@pytest.mark.parametrize(("source", "target"), ANY_PAIRS, ids=str)
def test_the_global_mean_is_conserved_and_constants_stay(
    source: LatLonGrid, target: LatLonGrid, rng: np.random.Generator
) -> None:
    mean = AreaMean(source, target)
    values = rng.standard_normal(source.shape).astype(np.float32) + 3
    before, after = (
        np.sum(field * grid.cell_areas()) for field, grid in ((values, source), (mean.apply(values), target))
    )
    # Rows of Gaussian grids end a little before the pole: what they conserve is the mean of what they cover.
    assert after == pytest.approx(before, abs=1e-6 if source.reaches_poles else 1e-4)
    np.testing.assert_allclose(mean.apply(np.full(source.shape, 7, np.float32)), 7, rtol=1e-6)
    assert mean.apply(values).min() >= values.min()
    assert mean.apply(values).max() <= values.max()


def test_a_polar_cell_is_the_share_of_the_cap_around_its_pole() -> None:
    source, target = product_grid(20), backbone_grid(20)
    values = np.zeros(source.shape, np.float32)
    values[0] = 1
    result = AreaMean(source, target).apply(values)
    caps = [1 - np.cos(np.deg2rad(radius)) for radius in (0.9, 2.5)]
    np.testing.assert_allclose(result[0], caps[0] / caps[1], rtol=1e-5)
    assert not result[1:].any()


def test_a_cell_across_the_dateline_takes_both_sides() -> None:
    source, target = product_grid(20), backbone_grid(20)
    values = np.zeros(source.shape, np.float32)
    values[:, 0] = 1
    result = AreaMean(source, target).apply(values)
    np.testing.assert_allclose(result[:, 0], 1.8 / 5, rtol=1e-5)
    assert not result[:, 1:].any()


def test_leading_axes_are_fields_of_their_own(rng: np.random.Generator) -> None:
    mean = AreaMean(product_grid(80), backbone_grid(80))
    values = rng.standard_normal((2, 3, *mean.source.shape)).astype(np.float32)
    found = mean.apply(values)
    assert found.shape == (2, 3, *mean.target.shape)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[1, 2], mean.apply(values[1, 2]), atol=1e-6)


def test_what_is_not_of_the_whole_globe_is_refused() -> None:
    cut = LatLonGrid(np.linspace(60, 30, 7), np.arange(0.0, 90, 5), "Europe")
    with pytest.raises(ValueError, match="area means need global grids; Europe 7 x 18 is not"):
        AreaMean(cut, backbone_grid(20))
    with pytest.raises(ValueError, match=r"shape \(101, 200\); got \(37, 72\)"):
        AreaMean(product_grid(20), backbone_grid(20)).apply(np.zeros((37, 72), np.float32))
