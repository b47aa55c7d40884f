"""One forecast from end to end: plan, ingest, roll out, write; or go on where an earlier attempt stopped."""

import resource
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from fengwu_ghr.config import RunConfig
from fengwu_ghr.engine.stepper import MasterState, Stepper
from fengwu_ghr.engine.torch_engine import TorchStepper, numerics
from fengwu_ghr.errors import UsageError
from fengwu_ghr.export import export_grib, export_netcdf
from fengwu_ghr.grib.decode import Analysis, read_analysis
from fengwu_ghr.grib.encode import GribEncoder
from fengwu_ghr.outputs import GribSink, Outputs, Sink, ZarrSink
from fengwu_ghr.preflight import ForecastPlan, plan_forecast
from fengwu_ghr.regrid import NetworkMap, Regridder
from fengwu_ghr.rollout import RestartSchedule, Start, rollout
from fengwu_ghr.store import RunStore
from fengwu_ghr.variables import Channel, Variable

REUSED_NUMERICS = ("threads", "batch")
"""What a resumed run takes from the manifest instead of from its options."""


@runtime_checkable
class Reporter(Protocol):
    """Hears how a forecast goes; the command line shows it."""

    def note(self, text: str) -> None:
        """One line worth knowing."""

    def begin(self, done: int, total: int) -> None:
        """Stepping starts; `done` of `total` steps lie behind."""

    def stepped(self, done: int, lead: timedelta) -> None:
        """One more step has been computed."""


@dataclass(frozen=True)
class ForecastResult:
    """Where the products are and what they took."""

    store: Path
    grib_files: tuple[Path, ...]
    netcdf: Path | None
    seconds: float
    peak_bytes: int
    was_complete: bool


def run_forecast(
    config: RunConfig, *, reporter: Reporter, plan: ForecastPlan | None = None
) -> ForecastResult:
    """Every kept lead is committed when this returns; it resumes a run that was stopped, byte for byte.

    Raises the errors of `preflight.plan_forecast`; UsageError when the store holds another run or was computed
    with other numerics; OutputError at the lead that could not be written.
    """
    start = perf_counter()
    plan = plan or plan_forecast(config)
    with open_store(plan) as store:
        _check_same_run(plan, store)
        missing = set(plan.leads) - set(store.committed(plan.initial_time))
        if missing:
            ForecastRun(plan, store, reporter).compute()
            store.clear_restart(plan.initial_time)
        else:
            reporter.note(f"{store.path} already holds every lead of this forecast")
        files = _grib_files(plan, store)
        if config.output.netcdf:
            export_netcdf(store.path, config.output.netcdf)
    return ForecastResult(
        store=store.path,
        grib_files=tuple(files),
        netcdf=config.output.netcdf,
        seconds=perf_counter() - start,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        was_complete=not missing,
    )


class ForecastRun:
    """The working parts of one forecast while it runs."""

    def __init__(self, plan: ForecastPlan, store: RunStore, reporter: Reporter) -> None:
        self.plan, self.store, self.reporter = plan, store, reporter
        self.checkpoint = plan.checkpoint
        self.channel_set = plan.checkpoint.channels
        self.map = NetworkMap(plan.checkpoint.grid)
        self.committed = set(store.committed(plan.initial_time))

    def compute(self) -> None:
        """Compute and commit every lead that is missing."""
        analyses = [read_analysis(analysis) for analysis in self.plan.analyses]
        stepper = self._stepper(_provenance(self.plan, analyses))
        outputs = Outputs(self.sinks(), self.plan.channels, threads=self.plan.threads)
        try:
            if timedelta(0) in self._missing():
                outputs.submit(timedelta(0), partial(self.analysed, analyses[-1]))
            start = self._start(analyses)
            del analyses
            self._roll(stepper, start, outputs)
            outputs.wait()
        finally:
            outputs.close()

    def _roll(self, stepper: Stepper, start: Start, outputs: Outputs) -> None:
        buffers = list(start.states)
        schedule = RestartSchedule(sum(b.nbytes for b in buffers))
        self.reporter.begin(start.step, self.plan.steps)
        for step in rollout(stepper, start, steps=self.plan.steps):
            outputs.wait()
            for age, buffer in enumerate(reversed(buffers)):
                stepper.get(buffer, age=age)
            lead = step * self.plan.step
            save = partial(self._save_restart, step, buffers, schedule)
            if lead in self._missing():
                outputs.submit(lead, partial(self.predicted, buffers[-1]), after=save)
            else:
                outputs.run(save)
            self.reporter.stepped(step, lead)

    def _missing(self) -> set[timedelta]:
        return set(self.plan.leads) - self.committed

    def _start(self, analyses: Sequence[Analysis]) -> Start:
        before = min(self._missing()) // self.plan.step - 1
        restart = self.store.load_restart(self.plan.initial_time, max_step=before)
        if restart is not None:
            self.reporter.note(f"resuming after step {restart.step} from the saved state")
            return Start(restart.step, restart.arrays)
        if self.committed:
            self.reporter.note("resuming: computing again from the analysis, committed leads are kept")
        return Start(0, [self.master(analysis) for analysis in analyses])

    def master(self, analysis: Analysis) -> MasterState:
        """The analysis on the network grid, normalised."""
        values = np.empty((len(self.channel_set), *self.checkpoint.grid.shape), np.float32)
        for row, channel in enumerate(self.channel_set.channels):
            source, what = analysis.fields[channel], channel.definition
            values[row] = self.map.from_source(
                source.values, source.grid, is_vector=what.is_vector, smooth=what.is_smooth
            )
            _clip(values[row], what)
        return self.checkpoint.normalisation.normalise(values, out=values)

    def analysed(self, analysis: Analysis, channel: Channel) -> Float32[np.ndarray, "lat lon"]:
        """Lead 0: the ingested analysis itself on the product grid, without the detour over the network grid."""
        source, what = analysis.fields[channel], channel.definition
        to_product = Regridder(source.grid, self.checkpoint.grid.product)
        return self._product(
            to_product.apply(source.values, is_vector=what.is_vector, smooth=what.is_smooth), what
        )

    def predicted(self, state: MasterState, channel: Channel) -> Float32[np.ndarray, "lat lon"]:
        row, what = self.channel_set.index(channel), channel.definition
        field = self.checkpoint.normalisation.denormalise_field(state[row], row)
        return self._product(
            self.map.to_product(field, is_vector=what.is_vector, smooth=what.is_smooth), what
        )

    def _product(
        self, values: Float32[np.ndarray, "row column"], what: Variable
    ) -> Float32[np.ndarray, "lat lon"]:
        """Kept to the variable's bounds, and of the area that is kept."""
        _clip(values, what)
        if self.plan.grid is self.checkpoint.grid.product:
            return values
        return np.ascontiguousarray(values[self.plan.rows][:, self.plan.columns])

    def _save_restart(self, step: int, buffers: Sequence[MasterState], schedule: RestartSchedule) -> None:
        if step == self.plan.steps or not schedule.is_due():
            return
        start = perf_counter()
        self.store.save_restart(self.plan.initial_time, step, buffers)
        schedule.saved(perf_counter() - start)

    def sinks(self) -> list[Sink]:
        """The store comes last: a lead exists only when its other products do."""
        store, folder = ZarrSink(self.store, self.plan.initial_time), self.plan.config.output.grib
        if folder is None:
            return [store]
        return [
            GribSink(
                folder, GribEncoder(self.plan.grid), self.plan.initial_time, channels=self.plan.channels
            ),
            store,
        ]

    def _stepper(self, provenance: dict[str, Any]) -> Stepper:
        """The stepper that the manifest asks for; a new run's numerics are entered there first."""
        recorded = self.store.provenance(self.plan.initial_time)
        compute = self.plan.compute
        if recorded is None:
            self.store.begin_run(self.plan.initial_time, provenance)
            return TorchStepper(self.checkpoint, compute)
        compute = replace(compute, **{name: recorded["numerics"][name] for name in REUSED_NUMERICS})
        self._check_numerics(recorded["numerics"], numerics(compute))
        return TorchStepper(self.checkpoint, compute)

    def _check_numerics(self, recorded: dict[str, Any], now: dict[str, Any]) -> None:
        changed = [
            f"{k}: {recorded.get(k)} -> {now.get(k)}"
            for k in {**recorded, **now}
            if recorded.get(k) != now.get(k)
        ]
        if not changed:
            return
        if not self.plan.config.compute.accept_numerics:
            raise UsageError(
                f"{self.store.path} was begun with other numerics ({'; '.join(changed)}), so the rest would not be "
                "byte-equal; use the recorded ones, or --accept-numerics to go on all the same"
            )
        self.reporter.note(f"going on with other numerics: {'; '.join(changed)}")
        self.store.note_change(self.plan.initial_time, {"numerics": now})


def _grib_files(plan: ForecastPlan, store: RunStore) -> list[Path]:
    """The GRIB files of all leads; those of leads committed without them are made from the store."""
    folder = plan.config.output.grib
    if folder is None:
        return []
    return export_grib(store, plan.initial_time, folder, only_missing=True, threads=plan.threads)


def open_store(plan: ForecastPlan) -> RunStore:
    output = plan.config.output
    card = plan.checkpoint.card
    attributes = {"title": f"{card.name} forecast", "source": card.description, "license": card.licence}
    return RunStore.create(output.zarr, plan.store, attributes, overwrite=output.overwrite)


def _clip(values: Float32[np.ndarray, "row column"], what: Variable) -> None:
    """Keep to the variable's physical bounds, which interpolation and networks overstep."""
    if what.minimum is not None or what.maximum is not None:
        np.clip(values, what.minimum, what.maximum, out=values)


def _identity(plan: ForecastPlan) -> dict[str, Any]:
    """What must be the same when a run is resumed, part by part."""
    return {
        "model": {"name": plan.checkpoint.card.name, "sha256": plan.checkpoint.digest},
        "input files": [list(analysis.files) for analysis in plan.analyses],
        "grid": {"product": plan.grid.key, "network": plan.checkpoint.grid.name},
    }


def _provenance(plan: ForecastPlan, analyses: Sequence[Analysis]) -> dict[str, Any]:
    """All that decides the bytes of the products, and where they come from."""
    return {
        "identity": _identity(plan),
        "inputs": [analysis.provenance for analysis in analyses],
        "code": {"fengwu_ghr": version("fengwu_ghr")},
        "config": plan.config.model_dump(mode="json"),
        "numerics": numerics(plan.compute),
    }


def _check_same_run(plan: ForecastPlan, store: RunStore) -> None:
    """Raises UsageError when the store was begun with another model, input or grid."""
    recorded = store.provenance(plan.initial_time)
    if recorded is None:
        return
    now = _identity(plan)
    changed = [part for part in now if now[part] != recorded["identity"][part]]
    if changed:
        raise UsageError(
            f"{store.path} holds a forecast with another {' and '.join(changed)}; write to another --output, or "
            "replace it with --overwrite"
        )
