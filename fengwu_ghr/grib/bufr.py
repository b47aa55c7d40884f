"""SYNOP reports in BUFR, through pdbufr: columns of numbers in units of the registry, one row per part of a report.

Templates differ: the same quantity has other keys in each, and rain over a period comes with that period. What a report
holds in several parts comes as several rows of the same station and time.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fengwu_ghr.errors import InputError, UsageError

_PLACE = ("latitude", "longitude", "data_datetime")
_NAMES = ("WMO_station_id", "stationOrSiteName")
_HEIGHTS = ("heightOfStationGroundAboveMeanSeaLevel", "heightOfStation")
_KEYS: Mapping[str, Sequence[str]] = {
    "2t": ("airTemperature", "airTemperatureAt2M"),
    "10ws": ("windSpeed", "windSpeedAt10M"),
    "msl": ("pressureReducedToMeanSeaLevel",),
    "tp6h": ("totalPrecipitationPast6Hours",),
    "tp24h": ("totalPrecipitationPast24Hours",),
}
_RAIN, _PERIOD = "totalPrecipitationOrTotalWaterEquivalent", "timePeriod"
_PERIODS = {"tp6h": -6, "tp24h": -24}


def read_synop(path: Path) -> dict[str, np.ndarray]:
    """Columns station, latitude, longitude, elevation, time and those of `_KEYS`; NaN where a report has none.

    Raises InputError where the file holds no such report, UsageError where pdbufr is not installed.
    """
    frame = _read(path)
    if len(frame) == 0:
        raise InputError(f"{path} holds no surface report (SYNOP) with place and time")
    columns: dict[str, np.ndarray] = {
        "station": _stations(frame),
        "latitude": _numbers(frame, ["latitude"]),
        "longitude": _numbers(frame, ["longitude"]),
        "elevation": _numbers(frame, _HEIGHTS),
        "time": frame["data_datetime"].to_numpy("M8[s]"),
    }
    for name, keys in _KEYS.items():
        columns[name] = _numbers(frame, keys).astype(np.float32)
    for name, period in _PERIODS.items():
        of_period = np.where(_numbers(frame, [_PERIOD]) == period, _numbers(frame, [_RAIN]), np.nan)
        rain = np.where(np.isfinite(columns[name]), columns[name], of_period)
        columns[name] = np.where((rain < 0) & (rain > -0.2), 0, rain).astype(
            np.float32
        )  # a trace is coded below zero
    return columns


def _read(path: Path) -> Any:
    try:
        import pdbufr
    except ImportError as error:
        raise UsageError(f"BUFR needs pdbufr: pip install 'fengwu_ghr[stations]' ({error})") from error
    wanted = [*_PLACE, *_NAMES, *_HEIGHTS, *(key for keys in _KEYS.values() for key in keys), _RAIN, _PERIOD]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pdbufr.read_bufr(path, columns=wanted, required_columns=_PLACE)
    except Exception as error:  # whatever a damaged message makes of it
        raise InputError(f"{path} cannot be read as BUFR: {error}") from error


def _numbers(frame: Any, keys: Sequence[str]) -> np.ndarray:
    """The first of these that a row has."""
    found = np.full(len(frame), np.nan)
    for key in keys:
        if key in frame:
            values = frame[key].to_numpy(np.float64, na_value=np.nan)
            found = np.where(np.isfinite(found), found, values)
    return found


def _stations(frame: Any) -> np.ndarray:
    """The WMO number, else the name, else the place."""
    place = [f"{a:.2f} {b:.2f}" for a, b in zip(frame["latitude"], frame["longitude"])]
    found = np.array(place, dtype=object)
    if "stationOrSiteName" in frame:
        names = frame["stationOrSiteName"].astype("string").fillna("").str.strip().to_numpy(object)
        found = np.where(names != "", names, found)
    if "WMO_station_id" in frame:
        numbers = _numbers(frame, ["WMO_station_id"])
        found = np.where(
            np.isfinite(numbers), [f"{n:05.0f}" if np.isfinite(n) else "" for n in numbers], found
        )
    return found.astype(str)
