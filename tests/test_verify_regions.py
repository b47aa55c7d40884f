"""Regions: areas of boxes on the sphere by closed formula, whatever the grid."""

import numpy as np
import pytest

from fengwu_ghr.errors import UsageError
from fengwu_ghr.grid import LatLonGrid, product_grid, regular_grid
from fengwu_ghr.verify.regions import BOXES, Box, Regions

GRIDS = [product_grid(20), product_grid(80), regular_grid(1.5)]


def area(box: Box) -> float:
    """(sin north - sin south) / 2 times the share of the circle."""
    width = (box.east - box.west) % 360 or 360
    return float(np.diff(np.sin(np.deg2rad([box.south, box.north])))[0] / 2 * width / 360)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", BOXES)
def test_areas_are_those_on_the_sphere(grid: LatLonGrid, name: str) -> None:
    found = Regions.named(grid, [name]).weights(name)
    assert found.sum() == pytest.approx(area(BOXES[name]), rel=1e-9)
    assert (found >= 0).all()
    assert (found <= grid.cell_areas() * (1 + 1e-12)).all()


def test_the_globe_is_every_cell() -> None:
    grid = product_grid(20)
    np.testing.assert_allclose(Regions.globe(grid).weights("globe"), grid.cell_areas(), rtol=1e-12)


def test_the_extratropics_and_the_tropics_are_the_globe() -> None:
    grid = product_grid(20)
    parts = Regions.named(grid, ["northern extratropics", "tropics", "southern extratropics"])
    np.testing.assert_allclose(sum(map(parts.weights, parts.names)), grid.cell_areas(), rtol=1e-9)


@pytest.mark.parametrize("west", [-180, -37.3, 0, 175, 200])
def test_a_box_may_begin_anywhere(west: float) -> None:
    grid = product_grid(20)
    box = Box(-10, 35, west, (west + 40 + 180) % 360 - 180)
    regions = Regions.named(grid, ["box"], boxes={"box": box})
    assert regions.weights("box").sum() == pytest.approx(area(box), rel=1e-9)
    assert regions.areas == pytest.approx(area(box), rel=1e-9)


def test_land_and_sea_are_shares_of_cells() -> None:
    grid = product_grid(20)
    land = np.zeros(grid.shape, np.float32)
    land[:50] = 0.25
    found = Regions.named(grid, ["land", "sea"], land=land)
    np.testing.assert_allclose(sum(map(found.weights, found.names)), grid.cell_areas(), rtol=1e-6)
    assert found.areas[0] == pytest.approx(0.25 * grid.cell_areas()[:50].sum())


def test_sums_are_those_of_values_times_weights(rng: np.random.Generator) -> None:
    grid = product_grid(20)
    mask = rng.random(grid.shape).astype(np.float32)
    regions = Regions.named(grid, [*BOXES, "land", "lakes"], land=mask, masks={"lakes": mask**2})
    values = rng.standard_normal((3, *grid.shape))
    parts = [slice(0, 40), slice(40, None)]
    found = sum(regions.sums(values[:, rows], rows) for rows in parts)
    expected = np.einsum("sij,rij->sr", values, np.stack([regions.weights(name) for name in regions.names]))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert regions.names == (*BOXES, "land", "lakes")


def test_a_limited_grid_has_the_part_it_covers() -> None:
    grid = LatLonGrid(np.arange(60.0, 30, -1), np.arange(-20.0, 30), "area")
    inside = Regions.named(grid, ["box"], boxes={"box": Box(40.5, 50.5, -10.5, 9.5)}).weights("box")
    assert np.count_nonzero(inside) == 10 * 20


def test_what_is_no_region_is_refused() -> None:
    grid = product_grid(80)
    for ask, words in (
        (lambda: Regions.named(grid, ["Atlantis"]), "no region is named 'Atlantis'; there are globe"),
        (lambda: Regions.named(grid, ["land"]), "named 'land': it needs a land mask"),
        (lambda: Box(10, 5), "south 10, north 5"),
        (lambda: Box(5, 10, 20, 20), "two different longitudes"),
        (
            lambda: Regions.named(
                LatLonGrid(np.arange(60.0, 30, -1), np.arange(10.0, 30)), ["southern extratropics"]
            ),
            "has no area",
        ),
    ):
        with pytest.raises(UsageError, match=words):
            ask()
