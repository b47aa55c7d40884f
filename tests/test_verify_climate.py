"""A climatology on disk: of fields that are a known function of season and hour, found again at every point."""

import json
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from fengwu_ghr.coarsen import AreaMean
from fengwu_ghr.errors import InputError, UsageError
from fengwu_ghr.grid import product_grid, regular_grid
from fengwu_ghr.progress import Silence
from fengwu_ghr.variables import Channel, channel
from fengwu_ghr.verify.climate import ClimateStore, months_around
from fengwu_ghr.verify.climate_build import ClimateSettings, build_climate

GRID = product_grid(80)
YEAR = [datetime(2001, 1, 1) + timedelta(hours=12) * i for i in range(2 * 365)]
LATER = datetime(2003, 7, 15, 12)


class Seasons:
    """2t = 280 + 10 cos(season) + 2 at noon + 3 noise; 24 hours of rain up to midnight: 2, 6, 0.25, 0.75 mm in turn."""

    name, kind, grid = "seasons", "analysis", GRID
    channels = (channel("2t"), channel("tp6h"))

    def __init__(self, times: list[datetime]) -> None:
        self.valid_times = tuple(times)

    def read(self, channel: Channel, valid_time: datetime) -> np.ndarray:
        day = valid_time.timetuple().tm_yday
        if channel.variable == "tp6h":
            return np.full(GRID.shape, 2 if day % 4 == 0 else 0.25 if day % 2 == 0 else 0, np.float32)
        noise = np.random.default_rng(int(valid_time.timestamp()) % 2**31).standard_normal(GRID.shape)
        season = np.cos(2 * np.pi * (day - 1) / 365.25)
        return (280 + 10 * season + (2 if valid_time.hour == 12 else 0) + 3 * noise).astype(np.float32)

    def holds(self, channel: Channel, valid_time: datetime) -> bool:
        return valid_time in self.valid_times

    def fingerprint(self, valid_time: datetime) -> str:
        return ""

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def normals(tmp_path_factory: pytest.TempPathFactory) -> ClimateStore:
    path = tmp_path_factory.mktemp("climate") / "normals"
    settings = ClimateSettings(2, {"2t": (50.0, 95.0)})
    return build_climate(Seasons(YEAR), ["2t"], path, settings, progress=Silence())


def test_the_mean_follows_season_and_hour(normals: ClimateStore) -> None:
    for time, expected in (
        (datetime(2003, 1, 1), 290.0),
        (datetime(2003, 7, 2, 12), 272.0),
        (datetime(2004, 4, 1), 280.0),
    ):
        assert float(normals.mean("2t", time).mean()) == pytest.approx(expected, abs=0.2)


def test_the_deviation_is_that_of_the_noise(normals: ClimateStore) -> None:
    assert float(normals.deviation("2t", LATER).mean()) == pytest.approx(3, rel=0.05)


def test_percentiles_are_those_of_the_days_around(normals: ClimateStore) -> None:
    """Of noise of 3 K about a mean near its minimum, which within 45 days is 1 K warmer: 1.645 x 3 K above."""
    middle, high = (float(normals.percentile("2t", p, datetime(2003, 7, 2, 12)).mean()) for p in (50.0, 95.0))
    assert middle == pytest.approx(273, abs=0.5)
    assert high - middle == pytest.approx(1.645 * 3, rel=0.12)
    with pytest.raises(InputError, match="no 90th percentile of 2t"):
        normals.percentile("2t", 90.0, LATER)


def test_rain_has_dry_days_and_a_limit_of_heavy_rain(tmp_path: Path) -> None:
    times = [datetime(2001, 1, 1) + timedelta(hours=6) * i for i in range(4 * 365)]
    made = build_climate(Seasons(times), ["tp24h"], tmp_path / "rain", ClimateSettings(0), progress=Silence())
    dry, heavy = made.rain(datetime(2003, 5, 5, 0))
    assert float(dry.mean()) == pytest.approx(0.25, abs=0.01)
    assert 2 <= float(heavy.mean()) <= 6, "a third of the wet days has 6 mm"


def test_times_of_which_it_was_made_are_refused(normals: ClimateStore) -> None:
    normals.check_independent([LATER])
    with pytest.raises(
        InputError, match="climatology overlaps the verified dates: 1 valid times, the first 2001-03-01"
    ):
        normals.check_independent([LATER, datetime(2001, 3, 1)])


def test_hours_it_was_not_made_of_are_refused(normals: ClimateStore) -> None:
    with pytest.raises(InputError, match=r"has 2t at the hours \[0.0, 12.0\], not at 6"):
        normals.mean("2t", datetime(2003, 1, 1, 6))


def test_on_a_coarser_grid_it_is_of_area_means(normals: ClimateStore, tmp_path: Path) -> None:
    """Harmonics of the mean are linear in the states: the mean of areas and the areas of means are one."""
    coarse = regular_grid(15)
    settings = ClimateSettings(2, {"2t": (50.0, 95.0)}, coarse)
    made = build_climate(Seasons(YEAR), ["2t"], tmp_path, settings, progress=Silence())
    assert made.grid == coarse
    means = AreaMean(GRID, coarse).apply(normals.mean("2t", LATER))
    np.testing.assert_allclose(made.mean("2t", LATER), means, rtol=1e-6)
    assert float(made.deviation("2t", LATER).mean()) < 2.5, "noise of points goes out in areas"


def test_it_goes_on_where_it_stopped_and_takes_no_other_settings(tmp_path: Path) -> None:
    source, path = Seasons(YEAR), tmp_path / "normals"
    build_climate(source, ["2t"], path, ClimateSettings(2), progress=Silence())
    again = build_climate(source, ["2t"], path, ClimateSettings(2), progress=Silence())
    assert again.channels == ("2t",)
    with pytest.raises(UsageError, match="holds a climatology with other harmonics"):
        build_climate(source, ["2t"], path, ClimateSettings(3), progress=Silence())


def test_a_season_that_is_missing_is_told_and_what_was_begun_is_not_in_the_way(tmp_path: Path) -> None:
    summer = [time for time in YEAR if 5 <= time.month <= 8]

    class Unread(Seasons):
        def read(self, *_: object) -> np.ndarray:
            pytest.fail("what cannot be used is read")

    for _ in range(2):
        with pytest.raises(InputError, match="needs states of all seasons"):
            build_climate(Unread(summer), ["2t"], tmp_path / "summer", ClimateSettings(2), progress=Silence())
    with pytest.raises(InputError, match="without a finished channel"):
        ClimateStore.open(tmp_path / "summer")
    (tmp_path / "summer" / "climate.json").unlink()
    (tmp_path / "summer" / "diary").write_text("mine")
    with pytest.raises(UsageError, match="holds something else"):
        build_climate(Seasons(summer), ["2t"], tmp_path / "summer", ClimateSettings(2), progress=Silence())


def test_what_is_no_climatology_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a climatology; make one with fengwu-ghr climatology"):
        ClimateStore.open(tmp_path)


def test_months_lie_around_any_time() -> None:
    assert months_around(datetime(2001, 1, 1))[:2] == (11, 0)
    assert months_around(datetime(2001, 12, 31))[:2] == (11, 0)
    first, second, share = months_around(datetime(2001, 6, 30, 12))
    assert (first, second) == (5, 6)
    assert share == pytest.approx(14.5 / 30.5, abs=1e-9)


def test_what_is_not_whole_is_refused(normals: ClimateStore, tmp_path: Path) -> None:
    """A channel that is to come, a chunk that is gone, and states of which none departs from the others."""
    path = tmp_path / "copy"
    shutil.copytree(normals.path, path)
    next(file for file in (path / "2t" / "mean" / "c").rglob("*") if file.is_file()).unlink()
    damaged = ClimateStore.open(path)
    with pytest.raises(InputError, match=r"climatology of 2t at .* is damaged; make it again"):
        [damaged.mean("2t", LATER.replace(hour=hour)) for hour in (0, 12)]
    about = json.loads((path / "climate.json").read_text())
    (path / "climate.json").write_text(json.dumps({**about, "wanted": ["2t", "msl"]}))
    with pytest.raises(
        InputError, match="was not finished, msl are missing: run the same fengwu-ghr climatology"
    ):
        ClimateStore.open(path)
    with pytest.raises(InputError, match="needs more than 1 states at each hour of the day"):
        build_climate(Seasons(YEAR[:2]), ["2t"], tmp_path / "one", ClimateSettings(0), progress=Silence())
