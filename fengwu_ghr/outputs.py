"""Outputs: a lead time's fields go to every sink in the background, bounded, and a failure stops the run there.

While the model computes lead n + 1, threads turn the master state of lead n into product fields, compress and
encode them. One lead is in flight at most: handing over the next one waits for it, and raises what it raised.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from fengwu_ghr.errors import ConformanceError
from fengwu_ghr.grib.encode import GribEncoder, index_path, lead_file_name, write_messages
from fengwu_ghr.progress import Stopwatch
from fengwu_ghr.store import LeadWriter, RunStore
from fengwu_ghr.variables import Channel

LOG = logging.getLogger("fengwu_ghr")

ProductField = Float32[np.ndarray, "lat lon"]


@runtime_checkable
class Sink(Protocol):
    """Takes the fields of one lead at a time; `field` is called from several threads, in any order."""

    def begin(self, lead: timedelta) -> None:
        """Prepare for the fields of this lead."""

    def field(self, channel: Channel, values: ProductField) -> None:
        """Take one product field, in registry units."""

    def commit(self) -> None:
        """Make the lead durable; every field has been taken."""


class ZarrSink:
    """Fields into a run store; the lead exists once it is committed there."""

    def __init__(self, store: RunStore, initial_time: datetime) -> None:
        self._store, self._initial_time = store, initial_time
        self._writer: LeadWriter | None = None

    def begin(self, lead: timedelta) -> None:
        self._writer = self._store.begin_lead(self._initial_time, lead)

    def field(self, channel: Channel, values: ProductField) -> None:
        assert self._writer is not None
        self._writer.write(channel, values)

    def commit(self) -> None:
        assert self._writer is not None
        self._writer.commit()


class GribSink:
    """One GRIB2 file per lead, messages in channel order, with its index beside it.

    An accumulation over hours before the initial time is no forecast product; a lead that has nothing else has no
    file.
    """

    def __init__(
        self, folder: Path, encoder: GribEncoder, initial_time: datetime, *, channels: Sequence[Channel]
    ) -> None:
        self._folder, self._encoder, self._initial_time = folder, encoder, initial_time
        self._channels = channels
        self._lead = timedelta(0)
        self._messages: dict[Channel, bytes] = {}

    def has_file(self, lead: timedelta) -> bool:
        """Whether there is anything to write at this lead, and so a file once it is committed."""
        return any(_is_product(channel, lead) for channel in self._channels)

    def is_written(self, lead: timedelta) -> bool:
        """Whether the file of this lead is there, and its index, which is written last."""
        path = self.path(lead)
        return path.exists() and index_path(path).exists()

    def path(self, lead: timedelta) -> Path:
        """Where the file of this lead lies, if it has one."""
        return self._folder / lead_file_name(self._initial_time, lead)

    def begin(self, lead: timedelta) -> None:
        self._lead, self._messages = lead, {}

    def field(self, channel: Channel, values: ProductField) -> None:
        if not _is_product(channel, self._lead):
            return
        self._messages[channel] = self._encoder.encode(
            channel, values, initial_time=self._initial_time, lead=self._lead
        )

    def commit(self) -> None:
        ordered = [(c, self._messages[c]) for c in self._channels if c in self._messages]
        if ordered:
            write_messages(self.path(self._lead), ordered)
        self._messages = {}


def _is_product(channel: Channel, lead: timedelta) -> bool:
    """Whether the forecast covers all hours that the channel speaks of."""
    return lead >= timedelta(hours=channel.definition.period_hours)


class Outputs:
    """Writes leads to sinks in the background; the last sink commits last and decides that the lead exists."""

    def __init__(
        self,
        sinks: Sequence[Sink],
        channels: Sequence[Channel],
        *,
        threads: int,
        clock: Stopwatch | None = None,
    ) -> None:
        self._sinks, self._channels, self._clock = sinks, channels, clock or Stopwatch()
        self._fields = ThreadPoolExecutor(threads, thread_name_prefix="field")
        self._leads = ThreadPoolExecutor(1, thread_name_prefix="lead")
        self._in_flight: Future[None] | None = None

    def submit(
        self,
        lead: timedelta,
        product: Callable[[Channel], ProductField],
        *,
        before: Callable[[], None] | None = None,
        after: Callable[[], None] | None = None,
    ) -> None:
        """Start writing a lead, once the one in flight is done; `before` runs first, `after` when it is committed.

        `product` is called from several threads and must be safe to call until `wait` returns. Raises what the
        lead before failed with.
        """
        self.run(partial(self._write, lead, product, before, after))

    def run(self, job: Callable[[], None]) -> None:
        """Start a job in the background, once the one in flight is done."""
        self.wait()
        self._in_flight = self._leads.submit(job)

    def wait(self) -> None:
        """Return when no lead is in flight; raises what the last one failed with."""
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is not None:
            in_flight.result()

    def close(self) -> None:
        """Stop the threads; a lead in flight is finished first, its failure is the caller's to fetch by `wait`."""
        self._leads.shutdown()
        self._fields.shutdown()

    def _write(
        self,
        lead: timedelta,
        product: Callable[[Channel], ProductField],
        before: Callable[[], None] | None,
        after: Callable[[], None] | None,
    ) -> None:
        if before is not None:
            before()
        with self._clock.measure("write"):
            self._write_fields(lead, product)
        if after is not None:
            after()

    def _write_fields(self, lead: timedelta, product: Callable[[Channel], ProductField]) -> None:
        for sink in self._sinks:
            sink.begin(lead)
        tasks = [self._fields.submit(self._write_field, channel, product) for channel in self._channels]
        try:
            for task in tasks:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
        for sink in self._sinks:
            sink.commit()
        LOG.debug("committed %d fields of lead %s", len(self._channels), lead)

    def _write_field(self, channel: Channel, product: Callable[[Channel], ProductField]) -> None:
        values = product(channel)
        broken = np.isinf(values) if channel.definition.may_miss else ~np.isfinite(values)
        if count := int(broken.sum()):
            raise ConformanceError(
                f"{channel.description} has {count} values that are not finite; the run stops here"
            )
        for sink in self._sinks:
            sink.field(channel, values)
