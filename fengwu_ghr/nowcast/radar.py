"""Radar files -> RadarSequence: archives, NetCDF, and by pysteps HDF5 (ODIM, KNMI), MeteoSwiss GIF, MRMS, GeoTIFF.

A file of the archive holds a sequence; of the other formats one file is one frame, and a folder is all of its files.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import xarray as xr

from fengwu_ghr.errors import InputError
from fengwu_ghr.grid import LatLonGrid
from fengwu_ghr.nowcast.child import run_child
from fengwu_ghr.nowcast.sequence import ZR, RadarSequence
from fengwu_ghr.projected_grid import ProjectedGrid, RadarGrid
from fengwu_ghr.projection import Projection

FORMATS = {
    "archive": (".npz",),
    "netcdf": (".nc", ".nc4"),
    "hdf5": (".h5", ".hdf5", ".hdf"),
    "mch": (".gif",),
    "mrms": (".grib2", ".grb2", ".grib2.gz"),
    "geotiff": (".tif", ".tiff"),
}
_NO_DATA = 255
_RAIN_UNITS = ("mm/h", "mm h-1", "mm hr-1", "kg m-2 h-1")


def read_radar(
    paths: Sequence[Path],
    *,
    bridge: bool = False,
    zr: ZR | None = None,
    extent: Sequence[float] | None = None,
) -> RadarSequence:
    """The frames of these files or folders as one sequence, on one grid, evenly spaced.

    `bridge` fills gaps of up to 15 minutes. `zr` takes the place of what files say, else Z = 200 R^1.6. `extent` (west,
    east, south, north) crops MRMS files. Raises InputError: no such file, unknown format, changed grid, gaps, values
    that no radar measures.
    """
    files = _files(paths)
    kinds = {_format(path) for path in files}
    if len(kinds) > 1:
        raise InputError(f"the files of a sequence are of one format; these are {', '.join(sorted(kinds))}")
    kind = kinds.pop()
    if kind in ("archive", "netcdf"):
        read = read_archive if kind == "archive" else read_netcdf
        sequence = _joined([read(path, zr=zr) for path in files])
    else:
        sequence = _imported(kind, files, zr, extent)
    if len(sequence) < 2:
        return sequence
    sequence = sequence.bridged() if bridge else sequence
    sequence.step  # noqa: B018  # refuses gaps
    return sequence


def read_archive(path: Path, *, zr: ZR | None = None) -> RadarSequence:
    """An archive: `code` (255 no data, else half dBZ), `time`, `meta` (JSON). Raises InputError."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as content:
            code, times, meta = content["code"], content["time"], json.loads(str(content["meta"]))
    except (OSError, KeyError, ValueError, EOFError, BadZipFile, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no radar archive with code, time and meta: {error}") from error
    if code.dtype != np.uint8 or code.ndim != 3:
        raise InputError(f"{path}: code must be uint8 [time, y, x]; got {code.dtype} {code.shape}")
    values = np.where(code == _NO_DATA, np.float32(np.nan), code * np.float32(0.5))
    grid = _grid(meta, code.shape[1:], str(path))
    stated = ZR(meta.get("zr_a", 200.0), meta.get("zr_b", 1.6))
    moments = times.astype("M8[s]").tolist()
    return RadarSequence.of(values, moments, grid, zr=zr or stated, source=str(path))


def read_netcdf(path: Path, *, zr: ZR | None = None) -> RadarSequence:
    """The one variable of dBZ or mm/h on (time, y, x) or (time, latitude, longitude). Raises InputError."""
    try:
        with xr.open_dataset(path) as dataset:
            return _of_dataset(dataset.load(), path, zr)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} cannot be read as radar NetCDF: {error}") from error


def _of_dataset(dataset: xr.Dataset, path: Path, zr: ZR | None) -> RadarSequence:
    fields = {
        str(name): array
        for name, array in dataset.data_vars.items()
        if array.ndim == 3 and array.attrs.get("units") in ("dBZ", "dB", *_RAIN_UNITS)
    }
    if len(fields) != 1:
        raise InputError(
            f"{path} needs one variable on (time, y, x) in dBZ or mm/h; it has {', '.join(fields) or 'none'} of "
            f"{', '.join(map(str, dataset.data_vars))}"
        )
    (array,) = fields.values()
    time, row, column = map(str, array.dims)
    y, x = (dataset[axis].values.astype(np.float64) for axis in (row, column))
    values = array.values.astype(np.float32)
    if y[0] < y[-1]:
        y, values = y[::-1].copy(), values[:, ::-1]
    values = values if array.attrs["units"] in ("dBZ", "dB") else (zr or ZR()).reflectivity(values)
    grid = _netcdf_grid(dataset, array, y, x, path)
    moments = dataset[time].values.astype("M8[s]").tolist()
    return RadarSequence.of(values, moments, grid, zr=zr or ZR(), source=str(path))


def _netcdf_grid(
    dataset: xr.Dataset, array: xr.DataArray, y: np.ndarray, x: np.ndarray, path: Path
) -> RadarGrid:
    row = dataset[array.dims[1]]
    if str(row.attrs.get("units", "")).startswith("degree"):
        return LatLonGrid(y, x)
    mapping = array.attrs.get("grid_mapping") or array.encoding.get("grid_mapping")
    about = dataset[mapping].attrs if mapping in dataset.variables else {}
    text = about.get("proj4") or about.get("proj4_params")
    if not text:
        raise InputError(
            f"{path}: {array.name} needs a grid_mapping with a proj4 attribute, or degrees for axes"
        )
    unit = 1000.0 if row.attrs.get("units") == "km" else 1.0
    return ProjectedGrid(Projection(text), x * unit, y * unit)


def _imported(
    kind: str, files: Sequence[Path], zr: ZR | None, extent: Sequence[float] | None
) -> RadarSequence:
    if kind == "hdf5":
        kind = _hdf5_kind(files[0])
    request = {"format": kind, "paths": [str(path.resolve()) for path in files], "extent": extent}
    arrays, facts = run_child("read", request)
    frames = [
        _frame(arrays[f"frame_{number}"], about, path, zr)
        for number, (about, path) in enumerate(zip(facts, files))
    ]
    return _joined(frames)


def _frame(values: np.ndarray, about: Mapping[str, Any], path: Path, zr: ZR | None) -> RadarSequence:
    stated = zr or ZR(about.get("zr_a") or 200.0, about.get("zr_b") or 1.6)
    match about["unit"]:
        case "mm/h":
            values = stated.reflectivity(values)
        case "mm":
            values = stated.reflectivity(values * np.float32(60 / about["accutime"]))
        case "dBZ":
            values = values.astype(np.float32)
        case other:
            raise InputError(f"{path} is in {other!r}; radar fields are in dBZ, mm/h or mm")
    if about.get("yorigin") == "lower":
        values = values[::-1].copy()
    grid = _grid(about, values.shape, str(path))
    time = datetime.fromisoformat(about["time"])
    return RadarSequence.of(values[None], [time], grid, zr=stated, source=str(path))


def _joined(parts: Sequence[RadarSequence]) -> RadarSequence:
    """In the order of time. Raises InputError where the grid changes or a time comes twice."""
    parts = sorted(parts, key=lambda part: part.times[0])
    first = parts[0]
    for part in parts:
        if part.grid != first.grid:
            raise InputError(
                f"the grid changes within the sequence: {first.source} is on {first.grid}, {part.source} on "
                f"{part.grid}, or elsewhere on the same plane; give frames of one grid"
            )
    if len(parts) == 1:
        return first
    times = tuple(time for part in parts for time in part.times)
    source = f"{first.source} ... {Path(parts[-1].source).name}"
    return RadarSequence(np.concatenate([part.values for part in parts]), times, first.grid, first.zr, source)


def _grid(meta: Mapping[str, Any], shape: tuple[int, ...], source: str) -> RadarGrid:
    """Of an archive's or pysteps' description."""
    rows, columns = shape
    try:
        if "lat_first" in meta:
            latitude = meta["lat_first"] + meta["dlat"] * np.arange(rows)
            longitude = meta["lon_first"] + meta["dlon"] * np.arange(columns)
            return LatLonGrid(latitude, longitude)
        unit = 1000.0 if meta.get("cartesian_unit") == "km" else 1.0
        x1, y1, x2, y2 = (float(meta[key]) * unit for key in ("x1", "y1", "x2", "y2"))
        if "longlat" in meta["projection"] or "latlong" in meta["projection"]:
            south, west = min(y1, y2), min(x1, x2)
            dy, dx = abs(y2 - y1) / rows, abs(x2 - x1) / columns
            latitude = south + dy * (np.arange(rows)[::-1] + 0.5)
            return LatLonGrid(latitude, west + dx * (np.arange(columns) + 0.5))
        pixel = (x2 - x1) / columns, (y2 - y1) / rows
        return ProjectedGrid.of_corners(Projection(meta["projection"]), (x1, y1), pixel, (rows, columns))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{source}: where its pixels lie cannot be told: {error!r}") from error


def _files(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(p for p in path.iterdir() if _suffix_of(p) and not p.name.startswith("."))
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"there is no {path}; give radar files or a folder of them")
    if not found:
        known = ", ".join(suffix for suffixes in FORMATS.values() for suffix in suffixes)
        raise InputError(f"no radar file in {', '.join(map(str, paths))}; their names end in {known}")
    return found


def _suffix_of(path: Path) -> str:
    return next((s for suffixes in FORMATS.values() for s in suffixes if path.name.lower().endswith(s)), "")


def _format(path: Path) -> str:
    suffix = _suffix_of(path)
    for kind, suffixes in FORMATS.items():
        if suffix in suffixes:
            return kind
    raise InputError(
        f"{path} is of no known radar format; names end in {', '.join(sum(FORMATS.values(), ()))}"
    )


def _hdf5_kind(path: Path) -> str:
    """KNMI's own layout has a group `overview`; ODIM names itself."""
    try:
        head = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if not head.startswith(b"\x89HDF\r\n\x1a\n"):
        raise InputError(f"{path} is not an HDF5 file")
    return "knmi" if re.search(rb"product_datetime_end", head) else "odim"
