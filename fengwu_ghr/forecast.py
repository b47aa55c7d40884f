"""One forecast from end to end: plan, ingest, roll out, write; or go on where an earlier attempt stopped."""

import hashlib
import json
import logging
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from fengwu_ghr.config import RunConfig
from fengwu_ghr.engine.engines import numerics, stepper_for
from fengwu_ghr.engine.outgoing import Handover
from fengwu_ghr.engine.stepper import MasterState, Stepper
from fengwu_ghr.engine.torch_engine import Compute
from fengwu_ghr.errors import UsageError
from fengwu_ghr.export import claim_grib_folder, export_grib, export_netcdf
from fengwu_ghr.grib.decode import Analysis, read_analysis
from fengwu_ghr.grib.encode import GribEncoder
from fengwu_ghr.outputs import GribSink, Outputs, ProductField, Sink, ZarrSink
from fengwu_ghr.preflight import ForecastPlan, plan_forecast
from fengwu_ghr.progress import Stopwatch
from fengwu_ghr.regrid import NetworkMap, Regridder
from fengwu_ghr.remap import remap_field
from fengwu_ghr.resume import Attempt, find_attempt, identity, settle_compute
from fengwu_ghr.rollout import RestartSchedule, Start, rollout
from fengwu_ghr.store import RunStore, round_mantissa
from fengwu_ghr.variables import Channel

if TYPE_CHECKING:
    from fengwu_ghr.verify.online import OnlineVerification

LOG = logging.getLogger("fengwu_ghr")


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


def run_forecast(
    config: RunConfig, *, reporter: Reporter, plan: ForecastPlan | None = None
) -> ForecastResult:
    """Every kept lead is committed when this returns; it resumes a run that was stopped, byte for byte.

    Nothing is replaced before input and model have proved readable. Raises the errors of `preflight.plan_forecast`
    and `resume.find_attempt`; OutputError at the lead that could not be written.
    """
    start, output = perf_counter(), config.output
    plan = plan or plan_forecast(config)
    attempt = find_attempt(plan)
    with online_verification(plan, attempt) as watch:
        prepared = prepare(plan, attempt, reporter) if is_due(plan, attempt, watch) else None
        stepper = make_stepper(plan, prepared.compute) if prepared else None
        with open_store(plan, overwrite=attempt.replaces) as store:
            run = ForecastRun(plan, store, reporter, watch)
            files = run.complete(attempt, prepared, stepper)
    if output.netcdf:
        reporter.note(f"writing {output.netcdf}")
        export_netcdf(output.zarr, output.netcdf)
    return ForecastResult(
        store=output.zarr,
        grib_files=tuple(files),
        netcdf=output.netcdf,
        seconds=perf_counter() - start,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def is_due(plan: ForecastPlan, attempt: Attempt, watch: "OnlineVerification | None") -> bool:
    """Whether anything is left to compute."""
    return attempt.committed != set(plan.leads) or bool(watch and watch.due)


@contextmanager
def online_verification(plan: ForecastPlan, attempt: Attempt) -> Iterator["OnlineVerification | None"]:
    """What scores the leads while they are computed; None where that is not asked for.

    Raises the errors of `OnlineVerification`.
    """
    config = plan.config
    if config.verify is None or not config.verify.online:
        yield None
        return
    # Here, since it loads what few forecasts need.
    from fengwu_ghr.verify.online import LeadInMemory, OnlineVerification

    grid, channels = plan.checkpoint.grid.product, plan.checkpoint.channels.channels
    recorded = attempt.recorded if attempt.has_begun else None
    bits = recorded["numerics"] if recorded else numerics(plan.checkpoint, plan.compute)
    decisive = {**identity(plan), "grid": grid.key, "numerics": bits}
    mark = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    name = f"{config.output.zarr.stem} of {plan.checkpoint.card.name}"
    keeps_analysis = plan.leads[0] == timedelta(0) and (plan.grid, plan.channels) == (grid, channels)
    leads = tuple(step * plan.step for step in range(0 if keeps_analysis else 1, plan.steps + 1))
    forecast = LeadInMemory(name, grid, channels, plan.initial_time, leads, mark)
    with OnlineVerification(config.verify, forecast, threads=plan.output_threads) as watch:
        yield watch


@dataclass(frozen=True)
class Prepared:
    """What a forecast begins with: the decoded analyses, oldest first, and how to compute."""

    analyses: list[Analysis]
    compute: Compute


def prepare(plan: ForecastPlan, attempt: Attempt, reporter: Reporter) -> Prepared:
    """The analyses are in memory. Raises InputError, and the errors of `resume.settle_compute`."""
    compute, accepted = settle_compute(plan, attempt)
    if accepted:
        reporter.note(f"going on with other numerics: {'; '.join(accepted)}")
    return Prepared([read_analysis(analysis) for analysis in plan.analyses], compute)


def make_stepper(plan: ForecastPlan, compute: Compute) -> Stepper:
    """The model of this plan, ready to step."""
    return stepper_for(plan.checkpoint, compute, weight_bytes=plan.memory.weight_bytes)


class ForecastRun:
    """The working parts of one forecast while it runs."""

    def __init__(
        self,
        plan: ForecastPlan,
        store: RunStore,
        reporter: Reporter,
        watch: "OnlineVerification | None" = None,
    ) -> None:
        self.plan, self.store, self.reporter, self.watch = plan, store, reporter, watch
        self.clock = Stopwatch()
        self.checkpoint = plan.checkpoint
        self.channel_set = plan.checkpoint.channels
        self.map = NetworkMap(plan.checkpoint.grid)
        self.committed = set(store.committed(plan.initial_time))
        if watch is not None:
            watch.forecast.store = store

    def complete(self, attempt: Attempt, prepared: Prepared | None, stepper: Stepper | None) -> list[Path]:
        """Every kept lead is committed, every lead that is due is scored; the GRIB files.

        Nothing is `prepared` where nothing is left to compute.
        """
        plan, store = self.plan, self.store
        for note in self.watch.notes if self.watch else ():
            self.reporter.note(f"verification: {note}")
        self._claim_grib()
        if prepared is None or stepper is None:
            self.reporter.note(f"{store.path} already holds every lead of this forecast")
        else:
            self._record(attempt, prepared, stepper)
            if self.watch:
                self.watch.begin()
            self.compute(prepared, stepper)
        store.clear_restart(plan.initial_time)
        return self._grib_files()

    def compute(self, prepared: Prepared, stepper: Stepper) -> None:
        """Compute and commit every lead that is missing."""
        threads = self.plan.output_threads
        outputs = Outputs(self.sinks(), self.plan.channels, threads=threads, clock=self.clock)
        try:
            if timedelta(0) in self._missing():
                outputs.submit(timedelta(0), partial(self._kept, self.analysed(prepared.analyses[-1])))
            start = self._start(prepared.analyses)
            prepared.analyses.clear()  # gigabytes at 0.09 degrees; writing lead 0 holds the newest until it is done
            self._roll(stepper, start, outputs)
            outputs.wait()
        finally:
            outputs.close()

    def _roll(self, stepper: Stepper, start: Start, outputs: Outputs) -> None:
        schedule = RestartSchedule(sum(state.nbytes for state in start.states))
        steps = max(self._needed()) // self.plan.step
        self.reporter.begin(start.step, steps)
        handover: Handover | None = None
        for step in self.clock.each("compute", rollout(stepper, start, steps=steps)):
            handover = handover or Handover(stepper, start.states)
            states, arrive = handover.take(outputs.wait)
            lead = step * self.plan.step
            product = partial(self.predicted, states[-1])
            save = partial(self._save_restart, step, states, schedule) if step < steps else _nothing
            after = partial(self._after, step, product, save)
            if lead in self._missing():
                outputs.submit(lead, partial(self._kept, product), before=arrive, after=after)
            else:
                outputs.run(partial(_in_turn, arrive, after))
            self.reporter.stepped(step, lead)

    def _after(self, step: int, product: Callable[[Channel], ProductField], save: Callable[[], None]) -> None:
        """The lead is scored, then the state saved: what is not scored is computed again."""
        if self.watch is not None:
            with self.clock.measure("verify"):
                self.watch.see(step * self.plan.step, product)
        save()

    def _missing(self) -> set[timedelta]:
        return set(self.plan.leads) - self.committed

    def _needed(self) -> set[timedelta]:
        """Leads that must be in memory once more, to be kept or scored."""
        needed = self._missing()
        if self.watch is not None:
            needed |= self.watch.due
            needed |= {max(lead - self.watch.reach, self.plan.step) for lead in self.watch.due}
        return needed

    def _start(self, analyses: Sequence[Analysis]) -> Start:
        before = min(self._needed()) // self.plan.step - 1
        restart = self.store.load_restart(self.plan.initial_time, max_step=before)
        if restart is not None:
            self.reporter.note(f"resuming after step {restart.step} from the saved state")
            valid_time = self.plan.initial_time + restart.step * self.plan.step
            return Start(restart.step, restart.arrays, valid_time)
        if self.committed:
            self.reporter.note("resuming: computing again from the analysis, committed leads are kept")
        return Start(0, [self.master(analysis) for analysis in analyses], self.plan.initial_time)

    def master(self, analysis: Analysis) -> MasterState:
        """The analysis on the network grid, normalised."""
        values = np.empty((len(self.channel_set), *self.checkpoint.grid.shape), np.float32)
        for row, channel in enumerate(self.channel_set.channels):
            source = analysis.fields[channel]
            to_network = partial(self.map.from_source, source=source.grid)
            values[row] = remap_field(source.values, channel.definition, to_network)
        return self.checkpoint.normalisation.normalise(values, out=values)

    def analysed(self, analysis: Analysis) -> Callable[[Channel], ProductField]:
        """Lead 0: the ingested analysis itself on the product grid, without the detour over the network grid."""
        grids = {field.grid for field in analysis.fields.values()}
        regridders = {grid: Regridder(grid, self.checkpoint.grid.product) for grid in grids}

        def product(channel: Channel) -> ProductField:
            source = analysis.fields[channel]
            to_product = regridders[source.grid].apply
            return self._rounded(remap_field(source.values, channel.definition, to_product))

        return product

    def predicted(self, state: MasterState, channel: Channel) -> ProductField:
        row = self.channel_set.index(channel)
        field = self.checkpoint.normalisation.denormalise_field(state[row], row)
        return self._rounded(remap_field(field, channel.definition, self.map.to_product))

    def _rounded(self, values: ProductField) -> ProductField:
        # Every product is rounded, not the store alone: GRIB made later from the store has the same bytes.
        keep_bits = self.plan.config.forecast.keep_bits
        return values if keep_bits is None else round_mantissa(values, keep_bits)

    def _kept(self, product: Callable[[Channel], ProductField], channel: Channel) -> ProductField:
        """Of the area that is kept."""
        values = product(channel)
        if self.plan.grid is self.checkpoint.grid.product:
            return values
        return np.ascontiguousarray(values[self.plan.rows][:, self.plan.columns])

    def _record(self, attempt: Attempt, prepared: Prepared, stepper: Stepper) -> None:
        """The manifest says how the leads that follow are computed."""
        store, time = self.store, self.plan.initial_time
        if store.provenance(time) != attempt.recorded:
            raise UsageError(
                f"another process has worked on {store.path} meanwhile; run the same command again"
            )
        if attempt.recorded is None:
            store.begin_run(time, _provenance(self.plan, prepared.analyses, stepper.numerics))
        elif attempt.recorded["numerics"] != stepper.numerics:
            store.note_change(time, {"numerics": stepper.numerics})
        if not attempt.has_begun:
            store.clear_restart(time)

    def _save_restart(self, step: int, buffers: Sequence[MasterState], schedule: RestartSchedule) -> None:
        if not schedule.is_due():
            return
        start = perf_counter()
        self.store.save_restart(self.plan.initial_time, step, buffers)
        schedule.saved(perf_counter() - start)
        LOG.debug("saved the state after step %d in %.1f s", step, perf_counter() - start)

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

    def _claim_grib(self) -> None:
        output, plan = self.plan.config.output, self.plan
        if output.grib:
            claim_grib_folder(
                output.grib,
                plan.initial_time,
                identity=identity(plan),
                channels=plan.channels,
                overwrite=output.overwrite,
            )

    def _grib_files(self) -> list[Path]:
        """The GRIB files of all leads; those of leads committed without them are made from the store."""
        plan, folder = self.plan, self.plan.config.output.grib
        if folder is None:
            return []
        threads = plan.output_threads
        return export_grib(self.store, plan.initial_time, folder, only_missing=True, threads=threads)


def _in_turn(*jobs: Callable[[], None]) -> None:
    for job in jobs:
        job()


def _nothing() -> None:
    """After the last step there is nothing to resume."""


def open_store(plan: ForecastPlan, *, overwrite: bool) -> RunStore:
    """The store of this plan, new, resumed or (`overwrite`) in place of the run that is there."""
    card = plan.checkpoint.card
    attributes = {"title": f"{card.name} forecast", "source": card.description, "license": card.licence}
    return RunStore.create(plan.config.output.zarr, plan.store, attributes, overwrite=overwrite)


def _provenance(
    plan: ForecastPlan, analyses: Sequence[Analysis], numerics: dict[str, str | int]
) -> dict[str, Any]:
    """All that decides the bytes of the products, and where they come from."""
    return {
        "identity": identity(plan),
        "inputs": [analysis.provenance for analysis in analyses],
        "config": plan.config.model_dump(mode="json"),
        "numerics": numerics,
    }
