"""Stations: what was measured, whether it can be right, and what a field says at the place.

Observations are columns in units of the registry; a value that is missing or refused is NaN. The field is
interpolated bilinearly; 2-metre temperature is brought to the height of the station, 6.5 K per km, where the height of
the model's surface is known.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import numpy as np
from jaxtyping import Bool, Float32, Float64

from fengwu_ghr.errors import InputError
from fengwu_ghr.grid import LatLonGrid

MEASURED = {
    "2t": (180.0, 340.0),
    "10ws": (0.0, 90.0),
    "msl": (86_000.0, 109_000.0),
    "tp6h": (0.0, 900.0),
    "tp24h": (0.0, 2_000.0),
}
"""Channels of stations and the bounds beyond which a value is a gross error: K, m s-1, Pa, kg m-2."""
LAPSE_RATE = 0.0065
"""K m-1, by which 2-metre temperature is reduced."""
MOST_HEIGHT_DIFFERENCE = 500.0
"""Metres between station and model surface beyond which a place is left out."""
FURTHEST_FROM_TRUTH = {"2t": 15.0, "10ws": 25.0, "msl": 2_000.0}
"""An observation further from the analysis than this is a gross error too."""
WINDOW = timedelta(minutes=30)
"""Around the valid time, within which an observation counts."""


@dataclass(frozen=True, eq=False)
class Observations:
    """Reports, one a row: who, where, when, and by channel what."""

    station: np.ndarray
    latitude: Float64[np.ndarray, " report"]
    longitude: Float64[np.ndarray, " report"]
    elevation: Float64[np.ndarray, " report"]
    """Metres above mean sea level; NaN where it is not known."""
    time: np.ndarray
    """datetime64[s], UTC."""
    values: Mapping[str, Float32[np.ndarray, " report"]]
    source: str = ""
    refused: Mapping[str, int] = field(default_factory=dict)
    """By reason, how many values or reports were left out."""

    def __post_init__(self) -> None:
        columns = (
            self.station,
            self.latitude,
            self.longitude,
            self.elevation,
            self.time,
            *self.values.values(),
        )
        if len({len(column) for column in columns}) != 1:
            raise ValueError(f"columns of observations differ in length: {[len(c) for c in columns]}")
        if unknown := sorted(set(self.values) - set(MEASURED)):
            raise ValueError(f"stations measure {', '.join(MEASURED)}; got {', '.join(unknown)}")

    def __len__(self) -> int:
        return len(self.station)

    def only(self, chosen: Bool[np.ndarray, " report"], reason: str = "") -> "Observations":
        """These reports; how many were not is noted under the reason."""
        refused = _noted(self.refused, reason, int(np.sum(~chosen))) if reason else self.refused
        return replace(
            self,
            station=self.station[chosen],
            latitude=self.latitude[chosen],
            longitude=self.longitude[chosen],
            elevation=self.elevation[chosen],
            time=self.time[chosen],
            values={name: column[chosen] for name, column in self.values.items()},
            refused=refused,
        )

    def at(self, valid_time: datetime) -> "Observations":
        """The report of each station nearest this time, within WINDOW of it."""
        distance = np.abs(self.time - np.datetime64(valid_time, "s")).astype("m8[s]").astype(np.int64)
        near = np.flatnonzero(distance <= WINDOW.total_seconds())
        order = near[np.lexsort((distance[near], self.station[near]))]
        first = np.ones(order.size, bool)
        first[1:] = self.station[order][1:] != self.station[order][:-1]
        chosen = np.zeros(len(self), bool)
        chosen[order[first]] = True
        return self.only(chosen)


def checked(reports: Observations) -> Observations:
    """The reports that can be right: places on Earth, one report per station and time, values within bounds.

    Of two reports of a station at one time the values of the first that has them are taken, where they agree on the
    place. Raises InputError where nothing is left.
    """
    on_earth = (np.abs(reports.latitude) <= 90) & (np.abs(reports.longitude) <= 360) & ~np.isnat(reports.time)
    reports = _merged(reports.only(on_earth, "place or time is not on Earth"))
    values, refused = {}, reports.refused
    for name, column in reports.values.items():
        lower, upper = MEASURED[name]
        wrong = (column < lower) | (column > upper)
        values[name] = np.where(wrong, np.float32(np.nan), column).astype(np.float32)
        refused = _noted(refused, f"{name} outside {lower:g} ... {upper:g}", int(wrong.sum()))
    reports = replace(reports, values=values, refused=refused)
    if not any(np.isfinite(column).any() for column in values.values()):
        raise InputError(
            f"{reports.source or 'the stations'} hold no value that can be right: {dict(refused)}"
        )
    return reports


def _merged(reports: Observations) -> Observations:
    """One row per station and time."""
    order = np.lexsort((reports.time, reports.station))
    same = np.zeros(order.size, bool)
    station, time = reports.station[order], reports.time[order]
    same[1:] = (station[1:] == station[:-1]) & (time[1:] == time[:-1])
    group = np.cumsum(~same) - 1
    first = order[~same]
    moved = _is_elsewhere(reports, order, first[group])
    values = {}
    for name, column in reports.values.items():
        merged = np.full(first.size, np.nan, np.float32)
        known = np.isfinite(column[order]) & ~moved
        # Backwards: what comes first is written last, and stays.
        merged[group[known][::-1]] = column[order][known][::-1]
        values[name] = merged
    kept = np.zeros(len(reports), bool)
    kept[first] = True
    rows = reports.only(kept)
    back = np.argsort(first)
    refused = _noted(reports.refused, "another place under the same name and time", int(moved.sum()))
    return replace(rows, values={n: v[back] for n, v in values.items()}, refused=refused)


def _is_elsewhere(reports: Observations, rows: np.ndarray, firsts: np.ndarray) -> Bool[np.ndarray, " report"]:
    far = np.abs(reports.latitude[rows] - reports.latitude[firsts]) > 0.1
    around = np.abs((reports.longitude[rows] - reports.longitude[firsts] + 180) % 360 - 180)
    return far | (around * np.cos(np.deg2rad(reports.latitude[rows])) > 0.1)


def at_places(
    values: Float32[np.ndarray, "lat lon"],
    grid: LatLonGrid,
    latitude: Float64[np.ndarray, " place"],
    longitude: Float64[np.ndarray, " place"],
) -> Float64[np.ndarray, " place"]:
    """The field at these places, bilinear between four points; NaN outside a limited grid.

    Beyond the last row towards a pole the row is taken as it is; a global grid closes over the dateline.
    """
    rows, north, south_share = _between_rows(grid, latitude)
    columns, east_share = _between_columns(grid, longitude)
    following = (columns + 1) % grid.shape[1]
    of_row = [
        values[row, columns].astype(np.float64) * (1 - east_share) + values[row, following] * east_share
        for row in (north, rows)
    ]
    return of_row[0] * (1 - south_share) + of_row[1] * south_share


def _between_rows(
    grid: LatLonGrid, latitude: Float64[np.ndarray, " place"]
) -> tuple[np.ndarray, np.ndarray, Float64[np.ndarray, " place"]]:
    """The row south of each place, the one north of it, and the southern one's share."""
    ascending = grid.latitude[::-1]
    after = np.clip(np.searchsorted(ascending, latitude, side="left"), 1, ascending.size - 1)
    south, north = ascending[after - 1], ascending[after]
    share = np.clip((north - latitude) / (north - south), 0, 1)
    half = np.abs(np.diff(ascending)).max() / 2
    outside = (latitude > ascending[-1] + half) | (latitude < ascending[0] - half)
    if not grid.is_global:
        share = np.where(outside, np.nan, share)
    return grid.shape[0] - after, grid.shape[0] - 1 - after, share


def _between_columns(
    grid: LatLonGrid, longitude: Float64[np.ndarray, " place"]
) -> tuple[np.ndarray, Float64[np.ndarray, " place"]]:
    """The column west of each place, and the share of the next."""
    first, step = grid.longitude[0], float(np.diff(grid.longitude).mean())
    offset = np.mod(longitude - first, 360) / step
    columns = np.floor(offset + 1e-9).astype(np.int64)
    share = np.clip(offset - columns, 0, 1)
    if grid.is_periodic:
        return columns % grid.shape[1], share
    outside = columns >= grid.shape[1] - 1
    at_end = outside & (np.abs(offset - (grid.shape[1] - 1)) < 1e-6)
    share = np.where(outside & ~at_end, np.nan, np.where(at_end, 1.0, share))
    return np.minimum(columns, grid.shape[1] - 2), share


def to_station_height(
    temperature: Float64[np.ndarray, " place"],
    surface: Float64[np.ndarray, " place"],
    station: Float64[np.ndarray, " place"],
) -> Float64[np.ndarray, " place"]:
    """2-metre temperature at the height of the station; NaN more than MOST_HEIGHT_DIFFERENCE away.

    `surface` and `station` are heights in m. Where the station's is not known the temperature stays as it is.
    """
    difference = np.where(np.isfinite(station), surface - station, 0.0)
    corrected = temperature + LAPSE_RATE * difference
    return np.where(np.abs(difference) > MOST_HEIGHT_DIFFERENCE, np.nan, corrected)


def without_gross_errors(
    reports: Observations, truth: Mapping[str, Float64[np.ndarray, " report"]]
) -> Observations:
    """Values further from the analysis at the place than FURTHEST_FROM_TRUTH are refused."""
    values, refused = dict(reports.values), reports.refused
    for name, limit in FURTHEST_FROM_TRUTH.items():
        if name in values and name in truth:
            wrong = np.abs(values[name] - truth[name]) > limit
            values[name] = np.where(wrong, np.float32(np.nan), values[name]).astype(np.float32)
            refused = _noted(refused, f"{name} more than {limit:g} from the analysis", int(wrong.sum()))
    return replace(reports, values=values, refused=refused)


def _noted(refused: Mapping[str, int], reason: str, count: int) -> dict[str, int]:
    return {**refused, reason: refused.get(reason, 0) + count} if count else dict(refused)
