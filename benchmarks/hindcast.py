"""What the farm costs and brings: against a loop of `forecast`, with a second worker, and with nothing to compute.

`python -m benchmarks.hindcast [--dates 12] [--leads 40] [--model ghr-demo] [--noops 10000] [--folder DIR]`. The loop is
what a user would write without it: one `fengwu-ghr forecast` after the other over the same analyses. Every process
computes with one thread. A worker decodes and writes in others beside that, so that one alone keeps more than one core
busy: what a second core and a second worker add together is measured from one worker that has one core.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache, partial
from pathlib import Path

from benchmarks.passport import passport
from fengwu_ghr.config import ModelSection
from fengwu_ghr.grid import product_grid
from fengwu_ghr.hindcast.cluster import Host, open_client
from fengwu_ghr.hindcast.farm import Farm
from fengwu_ghr.hindcast.ledger import Ledger, Survey
from fengwu_ghr.hindcast.settings import (
    ClusterSection,
    DatesSection,
    HindcastConfig,
    SeasonInput,
    SeasonOutput,
)
from fengwu_ghr.hindcast.task import Outcome
from fengwu_ghr.store import RunStore, StorePlan
from fengwu_ghr.synthetic import write_synthetic_analysis
from fengwu_ghr.variables import channel

FIRST = datetime(2024, 1, 1)
CLI = [sys.executable, "-m", "fengwu_ghr.cli"]
AIM_OVERHEAD, AIM_TWO_WORKERS, AIM_NOOP, AIM_STATUS = 1.03, 1.8, 0.020, 2.0


def times_of(count: int) -> list[datetime]:
    return [FIRST + timedelta(hours=6 * i) for i in range(count)]


def write_analyses(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for initial_time in times_of(count):
        path = folder / f"{initial_time:%Y%m%d%H}.grib2"
        if not path.exists():
            write_synthetic_analysis(path, initial_time=initial_time)
    return folder


@dataclass(frozen=True)
class Cost:
    """Seconds by the clock, and of processors: where something else runs, those say more."""

    clock: float
    processor: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.clock + other.clock, self.processor + other.processor)

    def over(self, other: "Cost") -> str:
        return (
            f"{self.clock:.1f} s = {self.clock / other.clock:.2f} (processor {self.processor:.1f} s = "
            f"{self.processor / other.processor:.2f})"
        )


def cost(command: list[str], *, cores: set[int] | None = None) -> Cost:
    """Of the command and all that it starts, on these cores, None for all."""
    start, used = time.perf_counter(), _processor_seconds()
    confined = partial(os.sched_setaffinity, 0, cores) if cores else None
    subprocess.run(command, check=True, capture_output=True, preexec_fn=confined)
    return Cost(time.perf_counter() - start, _processor_seconds() - used)


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def loop_of_forecasts(analyses: Path, folder: Path, arguments: argparse.Namespace) -> Cost:
    """One process after the other, as a shell loop runs them."""
    total = Cost(0, 0)
    for initial_time in times_of(arguments.dates):
        stamp = f"{initial_time:%Y%m%d%H}"
        usual = [
            "forecast",
            "--model",
            arguments.model,
            "--lead-time",
            str(6 * arguments.leads),
            "--threads",
            "1",
        ]
        paths = ["--input", f"{analyses}/{stamp}.grib2", "--output", str(folder / f"{stamp}.zarr")]
        total += cost([*CLI, *usual, *paths])
    return total


def farm(
    analyses: Path, folder: Path, arguments: argparse.Namespace, *, workers: int, cores: int | None = None
) -> Cost:
    """The same initial times by `fengwu-ghr hindcast`, start and end of its workers included."""
    config = f"""
[model]
name = "{arguments.model}"
[dates]
first = {FIRST:%Y-%m-%dT%H:%M:%S}
last = {times_of(arguments.dates)[-1]:%Y-%m-%dT%H:%M:%S}
every_hours = 6
[input]
files = ["{analyses}/{{time:%Y%m%d%H}}.grib2"]
[output]
zarr = "{folder}/season-{workers}-{cores}.zarr"
[forecast]
lead_time_hours = {6 * arguments.leads}
[compute]
threads = 1
[cluster]
workers = {workers}
dashboard = ":0"
"""
    path = folder / f"season-{workers}-{cores}.toml"
    path.write_text(config)
    return cost([*CLI, "hindcast", str(path)], cores=set(sorted(os.sched_getaffinity(0))[:cores]))


@lru_cache(maxsize=1)
def _opened(path: Path) -> RunStore:
    return RunStore.open(path)


@dataclass(frozen=True)
class Nothing:
    """Claims an initial time and finishes it, with all that the manifest and the ledger keep, but no fields."""

    store: Path
    wanted: str

    def __call__(self, initial_time: datetime, topic: str) -> Outcome:
        store = _opened(self.store)
        store.claim(initial_time)
        ledger = Ledger(store, self.wanted)
        ledger.began(initial_time)
        store.begin_run(initial_time, {"numerics": {}})
        ledger.finished(initial_time, {"all": 0.0})
        store.release(initial_time)
        return Outcome(initial_time, True)


def nothing_to_compute(folder: Path, count: int) -> tuple[float, float]:
    """Seconds for one of `count` initial times, and of `--status` on the store they leave."""
    times = tuple(FIRST + timedelta(hours=i) for i in range(count))
    config = HindcastConfig(
        model=ModelSection(name="ghr-tiny-1p8"),
        dates=DatesSection(first=times[0], last=times[-1], every_hours=1),
        input=SeasonInput(files=("none",)),
        output=SeasonOutput(zarr=folder / "noops.zarr"),
        cluster=ClusterSection(workers=2, dashboard=":0"),
    )
    plan = StorePlan((channel("2t"),), product_grid(20), times, (timedelta(hours=6),))
    RunStore.create(config.output.zarr, plan, {"hindcast": {}}, write=()).close()
    with open_client(config, Host(workers=2, cores=2, memory=2**32)) as client:
        handed = Farm(client, Nothing(config.output.zarr, config.wanted), stall_seconds=600)
        start = time.perf_counter()
        ended = sum(outcome is not None for outcome in handed.run(deque(times), lambda: False))
        each = (time.perf_counter() - start) / count
    assert ended == count
    assert Survey.of(config).counts["finished"] == count
    path = folder / "noops.toml"
    path.write_text(
        f'[model]\nname = "ghr-tiny-1p8"\n[dates]\nfirst = {times[0]:%Y-%m-%dT%H:%M:%S}\n'
        f"last = {times[-1]:%Y-%m-%dT%H:%M:%S}\nevery_hours = 1\n"
        f'[input]\nfiles = ["none"]\n[output]\nzarr = "{config.output.zarr}"\n'
    )
    return each, cost([*CLI, "hindcast", str(path), "--status"]).clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dates", type=int, default=12)
    parser.add_argument("--leads", type=int, default=40, help="of 6 hours")
    parser.add_argument("--model", default="ghr-demo")
    parser.add_argument("--noops", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="for the stores; default a temporary one")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="hindcast-"))
    try:
        measure(folder, arguments)
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder)


def measure(folder: Path, arguments: argparse.Namespace) -> None:
    analyses = write_analyses(folder / "analyses", arguments.dates)
    loop = loop_of_forecasts(analyses, folder, arguments)
    one = farm(analyses, folder, arguments, workers=1)
    confined, two = (farm(analyses, folder, arguments, workers=n, cores=n) for n in (1, 2))
    each, status = nothing_to_compute(folder, arguments.noops)
    what = f"{arguments.dates} initial times, {arguments.leads} steps"
    print("| what | measured | aim |")
    print("|---|---|---|")
    print(f"| {what}: a loop of `forecast` | {loop.clock:.1f} s (processor {loop.processor:.1f} s) | |")
    print(f"| `hindcast`, one worker, over the loop | {one.over(loop)} | <= {AIM_OVERHEAD} |")
    print(f"| two workers on two cores | {two.clock:.1f} s (processor {two.processor:.1f} s) | |")
    print(f"| over one worker on one core | {confined.clock / two.clock:.2f} x | >= {AIM_TWO_WORKERS} x |")
    print(f"| over one worker that has both | {one.clock / two.clock:.2f} x | |")
    aim = f"<= {1e3 * AIM_NOOP:.0f} ms"
    print(f"| {arguments.noops} initial times, nothing to compute | {1e3 * each:.1f} ms each | {aim} |")
    print(f"| `--status` of those | {status:.2f} s | <= {AIM_STATUS:.0f} s |\n")
    print(passport(grid=f"{arguments.model}, 69 channels, one thread a process, {what}"))


if __name__ == "__main__":
    main()
