"""Configuration: one strict path from file, flags and overrides to a RunConfig."""

from datetime import datetime
from pathlib import Path

import pytest

from fengwu_ghr.config import load_config, parse_bytes, parse_time
from fengwu_ghr.errors import UsageError

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
    "text", ["2011-01-15T12", "2011-01-15 12:00", "2011011512", "20110115 12", "2011-01-15T12:00Z"]
)
def test_times(text: str) -> None:
    assert parse_time(text) == datetime(2011, 1, 15, 12)
