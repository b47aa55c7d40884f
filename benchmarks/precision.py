"""Precisions against float32 on a CPU: seconds a step, and by how much forecasts differ.

    python -m benchmarks.precision [--model ghr-base-0p9] [--steps 4] [--input analysis.grib2]

float8 is what GPUs have; here it is emulated, so that its difference counts and its time does not.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import numpy as np

from benchmarks.passport import passport
from fengwu_ghr.config import RunConfig
from fengwu_ghr.engine.precision import fastest_precision
from fengwu_ghr.engine.stepper import MasterState
from fengwu_ghr.engine.torch_engine import Compute, TorchStepper
from fengwu_ghr.forecast import ForecastRun, open_store
from fengwu_ghr.grib.decode import read_analysis
from fengwu_ghr.preflight import ForecastPlan, plan_forecast
from fengwu_ghr.synthetic import write_synthetic_analysis

PRECISIONS = ("float32", "bfloat16", "float8")
AIM = 2.5


class Silent:
    """A reporter that nobody hears."""

    def note(self, text: str) -> None:
        return

    def begin(self, done: int, total: int) -> None:
        return

    def stepped(self, done: int, lead: timedelta) -> None:
        return


def states_of(plan: ForecastPlan) -> list[MasterState]:
    """What the forecast starts from."""
    with open_store(plan, overwrite=True) as store:
        run = ForecastRun(plan, store, Silent())
        return [run.master(read_analysis(analysis)) for analysis in plan.analyses]


def forecast(
    plan: ForecastPlan, states: list[MasterState], compute: Compute, steps: int
) -> tuple[float, MasterState]:
    """Seconds of the fastest step, and the last state."""
    stepper, out, times = TorchStepper(plan.checkpoint, compute), np.empty_like(states[-1]), []
    stepper.put(states, plan.initial_time)
    for index in range(steps):
        start = time.perf_counter()
        stepper.step(index)
        times.append(time.perf_counter() - start)
    stepper.get(out)
    return min(times), out


def report(plan: ForecastPlan, steps: int) -> None:
    states = states_of(plan)
    with patch("fengwu_ghr.engine.torch_engine.check_machine"):  # float8 on a CPU
        found = {
            name: forecast(plan, states, replace(plan.compute, precision=name), steps) for name in PRECISIONS
        }
    (exact, reference), start = found["float32"], states[-1]
    change = float(np.sqrt(np.mean(np.square(reference - start, dtype=np.float64))))
    print(
        f"| precision | s a step | float32 over it | rms difference after {steps} steps | of the change so far |"
    )
    print("|---|---|---|---|---|")
    for name, (seconds, state) in found.items():
        rms = float(np.sqrt(np.mean(np.square(state - reference, dtype=np.float64))))
        timed = ("-", "-") if name == "float8" else (f"{seconds:.3f}", f"{exact / seconds:.2f}")
        print(
            f"| {name} | {' | '.join(timed)} | {rms:.2e} standard deviations | {100 * rms / change:.2f} % |"
        )
    rows, columns = plan.checkpoint.architecture.token_shape
    width = plan.checkpoint.architecture.width
    chosen = fastest_precision("cpu", plan.threads, width=width, tokens=rows * columns)
    print(f"\naim: bfloat16 >= {AIM} x where the CPU has AMX; precision auto takes {chosen} here\n")
    print(passport(grid=f"{plan.checkpoint.card.name}, batch {plan.memory.batch}, {plan.threads} threads"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="ghr-base-0p9")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--input", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = arguments.input or [Path(folder, "analysis.grib2")]
        if not arguments.input:
            write_synthetic_analysis(files[0])
        config = RunConfig.model_validate(
            {
                "model": {"name": arguments.model},
                "input": {"files": files},
                "forecast": {"lead_time_hours": 6 * arguments.steps},
                "output": {"zarr": Path(folder, "run.zarr"), "overwrite": True},
            }
        )
        report(plan_forecast(config), arguments.steps)


if __name__ == "__main__":
    main()
