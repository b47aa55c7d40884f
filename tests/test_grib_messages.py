"""Messages in files: where they are, what their headers say, and what happens to the processes that read them."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import gribs
import numpy as np
import pytest

from fengwu_ghr.errors import InputError
from fengwu_ghr.grib.messages import FieldInfo, channel_of, match, near_variables, scan
from fengwu_ghr.grib.pool import WorkerPool
from fengwu_ghr.grib.sections import find_messages, take_apart
from fengwu_ghr.variables import Channel

T500 = gribs.regular(**gribs.pressure())
T850_1 = gribs.regular(edition=1, table2Version=128, indicatorOfParameter=130, level=850)


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(1) as ready:
        yield ready


def only(pool: WorkerPool, path: Path, *messages: bytes) -> FieldInfo:
    (field,) = scan([gribs.write(path / "one.grib", *messages)], pool=pool)
    return field


# Boundaries


@pytest.mark.parametrize("junk", [b"", b"\r\r\nYXZB85 KWBC 101200\r\r\n", b"\0" * 4096, b"GRI" * (1 << 19)])
def test_bytes_between_messages_are_passed_over(tmp_path: Path, junk: bytes) -> None:
    path = gribs.write(tmp_path / "a.grib", junk, T500, junk, T850_1, junk)
    found = [(m.offset, m.length) for m in find_messages(path)]
    assert found == [(len(junk), len(T500)), (2 * len(junk) + len(T500), len(T850_1))]


@pytest.mark.parametrize("message", [T500, T850_1], ids=["GRIB2", "GRIB1"])
@pytest.mark.parametrize("kept", [5, 9, 20, 200, -1])
def test_a_message_that_is_cut_off_is_named_with_its_offset(
    tmp_path: Path, message: bytes, kept: int
) -> None:
    path = gribs.write(tmp_path / "cut.grib", T500, b"padding", message[:kept])
    with pytest.raises(InputError, match=rf"cut\.grib: the message at byte {len(T500) + 7} is cut off"):
        find_messages(path)


def test_a_wrong_length_is_named_with_its_offset(tmp_path: Path) -> None:
    wrong = T500[:8] + (len(T500) - 3).to_bytes(8, "big") + T500[16:]
    path = gribs.write(tmp_path / "a.grib", T500, wrong)
    with pytest.raises(InputError, match=f"at byte {len(T500)} is corrupt: it says it takes {len(T500) - 3}"):
        find_messages(path)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "no GRIB message"),
        (b"CDF\x01" + bytes(500), "no GRIB message"),
        (b"GRIB\0\0\0\7" * 9, "at byte 0 begin no message of GRIB 1 or 2, but of edition 7"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, cause: str) -> None:
    with pytest.raises(InputError, match=cause):
        find_messages(gribs.write(tmp_path / "other", content))


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        find_messages(tmp_path / "absent.grib")
    with pytest.raises(InputError, match="directory"):
        find_messages(tmp_path)


def test_grib1_above_8_mb_counts_in_units_of_120_octets(tmp_path: Path, pool: WorkerPool) -> None:
    rows, columns = 1801, 3600
    keys = gribs.grid_keys(rows, columns, step=0.1) | {"indicatorOfParameter": 130, "bitsPerValue": 16}
    message = gribs.encode("regular_ll_pl_grib1", keys, np.arange(rows * columns) % 997 * 0.01)
    path = gribs.write(tmp_path / "large.grib", message, T500)
    assert int.from_bytes(message[4:7], "big") & 0x800000
    assert [m.length for m in find_messages(path)] == [len(message), len(T500)]
    assert scan([path], pool=pool)[0].points == rows * columns


# Multi-field messages


def test_every_field_of_a_multi_field_message_arrives(tmp_path: Path, pool: WorkerPool) -> None:
    parts = [gribs.regular(**gribs.pressure(p, 300)) for p in (gribs.U, gribs.V, gribs.T)]
    gribs.multi(parts, tmp_path / "multi.grib2")
    fields = scan([tmp_path / "multi.grib2"], pool=pool)
    assert [(f.name, f.offset, f.part) for f in fields] == [("u300", 0, 0), ("v300", 0, 1), ("t300", 0, 2)]


def test_a_repeated_bitmap_is_put_back() -> None:
    with_hole = gribs.regular(lambda a, b: a * 0 + (9999 if a > 80 else a), **gribs.pressure(bitmapPresent=1))
    sections = _sections(with_hole)
    repeated = {**sections, 6: b"\0\0\0\x06\x06\xfe"}
    second = b"".join(repeated[n] for n in (4, 5, 6, 7))
    body = with_hole[16:-4] + second
    whole = with_hole[:8] + (len(body) + 20).to_bytes(8, "big") + body + b"7777"
    assert take_apart(whole) == [with_hole, with_hole]


@pytest.mark.parametrize("indicator", [1, 253, 254])
def test_a_bitmap_that_is_elsewhere_is_refused(indicator: int) -> None:
    at = T500.index(b"\0\0\0\x06\x06\xff") + 5
    with pytest.raises(ValueError, match=f"its bitmap is not in it .indicator {indicator}"):
        take_apart(T500[:at] + bytes([indicator]) + T500[at + 1 :])


@pytest.mark.parametrize("broken", [37, 60, 120])
def test_sections_that_do_not_fill_their_message_are_refused(
    tmp_path: Path, pool: WorkerPool, broken: int
) -> None:
    """A section 3 that is too long swallows the next."""
    bad = bytearray(T500)
    start = 16 + len(_sections(T500)[1])
    bad[start : start + 4] = (len(_sections(T500)[3]) + broken).to_bytes(4, "big")
    with pytest.raises(
        InputError, match=r"one\.grib: the message at byte 0: ecCodes cannot read it: section"
    ):
        only(pool, tmp_path, bytes(bad))


def _sections(message: bytes) -> dict[int, bytes]:
    found, at = {}, 16
    while at < len(message) - 4:
        length = int.from_bytes(message[at : at + 4], "big")
        found[message[at + 4]] = message[at : at + length]
        at += length
    return found


# What headers mean


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (gribs.pressure(gribs.T, 850), "t850"),
        (gribs.pressure(gribs.GH, 50), "gh50"),
        (gribs.pressure(scaleFactorOfFirstFixedSurface=-2, scaledValueOfFirstFixedSurface=250), "t250"),
        (gribs.pressure(scaleFactorOfFirstFixedSurface=1, scaledValueOfFirstFixedSurface=500), "t0.5"),
        (gribs.surface(gribs.T, 103, 2), "2t"),
        (gribs.surface(gribs.U, 103, 10), "10u"),
        (gribs.surface(gribs.V, 103, 100), "100v"),
        (gribs.surface((0, 3, 1), 101), "prmsl"),
        (gribs.surface((0, 3, 0), 101), "msl"),
        (gribs.surface((0, 3, 0), 1), "sp"),
        (gribs.surface((0, 6, 192), 1, typeOfSecondFixedSurface=8), "tcc"),
        (gribs.surface((0, 6, 1), 10), "tcc"),
    ],
)
def test_grib2_codes_are_recognised(tmp_path: Path, pool: WorkerPool, keys: dict, name: str) -> None:
    assert only(pool, tmp_path, gribs.regular(**keys)).name == name


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"indicatorOfParameter": 129, "level": 500}, "z500"),
        ({"indicatorOfTypeOfLevel": 210, "level": 50000, "indicatorOfParameter": 133}, "q500"),
        ({"indicatorOfTypeOfLevel": 1, "level": 0, "indicatorOfParameter": 167}, "2t"),
        (
            {"table2Version": 228, "indicatorOfTypeOfLevel": 1, "level": 0, "indicatorOfParameter": 246},
            "100u",
        ),
        ({"table2Version": 2, "indicatorOfParameter": 11, "level": 500}, "t500"),
        ({"table2Version": 2, "indicatorOfParameter": 2, "indicatorOfTypeOfLevel": 102, "level": 0}, "prmsl"),
    ],
)
def test_grib1_codes_are_recognised(tmp_path: Path, pool: WorkerPool, keys: dict, name: str) -> None:
    assert only(pool, tmp_path, _grib1(**keys)).name == name


def _grib1(**keys: int) -> bytes:
    return gribs.regular(edition=1, **{"table2Version": 128, **keys})


@pytest.mark.parametrize(
    ("keys", "variable", "reason"),
    [
        (gribs.pressure() | gribs.accumulated(0, 6, statistic=0), "t", "average over steps 0-6 h"),
        (gribs.pressure() | gribs.accumulated(0, 6, statistic=2), "t", "maximum over steps 0-6 h"),
        (gribs.pressure(productDefinitionTemplateNumber=2), "t", "template 2"),
        (gribs.surface((0, 1, 193), centre=7), "tp6h", "local number of centre 7"),
        (gribs.surface((0, 1, 52)), "tp6h", "not accumulated"),
        (gribs.pressure(month=13), "t", "without a usable time"),
        (gribs.pressure(indicatorOfUnitOfTimeRange=4), "t", "without a usable time"),
    ],
)
def test_look_alikes_are_not_taken(
    tmp_path: Path, pool: WorkerPool, keys: dict, variable: str, reason: str
) -> None:
    field = only(pool, tmp_path, gribs.regular(**keys))
    assert match(field) is None
    assert reason in near_variables(field)[variable]


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"timeRangeIndicator": 3, "P1": 0, "P2": 6}, "average over steps 0-6 h"),
        ({"timeRangeIndicator": 123, "P2": 6}, "average"),
        ({"timeRangeIndicator": 2, "P1": 0, "P2": 6}, "statistic 255"),
    ],
)
def test_grib1_averages_are_not_taken(tmp_path: Path, pool: WorkerPool, keys: dict, reason: str) -> None:
    field = only(pool, tmp_path, _grib1(indicatorOfParameter=130, level=500, **keys))
    assert match(field) is None
    assert reason in near_variables(field)["t"]


def test_ensemble_spread_in_grib1_is_not_taken_for_its_variable(tmp_path: Path, pool: WorkerPool) -> None:
    field = only(pool, tmp_path, _grib1(indicatorOfParameter=130, level=500, marsType=18))
    assert match(field) is None
    assert "not a plain analysis or forecast" in near_variables(field)["t"]


@pytest.mark.parametrize(
    ("unit", "amount", "hours"),
    [(1, 6, 6), (0, 90, 1.5), (2, 2, 48), (10, 2, 6), (11, 1, 6), (13, 1800, 0.5)],
)
def test_steps_are_read_in_their_unit(
    tmp_path: Path, pool: WorkerPool, unit: int, amount: int, hours: float
) -> None:
    keys = gribs.pressure() | {"indicatorOfUnitOfTimeRange": unit, "forecastTime": amount}
    field = only(pool, tmp_path, gribs.regular(**keys))
    assert field.valid_time == datetime(2024, 1, 1, 12) + timedelta(hours=hours)


@pytest.mark.parametrize("amount", [2**31 - 1, -(2**31) + 2])
def test_steps_beyond_the_calendar_are_no_steps(tmp_path: Path, pool: WorkerPool, amount: int) -> None:
    keys = gribs.pressure() | {"indicatorOfUnitOfTimeRange": 2, "forecastTime": amount}
    field = only(pool, tmp_path, gribs.regular(**keys))
    assert field.valid_time is None
    assert "no usable step" in field.when


def test_accumulations_end_at_their_valid_time(tmp_path: Path, pool: WorkerPool) -> None:
    field = only(pool, tmp_path, gribs.regular(**gribs.surface((0, 1, 52)) | gribs.accumulated(6, 12)))
    assert field.accumulated
    assert (field.step_start, field.step_end) == (timedelta(hours=6), timedelta(hours=12))
    assert field.valid_time == datetime(2024, 1, 2)
    assert channel_of(field) == Channel("tp6h")


def test_an_interval_that_contradicts_itself_has_no_time(tmp_path: Path, pool: WorkerPool) -> None:
    keys = gribs.surface((0, 1, 52)) | gribs.accumulated(6, 12) | {"dayOfEndOfOverallTimeInterval": 9}
    assert only(pool, tmp_path, gribs.regular(**keys)).valid_time is None


# Workers


def _pids(pool: WorkerPool) -> list[int]:
    return [worker.process.pid for worker in pool._workers]


def test_a_late_worker_is_replaced_and_its_message_named(tmp_path: Path) -> None:
    path = gribs.write(tmp_path / "a.grib", T500)
    with WorkerPool(1) as pool:
        scan([path], pool=pool)
        os.kill(_pids(pool)[0], signal.SIGSTOP)
        with pytest.raises(
            InputError, match=r"a\.grib: the message at byte 0: ecCodes did not finish it within 0.3 s"
        ):
            scan([path], pool=pool, deadline=0.3)
        assert scan([path], pool=pool)[0].name == "t500"


def test_a_worker_that_dies_is_replaced_and_its_message_named(tmp_path: Path) -> None:
    path = gribs.write(tmp_path / "a.grib", T500)
    with WorkerPool(1) as pool:
        scan([path], pool=pool)
        pid = _pids(pool)[0]
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(0.2, os.kill, (pid, signal.SIGKILL)).start()
        with pytest.raises(InputError, match=r"a\.grib: the message at byte 0: ecCodes crashed on it"):
            scan([path], pool=pool)
        assert scan([path], pool=pool)[0].name == "t500"


@pytest.fixture
def _heeds_interrupts() -> Iterator[None]:
    """Who runs the tests in the background has them ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_heeds_interrupts")
def test_an_interrupt_leaves_no_task_behind(tmp_path: Path) -> None:
    path = gribs.write(tmp_path / "a.grib", T500)
    with WorkerPool(1) as pool:
        scan([path], pool=pool)
        os.kill(_pids(pool)[0], signal.SIGSTOP)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            scan([path], pool=pool)
        assert scan([path], pool=pool)[0].name == "t500"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_nothing_stays_open(tmp_path: Path) -> None:
    path = gribs.write(tmp_path / "a.grib", T500)
    before = len(os.listdir("/proc/self/fd"))
    with WorkerPool(2) as pool:
        scan([path], pool=pool)
        pids = _pids(pool)
    assert len(os.listdir("/proc/self/fd")) == before
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_workers_end_when_their_parent_is_killed() -> None:
    code = (
        "import time; from fengwu_ghr.grib.pool import WorkerPool\n"
        "with WorkerPool(2) as p: print(*[w.process.pid for w in p._workers], flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()
    deadline = time.monotonic() + 20
    while any(_runs(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_runs(pid) for pid in pids)


def _runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
