"""Fields computed from others at the same level and time, as the registry's `Variable.derivations` declare them."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32

from fengwu_ghr.variables import STANDARD_GRAVITY, Channel

EPSILON = 0.621981
"""Molar mass of water vapour over that of dry air: 287.0597 / 461.5250, the gas constants of the IFS."""
TRIPLE_POINT, ALL_ICE = 273.16, 250.16
"""K; between them cloud holds water and ice."""
SATURATION_AT_TRIPLE_POINT = 611.21
WATER, ICE = (17.502, 32.19), (22.587, -0.7)
"""Tetens' coefficients a3 and a4 (K)."""

Values = Float32[np.ndarray, "*shape"]


def derive(
    channel: Channel, inputs: Sequence[Float32[np.ndarray, "*shape"]]
) -> Float32[np.ndarray, "*shape"]:
    """The channel from its inputs, in the order and the units of the registry; may return an input unchanged."""
    return _RULES[channel.variable](channel, inputs)


def geopotential(height: Float32[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """m2 s-2 from geopotential metres: z = 9.80665 gh."""
    return height * np.float32(STANDARD_GRAVITY)


def specific_humidity(
    relative_humidity: Float32[np.ndarray, "*shape"],
    temperature: Float32[np.ndarray, "*shape"],
    *,
    pressure: float,
) -> Float32[np.ndarray, "*shape"]:
    """kg kg-1 from relative humidity (%), temperature (K) and pressure (Pa).

    e = r/100 esat(T), q = ε e / (p - (1 - ε) e): IFS Documentation, Part IV, section 7.2.1(b).
    """
    vapour_pressure = saturation_pressure(temperature)
    vapour_pressure *= relative_humidity
    vapour_pressure *= np.float32(0.01)
    dry = pressure - np.float32(1 - EPSILON) * vapour_pressure
    vapour_pressure *= np.float32(EPSILON)
    vapour_pressure /= dry
    return vapour_pressure


def saturation_pressure(temperature: Float32[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Pa over water above 273.16 K, over ice below 250.16 K, in between α water + (1 - α) ice.

    α = ((T - 250.16) / (273.16 - 250.16))²; esat = 611.21 exp(a3 (T - 273.16) / (T - a4)).
    """
    over_water, over_ice = _tetens(temperature, *WATER), _tetens(temperature, *ICE)
    water_share = np.clip((temperature - ALL_ICE) / (TRIPLE_POINT - ALL_ICE), 0, 1)
    water_share *= water_share
    over_water -= over_ice
    over_water *= water_share
    over_water += over_ice
    return over_water


def _tetens(temperature: Values, a3: float, a4: float) -> Values:
    exponent = temperature - TRIPLE_POINT
    exponent /= temperature - a4
    exponent *= a3
    np.exp(exponent, out=exponent)
    exponent *= SATURATION_AT_TRIPLE_POINT
    return exponent


def _humidity(channel: Channel, inputs: Sequence[Values]) -> Values:
    assert channel.level is not None
    return specific_humidity(inputs[0], inputs[1], pressure=100.0 * channel.level)


_RULES: dict[str, Callable[[Channel, Sequence[Values]], Values]] = {
    "z": lambda channel, inputs: geopotential(inputs[0]),
    "q": _humidity,
    "msl": lambda channel, inputs: inputs[0],
}
