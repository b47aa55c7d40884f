"""Where fields come from: GRIB of real forecasts and analyses, NetCDF of others, and what is told of them."""

import os
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from verified import CHANNELS, GRID, HOUR, START, truth_at, write_analyses, write_run

from fengwu_ghr.errors import InputError
from fengwu_ghr.grib.encode import GribEncoder, GribEncoding, write_messages
from fengwu_ghr.grid import product_grid
from fengwu_ghr.variables import channel
from fengwu_ghr.verify import metrics
from fengwu_ghr.verify.fields import Persistence
from fengwu_ghr.verify.opening import open_analyses, open_forecasts, read_land, read_orography
from fengwu_ghr.verify.regions import Regions
from fengwu_ghr.verify.scoring import Measures, Scorer
from fengwu_ghr.verify.statistics import DatedSums

DATA = Path(os.environ.get("FENGWU_GHR_DATA", Path(__file__).parents[2] / "shared" / "data"))
real = pytest.mark.skipif(not DATA.is_dir(), reason=f"there are no real data at {DATA}")


@real
def test_persistence_on_real_analyses_is_as_wrong_as_it_is_known_to_be() -> None:
    """z500 of June 2024 changes by about 16, 26 and 43 m in 6, 12 and 24 hours."""
    analyses = open_analyses([DATA / "timeseries" / "pl_regular_ll.grib"])
    try:
        times, leads = analyses.valid_times, (6 * HOUR, 12 * HOUR, 24 * HOUR)
        persistence = Persistence(analyses, times, leads)
        grid = analyses.grid
        assert not hasattr(grid, "row_points")
        regions = Regions.globe(grid)  # type: ignore[arg-type]
        scorer = Scorer(analyses, {"persistence": persistence}, regions, Measures((channel("z500"),)))
        table = DatedSums(("z500",), str(grid), regions.names)
        for time in times:
            for lead in leads:
                if time + lead in times:
                    table.add(time, lead, scorer.score(time, lead)["persistence"]["fields"])
        rmse = metrics.rmse(table.stacked())[:, 0, 0] / 9.80665
    finally:
        analyses.close()
    np.testing.assert_allclose(rmse, [16, 26, 43], rtol=0.05)


@real
def test_a_real_forecast_says_when_it_began() -> None:
    [path] = (DATA / "gfs_2p5_26lev").glob("*.grib2")
    forecast = open_forecasts([path])
    try:
        assert forecast.initial_times == (datetime(2011, 1, 10, 12),)
        assert forecast.leads(datetime(2011, 1, 10, 12))[-1] == timedelta(hours=120)
        height = forecast.read(channel("z500"), datetime(2011, 1, 10, 12), timedelta(hours=120))
        assert 4.6e4 < float(height.min()) < float(height.max()) < 6e4
        with closing(open_analyses([path])) as truth:
            assert truth.kind == "analysis, else the shortest forecast"
    finally:
        forecast.close()


@real
def test_surfaces_are_read_from_grib() -> None:
    [path] = (DATA / "gfs_2p5_26lev").glob("*.grib2")
    grid = product_grid(80)
    (height, own), land = read_orography(path), read_land(path, grid)
    assert own.shape == height.shape == (73, 144)
    assert 4000 < height.max() < 6500
    assert float((land * grid.cell_areas()).sum()) == pytest.approx(0.29, abs=0.06)


def test_grib_of_our_own_is_an_analysis_and_a_forecast(tmp_path: Path) -> None:
    encoder, z500 = GribEncoder(GRID), channel("z500")
    for lead in (timedelta(0), 6 * HOUR):
        message = encoder.encode(z500, truth_at(START + lead)[0], initial_time=START, lead=lead)
        write_messages(tmp_path / f"{lead / HOUR:g}.grib2", [(z500, message)])
    (tmp_path / ".2020.run.json").write_text("{}")  # as a forecast leaves it beside its files
    (tmp_path / "0.index").write_text("{}")
    forecast, truth = open_forecasts([tmp_path]), open_analyses([tmp_path])
    try:
        assert forecast.leads(START) == (timedelta(0), 6 * HOUR)
        found = forecast.read(z500, START, 6 * HOUR)
        np.testing.assert_allclose(found, truth_at(START + 6 * HOUR)[0], atol=2)
        np.testing.assert_array_equal(truth.read(z500, START + 6 * HOUR), found)
        with pytest.raises(InputError, match=r"does not hold z500 of 2020-06-01 00:00 \+ 12 h"):
            forecast.read(z500, START, 12 * HOUR)
    finally:
        forecast.close()
        truth.close()


@pytest.mark.parametrize(("is_analysis", "kind"), [(True, "analysis"), (False, "step 0 of forecasts")])
def test_analyses_and_first_steps_are_told_apart(tmp_path: Path, is_analysis: bool, kind: str) -> None:
    z500 = channel("z500")
    encoder = GribEncoder(GRID, GribEncoding(is_analysis=is_analysis))
    message = encoder.encode(z500, truth_at(START)[0], initial_time=START, lead=timedelta(0))
    write_messages(tmp_path / "a.grib2", [(z500, message)])
    with closing(open_analyses([tmp_path / "a.grib2"])) as truth:
        assert truth.kind == kind


def test_run_stores_are_a_truth_too_and_named_for_what_they_are(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.zarr", [START], [timedelta(0), 6 * HOUR])
    truth = open_analyses([run])
    assert truth.kind == "step 0 of forecasts"
    assert truth.valid_times == (START,)
    np.testing.assert_array_equal(truth.read(CHANNELS[1], START), truth_at(START)[1])
    truth.close()


def test_netcdf_from_180_west_and_in_other_words(tmp_path: Path) -> None:
    """lat ascending, longitudes from -180, heights in m under `gh`, steps in hours."""
    grid, time = GRID, START
    values = truth_at(time)[0] / np.float32(9.80665)
    west = (grid.longitude + 180) % 360 - 180
    order = np.argsort(west)
    dataset = xr.Dataset(
        {
            "gh": (
                ("time", "step", "isobaricInhPa", "lat", "lon"),
                values[None, None, None, ::-1][..., order],
                {"units": "gpm"},
            )
        },
        {
            "time": np.array([time], "M8[ns]"),
            "step": np.array([24], "m8[h]").astype("m8[ns]"),
            "isobaricInhPa": [500.0],
            "lat": grid.latitude[::-1],
            "lon": west[order],
        },
    )
    dataset.to_netcdf(tmp_path / "f.nc", engine="netcdf4")
    forecast = open_forecasts([tmp_path / "f.nc"])
    assert forecast.leads(time) == (24 * HOUR,)
    assert forecast.grid == grid
    np.testing.assert_allclose(forecast.read(channel("z500"), time, 24 * HOUR), truth_at(time)[0], rtol=1e-6)
    with pytest.raises(InputError, match="does not hold lead 6 h"):
        forecast.read(channel("z500"), time, 6 * HOUR)
    forecast.close()


def test_members_of_an_ensemble_are_not_taken_for_one_another(tmp_path: Path) -> None:
    """Two messages of one field at one time that differ: nobody says which is meant."""
    encoder, z500 = GribEncoder(GRID), channel("z500")
    for name, values in (("a", truth_at(START)[0]), ("b", truth_at(START)[0] + np.float32(50))):
        write_messages(
            tmp_path / f"{name}.grib2",
            [(z500, encoder.encode(z500, values, initial_time=START, lead=6 * HOUR))],
        )
    with (
        closing(open_forecasts([tmp_path])) as forecast,
        pytest.raises(InputError, match=r"a\.grib2.*b\.grib2"),
    ):
        forecast.read(z500, START, 6 * HOUR)


def test_rain_without_its_hours_is_not_guessed(tmp_path: Path) -> None:
    dims = ("time", "latitude", "longitude")
    coordinates = {
        "time": np.array([START], "M8[ns]"),
        "latitude": GRID.latitude,
        "longitude": GRID.longitude,
    }
    rain = np.full((1, *GRID.shape), 0.002, np.float32)
    for name, there in (("tp", False), ("total_precipitation_6hr", True)):
        path = tmp_path / f"{name}.nc"
        data = {name: (dims, rain, {"units": "m"}), "t2m": (dims, rain + 280, {"units": "K"})}
        xr.Dataset(data, coordinates).to_netcdf(path, engine="netcdf4")
        with closing(open_analyses([path])) as truth:
            assert (channel("tp6h") in truth.channels) is there
            if there:
                np.testing.assert_allclose(truth.read(channel("tp6h"), START), 2, rtol=1e-6)


def test_coordinates_in_float32_are_the_grid_they_mean(tmp_path: Path) -> None:
    dims = ("time", "latitude", "longitude")
    grid = product_grid(20)
    coordinates = {
        "time": np.array([START], "M8[ns]"),
        "latitude": grid.latitude.astype(np.float32),
        "longitude": grid.longitude.astype(np.float32),
    }
    data = {"t2m": (dims, np.full((1, *grid.shape), 280, np.float32), {"units": "K"})}
    xr.Dataset(data, coordinates).to_netcdf(tmp_path / "a.nc", engine="netcdf4")
    with closing(open_analyses([tmp_path / "a.nc"])) as truth:
        assert truth.grid == grid


@pytest.mark.parametrize(
    ("values", "words"),
    [(50.0, "a mask holds shares from 0 to 1; got 50 to 50"), (np.nan, None)],
)
def test_masks_hold_shares(tmp_path: Path, values: float, words: str | None) -> None:
    mask = np.full(GRID.shape, values, np.float32)
    if words is None:
        mask[:5] = 1
    dataset = xr.Dataset({"basin": (("lat", "lon"), mask)}, {"lat": GRID.latitude, "lon": GRID.longitude})
    dataset.to_netcdf(tmp_path / "m.nc", engine="netcdf4")
    if words is not None:
        with pytest.raises(InputError, match=words):
            read_land(tmp_path / "m.nc", GRID)
        return
    assert read_land(tmp_path / "m.nc", GRID).sum() == 5 * GRID.shape[1]


def test_channels_are_in_the_order_of_the_registry_whatever_the_file_says(tmp_path: Path) -> None:
    analyses = xr.open_zarr(write_analyses(tmp_path / "a.zarr", [START]), consolidated=False)
    backwards = analyses[list(analyses)[::-1]]
    backwards.to_netcdf(tmp_path / "b.nc", engine="h5netcdf")
    with closing(open_analyses([tmp_path / "b.nc"])) as source:
        assert [str(c) for c in source.channels] == [
            "z500", "z850", "u500", "u850", "v500", "v850", "t500", "t850", "2t", "10u", "10v",
        ]  # fmt: skip


def test_one_file_a_date(tmp_path: Path) -> None:
    """As many keep them: analyses in a folder of NetCDF files, each of other times."""
    folder = tmp_path / "days"
    folder.mkdir()
    for i in range(3):
        day = xr.open_zarr(
            write_analyses(tmp_path / f"{i}.zarr", [START + 24 * HOUR * i]), consolidated=False
        )
        day.drop_vars("geopotential" if i == 2 else []).to_netcdf(folder / f"{i}.nc", engine="h5netcdf")
    with closing(open_analyses([folder])) as truth:
        assert truth.valid_times == tuple(START + 24 * HOUR * i for i in range(3))
        assert channel("z500") not in truth.channels, "the last day lacks it"
        np.testing.assert_array_equal(
            truth.read(CHANNELS[1], START + 24 * HOUR), truth_at(START + 24 * HOUR)[1]
        )
    with pytest.raises(
        InputError, match="2020-06-01 00:00 comes twice in 0 and 1 more; leave one of them out"
    ):
        open_analyses([folder / "0.nc", tmp_path / "0.zarr"])


def test_run_stores_need_not_keep_the_same_channels(tmp_path: Path) -> None:
    write_run(tmp_path / "a.zarr", [START], [6 * HOUR])
    write_run(tmp_path / "b.zarr", [START + 24 * HOUR], [6 * HOUR], channels=CHANNELS[1:3])
    with closing(open_forecasts([tmp_path / "a.zarr", tmp_path / "b.zarr"])) as both:
        assert both.channels == CHANNELS[1:3]
        assert both.initial_times == (START, START + 24 * HOUR)


def test_what_cannot_be_opened_is_told(tmp_path: Path) -> None:
    analyses = write_analyses(tmp_path / "a.zarr", [START])
    run = write_run(tmp_path / "run.zarr", [START], [timedelta(0)])
    for paths, words in (
        ([tmp_path / "none"], "none is not there"),
        ([analyses, run], "give run stores, or Zarr and NetCDF, or GRIB files"),
        ([], "no path hold no file"),
    ):
        with pytest.raises(InputError, match=words):
            open_analyses(paths)
    with pytest.raises(InputError, match="has no leads"):
        open_forecasts([analyses])
