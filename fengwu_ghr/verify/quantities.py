"""Quantities that scores are of and no file holds: the speed of the 10-metre wind, rain of 24 hours."""

from collections.abc import Callable
from datetime import timedelta

import numpy as np
from jaxtyping import Float32

from fengwu_ghr.variables import Channel, channel

WIND_SPEED, RAIN = "10ws", "tp24h"
_UNITS = {WIND_SPEED: "m s-1", RAIN: "kg m-2"}
_WIND = (Channel("10u"), Channel("10v"))
_RAIN_PART = Channel("tp6h")
_PARTS = tuple(timedelta(hours=hours) for hours in (0, 6, 12, 18))

Values = Float32[np.ndarray, "*points"]
Read = Callable[[Channel, timedelta], Values]
"""Gives a channel so long before the time in question."""


def quantity(name: str, read: Read) -> Values:
    """The values of a channel or quantity; speed is formed before anything is interpolated."""
    if name == WIND_SPEED:
        eastward, northward = (read(part, timedelta(0)) for part in _WIND)
        return np.asarray(np.hypot(eastward, northward))
    if name == RAIN:
        parts = [read(_RAIN_PART, before) for before in _PARTS]
        return np.asarray(np.sum(parts, axis=0, dtype=np.float32))
    return read(channel(name), timedelta(0))


def channels_of(name: str) -> tuple[Channel, ...]:
    """What a quantity is made of. Raises ValueError for a name that is neither channel nor quantity."""
    return _WIND if name == WIND_SPEED else (_RAIN_PART,) if name == RAIN else (channel(name),)


def shortest_lead(name: str) -> timedelta:
    """The lead from which forecasts have it."""
    return timedelta(hours=24) if name == RAIN else timedelta(0)


def earlier(name: str) -> tuple[timedelta, ...]:
    """How long before its time its parts are valid."""
    return _PARTS if name == RAIN else (timedelta(0),)


def is_vector(name: str) -> bool:
    """Whether it is one component of a vector."""
    return name not in _UNITS and channel(name).definition.is_vector


def is_smooth(name: str) -> bool:
    """Whether it may be interpolated by higher orders."""
    return name == WIND_SPEED or (name != RAIN and channel(name).definition.is_smooth)


def canonical(name: str) -> str:
    """The name as we write it, of a channel in any spelling or a quantity. Raises ValueError where it is neither."""
    return name if name in _UNITS else str(channel(name))


def units_of(name: str) -> str:
    """In the registry's spelling."""
    return _UNITS.get(name) or channel(name).definition.units
