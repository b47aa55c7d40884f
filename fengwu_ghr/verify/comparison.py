"""Comparison with a baseline: differences of scores with their confidence, the scorecard, the share of targets won.

Differences are of the scores of single forecasts of the same dates (paired). From 30 equally spaced dates on, Student's
t with the autocorrelation of an AR(2) process (Geer 2016); below, Student's t of the means of blocks of dates, of which
there must be six. Confidence is Šidák-corrected over the targets of a region, so that a whole scorecard by chance shows
a triangle once in twenty.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from jaxtyping import Float64

from fengwu_ghr.verify import metrics
from fengwu_ghr.verify.significance import (
    bootstrap_means,
    can_tell_autocorrelation,
    reach_of_block_means,
    reach_of_mean,
    sidak,
    spacing,
)
from fengwu_ghr.verify.statistics import DatedSums, Sums, paired

LEVEL = 0.95
_BLOCK = timedelta(days=3)
"""Dates closer to each other than this resemble each other, and are drawn together."""


@dataclass(frozen=True, eq=False)
class Scorecard:
    """Of RMSE, ours minus theirs, relative to theirs, with bounds; axes (lead, channel, region)."""

    leads: tuple[timedelta, ...]
    channels: tuple[str, ...]
    regions: tuple[str, ...]
    relative: Float64[np.ndarray, "lead channel region"]
    lower: Float64[np.ndarray, "lead channel region"]
    upper: Float64[np.ndarray, "lead channel region"]
    method: str
    dates: int

    def count(self, region: str) -> tuple[int, int, int]:
        """Targets (leads of channels) that are won, lost, and undecided at this confidence."""
        where = self.regions.index(region)
        won = int((self.upper[..., where] < 0).sum())
        lost = int((self.lower[..., where] > 0).sum())
        return won, lost, self.relative[..., where].size - won - lost

    def share_better(self, region: str) -> float:
        """The share of targets with the smaller RMSE, decided or not."""
        return float((self.relative[..., self.regions.index(region)] < 0).mean())


def compare(ours: DatedSums, theirs: DatedSums, *, level: float = LEVEL) -> Scorecard:
    """The comparison of two tables of the same dates and leads. Raises InputError where they are not."""
    first, second = paired(ours, theirs)
    times = [start.initial_time for start in ours.starts]
    mine, its = _rmse_by_date(first), _rmse_by_date(second)
    shape = mine.shape[1:]
    scale = np.nanmean(its, axis=0)
    means, lowers, uppers = (np.full(shape, np.nan) for _ in range(3))
    corrected = sidak(level, shape[0] * shape[1])
    methods = set()
    for lead in range(shape[0]):
        present = np.asarray(first.weight[:, lead].reshape(len(times), -1).any(axis=1))
        found, method = _interval(
            (mine - its)[present, lead], [t for t, p in zip(times, present) if p], corrected
        )
        means[lead], lowers[lead], uppers[lead] = found
        methods.add(method)
    with np.errstate(invalid="ignore", divide="ignore"):
        relative, lower, upper = (100 * values / scale for values in (means, lowers, uppers))
    return Scorecard(
        ours.leads,
        ours.channels,
        ours.regions,
        relative,
        lower,
        upper,
        ", ".join(sorted(methods)),
        len(times),
    )


def _interval(
    differences: Float64[np.ndarray, "date channel region"], times: list[datetime], level: float
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], str]:
    """Mean and bounds, and how they were found. Too few dates have no bounds."""
    flat = differences.reshape(len(times), -1)
    mean = flat.mean(axis=0)
    if can_tell_autocorrelation(times):
        reach = np.array([reach_of_mean(column, times, level=level) for column in flat.T])
        method = "t-test with AR(2) autocorrelation"
    else:
        block = _block(times)
        reach = reach_of_block_means(flat, block=block, level=level)
        method = (
            f"t-test of means of {block} successive dates" if np.isfinite(reach).any() else "too few dates"
        )
    shape = differences.shape[1:]
    return (mean.reshape(shape), (mean - reach).reshape(shape), (mean + reach).reshape(shape)), method


def _block(times: Sequence[datetime]) -> int:
    """So many dates span what resembles itself."""
    return max(1, round(_BLOCK / spacing(times))) if len(times) > 1 else 1


def _rmse_by_date(sums: Sums) -> Float64[np.ndarray, "date lead channel region"]:
    return np.sqrt(sums.mean("squared_error"))


def intervals(table: DatedSums, *, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the RMSE of every lead, channel and region over the dates it has; the RMSE itself where that is one."""
    sums = table.stacked().only("squared_error")
    bounds = [metrics.rmse(sums), metrics.rmse(sums)]
    squares = sums.mean("squared_error")
    for lead in range(sums.shape[1]):
        present = np.asarray(sums.weight[:, lead].any(axis=(1, 2)))
        times = [start.initial_time for start, is_there in zip(table.starts, present) if is_there]
        if len(times) < 2:
            continue
        values = squares[present, lead].reshape(len(times), -1)
        found = bootstrap_means(values, block=min(_block(times), max(1, len(times) // 2)), level=level)
        for bound, own in zip(bounds, found):
            bound[lead] = np.sqrt(np.maximum(own, 0)).reshape(bound[lead].shape)
    return bounds[0], bounds[1]
