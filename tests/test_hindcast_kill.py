"""Client, workers or scheduler killed at any moment: the season ends with the bytes of one that was left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import seasons

DATES = 12


class Cluster:
    """A scheduler and a nanny with its worker, each a process of its own, started again when it is gone."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "scheduler.json"
        self.scheduler: subprocess.Popen[bytes] | None = None
        self.workers: list[subprocess.Popen[bytes]] = []

    def ensure(self) -> str:
        """The address of a scheduler with two workers."""
        if self.scheduler is None or self.scheduler.poll() is not None:
            self.close()
            self.file.unlink(missing_ok=True)
            self.scheduler = self._start("scheduler", "--port", "0", "--dashboard-address", ":0")
        deadline = time.monotonic() + 600  # a busy machine starts processes slowly
        while not self.file.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        while len(self.workers) < 2:
            self.workers.append(self._start("worker", "--nthreads", "2", "--dashboard-address", ":0"))
        return seasons.json.loads(self.file.read_text())["address"]

    def _start(self, kind: str, *options: str) -> subprocess.Popen[bytes]:
        script = "from dask.__main__ import main; import sys; sys.argv[0] = 'dask'; main()"
        command = [sys.executable, "-c", script, kind, "--scheduler-file", str(self.file), *options]
        return subprocess.Popen(
            command, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def victim(self, role: str, client: subprocess.Popen[bytes], moments: random.Random) -> int:
        if role == "client":
            return client.pid
        if role == "scheduler":
            assert self.scheduler is not None
            return self.scheduler.pid
        nanny = psutil.Process(moments.choice(self.workers).pid)
        with suppress(psutil.NoSuchProcess):
            for child in nanny.children():
                if "spawn_main" in " ".join(child.cmdline()):
                    return child.pid
        return nanny.pid

    def close(self) -> None:
        for process in [*self.workers, *([self.scheduler] if self.scheduler else [])]:
            for part in [*_below(process.pid), process.pid]:
                with suppress(ProcessLookupError):
                    os.kill(part, signal.SIGKILL)
            process.wait()
        self.workers, self.scheduler = [], None


def _below(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    started = Cluster(tmp_path)
    yield started
    started.close()


@pytest.fixture(scope="module")
def analyses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seasons.write_analyses(tmp_path_factory.mktemp("analyses"), DATES)


@pytest.fixture(scope="module")
def uninterrupted(analyses: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    config = seasons.write_toml(folder / "season.toml", seasons.season(analyses, folder, DATES))
    start = time.perf_counter()
    seasons.run(config)
    return folder, time.perf_counter() - start


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_any_moment_equals_uninterrupted(
    kills: int, analyses: Path, uninterrupted: tuple[Path, float], cluster: Cluster, tmp_path: Path
) -> None:
    reference, duration = uninterrupted
    expected, expected_gribs = seasons.shards(reference / "season.zarr"), seasons.gribs(reference / "grib")
    assert len(expected_gribs) == DATES * seasons.LEADS * 2
    moments, done = random.Random(20240101), 0
    folder = tmp_path / "season0"
    finished: list[Path] = []
    while done < kills:
        config = seasons.write_toml(folder / "season.toml", seasons.season(analyses, folder, DATES))
        client = subprocess.Popen(
            seasons.command(config, "--scheduler", cluster.ensure()),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        wait = moments.uniform(0.2, 0.9) * duration
        role = "worker"
        while (
            role == "worker" and client.poll() is None and done < kills
        ):  # the farm survives the loss of workers
            with suppress(subprocess.TimeoutExpired):
                client.wait(timeout=wait)
                break
            role = moments.choice(("client", "worker", "scheduler"))
            os.kill(cluster.victim(role, client, moments), signal.SIGKILL)
            done, wait = done + 1, moments.uniform(0.2, 4.0)
        if role == "worker" and done == kills:
            client.kill()
        _, errors = client.communicate()
        if role == "worker" and done < kills:
            assert client.returncode == 0, errors.decode()
        if client.returncode == 0:
            finished.append(folder)
            folder = tmp_path / f"season{len(finished)}"
        else:
            assert client.returncode in (-signal.SIGKILL, 75), errors.decode()
    config = seasons.write_toml(folder / "season.toml", seasons.season(analyses, folder, DATES))
    seasons.run(config)
    for each in [*finished, folder]:
        assert seasons.shards(each / "season.zarr") == expected
        assert seasons.gribs(each / "grib") == expected_gribs
        seasons.check_committed_once(each / "season.zarr", DATES)
