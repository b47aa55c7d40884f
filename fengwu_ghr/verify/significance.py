"""Significance: whether a difference of scores could be chance, with dates that resemble their neighbours.

Geer (2016), "Significance of changes in medium-range forecast scores", Tellus A 68: paired differences, their
autocorrelation as that of a second-order autoregressive process, Student's t; Šidák's correction over many tests.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

import numpy as np
from jaxtyping import Bool, Float64
from scipy import stats

from fengwu_ghr.verify.metrics import resampled

LEAST_DATES = 30
"""Equally spaced dates below which an autocorrelation cannot be told; then means of blocks are compared."""
LEAST_BLOCKS = 6
"""Below, nothing can be told: all is undecided."""


def sidak(level: float, tests: int) -> float:
    """The confidence level of each of so many tests, for this level of all of them (Šidák 1967)."""
    return float(level ** (1 / tests))


def reach_of_mean(
    differences: Float64[np.ndarray, " date"], times: Sequence[datetime], *, level: float = 0.95
) -> float:
    """How far the interval of the mean of paired differences reaches to either side of it, at this level.

    `times` are the initial times, ascending; a gap parts the series: no autocorrelation is taken across it. Raises
    ValueError where too few dates follow each other evenly (`can_tell_autocorrelation`) or a difference is not finite.
    """
    if not can_tell_autocorrelation(times):
        raise ValueError(
            f"an autocorrelation needs {LEAST_DATES} or more dates that follow each other evenly; of {len(times)} "
            "there are fewer: compare means of blocks"
        )
    if not np.isfinite(differences).all():
        raise ValueError("differences of scores must be finite")
    count = differences.size
    factor = inflation(differences - differences.mean(), is_followed(times))
    error = factor * float(differences.std(ddof=1)) / np.sqrt(count)
    return float(stats.t.ppf((1 + level) / 2, count - 1)) * error


def reach_of_block_means(
    differences: Float64[np.ndarray, "date test"], *, block: int, level: float
) -> Float64[np.ndarray, " test"]:
    """The same from means of blocks of successive dates, taken as independent; infinite below LEAST_BLOCKS of them."""
    blocks = len(differences) // block
    if blocks < LEAST_BLOCKS:
        return np.full(differences.shape[1], np.inf)
    parts = np.array_split(differences, blocks)
    means = np.stack([part.mean(axis=0) for part in parts])
    return stats.t.ppf((1 + level) / 2, blocks - 1) * means.std(axis=0, ddof=1) / np.sqrt(blocks)


def can_tell_autocorrelation(times: Sequence[datetime]) -> bool:
    """Whether most of LEAST_DATES or more dates are followed twice by the usual step."""
    followed = is_followed(times)
    return bool(len(times) >= LEAST_DATES and (followed[:-2] & followed[1:-1]).sum() >= LEAST_DATES - 2)


def bootstrap_means(
    values: Float64[np.ndarray, "date test"], *, block: int, level: float, samples: int = 1000, seed: int = 0
) -> tuple[Float64[np.ndarray, " test"], Float64[np.ndarray, " test"]]:
    """Bounds of means over dates drawn anew, in blocks of successive dates (Künsch 1989, Ann. Statist. 17).

    All tests see the same draws; the same seed gives the same bounds.
    """
    dates = len(values)
    rng = np.random.default_rng(seed)
    counts = np.zeros((samples, dates))
    for row in counts:
        np.add.at(row, resampled(dates, block, rng), 1)
    means = counts @ values / dates
    lower, upper = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return lower, upper


def is_followed(times: Sequence[datetime]) -> Bool[np.ndarray, " date"]:
    """Whether the next date is the usual step away: the most frequent one. The last has none."""
    if len(times) < 2:
        return np.zeros(len(times), bool)
    steps = np.diff(np.array(times, "M8[s]"))
    return np.append(steps == np.timedelta64(spacing(times)), False)


def spacing(times: Sequence[datetime]) -> timedelta:
    """The usual step between two dates or more."""
    lengths, counts = np.unique(np.diff(np.array(times, "M8[s]")), return_counts=True)
    return timedelta(seconds=int(lengths[counts.argmax()].astype(int)))


def inflation(anomalies: Float64[np.ndarray, " date"], followed: Bool[np.ndarray, " date"]) -> float:
    """By how much autocorrelation widens the standard error of the mean; at least 1.

    Of an AR(2) process the variance of the mean of many values is that of independent ones times
    (1 - φ1 ρ1 - φ2 ρ2) / (1 - φ1 - φ2)², with φ from ρ by the Yule-Walker equations.
    """
    variance = float(np.mean(anomalies**2))
    if variance == 0:
        return 1.0
    first = followed[:-1]
    second = followed[:-2] & followed[1:-1]
    rho1 = float(np.mean((anomalies[:-1] * anomalies[1:])[first])) / variance
    rho2 = float(np.mean((anomalies[:-2] * anomalies[2:])[second])) / variance
    rho1, rho2 = (float(np.clip(rho, -0.95, 0.95)) for rho in (rho1, rho2))
    phi1 = rho1 * (1 - rho2) / (1 - rho1**2)
    phi2 = (rho2 - rho1**2) / (1 - rho1**2)
    if 1 - phi1 - phi2 <= 0.05:  # as good as a random walk: nothing can be told from it
        return 20.0
    ratio = (1 - phi1 * rho1 - phi2 * rho2) / (1 - phi1 - phi2) ** 2
    return float(np.sqrt(max(ratio, 1.0)))
