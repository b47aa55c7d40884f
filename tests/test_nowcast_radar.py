"""Radar files: what the archive, NetCDF and pysteps' importers give, and what is refused."""

import gzip
import json
import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import eccodes
import numpy as np
import pytest
import xarray as xr

from fengwu_ghr.errors import InputError, ResourceError, UsageError
from fengwu_ghr.grid import LatLonGrid
from fengwu_ghr.nowcast import child
from fengwu_ghr.nowcast.radar import read_radar
from fengwu_ghr.nowcast.sequence import ZR
from fengwu_ghr.nowcast.storms import PROJECTION
from fengwu_ghr.projected_grid import ProjectedGrid

RADAR = Path(os.environ.get("FENGWU_GHR_DATA", Path(__file__).parents[2] / "shared" / "data")) / "radar"
needs_data = pytest.mark.skipif(not RADAR.is_dir(), reason=f"no real radar data in {RADAR}")
needs_pysteps = pytest.mark.skipif(not child.has_pysteps(), reason="needs the extra nowcast")
START = datetime(2020, 6, 1, 12)
META = {"projection": PROJECTION.text, "x1": 0, "y1": 0, "x2": 12e3, "y2": 10e3, "zr_a": 316.0, "zr_b": 1.5}


def archive(
    path: Path, *, start: datetime = START, frames: int = 3, meta: dict[str, object] | None = None
) -> Path:
    """Codes that tell rows and columns apart; the first pixel has no data."""
    code = np.arange(120, dtype=np.uint8).reshape(1, 10, 12).repeat(frames, axis=0)
    code[:, 0, 0] = 255
    times = np.array([start + timedelta(minutes=5) * n for n in range(frames)], "M8[m]").astype(str)
    np.savez(path, code=code, time=times, meta=np.array(json.dumps(meta or META)))
    return path


def test_an_archive(tmp_path: Path) -> None:
    found = read_radar([archive(tmp_path / "a.npz")])
    assert found.times[1] == START + timedelta(minutes=5)
    assert np.isnan(found.values[0, 0, 0])
    assert found.values[2, 3, 4] == (3 * 12 + 4) / 2, "half dBZ, row 0 in the north"
    assert isinstance(found.grid, ProjectedGrid)
    assert found.grid.y[0] == 9500
    assert found.zr == ZR(316, 1.5)


def test_archives_follow_each_other_and_may_be_bridged(tmp_path: Path) -> None:
    first = archive(tmp_path / "1.npz")
    late = archive(tmp_path / "2.npz", start=START + timedelta(minutes=25))
    with pytest.raises(InputError, match="12:10 to 12:25"):
        read_radar([late, first])
    assert len(read_radar([late, first], bridge=True)) == 8


def test_a_changed_grid_is_refused(tmp_path: Path) -> None:
    first = archive(tmp_path / "1.npz")
    moved = archive(
        tmp_path / "2.npz", start=START + timedelta(minutes=15), meta={**META, "x1": 1e3, "x2": 13e3}
    )
    with pytest.raises(InputError, match="the grid changes within the sequence"):
        read_radar([first, moved])


def test_what_is_no_archive(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", values=np.zeros(3))
    (tmp_path / "torn.npz").write_bytes(archive(tmp_path / "a.npz").read_bytes()[:300])
    (tmp_path / "text.npz").write_text("hello")
    for name in ("other.npz", "torn.npz", "text.npz"):
        with pytest.raises(InputError, match=f"{name} is no radar archive"):
            read_radar([tmp_path / name])
    bad = archive(tmp_path / "b.npz", meta={**META, "projection": "+proj=merc"})
    with pytest.raises(InputError, match="where its pixels lie cannot be told"):
        read_radar([bad])


def test_paths_that_are_no_radar(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no"):
        read_radar([tmp_path / "absent.npz"])
    with pytest.raises(InputError, match="no radar file in"):
        read_radar([tmp_path])
    (tmp_path / "a.csv").write_text("1")
    with pytest.raises(InputError, match="no known radar format"):
        read_radar([tmp_path / "a.csv"])
    archive(tmp_path / "a.npz")
    (tmp_path / "b.gif").write_bytes(b"GIF89a")
    with pytest.raises(InputError, match="of one format; these are archive, mch"):
        read_radar([tmp_path / "a.npz", tmp_path / "b.gif"])
    (tmp_path / "c.h5").write_text("no")
    with pytest.raises(InputError, match="is not an HDF5 file"):
        read_radar([tmp_path / "c.h5"])


def dataset(values: np.ndarray, units: str, *, projected: bool = True) -> xr.Dataset:
    times = np.array([START + timedelta(minutes=5) * n for n in range(len(values))], "M8[ns]")
    axes = ("y", "x") if projected else ("latitude", "longitude")
    rows, columns = np.arange(6) * 1000.0 + 500, np.arange(8) * 1000.0 + 500
    coords = {
        "time": times,
        axes[0]: rows if projected else 50 + rows / 1e5,
        axes[1]: columns if projected else columns / 1e5,
    }
    made = xr.Dataset({"echo": (("time", *axes), values, {"units": units})}, coords)
    if projected:
        made["echo"].attrs["grid_mapping"] = "crs"
        made["crs"] = ((), 0, {"proj4": PROJECTION.text})
    else:
        made["latitude"].attrs["units"], made["longitude"].attrs["units"] = "degrees_north", "degrees_east"
    return made


@pytest.mark.parametrize("projected", [True, False])
def test_netcdf_with_rows_from_the_south(projected: bool, tmp_path: Path) -> None:
    values = np.full((3, 6, 8), 10.0, np.float32)
    values[:, 0] = np.nan
    dataset(values, "mm h-1", projected=projected).to_netcdf(tmp_path / "r.nc")
    found = read_radar([tmp_path / "r.nc"])
    assert isinstance(found.grid, ProjectedGrid if projected else LatLonGrid)
    assert np.isnan(found.values[:, -1]).all(), "the first row of the file is the southern one"
    np.testing.assert_allclose(found.values[:, 0], 39.01, atol=0.01)


def test_netcdf_without_a_field_or_a_place(tmp_path: Path) -> None:
    values = np.zeros((3, 6, 8), np.float32)
    dataset(values, "K").to_netcdf(tmp_path / "k.nc")
    with pytest.raises(InputError, match=r"one variable on .* it has none of echo, crs"):
        read_radar([tmp_path / "k.nc"])
    dataset(values, "dBZ").drop_vars("crs").to_netcdf(tmp_path / "p.nc")
    with pytest.raises(InputError, match="proj4 attribute"):
        read_radar([tmp_path / "p.nc"])


@needs_pysteps
@needs_data
@pytest.mark.parametrize(
    ("raw", "packed", "frames"), [("knmi_20100826", "knmi_20100826", 12), ("mch_20160711", "mch_20160711", 3)]
)
def test_raw_files_are_those_of_the_archive(raw: str, packed: str, frames: int) -> None:
    """Half a decibel is the archive's step."""
    files = sorted((RADAR / "raw" / raw).iterdir())[:frames]
    found, kept = read_radar(files), read_radar([RADAR / "npz" / f"{packed}.npz"])[slice(0, frames)]
    assert found.times == kept.times
    assert found.grid == kept.grid
    assert np.array_equal(found.known, kept.known)
    assert np.nanmax(np.abs(found.values - kept.values)) <= 0.2501


@needs_pysteps
def test_mrms_grib(tmp_path: Path) -> None:
    """Local parameter of discipline 209 on 0.01 degrees; the time stands in the message."""
    for number in range(3):
        message = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
        keys = {
            "discipline": 209, "Ni": 8, "Nj": 6, "numberOfDataPoints": 48, "iDirectionIncrement": 10000,
            "jDirectionIncrement": 10000, "latitudeOfFirstGridPoint": 40055000, "latitudeOfLastGridPoint": 40005000,
            "longitudeOfFirstGridPoint": 260005000, "longitudeOfLastGridPoint": 260075000, "dataDate": 20190610,
            "dataTime": 2 * number,
        }  # fmt: skip
        for key, value in keys.items():
            eccodes.codes_set(message, key, value)
        eccodes.codes_set_values(message, np.repeat([0.0, 1.0, 10.0, 0.0, 0.0, 2.0], 8))
        name = f"PrecipRate_00.00_20190610-00{2 * number:02d}00.grib2"
        (tmp_path / name).write_bytes(eccodes.codes_get_message(message))
        eccodes.codes_release(message)
    found = read_radar([tmp_path])
    assert found.times == tuple(datetime(2019, 6, 10, 0, 2 * n) for n in range(3))
    assert isinstance(found.grid, LatLonGrid)
    assert found.grid.latitude[0] == pytest.approx(40.055, abs=0.006)
    np.testing.assert_allclose(found.values[0, [1, 2], 0], [23.01, 39.01], atol=0.1)


@needs_pysteps
def test_geotiff(tmp_path: Path) -> None:
    """Written by rasterio, in a process of its own as it loads PROJ."""
    script = f"""
import numpy as np, rasterio
from rasterio.transform import from_origin
for n in range(3):
    profile = dict(driver="GTiff", width=8, height=6, count=1, dtype="float32", nodata=-999, crs="EPSG:3067")
    values = np.full((6, 8), 20.0 + n, "float32"); values[0, 0] = -999
    name = {str(tmp_path)!r} + f"/2016092816{{5 * n:02d}}_fmi.tif"
    with rasterio.open(name, "w", transform=from_origin(0, 6e6, 1000, 1000), **profile) as file:
        file.write(values, 1)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=120)
    with pytest.raises(InputError, match="projected grid is of"):  # transverse Mercator is none of ours
        read_radar([tmp_path])


@needs_pysteps
def test_files_that_pysteps_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "AQC161932045V_00005.801.gif").write_bytes(b"GIF89a, but no more")
    with pytest.raises(InputError, match="cannot be read as mch"):
        read_radar([tmp_path])
    broken = tmp_path / "x.grib2.gz"
    broken.write_bytes(gzip.compress(b"no grib"))
    with pytest.raises(InputError, match="cannot be read as mrms"):
        read_radar([broken])


def test_without_pysteps_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(child, "has_pysteps", lambda: False)
    (tmp_path / "AQC161932045V_00005.801.gif").write_bytes(b"GIF89a")
    with pytest.raises(UsageError, match=r"fengwu_ghr\[nowcast\]"):
        read_radar([tmp_path])


@needs_pysteps
def test_a_child_that_dies_or_hangs_is_an_error() -> None:
    with pytest.raises(ResourceError, match=r"pysteps failed at .*KeyError"):
        child.run_child("no such task", {})
    with pytest.raises(ResourceError, match=r"more than 0\.01 s"):
        child.run_child("places", {"projection": "+proj=longlat"}, seconds=0.01)
