"""A run killed at any moment and started again ends with the same bytes as one that was left alone."""

import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from seasons import shards

LEAD_HOURS = 120
LEADS = LEAD_HOURS // 6 + 1


def command(analysis: Path, folder: Path) -> list[str]:
    usual = [sys.executable, "-m", "fengwu_ghr.cli", "forecast", "--model", "ghr-tiny-1p8"]
    paths = ["--input", str(analysis), "--output", str(folder / "run.zarr"), "--grib", str(folder / "grib")]
    return [*usual, *paths, "--lead-time", str(LEAD_HOURS), "--variables", "z,u,2t,msl"]


@pytest.fixture(scope="module")
def uninterrupted(analysis: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    subprocess.run(command(analysis, folder), check=True, capture_output=True)  # makes the model in the cache
    start = time.perf_counter()
    again = folder / "timed"
    subprocess.run(command(analysis, again), check=True, capture_output=True)
    return folder, time.perf_counter() - start


def test_the_leads_differ_so_that_equality_means_something(uninterrupted: tuple[Path, float]) -> None:
    with xr.open_zarr(uninterrupted[0] / "run.zarr") as run:
        z500 = run["z"].sel(level=500).values[0]
    steps = [np.abs(z500[i + 1] - z500[i]).max() for i in range(len(z500) - 1)]
    assert min(steps) > 1
    assert len({field.tobytes() for field in z500}) == len(z500)


@pytest.mark.parametrize("times", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_moment_equals_uninterrupted(
    times: int, analysis: Path, uninterrupted: tuple[Path, float], tmp_path: Path
) -> None:
    reference, duration = uninterrupted
    moments = random.Random(20110115)
    folder, kills = tmp_path / "run0", 0
    finished: list[Path] = []
    told = b""
    while kills < times:
        process = subprocess.Popen(
            command(analysis, folder), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            _, errors = process.communicate(timeout=moments.uniform(0.1, 1.0) * duration)
        except subprocess.TimeoutExpired:
            process.kill()
            told += process.communicate()[1]
            kills += 1
            continue
        assert process.returncode == 0, errors.decode()
        finished.append(folder)
        folder = tmp_path / f"run{len(finished)}"
    told += subprocess.run(command(analysis, folder), check=True, capture_output=True).stderr
    assert times < 20 or b"from the saved state" in told  # at some time a restart slot was used
    expected = shards(reference / "run.zarr")
    assert sum("z/c/" in name or "u/c/" in name for name in expected) == LEADS * 26
    for run in [*finished, folder]:
        assert shards(run / "run.zarr") == expected
        for path in (reference / "grib").iterdir():
            assert (run / "grib" / path.name).read_bytes() == path.read_bytes()
