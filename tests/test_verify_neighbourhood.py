"""The fractions skill score: hand-worked neighbourhoods, and what must hold wherever the pattern lies."""

import numpy as np
import pytest

from fengwu_ghr.grid import LatLonGrid, product_grid
from fengwu_ghr.verify.neighbourhood import fraction_sums, fractions_of, fss
from fengwu_ghr.verify.regions import Regions

GRID = product_grid(20)


def scored(forecast: np.ndarray, truth: np.ndarray, kilometres: float, grid: LatLonGrid = GRID) -> float:
    sums = fraction_sums(forecast[None], truth[None], kilometres=kilometres, regions=Regions.globe(grid))
    return float(fss(sums[None]).item())


def test_fractions_of_a_point_by_hand() -> None:
    """Near the equator, 1000 km: two columns and rows of 1.8 degrees (200 km) on either side."""
    events = np.zeros(GRID.shape, bool)
    events[50, 100] = True
    found = fractions_of(events[None], GRID, kilometres=1000)[0]
    assert found[50, 100] == pytest.approx(1 / 25, rel=2e-3)
    assert np.count_nonzero(found) == 25
    assert found[48:53, 98:103].min() == pytest.approx(1 / 25, rel=5e-3)


def test_boxes_are_wider_in_columns_towards_the_poles() -> None:
    events = np.zeros(GRID.shape, bool)
    events[17, 0] = True  # 59.4 N: a column is half as wide
    found = fractions_of(events[None], GRID, kilometres=1000)[0]
    assert np.flatnonzero(found[17]).tolist() == [0, 1, 2, 3, 4, 196, 197, 198, 199]
    assert np.isfinite(fractions_of(np.ones((1, *GRID.shape), bool), GRID, kilometres=3000)).all()


def test_an_event_everywhere_fills_every_box() -> None:
    everywhere = np.ones((1, *GRID.shape), bool)
    np.testing.assert_allclose(fractions_of(everywhere, GRID, kilometres=2500), 1, rtol=1e-12)


def test_the_score_forgives_what_is_near(rng: np.random.Generator) -> None:
    truth = np.zeros(GRID.shape, bool)
    truth[40:60:10, 20:180:20] = True
    forecast = np.roll(truth, 2, axis=1)
    scores = [scored(forecast, truth, km) for km in (100, 1000, 2000, 4000)]
    assert scores[0] == 0
    assert scores == sorted(scores)
    assert scores[-1] > 0.7
    assert scored(truth, truth, 1000) == 1


def test_longitude_has_no_beginning(rng: np.random.Generator) -> None:
    forecast, truth = (rng.random(GRID.shape) < 0.1 for _ in range(2))
    shifted = (np.roll(field, 77, axis=1) for field in (forecast, truth))
    assert scored(*shifted, 1500) == pytest.approx(scored(forecast, truth, 1500), rel=1e-12)


def test_a_limited_area_ends_at_its_edges() -> None:
    grid = LatLonGrid(np.arange(5.0, -6, -1), np.arange(10.0, 31), "area")
    events = np.zeros((1, *grid.shape), bool)
    events[0, :, 0] = True
    found = fractions_of(events, grid, kilometres=350)  # one column on either side
    np.testing.assert_allclose(found[0, :, 0], 1 / 2, rtol=1e-12)
    np.testing.assert_allclose(found[0, :, 1], 1 / 3, rtol=1e-12)
    assert not found[0, :, 2:].any()


def test_no_event_has_no_score() -> None:
    nothing = np.zeros(GRID.shape, bool)
    assert np.isnan(scored(nothing, nothing, 500))
