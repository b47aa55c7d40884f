"""Sums that need no fields: kept while a forecast is computed, merged from several folders, equal to all others."""

import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result
from verified import CHANNELS, HOUR, START, write_analyses, write_run

from fengwu_ghr.cli import app
from fengwu_ghr.config import ComputeSection, RunConfig, VerifySection
from fengwu_ghr.errors import InputError, UsageError
from fengwu_ghr.forecast import run_forecast
from fengwu_ghr.grid import product_grid
from fengwu_ghr.progress import Silence
from fengwu_ghr.rollout import RestartSchedule
from fengwu_ghr.synthetic import INITIAL_TIME
from fengwu_ghr.variables import channel
from fengwu_ghr.verify import online
from fengwu_ghr.verify.fields import RunForecasts
from fengwu_ghr.verify.job import run_on_sums, run_verification
from fengwu_ghr.verify.kept import KeptSums, Pair
from fengwu_ghr.verify.online import LeadInMemory, OnlineVerification

GRID = product_grid(20)
DAY = timedelta(days=1)
RAIN = (channel("tp6h"),)


class Quiet:
    def note(self, text: str) -> None: ...

    def begin(self, done: int, total: int) -> None: ...

    def stepped(self, done: int, lead: timedelta) -> None: ...


class Listening(Quiet):
    begun = (0, 0)

    def begin(self, done: int, total: int) -> None:
        self.begun = done, total


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the day that is forecast, and the reports of a station."""
    folder = tmp_path_factory.mktemp("truth")
    write_analyses(folder / "day.zarr", [INITIAL_TIME + 6 * HOUR * i for i in range(4)], grid=GRID)
    write_analyses(folder / "later.zarr", [INITIAL_TIME + 6 * HOUR * i for i in (1, 2, 3)], grid=GRID)
    lines = ["station,latitude,longitude,elevation,time,temperature"]
    lines += [f"Here,10,20,5,{INITIAL_TIME + 6 * HOUR * i:%Y-%m-%dT%H:%M},290" for i in range(4)]
    (folder / "reports.csv").write_text("\n".join(lines))
    return folder


def forecast_config(folder: Path, analysis: Path, truth: Path, **changes: Any) -> RunConfig:
    verify = {
        "online": True,
        "truth": truth / "day.zarr",
        "output": folder / "online",
        "channels": [str(c) for c in CHANNELS],
        "thresholds": ["10ws>=8", "2t>=290"],
        "neighbourhoods_km": [500.0],
        "stations": truth / "reports.csv",
        "shown_hours": [12],
    }
    tree = {
        "model": {"name": "ghr-tiny-1p8"},
        "input": {"files": [analysis]},
        "output": {"zarr": folder / "run.zarr"},
        "forecast": {"lead_time_hours": 18},
        "verify": verify | changes.pop("verify", {}),
    }
    return RunConfig.model_validate({**tree, **changes})


def arrays(folder: Path, pair: Pair) -> dict[str, np.ndarray]:
    scores = KeptSums(folder).read(pair).scores
    return {
        f"{name} {kind} {statistic}": values
        for name, kinds in scores.items()
        for kind, sums in kinds.items()
        for statistic, values in {"weight": sums.weight, **sums.sums}.items()
    }


def assert_same_sums(folder: Path, other: Path, *, count: int) -> None:
    assert KeptSums(folder).about.identity == KeptSums(other).about.identity
    assert len(KeptSums(folder).pairs) == count
    for pair in KeptSums(folder).pairs:
        mine, its = arrays(folder, pair), arrays(other, pair)
        assert mine.keys() == its.keys()
        for key in mine:
            np.testing.assert_array_equal(mine[key], its[key], err_msg=f"{pair} {key}")


@pytest.mark.parametrize("name", ["day.zarr", "later.zarr"])
def test_sums_of_a_rollout_are_those_of_its_store(
    tmp_path: Path, analysis: Path, truth: Path, name: str
) -> None:
    """Persistence too, be the analysis of the initial time that of the truth or that of the forecast."""
    config = forecast_config(tmp_path, analysis, truth, verify={"truth": truth / name})
    run_forecast(config, reporter=Quiet())
    assert config.verify is not None
    after = config.verify.model_copy(update={"output": tmp_path / "after"})
    run_verification(after, progress=Silence())
    assert_same_sums(tmp_path / "online", tmp_path / "after", count=3)
    kinds = {key.split()[1] for key in arrays(tmp_path / "online", (INITIAL_TIME, 12 * HOUR))}
    assert kinds == {"fields", "events", "neighbourhoods", "spectra", "maps", "stations", "places"}


def test_a_thin_store_has_the_sums_of_a_whole_one(tmp_path: Path, analysis: Path, truth: Path) -> None:
    whole, thin = tmp_path / "whole", tmp_path / "thin"
    run_forecast(forecast_config(whole, analysis, truth), reporter=Quiet())
    kept = {
        "lead_time_hours": 18,
        "leads_hours": [6],
        "variables": ["2t"],
        "area": [60.0, -10.0, 40.0, 30.0],
    }
    run_forecast(forecast_config(thin, analysis, truth, forecast=kept), reporter=Quiet())
    assert_same_sums(whole / "online", thin / "online", count=3)


def test_a_broken_run_goes_on_and_scores_every_lead(
    tmp_path: Path, analysis: Path, truth: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_forecast(forecast_config(tmp_path / "whole", analysis, truth), reporter=Quiet())
    config = forecast_config(tmp_path / "cut", analysis, truth)

    def fail(made: Any, pair: Pair, real: Any = online.score_pair, **options: Any) -> None:
        if pair[1] == 12 * HOUR:
            raise InputError("the truth went away")
        real(made, pair, **options)

    with monkeypatch.context() as broken:
        broken.setattr(online, "score_pair", fail)
        with pytest.raises(InputError, match="went away"):
            run_forecast(config, reporter=Quiet())
    assert [lead for _, lead in KeptSums(tmp_path / "cut" / "online").pairs] == [6 * HOUR]
    run_forecast(config, reporter=Quiet())
    assert_same_sums(tmp_path / "whole" / "online", tmp_path / "cut" / "online", count=3)
    done: list[Pair] = []
    monkeypatch.setattr(online, "score_pair", lambda made, pair, **_: done.append(pair))
    run_forecast(config, reporter=Quiet())
    assert not done, "what is scored is not scored again"


def test_a_saved_state_is_gone_on_from_though_no_lead_is_kept(
    tmp_path: Path, analysis: Path, truth: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the last lead is kept: until then the saved state is all there is, and numerics must stay."""
    kept = {"lead_time_hours": 18, "leads_hours": [18]}
    config = forecast_config(tmp_path, analysis, truth, forecast=kept)

    def fail(made: Any, pair: Pair, real: Any = online.score_pair, **options: Any) -> None:
        if pair[1] == 18 * HOUR:
            raise InputError("the truth went away")
        real(made, pair, **options)

    monkeypatch.setattr(RestartSchedule, "is_due", lambda self: True)
    with monkeypatch.context() as broken:
        broken.setattr(online, "score_pair", fail)
        with pytest.raises(InputError, match="went away"):
            run_forecast(config, reporter=Quiet())
    other = config.model_copy(update={"compute": ComputeSection(precision="bfloat16")})
    with pytest.raises(UsageError, match="was begun with other numerics"):
        run_forecast(other, reporter=Quiet())
    told = Listening()
    run_forecast(config, reporter=told)
    assert told.begun == (2, 3)
    assert len(KeptSums(tmp_path / "online").pairs) == 3


def test_other_numerics_are_other_fields(tmp_path: Path, analysis: Path, truth: Path) -> None:
    """Sums of a forecast that was replaced are not those of the one that replaces it."""
    config = forecast_config(tmp_path, analysis, truth)
    run_forecast(config, reporter=Quiet())
    before = arrays(tmp_path / "online", (INITIAL_TIME, 12 * HOUR))
    output = config.output.model_copy(update={"overwrite": True})
    changed = {"compute": ComputeSection(precision="bfloat16"), "output": output}
    run_forecast(config.model_copy(update=changed), reporter=Quiet())
    after = arrays(tmp_path / "online", (INITIAL_TIME, 12 * HOUR))
    assert not np.array_equal(before["forecast fields squared_error"], after["forecast fields squared_error"])


def test_it_runs_no_further_than_something_is_wanted(tmp_path: Path, analysis: Path, truth: Path) -> None:
    kept = {"lead_time_hours": 240, "leads_hours": [6]}
    told = Listening()
    run_forecast(forecast_config(tmp_path, analysis, truth, forecast=kept), reporter=told)
    assert told.begun == (0, 3), "the truth ends after 18 hours"


def test_scores_of_a_complete_store_are_made_up_for(tmp_path: Path, analysis: Path, truth: Path) -> None:
    run_forecast(forecast_config(tmp_path, analysis, truth, verify={"online": False}), reporter=Quiet())
    assert not (tmp_path / "online").exists()
    run_forecast(forecast_config(tmp_path, analysis, truth), reporter=Quiet())
    assert len(KeptSums(tmp_path / "online").pairs) == 3


def test_rain_of_a_day_is_remembered(tmp_path: Path) -> None:
    """No longer than it is needed: 24 hours have four parts."""
    leads = [6 * HOUR * i for i in range(1, 7)]
    initial = [START + 6 * HOUR * i for i in range(-3, 7)]
    truth = write_run(tmp_path / "truth.zarr", initial, [timedelta(0)], channels=RAIN)
    stored = write_run(tmp_path / "run.zarr", [START], leads, channels=RAIN, noise=2.0)
    settings = VerifySection(
        forecast=(stored,), truth=(truth,), output=tmp_path / "after", thresholds=("tp24h>=3",)
    )
    run_verification(settings, progress=Silence())
    source = RunForecasts.open([stored])
    live = LeadInMemory("run", source.grid, RAIN, START, tuple(leads), "a test")  # type: ignore[arg-type]
    settings = settings.model_copy(update={"output": tmp_path / "online"})
    with OnlineVerification(settings, live, threads=2) as watch:
        watch.begin()
        assert watch.reach == 18 * HOUR
        for lead in leads:
            watch.see(lead, lambda channel, lead=lead: source.read(channel, START, lead))  # type: ignore[misc]
            assert {when for _, when in live.parts} == {
                when for when in leads if 0 <= (lead - when) / HOUR <= 18
            }
        assert not watch.due
        with pytest.raises(InputError, match=r"tp6h of 2020-06-01 00:00 \+ 6 h is no longer in memory"):
            live.read(RAIN[0], START, 6 * HOUR)
    source.close()
    assert_same_sums(tmp_path / "after", tmp_path / "online", count=6)


def test_online_is_of_this_forecast_alone(tmp_path: Path, analysis: Path, truth: Path) -> None:
    with pytest.raises(ValueError, match=r"of this forecast alone; leave verify\.forecast out"):
        forecast_config(tmp_path, analysis, truth, verify={"forecast": "other.zarr"})
    forecast_config(tmp_path, analysis, truth, verify={"forecast": "other.zarr", "online": False})


# Folders of sums


def season(folder: Path, dates: list[datetime], output: str, **changes: Any) -> Path:
    given = {"forecast": folder / "run.zarr", "truth": folder / "truth.zarr", "output": folder / output}
    many = {"first": dates[0], "last": dates[-1], "channels": ["t850", "2t"]}
    run_verification(VerifySection.model_validate(given | many | changes), progress=Silence())
    return folder / output


@pytest.fixture(scope="module")
def seasons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four dates, verified together and in halves that overlap."""
    folder = tmp_path_factory.mktemp("seasons")
    dates = [START + DAY * i for i in range(4)]
    write_analyses(folder / "truth.zarr", [START + 12 * HOUR * i for i in range(12)])
    write_analyses(folder / "short.zarr", [START, *(START + i * HOUR for i in (12, 24, 36))])
    write_run(folder / "run.zarr", dates, [timedelta(0), 12 * HOUR, 24 * HOUR], noise=0.5)
    season(folder, dates, "whole")
    season(folder, dates[:2], "first")
    season(folder, dates[1:], "second")
    return folder


def test_halves_make_the_whole(seasons: Path, tmp_path: Path) -> None:
    whole = run_on_sums([seasons / "whole"], tmp_path / "a").scores
    merged = run_on_sums([seasons / "second", seasons / "first"], tmp_path / "b").scores
    assert whole.attrs["initial_times"] == "4 from 2020-06-01 00:00 to 2020-06-04 00:00"
    for name in whole:
        np.testing.assert_array_equal(whole[name].values, merged[name].values)
    assert '<h2 id="spectra">' in (tmp_path / "b" / "index.html").read_text()


def test_equal_sums_of_one_pair_count_once(seasons: Path, tmp_path: Path) -> None:
    """Whatever they were made of: of the memory of a forecast, of its store, of copies elsewhere."""
    shutil.copytree(seasons / "whole", tmp_path / "copy")
    kept = KeptSums(tmp_path / "copy")
    kept.write(kept.pairs[0], kept.read(kept.pairs[0])._replace(fingerprint="another"))
    both = run_on_sums([seasons / "whole", tmp_path / "copy"], tmp_path / "both").scores
    alone = run_on_sums([seasons / "whole"], tmp_path / "alone").scores
    np.testing.assert_array_equal(both["rmse"], alone["rmse"])


def test_what_was_left_out_is_told_of_sums_too(seasons: Path, tmp_path: Path) -> None:
    folder = season(seasons, [START, START + DAY], str(tmp_path / "gaps"), truth=seasons / "short.zarr")
    told = run_on_sums([folder], tmp_path / "told").scores.attrs["notes"]
    assert "1 of 4 forecasts have no truth in short (4, 2020-06-01 00:00 to 2020-06-02 12:00)" in told


def test_sums_of_one_date_and_lead(seasons: Path, tmp_path: Path) -> None:
    done = call(
        "verify", "--sums", seasons / "first", "--sums", seasons / "second", "--output", tmp_path,
        "--first", "2020-06-02", "--last", "2020-06-02", "--leads", 24,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    lines = (tmp_path / "scores.csv").read_text().splitlines()[1:]
    assert {line.split(",")[4] for line in lines} == {"24"}
    page = (tmp_path / "index.html").read_text()
    assert "1 from 2020-06-02 00:00 to 2020-06-02 00:00" in page
    assert "1 from 24 h to 24 h" in page


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--sums", "first", "--output", "o", "--truth", "t"], 2, "leave out --truth"),
        (["--sums", "first"], 2, "needs --output"),
        (["--sums", "none", "--output", "o"], 3, "none holds no sums of a verification"),
        (["--sums", "first", "--output", "o", "--first", "2021-01-01"], 3, "no time lies from 2021-01-01"),
        (["--sums", "first", "--output", "o", "--leads", "7"], 3, "none of them of the dates and leads"),
        (
            ["--sums", "first", "--sums", "other", "--output", "o"],
            2,
            "holds a verification with other channels",
        ),
        (["--sums", "first", "--sums", "changed", "--output", "o"], 3, "each forecast counts once"),
        (["--sums", "first", "--output", "other"], 2, "other holds a verification with other channels"),
        (["--sums", "empty", "--output", "o"], 3, "empty holds no sums yet"),
        (["--sums", "first", "--output", "file"], 2, "file is a file; give another --output"),
    ],
)
def test_mistakes_are_told(
    seasons: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: str
) -> None:
    monkeypatch.chdir(seasons)
    if not (seasons / "other").exists():
        season(seasons, [START], "other", channels=["2t"])
        season(seasons, [START], "changed")
        (seasons / "empty").mkdir()
        (seasons / "empty" / "verification.json").write_text(
            (seasons / "first" / "verification.json").read_text()
        )
        (seasons / "file").write_text("mine")
        pair = (START, 24 * HOUR)
        piece = KeptSums(seasons / "changed").read(pair)
        piece.scores["forecast"]["fields"].weight[:] *= 2
        KeptSums(seasons / "changed").write(pair, piece._replace(fingerprint="another"))
    done = call("verify", *arguments)
    assert (done.exit_code, words in done.output) == (code, True), done.output


# The verbs


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_forecast_ends_with_its_report(tmp_path: Path, analysis: Path, truth: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        f"""
[model]
name = "ghr-tiny-1p8"
[input]
files = ["{analysis}"]
[forecast]
lead_time_hours = 12
variables = ["2t"]
[output]
zarr = "{tmp_path / "run.zarr"}"
[verify]
online = true
truth = "{truth / "day.zarr"}"
channels = ["z500", "2t"]
output = "{tmp_path / "scores"}"
"""
    )
    assert call("check", "--config", config, "verify.truth=none.zarr").exit_code == 3
    done = call("check", "--config", config)
    assert done.exit_code == 0, done.output
    assert "verification" in done.output
    assert not (tmp_path / "scores").exists()
    done = call("forecast", "--config", config)
    assert done.exit_code == 0, done.output
    assert "RMSE of the forecast (in brackets persistence) over globe" in done.output
    assert (tmp_path / "scores" / "index.html").exists()
    done = call("verify", config, f"verify.output={tmp_path / 'again'}", "verify.channels=['2t']")
    assert done.exit_code == 0, done.output
    done = call("forecast", "--config", config, "verify.channels=['2t']")
    assert (done.exit_code, "holds a verification with other channels" in done.output) == (2, True)
