"""Events: a threshold is passed or not; what a two-by-two table of areas says of a forecast.

a: hits, b: false alarms, c: misses, d: correct rejections, as shares of the area (they sum to one). H = a / (a + c) is
the hit rate, F = b / (b + d) the false alarm rate. NaN where a score divides by zero.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64

from fengwu_ghr.verify.regions import Regions
from fengwu_ghr.verify.statistics import Sums, field_sums

CELLS = ("hit", "false_alarm", "miss", "correct_rejection")


@dataclass(frozen=True)
class Threshold:
    """An event: at least, or at most, a value in units of the registry; or a percentile of the climatology.

    A percentile is a number of the climatology's own: the event is then rare everywhere alike.
    """

    channel: str
    value: float
    above: bool = True
    is_percentile: bool = False

    def __str__(self) -> str:
        sign = ">=" if self.above else "<="
        value = f"its {self.value:g}th percentile" if self.is_percentile else f"{self.value:g}"
        return f"{self.channel} {sign} {value}"


def event_sums(
    forecast: Bool[np.ndarray, "event lat lon"],
    truth: Bool[np.ndarray, "event lat lon"],
    *,
    regions: Regions,
) -> Sums:
    """The table of every event by region, as area-weighted sums."""
    cells = {
        "hit": forecast & truth,
        "false_alarm": forecast & ~truth,
        "miss": ~forecast & truth,
        "correct_rejection": ~forecast & ~truth,
    }
    return field_sums(cells, regions=regions)


def passes(
    values: Float32[np.ndarray, "lat lon"],
    threshold: Threshold,
    limit: Float32[np.ndarray, "lat lon"] | float,
) -> Bool[np.ndarray, "lat lon"]:
    """Where the event is; `limit` is the threshold's value, or the percentile's field."""
    return values >= limit if threshold.above else values <= limit


def csi(dated: Sums) -> Float64[np.ndarray, "*axes"]:
    """a / (a + b + c): the critical success index, or threat score."""
    t = _Table.of(dated)
    return _quotient(t.a, t.a + t.b + t.c)


def ets(dated: Sums) -> Float64[np.ndarray, "*axes"]:
    """(a - r) / (a + b + c - r), r = (a + b)(a + c): the equitable threat score (Gilbert); r are hits by chance."""
    t = _Table.of(dated)
    by_chance = (t.a + t.b) * (t.a + t.c)
    return _quotient(t.a - by_chance, t.a + t.b + t.c - by_chance)


def hss(dated: Sums) -> Float64[np.ndarray, "*axes"]:
    """2 (a d - b c) / ((a + c)(c + d) + (a + b)(b + d)): Heidke's skill score."""
    t = _Table.of(dated)
    return _quotient(2 * (t.a * t.d - t.b * t.c), (t.a + t.c) * (t.c + t.d) + (t.a + t.b) * (t.b + t.d))


def frequency_bias(dated: Sums) -> Float64[np.ndarray, "*axes"]:
    """(a + b) / (a + c): above 1 the event is forecast too often."""
    t = _Table.of(dated)
    return _quotient(t.a + t.b, t.a + t.c)


def hit_rate(dated: Sums) -> Float64[np.ndarray, "*axes"]:
    """a / (a + c)."""
    t = _Table.of(dated)
    return _quotient(t.a, t.a + t.c)


def false_alarm_rate(dated: Sums) -> Float64[np.ndarray, "*axes"]:
    """b / (b + d)."""
    t = _Table.of(dated)
    return _quotient(t.b, t.b + t.d)


def false_alarm_ratio(dated: Sums) -> Float64[np.ndarray, "*axes"]:
    """b / (a + b): which part of what was forecast did not come."""
    t = _Table.of(dated)
    return _quotient(t.b, t.a + t.b)


def sedi(dated: Sums) -> Float64[np.ndarray, "*axes"]:
    """(ln F - ln H - ln(1 - F) + ln(1 - H)) / (ln F + ln H + ln(1 - F) + ln(1 - H)).

    The symmetric extremal dependence index (Ferro and Stephenson 2011, Weather and Forecasting 26): it does not
    vanish as the event becomes rare. NaN where H or F is 0 or 1.
    """
    hits, alarms = hit_rate(dated), false_alarm_rate(dated)
    with np.errstate(divide="ignore", invalid="ignore"):
        f, h, not_f, not_h = np.log(alarms), np.log(hits), np.log1p(-alarms), np.log1p(-hits)
        found = (f - h - not_f + not_h) / (f + h + not_f + not_h)
    return np.where(np.isfinite(found), found, np.nan)


EVENT_SCORES: dict[str, Callable[[Sums], Float64[np.ndarray, "*axes"]]] = {
    "CSI": csi,
    "HSS": hss,
    "ETS": ets,
    "SEDI": sedi,
    "frequency bias": frequency_bias,
}


@dataclass(frozen=True, eq=False)
class _Table:
    """Shares of the area, over all dates."""

    a: Float64[np.ndarray, "*axes"]
    b: Float64[np.ndarray, "*axes"]
    c: Float64[np.ndarray, "*axes"]
    d: Float64[np.ndarray, "*axes"]

    @classmethod
    def of(cls, dated: Sums) -> "_Table":
        total = dated.total()
        return cls(*(total.mean(name) for name in CELLS))


def _quotient(
    above: Float64[np.ndarray, "*axes"], below: Float64[np.ndarray, "*axes"]
) -> Float64[np.ndarray, "*axes"]:
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below != 0)
