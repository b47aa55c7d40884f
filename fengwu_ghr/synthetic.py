"""An analytic atmosphere: a balanced jet with travelling baroclinic waves, on any grid, at any time.

It stands in for real analyses in tests and benchmarks. Wind is the rotational wind of a streamfunction,
geopotential balances it linearly, temperature follows hydrostatically, humidity from a prescribed relative
humidity. Everything is a closed formula of (latitude, longitude, pressure, time), so it can be compared exactly.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from fengwu_ghr.grib.derive import specific_humidity
from fengwu_ghr.grib.encode import GribEncoder, write_messages
from fengwu_ghr.grid import LatLonGrid, regular_grid
from fengwu_ghr.state import State
from fengwu_ghr.variables import STANDARD_GRAVITY, Channel, channel_set, standard_height, standard_temperature

EARTH_RADIUS = 6.371e6
EARTH_ROTATION = 7.292e-5
GAS_CONSTANT = 287.05
EPOCH = datetime(2000, 1, 1)
INITIAL_TIME = datetime(2024, 1, 1)
"""Of the analysis that is written."""

JET_SPEED = 30.0
JET_HEIGHT, JET_DEPTH = 1.39, 1.2
"""The jet's maximum, and its width, in η = ln(1000 hPa / p)."""
WAVE_HEIGHT, WAVE_DEPTH, WAVE_TILT = 1.1, 1.6, 0.5


@dataclass(frozen=True)
class Wave:
    """ψ = amplitude cos^m φ (sin³ φ + asymmetry sin² φ) cos(m (λ - λ0 - c t) + tilt η), in m2 s-1.

    Speeds are in degrees a day.
    """

    number: int
    amplitude: float
    asymmetry: float
    longitude: float
    speed: float


def waves(seed: int = 0) -> tuple[Wave, ...]:
    """Planetary to mesoscale waves with random phases, amplitudes falling as 1/m²."""
    rng = np.random.default_rng(seed)
    numbers = (3, 4, 5, 6, 7, 9, 12, 17, 24)
    return tuple(
        Wave(m, 1.6e9 / m**2, rng.uniform(-0.5, 0.5), rng.uniform(0, 360), 2.0 + 0.9 * m) for m in numbers
    )


def synthetic_state(
    grid: LatLonGrid,
    channels: Sequence[Channel],
    *,
    initial_time: datetime,
    lead: timedelta = timedelta(0),
    seed: int = 0,
) -> State:
    """The atmosphere at initial time plus lead; the same point and time give the same values on every grid."""
    valid_time = initial_time + lead
    atmosphere = _Atmosphere(grid, valid_time, waves(seed))
    values = np.empty((len(channels), *grid.shape), np.float32)
    for row, channel in enumerate(channels):
        values[row] = atmosphere.field(channel)
    return State(values, tuple(channels), grid, valid_time, lead)


def write_synthetic_analysis(path: Path, *, initial_time: datetime = INITIAL_TIME) -> None:
    """A complete ghr-69 analysis of this atmosphere at 2.5 degrees lies in the file, as GRIB2."""
    grid, channels = regular_grid(2.5), channel_set("ghr-69").channels
    state = synthetic_state(grid, channels, initial_time=initial_time)
    encoder = GribEncoder(grid)
    messages = [
        (c, encoder.encode(c, state[c], initial_time=initial_time, lead=timedelta(0))) for c in channels
    ]
    write_messages(path, messages)


class _Atmosphere:
    def __init__(self, grid: LatLonGrid, valid_time: datetime, waves: Sequence[Wave]) -> None:
        self.phi = np.deg2rad(grid.latitude)[:, None]
        self.lam = np.deg2rad(grid.longitude)[None, :]
        self.days = (valid_time - EPOCH).total_seconds() / 86400
        self.waves = waves
        self.shape = grid.shape

    def field(self, channel: Channel) -> Float64[np.ndarray, "lat lon"]:
        if channel.level is not None:
            return np.broadcast_to(getattr(self, f"_{channel.variable}")(float(channel.level)), self.shape)
        return np.broadcast_to(_SINGLE_LEVEL[channel.variable](self), self.shape)

    def _z(self, p: float) -> np.ndarray:
        balanced = self._jet_geopotential(p) + self._coriolis * self._waves(p, _streamfunction)
        return STANDARD_GRAVITY * standard_height(p) + balanced

    def _t(self, p: float) -> np.ndarray:
        """T = T_standard + (1/R) ∂Φ/∂η, by a centred difference of the analytic geopotential anomaly."""
        step = 0.01
        above, below = (self._anomaly(p * np.exp(-s)) for s in (step, -step))
        return standard_temperature(p) + (above - below) / (2 * step) / GAS_CONSTANT

    def _anomaly(self, p: float) -> np.ndarray:
        return self._jet_geopotential(p) + self._coriolis * self._waves(p, _streamfunction)

    def _u(self, p: float) -> np.ndarray:
        jet = _jet(p) * np.sin(self.phi) ** 2 * np.cos(self.phi) / 0.3849
        return jet - self._waves(p, _meridional_slope) / EARTH_RADIUS

    def _v(self, p: float) -> np.ndarray:
        return self._waves(p, _zonal_slope) / EARTH_RADIUS

    def _w(self, p: float) -> np.ndarray:
        """Rising ahead of the troughs, strongest at 500 hPa."""
        return -0.02 * np.sin(np.pi * p / 1000) * self._v(p) * np.sign(np.sin(self.phi))

    def _q(self, p: float) -> np.ndarray:
        t = np.ascontiguousarray(np.broadcast_to(self._t(p), self.shape), np.float32)
        r = np.broadcast_to(self._relative_humidity(p), self.shape).astype(np.float32)
        return np.asarray(specific_humidity(r, t, pressure=p * 100), np.float64)

    def _relative_humidity(self, p: float) -> np.ndarray:
        dry = 100 * np.clip(0.05 + 0.75 * (p / 1000) ** 1.5, 0, 1)
        moist = 1 + 0.4 * np.cos(3 * self.phi) * np.cos(self.phi)
        rising = np.tanh(-self._w(min(p, 950.0)) * 3)
        return np.clip(dry * (0.75 * moist + 0.25 * rising), 2, 100)

    def _jet_geopotential(self, p: float) -> np.ndarray:
        """Geostrophic balance, f u = -(1/a) ∂Φ/∂φ, integrated; zero area mean is not sought."""
        factor = EARTH_RADIUS * EARTH_ROTATION * _jet(p) / (2 * 0.3849)
        return factor * (0.2 - np.sin(self.phi) ** 4)

    @property
    def _coriolis(self) -> np.ndarray:
        return 2 * EARTH_ROTATION * np.sin(self.phi)

    def _waves(self, p: float, part: Callable[[Wave, np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        eta = np.log(1000 / p)
        strength = np.exp(-(((eta - WAVE_HEIGHT) / WAVE_DEPTH) ** 2))
        total = np.zeros(self.shape)
        for wave in self.waves:
            shift = np.deg2rad(wave.longitude + wave.speed * self.days)
            phase = wave.number * (self.lam - shift) + WAVE_TILT * eta * wave.number / 5
            total += wave.amplitude * strength * part(wave, self.phi, phase)
        return total


def _jet(p: float) -> float:
    eta = np.log(1000 / p)
    return JET_SPEED * float(np.exp(-(((eta - JET_HEIGHT) / JET_DEPTH) ** 2)))


def _streamfunction(wave: Wave, phi: np.ndarray, phase: np.ndarray) -> np.ndarray:
    return np.cos(phi) ** wave.number * _profile(wave, phi) * np.cos(phase)


def _profile(wave: Wave, phi: np.ndarray) -> np.ndarray:
    return np.sin(phi) ** 3 + wave.asymmetry * np.sin(phi) ** 2


def _meridional_slope(wave: Wave, phi: np.ndarray, phase: np.ndarray) -> np.ndarray:
    c, s, m = np.cos(phi), np.sin(phi), wave.number
    inner = c * c * (3 * s * s + 2 * wave.asymmetry * s) - m * s * _profile(wave, phi)
    return c ** (m - 1) * inner * np.cos(phase)


def _zonal_slope(wave: Wave, phi: np.ndarray, phase: np.ndarray) -> np.ndarray:
    m = wave.number
    return -m * np.cos(phi) ** (m - 1) * _profile(wave, phi) * np.sin(phase)


def _cloud(a: _Atmosphere) -> np.ndarray:
    return np.clip((a._relative_humidity(700) - 30) / 50, 0, 1)


def _mean_sea_level_pressure(a: _Atmosphere) -> np.ndarray:
    return 1e5 * np.exp(a._z(1000) / (GAS_CONSTANT * a._t(1000)))


def _precipitation(a: _Atmosphere) -> np.ndarray:
    return np.maximum(0, -40 * a._w(600) * a._q(850) / 0.01 - 0.5)


def _solar_radiation(a: _Atmosphere) -> np.ndarray:
    """Six hours of 70 % of the top-of-atmosphere flux at the sun's height in the middle of the interval."""
    day = a.days - 0.125
    declination = np.deg2rad(-23.44 * np.cos(2 * np.pi * (day % 365.25 + 10) / 365.25))
    hour_angle = 2 * np.pi * (day % 1) - np.pi + a.lam
    height = np.sin(a.phi) * np.sin(declination) + np.cos(a.phi) * np.cos(declination) * np.cos(hour_angle)
    return 0.7 * 1361 * 21600 * np.maximum(0, height)


_SINGLE_LEVEL = {
    "2t": lambda a: a._t(1000) + 0.5,
    "10u": lambda a: 0.7 * a._u(1000),
    "10v": lambda a: 0.7 * a._v(1000),
    "100u": lambda a: 0.85 * a._u(1000),
    "100v": lambda a: 0.85 * a._v(1000),
    "msl": _mean_sea_level_pressure,
    "sp": _mean_sea_level_pressure,
    "tcc": _cloud,
    "tp6h": _precipitation,
    "ssr6h": _solar_radiation,
}
