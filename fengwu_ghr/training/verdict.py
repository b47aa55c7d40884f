"""The verdict of the evidence: headline scores, shares of targets won, spectra, and what was lost; as Markdown.

Targets are (lead, channel) pairs. Channels that the world persists are in no share. The three kinds of share: all
targets; those on levels next to a level of the simulator, above ground, and near the surface; those where one of the
two compared is better than climatology.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from fengwu_ghr.training.levels import SIGMA
from fengwu_ghr.training.tables import Tables
from fengwu_ghr.training.world import World
from fengwu_ghr.variables import HEADLINE, ChannelSet, reading_units
from fengwu_ghr.verify import metrics
from fengwu_ghr.verify.spectra import coherence, effective_wavenumber, power_ratio
from fengwu_ghr.verify.statistics import DatedSums, Sums, hours_text, paired

HEADLINE_LEADS = (6, 24, 72, 120, 240)
"""Hours of the columns of the headline tables."""
BLOCK_DATES = 5
"""Dates resampled together for intervals: with dates three days apart, half a month."""
SAMPLES = 500
"""Of dates, for intervals."""
SCORES = {"RMSE": metrics.rmse, "ACC": metrics.acc, "activity": metrics.activity_ratio}
"""What the headline table shows of each channel."""

_WORST = 1e30  # in place of the RMSE of a forecast that is no longer finite


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
        """Of all targets, of the resolved ones above ground, and of those where one of the two has skill.

        A kind of which there is no target is left out.
        """
        ours, theirs = self._everywhere
        scores = _scores(ours, theirs)
        skilful = np.minimum(scores.ours, scores.theirs) < metrics.rmse_of_climatology(ours)
        kinds = {
            "all": (scores, self.counted),
            "resolved": (self._above_ground, self.resolved),
            "skilful": (scores, self.counted & skilful),
        }
        return {kind: found.share(targets) for kind, (found, targets) in kinds.items() if targets.any()}

    @cached_property
    def interval(self) -> metrics.Interval:
        """Of the share of all targets, over dates."""
        pair = [sums.only("squared_error")[..., self.counted] for sums in self._everywhere]
        block = min(BLOCK_DATES, pair[0].shape[0])

        def share(ours: Sums, theirs: Sums) -> float:
            return float((_rmse(ours) < _rmse(theirs)).mean())

        return metrics.bootstrap(share, *pair, block=block, samples=SAMPLES)

    def share_from(self, hours: int) -> metrics.Share:
        """Of all targets at leads of `hours` and more."""
        ours, theirs = (sums[:, hours // 6 - 1 :] for sums in self._everywhere)
        return _scores(ours, theirs).share(self.counted)

    def lost(self) -> list[str]:
        """Channels of which targets are lost, with how many leads, the worst first."""
        scores = _scores(*self._everywhere)
        lost = ((scores.ours >= scores.theirs) & self.counted).sum(axis=0)
        order = np.argsort(-lost, kind="stable")
        return [f"{self.channels.names[i]} ({lost[i]})" for i in order if lost[i]]

    @cached_property
    def _everywhere(self) -> tuple[Sums, Sums]:
        return paired(*_common(self.ours.everywhere, self.theirs.everywhere))

    @cached_property
    def _above_ground(self) -> "_Scores":
        """With the points below ground left out where there are some."""
        scores = _scores(*self._everywhere)
        if self.ours.above_ground.entries:
            above = _scores(*paired(*_common(self.ours.above_ground, self.theirs.above_ground)))
            rows = [self.channels.names.index(name) for name in self.ours.above_ground.channels]
            for whole, part in zip(scores, above):
                whole[:, rows] = part
        return scores


def against_all(world: World, tables: Mapping[str, Tables], ours: str) -> dict[str, Comparison]:
    """One source against each of the others. Raises ValueError where it was not scored."""
    if ours not in tables:
        raise ValueError(f"{ours} was not scored; there are {', '.join(tables)}")
    counted = ~np.isin(world.channels.names, world.statistics.persisted)
    resolved = counted & resolved_channels(world.channels, SIGMA)
    return {
        name: Comparison(tables[ours], table, world.channels, counted, resolved)
        for name, table in tables.items()
        if name != ours
    }


class _Scores(NamedTuple):
    """RMSE of both, and the activity ratio of ours."""

    ours: Float64[np.ndarray, "lead channel"]
    theirs: Float64[np.ndarray, "lead channel"]
    activity_ratio: Float64[np.ndarray, "lead channel"]

    def share(
        self, targets: Bool[np.ndarray, "#lead channel"] | Bool[np.ndarray, " channel"]
    ) -> metrics.Share:
        chosen = np.array(np.broadcast_to(targets, self.ours.shape))
        return metrics.share_won(self.ours, self.theirs, activity_ratio=self.activity_ratio, targets=chosen)


def _scores(ours: Sums, theirs: Sums) -> _Scores:
    ratio = np.nan_to_num(metrics.activity_ratio(ours), nan=0.0)
    return _Scores(_rmse(ours), _rmse(theirs), ratio)


def _rmse(dated: Sums) -> Float64[np.ndarray, "lead channel"]:
    """RMSE; a forecast that is no longer finite is worse than any that is."""
    return np.nan_to_num(metrics.rmse(dated), nan=_WORST, posinf=_WORST)


def resolved_channels(channels: ChannelSet, sigma: Sequence[float]) -> Bool[np.ndarray, " channel"]:
    """Whether a channel is near the surface or on the pressure level next to one of the simulator's levels.

    A level below the lowest of the simulator's is extrapolated: it is next to none.
    """
    pressures = [1013.25 * s for s in sigma]
    levels = sorted({c.level for c in channels.channels if c.level is not None and c.level <= max(pressures)})
    nearest = {min(levels, key=lambda level: abs(level - pressure)) for pressure in pressures}
    return np.array([c.level is None or c.level in nearest for c in channels.channels])


def headline_table(
    tables: Mapping[str, Tables], titles: Mapping[str, str], channels: ChannelSet
) -> Iterator[str]:
    """RMSE, ACC and activity ratio of every source at the headline leads, channel by channel, as Markdown."""
    hours = _headline_leads(tables)
    yield f"| channel, score | source | {' | '.join(f'{h} h' for h in hours)} |"
    yield f"|---|---|{'---|' * len(hours)}"
    rows = [channels.names.index(name) for name in HEADLINE]
    columns = [h // 6 - 1 for h in hours]
    sums = {source: table.everywhere.stacked()[:, columns][..., rows] for source, table in tables.items()}
    for row, name in enumerate(HEADLINE):
        for source, found in sums.items():
            for label, score in SCORES.items():
                factor = reading_units(name)[1] if label == "RMSE" else 1.0
                cells = " | ".join(f"{factor * value:.3g}" for value in score(found)[:, row])
                yield f"| {name} {label} | {titles[source]} | {cells} |"


def truncated_table(tables: Mapping[str, Tables], titles: Mapping[str, str]) -> Iterator[str]:
    """RMSE of every source at the leads of the spectra, of truncated fields, as Markdown."""
    first = next(iter(tables.values())).truncated
    hours = [hours_text(lead) for lead in first.leads]
    yield f"| source | lead | {' | '.join(HEADLINE)} |"
    yield f"|---|---|{'---|' * len(HEADLINE)}"
    factors = np.array([reading_units(name)[1] for name in HEADLINE])
    for name, table in tables.items():
        for label, scores in zip(hours, factors * metrics.rmse(table.truncated.stacked())):
            yield f"| {titles[name]} | {label} | {' | '.join(f'{value:.3g}' for value in scores)} |"


def spectra_table(tables: Mapping[str, Tables], titles: Mapping[str, str]) -> Iterator[str]:
    """The effective total wavenumber, and power ratio at 4 and 8 grid lengths, as Markdown."""
    yield "| channel | source | lead | effective wavenumber | power ratio, 8 grid lengths | 4 grid lengths |"
    yield "|---|---|---|---|---|---|"
    for source, table in tables.items():
        stacked = table.spectra.stacked()
        for step, lead in enumerate(table.spectra.leads):
            sums = stacked[:, step].total()
            ratio, coherent = power_ratio(sums), coherence(sums)
            places = [wavenumber_of(lengths, degrees=ratio.shape[-1]) for lengths in (8, 4)]
            for row, name in enumerate(HEADLINE):
                effective = effective_wavenumber(ratio[row], coherent[row])
                at = " | ".join(f"{smoothed_ratio(ratio[row], place):.2f}" for place in places)
                yield f"| {name} | {titles[source]} | {hours_text(lead)} | {effective} | {at} |"


def wavenumber_of(grid_lengths: int, *, degrees: int) -> int:
    """The total wavenumber of a wave of so many grid lengths: a grid of L degrees has 2 L columns."""
    return 2 * degrees // grid_lengths


def smoothed_ratio(ratio: Float64[np.ndarray, " wavenumber"], wavenumber: int) -> float:
    """The geometric mean over the neighbouring wavenumbers: one wavenumber alone is noise."""
    around = ratio[max(1, wavenumber - 2) : wavenumber + 3]
    return float(np.exp(np.log(around).mean()))


def _headline_leads(tables: Mapping[str, Tables]) -> list[int]:
    longest = min(len(table.everywhere.leads) for table in tables.values()) * 6
    return [h for h in HEADLINE_LEADS if h <= longest]


def _common(first: DatedSums, second: DatedSums) -> tuple[DatedSums, DatedSums]:
    """Both without the starts that the other lacks: a twin is scored on fewer dates."""
    starts = set(first.starts) & set(second.starts)
    return first.only(starts), second.only(starts)
