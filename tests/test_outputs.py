"""Outputs run in the background without seeing later states, hold back the producer, and fail at their lead."""

import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fengwu_ghr.errors import ConformanceError, OutputError
from fengwu_ghr.grib.encode import GribEncoder
from fengwu_ghr.grid import LatLonGrid
from fengwu_ghr.outputs import GribSink, Outputs
from fengwu_ghr.variables import Channel, channel_set

CHANNELS = channel_set("ghr-69").channels[:6]


class Recording:
    """A sink that keeps what it was given, and may dawdle or fail."""

    def __init__(self, *, gate: threading.Event | None = None, fail_at: int | None = None) -> None:
        self.gate, self.fail_at = gate, fail_at
        self.lead = timedelta(0)
        self.fields: dict[tuple[timedelta, Channel], np.ndarray] = {}
        self.committed: list[timedelta] = []

    def begin(self, lead: timedelta) -> None:
        self.lead = lead

    def field(self, channel: Channel, values: np.ndarray) -> None:
        if self.gate:
            self.gate.wait(10)
        if self.fail_at is not None and self.lead == timedelta(hours=self.fail_at):
            raise OutputError(f"no space for {channel}")
        self.fields[self.lead, channel] = values.copy()

    def commit(self) -> None:
        self.committed.append(self.lead)


def _constant(state: np.ndarray, channel: Channel) -> np.ndarray:
    return np.full((3, 4), state[0], np.float32)


def _run(outputs: Outputs, leads: int, each: Callable[[int], None] | None = None) -> None:
    """Advance one buffer as a forecast does: wait, overwrite, submit."""
    state = np.zeros(1, np.float32)
    try:
        for lead in range(leads):
            outputs.wait()
            state[0] = lead
            outputs.submit(timedelta(hours=lead), partial(_constant, state))
            if each:
                each(lead)
        outputs.wait()
    finally:
        outputs.close()


def test_every_lead_holds_its_own_state_although_the_buffer_is_shared() -> None:
    sink = Recording()
    _run(Outputs([sink], CHANNELS, threads=3), leads=20)
    assert sink.committed == [timedelta(hours=h) for h in range(20)]
    for (lead, _), values in sink.fields.items():
        assert (values == lead / timedelta(hours=1)).all()
    assert len(sink.fields) == 20 * len(CHANNELS)


def test_one_lead_is_in_flight_and_the_next_waits() -> None:
    gate = threading.Event()
    sink = Recording(gate=gate)
    outputs = Outputs([sink], CHANNELS, threads=2)
    outputs.submit(timedelta(0), partial(_constant, np.zeros(1, np.float32)))
    waiting = threading.Thread(target=outputs.wait)
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    assert not sink.committed
    gate.set()
    waiting.join(10)
    assert sink.committed == [timedelta(0)]
    outputs.close()


def test_a_failed_write_stops_the_run_at_that_lead() -> None:
    sink = Recording(fail_at=2)
    started: list[int] = []
    with pytest.raises(OutputError, match="no space"):
        _run(Outputs([sink], CHANNELS, threads=2), leads=9, each=started.append)
    assert sink.committed == [timedelta(0), timedelta(hours=1)]
    assert started[-1] == 2


def test_no_sink_commits_when_a_later_one_failed_and_the_last_decides() -> None:
    products, store = Recording(), Recording(fail_at=1)
    with pytest.raises(OutputError):
        _run(Outputs([products, store], CHANNELS, threads=2), leads=3)
    assert products.committed == store.committed == [timedelta(0)]


def test_what_is_not_finite_never_reaches_a_sink() -> None:
    sink = Recording()
    outputs = Outputs([sink], CHANNELS, threads=2)
    outputs.submit(timedelta(0), partial(_constant, np.full(1, np.nan, np.float32)))
    with pytest.raises(ConformanceError, match="12 values that are not finite"):
        outputs.wait()
    assert not sink.fields
    assert not sink.committed
    outputs.close()


def test_after_runs_once_the_lead_is_committed() -> None:
    sink, seen = Recording(), []
    outputs = Outputs([sink], CHANNELS, threads=2)
    outputs.submit(
        timedelta(0), partial(_constant, np.ones(1, np.float32)), after=lambda: seen.extend(sink.committed)
    )
    outputs.wait()
    assert seen == [timedelta(0)]
    outputs.close()


def _grib_sink(folder: Path, *names: str) -> GribSink:
    grid = LatLonGrid(np.array([10.0, 0.0, -10.0]), np.arange(0, 360, 90.0))
    channels = [Channel(name) for name in names]
    return GribSink(folder, GribEncoder(grid), datetime(2024, 1, 1), channels=channels)


def _write_leads(sink: GribSink, *hours: int) -> None:
    for hour in hours:
        sink.begin(timedelta(hours=hour))
        for what in (Channel("2t"), Channel("tp6h")):
            if what in sink._channels:
                sink.field(what, np.full((3, 4), 280.0, np.float32))
        sink.commit()


def test_a_lead_of_nothing_but_accumulations_has_no_file_at_the_initial_time(tmp_path: Path) -> None:
    sink, begin, later = _grib_sink(tmp_path, "tp6h"), timedelta(0), timedelta(hours=6)
    _write_leads(sink, 0, 6)
    assert {path.name for path in tmp_path.iterdir()} == {
        "20240101000000-6h-oper-fc.grib2",
        "20240101000000-6h-oper-fc.index",
    }
    assert (sink.has_file(begin), sink.has_file(later)) == (False, True)
    assert (sink.is_written(begin), sink.is_written(later)) == (False, True)


def test_a_lead_with_instants_has_a_file_and_is_written_once_its_index_is(tmp_path: Path) -> None:
    sink, begin = _grib_sink(tmp_path, "2t", "tp6h"), timedelta(0)
    assert sink.has_file(begin)
    assert not sink.is_written(begin)
    _write_leads(sink, 0)
    assert sink.is_written(begin)
    sink.path(begin).with_suffix(".index").unlink()
    assert not sink.is_written(begin)
