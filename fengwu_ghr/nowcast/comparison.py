"""Models and baselines on the same starts; sums are kept in files, so that another method costs only itself."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from fengwu_ghr.nowcast.baselines import (
    PYSTEPS,
    Frames,
    own_extrapolation,
    persistence,
    pysteps_forecasts,
    smoothed_exceedance,
)
from fengwu_ghr.nowcast.events import EventSettings, Split, read_blocks
from fengwu_ghr.nowcast.model import NowcastNet
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

Forecast = Frames | Mapping[float, Frames]
"""dBZ (lead, row, column), or of every threshold a forecast of its own."""
Part = tuple[str, int, dict[str, object]]


@dataclass(frozen=True, eq=False)
class StartedEvent:
    """Frames up to a start, and what came after it, by minutes of lead."""

    unit: str
    frames: RadarSequence
    came: Mapping[int, np.ndarray]


@dataclass(frozen=True, eq=False)
class Maker:
    """Makes the forecasts of one method or of several at once: frames and a number of leads -> forecasts by name."""

    names: tuple[str, ...]
    make: Callable[[RadarSequence, int], Mapping[str, Forecast]]
    model: NowcastModel | None = None


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


def makers_of(models: Mapping[str, NowcastModel], baselines: Sequence[str]) -> list[Maker]:
    """What makes the forecasts of these models and of those BASELINES that are asked for."""
    made = [Maker((name,), BASELINES[name]) for name in baselines if name in BASELINES]
    if chosen := tuple(name for name in baselines if name in PYSTEPS_BASELINES):
        made.append(Maker(chosen, partial(_of_pysteps, chosen)))
    return made + [
        Maker((name,), partial(_of_model, name, model.network()), model) for name, model in models.items()
    ]


def score_maker(
    maker: Maker, starts: Sequence[StartedEvent], folder: Path, prefix: str, progress: Progress
) -> dict[str, Scored]:
    """The sums of its methods over these starts, by name; those in the folder where they are of these very starts."""
    identity = _identity(starts, maker.model)
    paths = {name: folder / f"{prefix}-{name}.npz" for name in maker.names}
    kept = {name: _kept(path, identity) for name, path in paths.items()}
    if all(kept.values()):
        return {name: found for name, found in kept.items() if found}
    parts: dict[str, list[Part]] = {name: [] for name in maker.names}
    progress.begin(", ".join(maker.names), 0, len(starts))
    for number, start in enumerate(starts, start=1):
        minutes = start.frames.minutes
        made = maker.make(start.frames, max(start.came) // minutes)
        for name, (lead, came) in product(maker.names, start.came.items()):
            parts[name].append((start.unit, lead, _score(made[name], lead // minutes - 1, came)))
        progress.stepped(number, {})
    found = {name: scored(parts[name]) for name in maker.names}
    for name, path in paths.items():
        write_archive(path, _KIND, {"identity": np.array(identity), **_arrays(found[name])})
    return found


def _kept(path: Path, identity: str) -> Scored | None:
    if not path.exists():
        return None
    arrays = read_archive(path, _KIND)
    return _of_arrays(arrays) if str(arrays["identity"]) == identity else None


def _of_model(name: str, network: NowcastNet, frames: RadarSequence, leads: int) -> dict[str, Forecast]:
    return {name: np.stack(list(predict(network, frames, leads=min(leads, network.architecture.leads))))}


def _of_pysteps(names: Sequence[str], frames: RadarSequence, leads: int) -> dict[str, Forecast]:
    """One child for all: loading pysteps takes longer than most of its forecasts."""
    methods = [PYSTEPS_BASELINES[name] for name in names]
    made = pysteps_forecasts(frames, methods, leads=leads)
    return {name: made.frames[method] for name, method in zip(names, methods)}


BASELINES: Mapping[str, Callable[[RadarSequence, int], dict[str, Forecast]]] = {
    "persistence": lambda frames, leads: {"persistence": persistence(frames, leads=leads)},
    "own extrapolation": lambda frames, leads: {"own extrapolation": own_extrapolation(frames, leads=leads)},
    "smoothed exceedance": lambda frames, leads: {
        "smoothed exceedance": {t: smoothed_exceedance(frames, t, leads=leads) for t in THRESHOLDS}
    },
}
PYSTEPS_BASELINES = {f"pysteps {name}": name for name in PYSTEPS}


def _score(made: Forecast, index: int, came: np.ndarray) -> dict[str, object]:
    if isinstance(made, Mapping):
        own = [made[threshold][index] for threshold in THRESHOLDS]
        return score_frame(np.full_like(came, 0.0), came, own)
    return score_frame(made[index], came)


def _identity(starts: Sequence[StartedEvent], model: NowcastModel | None) -> str:
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
