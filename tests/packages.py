"""ONNX packages that the tests make: small models of ours in the packagings of the published ones."""

from pathlib import Path

import numpy as np

from fengwu_ghr import checkpoint
from fengwu_ghr.backbone import Architecture, architecture
from fengwu_ghr.checkpoint import Checkpoint
from fengwu_ghr.initialise import build, wake
from fengwu_ghr.model_card import ModelCard, Statistics
from fengwu_ghr.normalise import standard_statistics
from fengwu_ghr.variables import channel_set

SMALL = {
    "width": 16,
    "heads": 2,
    "decoder_width": 16,
    "depth": 2,
    "res_after": (1,),
    "lora_steps": 4,
    "lora_rank": 2,
}


def small(channels: str, **changes: object) -> Architecture:
    count = len(channel_set(channels))
    return architecture("ghr-tiny", **{"scale": 40, "channels": count} | SMALL | changes)  # type: ignore[arg-type]


def made(folder: Path, channels: str, *, registration: str = "pixel", **changes: object) -> Checkpoint:
    """A model that forecasts something, each step differently, in this folder."""
    shape, chosen = small(channels, **changes), channel_set(channels)
    model = build(shape, seed=5)
    wake(model, seed=5, tendency=0.3)
    if model.sharing is not None:
        model.sharing.start()
    if model.diffusion is not None:
        model.diffusion.start()
        model.diffusion.mean.normal_()
    card = ModelCard(
        name=folder.name,
        description="for the tests",
        trained=False,
        licence="CC0-1.0",
        channel_set=channels,
        registration=registration,  # type: ignore[arg-type]
        architecture=shape,
        statistics=Statistics.of(chosen, standard_statistics(chosen.channels)),
    )
    return checkpoint.save(folder, model, card=card)


def states_of(model: Checkpoint, rng: np.random.Generator) -> list[np.ndarray]:
    """Normalised states, as many as the model starts from, the oldest first."""
    shape = (len(model.channels), *model.grid.shape)
    return [rng.standard_normal(shape, np.float32) for _ in range(model.history)]
