"""Where a run store is to stand: what may be there already, and what is never touched.

A store appears whole, by one rename, and disappears the same way. Only what carries our mark is ever removed.
"""

import errno
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from fengwu_ghr.durable import flush, flush_tree, lock, make_folder, remove_tree, writing
from fengwu_ghr.errors import UsageError

MARK = "fengwu_ghr_store"
"""The attribute of the root group by which a run store is known; its value is the format."""
LOCK = "_lock"


def is_store(path: Path) -> bool:
    """Whether a run store of any format stands there."""
    try:
        return MARK in json.loads((path / "zarr.json").read_text())["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def is_occupied(path: Path) -> bool:
    """Whether anything stands there but an empty folder."""
    return os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir()))


def check_is_store(path: Path) -> None:
    """Raises UsageError when something else stands there."""
    if not is_store(path):
        raise UsageError(
            f"{path} exists and is not a run store; choose another --output: only run stores are replaced"
        )


def put_store(path: Path, write: Callable[[Path], None]) -> None:
    """What `write` makes of a new folder stands at `path`, all at once; or what another process put there first."""
    with writing(path):
        make_folder(path.parent)
        beside = Path(tempfile.mkdtemp(".unfinished", f".{path.name}.", path.parent))
        try:
            write(beside / "store")
            flush_tree(beside / "store")
            _rename_unless_occupied(beside / "store", path)
            flush(path.parent)
        finally:
            remove_tree(beside)


def remove_store(path: Path) -> None:
    """No run store is left there. Raises UsageError when another process is writing to it."""
    if not is_store(path):
        return
    with writing(path):
        busy = f"another process is writing to {path}, which therefore cannot be replaced"
        with lock(path / LOCK, holder=busy):
            removed = Path(tempfile.mkdtemp(".removed", f".{path.name}.", path.parent))
            os.rename(path, removed)
        for leftover in path.parent.glob(f".{path.name}.*.removed"):  # this one, and any that a crash left
            remove_tree(leftover)


def _rename_unless_occupied(folder: Path, path: Path) -> None:
    try:
        os.rename(folder, path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
