"""Worlds for the tests, made in a second without the simulator: the analytic atmosphere, chunked as a simulation."""

import json
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fengwu_ghr import checkpoint
from fengwu_ghr.backbone import Architecture
from fengwu_ghr.coarsen import AreaMean
from fengwu_ghr.grid import backbone_grid, product_grid
from fengwu_ghr.initialise import build, wake
from fengwu_ghr.model_card import ModelCard, Statistics
from fengwu_ghr.synthetic import synthetic_state
from fengwu_ghr.training.world import STEP, World, chunk_path, coarse_path
from fengwu_ghr.variables import channel_set

CHUNK_STATES = 12


def tiny_world(folder: Path, *, days: int = 6, seed: int = 0) -> World:
    """`days` of training states of two members, three days each of validation and test, at scale 20."""
    splits = {
        (0, "train", datetime(2000, 1, 1, 6)): days,
        (0, "validation", datetime(2000, 3, 1, 6)): 3,
        (1, "train", datetime(2000, 7, 1, 6)): 3,
        (1, "test", datetime(2000, 9, 1, 6)): 3,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for (member, split, first), length in splits.items():
        for day in range(0, length, 3):
            _write_chunk(folder / f"member-{member}", split, first + timedelta(days=day), seed)
    np.save(folder / "orography.npy", _orography())
    (folder / "world.json").write_text(json.dumps({"scale": 20, "channel_set": "ghr-69", "members": []}))
    return World.open(folder)


def save_base(world: World, folder: Path, shape: Architecture, **changes: Any) -> Path:
    """A backbone that forecasts something, on this world's numbers."""
    model = build(shape, seed=3)
    wake(model, seed=3, tendency=0.05)
    card = ModelCard(
        name="base",
        description="for the tests",
        trained=True,
        licence="CC0-1.0",
        channel_set="ghr-69",
        architecture=shape,
        statistics=Statistics.of(world.channels, world.statistics.normalisation),
        provenance={"world": "tiny"},
    ).model_copy(update=changes)
    checkpoint.save(folder, model, card=card)
    return folder


def _write_chunk(member: Path, split: str, first: datetime, seed: int) -> None:
    member.mkdir(exist_ok=True)
    path = chunk_path(member, split, first)
    fine = np.stack([_state(first + STEP * i, seed) for i in range(CHUNK_STATES)])
    np.save(path, fine)
    np.save(coarse_path(path), AreaMean(product_grid(20), backbone_grid(20)).apply(fine))


def _state(valid_time: datetime, seed: int) -> np.ndarray:
    """The pattern moves east by a column in six hours, finer noise by two; an annual wave warms and cools."""
    pattern, noise = _patterns(seed)
    steps = (valid_time - datetime(2000, 1, 1)) // STEP
    season = 0.3 * np.sin(2 * np.pi * steps / (4 * 365.25))
    return np.roll(pattern, steps, axis=2) + np.float32(1 + season) * np.roll(noise, 2 * steps, axis=2)


@lru_cache(maxsize=2)
def _patterns(seed: int) -> tuple[np.ndarray, np.ndarray]:
    channels = channel_set("ghr-69").channels
    state = synthetic_state(product_grid(20), channels, initial_time=datetime(2000, 1, 1), seed=seed)
    noise = np.random.default_rng(seed).standard_normal(state.values.shape).astype(np.float32)
    return state.values, noise * 0.02 * state.values.std(axis=(1, 2), keepdims=True)


def _orography() -> np.ndarray:
    """One mountain, 3 km high, m2 s-2."""
    grid = product_grid(20)
    distance = ((grid.latitude[:, None] - 35) / 12) ** 2 + ((grid.longitude[None] - 90) / 20) ** 2
    return (30000 * np.exp(-distance)).astype(np.float32)
