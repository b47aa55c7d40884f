"""What decides a result of training, and whether that result is the one that is there."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fengwu_ghr.config import Section
from fengwu_ghr.durable import make_folder, replace_file, writing
from fengwu_ghr.errors import UsageError
from fengwu_ghr.model_card import CARD, read_card
from fengwu_ghr.training.world import World

_DESCRIPTION = "made-of.json"
_ABSENT = "absent"


def describe_world(world: World) -> dict[str, Any]:
    """What of a world decides what is learned: how many training states, and their statistics, hashed."""
    statistics = world.statistics
    digest = hashlib.sha256(json.dumps([world.channels.names, statistics.persisted]).encode())
    for values in (statistics.normalisation.mean, statistics.normalisation.std, statistics.tendency_std):
        digest.update(np.ascontiguousarray(values, "<f4").tobytes())
    return {"train_states": sum(map(len, world.series("train"))), "statistics": digest.hexdigest()}


def identity_of(world: World, settings: Section) -> str:
    """sha256 of all that decides the result, for the model card and for recognising a finished run."""
    # How often one looks or saves, and on how many threads, is no part of it.
    free = {"train": {"validate_every", "save_every", "threads"}}
    decides = {"settings": settings.model_dump(mode="json", exclude=free), "world": describe_world(world)}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def identity_in(model: Path) -> str | None:
    """The identity that the card of this checkpoint holds; None where there is no checkpoint."""
    return read_card(model).provenance.get("identity", "none") if (model / CARD).exists() else None


def is_made(target: Path, found: str | None, identity: str) -> bool:
    """Whether this very result is in `target`, which holds the identity `found`, or None: nothing yet.

    Raises UsageError where the result of other settings is there.
    """
    if found is not None and found != identity:
        raise UsageError(
            f"{target} was made with other settings, of another base or on another world (identity {found[:12]}, "
            f"this run has {identity[:12]}); choose another folder, or remove it"
        )
    return found is not None


def claim(folder: Path, description: Mapping[str, Any]) -> None:
    """The folder is there and says what its results are made of; raises UsageError where it says otherwise."""
    path, text = folder / _DESCRIPTION, json.dumps(description, indent=1)
    if path.exists():
        check_unchanged(folder, json.loads(path.read_text(encoding="utf-8")), json.loads(text))
        return
    with writing(path):
        make_folder(folder)
        replace_file(path, text.encode())


def check_unchanged(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises UsageError naming each key in which what began in this folder was described otherwise."""
    was, is_ = dict(_flat(before)), dict(_flat(now))
    changed = [
        f"{key} was {was.get(key, _ABSENT)}, is {is_.get(key, _ABSENT)}"
        for key in sorted(was.keys() | is_.keys())
        if was.get(key, _ABSENT) != is_.get(key, _ABSENT)
    ]
    if changed:
        raise UsageError(
            f"what lies in {folder} began with other settings: {'; '.join(changed)}; give the former ones to "
            "resume, choose another folder, or remove it"
        )


def _flat(tree: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
