"""The nowcast in one command, on generated storms: real radar data are not ours to pass on."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fengwu_ghr.nowcast.baselines import own_extrapolation, persistence
from fengwu_ghr.nowcast.comparison import INPUTS
from fengwu_ghr.nowcast.forecast import ECHO, NowcastResult, run_nowcast
from fengwu_ghr.nowcast.pictures import animate, draw_panels
from fengwu_ghr.nowcast.scores import Scored, score_frame, scored
from fengwu_ghr.nowcast.sequence import RadarSequence
from fengwu_ghr.nowcast.storms import generate_storms
from fengwu_ghr.nowcast.weights import resolve_nowcast
from fengwu_ghr.progress import Progress
from fengwu_ghr.store import RunStore

SEED, SIZE, MINUTES = 2026, 256, 5
"""Of the storms; no training draws this seed."""


@dataclass(frozen=True)
class Demonstrated:
    result: NowcastResult
    sums: dict[str, Scored]
    pictures: tuple[Path, ...]


def run_nowcast_demo(folder: Path, *, model: str, progress: Progress) -> Demonstrated:
    """Two hours of generated storms are nowcast, written, scored against what came, and drawn; all in the folder."""
    chosen = resolve_nowcast(model)
    leads = chosen.card.architecture.leads
    whole = generate_storms(seed=SEED, frames=INPUTS + leads, size=SIZE, minutes=MINUTES).frames
    seen, came = whole[slice(0, INPUTS)], whole.values[INPUTS:]
    result = run_nowcast(
        seen, chosen, folder / "nowcast.zarr", grib=folder / "grib", overwrite=True, progress=progress
    )
    made = {
        chosen.card.name: _stored(result),
        "extrapolation": own_extrapolation(seen, leads=leads),
        "persistence": persistence(seen, leads=leads),
    }
    sums = {name: _sums(frames, came) for name, frames in made.items()}
    return Demonstrated(result, sums, _draw(folder, made, came, seen))


def _stored(result: NowcastResult) -> np.ndarray:
    """The forecast as it was written, lead after lead."""
    with RunStore.open(result.store) as store:
        leads = [lead for lead in store.committed(result.initial_time) if lead]
        return np.stack([store.read(ECHO, result.initial_time, lead) for lead in leads])


def _sums(frames: np.ndarray, came: np.ndarray) -> Scored:
    pairs = enumerate(zip(frames, came), start=1)
    return scored([("storms", number * MINUTES, score_frame(f, o)) for number, (f, o) in pairs])


def _draw(
    folder: Path, made: dict[str, np.ndarray], came: np.ndarray, seen: RadarSequence
) -> tuple[Path, ...]:
    shown = {"observed": came, **{name: frames for name, frames in made.items() if name != "persistence"}}
    title = f"generated storms, from {seen.times[-1]:%Y-%m-%d %H:%M} UTC, dBZ"
    steps = [n for n in range(len(came)) if (n + 1) * MINUTES % 30 == 0]
    panels, film = folder / "nowcast.png", folder / "nowcast.gif"
    draw_panels(
        {k: v[steps] for k, v in shown.items()}, [(n + 1) * MINUTES for n in steps], title, output=panels
    )
    animate(shown, [(n + 1) * MINUTES for n in range(len(came))], title, output=film)
    return panels, film
