"""Preflight: everything that can be known before work starts, and every reason not to start.

Planning opens the checkpoint, reads the headers of the input, works out memory, disk and time, and encodes every
output template once. It writes nothing but caches.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from fengwu_ghr.catalogue import resolve_model
from fengwu_ghr.checkpoint import Checkpoint
from fengwu_ghr.config import ComputeSection, ForecastSection, RunConfig
from fengwu_ghr.engine import engines
from fengwu_ghr.engine.torch_engine import Compute, check_compute, check_machine, measured_flops_per_second
from fengwu_ghr.errors import OutputError, UsageError
from fengwu_ghr.export import check_netcdf
from fengwu_ghr.grib.decode import AnalysisPlan, plan_analysis
from fengwu_ghr.grib.encode import check_templates
from fengwu_ghr.grid import LatLonGrid
from fengwu_ghr.machine import usable_cores
from fengwu_ghr.memory_plan import (
    MemoryPlan,
    compute_in_words,
    compute_of,
    device_facts,
    in_gibibytes,
    memory_of,
    named_compute,
    output_threads,
    plan_memory,
)
from fengwu_ghr.store import StorePlan
from fengwu_ghr.target import is_store
from fengwu_ghr.variables import Channel, variable

GRIB_BYTES_PER_VALUE = 1.3
"""What 16-bit CCSDS takes: typical of analyses, on the safe side."""
COMPUTE_EFFICIENCY = 0.2
"""Of a large matrix product's speed, what a whole step reaches."""


@dataclass(frozen=True, eq=False)
class ForecastPlan:
    """A forecast that can start: what is computed, what is kept, what it takes."""

    config: RunConfig
    checkpoint: Checkpoint
    analyses: tuple[AnalysisPlan, ...]
    channels: tuple[Channel, ...]
    grid: LatLonGrid
    rows: slice
    columns: Int64[np.ndarray, " column"]
    leads: tuple[timedelta, ...]
    memory: MemoryPlan
    threads: int
    season: tuple[datetime, ...] = ()
    """The initial times of the run store, where it holds more than this one."""

    @property
    def initial_time(self) -> datetime:
        return self.analyses[-1].valid_time

    @property
    def step(self) -> timedelta:
        return self.checkpoint.step

    @property
    def steps(self) -> int:
        """Steps up to the last lead that is kept or verified."""
        last = self.config.lead_time if self.config.is_verified_online else self.leads[-1]
        return last // self.step

    @property
    def store(self) -> StorePlan:
        return StorePlan(
            channels=self.channels,
            grid=self.grid,
            initial_times=self.season or (self.initial_time,),
            leads=self.leads,
            keep_bits=self.config.forecast.keep_bits,
        )

    @property
    def output_threads(self) -> int:
        """Threads that turn a state into products; each holds a few fields."""
        return output_threads(self.config.compute, self.threads)

    def memory_with(self, batch: int) -> MemoryPlan:
        """The memory of this forecast with another batch of sub-fields."""
        return memory_of(batch, self.checkpoint, self.analyses, self.config, threads=self.output_threads)

    def computed_by(self, compute: ComputeSection) -> "ForecastPlan":
        """The same forecast with other threads or another budget; the input is not read again. Raises ResourceError."""
        threads = compute.threads or usable_cores()
        plan = replace(self, config=self.config.model_copy(update={"compute": compute}), threads=threads)
        memory = plan_memory(plan.checkpoint, plan.analyses, plan.config, threads=plan.output_threads)
        return replace(plan, memory=memory)

    @property
    def disk_bytes(self) -> int:
        """Of all products and of the two restart slots."""
        values = len(self.channels) * len(self.leads) * self.grid.points
        times = len(self.store.initial_times)
        grib = GRIB_BYTES_PER_VALUE * values * times if self.config.output.grib else 0
        netcdf = self.store.predicted_bytes if self.config.output.netcdf else 0
        rows, columns = self.checkpoint.grid.shape
        restart = 2 * self.checkpoint.history * 4 * rows * columns * len(self.checkpoint.channels)
        return int(self.store.predicted_bytes + grib + netcdf + restart)

    @property
    def compute(self) -> Compute:
        return compute_of(self.config.compute, self.checkpoint, self.threads, self.memory.batch)

    def facts(self) -> list[tuple[str, str]]:
        """The plan in words, one line per property."""
        hours = [lead // timedelta(hours=1) for lead in self.leads]
        parts = in_gibibytes(self.memory.parts)
        trained = "" if self.checkpoint.card.trained else " (untrained: its forecasts have no skill)"
        return [
            ("model", f"{self.checkpoint.card.name}{trained}"),
            ("initial time", f"{self.initial_time:%Y-%m-%d %H} UTC"),
            ("input", _origin(self.analyses[-1])),
            ("leads", f"{len(hours)} kept, +{hours[0]} ... +{hours[-1]} h, {self.steps} steps"),
            ("products", f"{len(self.channels)} channels on {self.grid}"),
            ("disk", f"about {self.disk_bytes / 1e9:.2f} GB"),
            ("memory", f"{self.memory.peak / 2**30:.2f} of {self.memory.budget / 2**30:.2f} GiB ({parts})"),
            *device_facts(self.memory),
            ("compute", f"{self._how_computed}, {compute_in_words(self.compute)}"),
            ("time", f"about {self.seconds_per_step:.3g} s a step" if self.seconds_per_step else "unknown"),
        ]

    @property
    def _how_computed(self) -> str:
        memory, device = self.memory, self.config.compute.device
        weights = memory.weight_bytes
        return engines.plan_in_words(self.checkpoint, memory.batch, device=device, weight_bytes=weights)

    @cached_property
    def seconds_per_step(self) -> float:
        """A guess before the first step: counted operations over what a matrix product reaches here; 0 for unknown."""
        reached = COMPUTE_EFFICIENCY * measured_flops_per_second(self.compute)
        return engines.flops_per_step(self.checkpoint) / reached


def plan_forecast(
    config: RunConfig,
    *,
    try_encoding: bool = False,
    checkpoint: Checkpoint | None = None,
    season: tuple[datetime, ...] = (),
    is_here: bool = True,
) -> ForecastPlan:
    """The plan of a forecast; `try_encoding` encodes every product once even where no GRIB is asked for.

    A `checkpoint` that is open already is not opened again; `season` are the initial times of its run store;
    where the forecast is not computed here, devices are not looked for.
    Raises the error that the forecast would end with, where it can be foreseen.

    UsageError for options, InputError for the input, ResourceError for memory, OutputError for the disk,
    ConformanceError for an output that cannot be encoded.
    """
    threads = config.compute.threads or usable_cores()
    check_compute(named := named_compute(config.compute, threads))
    if is_here:
        check_machine(named)
    checkpoint = checkpoint or Checkpoint.open(resolve_model(config.model.name))
    engines.check(checkpoint, named)
    if is_here:
        engines.check_runtime(checkpoint, named)
    channels = select_channels(checkpoint.channels.channels, config.forecast)
    leads = select_leads(config.forecast, step_hours=checkpoint.card.step_hours)
    grid, rows, columns = select_area(checkpoint.grid.product, config.forecast.area)
    analyses = _plan_analyses(config, checkpoint)
    plan = ForecastPlan(
        config=config,
        checkpoint=checkpoint,
        analyses=analyses,
        channels=channels,
        grid=grid,
        rows=rows,
        columns=columns,
        leads=leads,
        memory=plan_memory(checkpoint, analyses, config, threads=output_threads(config.compute, threads)),
        threads=threads,
        season=season,
    )
    _check_targets(plan)
    if config.output.grib or try_encoding:
        check_templates(grid, channels)
    return plan


def select_channels(channels: Sequence[Channel], wanted: ForecastSection) -> tuple[Channel, ...]:
    """The channels whose products are kept; raises UsageError naming what the model does not have."""
    names = {_variable_name(name) for name in wanted.variables}
    unknown = names - {c.variable for c in channels}
    if unknown:
        known = ", ".join(dict.fromkeys(c.variable for c in channels))
        raise UsageError(f"the model has no {', '.join(sorted(unknown))}; it has {known}")
    levels = {c.level for c in channels if c.level}
    if set(wanted.levels) - levels:
        missing = ", ".join(str(level) for level in sorted(set(wanted.levels) - levels))
        raise UsageError(
            f"the model has no level {missing} hPa; it has {', '.join(map(str, sorted(levels)))}"
        )
    kept = tuple(
        c
        for c in channels
        if (not names or c.variable in names)
        and (not wanted.levels or not c.level or c.level in wanted.levels)
    )
    if not kept:
        raise UsageError("variables and levels together leave no field to keep")
    return kept


def select_leads(wanted: ForecastSection, *, step_hours: int) -> tuple[timedelta, ...]:
    """The leads that are kept, the analysis (lead 0) among them unless leads are named."""
    hours = wanted.leads_hours or range(0, wanted.lead_time_hours + 1, step_hours)
    wrong = [h for h in hours if h % step_hours or not 0 <= h <= wanted.lead_time_hours]
    if wrong or wanted.lead_time_hours % step_hours:
        what = (
            f"leads {', '.join(map(str, wrong))}" if wrong else f"a lead time of {wanted.lead_time_hours} h"
        )
        raise UsageError(
            f"the model steps by {step_hours} h: lead time and leads are multiples of {step_hours} h, and leads lie "
            f"within the lead time of {wanted.lead_time_hours} h; got {what}"
        )
    if not any(hours):
        raise UsageError("name at least one lead after the initial time; got only 0")
    return tuple(timedelta(hours=h) for h in sorted(set(hours)))


def select_area(
    grid: LatLonGrid, area: tuple[float, float, float, float] | None
) -> tuple[LatLonGrid, slice, Int64[np.ndarray, " column"]]:
    """The part of the product grid that is kept, and its rows and columns."""
    if area is None:
        return grid, slice(0, grid.shape[0]), np.arange(grid.shape[1], dtype=np.int64)
    try:
        rows, columns = grid.crop(*area)
    except ValueError as error:
        raise UsageError(f"the area is empty: {error}") from None
    west = area[1]
    tolerance = 1e-9  # that of `crop`: a column on the western edge must not come out a turn later
    longitude = np.round(west - tolerance + np.mod(grid.longitude[columns] - west + tolerance, 360), 8)
    return LatLonGrid(grid.latitude[rows], longitude, f"{grid.name} area"), rows, columns


def _origin(analysis: AnalysisPlan) -> str:
    files = len({field.path for field in analysis.fields})
    derived = sorted({recipe.rule.split(";")[0] for recipe in analysis.recipes if recipe.rule})
    text = f"{len(analysis.fields)} fields from {files} {'file' if files == 1 else 'files'}"
    if analysis.lead_of_input:
        text += f", a forecast at +{analysis.lead_of_input // timedelta(hours=1)} h"
    return f"{text}; derived: {', '.join(derived)}" if derived else text


def _variable_name(name: str) -> str:
    try:
        return variable(name).name
    except ValueError as error:
        raise UsageError(str(error)) from None


def _plan_analyses(config: RunConfig, checkpoint: Checkpoint) -> tuple[AnalysisPlan, ...]:
    """One per time the model needs, oldest first."""
    channels, files = checkpoint.channels.channels, config.input.files
    lags = [age * checkpoint.step for age in range(checkpoint.history - 1, 0, -1)]
    newest = plan_analysis(files, channels, initial_time=config.input.time, earlier=lags)
    before = [plan_analysis(files, channels, initial_time=newest.valid_time - lag) for lag in lags]
    return (*before, newest)


def _check_targets(plan: ForecastPlan) -> None:
    """Every output can be written where it is asked for, and the disk has room for it."""
    output = plan.config.output
    if output.netcdf:
        check_netcdf()
    for target in filter(None, (output.zarr, output.grib, output.netcdf)):
        _check_writable(target)
    free = free_bytes(_existing(output.zarr))
    if not is_store(output.zarr) and plan.disk_bytes > free:
        raise OutputError(
            f"the run will take about {plan.disk_bytes / 1e9:.3g} GB, {_existing(output.zarr)} has {free / 1e9:.3g} GB "
            "free; make room, or thin the products with --variables, --levels, --leads, --area or --keep-bits"
        )


def _check_writable(target: Path) -> None:
    existing = _existing(target)
    if not existing.is_dir() and existing != target.absolute():
        raise OutputError(
            f"{existing} is no folder, so {target} cannot be made in it; choose another --output"
        )
    if not os.access(existing, os.W_OK):
        raise OutputError(
            f"{existing} is not writable, so {target} cannot be made there; choose another --output"
        )


def _existing(target: Path) -> Path:
    """The nearest of the target and the folders above it that is there."""
    path = target.absolute()
    return next(p for p in (path, *path.parents) if p.exists())


def free_bytes(path: Path) -> int:
    """What the file system at `path` still takes."""
    return shutil.disk_usage(path).free
