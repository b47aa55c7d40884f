"""Climate: what is normal by place, day of the year and hour: means, deviations, percentiles, of analyses.

Kept as Zarr, a folder for every channel, so that a verification reads only the fields it needs. Means and variances are
annual harmonics, by hour of the day; percentiles are of months, linear between their middles.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from fengwu_ghr.errors import InputError
from fengwu_ghr.grid import LatLonGrid
from fengwu_ghr.verify.climatology import Period, check_independent, harmonic_terms
from fengwu_ghr.verify.fields import Field
from fengwu_ghr.verify.quantities import RAIN

ABOUT = "climate.json"
"""What a climatology is of; its channels are those that are finished."""


@dataclass(frozen=True, eq=False)
class ClimateStore:
    """A climatology on disk."""

    path: Path
    about: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> "ClimateStore":
        """The climatology at this path. Raises InputError where it is none."""
        try:
            about = json.loads((path / ABOUT).read_text())
        except (OSError, ValueError):
            raise InputError(f"{path} is not a climatology; make one with fengwu-ghr climatology") from None
        if not about["channels"]:
            raise InputError(f"{path} is a climatology without a finished channel; make it again")
        if lacking := [name for name in about.get("wanted", ()) if name not in about["channels"]]:
            raise InputError(
                f"{path} was not finished, {', '.join(lacking)} are missing: run the same fengwu-ghr climatology again"
            )
        return cls(path, about)

    @property
    def channels(self) -> tuple[str, ...]:
        return tuple(self.about["channels"])

    @cached_property
    def grid(self) -> LatLonGrid:
        dataset = self._dataset(self.channels[0])
        return LatLonGrid(
            dataset["latitude"].values.astype(np.float64),
            dataset["longitude"].values.astype(np.float64),
            self.about["grid"],
        )

    @cached_property
    def covers(self) -> tuple[Period, ...]:
        """The periods of which it was made."""
        times = [[datetime.fromisoformat(text) for text in pair] for pair in self.about["covers"]]
        return tuple(Period(first, last) for first, last in times)

    @property
    def percentiles(self) -> dict[str, tuple[float, ...]]:
        """By quantity, those that are there."""
        return {name: tuple(values) for name, values in self.about["percentiles"].items()}

    def mean(self, channel: str, valid_time: datetime) -> Field:
        """The climatological mean for this day of the year and hour, in registry units."""
        return self._harmonic(channel, "mean", valid_time)

    def deviation(self, channel: str, valid_time: datetime) -> Field:
        """The standard deviation about that mean."""
        return np.sqrt(np.maximum(self._harmonic(channel, "variance", valid_time), 0))

    def percentile(self, name: str, percent: float, valid_time: datetime) -> Field:
        """The value that this share of the days around this day of the year stay below."""
        if percent not in self.percentiles.get(name, ()):
            raise InputError(
                f"{self.path} has no {percent:g}th percentile of {name}; it has {self.percentiles or 'none'}: make it "
                f"with fengwu-ghr climatology --percentiles {name}={percent:g}"
            )
        array = self._dataset(name)["percentiles"].sel(percentile=percent)
        return self._by_month(array, name, valid_time)

    def rain(self, valid_time: datetime) -> tuple[Field, Field]:
        """The share of dry days, and the amount in mm where heavy rain begins: what SEEPS needs."""
        dataset = self._dataset(RAIN)
        dry, heavy = (
            self._by_month(dataset[name], RAIN, valid_time) for name in ("dry_share", "heavy_limit")
        )
        return dry, heavy

    @property
    def has_rain(self) -> bool:
        return RAIN in self.channels

    def check_independent(self, valid_times: Sequence[datetime]) -> None:
        """Raises InputError where a verified time lies in a period that the climatology was made of."""
        check_independent(valid_times, self.covers)

    def check_hours(self, valid_times: Sequence[datetime]) -> None:
        """Raises InputError where it knows nothing of the hour of a verified time."""
        array = next(iter(self._dataset(self.channels[0]).values()))
        for time in {time.time(): time for time in valid_times}.values():
            self._hour(array, self.channels[0], time)

    def _harmonic(self, channel: str, what: str, valid_time: datetime) -> Field:
        array = self._dataset(channel)[what]
        hour = self._hour(array, channel, valid_time)
        weights = harmonic_terms(valid_time, array.shape[1] // 2).astype(np.float32)
        return self._whole(np.tensordot(weights, array.isel(hour=hour).values, axes=1), channel)

    def _by_month(self, array: xr.DataArray, channel: str, valid_time: datetime) -> Field:
        hour = self._hour(array, channel, valid_time)
        first, second, share = months_around(valid_time)
        fields = [array.isel(hour=hour, month=month).values for month in (first, second)]
        return self._whole(fields[0] * np.float32(1 - share) + fields[1] * np.float32(share), channel)

    def _whole(self, values: Field, name: str) -> Field:
        """The field itself; a chunk that is gone reads as missing."""
        if not np.isfinite(values).all():
            raise InputError(f"the climatology of {name} at {self.path} is damaged; make it again")
        return values

    def _hour(self, array: xr.DataArray, channel: str, valid_time: datetime) -> int:
        hours = array["hour"].values.tolist()
        wanted = valid_time.hour + valid_time.minute / 60
        if wanted not in hours:
            raise InputError(
                f"{self.path} has {channel} at the hours {hours}, not at {wanted:g}: verify initial times and leads "
                "that end there (verify.hours, verify.leads_hours), or make it of analyses at all hours"
            )
        return hours.index(wanted)

    def _dataset(self, name: str) -> xr.Dataset:
        if name not in self.channels:
            raise InputError(f"{self.path} has no climatology of {name}; it has {', '.join(self.channels)}")
        return _opened(self.path / name)


@lru_cache(maxsize=256)
def _opened(path: Path) -> xr.Dataset:
    return xr.open_dataset(path, engine="zarr", chunks=None, consolidated=False)


def months_around(time: datetime) -> tuple[int, int, float]:
    """The months (0 to 11) whose middles lie around this time, and the share of the second."""
    middles = [middle_of_month(time.year + turn, month) for turn in (-1, 0, 1) for month in range(12)]
    after = next(i for i, middle in enumerate(middles) if middle > time)
    before = after - 1
    share = (time - middles[before]) / (middles[after] - middles[before])
    return before % 12, after % 12, share


def middle_of_month(year: int, month: int) -> datetime:
    """Of a month from 0 to 11."""
    first = datetime(year, month + 1, 1)
    following = datetime(year + month // 11, (month + 1) % 12 + 1, 1)
    return first + (following - first) / 2
