"""One analysis in, a forecast out: what other programs see of it, against what was put in and what was promised."""

import json
import resource
import shutil
import subprocess
import sys
import warnings
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from fengwu_ghr.backbone import architecture
from fengwu_ghr.catalogue import create_model
from fengwu_ghr.config import RunConfig
from fengwu_ghr.errors import InputError, OutputError, ResourceError, UsageError
from fengwu_ghr.forecast import ForecastResult, run_forecast
from fengwu_ghr.grib.decode import plan_analysis, read_analysis
from fengwu_ghr.grib.encode import GribEncoder, packing_bound, write_messages
from fengwu_ghr.grid import product_grid, regular_grid
from fengwu_ghr.preflight import plan_forecast, select_area
from fengwu_ghr.store import RunStore
from fengwu_ghr.synthetic import INITIAL_TIME, synthetic_state
from fengwu_ghr.variables import Channel, channel_set

GHR_69 = channel_set("ghr-69").channels


class Listening:
    """A reporter that remembers what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[int] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def begin(self, done: int, total: int) -> None:
        self.steps.append(done)

    def stepped(self, done: int, lead: timedelta) -> None:
        self.steps.append(done)


def run(analysis: Path, store: Path, *, model: str = "ghr-tiny-1p8", **sections: dict) -> ForecastResult:
    return run_forecast(run_config(analysis, store, model=model, **sections), reporter=Listening())


def run_config(analysis: Path, store: Path, *, model: str = "ghr-tiny-1p8", **sections: dict) -> RunConfig:
    forecast = {"lead_time_hours": 12} | sections.pop("forecast", {})
    output = {"zarr": store} | sections.pop("output", {})
    parts = {
        "model": {"name": model},
        "input": {"files": (analysis,)},
        "forecast": forecast,
        "output": output,
    }
    return RunConfig.model_validate(parts | sections)


@pytest.fixture(scope="module")
def products(analysis: Path, tmp_path_factory: pytest.TempPathFactory) -> ForecastResult:
    folder = tmp_path_factory.mktemp("products")
    output = {"grib": folder / "grib", "netcdf": folder / "run.nc"}
    return run(analysis, folder / "run.zarr", output=output)


def test_xarray_opens_the_store_as_it_is(products: ForecastResult) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with xr.open_zarr(products.store) as dataset:
            assert dict(dataset.sizes) == {
                "time": 1, "prediction_timedelta": 3, "level": 13, "latitude": 101, "longitude": 200,
            }  # fmt: skip
            assert set(dataset.data_vars) == {"z", "q", "u", "v", "t", "2t", "10u", "10v", "msl"}
            assert dataset.time.values[0] == np.datetime64(INITIAL_TIME)
            assert dataset.valid_time.values[0, 2] == np.datetime64(INITIAL_TIME + timedelta(hours=12))
            assert all(np.isfinite(dataset[name]).all() for name in dataset.data_vars)


def test_lead_zero_is_the_analysis(products: ForecastResult) -> None:
    truth = synthetic_state(product_grid(20), GHR_69, initial_time=INITIAL_TIME)
    with RunStore.open(products.store) as store:
        for name, worst in (("z500", 60.0), ("t850", 0.3), ("u250", 0.6), ("v500", 0.6), ("msl", 60.0)):
            channel = GHR_69[channel_set("ghr-69").index(name)]
            field = store.read(channel, INITIAL_TIME, timedelta(0))
            assert np.abs(field - truth[channel]).max() < worst, (
                name
            )  # 2.5 degrees to 1.8: cubic, smooth waves


def test_grib_and_netcdf_hold_the_fields_of_the_store(products: ForecastResult) -> None:
    assert [path.name for path in products.grib_files] == [
        f"20240101000000-{hours}h-oper-fc.grib2" for hours in (0, 6, 12)
    ]
    with xr.open_zarr(products.store) as stored, xr.open_dataset(products.netcdf) as netcdf:
        for name in stored.data_vars:
            np.testing.assert_array_equal(stored[name].values, netcdf[name].values)
        z = stored["z"].values[0, 2]
        keys = {"typeOfLevel": "isobaricInhPa"}
        with xr.open_dataset(
            products.grib_files[2], engine="cfgrib", filter_by_keys=keys, indexpath=""
        ) as grib:
            assert grib.step.values == np.timedelta64(12, "h")
            for level in stored.level.values:
                field = stored["z"].sel(level=level).values[0, 2]
                error = np.abs(grib["z"].sel(isobaricInhPa=level).values - field).max()
                assert error <= packing_bound(field, 16)
    assert z.shape == (13, 101, 200)


def test_our_grib_is_accepted_as_input_and_is_the_same_state(products: ForecastResult) -> None:
    plan = plan_analysis([products.grib_files[2]], GHR_69)
    again = read_analysis(plan)
    assert again.valid_time == INITIAL_TIME + timedelta(hours=12)
    assert again.lead_of_input == timedelta(hours=12)
    with RunStore.open(products.store) as store:
        for channel in GHR_69:
            field = store.read(channel, INITIAL_TIME, timedelta(hours=12))
            assert np.abs(again.fields[channel].values - field).max() <= packing_bound(field, 16), channel


def test_provenance_tells_model_inputs_and_numerics(products: ForecastResult, analysis: Path) -> None:
    with xr.open_zarr(products.store) as dataset:
        provenance = json.loads(dataset.attrs["provenance"])
    digest = subprocess.run(
        ["sha256sum", analysis], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    assert provenance["identity"]["input files"][0][0]["sha256"] == digest
    assert len(provenance["inputs"][0]["channels"]) == 69
    assert {"engine", "precision", "threads", "batch", "torch"} <= set(provenance["numerics"])
    assert len(provenance["identity"]["model"]["sha256"]) == 64


@pytest.mark.skipif(not shutil.which("cdo"), reason="cdo is not installed")
def test_cdo_agrees_about_the_grid_and_the_mean(products: ForecastResult) -> None:
    command = [
        "cdo",
        "-s",
        "-outputf,%.6g",
        "-fldmean",
        "-selname,msl",
        "-sellevel,0",
        products.grib_files[1],
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    with RunStore.open(products.store) as store:
        field = store.read(Channel("msl"), INITIAL_TIME, timedelta(hours=6))
    mean = np.average(field.mean(axis=1, dtype=np.float64), weights=product_grid(20).row_weights)
    assert float(done.stdout.split()[0]) == pytest.approx(mean, rel=2e-5)


def test_the_zero_model_forecasts_persistence(analysis: Path, tmp_path: Path) -> None:
    create_model("ghr-tiny-1p8", init="zero", output=tmp_path / "zero")
    run(analysis, tmp_path / "run.zarr", model=str(tmp_path / "zero"))
    with xr.open_zarr(tmp_path / "run.zarr") as dataset:
        t = dataset["t"].values[0]
    np.testing.assert_array_equal(t[1], t[2])
    assert np.abs(t[1] - t[0]).max() < 0.3  # the way over the network grid


def test_thinning_keeps_just_what_was_asked_for_and_the_same_bits(
    analysis: Path, products: ForecastResult, tmp_path: Path
) -> None:
    forecast = {
        "variables": ("z", "t2m"),
        "levels": (500, 850),
        "leads_hours": (12,),
        "area": (60, -20, 30, 40),
    }
    run(analysis, tmp_path / "thin.zarr", forecast=forecast)
    with xr.open_zarr(tmp_path / "thin.zarr") as thin, xr.open_zarr(products.store) as whole:
        assert set(thin.data_vars) == {"z", "2t"}
        assert list(thin.level) == [500, 850]
        assert float(thin.longitude[0]) == pytest.approx(-19.8)
        assert float(thin.longitude[-1]) == pytest.approx(39.6)
        box = whole["z"].sel(level=[500, 850], latitude=thin.latitude, method="nearest").values[0, 2]
        columns = [round((lon % 360) / 1.8) for lon in thin.longitude.values]
        np.testing.assert_array_equal(thin["z"].values[0, 0], box[:, :, columns])


def test_kept_bits_bound_the_error(analysis: Path, products: ForecastResult, tmp_path: Path) -> None:
    run(analysis, tmp_path / "rounded.zarr", forecast={"keep_bits": 8})
    with xr.open_zarr(tmp_path / "rounded.zarr") as rounded, xr.open_zarr(products.store) as whole:
        error = np.abs(rounded["t"].values / whole["t"].values - 1).max()
    assert 0 < error <= 2**-9


def test_two_states_of_history_start_a_forecast(tmp_path: Path) -> None:
    grid, encoder = regular_grid(5), GribEncoder(regular_grid(5))
    messages = []
    for hours in (-6, 0):
        time = INITIAL_TIME + timedelta(hours=hours)
        state = synthetic_state(grid, GHR_69, initial_time=time)
        encode = encoder.encode
        messages += [(c, encode(c, state[c], initial_time=time, lead=timedelta(0))) for c in GHR_69]
    write_messages(tmp_path / "both.grib2", messages)
    create_model(architecture("ghr-tiny", scale=20, history=2), output=tmp_path / "two")
    run(tmp_path / "both.grib2", tmp_path / "run.zarr", model=str(tmp_path / "two"))
    with xr.open_zarr(tmp_path / "run.zarr") as dataset:
        assert dataset.time.values[0] == np.datetime64(INITIAL_TIME)
        assert np.isfinite(dataset["t"]).all()


def test_other_numerics_are_refused_unless_accepted(analysis: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    run(analysis, path, forecast={"lead_time_hours": 12})
    with RunStore.open(path, write=[INITIAL_TIME]) as store:
        manifest = next((path / "_manifest").glob("*.jsonl"))
        recorded = store.provenance(INITIAL_TIME)
        assert recorded is not None
        numerics = recorded["numerics"] | {"torch": "1.0"}
        store.note_change(INITIAL_TIME, {"numerics": numerics})
    lines = manifest.read_bytes().splitlines(keepends=True)
    lines = [line for line in lines if b'"lead_seconds":43200' not in line]
    manifest.write_bytes(b"".join(lines))
    with pytest.raises(UsageError, match=r"torch: 1\.0 -> .*--accept-numerics"):
        run(analysis, path)
    run(analysis, path, compute={"accept_numerics": True})
    with RunStore.open(path) as store:
        assert len(store.committed(INITIAL_TIME)) == 3


def test_threads_and_batch_come_from_the_manifest(analysis: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    run(analysis, path, compute={"threads": 1})
    manifest = next((path / "_manifest").glob("*.jsonl"))
    lines = manifest.read_bytes().splitlines(keepends=True)
    before = (path / "z" / "c" / "0" / "2" / "0" / "0" / "0").read_bytes()
    manifest.write_bytes(b"".join(line for line in lines if b'"lead_seconds":43200' not in line))
    run(analysis, path, compute={"threads": 2})
    assert (path / "z" / "c" / "0" / "2" / "0" / "0" / "0").read_bytes() == before


@pytest.mark.skipif(not shutil.which("mount"), reason="no mount")
def test_a_full_disk_stops_the_run_at_that_lead_and_it_resumes(analysis: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", small], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here: " + mounted.stderr.decode().strip())
    try:
        thin = {"lead_time_hours": 24, "variables": ("z", "t", "u", "v")}
        with pytest.raises(OutputError, match=r"run\.zarr|room"):
            _ignoring_the_forecast_of_disk(analysis, small / "run.zarr", thin)
        with RunStore.open(small / "run.zarr") as store:
            committed = store.committed(INITIAL_TIME)
        assert 0 < len(committed) < 5
        subprocess.run(["mount", "-o", "remount,size=64m", small], check=True)
        _ignoring_the_forecast_of_disk(analysis, small / "run.zarr", thin)
        with RunStore.open(small / "run.zarr") as store:
            assert len(store.committed(INITIAL_TIME)) == 5
            assert store.verify() == ()
    finally:
        subprocess.run(["umount", small], check=True)


def _ignoring_the_forecast_of_disk(analysis: Path, store: Path, forecast: dict) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fengwu_ghr.preflight._check_targets", lambda plan: None)
        run(analysis, store, forecast=forecast)


def test_a_target_that_cannot_be_written_is_found_before_work_starts(
    analysis: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutputError, match=r"is no folder.*--output"):
        run(analysis, analysis / "run.zarr")
    monkeypatch.setattr("os.access", lambda path, mode: False)  # as for a user who is not root
    with pytest.raises(OutputError, match=r"not writable.*--output"):
        run(analysis, tmp_path / "run.zarr")


def test_too_small_a_disk_is_found_before_work_starts(
    analysis: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fengwu_ghr.preflight.free_bytes", lambda path: 1000)
    with pytest.raises(OutputError, match="--keep-bits"):
        run(analysis, tmp_path / "run.zarr")
    assert not (tmp_path / "run.zarr").exists()


def test_gfs_becomes_a_forecast(data_dir: Path, tmp_path: Path) -> None:
    gfs = data_dir / "gfs_2p5_26lev" / "gfs.t12z.pgrbf120.2p5deg.grib2"
    result = run(gfs, tmp_path / "run.zarr")
    with RunStore.open(result.store) as store:
        (initial_time,) = store.plan.initial_times
        assert initial_time == datetime(2011, 1, 15, 12)
        provenance = store.provenance(initial_time)
        assert provenance is not None
        assert provenance["inputs"][0]["lead_of_input_hours"] == 120
        z500 = store.read(Channel("z", 500), initial_time, timedelta(hours=12)) / 9.80665
    assert 4600 < z500.min() < 5200 < 5700 < z500.max() < 6050


@pytest.mark.parametrize("scale", [1, 20])
def test_every_western_edge_on_the_grid_is_an_area(scale: int) -> None:
    grid = product_grid(scale)
    for west in np.round(grid.longitude[:-60], 4):
        area, _, columns = select_area(grid, (50.0, float(west), 40.0, float(west) + 5.0))
        assert area.longitude[0] == pytest.approx(west, abs=1e-6)
        assert area.longitude.size == columns.size


def test_overwriting_resumes_its_own_unfinished_run_and_spares_the_old_one_when_the_input_is_bad(
    analysis: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run.zarr"
    run(analysis, path)
    manifest = next((path / "_manifest").glob("*.jsonl"))
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join(line for line in lines if b'"lead_seconds":43200' not in line))
    kept = (path / "z" / "c" / "0" / "1").stat().st_ino
    run(analysis, path, output={"overwrite": True})
    assert (path / "z" / "c" / "0" / "1").stat().st_ino == kept  # committed leads were not made again
    message = json.loads(analysis.with_suffix(".index").read_text().splitlines()[40])
    data = bytearray(analysis.read_bytes())
    middle = message["_offset"] + message["_length"] // 2
    data[middle : middle + 64] = bytes(64)
    (tmp_path / "bad.grib2").write_bytes(data)
    with pytest.raises(InputError):
        run(tmp_path / "bad.grib2", path, output={"overwrite": True})
    with RunStore.open(path) as store:
        assert len(store.committed(INITIAL_TIME)) == 3


def test_grib_files_of_another_run_are_not_taken_for_ours(analysis: Path, tmp_path: Path) -> None:
    grib = tmp_path / "grib"
    run(analysis, tmp_path / "one.zarr", output={"grib": grib})
    create_model("ghr-tiny-1p8", init="zero", output=tmp_path / "zero")
    zero = {"model": str(tmp_path / "zero")}
    with pytest.raises(UsageError, match="another forecast"):
        run(analysis, tmp_path / "two.zarr", output={"grib": grib}, **zero)
    run(analysis, tmp_path / "two.zarr", **zero)
    with pytest.raises(UsageError, match="--overwrite"):
        run(analysis, tmp_path / "two.zarr", output={"grib": grib}, **zero)
    before = (grib / "20240101000000-12h-oper-fc.grib2").read_bytes()
    run(analysis, tmp_path / "three.zarr", output={"grib": grib, "overwrite": True}, **zero)
    assert (grib / "20240101000000-12h-oper-fc.grib2").read_bytes() != before


def test_a_batch_that_no_longer_fits_is_said_and_can_be_accepted(analysis: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    run(analysis, path)
    manifest = next((path / "_manifest").glob("*.jsonl"))
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join(line for line in lines if b'"lead_seconds":43200' not in line))
    plan = plan_forecast(run_config(analysis, path))
    tight = (plan.memory_with(9).peak + plan.memory_with(3).peak) // 2
    with pytest.raises(ResourceError, match="begun with 9 sub-fields"):
        run(analysis, path, compute={"memory_budget": tight})
    run(analysis, path, compute={"memory_budget": tight, "accept_numerics": True})


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_a_usage_error_before_anything_else(
    analysis: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="ask for the device cpu"):
        run(analysis, tmp_path / "run.zarr", compute={"device": "cuda"})


@pytest.mark.full
def test_the_true_grid_fits_in_twelve_gibibytes(data_dir: Path, tmp_path: Path) -> None:
    gfs = data_dir / "gfs_2p5_26lev" / "gfs.t12z.pgrbf120.2p5deg.grib2"
    command = [
        sys.executable,
        "-m",
        "fengwu_ghr.cli",
        "forecast",
        "--model",
        "ghr-tiny-0p09",
        "--input",
        str(gfs),
    ]
    command += ["--output", str(tmp_path / "run.zarr"), "--grib", str(tmp_path / "grib"), "--lead-time", "12"]
    subprocess.run([*command, "--memory-budget", "12GiB"], check=True)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 <= 12 * 2**30
    with xr.open_zarr(tmp_path / "run.zarr") as dataset:
        assert dataset["z"].shape == (1, 3, 13, 2001, 4000)
        field = dataset["t"].sel(level=850).values[0, 2]
    assert np.isfinite(field).all()
    (last,) = (tmp_path / "grib").glob("*-12h-*.grib2")
    again = read_analysis(plan_analysis([last], [Channel("t", 850)]))
    assert np.abs(again.fields[Channel("t", 850)].values - field).max() <= packing_bound(field, 16)
