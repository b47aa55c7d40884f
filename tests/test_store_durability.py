"""The run store when things go wrong: crashes at every step, full and read-only disks, two writers, damage."""

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from fengwu_ghr import durable
from fengwu_ghr.errors import InputError, OutputError, UsageError
from fengwu_ghr.grid import product_grid
from fengwu_ghr.restart import RestartSlots
from fengwu_ghr.store import RunStore, StorePlan
from fengwu_ghr.variables import channel

TIME = datetime(2024, 1, 1)
LEADS = tuple(timedelta(hours=hours) for hours in (0, 6, 12))
CHANNELS = tuple(map(channel, ("z500", "z850", "2t")))
GRID = product_grid(40)
PLAN = StorePlan(CHANNELS, GRID, (TIME,), LEADS)


def write_run(path: Path) -> None:
    """What a forecast does, from wherever an earlier attempt left off."""
    with RunStore.create(path, PLAN, {"title": "a test"}) as store:
        if store.provenance(TIME) is None:
            store.begin_run(TIME, {"seed": 1})
        for number, lead in enumerate(LEADS):
            if lead not in store.committed(TIME):
                write_lead(store, lead)
            store.save_restart(TIME, number, [np.full((2, 3), number, np.float32)])


def write_lead(store: RunStore, lead: timedelta) -> None:
    writer = store.begin_lead(TIME, lead)
    for number, each in enumerate(CHANNELS):
        rng = np.random.default_rng([LEADS.index(lead), number])
        writer.write(each, rng.standard_normal(GRID.shape).astype(np.float32))
    writer.commit()


def shards(path: Path) -> dict[str, bytes]:
    """Every file of the store but those of the restart."""
    files = (file for file in path.rglob("*") if file.is_file() and "_restart" not in file.parts)
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("whole") / "run.zarr"
    write_run(path)
    return shards(path)


class Crash(BaseException):
    """Not an Exception, so that nothing recovers from it."""


def crash_at(monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    """The process ends at the moment-th call that changes what is on disk."""
    calls = iter(range(10**6))

    def counted(original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            if next(calls) >= moment:
                raise Crash
            return original(*arguments, **options)

        return call

    for name in ("rename", "replace", "fsync", "mkdir", "rmdir", "unlink"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    monkeypatch.setattr(durable, "_write_whole", counted(durable._write_whole))


@pytest.mark.parametrize(
    ("first", "stride"), [(5, 19), *(pytest.param(first, 4, marks=pytest.mark.slow) for first in range(4))]
)
def test_after_a_crash_at_any_step_the_same_bytes_are_reached(
    tmp_path: Path, uninterrupted: dict[str, bytes], first: int, stride: int
) -> None:
    crashes = 0
    for moment in range(first, 10**6, stride):
        path = tmp_path / f"run{moment}.zarr"
        with pytest.MonkeyPatch.context() as monkeypatch:
            crash_at(monkeypatch, moment)
            try:
                write_run(path)
            except Crash:
                crashes += 1
            else:
                break
        if path.exists():
            with RunStore.open(path) as store:
                assert store.verify() == ()
        write_run(path)
        assert shards(path) == uninterrupted, f"crash at step {moment}"
    assert crashes > 5


HOLDER = f"""
import sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
import test_store_durability as t
with t.RunStore.create(Path(sys.argv[1]), t.PLAN, {{}}) as store:
    store.begin_run(t.TIME, {{"seed": 1}})
    t.write_lead(store, t.LEADS[0])
    writer = store.begin_lead(t.TIME, t.LEADS[1])
    writer.write(t.CHANNELS[0], t.np.zeros(t.GRID.shape, t.np.float32))
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_waits_its_turn_and_kill_9_frees_the_store(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parent
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"writing\n"
        for overwrite in (False, True):
            with pytest.raises(UsageError, match="another process is writing"):
                RunStore.create(path, PLAN, {}, overwrite=overwrite)
        with RunStore.open(path) as reader:
            assert reader.committed(TIME) == LEADS[:1]
        holder.send_signal(signal.SIGKILL)
    assert any((path / "_staging").rglob("0"))
    with RunStore.create(path, PLAN, {}) as store:
        assert store.committed(TIME) == LEADS[:1]
        assert not any((path / "_staging").rglob("0"))
        assert store.provenance(TIME) == {"seed": 1}


@pytest.mark.parametrize(
    "torn",
    [b'{"kind":"lead","lead_se', b"\0" * 40, b'{"kind":"lead","crc32c":"00000000"}\n', b"[]\n"],
    ids=["cut", "zeros", "checksum", "no entry"],
)
def test_a_torn_last_line_is_as_if_it_had_not_been_written(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "run.zarr"
    write_run(path)
    manifest = path / "_manifest" / "20240101T000000.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join(lines[:-1]) + torn)
    with RunStore.open(path) as store:
        assert store.committed(TIME) == LEADS[:2]
    assert manifest.read_bytes().endswith(torn)  # reading changes nothing
    write_run(path)
    assert manifest.read_bytes() == b"".join(lines)


def test_a_damaged_line_before_the_last_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    write_run(path)
    manifest = path / "_manifest" / "20240101T000000.jsonl"
    manifest.write_bytes(manifest.read_bytes().replace(b'"lead_seconds":0', b'"lead_seconds":1'))
    with RunStore.open(path) as store, pytest.raises(InputError, match=r"line 2 does not match its checksum"):
        store.committed(TIME)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def fill(path: Path) -> None:
    """The file takes all the space there is."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(512)):
            pass


def test_a_full_disk_stops_the_run_at_that_lead_and_it_resumes(
    small_disk: Path, uninterrupted: dict[str, bytes]
) -> None:
    path, ballast = small_disk / "run.zarr", small_disk / "ballast"
    with RunStore.create(path, PLAN, {"title": "a test"}) as store:
        store.begin_run(TIME, {"seed": 1})
        write_lead(store, LEADS[0])
        fill(ballast)
        with pytest.raises(OutputError, match="make room, or thin the products") as caught:
            write_lead(store, LEADS[1])
        assert caught.value.exit_code == 6
        with pytest.raises(OutputError, match="run the same command again to resume"):
            store.save_restart(TIME, 1, [np.zeros(10**6, np.float32)])
        assert store.committed(TIME) == LEADS[:1]
        ballast.unlink()
        store.clear_restart(TIME)
    write_run(path)
    assert shards(path) == uninterrupted


def test_a_read_only_disk(small_disk: Path) -> None:
    path = small_disk / "run.zarr"
    write_run(path)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for target in (path, small_disk / "new.zarr"):
        with pytest.raises(OutputError, match="Read-only file system; mount it writable"):
            RunStore.create(target, PLAN, {})
    with RunStore.open(path) as store:
        assert store.committed(TIME) == LEADS
        assert store.verify() == ()


@contextmanager
def no_larger_files(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_half_way_is_no_lead(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    """Needs no root: files beyond a size cannot be written, as on a full disk."""
    with RunStore.create(tmp_path / "run.zarr", PLAN, {"title": "a test"}) as store:
        store.begin_run(TIME, {"seed": 1})
        with no_larger_files(1000):
            with pytest.raises(OutputError, match=r"cannot write .*File too large"):
                write_lead(store, LEADS[0])
            with pytest.raises(OutputError):
                store.save_restart(TIME, 1, [np.zeros(10**4, np.float32)])
        assert store.committed(TIME) == ()
        assert store.load_restart(TIME) is None
        write_lead(store, LEADS[0])  # the same process may try again
    write_run(tmp_path / "run.zarr")
    assert shards(tmp_path / "run.zarr") == uninterrupted


def test_a_manifest_line_that_cannot_be_written_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(file: object, content: bytes) -> None:
        os.write(file.fileno(), content[:10])  # type: ignore[attr-defined]
        raise OSError(errno.ENOSPC, "No space left on device")

    with RunStore.create(tmp_path / "run.zarr", PLAN, {}) as store:
        store.begin_run(TIME, {})
        with monkeypatch.context() as patch:
            patch.setattr(durable, "_write_whole", half)
            with pytest.raises(OutputError, match="No space left on device; make room"):
                write_lead(store, LEADS[0])
        assert store.committed(TIME) == ()
        write_lead(store, LEADS[0])
        write_lead(store, LEADS[1])
        assert store.committed(TIME) == LEADS[:2]
        assert store.verify() == ()


@pytest.mark.parametrize("path", ["/proc/run.zarr", "/dev/null/run.zarr"])
def test_a_target_that_cannot_be_made(path: str) -> None:
    with pytest.raises(OutputError, match=f"cannot write {path}"):
        RunStore.create(Path(path), PLAN, {})


def test_restarts_come_back_newest_first(tmp_path: Path, rng: np.random.Generator) -> None:
    slots = RestartSlots(tmp_path / "restart")
    states = [[rng.standard_normal((3, 4, 5)).astype(np.float32) for _ in range(2)] for _ in range(4)]
    assert slots.load() is None
    for step, arrays in enumerate(states):
        slots.save(step, arrays, {"history": 2})
        found = slots.load()
        assert found is not None
        assert (found.step, found.meta) == (step, {"history": 2})
        for saved, expected in zip(found.arrays, arrays, strict=True):
            np.testing.assert_array_equal(saved, expected)
    assert sorted(path.name for path in slots.folder.iterdir()) == ["slot0", "slot1"]
    earlier = slots.load(max_step=2)
    assert earlier is not None
    assert earlier.step == 2
    assert slots.load(max_step=1) is None
    slots.clear()
    assert slots.load() is None
    slots.clear()


@pytest.mark.parametrize("name", ["0.npy", "slot.json"])
def test_a_damaged_restart_gives_way_to_the_one_before(
    tmp_path: Path, name: str, rng: np.random.Generator
) -> None:
    for _ in range(10):
        slots = RestartSlots(tmp_path / "restart")
        slots.clear()
        for step in (1, 2):
            slots.save(step, [np.full((2, 8), step, np.float32)])
        newest = slots.folder / "slot1" / name
        content = bytearray(newest.read_bytes())
        position = int(rng.integers(len(content)))
        damaged = [
            content[:position],
            content[:position] + bytes([content[position] ^ 255]) + content[position + 1 :],
        ]
        newest.write_bytes(damaged[int(rng.integers(2))])
        found = slots.load()
        assert found is not None
        # A flip in the padding of the .npy header changes no value.
        assert found.step in ((1, 2) if name == "0.npy" and position < 128 else (1,))
        assert (found.arrays[0] == found.step).all()
        slots.save(3, [np.full((2, 8), 3, np.float32)])
        newer = slots.load()
        assert newer is not None
        assert newer.step == 3


def test_a_restart_slot_holds_plain_arrays_only(tmp_path: Path) -> None:
    slots = RestartSlots(tmp_path / "restart")
    slots.save(1, [np.zeros((2, 2), np.float32)])
    np.save(slots.folder / "slot0" / "0.npy", np.array([{"a": 1}], dtype=object))
    assert slots.load() is None
    with pytest.raises(ValueError, match="C-contiguous"):
        slots.save(2, [np.zeros((4, 4), np.float32).T[::2]])
