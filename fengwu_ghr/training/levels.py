"""From the sigma levels of a simulator to pressure levels and mean sea level.

Above the lowest model level everything is linear in ln p, and geopotential carries the curvature that a temperature
linear in ln p gives it (the hypsometric equation of a dry atmosphere). Below it, and so below ground, temperature
follows the standard lapse rate, geopotential the hydrostatic equation, winds and humidity stay as they are.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64

from fengwu_ghr.variables import STANDARD_GRAVITY

LAPSE_RATE = 0.0065
"""K m-1, below the lowest model level."""
DRY_AIR = 2 / 7 * 1004.64
"""Gas constant of dry air, J kg-1 K-1, from the kappa and the heat capacity that the simulator computes with."""

SIGMA = (0.025, 0.095, 0.2, 0.34, 0.51, 0.685, 0.835, 0.95)
"""The levels of the simulator, pressure over surface pressure, top to bottom."""

_EXPONENT = LAPSE_RATE * DRY_AIR / STANDARD_GRAVITY


@dataclass(frozen=True, eq=False)
class SigmaColumns:
    """A state on sigma levels, top to bottom: `sigma` is pressure over surface pressure.

    Temperature in K, wind in m s-1, humidity in kg kg-1, geopotential in m2 s-2, surface pressure in Pa.
    """

    sigma: Float64[np.ndarray, " level"]
    temperature: Float32[np.ndarray, "level lat lon"]
    u: Float32[np.ndarray, "level lat lon"]
    v: Float32[np.ndarray, "level lat lon"]
    humidity: Float32[np.ndarray, "level lat lon"]
    geopotential: Float32[np.ndarray, "level lat lon"]
    surface_pressure: Float32[np.ndarray, "lat lon"]


def to_pressure_level(columns: SigmaColumns, pressure: float) -> dict[str, Float32[np.ndarray, "lat lon"]]:
    """z, q, u, v, t on this pressure level (Pa), in registry units.

    Raises ValueError for a pressure above the highest model level anywhere: there is nothing to extrapolate from.
    """
    depth = np.log(pressure / columns.surface_pressure)  # ln sigma of the pressure level
    ln_sigma = np.log(columns.sigma).astype(np.float32)
    if depth.min() < ln_sigma[0]:
        raise ValueError(
            f"{pressure / 100:g} hPa lies above the highest model level, {columns.sigma[0]:g} of surface pressure"
        )
    upper = np.clip(np.searchsorted(ln_sigma, depth, side="right") - 1, 0, len(ln_sigma) - 2)
    step = np.diff(ln_sigma)[upper]
    below = np.minimum((depth - ln_sigma[upper]) / step, 1)
    fields = {
        "q": _between(columns.humidity, upper, below),
        "u": _between(columns.u, upper, below),
        "v": _between(columns.v, upper, below),
        "t": _between(columns.temperature, upper, below),
        "z": _between(columns.geopotential, upper, below)
        + _curvature(columns.temperature, upper, below, step),
    }
    beyond = depth > ln_sigma[-1]
    lowest = columns.temperature[-1][beyond]
    warmer = lowest * (np.exp((depth - ln_sigma[-1])[beyond] * np.float32(_EXPONENT)) - 1)
    fields["t"][beyond] = lowest + warmer
    fields["z"][beyond] = columns.geopotential[-1][beyond] - STANDARD_GRAVITY / LAPSE_RATE * warmer
    return {name: np.ascontiguousarray(field, np.float32) for name, field in fields.items()}


def mean_sea_level_pressure(
    columns: SigmaColumns, orography: Float32[np.ndarray, "lat lon"]
) -> Float32[np.ndarray, "lat lon"]:
    """Surface pressure carried down, or up, to geopotential 0 along the standard lapse rate, in Pa.

    `orography` is the surface geopotential in m2 s-2; the surface temperature is that of the lowest level, carried
    down to the surface: p0 = ps (1 + Γ φs / (g Ts))^(g / (R Γ)).
    """
    surface = columns.temperature[-1] * np.float32(columns.sigma[-1] ** -_EXPONENT)
    ratio = 1 + LAPSE_RATE / STANDARD_GRAVITY * orography / surface
    return (columns.surface_pressure * ratio ** np.float32(1 / _EXPONENT)).astype(np.float32)


def _between(
    values: Float32[np.ndarray, "level lat lon"], upper: np.ndarray, below: Float[np.ndarray, "lat lon"]
) -> Float[np.ndarray, "lat lon"]:
    """Linear in ln p between the level `upper` and the one under it."""
    first = np.take_along_axis(values, upper[None], 0)[0]
    second = np.take_along_axis(values, upper[None] + 1, 0)[0]
    return first + below * (second - first)


def _curvature(
    temperature: Float32[np.ndarray, "level lat lon"],
    upper: np.ndarray,
    below: Float[np.ndarray, "lat lon"],
    step: Float[np.ndarray, "lat lon"],
) -> Float[np.ndarray, "lat lon"]:
    """What dφ = -R T d ln p with T linear in ln p adds to a φ that is linear in ln p between two levels."""
    top = np.take_along_axis(temperature, upper[None], 0)[0]
    bottom = np.take_along_axis(temperature, upper[None] + 1, 0)[0]
    return DRY_AIR / 2 * (bottom - top) * step * below * (1 - below)
