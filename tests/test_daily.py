"""The daily job: the newest analysis once, scores when they are due, nothing twice."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from fengwu_ghr.synthetic import INITIAL_TIME, write_synthetic_analysis
from pipelines import daily


def daily_config(tmp_path: Path, until: datetime) -> Path:
    path = tmp_path / "daily.toml"
    path.write_text(
        f"""
folder = "{tmp_path}/daily"
[model]
name = "ghr-tiny-1p8"
[input]
files = ["{tmp_path}/in/{{time:%Y%m%d%H}}.grib2"]
[newest]
until = {until:%Y-%m-%dT%H:%M:%S}
[forecast]
lead_time_hours = 24
variables = ["z", "2t"]
[verify]
truth = "{tmp_path}/in"
grid = "truth"
channels = ["z500", "2t"]
"""
    )
    return path


def test_the_daily_job_does_nothing_twice(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    day = timedelta(days=1)
    (tmp_path / "in").mkdir()

    def called(now: datetime) -> tuple[int, str]:
        code = daily.main([str(daily_config(tmp_path, now))])
        said = capfd.readouterr()
        return code, said.out + said.err

    def files() -> dict[Path, int]:
        """Products, and when they were written."""
        there = [path for kind in ("forecasts", "grib") for path in (tmp_path / "daily" / kind).rglob("*")]
        shown = [path for path in there if path.is_file() and not path.name.startswith(".")]
        return {path: path.stat().st_mtime_ns for path in shown}

    code, said = called(INITIAL_TIME)
    assert code == 3
    assert "no analysis between" in said
    write_synthetic_analysis(tmp_path / "in" / f"{INITIAL_TIME:%Y%m%d%H}.grib2")
    code, said = called(INITIAL_TIME + timedelta(hours=7))
    assert code == 0, said
    assert "nothing can be verified" in said
    first = files()
    assert sum(path.suffix == ".grib2" for path in first) == 5
    code, said = called(INITIAL_TIME + timedelta(hours=9))
    assert code == 0
    assert files() == first

    tomorrow = INITIAL_TIME + day
    write_synthetic_analysis(tmp_path / "in" / f"{tomorrow:%Y%m%d%H}.grib2", initial_time=tomorrow)
    code, said = called(tomorrow + timedelta(hours=7))
    assert code == 0, said
    assert "RMSE of the" in said
    second = files()
    assert second.items() >= first.items()
    assert {path.name for path in (tmp_path / "daily" / "forecasts").iterdir()} == {
        f"{time:%Y%m%d%H}.zarr" for time in (INITIAL_TIME, tomorrow)
    }
    assert called(tomorrow + timedelta(hours=8))[0] == 0
    assert files() == second
