"""Catalogue: where a model name is found, and untrained models made on first use.

An untrained model exercises everything around the network: with `zero` weights its forecast is persistence, with
`random` ones every step changes the fields a little and differently.
"""

import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from pydantic import ValidationError

from fengwu_ghr.backbone import ARCHITECTURES, Architecture, architecture
from fengwu_ghr.checkpoint import Checkpoint, save, verify
from fengwu_ghr.config import cache_folder
from fengwu_ghr.errors import OutputError, UsageError
from fengwu_ghr.grid import SCALES, product_grid
from fengwu_ghr.initialise import build, wake
from fengwu_ghr.model_card import CARD, ModelCard, Statistics, explain, read_card
from fengwu_ghr.normalise import Normalisation, standard_statistics
from fengwu_ghr.variables import channel_set

MODELS_VARIABLE = "FENGWU_GHR_MODELS"
RANDOM_TENDENCY = 0.01
"""Standard deviations by which an untrained random model changes its fields in a step, to a factor of two (rms)."""

_PACKAGED = Path(__file__).parent / "models"
_RECIPE = 2  # raise it when `initialise` draws other numbers: models in caches are then made anew
_LOG = logging.getLogger("fengwu_ghr")

_DESCRIPTIONS = {
    "zero": "Persistence: untrained, its tendency is zero, so that the forecast is the initial state at every lead.",
    "random": "Untrained: random weights that change the fields a little at every step, each step differently. "
    "For tests of everything around the network; as a forecast it means nothing.",
}


@dataclass(frozen=True)
class ListedModel:
    """One line of a list of models; `path` is None for one that is made on first use."""

    name: str
    state: str
    description: str
    path: Path | None


def resolve_model(name: str) -> Path:
    """The folder of a model: a path, else a name under $FENGWU_GHR_MODELS, else packaged, else made in the cache.

    Names such as ghr-tiny-0p09 (an architecture and the grid of its products) are made on first use, untrained,
    with random weights; a notice is logged. Raises UsageError listing what there is.
    """
    if Path(name).is_dir():
        return Path(name)
    for folder in _collections():
        if name in {path.name for path in _models_in(folder)}:
            return folder / name
    if name in _untrained_names():
        return _cached(name)
    raise UsageError(
        f"no model is named {name!r}; there are {', '.join(model.name for model in list_models())}; or give a folder "
        f"with a {CARD}, or set {MODELS_VARIABLE} to a folder of such folders"
    )


def packaged_folder() -> Path:
    """Where the models lie that the package brings."""
    return _PACKAGED


def list_models() -> list[ListedModel]:
    """What names find: models in their collections, then the untrained ones at true and at demo scale."""
    found = [_listing(path) for folder in _collections() for path in _models_in(folder)]
    for name, (size, scale) in _untrained_names().items():
        if scale in (1, 20):
            path = _cache_folder(name)
            what = f"{size} on {product_grid(scale)}, random weights"
            found.append(ListedModel(name, "untrained", what, path if path.is_dir() else None))
    return found


def verify_model(name: str) -> Checkpoint:
    """The checkpoint of this name or folder, every sum, tensor name, shape and value checked; else UsageError."""
    checkpoint = Checkpoint.open(resolve_model(name))
    verify(checkpoint)
    return checkpoint


def create_model(
    model: str | Architecture,
    *,
    output: Path,
    init: str = "random",
    seed: int = 0,
    channel_set: str = "ghr-69",
    registration: str = "nested",
    split: str = "pixel",
    statistics: Normalisation | None = None,
) -> Checkpoint:
    """An untrained model in a new folder; `model` is a name such as ghr-tiny-0p09, or an architecture as it is.

    `zero`: the tendency is exactly zero, so that every forecast is persistence. `random`: a tendency of 0.01
    to 0.02 standard deviations a step, bounded whatever the state, with adapters that differ at every lead step.
    Without statistics, the channels' standard ones. Raises UsageError for options that do not go together.
    """
    if init not in _DESCRIPTIONS:
        raise UsageError(f"init is {' or '.join(_DESCRIPTIONS)}; got {init!r}")
    try:
        shape = _named(model, channel_set, split) if isinstance(model, str) else model
        card = _card(shape, channel_set, registration, statistics).model_copy(
            update={
                "name": str(model) if isinstance(model, str) else model.name,
                "description": _DESCRIPTIONS[init],
                "provenance": {"weights": f"{init}, seed {seed}, recipe {_RECIPE}"},
            }
        )
    except ValidationError as error:
        raise UsageError(f"this model cannot be made: {explain(error)}") from error
    except ValueError as error:
        raise UsageError(f"this model cannot be made: {error}") from error
    network = build(shape, seed=seed)
    if init == "zero":
        torch.nn.init.zeros_(network.backbone.decoder.deconvolution.weight)
    else:
        wake(network, seed=seed, tendency=RANDOM_TENDENCY)
    return save(output, network, card=card)


def _card(
    shape: Architecture, channels: str, registration: str, statistics: Normalisation | None
) -> ModelCard:
    if shape.predicts != "tendency":
        raise ValueError("untrained models predict a tendency, since a state would be noise; got 'state'")
    chosen = channel_set(channels)
    return ModelCard(
        name=shape.name,
        description="",
        trained=False,
        licence="CC0-1.0",
        channel_set=channels,
        registration=cast(Literal["nested", "pixel"], registration),
        architecture=shape,
        statistics=Statistics.of(chosen, statistics or standard_statistics(chosen.channels)),
    )


def _named(name: str, channels: str, split: str) -> Architecture:
    """The architecture of a name such as ghr-tiny-0p09, for these channels."""
    names = _untrained_names()
    if name not in names:
        raise ValueError(f"no architecture is named {name!r}; there are {', '.join(names)}")
    if split not in ("pixel", "token"):
        raise ValueError(f"the split is made at pixel or token level; got {split!r}")
    size, scale = names[name]
    return architecture(size, scale=scale, channels=len(channel_set(channels)), split=split)


def _untrained_names() -> dict[str, tuple[str, int]]:
    """<architecture>-<product grid> for every size and scale."""
    return {f"{size}-{product_grid(scale).name}": (size, scale) for size in ARCHITECTURES for scale in SCALES}


def _cached(name: str) -> Path:
    folder = _cache_folder(name)
    if folder.is_dir():
        return folder
    _LOG.info("%s is an untrained architecture: making it with random weights, seed 0, in %s", name, folder)
    try:
        create_model(name, output=folder)
    except OutputError:
        # Another process was faster: names and contents are fixed by the seed, so that its model is ours.
        if not folder.is_dir():
            raise
    return folder


def _cache_folder(name: str) -> Path:
    """Holds the model of this name as this version makes it: another shape or recipe has another folder."""
    shape = asdict(_named(name, "ghr-69", "pixel"))
    digest = hashlib.sha256(f"{_RECIPE} {shape}".encode()).hexdigest()
    return cache_folder("models") / f"{name}-{digest[:8]}"


def _collections() -> Iterator[Path]:
    """Folders whose sub-folders are models, the user's first."""
    if folder := os.environ.get(MODELS_VARIABLE):
        if not Path(folder).is_dir():
            raise UsageError(
                f"{MODELS_VARIABLE} must name a folder of models; {folder} does not exist: make it, or unset it"
            )
        yield Path(folder)
    yield _PACKAGED


def _models_in(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"*/{CARD}"))


def _listing(path: Path) -> ListedModel:
    try:
        card = read_card(path)
    except UsageError as error:
        return ListedModel(path.name, "unreadable", str(error), path)
    return ListedModel(path.name, "trained" if card.trained else "untrained", card.description, path)
