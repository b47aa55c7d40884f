"""The run store: a forecast as sharded Zarr that opens in xarray, written lead by lead and committed.

One shard is one field: one initial time, lead, variable and level. Shards are compressed into a staging folder,
summed, flushed to the device and renamed into place; then one line of the manifest commits the lead. A lead that
is not in the manifest does not exist, and whoever opens the store for writing next removes what is left of it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorstore
from jaxtyping import Float32

from fengwu_ghr.durable import checksum_file, is_locked, lock, remove_tree, writing
from fengwu_ghr.errors import InputError
from fengwu_ghr.layout import StorePlan
from fengwu_ghr.lead import LeadWriter, WritingTable, round_mantissa
from fengwu_ghr.manifest import Manifest, stamp
from fengwu_ghr.restart import Restart, RestartArray, RestartSlots
from fengwu_ghr.skeleton import add_attribute, check_resumable, read_plan, write_plan
from fengwu_ghr.target import LOCK, is_occupied, put_store, remove_store
from fengwu_ghr.variables import Channel

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["LeadWriter", "Restart", "RunStore", "StorePlan", "open_run", "round_mantissa"]

_RESTART = "_restart"
_THREADS = 4
"""That wait for the disk: flushing and reading back."""

Field = Float32[np.ndarray, "lat lon"]


class RunStore:
    """A run store on disk. Reading needs nothing; whoever writes an initial time claims it first.

    A claim is a lock of the operating system: it ends with the process, however that ends. A context manager: leaving
    it releases every claim. `durable=False` skips every flush: for benchmarks.
    """

    def __init__(self, path: Path, plan: StorePlan, *, durable: bool = True) -> None:
        self.path, self.plan, self.durable = path, plan, durable
        self._manifests: dict[datetime, Manifest] = {}
        self._claims: dict[datetime, ExitStack] = {}
        self._tables: dict[datetime, WritingTable] = {}
        self._flushing = ThreadPoolExecutor(_THREADS, thread_name_prefix="flush")
        self._arrays: dict[tuple[Path, str], Any] = {}

    @classmethod
    def create(
        cls,
        path: Path,
        plan: StorePlan,
        attributes: Mapping[str, Any],
        *,
        write: Sequence[datetime] | None = None,
        overwrite: bool = False,
        durable: bool = True,
    ) -> "RunStore":
        """The store of this plan, new or resumed, open for writing these initial times; None means all.

        `attributes` (title, source ...) are entered when it is new. Raises UsageError when the target is anything
        but nothing or a store of this plan; `overwrite` replaces any run store, but nothing else. OutputError when
        it cannot be written.
        """
        path = path.resolve()
        if overwrite:
            remove_store(path)
        if not is_occupied(path):
            put_store(path, partial(write_plan, plan=plan, attributes=attributes))
        check_resumable(path, plan)
        return cls(path, plan, durable=durable)._claiming(plan.initial_times if write is None else write)

    @classmethod
    def open(cls, path: Path, *, write: Sequence[datetime] = ()) -> "RunStore":
        """The store that is there, open for reading, and for writing the initial times named.

        Raises InputError when it is not a run store; UsageError when another process writes one of those times.
        """
        return cls(path.resolve(), read_plan(path))._claiming(write)

    def __enter__(self) -> "RunStore":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """No thread is left and other processes may write."""
        self._flushing.shutdown()
        for time in tuple(self._claims):
            self.release(time)

    # Reading

    def committed(self, initial_time: datetime) -> tuple[timedelta, ...]:
        """The leads that exist, ascending."""
        return tuple(sorted(self._manifest(initial_time).leads()))

    def read(self, channel: Channel, initial_time: datetime, lead: timedelta) -> Field:
        """One committed field, as it was written. Raises InputError when it does not exist or has been damaged."""
        if channel not in self.plan.channels:
            raise InputError(
                f"{self.path} does not hold {channel}; it holds {', '.join(map(str, self.plan.channels))}"
            )
        stated = self.shards(initial_time, lead)[channel]
        damage = self._damage(channel, initial_time, lead, stated)
        if damage:
            raise InputError(f"{self.path}: {damage}; compute the run again with --overwrite")
        array = self._array(self.path, channel.variable)
        return array[self.plan.shard(channel, initial_time, lead)].read().result()

    def shards(self, initial_time: datetime, lead: timedelta) -> dict[Channel, dict[str, int]]:
        """Size and checksum of each field of a committed lead; raises InputError where it does not exist."""
        stated = self._manifest(initial_time).leads().get(lead)
        if stated is None:
            there = ", ".join(f"+{_hours(found)} h" for found in self.committed(initial_time)) or "none"
            raise InputError(
                f"{self.path} does not hold lead +{_hours(lead)} h from {initial_time:%Y-%m-%d %H:%M}; "
                f"committed: {there}"
            )
        return {channel: stated[str(channel)] for channel in self.plan.channels}

    def numerics_changed(self, initial_time: datetime) -> bool:
        """Whether the run went on with other numerics than it began with."""
        return any(entry["kind"] == "change" for entry in self._manifest(initial_time).entries())

    def verify(self) -> tuple[str, ...]:
        """What no longer matches the checksums of the manifest, in words; nothing when all is well."""
        with ThreadPoolExecutor(_THREADS) as pool:
            return tuple(damage for damage in pool.map(lambda job: job(), self._checks()) if damage)

    def fingerprint(self, initial_time: datetime, lead: timedelta) -> str:
        """The checksums of a committed lead as text; empty where it does not exist."""
        return json.dumps(self._manifest(initial_time).leads().get(lead, ""), sort_keys=True)

    def provenance(self, initial_time: datetime) -> dict[str, Any] | None:
        """What was recorded by `begin_run` with later changes applied; None before the run has begun."""
        found: dict[str, Any] | None = None
        for entry in self._manifest(initial_time).entries():
            if entry["kind"] in ("run", "change"):
                found = (found or {}) | entry["provenance"]
        return found

    def finished(self, initial_time: datetime) -> str | None:
        """What was noted when the initial time was finished; None where it is not."""
        last = self._manifest(initial_time).last()
        return last["note"] if last is not None and last["kind"] == "finished" else None

    def is_claimed(self, initial_time: datetime) -> bool:
        """Whether a process is writing this initial time now."""
        return is_locked(self._manifest(initial_time).path.with_suffix(".lock"))

    # Writing

    def claim(self, initial_time: datetime) -> None:
        """This process alone may write the initial time, and what a dead one left half-done is cleared away.

        Raises UsageError when another process, or another thread of this one, has claimed it.
        """
        manifest, held = self._manifest(initial_time), ExitStack()
        with writing(self.path), held:
            replaced = f"another process is replacing {self.path}"
            held.enter_context(lock(self.path / LOCK, holder=replaced, shared=True))
            busy = f"another process is writing {initial_time:%Y-%m-%d %H:%M} of {self.path}"
            held.enter_context(lock(manifest.path.with_suffix(".lock"), holder=busy))
            manifest.cut_torn_line()
            table = WritingTable(
                self.path,
                self.plan,
                initial_time,
                manifest=manifest,
                open_array=self._array,
                flushing=self._flushing,
                durable=self.durable,
            )
            table.clear_uncommitted()
            self._claims[initial_time], self._tables[initial_time] = held.pop_all(), table

    def release(self, initial_time: datetime) -> None:
        """Other processes may claim the initial time; nothing happens where this one has not."""
        table, held = self._tables.pop(initial_time, None), self._claims.pop(initial_time, ExitStack())
        self._manifests.pop(initial_time, None)  # a season would fill the memory with them
        with held:
            if table is not None:
                for key in list(self._arrays):  # a copy: another thread may add to them
                    if key[0] == table.staging:
                        del self._arrays[key]
                with suppress(OSError):  # what is left there is cleared away by whoever writes next
                    remove_tree(table.staging)

    def discard(self, initial_time: datetime) -> None:
        """Nothing is left of the initial time, as if it had never begun."""
        table = self._table(initial_time)
        with writing(self.path):
            table.manifest.path.unlink(missing_ok=True)
            self.clear_restart(initial_time)
            table.clear_uncommitted()

    def finish(self, initial_time: datetime, note: str) -> None:
        """The manifest ends with this note: every product of the initial time is there."""
        if self.finished(initial_time) != note:
            entry = {"kind": "finished", "note": note}
            self._table(initial_time).manifest.append(entry, durable=self.durable)

    def begin_run(self, initial_time: datetime, provenance: Mapping[str, Any]) -> None:
        """The provenance stands in the manifest; in the store's attributes too, where it holds one initial time."""
        if self.provenance(initial_time) is not None:
            raise ValueError(f"the run of {initial_time} has begun already; note a change instead")
        self._record("run", initial_time, provenance)

    def note_change(self, initial_time: datetime, provenance: Mapping[str, Any]) -> None:
        """These parts of the provenance hold for the leads that are committed from now on."""
        self._record("change", initial_time, provenance)

    def begin_lead(self, initial_time: datetime, lead: timedelta) -> "LeadWriter":
        """A writer for the fields of a planned lead that is not committed yet, else ValueError."""
        table = self._table(initial_time)
        if self.provenance(initial_time) is None:
            raise ValueError(f"begin the run of {initial_time} with its provenance before its leads")
        if lead in table.manifest.leads():
            raise ValueError(
                f"lead {lead} of {initial_time} is committed; committed leads are never rewritten"
            )
        return LeadWriter(table, lead)

    def save_restart(
        self,
        initial_time: datetime,
        step: int,
        arrays: Sequence[RestartArray],
        meta: dict[str, Any] | None = None,
    ) -> None:
        """The master state after `step` steps is on the device, in the older of two slots."""
        self._table(initial_time)
        self._restart(initial_time).save(step, arrays, meta)

    def load_restart(self, initial_time: datetime, *, max_step: int | None = None) -> Restart | None:
        """The newest undamaged save, not beyond `max_step` steps; None when there is none."""
        self._table(initial_time)
        return self._restart(initial_time).load(max_step=max_step)

    def has_restart(self, initial_time: datetime) -> bool:
        """Whether a state was saved of a run that has not ended."""
        return self._restart(initial_time).is_there

    def clear_restart(self, initial_time: datetime) -> None:
        """Nothing is left to resume from but the committed leads."""
        self._table(initial_time)
        self._restart(initial_time).clear()

    # Inside

    def _manifest(self, initial_time: datetime) -> Manifest:
        if initial_time not in self._manifests:
            self._check_planned(initial_time)
            self._manifests[initial_time] = Manifest.of(self.path, initial_time)
        return self._manifests[initial_time]

    def _check_planned(self, initial_time: datetime) -> None:
        if initial_time not in self.plan.time_index:
            times = [f"{time:%Y-%m-%d %H:%M}" for time in self.plan.initial_times]
            there = times[0] if len(times) == 1 else f"{len(times)} from {times[0]} to {times[-1]}"
            raise InputError(f"{self.path} has no initial time {initial_time:%Y-%m-%d %H:%M}; it has {there}")

    def _table(self, initial_time: datetime) -> WritingTable:
        if initial_time not in self._tables:
            raise ValueError(f"{self.path} is not open for writing {initial_time}")
        return self._tables[initial_time]

    def _record(self, kind: str, initial_time: datetime, provenance: Mapping[str, Any]) -> None:
        """The attribute comes first: a crash between the two lets the caller begin again."""
        manifest = self._table(initial_time).manifest
        if len(self.plan.initial_times) == 1:
            whole = {**(self.provenance(initial_time) or {}), **provenance}
            add_attribute(self.path, "provenance", json.dumps(whole, sort_keys=True))
        manifest.append({"kind": kind, "provenance": dict(provenance)}, durable=self.durable)

    def _restart(self, initial_time: datetime) -> RestartSlots:
        return RestartSlots(self.path / _RESTART / stamp(initial_time))

    def _array(self, root: Path, variable: str) -> Any:
        """The variable's array with its shards below `root`, which is the store or its staging folder."""
        key = root, variable
        if key not in self._arrays:
            self._arrays[key] = _open_array(self.path / variable / "zarr.json", root / variable)
        return self._arrays[key]

    def _damage(
        self, channel: Channel, initial_time: datetime, lead: timedelta, stated: dict[str, int]
    ) -> str:
        """What is wrong with a committed shard, in words."""
        shard = self.plan.shard_path(channel, initial_time, lead)
        try:
            size, value = checksum_file(self.path / shard)
        except OSError as error:
            return f"{shard} cannot be read: {error.strerror}"
        matches = (size, value) == (stated["bytes"], stated["crc32c"])
        return "" if matches else f"{shard} does not match its checksum"

    def _checks(self) -> Iterator[partial[str]]:
        for time in self.plan.initial_times:
            for lead, shards in self._manifest(time).leads().items():
                for channel in self.plan.channels:
                    yield partial(self._damage, channel, time, lead, shards[str(channel)])

    def _claiming(self, initial_times: Sequence[datetime]) -> "RunStore":
        try:
            for time in initial_times:
                self.claim(time)
        except BaseException:
            self.close()
            raise
        return self


def open_run(path: Path, *, chunks: dict[str, int] | None = None) -> "xr.Dataset":
    """The run store as a lazy dataset in which leads that are not committed are NaN. Raises InputError.

    `chunks` are dask's, by dimension; without them the chunks of the store.
    """
    import xarray as xr  # takes a second, which those who ask how far a season is do not have

    with RunStore.open(path) as store:
        plan, dataset = store.plan, xr.open_zarr(store.path, chunks=chunks or {})
        there = (set(store.committed(time)) for time in plan.initial_times)
        rows = [[lead in committed for lead in plan.leads] for committed in there]
    exists = xr.DataArray(np.array(rows), dims=("time", "prediction_timedelta"))
    return dataset if exists.all() else dataset.where(exists)


def _open_array(metadata: Path, folder: Path) -> Any:
    """A tensorstore array over the shards in `folder`, which needs no metadata of its own."""
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{folder}/", "file_io_sync": False},
        "metadata": json.loads(metadata.read_text()),
        "store_data_equal_to_fill_value": True,
    }
    return tensorstore.open(spec, open=True, assume_metadata=True).result()


def _hours(lead: timedelta) -> str:
    return f"{lead / timedelta(hours=1):g}"
