"""GRIB messages that the tests write themselves with ecCodes, quirk by quirk."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import eccodes
import numpy as np

T, U, V, GH, R = (0, 0, 0), (0, 2, 2), (0, 2, 3), (0, 3, 5), (0, 1, 1)
"""GRIB2 parameters: discipline, category, number."""

Field = Callable[[np.ndarray, np.ndarray], np.ndarray]


def smooth(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Periodic, different at every point, in the range of temperatures."""
    phi, lam = np.deg2rad(latitude), np.deg2rad(longitude)
    return 270 + 25 * np.cos(phi) * np.cos(lam) + 15 * np.sin(phi) + 3 * np.sin(3 * lam) * np.cos(phi) ** 3


def encode(sample: str, keys: dict[str, Any], values: np.ndarray | None = None) -> bytes:
    """A message made from a sample of ecCodes: the keys in their order, the packing last."""
    handle = eccodes.codes_grib_new_from_samples(sample)
    try:
        packing = keys.pop("packingType", None)
        for key, value in keys.items():
            set_key = eccodes.codes_set_array if isinstance(value, (list, np.ndarray)) else eccodes.codes_set
            set_key(handle, key, value)
        if values is not None:
            eccodes.codes_set_values(handle, np.ascontiguousarray(values, np.float64).ravel())
        if packing:
            eccodes.codes_set(handle, "packingType", packing)
        return eccodes.codes_get_message(handle)
    finally:
        eccodes.codes_release(handle)


def grid_keys(
    rows: int = 19,
    columns: int = 36,
    *,
    scan: int = 0,
    west: float = 0.0,
    north: float = 90.0,
    step: float = 10.0,
) -> dict[str, Any]:
    """A regular grid whose north-western corner is given, sent in the order of the scanning mode."""
    south, east = north - (rows - 1) * step, west + (columns - 1) * step
    first_lat, last_lat = (south, north) if scan & 0x40 else (north, south)
    first_lon, last_lon = (east, west) if scan & 0x80 else (west, east)
    return {
        "Ni": columns,
        "Nj": rows,
        "latitudeOfFirstGridPointInDegrees": first_lat,
        "longitudeOfFirstGridPointInDegrees": first_lon % 360,
        "latitudeOfLastGridPointInDegrees": last_lat,
        "longitudeOfLastGridPointInDegrees": last_lon % 360,
        "iDirectionIncrementInDegrees": step,
        "jDirectionIncrementInDegrees": step,
        "scanningMode": scan,
    }


def sent(
    field: Field, rows: int, columns: int, *, scan: int, west: float, north: float, step: float
) -> list[float]:
    """Values point by point as GRIB2 table 3.4 orders them: slow, and independent of the code under test."""
    values = []
    j_first = bool(scan & 0x20)
    for outer in range(columns if j_first else rows):
        inner = range(rows if j_first else columns)
        for k in reversed(inner) if scan & 0x10 and outer % 2 else inner:
            i, j = (outer, k) if j_first else (k, outer)
            i, j = (columns - 1 - i if scan & 0x80 else i), (rows - 1 - j if scan & 0x40 else j)
            values.append(float(field(np.array(north - j * step), np.array(west + i * step))))
    return values


def regular(
    field: Field = smooth,
    *,
    edition: int = 2,
    rows: int = 19,
    columns: int = 36,
    scan: int = 0,
    west: float = 0.0,
    north: float = 90.0,
    step: float = 10.0,
    **keys: Any,
) -> bytes:
    """A field on a regular latitude-longitude grid."""
    grid = grid_keys(rows, columns, scan=scan, west=west, north=north, step=step)
    values = sent(field, rows, columns, scan=scan, west=west, north=north, step=step)
    return encode(f"regular_ll_pl_grib{edition}", {**grid, **keys}, np.array(values))


def pressure(parameter: tuple[int, int, int] = T, level: int = 500, **keys: Any) -> dict[str, Any]:
    """Keys of a GRIB2 field on a pressure level; `hours` is the forecast step."""
    return {
        **what(parameter),
        "typeOfFirstFixedSurface": 100,
        "scaleFactorOfFirstFixedSurface": 0,
        "scaledValueOfFirstFixedSurface": 100 * level,
        **when(),
        **keys,
    }


def surface(
    parameter: tuple[int, int, int], kind: int = 1, level: int | None = None, **keys: Any
) -> dict[str, Any]:
    """Keys of a GRIB2 field on another surface."""
    at = (
        {}
        if level is None
        else {"scaleFactorOfFirstFixedSurface": 0, "scaledValueOfFirstFixedSurface": level}
    )
    return {**what(parameter), "typeOfFirstFixedSurface": kind, **at, **when(), **keys}


def what(parameter: tuple[int, int, int]) -> dict[str, Any]:
    return dict(zip(("discipline", "parameterCategory", "parameterNumber"), parameter))


def when(day: int = 20240101, hour: int = 12, step: int = 0) -> dict[str, Any]:
    return {"dataDate": day, "dataTime": 100 * hour, "forecastTime": step}


def accumulated(start: int, end: int, *, hour: int = 12, statistic: int = 1) -> dict[str, Any]:
    """Keys that turn a GRIB2 field into a statistic over an interval of steps."""
    return {
        "productDefinitionTemplateNumber": 8,
        "typeOfStatisticalProcessing": statistic,
        **when(hour=hour),
        "stepRange": f"{start}-{end}",
    }


def multi(messages: Iterable[bytes], path: Path) -> None:
    """One GRIB2 message that holds all these fields, from section 4 on; written by ecCodes."""
    joined = eccodes.codes_grib_multi_new()
    for message in messages:
        handle = eccodes.codes_new_from_message(message)
        eccodes.codes_grib_multi_append(handle, 4, joined)
        eccodes.codes_release(handle)
    with path.open("wb") as file:
        eccodes.codes_grib_multi_write(joined, file)
    eccodes.codes_grib_multi_release(joined)


def write(path: Path, *messages: bytes) -> Path:
    path.write_bytes(b"".join(messages))
    return path
