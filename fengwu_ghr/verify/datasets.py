"""Fields in Zarr and NetCDF files of others: dimensions, names and units as the field spells them, made ours.

WeatherBench 2's layout (time, prediction_timedelta, level, latitude, longitude) and the spellings of cfgrib, CF and
dynamical.org are understood; times are matched exactly.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from fengwu_ghr.errors import InputError, MissingValues
from fengwu_ghr.grid import LatLonGrid, known_grid
from fengwu_ghr.variables import VARIABLES, Channel, variable
from fengwu_ghr.verify.fields import Field, check_plausible, state_of_files
from fengwu_ghr.verify.statistics import hours_text
from fengwu_ghr.verify.units import conversion

_DIMENSIONS: Mapping[str, Sequence[str]] = {
    "time": ("time", "init_time", "forecast_reference_time", "valid_time"),
    "lead": ("prediction_timedelta", "lead_time", "step", "forecast_period"),
    "level": ("level", "isobaricInhPa", "pressure_level", "plev"),
    "latitude": ("latitude", "lat"),
    "longitude": ("longitude", "lon"),
}


@dataclass(frozen=True, eq=False)
class Gridded:
    """What a dataset holds of our channels: where each of them is, and how its values become ours."""

    path: Path
    dataset: xr.Dataset
    dims: Mapping[str, str]

    @classmethod
    def open(cls, path: Path) -> "Gridded":
        """The dataset at this path. Raises InputError where it is none, or has no channel of ours on a grid."""
        dataset = open_dataset(path)
        of_ours = {name for names in _DIMENSIONS.values() for name in names}
        single = [n for n, size in dataset.sizes.items() if size == 1 and n not in of_ours]
        dataset = dataset.squeeze(single, drop=True)
        dims = {
            ours: name
            for ours, names in _DIMENSIONS.items()
            if (name := next((n for n in names if n in dataset.dims), None))
        }
        for needed in ("time", "latitude", "longitude"):
            if needed not in dims:
                raise InputError(
                    f"{path} has no dimension {needed}; its dimensions are {', '.join(map(str, dataset.dims))}"
                )
        made = cls(path, dataset, dims)
        if not made.places:
            raise InputError(
                f"{path} holds none of our variables; it holds {', '.join(map(str, dataset))} (rain needs a name that "
                "says its hours, as total_precipitation_6hr)"
            )
        made._check_dimensions()
        return made

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def fingerprint(self) -> str:
        """Of a file; of a Zarr store only its name, since it may grow."""
        return self.name if self.path.is_dir() else state_of_files([self.path])

    @cached_property
    def grid(self) -> LatLonGrid:
        """One of ours where only rounding differs. Raises InputError where there are no rows and columns of it."""
        latitude, longitude = (self._axis(name).astype(np.float64) for name in ("latitude", "longitude"))
        try:
            return known_grid(
                LatLonGrid(latitude[self.rows], np.mod(longitude, 360)[self.columns], self.name)
            )
        except ValueError as error:
            raise InputError(f"{self.path}: {error}") from None

    @cached_property
    def rows(self) -> np.ndarray:
        """Indices of the rows from north to south."""
        return np.argsort(-self._axis("latitude"))

    @cached_property
    def columns(self) -> np.ndarray:
        """Indices of the columns from longitude 0 eastward."""
        return np.argsort(np.mod(self._axis("longitude"), 360))

    @cached_property
    def times(self) -> tuple[datetime, ...]:
        return tuple(self._axis("time").astype("M8[s]").tolist())

    @cached_property
    def leads(self) -> tuple[timedelta, ...]:
        """Those of forecasts; none of analyses."""
        if "lead" not in self.dims:
            return ()
        values = self._axis("lead")
        if values.dtype.kind != "m":  # WeatherBench 2 also stores plain hours
            values = (values.astype(np.float64) * 3600).astype("m8[s]")
        return tuple(values.astype("m8[s]").tolist())

    @cached_property
    def places(self) -> dict[Channel, tuple[str, int | None]]:
        """By channel, the variable that holds it and the index of its level; in the order of the registry.

        A Zarr store without consolidated metadata lists its variables in the order of the file system.
        """
        found: dict[Channel, tuple[str, int | None]] = {}
        for name in map(str, self.dataset):
            try:
                definition = variable(name)
            except ValueError:
                continue
            if definition.is_accumulated and str(definition.period_hours) not in name:
                continue  # `tp` may be of one hour, of six, or since the forecast began: a name must say it
            if not definition.on_levels:
                found[Channel(definition.name)] = (name, None)
            elif "level" in self.dims:
                levels = enumerate(self._levels)
                found |= {Channel(definition.name, level): (name, index) for index, level in levels}
        for height in [channel for channel in found if channel.variable == "gh"]:
            found.setdefault(Channel("z", height.level), found[height])
        order = list(VARIABLES)
        return dict(
            sorted(found.items(), key=lambda item: (order.index(item[0].variable), item[0].level or 0))
        )

    def read(self, channel: Channel, time: datetime, lead: timedelta | None) -> Field:
        """One field, north to south, from longitude 0 eastward, in registry units."""
        name, level = self._place(channel)
        array = self.dataset[name]
        index: dict[str, int] = {
            self.dims["time"]: self._index(time, self.times, f"time {time:%Y-%m-%d %H:%M}")
        }
        if lead is not None:
            index[self.dims["lead"]] = self._index(lead, self.leads, f"lead {hours_text(lead)}")
        if level is not None:
            index[self.dims["level"]] = level
        field = array.isel(index).transpose(self.dims["latitude"], self.dims["longitude"]).values
        factor, offset = self._units(name, channel)
        ours = np.ascontiguousarray(field[self.rows][:, self.columns], np.float32)
        ours = ours * np.float32(factor) + np.float32(offset) if (factor, offset) != (1, 0) else ours
        if not np.isfinite(ours).all():
            count = np.sum(~np.isfinite(ours))
            raise MissingValues(f"{self.name}: {channel} of {time:%Y-%m-%d %H:%M} has {count} values missing")
        check_plausible(ours, channel, self.name)
        return ours

    def _check_dimensions(self) -> None:
        known = set(self.dims.values())
        for name, _ in self.places.values():
            own = set(self.dataset[name].dims)
            if more := own - known:
                raise InputError(
                    f"{self.path}: {name} has the dimension {more.pop()!r} too; select one of it first"
                )
            if lacking := {self.dims[what] for what in ("time", "latitude", "longitude")} - own:
                raise InputError(f"{self.path}: {name} lacks the dimension {lacking.pop()!r}")

    def _place(self, channel: Channel) -> tuple[str, int | None]:
        if channel not in self.places:
            raise InputError(
                f"{self.name} does not hold {channel}; it holds {', '.join(map(str, self.places))}"
            )
        return self.places[channel]

    def _index(
        self, value: datetime | timedelta, axis: Sequence[datetime] | Sequence[timedelta], what: str
    ) -> int:
        try:
            return list(axis).index(value)
        except ValueError:
            raise InputError(f"{self.name} does not hold {what}") from None

    def _units(self, name: str, channel: Channel) -> tuple[float, float]:
        """Factor and offset to registry units. Raises InputError for units that are not stated or not known."""
        stated = self.dataset[name].attrs.get("units")
        ours = VARIABLES[channel.variable].units
        if stated is None:
            raise InputError(
                f"{self.name}: {name} states no units; set its attribute units, here to {ours!r}"
            )
        try:
            return conversion(str(stated), ours)
        except ValueError as error:
            raise InputError(f"{self.name}: the units of {name}: {error}") from None

    def _axis(self, ours: str) -> np.ndarray:
        return np.asarray(self.dataset[self.dims[ours]].values)

    @cached_property
    def _levels(self) -> list[int]:
        values = self._axis("level").astype(np.float64)
        in_pascal = self.dataset[self.dims["level"]].attrs.get("units") == "Pa"
        return [round(level / 100 if in_pascal else level) for level in values.tolist()]


@dataclass(frozen=True, eq=False)
class _OfDatasets:
    """What forecasts and analyses of datasets have in common: one grid, each time in one of them."""

    parts: tuple[Gridded, ...]

    def __post_init__(self) -> None:
        first = self.parts[0]
        for part in self.parts[1:]:
            if part.grid != first.grid:
                raise InputError(
                    f"{first.name} is on {first.grid}, {part.name} on {part.grid}: give files of one"
                )
        times = [time for part in self.parts for time in part.times]
        if len(self._holders) < len(times):
            twice = next(time for time in times if times.count(time) > 1)
            raise InputError(
                f"the time {twice:%Y-%m-%d %H:%M} comes twice in {self.name}; leave one of them out"
            )

    @property
    def name(self) -> str:
        first = self.parts[0].path.stem
        return first if len(self.parts) == 1 else f"{first} and {len(self.parts) - 1} more"

    @property
    def grid(self) -> LatLonGrid:
        return self.parts[0].grid

    @cached_property
    def channels(self) -> tuple[Channel, ...]:
        """Those that all of them have."""
        return tuple(c for c in self.parts[0].places if all(c in part.places for part in self.parts))

    def close(self) -> None:
        for part in self.parts:
            part.dataset.close()

    @cached_property
    def _holders(self) -> dict[datetime, Gridded]:
        return {time: part for part in self.parts for time in part.times}

    def _holder(self, time: datetime) -> Gridded:
        if time not in self._holders:
            raise InputError(f"{self.name} does not hold time {time:%Y-%m-%d %H:%M}")
        return self._holders[time]


@dataclass(frozen=True, eq=False)
class DatasetForecasts(_OfDatasets):
    """Forecasts of datasets with initial times and leads."""

    kind: str = "forecast"

    @property
    def initial_times(self) -> tuple[datetime, ...]:
        return tuple(sorted(self._holders))

    def leads(self, initial_time: datetime) -> tuple[timedelta, ...]:
        return tuple(sorted(self._holder(initial_time).leads))

    def read(self, channel: Channel, initial_time: datetime, lead: timedelta) -> Field:
        return self._holder(initial_time).read(channel, initial_time, lead)

    def holds(self, channel: Channel, initial_time: datetime, lead: timedelta) -> bool:
        return channel in self.channels and lead in getattr(self._holders.get(initial_time), "leads", ())

    def fingerprint(self, initial_time: datetime, lead: timedelta) -> str:
        return self._holder(initial_time).fingerprint


@dataclass(frozen=True, eq=False)
class DatasetAnalyses(_OfDatasets):
    """Analyses of datasets whose times are valid times."""

    kind: str = "analysis"

    @property
    def valid_times(self) -> tuple[datetime, ...]:
        return tuple(sorted(self._holders))

    def read(self, channel: Channel, valid_time: datetime) -> Field:
        return self._holder(valid_time).read(channel, valid_time, None)

    def holds(self, channel: Channel, valid_time: datetime) -> bool:
        return channel in self.channels and valid_time in self._holders

    def fingerprint(self, valid_time: datetime) -> str:
        return self._holder(valid_time).fingerprint


def open_dataset(path: Path) -> xr.Dataset:
    """Zarr or NetCDF, nothing of it read yet. Raises InputError where it is neither."""
    options: dict[str, Any] = {"engine": "netcdf4"}
    try:
        if path.is_dir():
            metadata = path / "zarr.json"
            consolidated = (path / ".zmetadata").exists() or (
                metadata.exists() and "consolidated_metadata" in json.loads(metadata.read_text())
            )
            options = {"engine": "zarr", "consolidated": consolidated}
        return xr.open_dataset(path, chunks=None, decode_timedelta=True, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise InputError(f"{path} cannot be read as Zarr or NetCDF: {error}") from error
