"""SEEPS: the matrix of the paper, and what constant and random forecasts score."""

import numpy as np
import pytest

from fengwu_ghr.grid import LatLonGrid
from fengwu_ghr.verify.rain import category, is_scored, seeps, seeps_of, seeps_sums
from fengwu_ghr.verify.regions import Regions


def test_categories_begin_above_their_limits() -> None:
    rain = np.array([0, 0.25, 0.26, 5, 5.1], np.float32)
    assert category(rain, np.full(5, 5, np.float32)).tolist() == [0, 0, 1, 1, 2]


def test_the_matrix_by_hand() -> None:
    """p1 = 0.4, so p3 = 0.2: half of 1/0.6, 5 + 1/0.6, 2.5, 5, 2.5 + 1.25, 1.25."""
    pairs = [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (0, 0), (1, 1), (2, 2)]
    expected = [0.8333333, 3.3333333, 1.25, 2.5, 1.875, 0.625, 0, 0, 0]
    found = seeps_of(*np.array(pairs).T, np.full(9, 0.4))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("p1", [0.1, 0.4, 0.85])
@pytest.mark.parametrize("forecast", [0, 1, 2])
def test_constant_forecasts_score_one(p1: float, forecast: int) -> None:
    """Weighed by how often each category comes: p1, 2 (1 - p1) / 3, (1 - p1) / 3."""
    chances = np.array([p1, 2 * (1 - p1) / 3, (1 - p1) / 3])
    scores = seeps_of(np.full(3, forecast), np.arange(3), np.full(3, p1))
    assert chances @ scores == pytest.approx(1)


def test_places_count_by_area_where_their_climate_allows() -> None:
    grid = LatLonGrid(np.array([0.0]), np.arange(4) * 90.0)
    parts = Regions(grid, {}, {"parts": np.array([[0.4, 0.8, 1.2, 1.6]], np.float32)})
    sums = seeps_sums(
        np.array([[0, 0, 10, 0]], np.float32),
        np.array([[0, 10, 0, np.nan]], np.float32),
        dry_share=np.array([[0.4, 0.4, 0.9, 0.4]], np.float32),
        heavy_limit=np.full((1, 4), 5, np.float32),
        regions=parts,
    )
    assert sums.weight.item() == pytest.approx(0.3)
    assert seeps(sums[None]).item() == pytest.approx(0.2 * 3.3333333 / 0.3)


def test_too_dry_and_too_wet_places_are_not_scored() -> None:
    found = is_scored(np.array([0.05, 0.1, 0.85, 0.9, np.nan], np.float32))
    assert found.tolist() == [False, True, True, False, False]
