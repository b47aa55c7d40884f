"""Memory: what a forecast holds at its peak, on host and GPU, and how many sub-fields that lets run together."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fengwu_ghr.checkpoint import Checkpoint
from fengwu_ghr.config import ComputeSection, RunConfig
from fengwu_ghr.engine import engines
from fengwu_ghr.engine.device_memory import free_device_bytes
from fengwu_ghr.engine.outgoing import SETS
from fengwu_ghr.engine.precision import fastest_precision
from fengwu_ghr.engine.torch_engine import OPTIONS, Compute, chosen_options
from fengwu_ghr.errors import ResourceError
from fengwu_ghr.grib.decode import AnalysisPlan

BASE_BYTES = 700 * 2**20
"""The process with its libraries, before any field."""
MEMORY_SHARE = 0.8
MOST_OUTPUT_THREADS = 8
CPU_ACTIVATION_BYTES = 2**30
"""More sub-fields at once than fit in this make a step slower on a CPU, not faster (measured at 0.09 degrees)."""
VERIFIED_FIELDS = 12
"""Held by a thread that scores a channel: forecast, truth, climatology, spectra of both."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes the run will hold at its peak, by part, and how many sub-fields that lets run together."""

    parts: dict[str, int]
    batch: int
    budget: int
    device_parts: dict[str, int] = field(default_factory=dict)
    """On one GPU, where there is one; `device_budget` is what is free there, None where that is not known."""
    device_budget: int | None = None

    @property
    def peak(self) -> int:
        return sum(self.parts.values())

    @property
    def device_peak(self) -> int:
        return sum(self.device_parts.values())

    @property
    def weight_bytes(self) -> int:
        """Of weights, where they are computed with."""
        return (self.device_parts or self.parts).get("weights", 0)

    @property
    def fits_device(self) -> bool:
        return self.device_budget is None or self.device_peak <= self.device_budget


def plan_memory(
    checkpoint: Checkpoint, analyses: Sequence[AnalysisPlan], config: RunConfig, *, threads: int
) -> MemoryPlan:
    """The largest useful batch of sub-fields that stays inside the budget; raises ResourceError when none does."""
    batches = engines.batches(checkpoint)
    plans = [memory_of(batch, checkpoint, analyses, config, threads=threads) for batch in batches]
    for plan in plans:
        fits = plan.peak <= plan.budget and plan.fits_device
        if fits and (plan.batch == batches[-1] or _is_useful(plan, config.compute)):
            return plan
    check_device_memory(plan, checkpoint)
    needed = in_gibibytes(plan.parts)
    raise ResourceError(
        f"the memory budget is {plan.budget / 2**30:.2f} GiB, this forecast needs {plan.peak / 2**30:.2f} GiB "
        f"({needed}); raise --memory-budget, or take a smaller model, a coarser scale or fewer --threads"
    )


def memory_of(
    batch: int,
    checkpoint: Checkpoint,
    analyses: Sequence[AnalysisPlan],
    config: RunConfig,
    *,
    threads: int,
) -> MemoryPlan:
    """What a forecast with this many sub-fields at a time holds at its peak."""
    rows, columns = checkpoint.grid.shape
    field = 4 * rows * columns
    state = field * len(checkpoint.channels)
    compute = named_compute(config.compute, threads, batch)
    on_cuda = compute.device == "cuda"
    parts = {
        "process": BASE_BYTES,
        "input fields": sum(analysis.bytes for analysis in analyses),
        "master states": state * checkpoint.history,
        "state being written": state * checkpoint.history * (SETS if on_cuda else 1),
        "fields being written": 8 * field * threads,
        "verification": VERIFIED_FIELDS * field * threads if config.is_verified_online else 0,
    }
    budget = config.compute.memory_budget or int(MEMORY_SHARE * available_memory())
    engine = engines.host_parts(checkpoint, compute, room=budget - sum(parts.values()))
    if (others := compute.ranks - 1) > 0:
        of_one = 0 if on_cuda else parts["master states"] + sum(engine.values())
        parts["other ranks"] = others * (of_one + BASE_BYTES)
    parts |= engine
    if not on_cuda:
        return MemoryPlan(parts, batch, budget)
    free = free_device_bytes("cuda")
    return MemoryPlan(parts, batch, budget, engines.device_parts(checkpoint, compute, room=free), free)


def _is_useful(plan: MemoryPlan, compute: ComputeSection) -> bool:
    return compute.device == "cuda" or plan.parts["activations"] <= CPU_ACTIVATION_BYTES


def check_device_memory(plan: MemoryPlan, checkpoint: Checkpoint) -> None:
    """Raises ResourceError where the GPU has less free than the plan needs."""
    if not plan.fits_device:
        raise ResourceError(
            f"the GPU has {(plan.device_budget or 0) / 2**30:.2f} GiB free, this forecast needs "
            f"{plan.device_peak / 2**30:.2f} GiB there with {plan.batch} of 9 sub-fields at a time "
            f"({in_gibibytes(plan.device_parts)}); {engines.ways_to_fit(checkpoint)}"
        )


def output_threads(compute: ComputeSection, threads: int) -> int:
    """How many threads make and write products while `threads` compute."""
    return compute.output_threads or min(threads, MOST_OUTPUT_THREADS)


def compute_of(section: ComputeSection, checkpoint: Checkpoint, threads: int, batch: int) -> Compute:
    """What these settings come to; with precision auto it is measured, once in a process. Graphs have theirs."""
    compute = named_compute(section, threads, batch)
    if checkpoint.onnx:
        return replace(compute, precision=checkpoint.onnx.precision)
    if section.precision != "auto":
        return compute
    shape = checkpoint.architecture
    rows, columns = shape.token_shape
    found = fastest_precision(section.device, threads, width=shape.width, tokens=rows * columns)
    return replace(compute, precision=found)


def named_compute(section: ComputeSection, threads: int, batch: int = 1) -> Compute:
    """As `compute_of`, without measuring: auto stands for float32, which takes the most memory."""
    precision = "float32" if section.precision == "auto" else section.precision
    options = {name: getattr(section, name) for name in (*OPTIONS, "paging")}
    return Compute(section.device, precision, threads, batch, **options)


def in_gibibytes(parts: Mapping[str, int]) -> str:
    """Sizes by name, those of nothing left out."""
    return ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items() if size)


def device_facts(memory: MemoryPlan) -> list[tuple[str, str]]:
    """The plan of the GPU's memory in words, where there is one."""
    if not memory.device_parts:
        return []
    free = "" if memory.device_budget is None else f" of {memory.device_budget / 2**30:.2f}"
    parts = in_gibibytes(memory.device_parts)
    return [("device memory", f"{memory.device_peak / 2**30:.2f}{free} GiB ({parts})")]


def compute_in_words(compute: Compute) -> str:
    """Threads, precision and what is not left as it is."""
    options = {"paging": compute.paging, **chosen_options(compute)}
    named = [name if value is True else f"{value} {name}" for name, value in options.items() if value]
    return ", ".join([f"{compute.threads} threads", compute.precision, *named])


def available_memory() -> int:
    """Bytes free for this process: of the machine, or of its control group where that is tighter."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with_cache = Path("/proc/meminfo")
    if with_cache.exists():
        lines = dict(line.split(":", 1) for line in with_cache.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        free = min(free, int(text))
    return free
