"""What a nowcast is held against: persistence, our extrapolation, and pysteps in a process of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float32
from scipy.ndimage import gaussian_filter

from fengwu_ghr.nowcast.child import run_child
from fengwu_ghr.nowcast.motion import sample
from fengwu_ghr.nowcast.predict import Start, extrapolate
from fengwu_ghr.nowcast.sequence import RadarSequence

PYSTEPS = ("extrapolation", "S-PROG", "ANVIL", "STEPS mean")
MEMBERS = 8
SPREAD = 0.1
"""Pixels (km) a minute of lead by which exceedances are smoothed: what displacement errors come to."""

Frames = Float32[np.ndarray, "lead row column"]


@dataclass(frozen=True)
class Made:
    """Forecasts by method in dBZ, NaN where from beyond what was observed, and the seconds that each took."""

    frames: Mapping[str, Frames]
    seconds: Mapping[str, float] = field(default_factory=dict)


def persistence(frames: RadarSequence, *, leads: int) -> Frames:
    """The last frame at every lead."""
    return np.repeat(frames.values[-1:], leads, axis=0)


def own_extrapolation(frames: RadarSequence, *, leads: int) -> Frames:
    """The last frame along our motion."""
    return np.stack(list(extrapolate(frames, leads=leads)))


def pysteps_forecasts(frames: RadarSequence, methods: Sequence[str], *, leads: int, seed: int = 0) -> Made:
    """Forecasts of these PYSTEPS; the motion is its Lucas-Kanade's. Raises the errors of `run_child`."""
    settings = {
        "methods": list(methods),
        "leads": leads,
        "members": MEMBERS,
        "seed": seed,
        "minutes": frames.minutes,
    }
    made, seconds = run_child("forecast", settings, {"frames": frames.values[-4:]})
    return Made({name: made[name] for name in methods}, seconds)


def smoothed_exceedance(frames: RadarSequence, threshold: float, *, leads: int) -> Frames:
    """Chances of an echo of `threshold` dBZ, in percent: its exceedance carried along, then smoothed with the lead.

    No forecast of echoes: it shows what placing alone is worth where the cut is tuned.
    """
    start = Start.of(frames)
    last, known = start.last
    over = torch.where(last >= threshold, 100.0, 0.0)
    found = []
    for number, places in enumerate(start.origins(leads), start=1):
        values, sure = sample(over, known, places)
        smooth = gaussian_filter(values.numpy(), SPREAD * frames.minutes * number)
        found.append(np.where(sure.numpy(), smooth, np.float32(np.nan)))
    return np.stack(found).astype(np.float32)
