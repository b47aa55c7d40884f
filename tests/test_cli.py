"""The verbs: help with examples, exit codes of the table, messages that name the remedy, no tracebacks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fengwu_ghr.cli import app

VERBS = ("inspect", "check", "forecast", "export", "point", "plot", "demo", "verify", "climatology")
MODELS = ("list", "create", "verify")
TRAIN = ("simulate", "pretrain", "adapt", "evidence")
SMOKE = Path(__file__).parents[1] / "configs" / "transfer_smoke.toml"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def run(analysis: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "run.zarr"
    result = call(
        "forecast", "--model", "ghr-tiny-1p8", "--input", analysis, "--output", path, "--lead-time", 12
    )
    assert result.exit_code == 0, result.output
    return path


@pytest.mark.parametrize(
    "words", [*((v,) for v in VERBS), *(("models", v) for v in MODELS), *(("train", v) for v in TRAIN)]
)
def test_every_verb_has_help_with_an_example(words: tuple[str, ...]) -> None:
    result = call(*words, "--help")
    assert result.exit_code == 0
    assert "Example: fengwu-ghr" in result.output
    assert "--quiet" in result.output


def test_inspect_tells_grib_from_store_from_checkpoint(analysis: Path, run: Path, tmp_path: Path) -> None:
    call("models", "create", "ghr-tiny-1p8", "--init", "zero", "--output", tmp_path / "zero")
    result = call("inspect", "--json", analysis, run, tmp_path / "zero")
    assert result.exit_code == 0, result.output
    grib, store, checkpoint = json.loads(result.output)
    assert sum(int(group["fields"]) for group in grib["groups"]) == 69
    assert store["committed_hours"] == {"2024-01-01T00:00:00": [0, 6, 12]}
    assert "Persistence" in checkpoint["description"]


def test_inspect_shows_the_sound_files_beside_the_broken(analysis: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no GRIB")
    result = call("inspect", tmp_path / "notes.txt", analysis, tmp_path / "absent")
    assert result.exit_code == 3
    assert "69 fields" in result.output
    assert "notes.txt" in result.output
    assert "absent does not exist" in result.output


def test_check_prints_the_plan_and_writes_nothing(
    analysis: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("check", "--model", "ghr-tiny-1p8", "--input", analysis, "--lead-time", 24)
    assert result.exit_code == 0, result.output
    assert "2024-01-01 00" in result.output
    assert list(tmp_path.iterdir()) == []


def test_missing_fields_are_all_named_at_once(analysis: Path, tmp_path: Path) -> None:
    data = analysis.read_bytes()
    lines = [json.loads(line) for line in analysis.with_suffix(".index").read_text().splitlines()]
    kept = [line for line in lines[:-4] if (line["param"], line.get("levelist")) != ("z", "500")]
    assert len(kept) == 64
    partial = tmp_path / "partial.grib2"
    partial.write_bytes(b"".join(data[k["_offset"] : k["_offset"] + k["_length"]] for k in kept))
    result = call("check", "--model", "ghr-tiny-1p8", "--input", partial)
    assert result.exit_code == 3
    for name in ("z at 500 hPa", "2t", "10u", "10v", "msl", "m2 s-2", "2024-01-01 00:00"):
        assert name in result.output


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--model", "no-such-model"], 2, ["no-such-model", "ghr-tiny-1p8"]),
        (["--lead-time", "7"], 2, ["multiples of 6 h", "7"]),
        (["--variables", "z,snow"], 2, ["snow"]),
        (["--variables", "tcc"], 2, ["tcc", "2t"]),
        (["--levels", "510"], 2, ["510", "500"]),
        (["--leads", "6,9"], 2, ["9"]),
        (["--area", "10,0,50,20"], 2, ["south < north"]),
        (["--memory-budget", "lots"], 2, ["20GiB"]),
        (["--memory-budget", "100MiB"], 5, ["0.10 GiB", "--memory-budget"]),
        (["--input", "absent.grib2"], 3, ["absent.grib2"]),
        (["forecast.lead_hours=3"], 2, ["forecast.lead_hours"]),
        (["--date", "20110115"], 3, ["2011-01-15", "2024-01-01"]),
    ],
)  # fmt: skip
def test_mistakes_end_with_their_exit_code_and_a_remedy(
    analysis: Path, tmp_path: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    usual = ["--model", "ghr-tiny-1p8", "--input", analysis, "--output", tmp_path / "run.zarr"]
    result = call("forecast", *usual, *arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert all(word in result.output for word in words), result.output
    assert not (tmp_path / "run.zarr").exists()


def test_a_finished_run_is_left_alone_and_another_run_is_refused(analysis: Path, run: Path) -> None:
    usual = ["forecast", "--input", analysis, "--output", run, "--lead-time", 12]
    again = call(*usual, "--model", "ghr-tiny-1p8")
    assert again.exit_code == 0
    other = call(*usual, "--model", "ghr-small-1p8")
    assert other.exit_code == 2
    assert "--overwrite" in other.output
    longer = call(*usual, "--model", "ghr-tiny-1p8", "--lead-time", 18)
    assert longer.exit_code == 2


def test_a_folder_that_is_no_store_is_never_replaced(analysis: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep me")
    result = call(
        "forecast", "--model", "ghr-tiny-1p8", "--input", analysis, "--output", tmp_path, "--overwrite"
    )
    assert result.exit_code == 2
    assert (tmp_path / "precious.txt").read_text() == "keep me"


def test_point_writes_a_table_and_a_picture(run: Path, tmp_path: Path) -> None:
    result = call(
        "point", run, "--at", "52.5,13.4", "--variables", "2t,z500", "--output", tmp_path / "berlin"
    )
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "berlin.csv").read_text().splitlines()
    assert lines[0] == "valid_time,lead_hours,2t [K],z500 [m2 s-2]"
    assert [line.split(",")[1] for line in lines[1:]] == ["0", "6", "12"]
    assert (tmp_path / "berlin.png").stat().st_size > 10_000


def test_plot_draws_a_map_and_refuses_what_is_not_there(run: Path, tmp_path: Path) -> None:
    picture = tmp_path / "map.png"
    drawn = call("plot", run, "--variable", "z", "--level", 500, "--lead-time", 12, "--output", picture)
    assert drawn.exit_code == 0, drawn.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    for arguments, word in (
        (["--lead-time", 48], "48"),
        (["--level", 510], "510"),
        (["--variable", "2t"], "level"),
    ):
        refused = call("plot", run, "--variable", "z", "--level", 500, "--output", picture, *arguments)
        assert refused.exit_code in (2, 3), refused.output
        assert word in refused.output


def test_export_gives_the_same_grib_as_the_run(analysis: Path, tmp_path: Path) -> None:
    usual = ["--model", "ghr-tiny-1p8", "--input", analysis, "--lead-time", 6]
    made = call("forecast", *usual, "--output", tmp_path / "run.zarr", "--grib", tmp_path / "during")
    assert made.exit_code == 0, made.output
    exported = call("export", tmp_path / "run.zarr", "--grib", tmp_path / "after")
    assert exported.exit_code == 0, exported.output
    during = {p.name: p.read_bytes() for p in (tmp_path / "during").glob("2*")}
    after = {p.name: p.read_bytes() for p in (tmp_path / "after").glob("2*")}
    assert during == after
    assert len(during) == 4


def test_a_terminated_run_exits_75_and_resumes(analysis: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "fengwu_ghr.cli",
        "forecast",
        "--model",
        "ghr-tiny-1p8",
        "--input",
        str(analysis),
    ]
    command += ["--output", str(tmp_path / "run.zarr"), "--lead-time", "2400"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "+12 h" in line:
                process.terminate()
                break
        rest = process.stderr.read()
    assert process.returncode == 75
    assert "run the same command again" in rest
    assert "Traceback" not in rest


def test_export_does_not_touch_files_of_another_run(analysis: Path, run: Path, tmp_path: Path) -> None:
    usual = ["--model", "ghr-tiny-1p8", "--input", analysis, "--lead-time", 6]
    call("forecast", *usual, "--output", tmp_path / "z.zarr", "--variables", "z", "--grib", tmp_path / "grib")
    before = {p.name: p.read_bytes() for p in (tmp_path / "grib").iterdir()}
    refused = call("export", run, "--grib", tmp_path / "grib")
    assert refused.exit_code == 2
    assert "--overwrite" in refused.output
    assert {p.name: p.read_bytes() for p in (tmp_path / "grib").iterdir()} == before
    assert call("export", run, "--grib", tmp_path / "grib", "--overwrite").exit_code == 0


def test_a_meteogram_of_a_thinned_store_shows_what_is_there(analysis: Path, tmp_path: Path) -> None:
    usual = [
        "--model",
        "ghr-tiny-1p8",
        "--input",
        analysis,
        "--lead-time",
        6,
        "--variables",
        "t,2t",
        "--levels",
        850,
    ]
    call("forecast", *usual, "--output", tmp_path / "thin.zarr")
    result = call("point", tmp_path / "thin.zarr", "--at", "50,10", "--output", tmp_path / "here")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "here.csv").read_text().startswith("valid_time,lead_hours,2t [K],t850 [K]")


@pytest.mark.parametrize("name", TRAIN)
def test_training_says_what_is_wrong_with_its_settings(name: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text(SMOKE.read_text().replace("[pretrain]", "[pretrain]\nnois = 1"))
    for arguments, word in (
        ([tmp_path / "absent.toml"], "absent.toml cannot be read"),
        ([broken], "pretrain.nois"),
        ([SMOKE, "pretrain.train.bach=2"], "pretrain.train.bach"),
        (
            [SMOKE, "headline=nobody"],
            "headline must be one of smoke-res, smoke, smoke-sharp, zero-shot; got 'nobody'",
        ),
        ([SMOKE, "batch"], "an override is written section.key=value"),
    ):
        result = call("train", name, *arguments)
        assert result.exit_code == 2, result.output
        assert word in result.output
        assert "Traceback" not in result.output


def test_training_without_a_world_says_how_to_make_one(tmp_path: Path) -> None:
    nowhere = [f"folder={tmp_path}", f"simulate.folder={tmp_path / 'world'}"]
    for name in ("pretrain", "adapt", "evidence"):
        result = call("train", name, SMOKE, *nowhere)
        assert result.exit_code == 3, result.output
        assert "fengwu-ghr train simulate" in result.output
    assert list(tmp_path.iterdir()) == []
