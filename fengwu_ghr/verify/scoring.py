"""Scoring: the sums of every kind of one initial time and lead, of all forecasts at once, field by field.

Truth and climatology are read once for all forecasts; no more than a few fields are held.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, partial
from typing import Any

import numpy as np

from fengwu_ghr.coarsen import AreaMean
from fengwu_ghr.errors import MissingValues
from fengwu_ghr.grid import LatLonGrid, product_grid
from fengwu_ghr.variables import Channel
from fengwu_ghr.verify.climate import ClimateStore
from fengwu_ghr.verify.events import CELLS, Threshold, event_sums, passes
from fengwu_ghr.verify.fields import Analyses, Field, Forecasts, Persistence, ToGrid
from fengwu_ghr.verify.kept import Scores
from fengwu_ghr.verify.neighbourhood import FRACTIONS, fraction_sums
from fengwu_ghr.verify.places import ANALYSED, Places
from fengwu_ghr.verify.quantities import RAIN, Values, channels_of, earlier, quantity, shortest_lead
from fengwu_ghr.verify.rain import seeps_sums
from fengwu_ghr.verify.regions import Regions
from fengwu_ghr.verify.spectra import spectral_sums
from fengwu_ghr.verify.statistics import Sums, state_sums

_MAPS = product_grid(20)
"""On which maps of errors are kept: 1.8 degrees, or the evaluation grid where that is coarser."""

_Part = tuple[str, str, Sums]
"""Of a forecast, of a kind, some rows."""
Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Measures:
    """What is measured: the rows of every kind of sums."""

    channels: tuple[Channel, ...]
    thresholds: tuple[Threshold, ...] = ()
    neighbourhoods_km: tuple[float, ...] = ()
    shown_leads: tuple[timedelta, ...] = ()
    shown_channels: tuple[Channel, ...] = ()
    """Of which spectra and maps are kept, at these leads."""
    measured: tuple[str, ...] = ()
    """What stations measure and all forecasts have."""
    has_rain: bool = False
    has_spectra: bool = True

    def rows(self, kind: str) -> tuple[str, ...]:
        """The names of the first axis of the sums of this kind."""
        match kind:
            case "fields":
                return tuple(map(str, self.channels))
            case "events":
                return tuple(map(str, self.thresholds))
            case "neighbourhoods":
                return tuple(f"{t}, {km:g} km" for t in self.thresholds for km in self.neighbourhoods_km)
            case "rain":
                return (RAIN,) if self.has_rain else ()
            case "stations" | "places":
                return self.measured
            case _:
                return tuple(map(str, self.shown_channels))


@dataclass(frozen=True, eq=False)
class Scorer:
    """Sums of forecasts against one truth, on one grid."""

    truth: Analyses
    forecasts: Mapping[str, Forecasts]
    regions: Regions
    measures: Measures
    climate: ClimateStore | None = None
    places: Places | None = None

    def score(self, initial_time: datetime, lead: timedelta, *, run: Run = map) -> Scores:
        """The sums of every kind that this lead has; `run` calls a function for each of many, as `map` does.

        Raises MissingValues where a field has some, InputError for what is missing or cannot be read.
        """
        jobs = [
            *(partial(self._of_channel, channel) for channel in self.measures.channels),
            *(partial(self._of_event, threshold) for threshold in self.measures.thresholds),
            self._of_rain,
            self._of_stations,
        ]
        found: dict[str, dict[str, list[Sums]]] = {name: {} for name in self.forecasts}
        for parts in run(lambda job: list(job(initial_time, lead)), jobs):
            for name, kind, sums in parts:
                found[name].setdefault(kind, []).append(sums)
        return {
            name: {kind: _joined(parts) for kind, parts in kinds.items()} for name, kinds in found.items()
        }

    def _of_channel(self, channel: Channel, initial_time: datetime, lead: timedelta) -> Iterator[_Part]:
        truth = self._truth(str(channel), initial_time + lead)
        normal = None if self.climate is None else self.climate.mean(str(channel), initial_time + lead)[None]
        shown = lead in self.measures.shown_leads and channel in self.measures.shown_channels
        for name in self.forecasts:
            forecast = self._forecast(name, str(channel), initial_time, lead)
            yield name, "fields", state_sums(forecast[None], truth[None], normal, regions=self.regions)
            if shown and self.measures.has_spectra:
                yield name, "spectra", spectral_sums(forecast[None], truth[None], self.regions.grid)
            if shown:
                yield name, "maps", self._map_sums(forecast, truth)

    def _of_event(self, threshold: Threshold, initial_time: datetime, lead: timedelta) -> Iterator[_Part]:
        if not self.holds(threshold.channel, initial_time, lead):
            yield from self._of_no_event()
            return
        truth = self._truth(threshold.channel, initial_time + lead)
        limit = self._limit(threshold, initial_time + lead)
        observed = passes(truth, threshold, limit)[None]
        for name in self.forecasts:
            forecast = self._forecast(name, threshold.channel, initial_time, lead)
            expected = passes(forecast, threshold, limit)[None]
            yield name, "events", event_sums(expected, observed, regions=self.regions)
            for width in self.measures.neighbourhoods_km:
                sums = fraction_sums(expected, observed, kilometres=width, regions=self.regions)
                yield name, "neighbourhoods", sums

    def _of_no_event(self) -> Iterator[_Part]:
        """Rows of weight 0: rain of 24 hours, before the first 24."""
        shape = (1, len(self.regions.names))
        for name in self.forecasts:
            yield name, "events", Sums.zeros(CELLS, shape)
            for _ in self.measures.neighbourhoods_km:
                yield name, "neighbourhoods", Sums.zeros(FRACTIONS, shape)

    def _of_rain(self, initial_time: datetime, lead: timedelta) -> Iterator[_Part]:
        if not (self.measures.has_rain and self.holds(RAIN, initial_time, lead)):
            return
        assert self.climate is not None
        truth = self._truth(RAIN, initial_time + lead)
        dry, heavy = self.climate.rain(initial_time + lead)
        for name in self.forecasts:
            forecast = self._forecast(name, RAIN, initial_time, lead)
            sums = seeps_sums(forecast, truth, dry_share=dry, heavy_limit=heavy, regions=self.regions)
            yield name, "rain", sums

    def _of_stations(self, initial_time: datetime, lead: timedelta) -> Iterator[_Part]:
        """Forecasts are interpolated to the stations from their own grids."""
        if (places := self.places) is None:
            return
        valid_time = initial_time + lead
        checked = [
            n
            for n in self.measures.measured
            if n in ANALYSED and all(self.truth.holds(c, valid_time) for c in channels_of(n))
        ]
        truth = {name: self._own_grid("", name, initial_time, lead) for name in checked}
        reports = places.at(valid_time, truth)
        possible = [n for n in self.measures.measured if self._all_have(n, initial_time, lead)]
        for source in self.forecasts:
            fields = {name: self._own_grid(source, name, initial_time, lead) for name in possible}
            models = {name: places.model(name, *field, reports) for name, field in fields.items()}
            yield source, "stations", places.region_sums(reports, models)
            if lead in self.measures.shown_leads:
                yield source, "places", places.station_sums(reports, models)

    def _all_have(self, name: str, initial_time: datetime, lead: timedelta) -> bool:
        spans = [(channel, before) for channel in channels_of(name) for before in earlier(name)]
        return lead >= shortest_lead(name) and all(
            _has(forecast, channel, initial_time, lead, before)
            for forecast in self.forecasts.values()
            for channel, before in spans
        )

    def _own_grid(
        self, source: str, name: str, initial_time: datetime, lead: timedelta
    ) -> tuple[Field, LatLonGrid]:
        """The field on the grid of its source where that has rows and columns, else on the evaluation grid."""
        values = self._of_truth(name, initial_time + lead) if not source else None
        values = self._of_forecast(source, name, initial_time, lead) if values is None else values
        grid = self.forecasts[source].grid if source else self.truth.grid
        if isinstance(grid, LatLonGrid):
            return values, grid
        return self._to_grid[source].apply(values, name), self.regions.grid

    def _limit(self, threshold: Threshold, valid_time: datetime) -> Field | float:
        if not threshold.is_percentile:
            return threshold.value
        assert self.climate is not None
        return self.climate.percentile(threshold.channel, threshold.value, valid_time)

    def _truth(self, name: str, valid_time: datetime) -> Field:
        found = self._to_grid[""].apply(self._of_truth(name, valid_time), name)
        return _finite(found, f"the truth {self.truth.name}", name, valid_time)

    def _forecast(self, source: str, name: str, initial_time: datetime, lead: timedelta) -> Field:
        found = self._to_grid[source].apply(self._of_forecast(source, name, initial_time, lead), name)
        return _finite(found, f"{source} from {initial_time:%Y-%m-%d %H:%M}", name, initial_time + lead)

    def _of_truth(self, name: str, valid_time: datetime) -> Values:
        return quantity(name, lambda channel, before: self.truth.read(channel, valid_time - before))

    def _of_forecast(self, source: str, name: str, initial_time: datetime, lead: timedelta) -> Values:
        forecast = self.forecasts[source]
        if isinstance(forecast, Persistence):  # of the 24 hours up to the initial time
            return quantity(
                name, lambda channel, before: forecast.analyses.read(channel, initial_time - before)
            )
        return quantity(name, lambda channel, before: forecast.read(channel, initial_time, lead - before))

    def holds(self, name: str, initial_time: datetime, lead: timedelta) -> bool:
        """Whether truth and all forecasts have a channel or quantity of this pair."""
        valid_time = initial_time + lead
        return self._all_have(name, initial_time, lead) and all(
            self.truth.holds(channel, valid_time - before)
            for channel in channels_of(name)
            for before in earlier(name)
        )

    @cached_property
    def _to_grid(self) -> dict[str, ToGrid]:
        target = self.regions.grid
        made = {name: ToGrid(source.grid, target) for name, source in self.forecasts.items()}
        return made | {"": ToGrid(self.truth.grid, target)}

    @property
    def methods(self) -> dict[str, str]:
        """How truth ("") and forecasts came to the evaluation grid."""
        return {name: to.method for name, to in self._to_grid.items()}

    def _map_sums(self, forecast: Field, truth: Field) -> Sums:
        error = self._to_maps(forecast - truth)
        square = self._to_maps((forecast - truth) ** 2)
        weight = np.ones((1, *error.shape))
        sums = {"error": error[None].astype(np.float64), "squared_error": square[None].astype(np.float64)}
        return Sums(weight, sums)

    def _to_maps(self, values: Field) -> Field:
        return values if self._coarsen is None else self._coarsen.apply(values)

    @cached_property
    def _coarsen(self) -> AreaMean | None:
        grid = self.regions.grid
        return AreaMean(grid, _MAPS) if map_grid(grid) != grid else None


def _has(
    forecast: Forecasts, channel: Channel, initial_time: datetime, lead: timedelta, before: timedelta
) -> bool:
    if isinstance(forecast, Persistence):
        return forecast.analyses.holds(channel, initial_time - before)
    return forecast.holds(channel, initial_time, lead - before)


def _finite(values: Field, where: str, name: str, valid_time: datetime) -> Field:
    """The field itself. Raises MissingValues for one that is: it would count as no event, and spoil all regions."""
    if not np.isfinite(values).all():
        count = int(np.sum(~np.isfinite(values)))
        raise MissingValues(
            f"{where}: {name} valid {valid_time:%Y-%m-%d %H:%M} has {count} values that are not finite"
        )
    return values


def map_grid(grid: LatLonGrid) -> LatLonGrid:
    """The grid on which maps of errors are kept for this evaluation grid."""
    return _MAPS if grid.is_global and grid.points > _MAPS.points else grid


def _joined(parts: list[Sums]) -> Sums:
    """Rows one after the other."""
    first = parts[0]
    sums = {name: np.concatenate([part.sums[name] for part in parts]) for name in first.names}
    return Sums(np.concatenate([part.weight for part in parts]), sums)
