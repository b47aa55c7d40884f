"""Rain: SEEPS, the stable equitable error in probability space of 24-hour precipitation.

Rodwell, Richardson, Hewson and Haiden (2010), Quarterly Journal of the Royal Meteorological Society 136. Three
categories, dry (up to 0.25 mm), light and heavy, the latter parted so that light rain is twice as frequent as heavy.
"""

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from fengwu_ghr.verify.regions import Regions
from fengwu_ghr.verify.statistics import Sums, field_sums

DRY_LIMIT_MM = 0.25
DRY_SHARE = (0.1, 0.85)
"""Shares of dry days of the climatology between which a place is scored."""


def seeps_sums(
    forecast: Float32[np.ndarray, "lat lon"],
    truth: Float32[np.ndarray, "lat lon"],
    *,
    dry_share: Float32[np.ndarray, "lat lon"],
    heavy_limit: Float32[np.ndarray, "lat lon"],
    regions: Regions,
) -> Sums:
    """The area-weighted sum of SEEPS of 24-hour rain in mm, one channel; a NaN does not count.

    `dry_share` is p1, the climatological probability of a dry day; `heavy_limit` t3, in mm, where heavy rain begins.
    Places with p1 outside DRY_SHARE do not count. 0 is perfect, 1 the score of a forecast without skill.
    """
    known = is_scored(dry_share) & np.isfinite(truth) & np.isfinite(forecast)
    scores = np.zeros(truth.shape)
    scores[known] = seeps_of(
        category(forecast[known], heavy_limit[known]),
        category(truth[known], heavy_limit[known]),
        dry_share[known].astype(np.float64),
    )
    return field_sums({"seeps": scores[None]}, regions=regions, known=known[None])


def seeps(dated: Sums) -> Float64[np.ndarray, "*axes"]:
    """[<SEEPS>]: the mean over places and dates."""
    return dated.total().mean("seeps")


def is_scored(dry_share: Float32[np.ndarray, "*points"]) -> Bool[np.ndarray, "*points"]:
    """Where the climate is neither too dry nor too wet for three categories."""
    return np.isfinite(dry_share) & (dry_share >= DRY_SHARE[0]) & (dry_share <= DRY_SHARE[1])


def category(
    rain: Float32[np.ndarray, " place"], heavy_limit: Float32[np.ndarray, " place"]
) -> Int64[np.ndarray, " place"]:
    """0 dry, 1 light, 2 heavy."""
    return (rain > DRY_LIMIT_MM).astype(np.int64) + (rain > np.maximum(heavy_limit, DRY_LIMIT_MM))


def seeps_of(
    forecast: Int64[np.ndarray, " place"],
    truth: Int64[np.ndarray, " place"],
    dry_share: Float64[np.ndarray, " place"],
) -> Float64[np.ndarray, " place"]:
    """The error of each category forecast (row) where each came (column), for p1 and p3 = (1 - p1) / 3:

    0                       1 / (1 - p1)      1/p3 + 1/(1 - p1)
    1/p1                    0                 1/p3
    1/p1 + 1/(1 - p3)       1/(1 - p3)        0                       all over 2
    """
    p1 = dry_share
    p3 = (1 - p1) / 3
    zero = np.zeros_like(p1)
    matrix = np.stack(
        [
            np.stack([zero, 1 / (1 - p1), 1 / p3 + 1 / (1 - p1)]),
            np.stack([1 / p1, zero, 1 / p3]),
            np.stack([1 / p1 + 1 / (1 - p3), 1 / (1 - p3), zero]),
        ]
    )
    return 0.5 * matrix[forecast, truth, np.arange(p1.size)]
