"""Sums of nowcasts: how often which value was forecast where an event came and where it did not.

From these counts follows the two-by-two table of every cut, so that a method's cut can be tuned on other events than
those it is scored on. Only observed pixels count; what is forecast as missing counts as dry. Tables, fractions and
powers are `Sums` of the main pipeline, with its scores and its bootstrap; pixels weigh alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from scipy.ndimage import uniform_filter

from fengwu_ghr.verify.events import CELLS, frequency_bias, hss
from fengwu_ghr.verify.neighbourhood import FRACTIONS
from fengwu_ghr.verify.spectra import POWERS
from fengwu_ghr.verify.statistics import Sums

THRESHOLDS = (20.0, 30.0, 35.0, 40.0, 45.0)
"""dBZ."""
FRACTION_THRESHOLDS, FRACTION_KM = (20.0, 35.0), (5, 15, 45)
BANDS_KM = ((2.0, 8.0), (8.0, 32.0), (32.0, 128.0))
"""Wavelengths, from and to."""
BIAS_ALLOWED = (0.7, 1.5)
"""Frequency biases between which a tuned cut must stay on the events it is tuned on."""

_BINS, _WIDTH = 201, 0.5  # of the value forecast: 0 ... 100

Field = Float32[np.ndarray, "row column"]
Counts = Int64[np.ndarray, "*axes event bin"]


def value_counts(forecast: Field, observed: Field, threshold: float) -> Int64[np.ndarray, "event bin"]:
    """Pixels by value forecast (in steps of 0.5, down to 0 and up to 100), without the event and with it."""
    known = ~np.isnan(observed)
    said = np.nan_to_num(forecast[known], nan=0.0)
    bins = np.clip((said / _WIDTH).astype(np.int64), 0, _BINS - 1)
    came = observed[known] >= threshold
    return np.bincount(bins + _BINS * came, minlength=2 * _BINS).reshape(2, _BINS)


def tables(counts: Counts, cuts: Float64[np.ndarray, "*axes"]) -> Sums:
    """The tables where a value of `cuts` or more, a multiple of 0.5, is taken for the event."""
    place = np.clip(np.round(cuts / _WIDTH).astype(int), 0, _BINS)
    above = np.concatenate(
        [np.cumsum(counts[..., ::-1], axis=-1)[..., ::-1], np.zeros_like(counts[..., :1])], -1
    )
    index = np.broadcast_to(place[..., None, None], (*counts.shape[:-1], 1))
    said = np.take_along_axis(above, index, axis=-1)[..., 0].astype(np.float64)
    every = counts.sum(axis=-1).astype(np.float64)
    parts = said[..., 1], said[..., 0], every[..., 1] - said[..., 1], every[..., 0] - said[..., 0]
    return Sums(every.sum(axis=-1), dict(zip(CELLS, parts)))


def tuned_cuts(
    counts: Int64[np.ndarray, "date lead threshold event bin"], defaults: Float64[np.ndarray, " threshold"]
) -> Float64[np.ndarray, "lead threshold"]:
    """The cut of each lead and threshold with the best HSS, at a frequency bias within BIAS_ALLOWED.

    The default where no cut has such a bias, as where the event never came.
    """
    candidates = np.arange(_BINS) * _WIDTH
    shape = counts.shape[1:3]
    best, found = np.full(shape, -np.inf), np.broadcast_to(defaults, shape).copy()
    for cut in candidates[1:]:
        table = tables(counts, np.full(counts.shape[:3], cut))
        score, bias = hss(table), frequency_bias(table)
        with np.errstate(invalid="ignore"):
            better = (bias >= BIAS_ALLOWED[0]) & (bias <= BIAS_ALLOWED[1]) & (score > best)
        best, found = np.where(better, score, best), np.where(better, cut, found)
    return found


def fraction_sums(forecast: Field, observed: Field) -> Sums:
    """Sums by threshold and width of (Pf - Po)² and Pf² + Po², as `verify.neighbourhood` has them, in boxes of pixels.

    Only boxes around observed pixels count; unobserved pixels in them are dry in both.
    """
    known = ~np.isnan(observed)
    shape = len(FRACTION_THRESHOLDS), len(FRACTION_KM)
    result = Sums.zeros(FRACTIONS, shape)
    result.weight[:] = known.sum()
    for i, threshold in enumerate(FRACTION_THRESHOLDS):
        said, came = ((known & (values >= threshold)).astype(np.float64) for values in (forecast, observed))
        for j, width in enumerate(FRACTION_KM):
            f, o = (uniform_filter(values, width, mode="constant")[known] for values in (said, came))
            result.sums[FRACTIONS[0]][i, j] = ((f - o) ** 2).sum()
            result.sums[FRACTIONS[1]][i, j] = (f**2 + o**2).sum()
    return result


def band_powers(forecast: Field, observed: Field) -> Sums:
    """POWERS by band of wavelengths, whatever their direction, of fields that are dry where either is not known.

    In dBZ²: over all wavelengths they add up to the variance.
    """
    known = ~(np.isnan(forecast) | np.isnan(observed))
    f, o = (np.fft.rfft2(np.where(known, values, 0)) for values in (forecast, observed))
    rows, columns = observed.shape
    radius = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns))  # cycles a pixel
    sides = np.where(
        (np.arange(columns // 2 + 1) > 0) & (2 * np.arange(columns // 2 + 1) < columns), 2.0, 1.0
    )
    products = (np.abs(f) ** 2, np.abs(o) ** 2, (f * o.conj()).real)
    bands = [(radius > 1 / longest) & (radius <= 1 / shortest) for shortest, longest in BANDS_KM]
    sums = {
        name: np.array([(values * sides)[band].sum() / observed.size**2 for band in bands])
        for name, values in zip(POWERS, products)
    }
    return Sums(np.ones(len(bands)), sums)


@dataclass(frozen=True, eq=False)
class Scored:
    """The sums of one method, on the axes (unit, lead, ...): a unit is an hour of starts of one event."""

    units: tuple[str, ...]
    minutes: tuple[int, ...]
    counts: Int64[np.ndarray, "unit lead threshold event bin"]
    fractions: Sums
    powers: Sums

    def at(self, cuts: Float64[np.ndarray, "*axes"]) -> Sums:
        """The tables at these cuts, by threshold or by lead and threshold."""
        return tables(self.counts, np.broadcast_to(cuts, self.counts.shape[:3]))


def pooled(sums: Sums, leads: Bool[np.ndarray, " lead"]) -> Sums:
    """These leads as one: sums over the second axis."""
    chosen = sums[:, leads]
    return Sums(chosen.weight.sum(axis=1), {name: v.sum(axis=1) for name, v in chosen.sums.items()})


def scored(parts: Sequence[tuple[str, int, Mapping[str, object]]]) -> Scored:
    """The sums of many forecasts by unit and lead; each part is (unit, minutes of lead, its counts, fractions, powers).

    A unit that lacks a lead has weight 0 there.
    """
    units = tuple(dict.fromkeys(unit for unit, _, _ in parts))
    minutes = tuple(sorted({lead for _, lead, _ in parts}))
    shape = len(units), len(minutes)
    counts = np.zeros((*shape, len(THRESHOLDS), 2, _BINS), np.int64)
    fractions = Sums.zeros(FRACTIONS, (*shape, len(FRACTION_THRESHOLDS), len(FRACTION_KM)))
    powers = Sums.zeros(POWERS, (*shape, len(BANDS_KM)))
    for unit, lead, found in parts:
        place = units.index(unit), minutes.index(lead)
        counts[place] += found["counts"]
        for total, name in ((fractions, "fractions"), (powers, "powers")):
            part = found[name]
            assert isinstance(part, Sums)
            total.weight[place] += part.weight
            for key, values in part.sums.items():
                total.sums[key][place] += values
    return Scored(units, minutes, counts, fractions, powers)


def score_frame(
    forecast: Field, observed: Field, by_threshold: Sequence[Field] | None = None
) -> dict[str, object]:
    """What `scored` takes of one frame. `by_threshold` gives each threshold a forecast of its own, for its counts."""
    chosen = by_threshold or [forecast] * len(THRESHOLDS)
    return {
        "counts": np.stack([value_counts(f, observed, t) for f, t in zip(chosen, THRESHOLDS)]),
        "fractions": fraction_sums(forecast, observed),
        "powers": band_powers(forecast, observed),
    }
