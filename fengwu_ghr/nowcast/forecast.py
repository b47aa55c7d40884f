"""One nowcast from end to end: radar files in, Zarr and GRIB out, with steps of minutes."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from jaxtyping import Float32

from fengwu_ghr.errors import InputError, UsageError
from fengwu_ghr.export import claim_grib_folder
from fengwu_ghr.grib.encode import GribEncoder
from fengwu_ghr.grib.plane import is_plane
from fengwu_ghr.grid import LatLonGrid
from fengwu_ghr.layout import StorePlan
from fengwu_ghr.nowcast.predict import predict
from fengwu_ghr.nowcast.sequence import RadarSequence
from fengwu_ghr.nowcast.weights import NowcastModel
from fengwu_ghr.outputs import GribSink, Outputs, Sink, ZarrSink
from fengwu_ghr.progress import Progress
from fengwu_ghr.projected_grid import ProjectedGrid, RadarGrid, covering_grid
from fengwu_ghr.store import RunStore
from fengwu_ghr.variables import Channel

ECHO = Channel("rare")
_THREADS = 2


class RemappedSink:
    """GRIB of a projected grid that GRIB cannot have: the nearest pixel for every point of 0.01 degrees.

    Nearest, because means would weaken what a nowcast is for. Points off the radar's grid are missing.
    """

    def __init__(self, folder: Path, grid: ProjectedGrid, initial_time: datetime) -> None:
        target = covering_grid(grid)
        self._inner = GribSink(folder, GribEncoder(target), initial_time, channels=(ECHO,))
        self._rows, self._columns, self._outside = nearest_pixels(grid, target)

    def path(self, lead: timedelta) -> Path:
        return self._inner.path(lead)

    def is_written(self, lead: timedelta) -> bool:
        return self._inner.is_written(lead)

    def begin(self, lead: timedelta) -> None:
        self._inner.begin(lead)

    def field(self, channel: Channel, values: Float32[np.ndarray, "row column"]) -> None:
        found = values[self._rows, self._columns]
        found[self._outside] = np.nan
        self._inner.field(channel, found)

    def commit(self) -> None:
        self._inner.commit()


@dataclass(frozen=True)
class NowcastResult:
    """What a nowcast made, and the seconds that the network and its motion took."""

    store: Path
    files: tuple[Path, ...]
    initial_time: datetime
    leads: int
    minutes: int
    seconds: float


def run_nowcast(
    sequence: RadarSequence,
    model: NowcastModel,
    output: Path,
    *,
    leads: int | None = None,
    initial_time: datetime | None = None,
    grib: Path | None = None,
    overwrite: bool = False,
    progress: Progress,
) -> NowcastResult:
    """A run store at `output` holds the last observation as lead 0 and every lead after it; NaN is what is not known.

    The store is on the radar's own grid at 1 km; GRIB is on it where GRIB has it, else on 0.01 degrees. Raises
    UsageError for a step that the model does not know or too many leads, InputError for what is wrong with the frames,
    OutputError.
    """
    frames = frames_until(sequence.at_one_kilometre(), initial_time)
    model.check_step(frames.minutes)
    asked = model.card.architecture.leads if leads is None else leads
    if not 0 < asked <= model.card.architecture.leads:
        raise UsageError(f"{model.card.name} gives 1 to {model.card.architecture.leads} leads; got {asked}")
    network, began = model.network(), frames.times[-1]
    plan = StorePlan((ECHO,), frames.grid, (began,), tuple(n * frames.step for n in range(asked + 1)))
    attributes = {
        "title": f"Radar nowcast by {model.card.name}",
        "source": f"fengwu_ghr {version('fengwu_ghr')}",
    }
    with RunStore.create(output, plan, attributes, overwrite=overwrite) as store:
        provenance = _provenance(frames, model)
        _begin(store, began, provenance)
        if grib is not None:
            identity = provenance["identity"]
            claim_grib_folder(grib, began, identity=identity, channels=(ECHO,), overwrite=overwrite)
        sinks, files = _sinks(store, frames.grid, began, grib)
        started, spent = perf_counter(), 0.0
        progress.begin("nowcast", 0, asked)
        outputs = Outputs(sinks, (ECHO,), threads=_THREADS)
        try:
            committed = set(store.committed(began))
            for number, values in enumerate(_all_leads(predict(network, frames, leads=asked), frames)):
                spent = perf_counter() - started
                lead = number * frames.step
                if lead not in committed:
                    outputs.submit(lead, _same(values))
                else:
                    _write_missing(files, lead, values)
                if number:
                    progress.stepped(number, {})
            outputs.wait()
        finally:
            outputs.close()
        store.finish(began, "nowcast")
    made = tuple(sink.path(lead) for sink in files for lead in plan.leads)
    return NowcastResult(output, made, began, asked, frames.minutes, spent)


def _write_missing(
    sinks: Sequence[GribSink | RemappedSink], lead: timedelta, values: Float32[np.ndarray, "row column"]
) -> None:
    """GRIB of a lead that the store had already."""
    for sink in sinks:
        if not sink.is_written(lead):
            sink.begin(lead)
            sink.field(ECHO, values)
            sink.commit()


def frames_until(sequence: RadarSequence, initial_time: datetime | None) -> RadarSequence:
    """The frames up to this time, all where it is None. Raises InputError where there is none at that time."""
    if initial_time is None:
        return sequence
    if initial_time not in sequence.times:
        first, last = sequence.times[0], sequence.times[-1]
        raise InputError(
            f"{sequence.source} has no frame at {initial_time:%Y-%m-%d %H:%M}; it has {len(sequence)} from "
            f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M}"
        )
    return sequence[slice(0, sequence.times.index(initial_time) + 1)]


def _all_leads(
    forecast: Iterator[Float32[np.ndarray, "row column"]], frames: RadarSequence
) -> Iterator[Float32[np.ndarray, "row column"]]:
    yield frames.values[-1]
    yield from forecast


def _same(
    values: Float32[np.ndarray, "row column"],
) -> Callable[[Channel], Float32[np.ndarray, "row column"]]:
    return lambda channel: values


def _provenance(frames: RadarSequence, model: NowcastModel) -> dict[str, Any]:
    seen = frames[slice(max(0, len(frames) - model.card.architecture.inputs), None)]
    identity = {
        "model": {"name": model.card.name, "trained": model.card.trained, "sha256": model.digest},
        "input": {
            "times": [time.isoformat() for time in seen.times],
            "sha256": hashlib.sha256(seen.values.tobytes()).hexdigest(),
            "z-r": str(frames.zr),
        },
        "grid": {"product": frames.grid.key},
    }
    return {"identity": identity, "code": version("fengwu_ghr"), "source": Path(frames.source).name}


def _begin(store: RunStore, began: datetime, provenance: dict[str, Any]) -> None:
    """The store says what its nowcast is made of. Raises UsageError where that was something else."""
    recorded = store.provenance(began)
    if recorded is None:
        store.begin_run(began, provenance)
    elif recorded["identity"] != provenance["identity"]:
        parts = [
            key for key, value in provenance["identity"].items() if recorded["identity"].get(key) != value
        ]
        raise UsageError(
            f"{store.path} holds a nowcast of {began:%Y-%m-%d %H:%M} with another {', '.join(parts)}; write to another "
            "--output, or replace it with --overwrite"
        )


def _sinks(
    store: RunStore, grid: RadarGrid, began: datetime, grib: Path | None
) -> tuple[list[Sink], list[GribSink | RemappedSink]]:
    zarr = ZarrSink(store, began)
    if grib is None:
        return [zarr], []
    if isinstance(grid, ProjectedGrid) and not is_plane(grid):
        made: GribSink | RemappedSink = RemappedSink(grib, grid, began)
    else:
        made = GribSink(grib, GribEncoder(grid), began, channels=(ECHO,))
    return [made, zarr], [made]


def nearest_pixels(grid: ProjectedGrid, target: LatLonGrid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row and column of the pixel nearest to every point of `target`, and where the point lies off the grid."""
    longitude, latitude = np.meshgrid(target.longitude, target.latitude)
    row, column = grid.fractional(latitude, longitude)
    rows, columns = grid.shape
    outside = (row < -0.5) | (row > rows - 0.5) | (column < -0.5) | (column > columns - 0.5)
    row, column = (
        np.clip(np.round(v), 0, size - 1).astype(int) for v, size in ((row, rows), (column, columns))
    )
    return row, column, outside
