"""Forcings: what a network may be told beside the state: orography, land, and the sun of the coming step.

None by default. They are numbers of order one: the height of the surface in km, the share of land, the mean cosine of
the solar zenith angle, zero at night.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from fengwu_ghr.grid import LatLonGrid, NetworkGrid

Forcing = Literal["orography", "land_mask", "insolation"]
FORCINGS: tuple[Forcing, ...] = ("orography", "land_mask", "insolation")
"""In the order in which a network takes them."""
STATIC: tuple[Forcing, ...] = ("orography", "land_mask")
"""Those that do not change: a checkpoint carries them, on the network grid."""

_SAMPLES = 12  # of the sun during a step: every half hour of six


@dataclass(frozen=True, eq=False)
class ForcingFields:
    """The forcings of these names on a grid at any time; `static` holds those that do not change, in order."""

    names: tuple[Forcing, ...]
    static: Float[Tensor, "static row column"]
    grid: LatLonGrid | NetworkGrid
    step_hours: int

    def at(self, times: Sequence[datetime]) -> Float32[Tensor, "batch forcing row column"]:
        """Of steps that leave states valid at these times."""
        return torch.stack([self._of(time) for time in times])

    def _of(self, time: datetime) -> Float32[Tensor, "forcing row column"]:
        fields = self.static.float()
        if "insolation" not in self.names:
            return fields
        sun = torch.from_numpy(self._insolation(time)).to(fields.device)
        return torch.cat([fields, sun[None]])

    def _insolation(self, time: datetime) -> Float32[np.ndarray, "row column"]:
        latitude, longitude = self._points
        return mean_cosine_of_zenith(latitude, longitude, begin=time, hours=self.step_hours)

    @cached_property
    def _points(self) -> tuple[Float64[np.ndarray, " row"], Float64[np.ndarray, " column"]]:
        if isinstance(self.grid, LatLonGrid):
            return self.grid.latitude, self.grid.longitude
        inner = self.grid.inner
        if not self.grid.has_rows_beyond_poles:
            return inner.latitude, inner.longitude
        # A latitude beyond 90 degrees is the point behind the pole: the formula holds there as it stands.
        step = inner.latitude[0] - inner.latitude[1]
        return np.concatenate([[90 + step], inner.latitude, [-90 - step]]), inner.longitude


def mean_cosine_of_zenith(
    latitude: Float64[np.ndarray, " row"],
    longitude: Float64[np.ndarray, " column"],
    *,
    begin: datetime,
    hours: int,
) -> Float32[np.ndarray, "row column"]:
    """The mean over these hours of the cosine of the solar zenith angle, zero where the sun is down.

    sin φ sin δ + cos φ cos δ cos h; the declination δ after Spencer (1971), "Fourier series representation of the
    position of the sun". The equation of time is left out: at most a quarter of an hour.
    """
    north_south, around = np.deg2rad(latitude)[:, None], np.deg2rad(longitude)[None]
    total = np.zeros((latitude.size, longitude.size))
    for sample in range(_SAMPLES):
        time = begin + timedelta(hours=hours) * ((sample + 0.5) / _SAMPLES)
        declination = _declination(time)
        hour_angle = around + 2 * np.pi * (_seconds_of_day(time) / 86400 - 0.5)
        height = np.sin(north_south) * np.sin(declination)
        total += np.maximum(height + np.cos(north_south) * np.cos(declination) * np.cos(hour_angle), 0)
    return (total / _SAMPLES).astype(np.float32)


def _declination(time: datetime) -> float:
    days = (time - datetime(time.year, 1, 1)) / timedelta(days=1)
    angles = 2 * np.pi * days / 365 * np.arange(1, 4)
    cosines, sines = (-0.399912, -0.006758, -0.002697), (0.070257, 0.000907, 0.00148)
    return float(0.006918 + np.cos(angles) @ cosines + np.sin(angles) @ sines)


def _seconds_of_day(time: datetime) -> float:
    return (time - datetime(time.year, time.month, time.day)).total_seconds()
