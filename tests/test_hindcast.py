"""Seasons end to end: what is in the store, what is said of it, and what becomes of bad, late and finished dates."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import create_autospec

import numpy as np
import pytest
import seasons
import torch
import xarray as xr

from fengwu_ghr.checkpoint import Checkpoint, load_model, save
from fengwu_ghr.config import RunConfig, read_settings
from fengwu_ghr.errors import UsageError
from fengwu_ghr.forecast import Reporter, run_forecast
from fengwu_ghr.hindcast.job import run_hindcast
from fengwu_ghr.hindcast.ledger import Survey
from fengwu_ghr.hindcast.settings import HindcastConfig
from fengwu_ghr.manifest import Manifest
from fengwu_ghr.progress import Silence
from fengwu_ghr.store import RunStore
from fengwu_ghr.synthetic import write_synthetic_analysis

DATES = 3
HANG = 900
"""Seconds after which a command is taken to hang; a busy machine may make minutes of one."""


@pytest.fixture(scope="module")
def analyses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seasons.write_analyses(tmp_path_factory.mktemp("analyses"), DATES)


@pytest.fixture(scope="module")
def finished(analyses: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a season of two workers that was left alone; its log beside it."""
    folder = tmp_path_factory.mktemp("season")
    config = seasons.write_toml(folder / "season.toml", seasons.season(analyses, folder, DATES))
    done = seasons.run(config)
    (folder / "out.txt").write_text(done.stdout)
    (folder / "err.txt").write_text(done.stderr)
    return folder


def test_every_initial_time_is_committed_once_and_opens_as_one_dataset(finished: Path) -> None:
    seasons.check_committed_once(finished / "season.zarr", DATES)
    with xr.open_zarr(finished / "season.zarr") as season:
        assert dict(season.sizes) | {"level": 13} == {
            "time": DATES, "prediction_timedelta": seasons.LEADS, "level": 13, "latitude": 101, "longitude": 200,
        }  # fmt: skip
        assert list(season.time.values) == [np.datetime64(time) for time in seasons.times_of(DATES)]
        assert np.isfinite(season["2t"]).all()
        differences = np.abs(season["2t"].diff("time")).max(("latitude", "longitude"))
        assert (differences > 0.1).all()  # each has its own analysis
    assert len(seasons.gribs(finished / "grib")) == 2 * DATES * seasons.LEADS


def test_each_has_the_bytes_of_a_forecast_of_its_own(finished: Path, analyses: Path, tmp_path: Path) -> None:
    for index, initial_time in enumerate(seasons.times_of(DATES)):
        store = tmp_path / f"{index}.zarr"
        source = analyses / f"{initial_time:%Y%m%d%H}.grib2"
        alone = RunConfig.model_validate(
            {
                "model": {"name": "ghr-tiny-1p8"},
                "input": {"files": [source]},
                "forecast": {"lead_time_hours": 24, "variables": ["z", "2t"]},
                "compute": {"threads": 1},
                "output": {"zarr": store, "grib": tmp_path / "grib"},
            }
        )
        run_forecast(alone, reporter=create_autospec(Reporter, instance=True))
        own, of_season = seasons.shards(store), seasons.shards(finished / "season.zarr")
        fields = {name for name in own if name.startswith(("z/", "2t/"))}
        assert len(fields) == 14 * seasons.LEADS
        for name in fields:
            variable, _, _, rest = name.split("/", 3)
            assert own[name] == of_season[f"{variable}/c/{index}/{rest}"], name
    assert seasons.gribs(tmp_path / "grib") == seasons.gribs(finished / "grib")


def test_the_log_has_a_line_of_json_for_each_with_its_timings(finished: Path) -> None:
    lines = [
        line[line.index("{") :] for line in (finished / "err.txt").read_text().splitlines() if "{" in line
    ]
    told = {entry["time"]: entry for entry in map(json.loads, lines)}
    assert sorted(told) == [time.isoformat() for time in seasons.times_of(DATES)]
    for entry in told.values():
        assert entry["outcome"] == "finished"
        assert {"all", "read", "compute", "write"} <= entry["seconds"].keys()
    assert "Dask dashboard: http" in (finished / "err.txt").read_text()
    assert "3 of 3, 3 now" in (finished / "out.txt").read_text()


def test_run_again_it_does_nothing(finished: Path) -> None:
    before = {
        path: path.stat().st_mtime_ns for path in (finished / "season.zarr").rglob("*") if path.is_file()
    }
    done = seasons.run(finished / "season.toml")
    assert "3 of 3, 0 now" in done.stdout
    after = {
        path: path.stat().st_mtime_ns for path in (finished / "season.zarr").rglob("*") if path.is_file()
    }
    assert after == before


def test_one_worker_gives_the_bytes_of_two(finished: Path, analyses: Path, tmp_path: Path) -> None:
    config = seasons.write_toml(tmp_path / "season.toml", seasons.season(analyses, tmp_path, DATES))
    seasons.run(config, "--workers", "1")
    assert seasons.shards(tmp_path / "season.zarr") == seasons.shards(finished / "season.zarr")


def test_status_and_dry_run_tell_without_computing(finished: Path, analyses: Path, tmp_path: Path) -> None:
    said = seasons.run(finished / "season.toml", "--status").stdout.split()
    assert said[said.index("finished") + 1] == "3"
    assert {"pace", "go"} <= set(said)
    config = seasons.write_toml(tmp_path / "season.toml", seasons.season(analyses, tmp_path, DATES))
    planned = seasons.run(config, "--dry-run").stdout
    assert "there for 3 of 3" in planned
    assert "GB in all" in planned
    assert not (tmp_path / "season.zarr").exists()
    missing = seasons.run(config, "--status", check=False)
    assert missing.returncode == 3
    assert "season.zarr is not a run store" in missing.stderr


def test_bad_and_absent_input_stops_nothing_else(finished: Path, analyses: Path, tmp_path: Path) -> None:
    own = tmp_path / "analyses"
    shutil.copytree(analyses, own)
    good, truncated, absent = (own / f"{time:%Y%m%d%H}.grib2" for time in seasons.times_of(DATES))
    whole, kept = truncated.read_bytes(), absent.read_bytes()
    truncated.write_bytes(whole[: len(whole) // 2])
    absent.unlink()
    config = seasons.write_toml(tmp_path / "season.toml", seasons.season(own, tmp_path, DATES))

    first = seasons.run(config, check=False)
    assert first.returncode == 7, first.stderr
    assert "2 of 3 initial times are not there" in first.stderr
    assert "2024010112.grib2" in first.stdout  # the file at fault
    assert good.name not in first.stdout
    said = seasons.run(config, "--status").stdout.split()
    assert [said[said.index(word) + 1] for word in ("finished", "failed", "waiting")] == ["1", "1", "1"]

    truncated.write_bytes(whole)
    absent.write_bytes(kept)
    second = seasons.run(config, check=False)  # what has failed is not tried again unless asked for
    assert second.returncode == 7
    assert "1 of 3 initial times are not there" in second.stderr
    assert seasons.run(config, "--retry-failed").returncode == 0
    assert seasons.shards(tmp_path / "season.zarr") == seasons.shards(finished / "season.zarr")
    seasons.check_committed_once(tmp_path / "season.zarr", DATES)


def test_input_that_comes_late_is_waited_for(finished: Path, analyses: Path, tmp_path: Path) -> None:
    own = tmp_path / "analyses"
    shutil.copytree(analyses, own)
    late = own / f"{seasons.times_of(DATES)[0]:%Y%m%d%H}.grib2"
    content = late.read_bytes()
    late.unlink()
    tree = seasons.season(own, tmp_path, DATES)
    tree["input"]["wait_minutes"] = 5
    config = seasons.write_toml(tmp_path / "season.toml", tree)
    process = subprocess.Popen(seasons.command(config), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + HANG
    while (
        sum("finished" in counts for counts in seasons.commits(tmp_path / "season.zarr").values()) < DATES - 1
    ):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.2)
    time.sleep(2)
    assert process.poll() is None  # nothing else is to do: it waits
    late.with_suffix(".part").write_bytes(content)
    late.with_suffix(".part").rename(late)
    _, errors = process.communicate(timeout=HANG)
    assert process.returncode == 0, errors.decode()
    assert seasons.shards(tmp_path / "season.zarr") == seasons.shards(finished / "season.zarr")


def test_a_second_command_is_refused_while_one_works(analyses: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "season.zarr", tmp_path / "season.zarr")
    manifest = next((tmp_path / "season.zarr" / "_manifest").glob("*.jsonl"))
    manifest.write_bytes(b"".join(manifest.read_bytes().splitlines(keepends=True)[:-1]))  # something to do
    tree = seasons.season(analyses, tmp_path, DATES, output={"grib": str(finished / "grib")})
    config = seasons.write_toml(tmp_path / "season.toml", tree)
    with open(tmp_path / "season.zarr" / "_hindcast.lock", "ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        refused = seasons.run(config, check=False)
    assert refused.returncode == 2
    assert "another hindcast command is at work" in refused.stderr
    assert "--status" in refused.stderr


def test_what_another_kind_of_machine_began_waits_for_one(
    analyses: Path, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "again")
    last = sorted((tmp_path / "again" / "season.zarr" / "_manifest").glob("*.jsonl"))[-1]
    run, *leads = Manifest(last).entries()[:3]  # the analysis and one step: the rest is to be done
    other = {"numerics": {**run["provenance"]["numerics"], "capability": "VAX"}}
    last.unlink()
    for entry in (run, *leads, {"kind": "change", "provenance": other}):
        Manifest(last).append(entry)
    tree = seasons.season(analyses, tmp_path / "again", DATES, cluster={"workers": 1})
    config = seasons.write_toml(tmp_path / "season.toml", tree)
    left = seasons.run(config, check=False)
    assert left.returncode == 7
    assert "1 of 3 initial times are not there; run the same command again where" in left.stderr
    assert "capability: VAX" in " ".join(left.stderr.split())
    counts = Survey.of(read_settings(HindcastConfig, config)).counts
    assert counts == {"finished": 2, "waiting": 1}, "it is no failure that somebody would have to clear"
    assert "3 of 3, 1 now" in seasons.run(config, "compute.accept_numerics=true").stdout
    assert seasons.shards(tmp_path / "again" / "season.zarr") == seasons.shards(finished / "season.zarr")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": {"name": "ghr-small-1p8"}}, "another model"),
        ({"forecast": {"lead_time_hours": 18}}, "other leads"),
        ({"dates": {"every_hours": 24}}, "other initial_times"),
        ({"compute": {"threads": 2}}, "other numerics"),
    ],
)
def test_a_store_of_another_season_is_refused(
    analyses: Path, finished: Path, tmp_path: Path, changed: dict, said: str
) -> None:
    shutil.copytree(finished / "season.zarr", tmp_path / "season.zarr")
    manifest = next((tmp_path / "season.zarr" / "_manifest").glob("*.jsonl"))
    manifest.write_bytes(b"".join(manifest.read_bytes().splitlines(keepends=True)[:-1]))
    tree = seasons.season(analyses, tmp_path, DATES, **changed)
    with pytest.raises(UsageError, match=said):  # before anything is started
        run_hindcast(HindcastConfig.model_validate(tree), progress=Silence())


def test_ctrl_c_stops_it_and_it_goes_on(finished: Path, analyses: Path, tmp_path: Path) -> None:
    config = seasons.write_toml(tmp_path / "season.toml", seasons.season(analyses, tmp_path, DATES))
    process = subprocess.Popen(
        seasons.command(config),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # Who runs the tests in the background has Ctrl-C ignored, and children inherit it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not any("+0h" in counts for counts in seasons.commits(tmp_path / "season.zarr").values()):
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to workers too
    _, errors = process.communicate(timeout=HANG)
    assert process.returncode == 75, errors.decode()
    assert "run the same command again" in errors.decode()
    assert "Traceback" not in errors.decode()
    seasons.run(config)
    assert seasons.shards(tmp_path / "season.zarr") == seasons.shards(finished / "season.zarr")
    seasons.check_committed_once(tmp_path / "season.zarr", DATES)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "small"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here: " + mounted.stderr.decode().strip())
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(not shutil.which("mount"), reason="no mount")
def test_a_full_disk_stops_the_season_and_it_goes_on(
    analyses: Path, small_disk: Path, tmp_path: Path
) -> None:
    tree = seasons.season(analyses, small_disk, DATES, forecast={"variables": []})
    del tree["output"]["grib"]
    config = seasons.write_toml(tmp_path / "season.toml", tree)
    stopped = seasons.run(config, check=False)
    assert stopped.returncode == 6, stopped.stderr
    assert "make room" in stopped.stderr
    subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)
    seasons.run(config)
    seasons.check_committed_once(small_disk / "season.zarr", DATES)
    with RunStore.open(small_disk / "season.zarr") as store:
        assert store.verify() == ()


def test_clocks_that_differ_change_nothing(finished: Path, analyses: Path, tmp_path: Path) -> None:
    """Two workers, one a day ahead, one a day behind."""
    file = tmp_path / "scheduler.json"
    skew = "import time; real = time.time; time.time = lambda: real() + {skew}; "
    dask = "import sys; from dask.__main__ import main; main()"
    options = ["--scheduler-file", str(file), "--dashboard-address", ":0"]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", dask, "scheduler", "--port", "0", *options], stderr=subprocess.DEVNULL
        )
    ]
    try:
        for seconds in (-86400, 86400):
            worker = [sys.executable, "-c", skew.format(skew=seconds) + dask, "worker", "--nthreads", "2"]
            started.append(subprocess.Popen([*worker, "--no-nanny", *options], stderr=subprocess.DEVNULL))
        while not file.exists():
            time.sleep(0.1)
        config = seasons.write_toml(tmp_path / "season.toml", seasons.season(analyses, tmp_path, DATES))
        seasons.run(config, "--scheduler", json.loads(file.read_text())["address"])
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert seasons.shards(tmp_path / "season.zarr") == seasons.shards(finished / "season.zarr")
    seasons.check_committed_once(tmp_path / "season.zarr", DATES)


def test_scores_while_computing_are_those_of_afterwards(analyses: Path, tmp_path: Path) -> None:
    truth = tmp_path / "truth"
    truth.mkdir()
    for hours in range(12, 49, 6):
        valid = seasons.FIRST + seasons.timedelta(hours=hours)
        write_synthetic_analysis(truth / f"{valid:%Y%m%d%H}.grib2", initial_time=valid)
    found = {}
    for online in (True, False):
        folder = tmp_path / f"online-{online}"
        scores = {
            "truth": str(truth),
            "output": str(folder / "scores"),
            "online": online,
            "channels": ["2t", "z500"],
            "grid": "truth",
        }
        tree = seasons.season(analyses, folder, DATES, verify=scores, cluster={"workers": 1})
        done = seasons.run(seasons.write_toml(folder / "season.toml", tree))
        assert "scores.zarr" in done.stdout
        with xr.open_zarr(folder / "scores" / "scores.zarr", consolidated=False) as dataset:
            found[online] = dataset["rmse"].sel(source="forecast").load()
    np.testing.assert_array_equal(found[True].values, found[False].values)
    assert np.isfinite(found[True].values).any()


def test_status_knows_what_finished_with_relative_paths(
    analyses: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what has no truth is forecast all the same."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(analyses, "in")
    scores = {"truth": "in", "output": "scores", "online": True, "grid": "truth", "channels": ["2t", "z500"]}
    files = {"files": ["in/{time:%Y%m%d%H}.grib2"]}
    output = {"zarr": "season.zarr", "grib": "grib"}
    tree = seasons.season(analyses, tmp_path, DATES, verify=scores, input=files, output=output)
    config = seasons.write_toml(tmp_path / "season.toml", tree)
    done = seasons.run(config)
    assert "3 of 3, 3 now" in done.stdout  # the last one has no truth at all
    said = seasons.run(config, "--status").stdout.split()
    assert said[said.index("finished") + 1] == "3"
    assert "3 of 3, 0 now" in seasons.run(config).stdout


@pytest.fixture
def exploding(tmp_path: Path) -> Path:
    """A model whose forecasts end beyond all numbers."""
    create = [sys.executable, "-m", "fengwu_ghr.cli", "models", "create", "ghr-tiny-1p8", "--output"]
    subprocess.run([*create, str(tmp_path / "sane")], check=True, capture_output=True)
    sane = Checkpoint.open(tmp_path / "sane")
    model = load_model(sane)
    with torch.no_grad():
        model.backbone.decoder.deconvolution.weight.mul_(1e37)
    save(tmp_path / "exploding", model, card=sane.card)
    return tmp_path / "exploding"


def test_a_forecast_beyond_numbers_is_recorded_and_its_input_may_be_replaced(
    analyses: Path, exploding: Path, tmp_path: Path
) -> None:
    own = tmp_path / "analyses"
    shutil.copytree(analyses, own)
    tree = seasons.season(own, tmp_path, 1, model={"name": str(exploding)}, cluster={"workers": 1})
    config = seasons.write_toml(tmp_path / "season.toml", tree)
    for more in ((), ("--retry-failed",)):
        done = seasons.run(config, *more, check=False)
        assert done.returncode == 7, done.stderr
        assert "not finite" in done.stdout
        assert "1 of 1 initial times are not there" in done.stderr
        path = own / f"{seasons.FIRST:%Y%m%d%H}.grib2"
        path.write_bytes(2 * path.read_bytes())  # other bytes, the same fields twice
    entries = (tmp_path / "season.zarr" / "_journal").glob("*.jsonl")
    assert [json.loads(line)["kind"] for file in entries for line in file.read_text().splitlines()] == [
        "began", "failed", "began", "failed",
    ]  # fmt: skip
