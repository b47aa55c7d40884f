"""Configuration: one strict path from file, flags and overrides to a RunConfig."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from fengwu_ghr.config import load_config, parse_bytes, parse_time
from fengwu_ghr.errors import UsageError
from fengwu_ghr.views import write_map, write_meteogram

MINIMAL = """
[model]
name = "ghr-tiny-1p8"
[input]
files = ["analysis.grib2"]
[output]
zarr = "run.zarr"
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(MINIMAL)
    return path


def test_defaults_are_ten_days_of_everything(config_file: Path) -> None:
    config = load_config(config_file, flags={})
    assert config.forecast.lead_time_hours == 240
    assert config.forecast.variables == ()
    assert config.compute.memory_budget is None


def test_overrides_win_over_flags_and_flags_over_the_file(config_file: Path) -> None:
    config = load_config(
        config_file,
        flags={"forecast.lead_time_hours": 48, "model.name": "flag", "forecast.levels": (500,)},
        overrides=["forecast.lead_time_hours=24", "model.name=override", "compute.memory_budget='2GiB'"],
    )
    assert config.forecast.lead_time_hours == 24
    assert config.model.name == "override"
    assert config.forecast.levels == (500,)
    assert config.compute.memory_budget == 2 * 2**30


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (["forecast.lead_hours=24"], ["forecast.lead_hours", "24"]),
        (["typo.key=1"], ["typo"]),
        (["forecast.lead_time_hours=-6"], ["forecast.lead_time_hours", "-6"]),
        (["forecast.area=[10, 0, 50, 20]"], ["area", "south < north"]),
        (["compute.memory_budget='many'"], ["compute.memory_budget", "20GiB"]),
        (["input.time='tomorrow'"], ["input.time", "tomorrow"]),
        (["nonsense"], ["nonsense", "section.key=value"]),
    ],
)
def test_every_wrong_key_is_named_with_its_value(
    config_file: Path, overrides: list[str], names: list[str]
) -> None:
    with pytest.raises(UsageError) as error:
        load_config(config_file, flags={}, overrides=overrides)
    assert all(name in str(error.value) for name in names)


def test_missing_sections_are_listed_together() -> None:
    with pytest.raises(UsageError, match=r"(?s)model.*input.*output"):
        load_config(None, flags={})


def test_files_that_are_not_toml_or_not_there_are_usage_errors(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("[model\n")
    for path in (broken, tmp_path / "absent.toml"):
        with pytest.raises(UsageError, match=path.name):
            load_config(path, flags={})


@pytest.mark.parametrize(
    ("text", "count"), [("20GiB", 20 * 2**30), ("500 MB", 500_000_000), ("12G", 12 * 2**30), ("17", 17)]
)
def test_sizes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "text",
    [
        *("2011-01-15T12", "2011-01-15 12:00", "2011-01-15T12:00Z", "2011-01-15 12:00:00", "2011-01-15T12Z"),
        *("2011011512", "20110115 12", "201101151200", "2011011512Z"),
    ],
)
def test_times(text: str) -> None:
    assert parse_time(text) == datetime(2011, 1, 15, 12)


@pytest.mark.parametrize("text", ["2011-01-15", "20110115", "2011-01-15Z"])
def test_a_date_alone_is_midnight(text: str) -> None:
    assert parse_time(text) == datetime(2011, 1, 15)


@pytest.mark.parametrize(
    "text",
    [
        *("2024-1-1 12", "2024-01-01T12+06", "2024-01-01T12:00+00:00", "2024-01-01T1", "2024-01-0112"),
        *(
            "2024/01/01",
            "20240101T12",
            "202401011",
            "20240101120000",
            "2024-01-01T24",
            "2024-02-30",
            "0000-01-01",
        ),
        *("yesterday", "", " ", "2024-01-01 12 ", "2024-01-01T12:00ZZ", "٢٠٢٤-01-01"),
    ],
)
def test_what_might_be_another_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is written as 2024-01-31T12:00") as error:
        parse_time(text)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    ("written", "time"),
    [
        ("2024-01-31T12:00:00", datetime(2024, 1, 31, 12)),
        ("2024-01-31 12:00:00Z", datetime(2024, 1, 31, 12)),
        ("2024-01-31T12:00:00+06:00", datetime(2024, 1, 31, 6)),
        ("2024-01-31", datetime(2024, 1, 31)),
        ("'2024-01-31 12'", datetime(2024, 1, 31, 12)),
        ("2024013112", datetime(2024, 1, 31, 12)),
    ],
)
def test_times_of_toml_become_naive_utc(config_file: Path, written: str, time: datetime) -> None:
    config_file.write_text(MINIMAL.replace("[output]", f"time = {written}\n[output]"))
    for overrides in ([], [f"input.time={written}"]):
        assert load_config(config_file, flags={}, overrides=overrides).input.time == time


@pytest.mark.parametrize("written", ["12:00:00", "true", "12", "1.5", "0001-01-01T00:00:00+06:00"])
def test_other_values_of_toml_are_no_times(config_file: Path, written: str) -> None:
    with pytest.raises(UsageError, match=r"input\.time: "):
        load_config(config_file, flags={}, overrides=[f"input.time={written}"])


def test_views_take_only_times_and_names_that_are_some(tmp_path: Path) -> None:
    store = tmp_path / "run.zarr"
    with pytest.raises(UsageError, match=r"is written as .*'yesterday'"):
        write_map(store, "z", 500, lead=timedelta(0), time="yesterday", output=tmp_path / "map.png")
    for stem in (Path("."), tmp_path / ".."):
        with pytest.raises(UsageError, match="need a name"):
            write_meteogram(store, ["2t"], latitude=0.0, longitude=0.0, stem=stem)
