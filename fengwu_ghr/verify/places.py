"""Places: forecasts at stations, error by error: sums by region, and by station where a map is wanted."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float32, Float64

from fengwu_ghr.grid import LatLonGrid
from fengwu_ghr.verify.regions import Regions
from fengwu_ghr.verify.stations import (
    MOST_HEIGHT_DIFFERENCE,
    Observations,
    at_places,
    to_station_height,
    without_gross_errors,
)
from fengwu_ghr.verify.statistics import ERRORS, Sums

ANALYSED = ("2t", "10ws", "msl")
"""What the analysis is held against to find gross errors."""


@dataclass(frozen=True, eq=False)
class Places:
    """Reports of stations, the regions they lie in, and the surface of the model where it is known."""

    reports: Observations
    regions: Regions
    surface: tuple[Float32[np.ndarray, "lat lon"], LatLonGrid] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What the stations measure."""
        return tuple(self.reports.values)

    @cached_property
    def stations(self) -> tuple[str, ...]:
        return tuple(np.unique(self.reports.station).tolist())

    @cached_property
    def positions(self) -> dict[str, tuple[float, float]]:
        """Latitude and longitude (-180 to 180) of every station, in the order of `stations`, as first reported."""
        names, first = np.unique(self.reports.station, return_index=True)
        longitude = (self.reports.longitude[first] + 180) % 360 - 180
        return dict(zip(names.tolist(), zip(self.reports.latitude[first].tolist(), longitude.tolist())))

    @property
    def facts(self) -> dict[str, str]:
        """What a reader must know of the stations."""
        height = "at the height of the station" if self.surface else "uncorrected for height"
        refused = (f"{count} {reason}" for reason, count in self.reports.refused.items())
        return {
            "stations": f"{len(self.stations)}, from {self.reports.source}; 2t {height}",
            "refused": "; ".join(refused) or "none",
        }

    def at(self, valid_time: datetime, truth: Mapping[str, tuple[np.ndarray, LatLonGrid]]) -> Observations:
        """The reports of this time; values far from the truth, where it has them, are refused."""
        reports = self.reports.at(valid_time)
        expected = {name: self.model(name, *fields, reports) for name, fields in truth.items()}
        kept = without_gross_errors(replace(reports, refused={}), expected)
        self._refused[valid_time] = {**kept.refused, **self._too_high(kept)}
        return kept

    def refused_at(self, valid_time: datetime) -> Mapping[str, int]:
        """By reason, what `at` left out of the reports of this time."""
        return self._refused.get(valid_time, {})

    def _too_high(self, reports: Observations) -> dict[str, int]:
        """Temperatures of stations too far above or below the model's surface."""
        if self.surface is None or "2t" not in reports.values:
            return {}
        height = at_places(*self.surface, reports.latitude, reports.longitude)
        away = np.abs(height - reports.elevation) > MOST_HEIGHT_DIFFERENCE
        count = int(np.sum(away & np.isfinite(reports.values["2t"])))
        return {f"2t more than {MOST_HEIGHT_DIFFERENCE:g} m from the model's surface": count} if count else {}

    @cached_property
    def _refused(self) -> dict[datetime, Mapping[str, int]]:
        return {}

    def fingerprint(self, valid_time: datetime) -> str:
        """Changes where the reports of this time change."""
        reports = self.reports.at(valid_time)
        digest = hashlib.sha256("\n".join(reports.station.tolist()).encode())
        for column in (reports.latitude, reports.longitude, reports.elevation, *reports.values.values()):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    def model(
        self, name: str, values: Float32[np.ndarray, "lat lon"], grid: LatLonGrid, reports: Observations
    ) -> Float64[np.ndarray, " report"]:
        """What the field says at the stations; 2-metre temperature at their height where the surface is known."""
        found = at_places(values, grid, reports.latitude, reports.longitude)
        if name != "2t" or self.surface is None:
            return found
        height = at_places(*self.surface, reports.latitude, reports.longitude)
        return to_station_height(found, height, reports.elevation)

    def region_sums(
        self, reports: Observations, models: Mapping[str, Float64[np.ndarray, " report"]]
    ) -> Sums:
        """Sums of errors by quantity and region; every station counts once."""
        inside = self._inside(reports)
        return _stacked([_sums(self._errors(reports, models, name), inside) for name in self.names])

    def station_sums(
        self, reports: Observations, models: Mapping[str, Float64[np.ndarray, " report"]]
    ) -> Sums:
        """Sums of errors by quantity and station."""
        where = np.searchsorted(np.array(self.stations), reports.station)
        own = np.zeros((len(reports), len(self.stations)), bool)
        own[np.arange(len(reports)), where] = True
        return _stacked([_sums(self._errors(reports, models, name), own) for name in self.names])

    def _errors(
        self, reports: Observations, models: Mapping[str, Float64[np.ndarray, " report"]], name: str
    ) -> Float64[np.ndarray, " report"]:
        """NaN where there is no model value or no observation."""
        nothing = np.full(len(reports), np.nan)
        return models.get(name, nothing) - reports.values[name]

    def _inside(self, reports: Observations) -> Bool[np.ndarray, "report region"]:
        """Which station lies in which region: that of the cell it lies in."""
        grid = self.regions.grid
        rows = np.searchsorted(-grid.row_edges[1:-1], -reports.latitude)
        step = float(np.diff(grid.longitude).mean())
        columns = np.rint(np.mod(reports.longitude - grid.longitude[0], 360) / step).astype(np.int64)
        columns = columns % grid.shape[1] if grid.is_periodic else np.minimum(columns, grid.shape[1] - 1)
        return np.stack([self._cells[name][rows, columns] for name in self.regions.names], axis=1)

    @cached_property
    def _cells(self) -> dict[str, Bool[np.ndarray, "lat lon"]]:
        """Of each region the cells that lie in it by half or more."""
        half = self.regions.grid.cell_areas() / 2
        return {name: self.regions.weights(name) > half for name in self.regions.names}


def _sums(errors: Float64[np.ndarray, " report"], groups: Bool[np.ndarray, "report group"]) -> Sums:
    known = np.isfinite(errors)
    error = np.where(known, errors, 0.0)
    of_groups = groups.astype(np.float64)
    statistics = (error, error**2, np.abs(error))
    return Sums(known @ of_groups, {name: value @ of_groups for name, value in zip(ERRORS, statistics)})


def _stacked(parts: Sequence[Sums]) -> Sums:
    sums = {name: np.stack([part.sums[name] for part in parts]) for name in ERRORS}
    return Sums(np.stack([part.weight for part in parts]), sums)
