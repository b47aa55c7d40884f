"""From nothing to the table: the smallest chain, whole, as its command runs it."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fengwu_ghr.checkpoint import Checkpoint, verify
from fengwu_ghr.training.tables import Tables
from fengwu_ghr.training.world import World
from fengwu_ghr.variables import HEADLINE
from fengwu_ghr.verify import metrics
from fengwu_ghr.verify.statistics import Sums
from pipelines import transfer, true_grid

ROOT = Path(__file__).parents[1]
SOURCES = [
    "persistence",
    "climatology",
    "coarse-0",
    "detailed-0",
    "mean-of-nine-0",
    "downscaled-0",
    "zero-shot-0",
    "smoke-res-0",
    "smoke-0",
    "smoke-sharp-0",
    "numerical-t21",
    "numerical-t21-corrected",
    "twin",
]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines.transfer", *map(str, arguments)]
    # The networks are tiny: more threads would wait for each other.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the chain, and what its command printed."""
    folder = tmp_path_factory.mktemp("chain")
    done = run("configs/transfer_smoke.toml", *_folders(folder))
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def _folders(folder: Path) -> list[str]:
    return [f"folder={folder}", f"simulate.folder={folder / 'world'}"]


def scored(folder: Path, source: str) -> Sums:
    """By lead and channel, on the first date: the twin has no other."""
    tables = Tables.load(folder / "evidence" / source, (), World.open(folder / "world"))
    return tables.everywhere.stacked()[:1]


def test_every_stage_leaves_a_checkpoint(chain: tuple[Path, str]) -> None:
    folder, _ = chain
    found = {}
    for name in ("backbone", "smoke-res", "smoke", "smoke-sharp"):
        found[name] = Checkpoint.open(folder / "seed-0" / name / "model")
        verify(found[name])
        assert found[name].card.trained
    shapes = {name: checkpoint.architecture for name, checkpoint in found.items()}
    assert [bool(shapes[name].res_after) for name in found] == [False, True, True, True]
    assert [shapes[name].lora_steps for name in found] == [0, 0, 2, 0]


def test_every_source_was_scored_at_every_lead(chain: tuple[Path, str]) -> None:
    folder, _ = chain
    for source in SOURCES:
        scores = metrics.rmse(scored(folder, source))
        assert scores.shape == (4, 69)
        assert np.isfinite(scores).all(), source


def test_the_simulator_is_the_best_at_being_the_simulator(chain: tuple[Path, str]) -> None:
    """Its twin stays beside the truth for a day; at a coarser truncation it drifts, but less than nothing moves."""
    folder, _ = chain
    t500 = World.open(folder / "world").channels.index("t500")
    twin, coarser, persistence = (
        metrics.rmse(scored(folder, name))[-1, t500] for name in ("twin", "numerical-t21", "persistence")
    )
    assert twin < 0.3 < coarser < persistence


def test_the_bias_is_taken_off(chain: tuple[Path, str]) -> None:
    """The mean errors of the baseline before and after differ by it; humidity, cut off at zero, aside."""
    folder, _ = chain
    world = World.open(folder / "world")
    bias = np.load(folder / "evidence" / "numerical-t21-bias" / "bias.npy")
    raw, corrected = (
        metrics.bias(scored(folder, name)) for name in ("numerical-t21", "numerical-t21-corrected")
    )
    means = np.einsum("scij,ij->sc", bias.astype(np.float64), world.fine_grid.cell_areas())
    dry = [not name.startswith("q") for name in world.channels.names]
    assert np.abs(means[:, dry]).max() > 0.1
    np.testing.assert_allclose((raw - corrected)[:, dry], means[:, dry], atol=0.05)


def test_the_report_is_printed_and_lies_in_the_folder(chain: tuple[Path, str]) -> None:
    folder, printed = chain
    path = folder / "evidence" / "verdict.md"
    text = path.read_text()
    assert text.strip() in printed
    assert printed.strip().endswith(f"report: {path}")
    assert re.findall(r"^#+ .*", text, flags=re.MULTILINE) == [
        "# Evidence for smoke",
        "## Shares of targets won by smoke",
        "## Scores",
        "## The same channels truncated to total wavenumber 36: RMSE",
        "## Spectra",
    ]
    for words in (
        "T31L8, 5 days of training",
        "(a) persistence",
        "(c1)",
        "(c9)",
        "(c-cnn)",
        "(d) zero-shot",
        "(e)",
    ):
        assert words in text
    assert f"`python -m pipelines.transfer configs/transfer_smoke.toml {' '.join(_folders(folder))}`" in text
    assert {"scores.png", "spectra.png"} <= {p.name for p in path.parent.iterdir()}


def test_what_is_done_is_not_done_again(chain: tuple[Path, str]) -> None:
    folder, _ = chain
    lasting = ("*.safetensors", "*.npy", "*.npz", "*.toml")
    before = {path: path.stat().st_mtime_ns for kind in lasting for path in folder.rglob(kind)}
    start = time.perf_counter()
    again = run("configs/transfer_smoke.toml", *_folders(folder))
    assert again.returncode == 0, again.stderr
    assert time.perf_counter() - start < 60
    assert {path: path.stat().st_mtime_ns for kind in lasting for path in folder.rglob(kind)} == before
    assert len(before) > 60


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "usage: python -m pipelines.transfer CONFIG"),
        (["absent.toml"], "absent.toml cannot be read"),
        (["configs/transfer_smoke.toml", "headline=nobody"], "headline must be one of"),
    ],
)
def test_mistakes_are_told_and_end_with_the_code_of_usage(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert transfer.main(arguments) == 2
    assert words in capsys.readouterr().err


TRUE_GRID = """
folder = "{folder}"

[simulate]
folder = "{folder}/world"
scale = {scale}
truncation = 31
time_steps = [30]
spin_up_days = 45
separation_days = 0
chunk_days = 1
keep_fine = ["test"]
workers = 1

[[simulate.members]]
seed = 1
start = 2000-01-01T00:00:00
segments = [{{ split = "train", days = 1 }}, {{ split = "validation", days = 1 }}, {{ split = "test", days = 2 }}]

[pretrain]
backbone = {{ size = "{size}" }}
validation_windows = 1

[pretrain.train]
samples = 3
batch = 1
warmup_steps = 1
learning_rate = 1e-4
"""


@pytest.mark.parametrize(
    ("scale", "size"),
    [
        pytest.param(20, "ghr-tiny", marks=pytest.mark.slow),
        pytest.param(1, "ghr-small", marks=pytest.mark.full),
    ],
)
def test_a_backbone_of_area_means_forecasts_the_fine_grid(tmp_path: Path, scale: int, size: str) -> None:
    """A few steps of training, then a day by the split: every file is there and every score a number."""
    config = tmp_path / "config.toml"
    config.write_text(TRUE_GRID.format(folder=tmp_path / "run", scale=scale, size=size))
    rmse = true_grid.run(config, []).scores["rmse"].sel(region="globe", lead=24)
    assert rmse["channel"].values.tolist() == list(HEADLINE)
    assert bool(np.isfinite(rmse).all())
    world = World.open(tmp_path / "run" / "world")
    assert [world.series(split)[0].has_fine for split in world.splits] == [False, False, True]
