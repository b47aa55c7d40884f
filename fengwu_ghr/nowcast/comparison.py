"""Models and baselines on the same starts: sums of each method, kept in files, so that another method costs only itself."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fengwu_ghr.nowcast.baselines import (
    PYSTEPS,
    own_extrapolation,
    persistence,
    pysteps_forecasts,
    smoothed_exceedance,
)
from fengwu_ghr.nowcast.events import EventSettings, Split, read_blocks
from fengwu_ghr.nowcast.predict import predict
from fengwu_ghr.nowcast.scores import THRESHOLDS, Scored, score_frame, scored
from fengwu_ghr.nowcast.sequence import RadarSequence
from fengwu_ghr.nowcast.weights import NowcastModel
from fengwu_ghr.progress import Progress
from fengwu_ghr.verify.archive import read_archive, write_archive
from fengwu_ghr.verify.statistics import Sums

LEADS_MINUTES = tuple(range(10, 121, 10))
"""At which methods are compared, whatever the step of the radar."""
INPUTS = 4
_LEAST_MINUTES = 60
_KIND = "sums of a nowcast"

Frames = np.ndarray
Method = Callable[[RadarSequence, int], Frames | Mapping[float, Frames]]
"""Frames and a number of leads -> dBZ (lead, row, column), or of every threshold a forecast of its own."""


@dataclass(frozen=True, eq=False)
class StartedEvent:
    """Frames up to a start, and what came after it, by minutes of lead."""

    unit: str
    frames: RadarSequence
    came: Mapping[int, np.ndarray]


def starts_of(
    events: Sequence[EventSettings], split: Split, data: Path, *, spacing: int
) -> Iterator[StartedEvent]:
    """Starts `spacing` minutes apart, each with its inputs and an hour or more of what came inside its block."""
    for event, block in read_blocks(events, split, data):
        frames, minutes = block.frames, block.frames.minutes
        if 10 % minutes:
            continue  # no lead of the table is one of its steps
        for now in range(INPUTS - 1, len(frames), max(1, spacing // minutes)):
            came = {
                lead: frames.values[now + lead // minutes]
                for lead in LEADS_MINUTES
                if now + lead // minutes < len(frames)
            }
            if _LEAST_MINUTES in came:
                inputs = frames[slice(now - INPUTS + 1, now + 1)]
                unit = f"{event.name} {inputs.times[-1]:%H} h"
                yield StartedEvent(unit, inputs, came)


def methods_of(models: Mapping[str, NowcastModel], baselines: Sequence[str]) -> dict[str, Method]:
    """Every method by name: models, and those BASELINES that are asked for."""
    made: dict[str, Method] = {}
    for name in baselines:
        made[name] = BASELINES[name]
    for name, model in models.items():
        network = model.network()
        made[name] = lambda frames, leads, network=network: np.stack(  # type: ignore[misc]
            list(predict(network, frames, leads=min(leads, network.architecture.leads)))
        )
    return made


def _of_pysteps(name: str, frames: RadarSequence, leads: int) -> Frames:
    return np.asarray(pysteps_forecasts(frames, [name], leads=leads).frames[name])


def _exceedances(frames: RadarSequence, leads: int) -> Mapping[float, Frames]:
    return {threshold: smoothed_exceedance(frames, threshold, leads=leads) for threshold in THRESHOLDS}


BASELINES: Mapping[str, Method] = {
    "persistence": lambda frames, leads: persistence(frames, leads=leads),
    "own extrapolation": lambda frames, leads: own_extrapolation(frames, leads=leads),
    "smoothed exceedance": _exceedances,
    **{f"pysteps {name}": partial(_of_pysteps, name) for name in PYSTEPS},
}


def score_method(
    name: str, method: Method, starts: Sequence[StartedEvent], kept: Path, identity: str, progress: Progress
) -> Scored:
    """The sums of a method over these starts; those in `kept` where they are of this very `identity`."""
    if kept.exists():
        arrays = read_archive(kept, _KIND)
        if str(arrays["identity"]) == identity:
            return _of_arrays(arrays)
    parts: list[tuple[str, int, dict[str, object]]] = []
    progress.begin(name, 0, len(starts))
    for number, start in enumerate(starts, start=1):
        minutes = start.frames.minutes
        made = method(start.frames, max(start.came) // minutes)
        parts += [(start.unit, lead, _score(made, lead // minutes - 1, came)) for lead, came in start.came.items()]
        progress.stepped(number, {})
    found = scored(parts)
    write_archive(kept, _KIND, {"identity": np.array(identity), **_arrays(found)})
    return found


def _score(made: Frames | Mapping[float, Frames], index: int, came: np.ndarray) -> dict[str, object]:
    if isinstance(made, Mapping):
        own = [made[threshold][index] for threshold in THRESHOLDS]
        return score_frame(np.full_like(came, 0.0), came, own)
    return score_frame(made[index], came)


def identity_of(starts: Sequence[StartedEvent], model: NowcastModel | None) -> str:
    """sha256 of what a method was scored on, and of the model where it is one."""
    facts = [[start.unit, start.frames.times[-1].isoformat(), start.frames.grid.key] for start in starts]
    decides = {"starts": facts, "model": model.digest if model else "baseline", "format": 1}
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def _arrays(found: Scored) -> dict[str, np.ndarray]:
    arrays = {"units": np.array(found.units), "minutes": np.array(found.minutes), "counts": found.counts}
    for name in ("fractions", "powers"):
        sums: Sums = getattr(found, name)
        arrays |= {f"{name}_weight": sums.weight, **{f"{name}/{key}": v for key, v in sums.sums.items()}}
    return arrays


def _of_arrays(arrays: Mapping[str, np.ndarray]) -> Scored:
    def sums(name: str) -> Sums:
        parts = {key.partition("/")[2]: v for key, v in arrays.items() if key.startswith(f"{name}/")}
        return Sums(arrays[f"{name}_weight"], parts)

    units, minutes = (tuple(arrays[name].tolist()) for name in ("units", "minutes"))
    return Scored(units, minutes, arrays["counts"], sums("fractions"), sums("powers"))
