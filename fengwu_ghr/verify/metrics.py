"""Metrics: scores as functions of the means of statistics, with intervals over dates and shares of targets won.

Every score takes sums with the dates on the first axis, as `DatedSums.stacked` gives them, and returns the other axes
(lead, channel): so it can be resampled over dates. Below, f is the forecast, o the truth, c the climatology, < > the
area mean, [ ] the mean over dates; f' = f - c, o' = o - c.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import numpy as np
from jaxtyping import Bool, Float64, Int64

from fengwu_ghr.verify.statistics import Sums

STAR_BELOW = 0.8
"""A target won with less than this share of the truth's activity is starred: smoothing alone may have won it."""


def rmse(dated: Sums) -> Float64[np.ndarray, "*axes"]:
    """sqrt([<(f - o)²>]): the root is taken after the mean over dates (WMO-No. 485, appendix 2.2.34)."""
    return np.sqrt(dated.total().mean("squared_error"))


def rmse_of_climatology(dated: Sums) -> Float64[np.ndarray, "*axes"]:
    """sqrt([<(c - o)²>]): the RMSE that climatology has as a forecast, of the same truth at the same points."""
    return np.sqrt(dated.total().mean("squared_truth_anomaly"))


def mae(dated: Sums) -> Float64[np.ndarray, "*axes"]:
    """[<|f - o|>]."""
    return dated.total().mean("absolute_error")


def bias(dated: Sums) -> Float64[np.ndarray, "*axes"]:
    """[<f - o>]: positive where the forecast is too high."""
    return dated.total().mean("error")


def forecast_activity(dated: Sums) -> Float64[np.ndarray, "*axes"]:
    """[sqrt(<f'²> - <f'>²)]: the standard deviation of the forecast's anomaly, per date and then averaged."""
    return _date_mean(_deviation(dated, "forecast"), dated)


def truth_activity(dated: Sums) -> Float64[np.ndarray, "*axes"]:
    """[sqrt(<o'²> - <o'>²)]: what `forecast_activity` of a perfect forecast would be."""
    return _date_mean(_deviation(dated, "truth"), dated)


def activity_ratio(dated: Sums) -> Float64[np.ndarray, "*axes"]:
    """Activity of the forecast over that of the truth: below 1 the forecast is too smooth. NaN for 0 / 0."""
    return _ratio(forecast_activity(dated), truth_activity(dated))


def acc(dated: Sums) -> Float64[np.ndarray, "*axes"]:
    """[(<f' o'> - <f'><o'>) / (SDf SDo)]: the centred anomaly correlation, per date and then averaged (WMO-No. 485).

    Per date, <(f - o)²> - <f - o>² = SDf² + SDo² - 2 SDf SDo ACC (Murphy and Epstein 1989). NaN where an anomaly has
    no variance.
    """
    with np.errstate(invalid="ignore"):
        means = dated.mean("forecast_anomaly") * dated.mean("truth_anomaly")
        covariance = dated.mean("anomaly_product") - means
    return _date_mean(_ratio(covariance, _deviation(dated, "forecast") * _deviation(dated, "truth")), dated)


def acc_wb2(dated: Sums) -> Float64[np.ndarray, "*axes"]:
    """[<f' o'> / sqrt(<f'²> <o'²>)]: the uncentred anomaly correlation of WeatherBench 2 (Rasp et al. 2024)."""
    norms = np.sqrt(dated.mean("squared_forecast_anomaly")) * np.sqrt(dated.mean("squared_truth_anomaly"))
    return _date_mean(_ratio(dated.mean("anomaly_product"), norms), dated)


@dataclass(frozen=True)
class Share:
    """How many targets (a lead of a channel) one forecast wins; `starred` of those `won` by too smooth a forecast."""

    targets: int
    won: int
    starred: int

    @property
    def share(self) -> float:
        return self.won / self.targets

    @property
    def share_without_starred(self) -> float:
        return (self.won - self.starred) / self.targets

    def __str__(self) -> str:
        stars = f", {self.starred} of them starred" if self.starred else ""
        return f"{self.share:.1%} ({self.won} of {self.targets}{stars})"


def share_won(
    rmse_ours: Float64[np.ndarray, "*axes"],
    rmse_theirs: Float64[np.ndarray, "*axes"],
    *,
    activity_ratio: Float64[np.ndarray, "*axes"],
    targets: Bool[np.ndarray, "*axes"] | None = None,
) -> Share:
    """The share of `targets` (all, where not given) with a strictly smaller RMSE; a tie is not won.

    `activity_ratio` is ours: wins with a ratio below STAR_BELOW are starred. Raises ValueError when there is no
    target, or when a number of a target is not finite.
    """
    chosen = np.ones(rmse_ours.shape, bool) if targets is None else targets
    ours, theirs, ratio = rmse_ours[chosen], rmse_theirs[chosen], activity_ratio[chosen]
    broken = int(np.sum(~np.isfinite(ours + theirs + ratio)))
    if broken or ours.size == 0:
        raise ValueError(f"targets need finite scores; of {ours.size} targets {broken} have none")
    won = ours < theirs
    return Share(ours.size, int(won.sum()), int((won & (ratio < STAR_BELOW)).sum()))


@dataclass(frozen=True)
class Interval:
    lower: Float64[np.ndarray, "*axes"]
    upper: Float64[np.ndarray, "*axes"]


def bootstrap(
    score: Callable[..., Float64[np.ndarray, "*axes"] | float],
    *dated: Sums,
    block: int,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The central interval of `score(*dated)` over resampled dates, at this confidence level.

    All `dated` are resampled alike, so that differences are paired. Blocks of successive dates are drawn
    (Künsch 1989, Ann. Statist. 17), because neighbouring dates are alike: `block` times their spacing should exceed
    some days. The same seed gives the same interval. Hand over only what the score needs (`Sums.only`): it is copied.
    """
    dates = dated[0].shape[0]
    if any(sums.shape[0] != dates for sums in dated) or not 1 <= block <= dates:
        counts = [sums.shape[0] for sums in dated]
        raise ValueError(f"one number of dates, at least a block of {block}, is needed; got {counts}")
    rng = np.random.default_rng(seed)
    draws = (resampled(dates, block, rng) for _ in range(samples))
    scores = np.stack([np.asarray(score(*(sums[draw] for sums in dated))) for draw in draws])
    lower, upper = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Interval(np.asarray(lower), np.asarray(upper))


def resampled(dates: int, block: int, rng: np.random.Generator) -> Int64[np.ndarray, " date"]:
    """As many dates as there are, drawn in blocks of successive ones."""
    starts = rng.integers(0, dates - block + 1, size=ceil(dates / block))
    return (starts[:, None] + np.arange(block)).ravel()[:dates]


def _deviation(dated: Sums, whose: str) -> Float64[np.ndarray, "date *axes"]:
    with np.errstate(invalid="ignore"):
        variance = dated.mean(f"squared_{whose}_anomaly") - dated.mean(f"{whose}_anomaly") ** 2
    # Rounding can leave a hair below zero; NaN stays NaN.
    return np.sqrt(np.maximum(variance, 0))


def _date_mean(values: Float64[np.ndarray, "date *axes"], dated: Sums) -> Float64[np.ndarray, "*axes"]:
    """The mean over the dates that have data; a NaN that was computed from data stays."""
    present = dated.weight > 0
    total = np.sum(values, axis=0, where=present)
    return _ratio(total, present.sum(axis=0).astype(np.float64))


def _ratio(
    above: Float64[np.ndarray, "*axes"], below: Float64[np.ndarray, "*axes"]
) -> Float64[np.ndarray, "*axes"]:
    """The quotient; NaN where `below` is zero."""
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below != 0)
