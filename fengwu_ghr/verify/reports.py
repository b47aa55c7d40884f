"""Reports of stations from files: SYNOP in BUFR, METAR and ISD in Parquet or CSV, as checked observations."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fengwu_ghr.config import parse_time
from fengwu_ghr.errors import InputError
from fengwu_ghr.grib.bufr import read_synop
from fengwu_ghr.verify.quantities import units_of
from fengwu_ghr.verify.stations import MEASURED, Observations, checked
from fengwu_ghr.verify.units import conversion

_BUFR = {".bufr", ".bfr", ".bin"}
_NAMES: Mapping[str, Sequence[str]] = {
    "station": ("station", "stationname", "station_id", "id", "usaf"),
    "latitude": ("latitude", "lat"),
    "longitude": ("longitude", "lon"),
    "elevation": ("elevation", "altitude", "height", "elev"),
    "time": ("timenominal", "timeobs", "time", "datetime", "valid", "date"),
    "2t": ("2t", "t2m", "temperature", "air_temperature", "tmp", "t"),
    "10ws": ("10ws", "windspeed", "wind_speed", "ws"),
    "msl": ("msl", "sealevelpress", "air_pressure_at_sea_level", "slp", "mslp"),
    "tp6h": ("tp6h", "precip6hour", "precipitation_amount_6", "ra6"),
    "tp24h": ("tp24h", "precip24hour", "precipitation_amount_24", "ra24"),
}
_MADIS_GOOD = {"C", "S", "V", "G", "Z"}
"""Coarse, screened, verified, good, not checked: the quality flags of MADIS that do not doubt a value."""


def read_reports(paths: Sequence[Path]) -> Observations:
    """The observations of these files, checked, one per station and time.

    Raises InputError for a file that is none, lacks station, place or time, or holds no value that can be right.
    """
    if not paths:
        raise InputError("no station file was given")
    parts = [_read(path) for path in paths]
    names = sorted({name for part in parts for name in part if name in MEASURED})
    if not names:
        raise InputError(f"{', '.join(map(str, paths))} measure none of {', '.join(MEASURED)}")
    columns: dict[str, Any] = {
        key: np.concatenate([part[key] for part in parts])
        for key in ("station", "latitude", "longitude", "elevation", "time")
    }
    values = {name: np.concatenate([_column(part, name) for part in parts]) for name in names}
    return checked(Observations(**columns, values=values, source=", ".join(path.name for path in paths)))


def _column(part: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    return part.get(name, np.full(len(part["station"]), np.nan, np.float32)).astype(np.float32)


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise InputError(
            f"{path} is no file; give SYNOP as BUFR ({', '.join(_BUFR)}), METAR or ISD as .parquet or CSV"
        )
    if path.suffix.lower() in _BUFR:
        return read_synop(path)
    table = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    return _columns(path, table)


def _parquet(path: Path) -> dict[str, np.ndarray]:
    import pandas

    try:
        frame = pandas.read_parquet(path)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"{path} cannot be read as Parquet: {error}") from error
    return {str(name): frame[name].to_numpy() for name in frame}


def _csv(path: Path) -> dict[str, np.ndarray]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.reader(line for line in file if not line.startswith("#")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV: {error}") from error
    if len(rows) < 2 or any(len(row) != len(rows[0]) for row in rows[1:]):
        raise InputError(f"{path} is no table: every line needs as many fields as its header")
    return {name.strip(): np.array(column) for name, *column in zip(*rows)}


def _columns(path: Path, table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns of a table under our names, in registry units, doubtful values left out."""
    spelled = {_plain(name): name for name in table}
    found: dict[str, np.ndarray] = {}
    for ours, theirs in _NAMES.items():
        name = next((spelled[alias] for alias in theirs if alias in spelled), None)
        if name is None:
            continue
        if ours == "station":
            found[ours] = table[name].astype(str)
        elif ours == "time":
            found[ours] = _times(path, table[name])
        else:
            values = _to_registry(path, ours, name, _floats(table[name]))
            found[ours] = np.where(_is_good(table.get(f"{name}DD")), values, np.nan)
    if missing := [name for name in ("station", "latitude", "longitude", "time") if name not in found]:
        raise InputError(f"{path} lacks a column for {', '.join(missing)}; it has {', '.join(table)}")
    found.setdefault("elevation", np.full(len(found["station"]), np.nan))
    return found


def _plain(name: str) -> str:
    return name.split("[")[0].strip().lower()


def _to_registry(path: Path, ours: str, name: str, values: np.ndarray) -> np.ndarray:
    """By the unit in brackets, `air_temperature[unit="Celsius"]`; without brackets it is the registry's.

    Raises InputError for a unit that is not known.
    """
    stated = name.partition("[")[2].rstrip("]").removeprefix("unit=").strip('" ')
    if not stated or ours not in (*MEASURED, "elevation"):
        return values
    try:
        factor, offset = conversion(stated, "m" if ours == "elevation" else units_of(ours))
    except ValueError as error:
        raise InputError(f"{path}: the units of {name}: {error}") from None
    return values * factor + offset


def _is_good(flags: np.ndarray | None) -> np.ndarray | bool:
    return True if flags is None else np.isin(flags.astype(str), list(_MADIS_GOOD))


def _floats(column: np.ndarray) -> np.ndarray:
    if column.dtype.kind in "fiu":
        return column.astype(np.float64)
    return np.array([_float(text) for text in column])


def _float(text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return float("nan")


def _times(path: Path, column: np.ndarray) -> np.ndarray:
    """As datetime64, of texts or numbers such as 2020010112. Raises InputError for what is no time, as an epoch."""
    if column.dtype.kind == "M":
        return column.astype("M8[s]")
    texts, where = np.unique([str(text).strip() for text in column.tolist()], return_inverse=True)
    try:
        return np.array([parse_time(text) for text in texts], "M8[s]")[where]
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
