"""The verbs of verification, the pipeline against HRES, and real stations beside a real forecast."""

import os
import re
import tomllib
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner, Result
from verified import HOUR, START, write_analyses, write_run

from fengwu_ghr.cli import app
from fengwu_ghr.config import VerifySection
from fengwu_ghr.grid import LatLonGrid
from fengwu_ghr.variables import channel
from fengwu_ghr.verify.opening import open_forecasts, read_orography
from fengwu_ghr.verify.places import Places
from fengwu_ghr.verify.regions import Regions
from fengwu_ghr.verify.reports import read_reports
from pipelines import verify_hres

DATA = Path(os.environ.get("FENGWU_GHR_DATA", Path(__file__).parents[2] / "shared" / "data"))
real = pytest.mark.skipif(not DATA.is_dir(), reason=f"there are no real data at {DATA}")
RUN = ("--forecast", "run.zarr", "--truth", "run.zarr")
YEAR = [datetime(2019, 1, 1) + timedelta(days=10 * i) for i in range(37)]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("verbs")
    write_analyses(made / "years.zarr", YEAR)
    write_analyses(made / "analyses.zarr", [START + 6 * HOUR * i for i in range(13)])
    leads = [timedelta(0), 24 * HOUR, 48 * HOUR]
    write_run(made / "run.zarr", [START, START + 24 * HOUR], leads)
    write_run(made / "worse.zarr", [START, START + 24 * HOUR], leads, scale=2)
    return made


def test_a_climatology_and_a_verification_from_the_command_line(folder: Path) -> None:
    done = call(
        "climatology", folder / "years.zarr", "--output", folder / "normals",
        "--channels", "z500,t850,2t", "--harmonics", 1, "--percentiles", "2t=50,95",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "2019-01-01" in done.output
    done = call(
        "verify", "--forecast", folder / "run.zarr", "--truth", folder / "analyses.zarr",
        "--baseline", f"worse={folder / 'worse.zarr'}", "--climatology", folder / "normals",
        "--threshold", "2t>=p50", "--regions", "globe,tropics", "--output", folder / "scores",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "index.html" in done.output
    scores = xr.open_zarr(folder / "scores" / "scores.zarr", consolidated=False)
    assert scores["channel"].values.tolist() == ["z500", "t850", "2t"]
    assert float(scores["acc"].sel(source="forecast", channel="z500", lead=24, region="globe")) > 0.99
    lines = (folder / "scores" / "scores.csv").read_text().splitlines()
    assert lines[0].startswith("source,score,row,region,lead_hours,value")
    assert any(line.startswith("worse,rmse,t850,tropics,48,") for line in lines)


def test_the_pipeline_makes_its_climatology_and_goes_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = folder / "hres.toml"
    config.write_text(
        f"""
climatology_from = ["{folder / "years.zarr"}"]
harmonics = 1
[verify]
forecast = "{folder / "run.zarr"}"
truth = "{folder / "analyses.zarr"}"
climatology = "{folder / "own"}"
channels = ["2t"]
thresholds = ["2t>=p90"]
output = "{folder / "season"}"
[verify.baselines]
hres = "{folder / "worse.zarr"}"
"""
    )
    for _ in range(2):
        assert verify_hres.main([str(config)]) == 0
        assert "RMSE of the forecast (in brackets hres, persistence) over globe" in capsys.readouterr().out
    assert verify_hres.main([str(config), "verify.baselines={}"]) == 2
    assert "name the baseline" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["verify", "--forecast", "run.zarr"], 2, "verify.truth: is needed"),
        (["verify", "verify.onlime=true"], 2, "no such key"),
        (["verify", *RUN, "--output", "o", "grid=1p5"], 2, "overrides of a verification begin with verify."),
        (["verify", *RUN, "--output", "o", "--channels", "cheese"], 2, "'cheese' is no channel"),
        (["verify", "a.toml", "b.toml"], 2, "give one configuration"),
        (["verify", *RUN, "--output", "o", "--threshold", "warm"], 2, "a threshold is written"),
        (["verify", "--forecast", "none.zarr", "--truth", "run.zarr", "--output", "o"], 3, "none.zarr is not there"),
        (["climatology", "analyses.zarr", "--output", "n"], 3, "a climatology needs states of all seasons"),
        (["climatology", "years.zarr", "--output", "n", "--percentiles", "2t"], 2, "percentiles are written"),
        (["climatology", "years.zarr", "--output", "n", "--channels", "cheese"], 2, "is no channel"),
        (["climatology", "years.zarr", "--output", "n", "--harmonics", -1], 2, "harmonics are counted from 0"),
        (["climatology", "years.zarr", "--output", "n", "--grid", "9p9"], 2, "no grid is named '9p9'; there are 0p09"),
        (["climatology", "years.zarr", "--output", "n", "--first", "2030-01-01"], 3, "no time lies from"),
    ],
)  # fmt: skip
def test_mistakes_end_with_the_codes_of_the_table(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: str
) -> None:
    monkeypatch.chdir(folder)
    done = call(*arguments)
    assert (done.exit_code, words in done.output) == (code, True), done.output
    assert "Traceback" not in done.output


@real
def test_real_stations_are_near_a_real_forecast_of_the_season() -> None:
    """METAR of January 2020 at 12 UTC, moved to the forecast's 15 January 2011: the climate agrees, not the weather."""
    forecast = open_forecasts(sorted((DATA / "gfs_2p5_26lev").glob("*.grib2")))
    try:
        start, lead = datetime(2011, 1, 10, 12), timedelta(hours=120)
        values = forecast.read(channel("2t"), start, lead)
        grid = forecast.grid
    finally:
        forecast.close()
    assert isinstance(grid, LatLonGrid)
    reports = read_reports([DATA / "stations" / "2020-01.parquet"])
    noons = np.unique(reports.time[reports.time.astype("M8[h]").astype(int) % 24 == 12])
    moved = replace(reports, time=reports.time + (np.datetime64(start + lead, "s") - noons[len(noons) // 2]))
    surface = read_orography(next((DATA / "gfs_2p5_26lev").glob("*.grib2")))
    found = {}
    for name, known in (("uncorrected", None), ("corrected", surface)):
        places = Places(replace(moved, values={"2t": moved.values["2t"]}), Regions.globe(grid), known)
        now = places.at(start + lead, {})
        sums = places.region_sums(now, {"2t": places.model("2t", values, grid, now)})
        assert sums.weight.item() >= 8
        found[name] = float(np.sqrt(sums.mean("squared_error")).item())
        assert abs(sums.mean("error").item()) < 6
    assert 2 < found["corrected"] < 12
    assert found["corrected"] != found["uncorrected"]


@real
@pytest.mark.parametrize("name", ["synop.bufr", "perf_synop.bufr"])
def test_real_synop_reports_can_be_right(name: str) -> None:
    reports = read_reports([DATA / "stations" / name])
    assert len(reports) > 100
    assert np.nanmax(np.abs(reports.latitude)) <= 90
    temperature = reports.values["2t"]
    assert 220 < np.nanmin(temperature) < np.nanmax(temperature) < 325


def test_the_configuration_shows_every_key() -> None:
    """Those that are commented out too, and each can be given."""
    path = Path(__file__).parents[1] / "configs" / "verify_hres.toml"
    text = re.sub(r"^# (\w+ = |\[verify\.)", r"\1", path.read_text(), flags=re.MULTILINE)
    shown = tomllib.loads(text)["verify"]
    assert set(shown) == set(VerifySection.model_fields)
    VerifySection.model_validate(shown)
