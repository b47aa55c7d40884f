"""Events: hand-worked tables, and what must hold whatever the fields."""

import numpy as np
import pytest

from fengwu_ghr.grid import product_grid
from fengwu_ghr.verify import events
from fengwu_ghr.verify.events import EVENT_SCORES, Threshold, event_sums, passes
from fengwu_ghr.verify.regions import Regions
from fengwu_ghr.verify.statistics import Sums

# 50 hits, 30 false alarms, 20 misses, 900 correct rejections.
FINLEY_LIKE = Sums(
    np.ones((1, 1)),
    {
        "hit": np.array([[0.05]]),
        "false_alarm": np.array([[0.03]]),
        "miss": np.array([[0.02]]),
        "correct_rejection": np.array([[0.90]]),
    },
)


def test_scores_of_a_table_by_hand() -> None:
    """H = 50/70, F = 30/930; hits by chance 80 x 70 / 1000 = 5.6."""
    expected = {
        "CSI": 50 / 100,
        "HSS": 2 * (50 * 900 - 30 * 20) / (70 * 920 + 80 * 930),
        "ETS": (50 - 5.6) / (100 - 5.6),
        "frequency bias": 80 / 70,
        "SEDI": 0.846_63,
    }
    f, h = 30 / 930, 50 / 70
    logs = np.log([f, h, 1 - f, 1 - h])
    expected["SEDI"] = (logs[0] - logs[1] - logs[2] + logs[3]) / logs.sum()
    for name, score in EVENT_SCORES.items():
        assert score(FINLEY_LIKE)[0] == pytest.approx(expected[name], rel=1e-12), name


def test_points_count_by_their_area() -> None:
    """The pole rows of a grid are 3e-4 of the sphere, however many points they have."""
    grid = product_grid(20)
    forecast = np.zeros((1, *grid.shape), bool)
    forecast[0, [0, -1]] = True
    sums = event_sums(forecast, np.ones_like(forecast), regions=Regions.globe(grid))
    cap = 1 - np.sin(np.deg2rad(90 - 0.9))
    assert sums.sums["hit"][0] == pytest.approx(cap, rel=1e-9)
    assert sum(value[0] for value in sums.sums.values()) == pytest.approx(1)


def test_a_perfect_forecast_and_one_without_skill(rng: np.random.Generator) -> None:
    grid = product_grid(20)
    truth = rng.random((1, *grid.shape)) < 0.3
    perfect = event_sums(truth, truth, regions=Regions.globe(grid))[None]
    for name in ("CSI", "HSS", "ETS", "frequency bias"):
        assert EVENT_SCORES[name](perfect)[0] == pytest.approx(1), name
    assert np.isnan(EVENT_SCORES["SEDI"](perfect)[0])
    random = event_sums(rng.random(truth.shape) < 0.3, truth, regions=Regions.globe(grid))[None]
    for name in ("HSS", "ETS", "SEDI"):
        assert EVENT_SCORES[name](random)[0] == pytest.approx(0, abs=0.05), name


def test_tables_of_dates_are_pooled(rng: np.random.Generator) -> None:
    """The score of two dates is that of all their points, not the mean of two scores."""
    globe = Regions.globe(product_grid(20))
    fields = rng.random((2, 2, 1, *globe.grid.shape)) < np.array([0.2, 0.6])[:, None, None, None, None]
    both = [event_sums(*pair, regions=globe) for pair in fields]
    dated = Sums(
        np.stack([s.weight for s in both]), {n: np.stack([s.sums[n] for s in both]) for n in events.CELLS}
    )
    whole = Sums(
        both[0].weight + both[1].weight, {n: both[0].sums[n] + both[1].sums[n] for n in events.CELLS}
    )
    for score in EVENT_SCORES.values():
        assert score(dated)[0] == score(whole[None])[0]


def test_an_event_that_never_was_has_no_score() -> None:
    nothing = Sums(np.ones((1, 1)), {name: np.zeros((1, 1)) for name in events.CELLS})
    nothing.sums["correct_rejection"][:] = 1
    for name, score in EVENT_SCORES.items():
        assert np.isnan(score(nothing)[0]), name


def test_thresholds_read_as_they_are() -> None:
    values = np.array([[1.0, 2.0, 3.0]], np.float32)
    assert passes(values, Threshold("2t", 2.0), 2.0).tolist() == [[False, True, True]]
    assert passes(values, Threshold("2t", 2.0, above=False), 2.0).tolist() == [[True, True, False]]
    assert str(Threshold("2t", 95, is_percentile=True)) == "2t >= its 95th percentile"
    assert str(Threshold("msl", 97000, above=False)) == "msl <= 97000"
