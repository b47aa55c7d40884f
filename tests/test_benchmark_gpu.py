"""The benchmarks of the engine say what they need, and their tables can be made on any machine."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def _run(*arguments: str) -> str:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300).stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_and_ends_well() -> None:
    assert "needs a CUDA device" in _run("benchmarks.gpu")


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--precision", "float32"), ("--precision", "bfloat16", "--paging")])
def test_the_table_of_a_step_is_made_on_a_cpu_too(options: tuple[str, ...]) -> None:
    printed = _run("benchmarks.gpu", "--device", "cpu", "--model", "ghr-tiny-1p8", "--steps", "2", *options)
    for row in ("step over arithmetic floor", "window blocks", "RES", "decoder", "transfer to the host"):
        assert row in printed


@pytest.mark.slow
def test_the_table_of_precisions_states_differences() -> None:
    printed = _run("benchmarks.precision", "--model", "ghr-tiny-1p8", "--steps", "2")
    assert "| float32 |" in printed
    assert "| float8 | - | - |" in printed
