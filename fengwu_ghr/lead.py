"""Writing one lead: its fields are staged, summed and flushed, renamed into place, and committed by one line."""

import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from fengwu_ghr.durable import (
    checksum_file,
    flush,
    flush_tree,
    make_folder,
    remove_tree,
    unwritable,
    writing,
)
from fengwu_ghr.layout import MANTISSA_BITS, StorePlan
from fengwu_ghr.manifest import Manifest, stamp
from fengwu_ghr.variables import Channel

_STAGING = "_staging"

Field = Float32[np.ndarray, "lat lon"]


@dataclass(frozen=True)
class WritingTable:
    """What writing one initial time needs; whoever holds it holds the lock.

    `open_array(root, variable)` gives the array whose shards stand below `root`; `flushing` waits for the disk.
    """

    path: Path
    plan: StorePlan
    initial_time: datetime
    manifest: Manifest
    open_array: Callable[[Path, str], Any]
    flushing: ThreadPoolExecutor
    durable: bool

    @property
    def staging(self) -> Path:
        return self.path / _STAGING / stamp(self.initial_time)

    def folder(self, variable: str, lead: timedelta) -> Path:
        return Path(self.plan.lead_folder(variable, self.initial_time, lead))

    def clear_uncommitted(self) -> None:
        """No shard is left of leads that the manifest does not have."""
        remove_tree(self.staging)
        committed = self.manifest.leads()
        for variable in self.plan.variables:
            for lead in self.plan.leads:
                if lead not in committed:
                    remove_tree(self.path / self.folder(variable, lead))


class LeadWriter:
    """Takes the fields of one lead, from any number of threads, and commits them together."""

    def __init__(self, table: WritingTable, lead: timedelta) -> None:
        self._table, self._lead = table, lead
        self._guard = threading.Lock()
        self._taken: set[Channel] = set()
        self._shards: dict[Channel, Future[dict[str, int]]] = {}
        with writing(table.path):
            for variable in table.plan.variables:
                for root in (table.staging, table.path):
                    remove_tree(root / table.folder(variable, lead))

    def write(self, channel: Channel, values: Field) -> None:
        """The field is compressed and written, not yet committed; `values` may be reused. Raises OutputError.

        ValueError when the channel is not planned, was written before, or the shape is not the grid's.
        """
        table = self._table
        index = table.plan.shard(channel, table.initial_time, self._lead)
        if values.shape != table.plan.grid.shape or values.dtype != np.float32:
            expected = f"float32 {table.plan.grid.shape}"
            raise ValueError(f"{channel} must be {expected}; got {values.dtype} {values.shape}")
        self._take(channel)
        kept = values if table.plan.keep_bits is None else round_mantissa(values, table.plan.keep_bits)
        array = table.open_array(table.staging, channel.variable)
        try:
            array[index].write(kept, can_reference_source_data_indefinitely=True).result()
        except (ValueError, RuntimeError) as error:  # how tensorstore reports a failure of the file system
            code = re.search(r"os_error_code='(\d+)'", str(error))
            if code is None:
                raise unwritable(table.staging, str(error)) from error
            raise unwritable(table.staging, os.strerror(int(code[1])), int(code[1])) from error
        self._shards[channel] = table.flushing.submit(self._finish, channel)

    def commit(self) -> None:
        """The lead exists, durably. Raises ValueError when channels are missing, OutputError when it fails."""
        table = self._table
        missing = [str(channel) for channel in table.plan.channels if channel not in self._shards]
        if missing:
            raise ValueError(f"lead {self._lead} cannot be committed without {', '.join(missing)}")
        with writing(table.path):
            shards = {str(channel): shard.result() for channel, shard in self._shards.items()}
            self._move_into_place()
        line = {"kind": "lead", "lead_seconds": self._lead // timedelta(seconds=1), "shards": shards}
        table.manifest.append(line, durable=table.durable)

    def _take(self, channel: Channel) -> None:
        with self._guard:
            if channel in self._taken:
                raise ValueError(f"{channel} was already written for lead {self._lead}")
            self._taken.add(channel)

    def _finish(self, channel: Channel) -> dict[str, int]:
        """Reads back what was written, for its checksum, and flushes it."""
        table = self._table
        path = table.staging / table.plan.shard_path(channel, table.initial_time, self._lead)
        size, value = checksum_file(path)
        if table.durable:
            flush(path)
        return {"bytes": size, "crc32c": value}

    def _move_into_place(self) -> None:
        """A variable's shards move together, by renaming their folder."""
        for variable in self._table.plan.variables:
            folder = self._table.folder(variable, self._lead)
            staged, final = self._table.staging / folder, self._table.path / folder
            if self._table.durable:
                flush_tree(staged, files=False)
            make_folder(final.parent)
            os.rename(staged, final)
            if self._table.durable:
                flush(final.parent)


def round_mantissa(values: Field, keep_bits: int) -> Field:
    """The values with all but `keep_bits` bits of the mantissa zero, rounded half to even; NaN stays NaN.

    The relative error is at most 2 ** -(keep_bits + 1).
    """
    drop = MANTISSA_BITS - keep_bits
    if drop == 0:
        return values
    bits = values.view(np.uint32)
    half = np.uint32(2 ** (drop - 1) - 1)
    rounded = (bits + half + ((bits >> np.uint32(drop)) & np.uint32(1))) & np.uint32(2**32 - 2**drop)
    np.copyto(rounded, bits, where=np.isnan(values))
    return rounded.view(np.float32)
