"""Durable files: checksums, flushing to the device, appending, locking; failures are errors that say what to do."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import google_crc32c
import numpy as np

from fengwu_ghr.errors import OutputError, UsageError

_BLOCK = 2**20
_REMEDIES = {
    errno.ENOSPC: "make room, or thin the products with --variables, --levels, --leads, --area or --keep-bits",
    errno.EDQUOT: "the quota is used up: make room",
    errno.EROFS: "mount it writable, or choose another --output",
    errno.EACCES: "allow this user to write there, or choose another --output",
    errno.EPERM: "allow this user to write there, or choose another --output",
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Failures of the operating system inside this block are OutputErrors that name `path` and the remedy."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error.strerror or str(error), error.errno) from error


def unwritable(path: Path, reason: str, code: int | None = None) -> OutputError:
    remedy = _REMEDIES.get(code or 0, "see to the disk")
    return OutputError(
        f"cannot write {path}: {reason}; {remedy}, then run the same command again to resume: "
        "what is committed stands"
    )


def checksum(data: "bytes | np.ndarray", before: int = 0) -> int:
    """CRC-32C of contiguous data, continuing from the checksum of what came `before`."""
    return google_crc32c.extend(before, data)


def checksum_file(path: Path) -> tuple[int, int]:
    """Size in bytes and CRC-32C of a file. Not mapped into memory: there a damaged disk kills the process."""
    size = value = 0
    block = np.empty(_BLOCK, np.uint8)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(block.data):
            size, value = size + count, checksum(block[:count], value)
    return size, value


def flush(path: Path) -> None:
    """The file's content, or the folder's entries, are on the device when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(path: Path, *, files: bool = True) -> None:
    """Every folder below and including `path` is on the device, and every file unless they are already."""
    for folder, _, names in os.walk(path, topdown=False):
        for name in names if files else ():
            flush(Path(folder, name))
        flush(Path(folder))


def make_folder(path: Path) -> None:
    """The folder exists durably, with those above it."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    flush(path.parent)


def remove_tree(path: Path) -> None:
    """Nothing is left at `path`."""
    if path.exists():
        shutil.rmtree(path)


def replace_file(path: Path, content: bytes) -> None:
    """The file holds `content` durably; whoever reads meanwhile sees the old or the new, never a mixture."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_bytes(content)
    flush(unfinished)
    os.replace(unfinished, path)
    flush(path.parent)


def append(path: Path, content: bytes, *, durable: bool = True) -> None:
    """The file ends with `content`; when it cannot be written whole, the file is as before and OSError is raised."""
    with open(path, "ab", buffering=0) as file:
        size = file.tell()
        try:
            _write_whole(file, content)
        except OSError:
            file.truncate(size)
            raise
        if durable:
            os.fsync(file.fileno())
    if durable and size == 0:
        flush(path.parent)


def lock(path: Path, *, holder: str, shared: bool = False) -> IO[bytes]:
    """An open file that holds a lock until it is closed or the process dies, however it dies.

    Raises UsageError when another process holds it; `holder` says in the message what that process does.
    """
    # For reading too, since NFS gives shared locks to readers only. It stays open: it is the lock.
    file = open(path, "a+b")  # noqa: SIM115
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UsageError(f"{holder}; one process at a time may: wait for it, or stop it first") from None
    except OSError:
        file.close()
        raise
    return file


def is_locked(path: Path) -> bool:
    """Whether another open file holds the lock; a path without a file is not locked."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """One process at a time is inside, of all that name this file; the others wait. For moments, not for work."""
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write_whole(file: IO[bytes], content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]
