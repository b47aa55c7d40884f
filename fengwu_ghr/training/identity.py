"""What decides a result of training, and whether that result is the one that is there."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from fengwu_ghr.config import Section
from fengwu_ghr.durable import make_folder, replace_file, writing
from fengwu_ghr.errors import UsageError
from fengwu_ghr.model_card import CARD, ModelCard, read_card
from fengwu_ghr.training.world import World

_DESCRIPTION = "made-of.json"
_ABSENT, _NONE = "absent", "none"
_WORLD, _TRAINED_ON, _PERSISTED = "world", "trained on", "persisted channels"


def describe_world(world: World) -> dict[str, Any]:
    """What of a world decides what is learned: how many training states, and their statistics, hashed."""
    statistics = world.statistics
    digest = hashlib.sha256(json.dumps([world.channels.names, statistics.persisted]).encode())
    for values in (statistics.normalisation.mean, statistics.normalisation.std, statistics.tendency_std):
        digest.update(np.ascontiguousarray(values, "<f4").tobytes())
    return {"train_states": sum(map(len, world.series("train"))), "statistics": digest.hexdigest()}


def training_periods(world: World) -> list[dict[str, Any]]:
    """The weather that a model of this world is trained on: which simulation, from when to when."""
    made_by = world.made_by
    return [
        {
            "simulation": _simulation(made_by, series.member),
            "first": series.times[0].isoformat(),
            "last": series.times[-1].isoformat(),
        }
        for series in world.series("train")
    ]


def world_provenance(world: World, before: ModelCard | None = None) -> dict[str, str]:
    """What a card says of the world its model learned, and of those it learned `before`."""
    periods = [*(trained_on(before) if before else []), *training_periods(world)]
    return {
        _WORLD: json.dumps(describe_world(world)),
        _TRAINED_ON: json.dumps(periods),
        _PERSISTED: ", ".join(world.statistics.persisted) or _NONE,
    }


def inherited_provenance(card: ModelCard) -> dict[str, str]:
    """What the card of a model says of its world, for the card of a model that is made of it."""
    return {key: card.provenance[key] for key in (_WORLD, _TRAINED_ON, _PERSISTED) if key in card.provenance}


def trained_on(card: ModelCard) -> list[dict[str, Any]]:
    """The `training_periods` of a model, as its card has them; none where it does not say."""
    return list(json.loads(card.provenance.get(_TRAINED_ON, "[]")))


def persisted_of(card: ModelCard) -> list[str]:
    """The channels that a model persists, as its card has them."""
    named = card.provenance.get(_PERSISTED, _NONE)
    return [] if named == _NONE else named.split(", ")


def check_unseen(card: ModelCard, world: World) -> None:
    """Raises UsageError where the model of this card was trained on the test weather of this world."""
    if "test" not in world.splits:
        return
    for series in world.series("test"):
        simulation = _simulation(world.made_by, series.member)
        for period in trained_on(card):
            first, last = (datetime.fromisoformat(period[end]) for end in ("first", "last"))
            if period["simulation"] == simulation and first <= series.times[-1] and series.times[0] <= last:
                raise UsageError(
                    f"{card.name} was trained on {first:%Y-%m-%d} to {last:%Y-%m-%d} of {simulation}, which this world "
                    "holds out for tests; give the members of this world other seeds"
                )


def _simulation(made_by: Mapping[str, Any], member: int) -> str:
    members = made_by.get("members", [])
    begun = members[member] if member < len(members) else {"seed": "unknown", "start": "unknown"}
    return f"seed {begun['seed']} from {begun['start']} at T{made_by.get('truncation')}"


def identity_of(world: World, settings: Section, *, start: str | None = None) -> str:
    """sha256 of all that decides the result, for the model card and for recognising a finished run.

    `start` is the digest of the checkpoint that it begins with.
    """
    # How often one looks or saves, and on how many threads, is no part of it; nor where a checkpoint lies.
    free: Any = {"start": True, "train": {"validate_every", "save_every", "threads"}}
    decides: dict[str, Any] = {"settings": settings.model_dump(mode="json", exclude=free)}
    decides["world"] = describe_world(world)
    decides |= {"start": start} if start else {}
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
