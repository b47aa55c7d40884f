"""The settings of a hindcast: dates, templates of input, what is refused and how."""

import os
from collections import deque
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
import seasons
from distributed import Worker
from pydantic import ValidationError

from fengwu_ghr.config import read_settings
from fengwu_ghr.errors import InputError, UsageError
from fengwu_ghr.hindcast import arrival
from fengwu_ghr.hindcast.arrival import Arrivals, LateInput
from fengwu_ghr.hindcast.cluster import Host, Prepare, this_machine, visible_gpus
from fengwu_ghr.hindcast.season import Season
from fengwu_ghr.hindcast.settings import DatesSection, HindcastConfig, SeasonInput, absolute
from fengwu_ghr.preflight import ForecastPlan

WHOLE = b"GRIB, in short7777"


def config(tmp_path: Path, **sections: dict[str, Any]) -> HindcastConfig:
    return HindcastConfig.model_validate(seasons.season(tmp_path, tmp_path, 2, **sections))


def test_the_range_and_the_list_make_one_ascending_season() -> None:
    dates = DatesSection(
        first=datetime(2024, 1, 1),
        last=datetime(2024, 1, 2, 11),
        every_hours=12,
        times=(datetime(2023, 12, 31), datetime(2024, 1, 1, 12)),
    )
    assert [f"{time:%d %H}" for time in dates.all] == ["31 00", "01 00", "01 12", "02 00"]


@pytest.mark.parametrize(
    ("dates", "said"),
    [
        ({}, "name initial times"),
        ({"first": "2024-01-01"}, "given together"),
        ({"first": "2024-01-02", "last": "2024-01-01"}, "last lies before first"),
        ({"first": "1900-01-01", "last": "2024-01-01", "every_hours": 1}, "at most 100000"),
        ({"first": "2024-01-01", "last": "2024-01-02", "every_hours": 0}, "greater than 0"),
    ],
)
def test_dates_that_are_none_are_refused(dates: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DatesSection.model_validate(dates)


@pytest.mark.parametrize(
    "template",
    ["{time.__class__}", "{config}", "{time!r}", "{0}", "{}", "{time:{time}}", "{time", "{before[0]}"],
)
def test_templates_name_times_and_reach_nothing_else(template: str) -> None:
    with pytest.raises(ValidationError, match=r"input\.files name times alone|cannot be filled in"):
        SeasonInput(files=(template,))


def test_templates_are_filled_in_for_each_time() -> None:
    files = SeasonInput(
        files=("a/{time:%Y%m%d%H}.grib2", "b/{before:%Y/%m/%d/%H}-*.grib2", "orography.grib2")
    )
    names = files.names(datetime(2024, 3, 1), before=datetime(2024, 2, 29, 18))
    assert names == ["a/2024030100.grib2", "b/2024/02/29/18-*.grib2", "orography.grib2"]


def test_patterns_find_files_and_say_what_is_not_there(tmp_path: Path) -> None:
    season = Season.of(config(tmp_path, input={"files": [f"{tmp_path}/{{time:%Y%m%d%H}}-*.grib2"]}))
    first, second = season.times
    for name in ("2024010100-b.grib2", "2024010100-a.grib2"):
        (tmp_path / name).touch()
    assert [path.name for path in season.forecast_config(first).input.files] == [
        "2024010100-a.grib2",
        "2024010100-b.grib2",
    ]
    with pytest.raises(InputError, match=r"2024-01-01 12:00 is not there: .*2024010112-\*.grib2"):
        season.forecast_config(second)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"cluster": {"scheduler": "tcp://a:1", "kind": "slurm"}}, "leave kind out"),
        ({"cluster": {"job": {"queue": "gpu"}}}, "name the kind"),
        ({"cluster": {"kind": "pbs", "workers": 0}}, "how many workers"),
        (
            {"verify": {"truth": "t.zarr", "output": "s", "forecast": "other.zarr"}},
            "leave verify.forecast out",
        ),
        ({"input": {"file": "x"}}, "no such key|Extra inputs"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, sections: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        config(tmp_path, **sections)


def test_the_verification_is_of_these_forecasts(tmp_path: Path) -> None:
    made = config(tmp_path, verify={"truth": "t.zarr", "output": "scores", "online": True})
    assert made.online is not None
    assert made.online.forecast == (made.output.zarr,)
    assert made.wanted != config(tmp_path).wanted


def test_paths_mean_the_same_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = config(
        tmp_path,
        input={"files": ["in/{time:%Y}.grib2"]},
        output={"zarr": "out.zarr", "grib": None},
        verify={"truth": ["t.zarr"], "output": "scores", "masks": {"alps": "alps.nc"}},
    )
    made = absolute(given)
    assert made.input.files == (f"{tmp_path}/in/{{time:%Y}}.grib2",)
    assert made.verify is not None
    assert (made.output.zarr, made.verify.output, made.verify.masks["alps"]) == (
        tmp_path / "out.zarr",
        tmp_path / "scores",
        tmp_path / "alps.nc",
    )
    assert HindcastConfig.model_validate_json(made.model_dump_json()) == made


def test_every_key_is_shown_in_the_example() -> None:
    example = Path(__file__).parents[1] / "configs" / "hindcast.toml"
    text = example.read_text()
    assert read_settings(HindcastConfig, example).output.zarr == Path("season.zarr")
    for name, field in HindcastConfig.model_fields.items():
        assert f"[{name}]" in text, name
        section = field.annotation if hasattr(field.annotation, "model_fields") else None
        for key in section.model_fields if section and name != "verify" else ():
            assert any(f"{start}{key} =" in text for start in ("\n", "\n# ")) or f"[{name}.{key}]" in text, (
                key
            )


def test_an_untrained_name_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ghr-nothing"):
        Season.of(config(tmp_path, model={"name": "ghr-nothing"}))


def test_late_input_is_taken_out_and_given_back_and_waited_for_no_longer_than_asked(tmp_path: Path) -> None:
    files = {"files": [f"{tmp_path}/{{time:%Y%m%d%H}}.grib2"], "wait_minutes": 2}
    season = Season.of(HindcastConfig.model_validate(seasons.season(tmp_path, tmp_path, 3, input=files)))
    first, second, third = season.times
    (tmp_path / f"{first:%Y%m%d%H}.grib2").write_bytes(WHOLE)
    now = [0.0]
    waiting = deque(season.times)
    late = LateInput(season, waiting, Arrivals(now=lambda: now[0]), now=lambda: now[0])
    assert list(waiting) == [first]
    assert set(late.absent) == {second, third}
    late.look(is_idle=False)
    now[0] = 1000.0
    assert late.may_come  # as long as there is something else to do
    late.look(is_idle=True)
    (tmp_path / f"{third:%Y%m%d%H}.grib2").write_bytes(WHOLE)
    late.look(is_idle=True)
    assert list(waiting) == [first, third]
    late.look(is_idle=True)
    now[0] += 119
    assert late.may_come
    now[0] += 2
    assert not late.may_come
    assert set(late.absent) == {second}


def test_a_file_that_grows_is_not_there_yet(tmp_path: Path) -> None:
    """Until it ends as GRIB does; one that keeps still, cut off, is there: whoever reads it says what is wrong."""
    path, now = tmp_path / "a.grib2", [0.0]
    names, arrivals = [str(path)], Arrivals(now=lambda: now[0])
    assert arrivals.lacking(names) == names
    path.write_bytes(WHOLE[:-2])
    assert arrivals.lacking(names) == [f"{path} (still being written)"]
    assert arrivals.is_unsure(names)
    now[0] += arrival.STILL_SECONDS - 1
    path.write_bytes(2 * WHOLE[:-2])
    now[0] += 2
    assert arrivals.lacking(names), "it has changed meanwhile"
    assert not arrivals.is_unsure(names), "and was seen to"
    path.write_bytes(3 * WHOLE)
    assert arrivals.lacking(names) == []
    path.write_bytes(WHOLE[:-2])
    assert arrivals.lacking(names)
    now[0] += arrival.STILL_SECONDS
    assert arrivals.lacking(names) == []


def test_only_what_is_cut_off_takes_time_to_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, now = tmp_path / "a.grib2", [0.0]
    monkeypatch.setattr(arrival, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    arrivals = Arrivals(now=lambda: now[0])
    assert arrivals.lacking_for_sure([str(path)])
    path.write_bytes(WHOLE)
    assert not arrivals.lacking_for_sure([str(path)])
    assert now[0] == 0
    path.write_bytes(WHOLE[:-2])
    assert not arrivals.lacking_for_sure([str(path)]), "it is bad, not late"
    assert now[0] >= arrival.STILL_SECONDS


def test_workers_share_what_their_machine_has(tmp_path: Path) -> None:
    assert (Host(3, 8, 30 * 2**30).threads, Host(9, 8, 2**30).threads) == (2, 1)
    assert Host(2, 8, 20 * 2**30).memory_budget == 8 * 2**30
    asked = config(tmp_path, cluster={"workers": 5})
    sample = create_autospec(ForecastPlan, instance=True)
    sample.memory_with.return_value.peak = 2**50  # far too much for two
    assert this_machine(asked, sample).workers == 5
    assert (
        this_machine(
            config(tmp_path, cluster={"workers": 0}, compute={"memory_budget": None}), sample
        ).workers
        == 1
    )


def test_gpus_are_those_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5")
    assert visible_gpus() == ["2", "5"]
    worker = create_autospec(Worker, instance=True)
    worker.name = 3
    monkeypatch.setattr("fengwu_ghr.hindcast.cluster.signal.signal", lambda *_: None)
    Prepare(visible_gpus()).setup(worker)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
