"""Nowcasts from end to end: dry stays dry, unknown stays unknown, Zarr and GRIB tell the same with steps of minutes."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

from fengwu_ghr.cli import app
from fengwu_ghr.errors import InputError, UsageError
from fengwu_ghr.grib.encode import GribEncoder
from fengwu_ghr.grib.plane import is_plane
from fengwu_ghr.nowcast.forecast import ECHO, run_nowcast
from fengwu_ghr.nowcast.model import NowcastArchitecture, NowcastNet, build_network
from fengwu_ghr.nowcast.predict import extrapolate, predict
from fengwu_ghr.nowcast.sequence import RadarSequence
from fengwu_ghr.nowcast.storms import PROJECTION, START, generate_storms
from fengwu_ghr.nowcast.verification import verify_store
from fengwu_ghr.nowcast.weights import NowcastCard, NowcastModel, resolve_nowcast, save_nowcast
from fengwu_ghr.progress import Silence
from fengwu_ghr.projected_grid import ProjectedGrid
from fengwu_ghr.projection import Projection

SMALL = {"stem": 4, "hidden": 4, "width": 8, "depth": 1, "leads": 6}
KNMI = Projection("+proj=stere +lat_0=90 +lon_0=0.0 +lat_ts=60.0 +a=6378.137 +b=6356.752 +x_0=0 +y_0=0")


def a_network(**changes: object) -> NowcastNet:
    """An untrained network that does something."""
    network = build_network(NowcastArchitecture("small", **{**SMALL, **changes}), seed=0)  # type: ignore[arg-type]
    torch.nn.init.normal_(network.decoder.read.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    torch.nn.init.constant_(network.decoder.read.bias, 0.3)  # type: ignore[arg-type]
    return network.eval()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> NowcastModel:
    network = a_network(advection=True)
    card = NowcastCard(
        name="small", description="for tests", trained=False, licence="CC0-1.0", shortest_step_minutes=5,
        longest_step_minutes=10, architecture=network.architecture,
    )  # fmt: skip
    return save_nowcast(tmp_path_factory.mktemp("nowcast") / "model", network, card)


def still(
    values: np.ndarray, *, frames: int = 4, minutes: int = 5, projection: Projection = PROJECTION
) -> RadarSequence:
    """The same frame again and again."""
    corner = (0.0, -4000e3) if projection is KNMI else (0.0, 0.0)
    grid = ProjectedGrid.of_corners(projection, corner, (1000.0, 1000.0), values.shape)
    times = [START + timedelta(minutes=minutes) * n for n in range(frames)]
    return RadarSequence.of(np.stack([values.astype(np.float32)] * frames), times, grid, source="test")


def storms(**changes: object) -> RadarSequence:
    return generate_storms(seed=3, frames=10, size=48, minutes=5).frames


@pytest.mark.parametrize("advection", [False, True])
def test_dry_stays_dry(advection: bool) -> None:
    """Whatever the network would make of it."""
    for made in predict(a_network(advection=advection), still(np.zeros((30, 42))), leads=6):
        assert np.array_equal(made, np.zeros((30, 42), np.float32))


@pytest.mark.parametrize("advection", [False, True])
def test_no_data_never_becomes_rain_or_dry_weather(advection: bool) -> None:
    values = np.full((40, 44), 30.0)
    values[:, :12] = np.nan
    values[20:24, 30:34] = np.nan
    made = list(predict(a_network(advection=advection), still(values), leads=6))
    assert len(made) == 6
    for frame in made:
        assert np.isnan(frame[:, :11]).all()
        assert np.isnan(frame[21:23, 31:33]).all()
        assert np.isfinite(frame[:, 14:28]).all()
        assert np.nanmin(frame) >= 0
        assert np.nanmax(frame) <= 95


def test_the_border_moves_inward_with_the_air() -> None:
    """What comes from beyond the frame was not observed: later leads know less."""
    rng = np.random.default_rng(0)
    field = np.kron(rng.uniform(0, 40, (20, 20)), np.ones((6, 6)))
    moving = np.stack([np.roll(field, 3 * n, axis=1)[:96, :96] for n in range(4)])
    frames = still(moving[0])
    frames = RadarSequence.of(moving.astype(np.float32), frames.times, frames.grid)
    unknown = [np.isnan(made).mean() for made in extrapolate(frames, leads=6)]
    assert unknown == sorted(unknown)
    assert unknown[-1] == pytest.approx(18 / 96, abs=0.04)


def test_untrained_advection_is_extrapolation() -> None:
    network = build_network(NowcastArchitecture("x", **{**SMALL, "advection": True}), seed=0).eval()  # type: ignore[arg-type]
    frames = storms()[slice(0, 4)]
    for mine, plain in zip(predict(network, frames, leads=6), extrapolate(frames, leads=6)):
        strong = plain >= 7
        np.testing.assert_allclose(mine[strong], plain[strong], atol=0.01)
        assert np.array_equal(np.isnan(mine), np.isnan(plain))


def test_too_few_frames_are_refused() -> None:
    with pytest.raises(InputError, match="starts from 4 frames; there are 3"):
        next(predict(a_network(), storms()[slice(0, 3)], leads=2))


@pytest.mark.parametrize("projection", [PROJECTION, KNMI], ids=["on its plane", "remapped"])
def test_zarr_and_grib_hold_the_nowcast(projection: Projection, model: NowcastModel, tmp_path: Path) -> None:
    """A spherical Lambert plane stays in GRIB; KNMI's ellipsoid goes to 0.01 degrees. xarray opens both."""
    values = np.full((48, 48), 25.0)
    values[10:30, 5:25], values[:, 40:] = 45.0, np.nan
    frames = still(values, projection=projection)
    made = run_nowcast(frames, model, tmp_path / "n.zarr", grib=tmp_path / "grib", progress=Silence())
    assert made.initial_time == START + timedelta(minutes=15)
    run = xr.open_zarr(tmp_path / "n.zarr")
    assert run["rare"].dims == ("time", "prediction_timedelta", "y", "x")
    assert (run["prediction_timedelta"].values / np.timedelta64(1, "m")).tolist() == [
        0,
        5,
        10,
        15,
        20,
        25,
        30,
    ]
    np.testing.assert_array_equal(run["rare"][0, 0], values.astype(np.float32))
    assert run["projection"].attrs["proj4"] == projection.text
    latitude, longitude = frames.grid.places  # type: ignore[union-attr]
    np.testing.assert_allclose(run["latitude"], latitude)
    assert [path.name for path in made.files[1:3]] == [
        "20200601121500-5m-oper-fc.grib2", "20200601121500-10m-oper-fc.grib2",
    ]  # fmt: skip
    with xr.open_dataset(made.files[2], engine="cfgrib", backend_kwargs={"indexpath": ""}) as field:
        assert field["step"].values == np.timedelta64(10, "m")
        mine = run["rare"][0, 2].values
        if is_plane(frames.grid):  # type: ignore[arg-type]
            found = field["rare"].values[::-1]  # rows from the south
            np.testing.assert_allclose(found, mine, atol=1e-3)
            np.testing.assert_allclose(field["latitude"].values[::-1], latitude, atol=1e-5)
            np.testing.assert_allclose(field["longitude"].values[::-1], longitude, atol=1e-5)
        else:
            near = field["rare"].sel(
                latitude=xr.DataArray(latitude[8:32:3, 8:32:3].ravel()),
                longitude=xr.DataArray(longitude[8:32:3, 8:32:3].ravel()), method="nearest",
            )  # fmt: skip
            off = np.abs(near.values - mine[8:32:3, 8:32:3].ravel())
            assert np.median(off) < 0.5
            assert np.isnan(field["rare"].values).any()


def test_the_same_command_again_changes_nothing(model: NowcastModel, tmp_path: Path) -> None:
    frames = storms()[slice(0, 4)]
    run_nowcast(frames, model, tmp_path / "n.zarr", progress=Silence())
    before = {p: p.read_bytes() for p in (tmp_path / "n.zarr").rglob("*") if p.is_file()}
    made = run_nowcast(frames, model, tmp_path / "n.zarr", grib=tmp_path / "grib", progress=Silence())
    assert all(path.exists() for path in made.files), "GRIB may be asked for later"
    assert before == {p: p.read_bytes() for p in (tmp_path / "n.zarr").rglob("*") if p.is_file()}


def test_another_nowcast_is_not_written_over(model: NowcastModel, tmp_path: Path) -> None:
    run_nowcast(still(np.full((40, 40), 20.0)), model, tmp_path / "n.zarr", progress=Silence())
    other = still(np.full((40, 40), 21.0))
    with pytest.raises(UsageError, match=r"with another input; .* --overwrite"):
        run_nowcast(other, model, tmp_path / "n.zarr", progress=Silence())
    run_nowcast(other, model, tmp_path / "n.zarr", overwrite=True, progress=Silence())
    assert xr.open_zarr(tmp_path / "n.zarr")["rare"][0, 0, 0, 0] == 21


def test_wrong_steps_times_and_leads(model: NowcastModel, tmp_path: Path) -> None:
    wet = np.full((40, 40), 20.0)
    with pytest.raises(UsageError, match="steps of 5 to 10 minutes; these frames are 15 minutes apart"):
        run_nowcast(still(wet, minutes=15), model, tmp_path / "a.zarr", progress=Silence())
    with pytest.raises(UsageError, match="gives 1 to 6 leads; got 7"):
        run_nowcast(still(wet), model, tmp_path / "a.zarr", leads=7, progress=Silence())
    with pytest.raises(InputError, match="no frame at 2020-06-01 15:00"):
        run_nowcast(
            still(wet), model, tmp_path / "a.zarr", initial_time=datetime(2020, 6, 1, 15), progress=Silence()
        )
    assert not (tmp_path / "a.zarr").exists()


def test_a_store_is_verified_against_what_came(model: NowcastModel, tmp_path: Path) -> None:
    whole = storms()
    run_nowcast(whole[slice(0, 4)], model, tmp_path / "n.zarr", progress=Silence())
    found = verify_store(tmp_path / "n.zarr", whole)
    assert found.minutes == (5, 10, 15, 20, 25, 30)
    assert found.counts.sum() == 6 * 5 * 48 * 48
    with pytest.raises(InputError, match="no frame at a valid time"):
        verify_store(tmp_path / "n.zarr", whole[slice(0, 4)])
    with pytest.raises(InputError, match="give the same radar"):
        verify_store(tmp_path / "n.zarr", still(np.zeros((48, 40)), frames=8))


def test_projected_stores_say_what_they_cannot_do(model: NowcastModel, tmp_path: Path) -> None:
    run_nowcast(storms()[slice(0, 4)], model, tmp_path / "n.zarr", progress=Silence())
    asked: Sequence[str] = ["plot", str(tmp_path / "n.zarr"), "--variable", "rare", "--lead-time", "0"]
    done = CliRunner().invoke(app, [*asked, "--output", str(tmp_path / "m.png")])
    assert done.exit_code == 3
    assert "fengwu-ghr nowcast" in done.output


def test_grib_of_other_projections_is_refused() -> None:
    grid = still(np.zeros((8, 8)), projection=KNMI).grid
    with pytest.raises(Exception, match="planes of a sphere"):
        GribEncoder(grid)
    assert ECHO.definition.units == "dBZ"


def test_checkpoints_are_strict(model: NowcastModel, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(model.folder, copy)
    one, two = (m.network().state_dict() for m in (model, NowcastModel.open(copy)))
    assert all(torch.equal(one[name], two[name]) for name in one)
    card = (copy / "model.toml").read_text()
    (copy / "model.toml").write_text(card.replace("width = 8", "width = 16"))
    with pytest.raises(UsageError, match="are not those of its architecture small"):
        NowcastModel.open(copy).network()
    (copy / "model.toml").write_text(card.replace("leads = 6", "leads = 0"))
    with pytest.raises(UsageError, match="positive leads"):
        NowcastModel.open(copy)
    (copy / "model.toml").write_text(card)
    with open(copy / "weights.safetensors", "r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\1")
    with pytest.raises(UsageError, match="is not the file that was saved"):
        NowcastModel.open(copy)
    with pytest.raises(UsageError, match="no nowcast model is named 'nothing'"):
        resolve_nowcast("nothing")
    with pytest.raises(UsageError, match="not a valid model card"):
        resolve_nowcast(str(Path(__file__).parents[1] / "fengwu_ghr" / "models" / "ghr-demo"))
