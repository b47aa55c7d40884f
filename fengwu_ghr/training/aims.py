"""What is aimed at, and what came: of the model the verdict is about, and of the one that is to be sharp."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

import numpy as np

from fengwu_ghr.training.tables import Tables
from fengwu_ghr.training.verdict import Comparison, smoothed_ratio, wavenumber_of
from fengwu_ghr.variables import HEADLINE, reading_units
from fengwu_ghr.verify import metrics
from fengwu_ghr.verify.spectra import power_ratio
from fengwu_ghr.verify.statistics import hours_text

PUBLISHED_SHARE = 0.913
"""Of targets won, FengWu-GHR against IFS-HRES at 0.09 degrees (Han et al. 2024)."""
POWER = (0.5, 2.0)
"""Of the truth's, within which the power of a sharp forecast is to lie."""
SHARP_TO = {1: 4, 5: 8}
"""By day, the grid lengths down to which it is to lie there."""


@dataclass(frozen=True)
class Aim:
    """One line of the table; `is_met` is None where no number was aimed at."""

    what: str
    came: str
    is_met: bool | None = None

    def row(self) -> str:
        verdict = {True: "met", False: "missed", None: ""}[self.is_met]
        return f"| {self.what} | {self.came} | {verdict} |"


def headline_aims(ours: Tables, comparisons: Mapping[str, Comparison], *, seed: int) -> Iterator[Aim]:
    """Shares against the baselines of the same seed and against the simulator, and what every model is held to."""
    detailed = comparisons[f"detailed-{seed}"]
    for kind, share in detailed.shares().items():
        yield _share(f"(c1): {PUBLISHED_SHARE:.1%} of {kind} targets", share, PUBLISHED_SHARE)
    for letter, name, least, hours in (
        ("a", "persistence", 0.95, 12),
        ("d", f"zero-shot-{seed}", 0.90, 24),
    ):
        if name in comparisons and hours <= 6 * len(ours.everywhere.leads):
            what = f"({letter}): {least:.0%} of targets from {hours} h on"
            yield _share(what, comparisons[name].share_from(hours), least)
    for name, comparison in comparisons.items():
        if name.startswith("numerical"):
            yield Aim(f"(e) {name}: as high as can be", str(comparison.shares()["all"]))
    yield _skill(ours)
    yield from _soundness(ours)


def sharp_aims(sharp: Tables) -> Iterator[Aim]:
    """Power between half and twice the truth's down to some grid lengths, and what every model is held to."""
    for day, lengths in SHARP_TO.items():
        if timedelta(days=day) in sharp.spectra.leads:
            yield _power(sharp, timedelta(days=day), lengths)
    yield from _soundness(sharp)


def _share(what: str, share: metrics.Share, least: float) -> Aim:
    return Aim(what, str(share), share.share >= least)


def _skill(ours: Tables) -> Aim:
    sums, leads = ours.everywhere.stacked(), ours.everywhere.leads
    row = ours.everywhere.channels.index("z500")
    ahead = metrics.rmse(sums)[:, row] < metrics.rmse_of_climatology(sums)[:, row]
    last = leads[-1] if ahead.all() else leads[int(np.argmin(ahead)) - 1] if ahead[0] else timedelta(0)
    wanted = min(timedelta(days=5), leads[-1])
    came = f"to {hours_text(last)} of {hours_text(leads[-1])}"
    return Aim(f"z500 better than climatology to {hours_text(wanted)}", came, last >= wanted)


def _soundness(ours: Tables) -> Iterator[Aim]:
    sums, last = ours.everywhere.stacked(), ours.everywhere.leads[-1]
    finite = bool(np.isfinite(metrics.rmse(sums)).all())
    yield Aim(f"all steps to {hours_text(last)} finite", "yes" if finite else "no", finite)
    drift = reading_units("msl")[1] * metrics.bias(sums)[:, ours.everywhere.channels.index("msl")]
    came = f"{drift[0]:+.2f} hPa at {hours_text(ours.everywhere.leads[0])}, {drift[-1]:+.2f} hPa at {hours_text(last)}"
    yield Aim("global mean msl, bias", came)


def _power(sharp: Tables, lead: timedelta, lengths: int) -> Aim:
    """The channel furthest from the truth's power, over wavenumbers up to so many grid lengths."""
    sums = sharp.spectra.stacked()[:, sharp.spectra.leads.index(lead)].total()
    ratio = power_ratio(sums)
    last = wavenumber_of(lengths, degrees=ratio.shape[-1])
    spans = [[smoothed_ratio(row, k) for k in range(1, last + 1)] for row in ratio]
    off = [max(max(span), 1 / min(span)) for span in spans]
    worst = int(np.argmax(off))
    inside = sum(min(span) >= POWER[0] and max(span) <= POWER[1] for span in spans)
    span = f"{min(spans[worst]):.2f} ... {max(spans[worst]):.2f}"
    came = f"{inside} of {len(HEADLINE)} channels; {HEADLINE[worst]}: {span}"
    what = f"power {POWER[0]:g} ... {POWER[1]:g} of the truth's down to {lengths} grid lengths at {hours_text(lead)}"
    return Aim(what, came, inside == len(HEADLINE))
