"""The whole job at the true grid: four steps, Zarr out. Wall time against its parts, memory of all processes.

    python -m benchmarks.forecast --input analysis.grib2 [--grib] [--model ghr-tiny-0p09] [--steps 4]

Without --input the embedded analysis is used. The rival of the overlapped run is the same work one after the other:
computing alone plus writing alone.
"""

import argparse
import json
import sys
import tempfile
import time
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.memory import run_watched
from benchmarks.passport import passport
from fengwu_ghr.config import RunConfig
from fengwu_ghr.engine.torch_engine import TorchStepper
from fengwu_ghr.forecast import ForecastRun, open_store, run_forecast
from fengwu_ghr.grib.decode import read_analysis
from fengwu_ghr.outputs import Outputs
from fengwu_ghr.preflight import plan_forecast
from fengwu_ghr.synthetic import write_synthetic_analysis


class Stopwatch:
    """Hears when stepping begins; the rest of the run is the loop that is measured."""

    def __init__(self) -> None:
        self.began = 0.0

    def note(self, text: str) -> None:
        print(text, file=sys.stderr)

    def begin(self, done: int, total: int) -> None:
        self.began = time.perf_counter()

    def stepped(self, done: int, lead: timedelta) -> None:
        print(f"step {done}", file=sys.stderr)


def overlapped(config: RunConfig) -> dict[str, float]:
    """The run as users have it: seconds of the whole and of its loop."""
    start, watch = time.perf_counter(), Stopwatch()
    run_forecast(config, reporter=watch)
    end = time.perf_counter()
    return {"whole": end - start, "loop": end - watch.began}


def compute_alone(config: RunConfig) -> dict[str, float]:
    """The same steps with nobody writing."""
    plan = plan_forecast(config)
    with open_store(plan, overwrite=True) as store:
        run = ForecastRun(plan, store, Stopwatch())
        stepper = TorchStepper(plan.checkpoint, plan.compute)
        states = [run.master(read_analysis(a)) for a in plan.analyses]
    stepper.put(states, plan.initial_time)
    start = time.perf_counter()
    for index in range(plan.steps):
        stepper.step(index)
        stepper.get(states[-1])
    return {"loop": time.perf_counter() - start}


def output_alone(config: RunConfig) -> dict[str, float]:
    """The same leads with nobody computing."""
    plan = plan_forecast(config)
    with open_store(plan, overwrite=True) as store:
        run = ForecastRun(plan, store, Stopwatch())
        state = run.master(read_analysis(plan.analyses[-1]))
        store.begin_run(plan.initial_time, {})
        outputs = Outputs(run.sinks(), plan.channels, threads=plan.output_threads)
        start = time.perf_counter()
        for lead in plan.leads:
            outputs.submit(lead, partial(run.predicted, state))
        outputs.wait()
        seconds = time.perf_counter() - start
        outputs.close()
    return {"loop": seconds}


MODES = {f.__name__: f for f in (overlapped, compute_alone, output_alone)}


def in_process_of_its_own(mode: str, config: RunConfig) -> dict[str, float]:
    """The mode's seconds, and the peak of the memory of all its processes together, in GiB."""
    printed, peak = run_watched(
        [sys.executable, "-m", "benchmarks.forecast", "--mode", mode, "--config", config.model_dump_json()]
    )
    return json.loads(printed.splitlines()[-1]) | {"peak": peak / 2**30}


def config_of(arguments: argparse.Namespace, folder: Path, name: str) -> RunConfig:
    files = arguments.input or [folder / "analysis.grib2"]
    if not arguments.input and not files[0].exists():
        write_synthetic_analysis(files[0])
    return RunConfig.model_validate(
        {
            "model": {"name": arguments.model},
            "input": {"files": files},
            "forecast": {"lead_time_hours": 6 * arguments.steps},
            "output": {
                "zarr": folder / f"{name}.zarr",
                "grib": folder / name if arguments.grib else None,
                "overwrite": True,
            },
            "compute": {"memory_budget": arguments.memory_budget},
        }
    )


def report(times: dict[str, dict[str, float]], arguments: argparse.Namespace) -> None:
    both = times["compute_alone"]["loop"] + times["output_alone"]["loop"]
    loop = times["overlapped"]["loop"]
    print("| what | seconds | peak of all processes |")
    print("|---|---|---|")
    for mode, found in times.items():
        print(
            f"| {mode.replace('_', ' ')}, {arguments.steps} steps | {found['loop']:.1f} | {found['peak']:.2f} GiB |"
        )
    print(f"| whole run, from reading to the last commit | {times['overlapped']['whole']:.1f} | |")
    print(f"\noverlapped / (compute alone + output alone) = {loop / both:.3f} (aim <= 1.05)\n")
    print(passport(grid=f"{arguments.model}, 69 channels, float32, {arguments.steps} steps of 6 h"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, nargs="*", default=[])
    parser.add_argument("--model", default="ghr-tiny-0p09")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--grib", action="store_true")
    parser.add_argument("--memory-budget", default="12GiB")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the products go; default: a temporary folder"
    )
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--config", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.mode:
        config = RunConfig.model_validate_json(arguments.config)
        print(json.dumps(MODES[arguments.mode](config)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        times = {m: in_process_of_its_own(m, config_of(arguments, Path(folder), m)) for m in MODES}
    report(times, arguments)


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    main()
