"""What a GRIB2 message of ours says about its field: keys of sections 1, 3 and 4, and handles to set them on."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import eccodes
import numpy as np
from jaxtyping import Float64

from fengwu_ghr.errors import ConformanceError
from fengwu_ghr.grid import LatLonGrid
from fengwu_ghr.variables import ENTIRE_ATMOSPHERE, ISOBARIC, SURFACE, Channel

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)

_MICRODEGREES = 1_000_000
_DEGREES_TOLERANCE = 1e-6
_NOMINAL_TOP, _NO_SURFACE = 8, 255
_ACCUMULATION, _SAME_START = 1, 2
_TIME_UNITS = {HOUR: 1, MINUTE: 0}
_MOMENT = ("year", "month", "day", "hour", "minute", "second")


class Handle:
    """An ecCodes handle that is released whatever happens."""

    def __init__(self, handle: int) -> None:
        self.id = handle

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, *_: object) -> None:
        eccodes.codes_release(self.id)

    def set(self, keys: Mapping[str, Any]) -> None:
        """Set keys in their order; None is GRIB's missing."""
        for key, value in keys.items():
            if value is None:
                eccodes.codes_set_missing(self.id, key)
            else:
                eccodes.codes_set(self.id, key, value)


def grid_keys(grid: LatLonGrid) -> dict[str, Any]:
    """Section 3. Where a step is no whole number of microdegrees it is left out: corners and counts define it."""
    rows, columns = grid.shape
    steps = [_even_step(axis, name) for axis, name in ((grid.latitude, "rows"), (grid.longitude, "columns"))]
    is_given = all(step is not None for step in steps)
    return {
        "shapeOfTheEarth": 6,
        "Ni": columns,
        "Nj": rows,
        "numberOfDataPoints": grid.points,
        "latitudeOfFirstGridPoint": _microdegrees(grid.latitude[0]),
        "longitudeOfFirstGridPoint": _microdegrees(grid.longitude[0] % 360),
        "latitudeOfLastGridPoint": _microdegrees(grid.latitude[-1]),
        "longitudeOfLastGridPoint": _microdegrees(grid.longitude[-1] % 360),
        "ijDirectionIncrementGiven": int(is_given),
        "jDirectionIncrement": steps[0] if is_given else None,
        "iDirectionIncrement": steps[1] if is_given else None,
        "scanningMode": 0,
    }


def _even_step(axis: Float64[np.ndarray, " point"], name: str) -> int | None:
    """The step of evenly spaced coordinates in microdegrees, None where it is no whole number of them."""
    even = np.linspace(axis[0], axis[-1], axis.size)
    deviation = float(np.abs(axis - even).max())
    if deviation > _DEGREES_TOLERANCE:
        raise ConformanceError(
            f"GRIB output needs an evenly spaced grid; its {name} deviate by {deviation:.2g} degrees: "
            "choose a regular latitude-longitude grid"
        )
    step = abs(axis[-1] - axis[0]) / max(axis.size - 1, 1) * _MICRODEGREES
    return round(step) if abs(step - round(step)) * axis.size < 1 else None


def _microdegrees(degrees: float) -> int:
    return round(float(degrees) * _MICRODEGREES)


def parameter_keys(channel: Channel) -> dict[str, Any]:
    coding = channel.definition.encoding
    discipline, category, number = coding.parameter
    first, second = coding.surface, _NO_SURFACE
    if first == ENTIRE_ATMOSPHERE:
        first, second = SURFACE, _NOMINAL_TOP
    level = None if channel.level is None else channel.level * 100
    if coding.surface != ISOBARIC:
        level = None if coding.level is None else int(coding.level)
    return {
        "discipline": discipline,
        "parameterCategory": category,
        "parameterNumber": number,
        "typeOfFirstFixedSurface": first,
        "scaleFactorOfFirstFixedSurface": None if level is None else 0,
        "scaledValueOfFirstFixedSurface": level,
        "typeOfSecondFixedSurface": second,
        "scaleFactorOfSecondFixedSurface": None,
        "scaledValueOfSecondFixedSurface": None,
    }


def time_keys(channel: Channel, initial_time: datetime, lead: timedelta) -> dict[str, Any]:
    """The initial time and the step; of an accumulation the step at which it starts, its length and its end."""
    if initial_time.tzinfo is not None or initial_time.microsecond:
        raise ValueError(f"times are naive UTC in whole seconds; got {initial_time.isoformat()}")
    period = timedelta(hours=channel.definition.period_hours)
    if lead < period:
        raise ValueError(f"{channel} over {period} ends at a lead of at least that; got {lead}")
    start, unit = in_units(lead - period)
    keys = {
        **{name: getattr(initial_time, name) for name in _MOMENT},
        "indicatorOfUnitOfTimeRange": _TIME_UNITS[unit],
        "forecastTime": start,
    }
    if not period:
        return keys
    end = initial_time + lead
    return keys | {
        **{f"{name}OfEndOfOverallTimeInterval": getattr(end, name) for name in _MOMENT},
        "numberOfTimeRange": 1,
        "typeOfStatisticalProcessing": _ACCUMULATION,
        "typeOfTimeIncrement": _SAME_START,
        "indicatorOfUnitForTimeRange": _TIME_UNITS[HOUR],
        "lengthOfTimeRange": channel.definition.period_hours,
    }


def in_units(span: timedelta) -> tuple[int, timedelta]:
    """The span as a whole number of hours where it is one, else of minutes."""
    unit = MINUTE if span % HOUR else HOUR
    if span < timedelta(0) or span % unit:
        raise ValueError(f"steps are whole minutes from 0; got {span}")
    return span // unit, unit
