"""A step of a large model on a GPU: its time against what arithmetic alone would take, part by part, and its memory.

    python -m benchmarks.gpu [--model ghr-4b-0p09] [--precision bfloat16] [--steps 10] [--paging] [--compile]

Weights are random and made on the device. Without a CUDA device it says so and ends; `--device cpu` with a small model
shows that it works.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.passport import best_of, passport
from fengwu_ghr.backbone import architecture
from fengwu_ghr.checkpoint import Checkpoint
from fengwu_ghr.config import RunConfig
from fengwu_ghr.engine.outgoing import Handover
from fengwu_ghr.engine.sharded import open_stepper
from fengwu_ghr.engine.torch_engine import PRECISIONS, TorchStepper, flops_per_step
from fengwu_ghr.forecast import ForecastRun, Prepared, open_store
from fengwu_ghr.grib.decode import read_analysis
from fengwu_ghr.model_card import ModelCard, Statistics
from fengwu_ghr.normalise import standard_statistics
from fengwu_ghr.preflight import ForecastPlan, plan_forecast
from fengwu_ghr.synthetic import write_synthetic_analysis
from fengwu_ghr.transfer import TransferModel
from fengwu_ghr.variables import channel_set

CHANNELS = "ghr-69"
SCALES = {"0p09": 1, "0p9": 10, "1p8": 20}
FLOOR_AIM, WALL_AIM, MEMORY_AIM, PAGED_AIM = 1.35, 1.10, 12.0, 16.0
GIB = 2**30


class Untrained(Checkpoint):
    """A checkpoint without files: its weights are made where they are wanted."""

    digest = "random weights"  # type: ignore[assignment]

    @classmethod
    def of(cls, model: str) -> "Untrained":
        size, grid = model.rsplit("-", 1)
        channels = channel_set(CHANNELS)
        shape = architecture(size, scale=SCALES[grid], channels=len(channels))
        statistics = Statistics.of(channels, standard_statistics(channels.channels))
        card = ModelCard(
            name=model, description="random weights", trained=False, licence="CC0-1.0", channel_set=CHANNELS,
            registration="nested", architecture=shape, statistics=statistics,
        )  # fmt: skip
        return cls(Path(), card)


def random_model(
    checkpoint: Checkpoint, *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> TransferModel:
    """In place of `load_model`: numbers of the right size, tendencies small."""
    with torch.device("meta"):
        model = TransferModel(checkpoint.architecture)
    model = model.to(dtype).to_empty(device=device)
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            reach = 0.01 if "deconvolution" in name else 1.0
            weight.data.uniform_(-1, 1).mul_(reach * (3 / weight[0].numel()) ** 0.5)
        else:
            weight.data.fill_(float(name.endswith("weight")))
    return model.eval()


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def ceiling(device: str, precision: str) -> float:
    """FLOP/s of the best of a few large matrix products."""
    side = 8192 if device == "cuda" else 768
    a = torch.ones(side, side, dtype=PRECISIONS[precision], device=device)

    def products() -> None:
        for _ in range(4):
            a @ a
        wait(device)

    products()
    return 4 * 2 * side**3 / best_of(products, 5)


@dataclass
class Parts:
    """Seconds by part of a step; the device is waited for before and after each."""

    device: str
    seconds: dict[str, float] = field(default_factory=dict)
    _began: float = 0.0

    def over(self, model: TransferModel) -> list[torch.utils.hooks.RemovableHandle]:
        named: list[tuple[str, nn.Module]] = [
            ("embed", model.backbone.patch),
            ("decoder", model.backbone.decoder),
        ]
        blocks = model.backbone.blocks
        named += [("global blocks" if block.window is None else "window blocks", block) for block in blocks]
        named += [("RES", block) for block in model.res]
        handles = []
        for part, module in named:
            handles.append(module.register_forward_pre_hook(self._begin, prepend=True))
            handles.append(module.register_forward_hook(partial(self._end, part)))
        return handles

    def _begin(self, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        wait(self.device)
        self._began = time.perf_counter()

    def _end(self, part: str, module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        wait(self.device)
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - self._began


@dataclass
class Measured:
    step: float
    parts: dict[str, float]
    wall: float
    peak: float | None


class Clock:
    """A reporter that knows when stepping began."""

    began = 0.0

    def note(self, text: str) -> None:
        return

    def begin(self, done: int, total: int) -> None:
        self.began = time.perf_counter()

    def stepped(self, done: int, lead: timedelta) -> None:
        return


def measure(plan: ForecastPlan, stepper: TorchStepper, steps: int) -> Measured:
    device = plan.config.compute.device
    with open_store(plan, overwrite=True) as store:
        clock = Clock()
        run = ForecastRun(plan, store, clock)
        store.begin_run(plan.initial_time, {})
        analyses = [read_analysis(analysis) for analysis in plan.analyses]
        states = [run.master(analysis) for analysis in analyses]
        stepper.put(states, plan.initial_time)
        step = _seconds_per_step(stepper, steps, device)
        parts = _parts(stepper, device, step) | _products(run, stepper, states, plan)
        prepared = Prepared(analyses, plan.compute)
        run.compute(prepared, stepper)
        wall = time.perf_counter() - clock.began
        parts["products and store of a lead"] = run.clock.seconds["write"] / len(plan.leads)
    peak = torch.cuda.max_memory_reserved() / GIB if device == "cuda" else None
    return Measured(step, parts, wall, peak)


def _seconds_per_step(stepper: TorchStepper, steps: int, device: str) -> float:
    stepper.step(0)
    wait(device)
    start = time.perf_counter()
    for index in range(steps):
        stepper.step(index)
    wait(device)
    return (time.perf_counter() - start) / steps


def _parts(stepper: TorchStepper, device: str, step: float) -> dict[str, float]:
    """Of one step; what is in no part is the rest: gathering, adding, rows beyond the poles, looking for NaN."""
    parts = Parts(device)
    handles = parts.over(stepper._model)
    stepper.step(0)
    for handle in handles:
        handle.remove()
    return parts.seconds | {"rest": max(0.0, step - sum(parts.seconds.values()))}


def _products(run: ForecastRun, stepper: TorchStepper, states: list, plan: ForecastPlan) -> dict[str, float]:
    """One state to the host, and to product fields."""
    handover = Handover(stepper, states)

    def transfer() -> None:
        stepper.step(0)
        wait(plan.config.compute.device)
        times.append(_timed(lambda: handover.take(lambda: None)[1]()))

    times: list[float] = []
    for _ in range(3):
        transfer()
    encode = _timed(lambda: [run.predicted(states[-1], channel) for channel in plan.channels])
    return {"transfer to the host": min(times), "products of a lead, one thread": encode}


def _timed(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def report(plan: ForecastPlan, found: Measured, steps: int, top: float) -> None:
    work = flops_per_step(plan.checkpoint.architecture)
    floor, reached = work / top, work / found.step
    weights = plan.memory.device_parts.get("weights", 0) / GIB
    paging = plan.config.compute.paging
    rows = [
        ("step", f"{found.step:.3f} s", ""),
        ("arithmetic of a step", f"{work / 1e12:.3g} TFLOP", ""),
        ("measured ceiling of matrix products", f"{top / 1e12:.3g} TFLOP/s", ""),
        ("reached", f"{reached / 1e12:.3g} TFLOP/s, {100 * reached / top:.0f} % of the ceiling", ""),
        ("step over arithmetic floor", f"{found.step / floor:.2f}", f"<= {FLOOR_AIM}"),
        (
            f"wall of {steps} steps with Zarr over compute",
            f"{found.wall / (steps * found.step):.2f}",
            f"<= {WALL_AIM}",
        ),
        *[(f"- {part}", f"{1000 * seconds:.1f} ms", "") for part, seconds in found.parts.items()],
    ]
    if found.peak is not None:
        aim = PAGED_AIM if paging else weights + MEMORY_AIM
        rows.append(("device memory, peak", f"{found.peak:.1f} GiB", f"<= {aim:.1f} GiB"))
        rows.append(("device memory, planned", f"{plan.memory.device_peak / GIB:.1f} GiB", ""))
    print("| what | measured | aim |\n|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    device = torch.cuda.get_device_name() if found.peak is not None else "cpu"
    compute = plan.compute
    options = [name for name in ("compile", "cuda_graphs", "paging") if getattr(compute, name)]
    words = [plan.checkpoint.card.name, device, compute.precision, f"batch {compute.batch}", *options]
    print("\n" + passport(grid=", ".join(words)))


@contextmanager
def made_on_the_device(device: str) -> Iterator[None]:
    """Steppers take random weights, made where they are wanted."""
    with patch("fengwu_ghr.engine.torch_engine.load_model", random_model):
        yield


def configuration(arguments: argparse.Namespace, folder: Path) -> RunConfig:
    write_synthetic_analysis(folder / "analysis.grib2")
    options = ("device", "precision", "paging", "compile", "cuda_graphs")
    return RunConfig.model_validate(
        {
            "model": {"name": arguments.model},
            "input": {"files": [folder / "analysis.grib2"]},
            "forecast": {"lead_time_hours": 6 * arguments.steps},
            "output": {"zarr": folder / "run.zarr", "overwrite": True},
            "compute": {name: getattr(arguments, name) for name in options},
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="ghr-4b-0p09", help=f"an architecture and a grid of {', '.join(SCALES)}"
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--precision", default="bfloat16", choices=tuple(PRECISIONS))
    parser.add_argument("--steps", type=int, default=10)
    for option in ("--paging", "--compile", "--cuda-graphs"):
        parser.add_argument(option, action="store_true")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the store goes; default: a temporary folder"
    )
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("this benchmark needs a CUDA device, and torch sees none here; nothing was measured")
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        config = configuration(arguments, Path(folder))
        plan = plan_forecast(config, checkpoint=Untrained.of(arguments.model))
        with made_on_the_device(arguments.device):
            stepper = open_stepper(plan.checkpoint, plan.compute)
        assert isinstance(stepper, TorchStepper)
        found = measure(plan, stepper, arguments.steps)
        report(plan, found, arguments.steps, ceiling(arguments.device, arguments.precision))


if __name__ == "__main__":
    main()
