"""The verdict of the evidence: headline scores, shares of targets won, spectra, and what was lost; as Markdown.

Targets are (lead, channel) pairs. Channels that the world persists are in no share. The three kinds of share: all
targets; those on levels next to a level of the simulator, above ground, and near the surface; those where one of the
two compared is better than climatology.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float64

from fengwu_ghr.training.tables import HEADLINE, Tables
from fengwu_ghr.variables import ChannelSet
from fengwu_ghr.verify import metrics
from fengwu_ghr.verify.spectra import coherence, effective_wavenumber, power_ratio
from fengwu_ghr.verify.statistics import DatedSums, Sums, paired

HEADLINE_LEADS = (6, 24, 72, 120, 240)
"""Hours of the columns of the headline tables."""
BLOCK_DATES = 5
"""Dates resampled together for intervals: with dates three days apart, half a month."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """One source against another, over the dates both were scored on."""

    ours: Tables
    theirs: Tables
    channels: ChannelSet
    counted: Bool[np.ndarray, " channel"]
    """Channels that take part at all: those that are not persisted."""
    resolved: Bool[np.ndarray, " channel"]
    """Channels on levels the simulator resolves, and near the surface."""

    def shares(self) -> dict[str, metrics.Share]:
        """Of all targets, of the resolved ones above ground, and of those where one of the two has skill."""
        ours, theirs = self._everywhere
        rmse, other = metrics.rmse(ours), metrics.rmse(theirs)
        ratio = metrics.activity_ratio(ours)
        skilful = np.minimum(rmse, other) < metrics.rmse_of_climatology(ours)
        everything = np.broadcast_to(self.counted, rmse.shape)
        resolved_rmse, resolved_other, resolved_ratio = self._above_ground
        return {
            "all": _share(rmse, other, ratio, everything),
            "resolved": _share(
                resolved_rmse, resolved_other, resolved_ratio, np.broadcast_to(self.resolved, rmse.shape)
            ),
            "skilful": _share(rmse, other, ratio, everything & skilful),
        }

    def interval(self, *, samples: int = 200) -> metrics.Interval:
        """Of the share of all targets, over dates."""
        pair = [sums.only("squared_error")[..., self.counted] for sums in self._everywhere]
        block = min(BLOCK_DATES, pair[0].shape[0])

        def share(ours: Sums, theirs: Sums) -> float:
            return float((metrics.rmse(ours) < metrics.rmse(theirs)).mean())

        return metrics.bootstrap(share, *pair, block=block, samples=samples)

    def share_from(self, hours: int) -> metrics.Share:
        """Of all targets at leads of `hours` and more."""
        ours, theirs = (sums[:, hours // 6 - 1 :] for sums in self._everywhere)
        rmse = metrics.rmse(ours)
        counted = np.broadcast_to(self.counted, rmse.shape)
        return _share(rmse, metrics.rmse(theirs), metrics.activity_ratio(ours), counted)

    def lost(self) -> list[str]:
        """Channels of which targets are lost, with how many leads, the worst first."""
        ours, theirs = self._everywhere
        lost = ((metrics.rmse(ours) >= metrics.rmse(theirs)) & self.counted).sum(axis=0)
        order = np.argsort(-lost, kind="stable")
        return [f"{self.channels.names[i]} ({lost[i]})" for i in order if lost[i]]

    @cached_property
    def _everywhere(self) -> tuple[Sums, Sums]:
        return paired(*_common(self.ours.everywhere, self.theirs.everywhere))

    @cached_property
    def _above_ground(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """RMSE of both and our activity ratio, with the points below ground left out where there are some."""
        ours, theirs = self._everywhere
        rmse, other, ratio = metrics.rmse(ours), metrics.rmse(theirs), metrics.activity_ratio(ours)
        if self.ours.above_ground.entries:
            dry = paired(*_common(self.ours.above_ground, self.theirs.above_ground))
            rows = [self.channels.names.index(name) for name in self.ours.above_ground.channels]
            rmse[:, rows], other[:, rows] = metrics.rmse(dry[0]), metrics.rmse(dry[1])
            ratio[:, rows] = metrics.activity_ratio(dry[0])
        return rmse, other, ratio


def resolved_channels(channels: ChannelSet, sigma: Sequence[float]) -> Bool[np.ndarray, " channel"]:
    """Whether a channel is near the surface or on the pressure level next to one of the simulator's levels."""
    levels = sorted({c.level for c in channels.channels if c.level is not None})
    nearest = {min(levels, key=lambda level: abs(level - 1013.25 * s)) for s in sigma}
    return np.array([c.level is None or c.level in nearest for c in channels.channels])


def headline_table(
    tables: Mapping[str, Tables], titles: Mapping[str, str], channels: ChannelSet
) -> Iterator[str]:
    """RMSE, ACC and activity ratio of every source at the headline leads, channel by channel, as Markdown."""
    hours = _headline_leads(tables)
    yield f"| channel, score | source | {' | '.join(f'{h} h' for h in hours)} |"
    yield f"|---|---|{'---|' * len(hours)}"
    for name in HEADLINE:
        row = channels.names.index(name)
        for source, table in tables.items():
            sums = table.everywhere.stacked()[:, [h // 6 - 1 for h in hours]]
            for label, score in (
                ("RMSE", metrics.rmse),
                ("ACC", metrics.acc),
                ("activity", metrics.activity_ratio),
            ):
                values = score(sums)[:, row]
                cells = " | ".join(f"{_scaled(name, label, value):.3g}" for value in values)
                yield f"| {name} {label} | {titles[source]} | {cells} |"


def spectra_table(tables: Mapping[str, Tables], titles: Mapping[str, str]) -> Iterator[str]:
    """The effective total wavenumber, and power ratio at 4 and 8 grid lengths, as Markdown."""
    yield "| channel | source | lead | effective wavenumber | power ratio, 8 grid lengths | 4 grid lengths |"
    yield "|---|---|---|---|---|---|"
    for source, table in tables.items():
        for step, lead in enumerate(table.spectra.leads):
            sums = table.spectra.stacked()[:, step].total()
            ratio, coherent = power_ratio(sums), coherence(sums)
            degrees = ratio.shape[-1]  # 2 L columns: a wave of g grid lengths has wavenumber 2 L / g
            for row, name in enumerate(HEADLINE):
                effective = effective_wavenumber(ratio[row], coherent[row])
                at = (_smoothed(ratio[row], 2 * degrees // lengths) for lengths in (8, 4))
                hours = lead.total_seconds() / 3600
                yield (
                    f"| {name} | {titles[source]} | {hours:g} h | {effective} | "
                    + " | ".join(f"{value:.2f}" for value in at)
                    + " |"
                )


def _smoothed(ratio: Float64[np.ndarray, " wavenumber"], wavenumber: int) -> float:
    """The geometric mean over the neighbouring wavenumbers: one wavenumber alone is noise."""
    around = ratio[max(1, wavenumber - 2) : wavenumber + 3]
    return float(np.exp(np.log(around).mean()))


def _scaled(name: str, score: str, value: float) -> float:
    """RMSE of geopotential in metres, of humidity in g/kg, of pressure in hPa: as forecasters read them."""
    if score != "RMSE":
        return value
    return value * {"z": 1 / 9.80665, "q": 1000.0, "m": 0.01}.get(name[0], 1.0)


def _headline_leads(tables: Mapping[str, Tables]) -> list[int]:
    longest = min(len(table.everywhere.leads) for table in tables.values()) * 6
    return [h for h in HEADLINE_LEADS if h <= longest]


def _share(
    ours: np.ndarray, theirs: np.ndarray, ratio: np.ndarray, targets: Bool[np.ndarray, "lead channel"]
) -> metrics.Share:
    return metrics.share_won(ours, theirs, activity_ratio=ratio, targets=np.array(targets))


def _common(first: DatedSums, second: DatedSums) -> tuple[DatedSums, DatedSums]:
    """Both without the starts that the other lacks: a twin is scored on fewer dates."""
    starts = set(first.starts) & set(second.starts)
    return _only(first, starts), _only(second, starts)


def _only(table: DatedSums, starts: set) -> DatedSums:
    kept = {key: sums for key, sums in table.entries.items() if key[0] in starts}
    return DatedSums(table.channels, table.evaluated_on, kept)
