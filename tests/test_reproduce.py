"""Reproduce: the bytes of a committed lead again, or what differs."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fengwu_ghr.catalogue import create_model
from fengwu_ghr.cli import app
from fengwu_ghr.config import RunConfig
from fengwu_ghr.console import LeadProgress
from fengwu_ghr.errors import InputError
from fengwu_ghr.forecast import run_forecast
from fengwu_ghr.reproduce import Reproduction, reproduce
from fengwu_ghr.store import RunStore
from fengwu_ghr.synthetic import INITIAL_TIME
from fengwu_ghr.variables import channel

HOUR = timedelta(hours=1)


@pytest.fixture
def store(analysis: Path, tmp_path: Path) -> Path:
    """A forecast of 12 hours, rounded, of two variables, from an input beside it."""
    (tmp_path / "analysis.grib2").write_bytes(analysis.read_bytes())
    tree = {
        "model": {"name": "ghr-tiny-1p8"},
        "input": {"files": [tmp_path / "analysis.grib2"]},
        "forecast": {"lead_time_hours": 12, "variables": ["z", "2t"], "keep_bits": 10},
        "output": {"zarr": tmp_path / "run.zarr", "grib": tmp_path / "grib"},
        "compute": {"threads": 1},
    }
    return run_forecast(RunConfig.model_validate(tree), reporter=LeadProgress(quiet=True)).store


def again(store: Path, hours: int, **where: object) -> Reproduction:
    return reproduce(store, INITIAL_TIME, hours * HOUR, reporter=LeadProgress(quiet=True), **where)  # type: ignore[arg-type]


@pytest.mark.parametrize("hours", [0, 6, 12])
def test_every_lead_has_the_same_bytes(store: Path, hours: int) -> None:
    found = again(store, hours)
    assert found.is_equal
    assert (found.fields, found.causes) == (14, ())


def test_input_and_model_may_have_moved(store: Path, tmp_path: Path) -> None:
    moved = (tmp_path / "analysis.grib2").rename(tmp_path / "moved.grib2")
    with pytest.raises(InputError, match=r"analysis\.grib2"):
        again(store, 6)
    assert again(store, 6, files=(moved,)).is_equal


def test_other_weights_and_other_input_are_named_and_nothing_is_computed(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fengwu_ghr.reproduce.run_forecast", lambda *args, **kwargs: pytest.fail("computed"))
    create_model("ghr-tiny-1p8", output=tmp_path / "other", seed=7)
    found = again(store, 6, model=str(tmp_path / "other"))
    assert not found.is_equal
    assert "weights" in found.causes[0]
    path = tmp_path / "analysis.grib2"
    path.write_bytes(2 * path.read_bytes())
    found = again(store, 6)
    assert not found.is_equal
    assert "analysis.grib2 had other bytes" in found.causes[0]


def test_fields_that_cannot_be_made_again_are_told_with_the_largest_difference(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if this machine computed otherwise."""
    from fengwu_ghr import forecast

    honest = forecast.ForecastRun.predicted

    def other(self: forecast.ForecastRun, state: np.ndarray, wanted: object) -> np.ndarray:
        field = honest(self, state, wanted)  # type: ignore[arg-type]
        return field + np.float32(16) if wanted == channel("2t") else field

    monkeypatch.setattr(forecast.ForecastRun, "predicted", other)
    found = again(store, 6)
    assert set(found.differing) == {channel("2t")}
    assert found.differing[channel("2t")] == pytest.approx(16, abs=1)
    done = CliRunner().invoke(app, ["reproduce", str(store), "--lead-time", "6"])
    assert done.exit_code == 4
    assert "2t" in done.output


def test_what_is_not_committed_or_damaged_is_said(store: Path) -> None:
    with pytest.raises(InputError, match="does not hold lead"):
        again(store, 18)
    shard = next((store / "2t" / "c" / "0" / "1").rglob("0"))
    while shard.is_dir():
        shard /= "0"
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    with pytest.raises(InputError, match="does not match its checksum"):
        again(store, 6)


def test_the_verb_says_so(store: Path) -> None:
    done = CliRunner().invoke(app, ["reproduce", str(store), "--time", "2024-01-01T00", "--lead-time", "12"])
    assert done.exit_code == 0, done.output
    assert "14 of 14 fields have the same bytes" in done.output
    with RunStore.open(store) as opened:
        assert len(opened.committed(INITIAL_TIME)) == 3
