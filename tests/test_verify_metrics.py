"""Metrics: hand-worked scores, the identity that ties them together, shares and intervals of known size."""

from dataclasses import astuple
from functools import reduce

import numpy as np
import pytest

from fengwu_ghr.grid import LatLonGrid, product_grid
from fengwu_ghr.verify import metrics
from fengwu_ghr.verify.metrics import Share, bootstrap, share_won
from fengwu_ghr.verify.regions import Regions
from fengwu_ghr.verify.statistics import ANOMALIES, ERRORS, Sums, state_sums

GRID = product_grid(80)
GLOBE = Regions.globe(GRID)
HALVES = LatLonGrid(np.array([0.0]), np.array([0.0, 180]))
PARTS = Regions(HALVES, {}, {"parts": np.array([[0.5, 1.5]], np.float32)})


def dated(*sums: Sums) -> Sums:
    """Sums per channel of several dates, at one lead: (date, lead, channel)."""
    names = sums[0].names
    return Sums(
        np.stack([s.weight for s in sums])[:, None],
        {name: np.stack([s.sums[name] for s in sums])[:, None] for name in names},
    )


def two_points(forecast: list[float], truth: list[float], climatology: list[float]) -> Sums:
    """One channel, two points of a quarter and three quarters of the area."""
    shaped = (np.array(v, np.float32).reshape(1, 1, 2) for v in (forecast, truth, climatology))
    return state_sums(*shaped, regions=PARTS)[:, 0]


def random_dates(rng: np.random.Generator, dates: int = 4) -> Sums:
    shape = (2, *GRID.shape)
    fields = (
        [(rng.standard_normal(shape) * k + k).astype(np.float32) for k in (1, 2, 3)] for _ in range(dates)
    )
    return dated(*(state_sums(*triple, regions=GLOBE)[:, 0] for triple in fields))


def test_scores_by_hand() -> None:
    # Date 1: errors 1, 3; anomalies f 4, 0, o 3, -3. Date 2: errors 7, 7; anomalies f 7, 3, o 0, -4.
    sums = dated(two_points([4, 0], [3, -3], [0, 0]), two_points([8, 4], [1, -3], [1, 1]))
    # <e²> = .25 + 6.75 = 7, then 49; <|e|> = 2.5, then 7
    assert metrics.rmse(sums) == pytest.approx(np.sqrt(28))
    assert metrics.mae(sums) == pytest.approx(4.75)
    assert metrics.bias(sums) == pytest.approx(4.75)
    # o'²: .25 * 9 + .75 * 9 = 9, then .75 * 16 = 12
    assert metrics.rmse_of_climatology(sums) == pytest.approx(np.sqrt(10.5))
    # The standard deviation over two points is their difference times sqrt(.25 * .75).
    assert metrics.forecast_activity(sums) == pytest.approx(4 * np.sqrt(3) / 4)
    assert metrics.truth_activity(sums) == pytest.approx((6 + 4) / 2 * np.sqrt(3) / 4)
    assert metrics.activity_ratio(sums) == pytest.approx(4 / 5)
    assert metrics.acc(sums) == pytest.approx(1)
    # f'o' = .25 * 12 = 3 over sqrt(4 * 9); then .75 * -12 = -9 over sqrt((12.25 + 6.75) * 12)
    assert metrics.acc_wb2(sums) == pytest.approx((3 / 6 - 9 / np.sqrt(19 * 12)) / 2)


def test_rmse_takes_the_root_last_and_acc_the_mean_over_dates_last() -> None:
    good = two_points([1, -1], [1, -1], [0, 0])
    bad = two_points([100, -100], [-100, 100], [0, 0])
    sums = dated(good, bad)
    assert metrics.rmse(sums) == pytest.approx(np.sqrt(200**2 / 2))
    assert metrics.acc(sums) == pytest.approx(0, abs=1e-12)  # 1 and -1, however large the second


def test_centred_mse_identity(rng: np.random.Generator) -> None:
    each = random_dates(rng)
    for date in range(4):
        sums = each[date : date + 1]
        centred = metrics.rmse(sums) ** 2 - metrics.bias(sums) ** 2
        f, o, r = metrics.forecast_activity(sums), metrics.truth_activity(sums), metrics.acc(sums)
        np.testing.assert_allclose(centred, f**2 + o**2 - 2 * f * o * r, rtol=1e-12)
        assert (np.abs(r) < 0.99).all()


def test_acc_of_a_known_mixture(rng: np.random.Generator) -> None:
    """f' = a o' + b n with o' and n of variance one and uncorrelated: ACC = a / sqrt(a² + b²)."""
    longitude = np.deg2rad(GRID.longitude)
    signal, noise = (
        np.broadcast_to(np.sqrt(2) * w, GRID.shape) for w in (np.cos(longitude), np.sin(longitude))
    )
    truth, forecast = (v[None].astype(np.float32) for v in (signal, 0.6 * signal + 0.3 * noise + 5))
    sums = dated(state_sums(forecast, truth, np.zeros_like(truth), regions=GLOBE)[:, 0])
    assert metrics.acc(sums) == pytest.approx(2 / np.sqrt(5), rel=1e-6)
    assert metrics.activity_ratio(sums) == pytest.approx(np.sqrt(0.45), rel=1e-6)
    # The uncentred one counts the offset of 5 as unlike.
    assert metrics.acc_wb2(sums) == pytest.approx(0.6 / np.sqrt(0.45 + 25), rel=1e-6)


def test_perfect_and_climatological_forecasts(rng: np.random.Generator) -> None:
    truth, climatology = (rng.standard_normal((2, 2, *GRID.shape))).astype(np.float32)
    perfect = dated(state_sums(truth, truth, climatology, regions=GLOBE)[:, 0])
    assert not metrics.rmse(perfect).any()
    np.testing.assert_allclose(metrics.acc(perfect), 1)
    np.testing.assert_allclose(metrics.activity_ratio(perfect), 1)
    normal = dated(state_sums(climatology, truth, climatology, regions=GLOBE)[:, 0])
    np.testing.assert_array_equal(metrics.rmse(normal), metrics.rmse_of_climatology(normal))
    assert not metrics.forecast_activity(normal).any()
    assert np.isnan(metrics.acc(normal)).all()  # no anomaly, no correlation


def test_order_of_dates_is_irrelevant_and_missing_dates_count_for_nothing(rng: np.random.Generator) -> None:
    sums = random_dates(rng)
    names = ERRORS + ANOMALIES
    gap = Sums.zeros(names, (1, 1, 2))
    parts = [sums[3:4], gap, sums[1:2], sums[0:1], sums[2:3]]
    mixed = Sums(
        np.concatenate([p.weight for p in parts]),
        {name: np.concatenate([p.sums[name] for p in parts]) for name in names},
    )
    for score in (metrics.rmse, metrics.bias, metrics.acc, metrics.acc_wb2, metrics.activity_ratio):
        np.testing.assert_allclose(score(mixed), score(sums), rtol=1e-12)
    for score in (metrics.rmse, metrics.acc, metrics.forecast_activity):
        assert np.isnan(score(gap)).all()


def test_pooled_scores_follow_from_sums_of_dates(rng: np.random.Generator) -> None:
    sums = random_dates(rng)
    pooled = reduce(Sums.__add__, (sums[date] for date in range(4)))
    np.testing.assert_allclose(metrics.rmse(pooled[None]), metrics.rmse(sums), rtol=1e-12)


def test_a_forecast_that_blew_up_shows_in_every_score(rng: np.random.Generator) -> None:
    forecast, truth, climatology = rng.standard_normal((3, 2, *GRID.shape)).astype(np.float32)
    forecast[0] = np.inf
    broken = dated(*[state_sums(f, truth, climatology, regions=GLOBE)[:, 0] for f in (forecast, truth)])
    for score in (metrics.rmse, metrics.bias, metrics.acc, metrics.acc_wb2, metrics.activity_ratio):
        assert not np.isfinite(score(broken)[0, 0])
        assert np.isfinite(score(broken)[0, 1])


def test_share_won_by_hand() -> None:
    ours, theirs = np.array([[1.0, 2.0, 3.0], [1.0, 5.0, 2.0]]), np.array([[2.0, 2.0, 2.0], [3.0, 6.0, 3.0]])
    ratio = np.array([[0.9, 0.9, 0.9], [0.79, 0.8, 1.2]])
    share = share_won(ours, theirs, activity_ratio=ratio)
    assert astuple(share) == (6, 4, 1)  # a tie is not won
    assert share.share == pytest.approx(4 / 6)
    assert share.share_without_starred == pytest.approx(3 / 6)
    assert str(share) == "66.7% (4 of 6, 1 of them starred)"
    left = np.array([[True, True, False], [False, False, False]])
    assert share_won(ours, theirs, activity_ratio=ratio, targets=left) == Share(2, 1, 0)


def test_a_share_of_nothing_or_of_nan_is_refused() -> None:
    one, nan = np.ones((1, 2)), np.array([[1.0, np.nan]])
    for ours, theirs, ratio in ((nan, one, one), (one, nan, one), (one, one, nan)):
        with pytest.raises(ValueError, match="of 2 targets 1 have none"):
            share_won(ours, theirs, activity_ratio=ratio)
        assert share_won(ours, theirs, activity_ratio=ratio, targets=np.array([[True, False]])).targets == 1
    with pytest.raises(ValueError, match="of 0 targets"):
        share_won(one, one, activity_ratio=one, targets=np.zeros((1, 2), bool))


def series(values: np.ndarray) -> Sums:
    return Sums(np.ones((values.size, 1, 1)), {"error": values.reshape(-1, 1, 1)})


def width(sums: Sums, **options: int) -> float:
    interval = bootstrap(metrics.bias, sums, **options)
    return float((interval.upper - interval.lower)[0, 0])


def test_interval_of_independent_dates_is_the_textbook_one(rng: np.random.Generator) -> None:
    values = rng.standard_normal(200)
    interval = bootstrap(metrics.bias, series(values), block=1, samples=2000)
    half = 1.96 * values.std() / np.sqrt(200)
    assert interval.lower[0, 0] == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert interval.upper[0, 0] == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_blocks_widen_the_interval_of_correlated_dates(rng: np.random.Generator) -> None:
    values = np.convolve(rng.standard_normal(407), np.ones(8))[7:407]  # each date like its seven neighbours
    assert width(series(values), block=24) > 1.6 * width(series(values), block=1)


def test_interval_is_reproducible_and_paired(rng: np.random.Generator) -> None:
    first = series(rng.standard_normal(30))
    second = series(first.sums["error"].ravel() + 0.25)
    once, again, other = (bootstrap(metrics.bias, first, block=3, seed=s, samples=50) for s in (1, 1, 2))
    np.testing.assert_array_equal(once.lower, again.lower)
    assert once.lower != other.lower
    difference = bootstrap(lambda a, b: metrics.bias(b) - metrics.bias(a), first, second, block=3, samples=50)
    np.testing.assert_allclose([difference.lower, difference.upper], 0.25)
    with pytest.raises(ValueError, match=r"at least a block of 31, is needed; got \[30\]"):
        bootstrap(metrics.bias, first, block=31)
    with pytest.raises(ValueError, match=r"got \[30, 29\]"):
        bootstrap(metrics.bias, first, second[1:], block=1)
