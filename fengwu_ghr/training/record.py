"""What a training run leaves in its folder: the state to resume from, the log of losses, the curves.

The state is one safetensors file, replaced whole: a crash while it is written leaves the one before.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fengwu_ghr.durable import append, flush, replace_file, writing
from fengwu_ghr.errors import UsageError
from fengwu_ghr.training.identity import check_unchanged

STATE, LOG, CURVES = "state.safetensors", "log.jsonl", "curves.png"


@dataclass(frozen=True)
class SavedState:
    """Everything that training goes on from after `step` steps, by name."""

    step: int
    tensors: Mapping[str, Float[Tensor, "..."]]


def save_state(folder: Path, state: SavedState, description: Mapping[str, Any]) -> None:
    """The state is on the device, with what it was trained for. Raises OutputError."""
    path = folder / STATE
    unfinished = path.with_suffix(".unfinished")
    about = {"step": str(state.step), "description": json.dumps(description, sort_keys=True)}
    with writing(path):
        save_file({name: t.detach().contiguous() for name, t in state.tensors.items()}, unfinished, about)
        flush(unfinished)
        os.replace(unfinished, path)
        flush(folder)


def load_state(folder: Path, description: Mapping[str, Any]) -> SavedState | None:
    """The saved state, on the CPU; None where nothing was saved.

    Raises UsageError where it cannot be read, or naming each key in which `description` is not what it was.
    """
    path = folder / STATE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
            check_unchanged(folder, json.loads(about["description"]), json.loads(json.dumps(description)))
            return SavedState(int(about["step"]), {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path} cannot be resumed from ({error!r}); remove {folder} to train anew"
        ) from error


class Log:
    """Lines of JSON with a `step` each: `loss` and its companions, or `validation`."""

    def __init__(self, folder: Path, *, step: int) -> None:
        """What was logged after `step` steps is dropped: those steps are computed again."""
        self.path = folder / LOG
        kept = [entry for entry in read_log(folder) if entry["step"] <= step]
        with writing(self.path):
            replace_file(self.path, "".join(map(_line, kept)).encode())

    def write(self, entry: Mapping[str, Any]) -> None:
        with writing(self.path):
            append(self.path, _line(entry).encode(), durable=False)

    def flush(self) -> None:
        """What was written is on the device."""
        with writing(self.path):
            flush(self.path)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Every whole entry of the log in this folder, the oldest first."""
    path = folder / LOG
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def last_validation(folder: Path) -> dict[str, float]:
    """What validation found last; nothing where it never ran."""
    found = [entry["validation"] for entry in read_log(folder) if "validation" in entry]
    return found[-1] if found else {}


def draw_curves(folder: Path) -> None:
    """The losses, and every number of the validations over its first, as a picture; nothing without matplotlib."""
    if find_spec("matplotlib") is None:
        return
    from matplotlib.figure import Figure

    entries = read_log(folder)
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    losses, validations = figure.subplots(1, 2)
    steps = [entry for entry in entries if "loss" in entry]
    losses.plot([e["step"] for e in steps], [e["loss"] for e in steps], linewidth=0.5, color="tab:blue")
    losses.set(xlabel="step", ylabel="training loss")
    if all(entry["loss"] > 0 for entry in steps):
        losses.set_yscale("log")
    checks = [entry for entry in entries if "validation" in entry]
    for name in checks[0]["validation"] if checks else ():
        values = [e["validation"].get(name, float("nan")) for e in checks]
        if values[0] and any(value != values[0] for value in values):  # persistence never changes
            shares = [value / values[0] for value in values]
            validations.plot([e["step"] for e in checks], shares, label=name)
    validations.set(xlabel="step", ylabel="validation, over the first")
    if validations.lines:
        validations.legend(fontsize=6, ncols=2)
    with writing(folder / CURVES):
        figure.savefig(folder / CURVES, dpi=110)


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, allow_nan=False) + "\n"
