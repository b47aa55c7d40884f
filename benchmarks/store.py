"""Writing one lead of 74 fields of 2001 x 4000 as compressed Zarr: the run store against what it could be built on.

`python -m benchmarks.store [--channels 74] [--rounds 3] [--folder DIR]`. The rivals write the same fields in as many
threads as there are cores, with the same codec, shards and chunks; earth2studio makes every field one chunk and has
no threads of its own. It is measured where `$FENGWU_GHR_PEERS` or `.venv-peers/bin/python` is the Python of an
environment that has it.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
import zarr
from zarr.codecs import BloscCodec

from benchmarks.passport import passport
from fengwu_ghr.durable import flush_tree
from fengwu_ghr.grid import LatLonGrid, product_grid
from fengwu_ghr.store import RunStore, StorePlan
from fengwu_ghr.variables import channel_set

INITIAL_TIME, LEAD = datetime(2024, 1, 1), timedelta(hours=6)
THREADS = os.cpu_count() or 1
PEER_SCRIPT = Path(__file__).parent / "peers" / "earth2studio_zarr.py"
AIM_BYTES_PER_SECOND, AIM_RATIO = 1.5e9, 2.0


@dataclass
class Job:
    """What every rival writes: `channels` fields, the distinct ones of `values` over and over."""

    values: np.ndarray
    file: Path
    channels: int
    grid: LatLonGrid

    @property
    def nbytes(self) -> int:
        return self.channels * self.values[0].nbytes

    def field(self, index: int) -> np.ndarray:
        return self.values[index % len(self.values)]


@dataclass
class Result:
    """Of one rival: its fastest write without and with flushing to the device, least CPU time, size on disk."""

    seconds: dict[bool, float] = field(default_factory=dict)
    cpu_seconds: float = float("inf")
    stored: int = 0

    def add(self, durable: bool, seconds: tuple[float, float], folder: Path) -> None:
        self.seconds[durable] = min(seconds[0], self.seconds.get(durable, seconds[0]))
        self.cpu_seconds = min(self.cpu_seconds, seconds[1])
        self.stored = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


Rival = Callable[[Job, Path, bool], tuple[float, float]]
"""Writes the job to a new folder, durably or not; returns the seconds of wall clock and of CPU it took."""


class Clock:
    """Runs from when it is made."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def seconds(self) -> tuple[float, float]:
        """Of wall clock, and of CPU in all threads."""
        return time.perf_counter() - self._start[0], time.process_time() - self._start[1]


def fields(grid: LatLonGrid) -> np.ndarray:
    """Four seeded fields: waves of geopotential, temperature, wind and humidity with correlated small-scale noise.

    Every bit of float32 is used, as in what a network or an interpolation gives.
    """
    rng = np.random.default_rng(0)
    latitude, longitude = grid.latitude[:, None], grid.longitude
    made = []
    for k, (mean, wave, noise) in enumerate(
        ((5.5e4, 3e3, 8), (280, 25, 0.3), (0, 12, 0.4), (5e-3, 4e-3, 2e-4))
    ):
        smooth = np.sin(np.deg2rad(latitude) * (2 + k)) * np.cos(
            np.deg2rad(longitude) * (3 + k) + latitude / 30
        )
        rough = rng.standard_normal(grid.shape)
        for _ in range(3):
            rough = (rough + np.roll(rough, 1, 0) + np.roll(rough, 1, 1) + np.roll(rough, -1, 1)) / 2.5
        made.append(mean + wave * smooth + noise * rough)
    return np.array(made, np.float32)


def run_store(job: Job, folder: Path, durable: bool) -> tuple[float, float]:
    channels = channel_set("ghr-74").channels[: job.channels]
    plan = StorePlan(channels, job.grid, (INITIAL_TIME,), (LEAD,))
    with (
        RunStore.create(folder, plan, {"title": "benchmark"}, durable=durable) as store,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        store.begin_run(INITIAL_TIME, {"seed": 0})
        clock = Clock()
        writer = store.begin_lead(INITIAL_TIME, LEAD)
        list(pool.map(writer.write, channels, map(job.field, range(job.channels))))
        writer.commit()
        return clock.seconds()


def zarr_python(job: Job, folder: Path, durable: bool) -> tuple[float, float]:
    array = _zarr_array(job, folder)
    with _pipeline("zarr.core.codec_pipeline.BatchedCodecPipeline"):
        return _write_fields(job, folder, durable, array.__setitem__)


def zarrs(job: Job, folder: Path, durable: bool) -> tuple[float, float]:
    with _pipeline("zarrs.ZarrsCodecPipeline"):
        array = _zarr_array(job, folder)
        return _write_fields(job, folder, durable, array.__setitem__)


def tensorstore_alone(job: Job, folder: Path, durable: bool) -> tuple[float, float]:
    _zarr_array(job, folder)
    kvstore = {"driver": "file", "path": f"{folder}/", "file_io_sync": durable}
    array = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, open=True).result()

    def write(index: int, values: np.ndarray) -> None:
        array[index].write(values, can_reference_source_data_indefinitely=True).result()

    return _write_fields(job, folder, False, write)


def earth2studio(job: Job, folder: Path, durable: bool, *, python: str, codec: str) -> tuple[float, float]:
    command = [python, str(PEER_SCRIPT), str(job.file), str(job.channels), str(folder), codec]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    wall, cpu = map(float, done.stdout.split()[-2:])
    clock = Clock()
    if durable:
        flush_tree(folder)
    flushing = clock.seconds()
    return wall + flushing[0], cpu + flushing[1]


def _zarr_array(job: Job, folder: Path) -> Any:
    rows, columns = job.grid.shape
    chunk = -(-rows // 3), -(-columns // 4)
    return zarr.create_array(
        folder,
        shape=(job.channels, rows, columns),
        chunks=(1, *chunk),
        shards=(1, 3 * chunk[0], 4 * chunk[1]),
        dtype="float32",
        fill_value=np.nan,
        compressors=BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", typesize=4),
    )


@contextmanager
def _pipeline(path: str) -> Any:
    with zarr.config.set({"codec_pipeline.path": path}):
        yield


def _write_fields(job: Job, folder: Path, durable: bool, write: Callable[[int, np.ndarray], None]) -> float:
    with ThreadPoolExecutor(THREADS) as pool:
        clock = Clock()
        list(pool.map(write, range(job.channels), map(job.field, range(job.channels))))
        if durable:
            flush_tree(folder)
        return clock.seconds()


def rivals() -> dict[str, Rival]:
    """The run store first, then those that can be measured here, by the name they have in the table."""
    found: dict[str, Rival] = {
        "**run store** (checksums, commit)": run_store,
        "tensorstore": tensorstore_alone,
        "zarr-python": zarr_python,
        "zarr-python, zarrs pipeline": zarrs,
    }
    python = os.environ.get("FENGWU_GHR_PEERS", ".venv-peers/bin/python")
    if shutil.which(python) is None:
        print(
            f"earth2studio is not measured: {python} is no Python; set FENGWU_GHR_PEERS to one that has it\n"
        )
        return found
    return found | {
        "earth2studio ZarrBackend, same codec": partial(earth2studio, python=python, codec="blosc"),
        "earth2studio ZarrBackend, as shipped: no compression": partial(
            earth2studio, python=python, codec="none"
        ),
    }


def measure(job: Job, folder: Path, rounds: int) -> dict[str, Result]:
    """Every rival in turn, round after round, so that a slow minute of the machine meets them all."""
    measured = rivals()
    results = {name: Result() for name in measured}
    for _ in range(rounds):
        for name, rival in measured.items():
            for durable in (False, True):
                target = folder / "target.zarr"
                os.sync()
                results[name].add(durable, rival(job, target, durable), target)
                shutil.rmtree(target)
    return results


def table(results: dict[str, Result], job: Job) -> str:
    """Markdown: GB of uncompressed values per second of wall clock, and how many times the others the run store is."""
    ours = next(iter(results.values()))
    lines = [
        "| writer | GB/s | GB/s with fsync | run store is faster by | with fsync | CPU s per GB | stored / raw |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        speeds = [f"{job.nbytes / result.seconds[durable] / 1e9:.2f}" for durable in (False, True)]
        ratios = [f"{result.seconds[durable] / ours.seconds[durable]:.2f}" for durable in (False, True)]
        rest = [f"{result.cpu_seconds / job.nbytes * 1e9:.2f}", f"{result.stored / job.nbytes:.2f}"]
        lines.append(f"| {name} | {' | '.join(speeds + ratios + rest)} |")
    return "\n".join(lines)


def verdict(results: dict[str, Result], job: Job) -> str:
    """Whether the aims are met."""
    ours = next(iter(results.values())).seconds[False]
    speed = job.nbytes / ours
    said = [_aim(f"{speed / 1e9:.2f} GB/s", speed >= AIM_BYTES_PER_SECOND, "1.5 GB/s without fsync")]
    peers = [result.seconds[False] for name, result in results.items() if name.startswith("earth2studio")]
    if peers:
        ratio = min(peers) / ours
        said.append(_aim(f"{ratio:.2f} x", ratio >= AIM_RATIO, "2 x earth2studio's faster ZarrBackend"))
    return "\n".join(said)


def _aim(value: str, is_met: bool, aim: str) -> str:
    return f"- {'met' if is_met else 'MISSED'}: {value}, aim {aim}"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.store")
    parser.add_argument("--channels", type=int, default=74)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=int, default=1, help="grid steps times so many")
    parser.add_argument(
        "--folder", type=Path, help="on the disk to be measured; default: the temporary folder"
    )
    options = parser.parse_args(arguments)
    grid = product_grid(options.scale)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        job = Job(fields(grid), folder / "fields.npy", options.channels, grid)
        np.save(job.file, job.values)
        results = measure(job, folder, options.rounds)
    print(table(results, job), verdict(results, job), sep="\n\n")
    print()
    print(passport(grid=f"{grid}, {job.channels} channels, {job.nbytes / 1e9:.2f} GB of float32"))


if __name__ == "__main__":
    main(sys.argv[1:])
