"""Significance: the inflation of known processes, and intervals that hold what they promise."""

from datetime import datetime, timedelta

import numpy as np
import pytest
from scipy import stats

from fengwu_ghr.verify.significance import (
    can_tell_autocorrelation,
    inflation,
    is_followed,
    reach_of_block_means,
    reach_of_mean,
    sidak,
    spacing,
)

START, DAY = datetime(2020, 1, 1), timedelta(days=1)


def times(count: int) -> list[datetime]:
    return [START + i * DAY for i in range(count)]


def autoregressive(phi1: float, phi2: float, count: int, rng: np.random.Generator) -> np.ndarray:
    noise, values = rng.standard_normal(count + 200), np.zeros(count + 200)
    for i in range(2, values.size):
        values[i] = phi1 * values[i - 1] + phi2 * values[i - 2] + noise[i]
    return values[200:]


def test_independent_dates_give_students_t(rng: np.random.Generator) -> None:
    values = rng.standard_normal(60) + 0.3
    factor = inflation(values - values.mean(), is_followed(times(60)))
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert reach_of_mean(values, times(60)) == pytest.approx(factor * (high - low) / 2, rel=1e-9)
    assert 1 <= factor < 1.5


@pytest.mark.parametrize(("phi1", "phi2"), [(0.5, 0.0), (0.4, 0.3), (0.8, -0.2)])
def test_the_inflation_is_that_of_the_process(phi1: float, phi2: float, rng: np.random.Generator) -> None:
    """The variance of means of long stretches, measured, over that of independent values."""
    values = autoregressive(phi1, phi2, 400_000, rng)
    means = values.reshape(-1, 1000).mean(axis=1)
    expected = np.sqrt(means.var() * 1000 / values.var())
    found = inflation(values - values.mean(), is_followed(times(values.size)))
    assert found == pytest.approx(expected, rel=0.1)


def test_intervals_hold_the_truth_as_often_as_they_say(rng: np.random.Generator) -> None:
    walks = [autoregressive(0.5, 0.1, 180, rng) for _ in range(400)]
    inside = [abs(values.mean()) <= reach_of_mean(values, times(180)) for values in walks]
    assert 0.90 <= np.mean(inside) <= 0.98


@pytest.mark.parametrize("dates", [6, 10, 29])
def test_few_dates_do_not_win_by_chance(dates: int, rng: np.random.Generator) -> None:
    """Of 400 independent targets without any difference, at the level of all of them together."""
    differences = rng.standard_normal((dates, 400))
    reach = reach_of_block_means(differences, block=1, level=sidak(0.95, 400))
    assert (np.abs(differences.mean(axis=0)) > reach).sum() <= 1


def test_too_few_blocks_decide_nothing(rng: np.random.Generator) -> None:
    assert np.isinf(reach_of_block_means(rng.standard_normal((5, 3)), block=1, level=0.95)).all()
    assert np.isinf(reach_of_block_means(rng.standard_normal((17, 3)), block=3, level=0.95)).all()
    assert np.isfinite(reach_of_block_means(rng.standard_normal((18, 3)), block=3, level=0.95)).all()


def test_a_gap_parts_the_series() -> None:
    """Alike within each half, unlike across the gap, which does not count."""
    dates = [*times(3), *(START + i * DAY for i in (10, 11, 12))]
    assert is_followed(dates).tolist() == [True, True, False, True, True, False]
    assert spacing(dates) == DAY
    anomalies = np.array([1.0, 1, 1, -1, -1, -1])
    assert inflation(anomalies, is_followed(dates)) == 20
    assert inflation(anomalies, is_followed(times(6))) < 3


def test_uneven_dates_cannot_tell_autocorrelation() -> None:
    """00 and 06 UTC of every day: no date is followed twice by the usual step."""
    uneven = [START + i * DAY + hours * DAY / 4 for i in range(40) for hours in (0, 1)]
    assert not can_tell_autocorrelation(uneven)
    assert can_tell_autocorrelation(times(30))
    with pytest.raises(ValueError, match="follow each other evenly; of 80 there are fewer"):
        reach_of_mean(np.zeros(80), uneven)
    with pytest.raises(ValueError, match="of 29 there are fewer"):
        reach_of_mean(np.zeros(29), times(29))
    with pytest.raises(ValueError, match="must be finite"):
        reach_of_mean(np.full(30, np.nan), times(30))


def test_a_constant_difference_is_certain_and_a_random_walk_tells_nothing(rng: np.random.Generator) -> None:
    assert reach_of_mean(np.full(40, -0.5), times(40)) == 0
    walk = np.cumsum(rng.standard_normal(200)) + 5
    assert inflation(walk - walk.mean(), is_followed(times(200))) > 3


def test_many_tests_need_a_higher_level_each() -> None:
    assert sidak(0.95, 1) == 0.95
    assert sidak(0.95, 100) ** 100 == pytest.approx(0.95)
