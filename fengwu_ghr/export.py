"""Products from a run store: GRIB files and NetCDF of what is committed, and the series at a point."""

import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from fengwu_ghr.durable import make_folder, replace_file, writing
from fengwu_ghr.errors import InputError, OutputError, UsageError
from fengwu_ghr.grib.encode import GribEncoder
from fengwu_ghr.grid import LatLonGrid
from fengwu_ghr.outputs import GribSink, Outputs
from fengwu_ghr.store import RunStore, open_run
from fengwu_ghr.variables import Channel


def export_grib(
    store: RunStore, initial_time: datetime, folder: Path, *, only_missing: bool = False, threads: int = 2
) -> list[Path]:
    """One GRIB2 file for every committed lead; returns the paths of all of them, also of those already there."""
    channels, grid = store.plan.channels, store.plan.grid
    sink = GribSink(folder, GribEncoder(grid), initial_time, channels=channels)
    outputs = Outputs([sink], channels, threads=threads)
    leads = [lead for lead in store.committed(initial_time) if sink.has_file(lead)]
    try:
        for lead in leads:
            if not (only_missing and sink.is_written(lead)):
                outputs.submit(lead, partial(_read, store, initial_time, lead))
        outputs.wait()
    finally:
        outputs.close()
    return [sink.path(lead) for lead in leads]


def export_all_grib(store: RunStore, folder: Path, *, overwrite: bool) -> list[Path]:
    """GRIB files of every initial time and committed lead of the store; returns their paths.

    Raises UsageError when the folder holds files of another run and they are not to be overwritten.
    """
    paths = []
    for initial_time in store.plan.initial_times:
        if recorded := store.provenance(initial_time):
            claim_grib_folder(
                folder,
                initial_time,
                identity=recorded["identity"],
                channels=store.plan.channels,
                overwrite=overwrite,
            )
            paths += export_grib(store, initial_time, folder)
    return paths


def claim_grib_folder(
    folder: Path,
    initial_time: datetime,
    *,
    identity: Mapping[str, Any],
    channels: Sequence[Channel],
    overwrite: bool,
) -> None:
    """The folder belongs, for this initial time, to the run of this identity: a note in it says so.

    Raises UsageError when it holds files of another run and they are not to be overwritten.
    """
    stamp = f"{initial_time:%Y%m%d%H%M%S}"
    note = folder / f".{stamp}.run.json"
    ours = json.dumps({**identity, "channels": list(map(str, channels))}, sort_keys=True).encode()
    files = [*folder.glob(f"{stamp}-*-oper-fc.grib2"), *folder.glob(f"{stamp}-*-oper-fc.index")]
    with writing(folder):
        if files and not (note.exists() and note.read_bytes() == ours):
            if not overwrite:
                raise UsageError(
                    f"{folder} holds GRIB files of another forecast from {initial_time:%Y-%m-%d %H:%M}; write to "
                    "another --grib folder, or replace them with --overwrite"
                )
            for file in files:
                file.unlink(missing_ok=True)
        make_folder(folder)
        replace_file(note, ours)


def export_netcdf(path: Path, output: Path) -> Path:
    """The committed leads of a run store as one compressed CF NetCDF-4 file, written under another name first.

    Raises UsageError without the `netcdf` extra, OutputError when the file cannot be written.
    """
    check_netcdf()
    # Whole fields: small chunks would cost more in scheduling than in writing.
    dataset = open_run(path, chunks={"latitude": -1, "longitude": -1})
    encoding = {name: _encoding(variable.shape) for name, variable in dataset.data_vars.items()}
    unfinished = output.with_name(f".{output.name}.{os.getpid()}.unfinished")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        dataset.to_netcdf(unfinished, format="NETCDF4", engine="netcdf4", encoding=encoding)
        os.replace(unfinished, output)
    except (OSError, RuntimeError) as error:  # HDF5 reports a full disk as a RuntimeError
        raise OutputError(f"{output} cannot be written: {error}; make room, then export again") from None
    finally:
        unfinished.unlink(missing_ok=True)
    return output


def _encoding(shape: tuple[int, ...]) -> dict[str, Any]:
    """One field is one chunk, as it is written."""
    return {
        "zlib": True,
        "complevel": 1,
        "shuffle": True,
        "chunksizes": (*(1 for _ in shape[:-2]), *shape[-2:]),
    }


def check_netcdf() -> None:
    """Raises UsageError without the `netcdf` extra."""
    if importlib.util.find_spec("netCDF4") is None:
        raise UsageError("NetCDF needs netCDF4; install the extra: pip install 'fengwu_ghr[netcdf]'")


def series_at(
    store: RunStore, channels: Sequence[Channel], *, initial_time: datetime, latitude: float, longitude: float
) -> tuple[tuple[timedelta, ...], dict[Channel, Float32[np.ndarray, " lead"]]]:
    """Values at a place for every committed lead, bilinear between the four surrounding points.

    Raises InputError when the place lies outside the store's area.
    """
    rows, columns, weights = bilinear_weights(store.plan.latlon, latitude, longitude)
    leads = store.committed(initial_time)
    series = {}
    for channel in channels:
        fields = (store.read(channel, initial_time, lead) for lead in leads)
        series[channel] = np.array([np.sum(f[np.ix_(rows, columns)] * weights) for f in fields], np.float32)
    return leads, series


def bilinear_weights(
    grid: LatLonGrid, latitude: float, longitude: float
) -> tuple[list[int], list[int], Float32[np.ndarray, "2 2"]]:
    """Two rows, two columns and the weights of their four points, which sum to one."""
    if not (-90 <= latitude <= 90 and -180 <= longitude <= 360):
        raise UsageError(
            f"a latitude lies in [-90, 90], a longitude in [-180, 360]; got {latitude:g}, {longitude:g}"
        )
    eastward = grid.longitude[0] + np.mod(longitude - grid.longitude[0], 360)
    row = float(np.interp(-latitude, -grid.latitude, np.arange(grid.shape[0])))
    columns = np.append(grid.longitude, grid.longitude[0] + 360) if grid.is_periodic else grid.longitude
    column = float(np.interp(eastward, columns, np.arange(columns.size)))
    inside = (
        grid.latitude[-1] - 1e-9 <= latitude <= grid.latitude[0] + 1e-9 and eastward <= columns[-1] + 1e-9
    )
    if not inside:
        raise InputError(f"{latitude:g}, {longitude:g} lies outside the area of this store, {_extent(grid)}")
    south, east = row - int(row), column - int(column)
    weights = np.outer([1 - south, south], [1 - east, east]).astype(np.float32)
    rows = [int(row), min(int(row) + 1, grid.shape[0] - 1)]
    return rows, [int(column) % grid.shape[1], (int(column) + 1) % grid.shape[1]], weights


def _extent(grid: LatLonGrid) -> str:
    north, south, west, east = grid.latitude[0], grid.latitude[-1], grid.longitude[0], grid.longitude[-1]
    return f"{north:g} ... {south:g} north, {west:g} ... {east:g} east"


def _read(
    store: RunStore, initial_time: datetime, lead: timedelta, channel: Channel
) -> Float32[np.ndarray, "lat lon"]:
    return store.read(channel, initial_time, lead)
