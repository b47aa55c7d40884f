"""Restart slots: the newest master state and the one before it, each whole and verified or not there at all."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Float32

from fengwu_ghr.durable import checksum, flush, flush_tree, make_folder, remove_tree, writing

_SIDECAR = "slot.json"
_BLOCK = 2**24

RestartArray = Float32[np.ndarray, "..."]


@dataclass(frozen=True, eq=False)
class Restart:
    """What a rollout goes on from: the arrays as they were saved after `step` steps."""

    step: int
    arrays: tuple[RestartArray, ...]
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RestartSlots:
    """Two slots in one folder, written in turn: a crash while one is written leaves the other."""

    folder: Path

    def save(self, step: int, arrays: Sequence[RestartArray], meta: dict[str, Any] | None = None) -> None:
        """The arrays are on the device, in place of the older save. Takes no copies; raises OutputError."""
        slot = self._older()
        unfinished = slot.with_suffix(".unfinished")
        with writing(slot):
            make_folder(self.folder)
            remove_tree(unfinished)
            remove_tree(slot)  # before writing: the disk never holds three states
            unfinished.mkdir()
            stated = [_write_array(unfinished / f"{i}.npy", array) for i, array in enumerate(arrays)]
            _write_sidecar(unfinished / _SIDECAR, {"step": step, "arrays": stated, "meta": meta or {}})
            flush_tree(unfinished)
            os.rename(unfinished, slot)
            flush(self.folder)

    def load(self, *, max_step: int | None = None) -> Restart | None:
        """The newest save up to `max_step` whose every byte matches its checksum; None when there is none."""
        sidecars = [(sidecar, slot) for slot in self._slots() if (sidecar := _read_sidecar(slot)) is not None]
        for sidecar, slot in sorted(sidecars, key=lambda pair: -pair[0]["step"]):
            if max_step is not None and sidecar["step"] > max_step:
                continue
            arrays = [_read_array(slot / f"{i}.npy", stated) for i, stated in enumerate(sidecar["arrays"])]
            whole = tuple(array for array in arrays if array is not None)
            if len(whole) == len(arrays):
                return Restart(sidecar["step"], whole, sidecar["meta"])
        return None

    @property
    def is_there(self) -> bool:
        """Whether a slot says that it holds a state."""
        return any(_read_sidecar(slot) for slot in self._slots())

    def clear(self) -> None:
        """Both slots are gone."""
        with writing(self.folder):
            remove_tree(self.folder)

    def _slots(self) -> tuple[Path, Path]:
        return self.folder / "slot0", self.folder / "slot1"

    def _older(self) -> Path:
        """The slot to write next: an empty or damaged one, else the one with fewer steps."""
        return min(self._slots(), key=lambda slot: (_read_sidecar(slot) or {"step": -1})["step"])


def _write_array(path: Path, array: RestartArray) -> dict[str, Any]:
    """A .npy file; returns the shape and the checksum of the values."""
    if not array.flags.c_contiguous:
        raise ValueError(
            f"restart arrays must be C-contiguous; got strides {array.strides} for {array.shape}"
        )
    values = array.astype("<f4", copy=False)
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(values))
        file.flush()
        # A disk that is too full says so before gigabytes are written.
        os.posix_fallocate(file.fileno(), 0, file.tell() + values.nbytes)
        value = _write_values(file, values.reshape(-1).view(np.uint8))
    return {"shape": list(array.shape), "crc32c": value}


def _write_values(file: IO[bytes], octets: np.ndarray) -> int:
    """Blockwise, so that each block is summed while it is in the cache."""
    value = 0
    for start in range(0, octets.size, _BLOCK):
        block = octets[start : start + _BLOCK]
        value = checksum(block, value)
        file.write(block.data)
    return value


def _read_array(path: Path, stated: dict[str, Any]) -> RestartArray | None:
    """The values if they are what was stated when they were saved, else None."""
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
        if list(values.shape) != stated["shape"] or values.dtype != np.dtype("<f4"):
            return None
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return values if checksum(values.reshape(-1).view(np.uint8)) == stated["crc32c"] else None


def _write_sidecar(path: Path, sidecar: dict[str, Any]) -> None:
    text = json.dumps(sidecar, sort_keys=True, allow_nan=False)
    path.write_text(f"{checksum(text.encode()):08x}\n{text}\n")


def _read_sidecar(slot: Path) -> dict[str, Any] | None:
    """What the slot says of itself, None when it is absent or damaged."""
    try:
        stated, text = (slot / _SIDECAR).read_text().splitlines()
    except (OSError, ValueError):
        return None
    return json.loads(text) if stated == f"{checksum(text.encode()):08x}" else None
