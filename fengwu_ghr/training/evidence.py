"""Evidence: every source forecasts the same held-out dates, and its sums are kept date by date.

A source is scored in worker processes, one date at a time; what is in the tables is not computed again. The tables of
a source: all points and leads; above ground, where channels go below it; spectra and coherence at some leads; the
same leads after truncation to what the backbone's grid can hold.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Bool, Float32, Float64
from pydantic import Field, model_validator

from fengwu_ghr.config import Section
from fengwu_ghr.durable import lock
from fengwu_ghr.errors import InputError, ResourceError, UsageError
from fengwu_ghr.progress import Progress, Silence
from fengwu_ghr.training.identity import claim, describe_world
from fengwu_ghr.training.normals import Normals
from fengwu_ghr.training.reference import restart_indices
from fengwu_ghr.training.sources import Fine, InitialDate, Source
from fengwu_ghr.training.specs import SourceSpec
from fengwu_ghr.training.tables import Tables
from fengwu_ghr.training.world import STEP, World, save_array
from fengwu_ghr.variables import HEADLINE
from fengwu_ghr.verify.regions import Regions
from fengwu_ghr.verify.spectra import spectral_sums, truncate
from fengwu_ghr.verify.statistics import Start, Sums, state_sums

Result = TypeVar("Result")
Fields = tuple[Fine, Fine, Fine]
"""Forecast, truth and climatology of one valid time."""


class EvidenceSettings(Section):
    """`[evidence]`: on which dates, how far, against what."""

    dates: int = Field(60, gt=0)
    """Initial times of the test series; fewer where the series are short."""
    spacing_days: int = Field(3, gt=0)
    """The least distance between initial times."""
    lead_steps: int = Field(40, gt=0)
    """Steps of six hours."""
    spectra_steps: tuple[int, ...] = (4, 20, 40)
    """Lead steps of spectra, coherence and truncated scores."""
    truncation: int = Field(36, gt=0)
    """The total wavenumber to which fields are truncated for the second score."""
    harmonics: int = Field(2, ge=0)
    """Annual harmonics of the climatology."""
    baseline_truncation: int | None = 42
    """Spectral truncation of the numerical baseline; none without."""
    bias_dates: int = Field(40, gt=0)
    """Training dates from which the baseline's bias is taken."""
    twin_dates: int = Field(10, ge=0)
    """Test dates of the twin of the truth."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of steps on the network grid; everything else is float32 always."""
    workers: int = Field(2, gt=0)
    """Processes, one thread each."""

    @model_validator(mode="after")
    def _some_spectra_are_reached(self) -> "EvidenceSettings":
        if not any(0 < step <= self.lead_steps for step in self.spectra_steps):
            raise ValueError(
                f"spectra_steps must hold a step from 1 to lead_steps = {self.lead_steps}; got {self.spectra_steps}"
            )
        return self

    def describe(self) -> dict[str, Any]:
        """What decides the sums of a date."""
        return self.model_dump(include={"lead_steps", "spectra_steps", "truncation", "harmonics"})


@dataclass(frozen=True)
class ScoredDate:
    """The sums of one forecast, by kind of table and lead step."""

    date: InitialDate
    sums: dict[str, dict[int, Sums]]


def initial_dates(
    world: World, settings: EvidenceSettings, *, split: str = "test", count: int | None = None
) -> list[InitialDate]:
    """Initial times with a restart and a truth at every lead, `spacing_days` or more apart.

    Evenly thinned to `count`. Raises InputError where there is none.
    """
    found: list[InitialDate] = []
    for number, series in enumerate(world.series(split)):
        last = None
        for index in restart_indices(world, series):
            fits = index + settings.lead_steps < len(series)
            if fits and (last is None or (index - last) * STEP >= timedelta(days=settings.spacing_days)):
                found.append(InitialDate(split, number, index))
                last = index
    if not found:
        raise InputError(
            f"no {split} series of the world in {world.folder} has a restart with {settings.lead_steps} steps of "
            "truth behind it; simulate longer segments or ask for fewer lead_steps"
        )
    wanted = min(count or settings.dates, len(found))
    return [found[i * len(found) // wanted] for i in range(wanted)]


def above_ground(world: World, normals: Normals) -> dict[str, Bool[np.ndarray, "lat lon"]]:
    """By channel on a level that meets the ground somewhere: where its mean height is above the orography."""
    mean = normals.fine.coefficients[0]
    names, masks = world.channels.names, {}
    for name, channel in zip(names, world.channels.channels):
        if channel.level is not None:
            above = mean[names.index(f"z{channel.level}")] > world.orography
            if not above.all():
                masks[name] = above
    return masks


def score(
    world: World,
    specs: Sequence[SourceSpec],
    settings: EvidenceSettings,
    folder: Path,
    progress: Progress,
) -> dict[str, Tables]:
    """The tables of every source, complete, in folder/NAME.

    Raises InputError where climatology saw a test date; UsageError where a folder holds the tables of another model
    or other settings, or the truncation is beyond what the grid can hold.
    """
    if settings.truncation >= (degrees := world.fine_grid.shape[0] - 1):
        raise UsageError(
            f"evidence.truncation must lie below the {degrees} total wavenumbers of {world.fine_grid}; "
            f"got {settings.truncation}"
        )
    normals = Normals.of(world, folder, harmonics=settings.harmonics, progress=progress)
    _check_independent(world, normals, settings)
    ground = list(above_ground(world, normals))
    with lock(folder / ".lock", holder=f"another process scores in {folder}"):
        return {spec.name: _score_source(world, spec, settings, folder, ground, progress) for spec in specs}


def _score_source(
    world: World,
    spec: SourceSpec,
    settings: EvidenceSettings,
    folder: Path,
    ground: Sequence[str],
    progress: Progress,
) -> Tables:
    own = folder / spec.name
    claim(own, {"scores": settings.describe(), "source": spec.describe(), "world": describe_world(world)})
    tables = Tables.load(own, ground, world)
    dates = initial_dates(world, settings, count=spec.dates)
    done = {(member, start) for member, start in tables.everywhere.starts}
    missing = [date for date in dates if _key(world, date) not in done]
    progress.begin(spec.name, len(dates) - len(missing), len(dates))
    job = _Job(world.folder, spec, settings, folder)
    for count, scored in enumerate(_map(job, missing, settings.workers), start=len(dates) - len(missing) + 1):
        _add(world, tables, scored)
        tables.save(own)
        progress.stepped(count, {})
    # Dates of earlier settings stay in their files, and out of what is compared.
    return tables.only({_key(world, date) for date in dates})


@dataclass(frozen=True)
class _Job:
    """What a worker must know to score dates of one source."""

    world: Path
    spec: SourceSpec
    settings: EvidenceSettings
    folder: Path

    def __call__(self, date: InitialDate) -> ScoredDate:
        world, source, normals, ground = _prepared(self)
        truth = source.series(date)
        sums: dict[str, dict[int, Sums]] = {kind: {} for kind in Tables.KINDS}
        for step, forecast in enumerate(source.states(date, self.settings.lead_steps), start=1):
            normal = normals.fine.at(source.valid_time(date, step))
            fields = forecast, np.asarray(truth.fine(date.index + step)), normal
            for kind, found in _sums_of_points(world, fields, ground):
                sums[kind][step] = found
            if step in self.settings.spectra_steps:
                for kind, found in _sums_of_waves(world, fields, self.settings.truncation):
                    sums[kind][step] = found
        return ScoredDate(date, sums)


def _sums_of_points(
    world: World, fields: Fields, ground: Mapping[str, Bool[np.ndarray, "lat lon"]]
) -> Iterator[tuple[str, Sums]]:
    globe = Regions.globe(world.fine_grid)
    yield "everywhere", state_sums(*fields, regions=globe)[:, 0]
    if ground:
        rows = [world.channels.names.index(name) for name in ground]
        points = np.stack(list(ground.values()))
        sums = state_sums(*(state[rows] for state in fields), regions=globe, points=points)
        yield "above_ground", sums[:, 0]


def _sums_of_waves(world: World, fields: Fields, wavenumber: int) -> Iterator[tuple[str, Sums]]:
    grid, rows = world.fine_grid, [world.channels.names.index(name) for name in HEADLINE]
    forecast, truth, normal = (state[rows] for state in fields)
    yield "spectra", spectral_sums(forecast, truth, grid)
    cut = (truncate(state, grid, wavenumber=wavenumber) for state in (forecast, truth, normal))
    yield "truncated", state_sums(*cut, regions=Regions.globe(grid))[:, 0]


@lru_cache(maxsize=1)
def _prepared(job: _Job) -> tuple[World, Source, Normals, dict[str, np.ndarray]]:
    world = World.open(job.world)
    normals = Normals.of(world, job.folder, harmonics=job.settings.harmonics, progress=Silence())
    return world, job.spec.make(world, normals), normals, above_ground(world, normals)


def baseline_bias(
    world: World, spec: SourceSpec, settings: EvidenceSettings, folder: Path, progress: Progress
) -> Path:
    """The numerical baseline's mean error by lead step, on training dates, as .npy (step, channel, lat, lon).

    The mean of a few dates holds their weather too: it is shrunk by the share of its variance that is not noise, lead
    by lead and channel by channel. Raises UsageError where the folder holds that of other settings.
    """
    own = folder / f"{spec.name}-bias"
    path = own / "bias.npy"
    wanted = settings.model_dump(include={"lead_steps", "bias_dates", "spacing_days"})
    claim(own, wanted | spec.describe() | {"world": describe_world(world)})
    if path.exists():
        return path
    dates = initial_dates(world, settings, split="train", count=settings.bias_dates)
    progress.begin(f"bias of {spec.name}", 0, len(dates))
    job = _BiasJob(world.folder, spec, settings.lead_steps)
    shape = (settings.lead_steps, len(world.channels), *world.fine_grid.shape)
    total, squares = np.zeros(shape, np.float32), np.zeros(shape[:2])
    for count, errors in enumerate(_map(job, dates, settings.workers), start=1):
        total += errors
        squares += _area_mean_square(world, errors)
        progress.stepped(count, {})
    mean = total / np.float32(len(dates))
    save_array(path, mean * _share_of_signal(world, mean, squares / len(dates), len(dates)))
    return path


def _share_of_signal(
    world: World,
    mean: Float32[np.ndarray, "step channel lat lon"],
    mean_square: Float64[np.ndarray, "step channel"],
    dates: int,
) -> Float32[np.ndarray, "step channel 1 1"]:
    """The part of the squared mean error that is not the sampling noise of so many dates, at least zero."""
    square_of_mean = _area_mean_square(world, mean)
    noise = (mean_square - square_of_mean) / max(dates - 1, 1)
    share = np.clip(1 - noise / np.maximum(square_of_mean, np.finfo(float).tiny), 0, 1)
    return share[..., None, None].astype(np.float32)


def _area_mean_square(
    world: World, fields: Float32[np.ndarray, "step channel lat lon"]
) -> Float64[np.ndarray, "step channel"]:
    return np.einsum("scij,scij,ij->sc", fields, fields, world.fine_grid.cell_areas(), optimize=False)


@dataclass(frozen=True)
class _BiasJob:
    world: Path
    spec: SourceSpec
    lead_steps: int

    def __call__(self, date: InitialDate) -> Float32[np.ndarray, "step channel lat lon"]:
        source = _prepared_reference(self)
        truth = source.series(date)
        states = enumerate(source.states(date, self.lead_steps), start=1)
        return np.stack([state - truth.fine(date.index + step) for step, state in states])


@lru_cache(maxsize=1)
def _prepared_reference(job: _BiasJob) -> Source:
    return replace(job.spec, bias=None).make(World.open(job.world), None)


def _map(
    job: Callable[[InitialDate], Result], dates: Sequence[InitialDate], workers: int
) -> Iterator[Result]:
    """The results of the dates, in their order; in this process where one worker is enough."""
    if workers == 1:
        yield from map(job, dates)
        return
    context = multiprocessing.get_context("spawn")
    # A worker keeps its source from date to date: models are loaded, and simulators compiled, once.
    with ProcessPoolExecutor(min(workers, max(1, len(dates))), context, _start_worker) as pool:
        try:
            yield from pool.map(job, dates)
        except BrokenProcessPool as error:
            raise ResourceError(
                f"a scoring process was killed ({error}), often for want of memory; run the same command again with "
                "fewer evidence.workers: what is scored is kept"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker() -> None:
    """One core each, and Ctrl-C is for the process that waits: libraries read these before they are loaded."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    import torch

    torch.set_num_threads(1)


def _check_independent(world: World, normals: Normals, settings: EvidenceSettings) -> None:
    for date in initial_dates(world, settings):
        series = world.series(date.split)[date.series]
        valid = series.times[date.index : date.index + settings.lead_steps + 1]
        normals.fine.check_independent(valid, member=series.member)


def _key(world: World, date: InitialDate) -> Start:
    series = world.series(date.split)[date.series]
    return Start(series.member, series.times[date.index])


def _add(world: World, tables: Tables, scored: ScoredDate) -> None:
    series = world.series(scored.date.split)[scored.date.series]
    begun = series.times[scored.date.index]
    for kind, by_step in scored.sums.items():
        for step, sums in by_step.items():
            getattr(tables, kind).add(begun, STEP * step, sums, member=series.member)
