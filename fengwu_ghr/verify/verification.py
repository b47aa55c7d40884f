"""Verification: which forecasts are compared with which truth, where and on which measures, before any work is done."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from fengwu_ghr.config import VerifySection, parse_threshold
from fengwu_ghr.errors import InputError, UsageError
from fengwu_ghr.grid import LatLonGrid, named_grid
from fengwu_ghr.shores import land_of
from fengwu_ghr.variables import HEADLINE, Channel, channel
from fengwu_ghr.verify.climate import ABOUT, ClimateStore
from fengwu_ghr.verify.events import Threshold
from fengwu_ghr.verify.fields import Analyses, Forecasts, Persistence, StepZero, digest_of
from fengwu_ghr.verify.gribs import SHORTEST
from fengwu_ghr.verify.kept import FORECAST, KINDS, Description, Pair
from fengwu_ghr.verify.opening import open_analyses, open_forecasts, read_land, read_orography
from fengwu_ghr.verify.pairing import find_pairs, who_lacks
from fengwu_ghr.verify.places import Places
from fengwu_ghr.verify.quantities import RAIN, channels_of
from fengwu_ghr.verify.regions import BOXES, SURFACES, Box, Regions
from fengwu_ghr.verify.reports import read_reports
from fengwu_ghr.verify.scoring import Measures, Scorer, map_grid
from fengwu_ghr.verify.spectra import is_analysable
from fengwu_ghr.verify.stations import Observations

PERSISTENCE = "persistence"
_IRRELEVANT = {
    "output",
    "workers",
    "scheduler",
    "first",
    "last",
    "hours",
    "leads_hours",
    "forecast",
    "truth",
    "baselines",
    "climatology",
    "stations",
    "orography",
    "land_mask",
    "masks",
    "online",
}
"""Settings that do not decide what a piece holds. Files may be added; their fingerprints tell where they changed."""


@dataclass(frozen=True, eq=False)
class Verification:
    """A verification that can be done: sources opened, what they share found out."""

    settings: VerifySection
    truth: Analyses
    forecasts: Mapping[str, Forecasts]
    """By name: the one that is verified first, then its baselines."""
    grid: LatLonGrid
    climate: ClimateStore | None
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]

    def __enter__(self) -> "Verification":
        return self

    def __exit__(self, *exception: object) -> None:
        """No process is left that decodes, no file open."""
        self.truth.close()
        for source in self.forecasts.values():
            source.close()

    @cached_property
    def measures(self) -> Measures:
        """The rows of all sums: channels that all sources have."""
        channels = self._channels
        thresholds = tuple(_threshold(text) for text in self.settings.thresholds)
        shown = tuple(map(channel, HEADLINE))
        return Measures(
            channels=channels,
            thresholds=thresholds,
            neighbourhoods_km=self.settings.neighbourhoods_km if thresholds else (),
            shown_leads=tuple(timedelta(hours=hours) for hours in self.settings.shown_hours),
            shown_channels=tuple(c for c in shown if c in channels) or channels[:9],
            measured=tuple(name for name in self._reports.values if self._all_forecasts_have(name))
            if self._reports
            else (),
            has_rain=bool(self.climate and self.climate.has_rain and self._all_have(RAIN)),
            has_spectra=is_analysable(self.grid),
        )

    @property
    def quantities(self) -> set[str]:
        """Channels and quantities that forecasts are asked for."""
        measures = self.measures
        rain = {RAIN} if measures.has_rain else set()
        return {
            *measures.rows("fields"),
            *(t.channel for t in measures.thresholds),
            *measures.measured,
            *rain,
        }

    @cached_property
    def regions(self) -> Regions:
        """Boxes, land and sea that have an area on the grid, and masks; or those that were asked for."""
        boxes = {name: Box(s, n, w, e) for name, (n, w, s, e) in self.settings.boxes.items()}
        masks = {name: read_land(path, self.grid) for name, path in self.settings.masks.items()}
        if names := self.settings.regions:
            land = self._land if set(names) & set(SURFACES) else None
            return Regions.named(self.grid, names, boxes=boxes, land=land, masks=masks)
        inside = [
            name
            for name, box in {**BOXES, **boxes}.items()
            if Regions(self.grid, {name: box}, {}).areas[0] > 0
        ]
        share = float((self._land * self.grid.cell_areas()).sum())
        surfaces = [name for name, part in zip(SURFACES, (share, 1 - share)) if part > 1e-9]
        names = (*inside, *surfaces, *masks)
        return Regions.named(self.grid, names, boxes=boxes, land=self._land, masks=masks)

    @cached_property
    def scorer(self) -> Scorer:
        return Scorer(self.truth, self.forecasts, self.regions, self.measures, self.climate, self.places)

    @cached_property
    def places(self) -> Places | None:
        """The stations, with what of their reports all forecasts have; None without any."""
        if self._reports is None:
            return None
        values = {name: self._reports.values[name] for name in self.measures.measured}
        if not values:
            raise InputError(
                f"stations measure {', '.join(self._reports.values)}; truth and forecasts hold none of it"
            )
        return Places(replace(self._reports, values=values), self.regions, self._surface)

    @cached_property
    def _reports(self) -> Observations | None:
        return read_reports(self.settings.stations) if self.settings.stations else None

    @cached_property
    def _surface(self) -> tuple[np.ndarray, LatLonGrid] | None:
        path = self.settings.orography
        return None if path is None else read_orography(path)

    @property
    def evaluated_on(self) -> str:
        """What is shown with every score."""
        return f"{self.grid}, {self.scorer.methods[FORECAST]}"

    def description(self) -> Description:
        """What the sums are of."""
        return Description(
            identity=self._identity(),
            title=self.forecasts[FORECAST].name,
            rows={kind: self.measures.rows(kind) for kind in KINDS},
            regions=self.regions.names,
            evaluated_on=self.evaluated_on,
            extent=_extent(map_grid(self.grid)),
            facts=self._facts(),
            notes=self.notes,
        )

    def _facts(self) -> dict[str, str]:
        """What a reader must know of the scores."""
        return {
            "evaluation_grid": self.evaluated_on,
            "truth": f"{self.truth.name} ({self.truth.kind}), {self.scorer.methods['']}",
            "forecasts": "; ".join(
                f"{name}: {source.name} ({source.kind}), {self.scorer.methods[name]}"
                for name, source in self.forecasts.items()
            ),
            "climatology": "none" if self.climate is None else str(self.climate.path),
            **({} if self.places is None else self.places.facts),
            "settings": self.settings.model_dump_json(),
        }

    def _identity(self) -> dict[str, Any]:
        """What decides the sums of a pair, of all but the fields themselves."""
        settings = json.loads(self.settings.model_dump_json(exclude=_IRRELEVANT))
        return {
            **settings,
            "grid": self.grid.key,
            "channels": [str(c) for c in self.measures.channels],
            "regions": list(self.regions.names),
            "truth": self.truth.kind,
            # Persistence stands where there are analyses of the initial time; sums are collected where all have it.
            "forecasts": [f"{n}: {source.kind}" for n, source in self.forecasts.items() if n != PERSISTENCE],
            "measured": list(self.measures.measured),
            "rain": list(self.measures.rows("rain")),
            "files": self._state_of_helpers(),
        }

    def _state_of_helpers(self) -> dict[str, str]:
        """Of the files beside the fields themselves: where one has changed, all sums are of other things."""
        settings = self.settings
        paths = {"orography": settings.orography, "land mask": settings.land_mask, **settings.masks}
        paths["climatology"] = None if self.climate is None else self.climate.path / ABOUT
        # By content: sums of several machines are added, whatever the files are called there.
        return {name: digest_of(path) for name, path in paths.items() if path is not None}

    @property
    def _channels(self) -> tuple[Channel, ...]:
        held = [set(self.truth.channels), *(set(source.channels) for source in self.forecasts.values())]
        if self.climate is not None:
            held.append({c for c in map(_channel_or_none, self.climate.channels) if c})
        wanted = _asked_channels(self.settings) or self.forecasts[FORECAST].channels
        common = tuple(c for c in wanted if all(c in channels for channels in held))
        lacking = [str(c) for c in wanted if c not in common]
        if (self.settings.channels and lacking) or not common:
            raise InputError(
                f"truth, forecast, baselines and climatology must all hold what is verified; {self._told(lacking)}: "
                "leave them out with --channels"
            )
        return common

    @property
    def left_out(self) -> str:
        """Which channels of the forecast are not verified, and for want of what; empty where all are."""
        lacking = [str(c) for c in self.forecasts[FORECAST].channels if c not in self.measures.channels]
        return "" if self.settings.channels or not lacking else f"left out: {self._told(lacking)}"

    def _told(self, names: Sequence[str]) -> str:
        """Who lacks which of these."""
        held: dict[str, Sequence[Channel | str]] = {
            n: s.channels for n, s in self.forecasts.items() if n != PERSISTENCE
        }
        held |= {f"the truth {self.truth.name}": self.truth.channels}
        held |= {} if self.climate is None else {"the climatology": self.climate.channels}
        return who_lacks(names, held)

    def _all_have(self, name: str) -> bool:
        return self._all_forecasts_have(name) and set(channels_of(name)) <= set(self.truth.channels)

    def _all_forecasts_have(self, name: str) -> bool:
        needed = set(channels_of(name))
        return all(needed <= set(source.channels) for source in self.forecasts.values())

    @cached_property
    def _land(self) -> np.ndarray:
        path = self.settings.land_mask
        return land_of(self.grid) if path is None else read_land(path, self.grid)


def plan_verification(settings: VerifySection, forecast: Forecasts | None = None) -> Verification:
    """What these settings ask for, of the forecast they name or of this one.

    Raises InputError or UsageError where it cannot be done, before any work.
    """
    with ExitStack() as opened:  # closed again where it cannot be done
        made = _planned(settings, forecast or _kept(opened, open_forecasts(settings.forecast)), opened)
        opened.pop_all()
    return made


def _planned(settings: VerifySection, forecast: Forecasts, opened: ExitStack) -> Verification:
    truth = _kept(opened, open_analyses(settings.truth))
    baselines = {name: _kept(opened, open_forecasts(paths)) for name, paths in settings.baselines.items()}
    if reserved := {FORECAST, PERSISTENCE, ""} & set(baselines):
        raise UsageError(f"a baseline cannot be named {reserved.pop()!r}; choose another name")
    climate = None if settings.climatology is None else ClimateStore.open(settings.climatology)
    grid = _evaluation_grid(settings.grid, {"native": forecast, "truth": truth, **baselines})
    if climate is not None and climate.grid != grid:
        raise InputError(
            f"the climatology is on {climate.grid}, the evaluation on {grid}; make it of analyses on that grid, or "
            "evaluate on its grid (--grid)"
        )
    if settings.truth == settings.forecast and truth.kind.endswith(SHORTEST):
        raise InputError(
            f"{truth.name} is forecast and truth at once, and it holds more than analyses: beyond them the forecast "
            "would be its own truth; give analyses with --truth"
        )
    forecasts: dict[str, Forecasts] = {FORECAST: forecast, **baselines}
    pairs, notes = find_pairs(settings, truth, forecasts)
    if settings.persistence:
        starts = tuple(sorted({time for time, _ in pairs}))
        leads = tuple(sorted({lead for _, lead in pairs}))
        analyses = _holding(starts, truth, StepZero(forecast))
        if analyses is None:
            notes = (
                *notes,
                "no persistence: neither truth nor forecasts hold the analyses of all initial times",
            )
        else:
            forecasts[PERSISTENCE] = Persistence(analyses, starts, leads)
    if climate is not None:
        climate.check_independent([time + lead for time, lead in pairs])
        climate.check_hours([time + lead for time, lead in pairs])
    made = _with_all_channels(Verification(settings, truth, forecasts, grid, climate, pairs, notes))
    _check_thresholds(made)
    return replace(made, notes=tuple(filter(None, (*made.notes, made.left_out, *_of_reports(made)))))


def _of_reports(made: Verification) -> list[str]:
    """A note where stations report nothing that can be used."""
    if made.places is None:
        return []
    used = sum(len(made.places.reports.at(time)) for time in {start + lead for start, lead in made.pairs})
    if used:
        return []
    times = made.places.reports.time
    return [
        f"no station reports within 30 min of a verified time; reports are from {times.min()} to {times.max()}"
    ]


def _with_all_channels(made: Verification) -> Verification:
    """Of the pairs those of which every channel is there."""
    kept = tuple(
        pair for pair in made.pairs if all(made.scorer.holds(str(c), *pair) for c in made.measures.channels)
    )
    lacking = len(made.pairs) - len(kept)
    if not kept:
        raise InputError(
            "nothing can be verified: no pair of initial time and lead has all channels; see --channels"
        )
    if not lacking:
        return made
    told = f"{lacking} of {len(made.pairs)} forecasts lack a channel, or their truth does, and are left out"
    return replace(made, pairs=kept, notes=(*made.notes, told))


Source = TypeVar("Source", Forecasts, Analyses)


def _kept(opened: ExitStack, source: Source) -> Source:
    opened.callback(source.close)
    return source


def _extent(grid: LatLonGrid) -> tuple[float, float, float, float]:
    """West, south, east and north, in degrees."""
    south, north = float(grid.row_edges[-1]), float(grid.row_edges[0])
    if grid.is_periodic:
        return 0.0, south, 360.0, north
    half = float(np.diff(grid.longitude).mean()) / 2
    return float(grid.longitude[0]) - half, south, float(grid.longitude[-1]) + half, north


def _holding(times: Sequence[datetime], *sources: Analyses) -> Analyses | None:
    """The first of these that holds all times."""
    return next((source for source in sources if set(times) <= set(source.valid_times)), None)


def _evaluation_grid(name: str, sources: Mapping[str, Forecasts | Analyses]) -> LatLonGrid:
    """That of a source, or one by name."""
    try:
        grid = sources[name].grid if name in sources else named_grid(name)
    except ValueError as error:
        raise UsageError(f"--grid: {error}; or {', '.join(sources)}") from None
    if not isinstance(grid, LatLonGrid):
        raise UsageError(
            f"scores are computed on latitude-longitude grids; {grid} is none: give one no finer than it, as --grid 1p5"
        )
    return grid


def _threshold(text: str) -> Threshold:
    name, above, is_percentile, value = parse_threshold(text)
    return Threshold(name, value, above, is_percentile)


def _check_thresholds(made: Verification) -> None:
    for threshold in made.measures.thresholds:
        try:
            has_all = made._all_have(threshold.channel)
        except ValueError as error:
            raise UsageError(f"threshold {threshold}: {error}") from None
        if not has_all:
            raise InputError(
                f"threshold {threshold}: truth and forecasts do not all hold {threshold.channel}"
            )
        if threshold.is_percentile and (
            made.climate is None or threshold.value not in made.climate.percentiles.get(threshold.channel, ())
        ):
            raise InputError(
                f"threshold {threshold} needs a climatology that has this percentile: fengwu-ghr climatology "
                f"--percentiles {threshold.channel}={threshold.value:g}"
            )


def _asked_channels(settings: VerifySection) -> list[Channel]:
    """Each once. Raises UsageError for what is no channel."""
    try:
        return list(dict.fromkeys(channel(text) for text in settings.channels))
    except ValueError as error:
        raise UsageError(f"verify.channels: {error}") from None


def _channel_or_none(name: str) -> Channel | None:
    try:
        return channel(name)
    except ValueError:
        return None
