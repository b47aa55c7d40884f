"""What raw header keys mean: parameter, surface and level, time and interval. What makes no sense becomes None."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from fengwu_ghr.variables import ENTIRE_ATMOSPHERE, ISOBARIC, SURFACE

INSTANT, UNKNOWN_STATISTIC = None, 255
NO_SURFACE = 255

_HOUR = timedelta(hours=1)
_UNITS_1 = {
    0: _HOUR / 60, 1: _HOUR, 2: 24 * _HOUR, 10: 3 * _HOUR, 11: 6 * _HOUR, 12: 12 * _HOUR, 13: _HOUR / 4,
    14: _HOUR / 2, 254: _HOUR / 3600,
}  # fmt: skip
_UNITS_2 = {
    0: _HOUR / 60,
    1: _HOUR,
    2: 24 * _HOUR,
    10: 3 * _HOUR,
    11: 6 * _HOUR,
    12: 12 * _HOUR,
    13: _HOUR / 3600,
}
"""Units of time ranges: GRIB1 table 4, GRIB2 table 4.4; months and longer have no fixed length."""

_PRESSURE_IN_PA_1 = 210
_NOMINAL_TOP, _MISSING_CODE = 8, 255
_STATISTICS_1 = {0: INSTANT, 1: INSTANT, 10: INSTANT, 3: 0, 4: 1, 5: 4}
_RANGES_1 = (3, 4, 5)
_AVERAGES_1 = (51, 113, 115, 117, 123)
"""GRIB1 table 5, time range indicators: as a statistic; those that run from P1 to P2; averages over many runs."""
_MOMENT = ("year", "month", "day", "hour", "minute", "second")
_SPAN_LIMIT = timedelta(days=400_000)

_Times = tuple[datetime | None, timedelta | None, timedelta | None, int | None]


def read_meaning(header: dict[str, Any]) -> dict[str, Any]:
    """Parameter, template, surfaces, level, initial time, steps and statistic, named as in `messages.FieldInfo`."""
    if header["edition"] == 1:
        return _read_1(header)
    return _read_2(header)


def later(time: datetime | None, span: timedelta | None) -> datetime | None:
    """The time after this span; None when one is unknown or the calendar ends before."""
    try:
        return None if time is None or span is None else time + span
    except OverflowError:
        return None


def known(code: int | None) -> int:
    """The code, or GRIB's own for a missing one: some templates leave out what ours have."""
    return _MISSING_CODE if code is None else code


def _read_2(header: dict[str, Any]) -> dict[str, Any]:
    surface, second = header["typeOfFirstFixedSurface"], header["typeOfSecondFixedSurface"]
    if (surface, second) == (SURFACE, _NOMINAL_TOP):
        surface, second = ENTIRE_ATMOSPHERE, NO_SURFACE
    level = _scaled(header["scaledValueOfFirstFixedSurface"], header["scaleFactorOfFirstFixedSurface"])
    if surface == ISOBARIC and level is not None:
        level /= 100
    initial, start, end, statistic = _times_2(header)
    return {
        "parameter": tuple(known(header[k]) for k in ("discipline", "parameterCategory", "parameterNumber")),
        "template": header["productDefinitionTemplateNumber"],
        "surface": known(surface),
        "second_surface": known(second),
        "level": level,
        "initial_time": initial,
        "step_start": start,
        "step_end": end,
        "statistic": statistic,
    }


def _read_1(header: dict[str, Any]) -> dict[str, Any]:
    surface, level = header["indicatorOfTypeOfLevel"], header["level"]
    if surface == _PRESSURE_IN_PA_1:
        surface, level = ISOBARIC, None if level is None else level / 100
    table = known(header["table2Version"])
    initial, start, end, statistic = _times_1(header)
    return {
        "parameter": (0 if table <= 3 else table, known(header["indicatorOfParameter"])),
        "template": None,
        "surface": known(surface),
        "second_surface": NO_SURFACE,
        "level": None if level is None else float(level),
        "initial_time": initial,
        "step_start": start,
        "step_end": end,
        "statistic": statistic,
    }


def _times_2(header: dict[str, Any]) -> _Times:
    initial = _moment(header, _MOMENT)
    start = _span(header["forecastTime"], _UNITS_2.get(header["indicatorOfUnitOfTimeRange"]))
    if header.get("numberOfTimeRange") is None:
        return initial, start, start, INSTANT
    statistic = known(header["typeOfStatisticalProcessing"])
    length = _span(header["lengthOfTimeRange"], _UNITS_2.get(header["indicatorOfUnitForTimeRange"]))
    if header["numberOfTimeRange"] != 1 or start is None or length is None:
        return initial, start, None, statistic
    end = _moment(header, [f"{part}OfEndOfOverallTimeInterval" for part in _MOMENT])
    # Two statements about the end that disagree are none.
    agreed = end is not None and end == later(initial, start + length)
    return initial, start, start + length if agreed else None, statistic


def _times_1(header: dict[str, Any]) -> _Times:
    initial, indicator = _moment_1(header), header["timeRangeIndicator"]
    first, second, unit = header["P1"], header["P2"], _UNITS_1.get(header["unitOfTimeRange"])
    statistic = _STATISTICS_1.get(indicator, 0 if indicator in _AVERAGES_1 else UNKNOWN_STATISTIC)
    if unit is None or first is None or second is None:
        return initial, None, None, statistic
    if statistic is INSTANT:
        step = {0: first, 1: 0, 10: 256 * first + second}[indicator] * unit
        return initial, step, step, INSTANT
    if indicator not in _RANGES_1:
        return initial, None, None, statistic
    return initial, first * unit, second * unit, statistic


def _moment_1(header: dict[str, Any]) -> datetime | None:
    century, year = header["centuryOfReferenceTimeOfData"], header["yearOfCentury"]
    if century is None or year is None:
        return None
    return _moment({**header, "year": 100 * (century - 1) + year, "second": 0}, _MOMENT)


def _moment(header: dict[str, Any], keys: Sequence[str]) -> datetime | None:
    try:
        return datetime(*(header[key] for key in keys))
    except (TypeError, ValueError, OverflowError):
        return None


def _span(amount: int | None, unit: timedelta | None) -> timedelta | None:
    if amount is None or unit is None or abs(amount) * (unit / _SPAN_LIMIT) > 1:
        return None
    return amount * unit


def _scaled(value: int | None, factor: int | None) -> float | None:
    if value is None or factor is None or abs(factor) > 20:
        return None
    return value / 10**factor if factor >= 0 else float(value * 10**-factor)
