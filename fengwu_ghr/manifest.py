"""The manifest of one initial time: JSON lines, appended and flushed, each with its own checksum.

A line is either whole or not there: a last line torn by a crash is passed over, and cut off before the next one.
"""

import json
import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from fengwu_ghr.durable import append, checksum, flush, writing
from fengwu_ghr.errors import InputError

MANIFEST = "_manifest"
"""The folder in a run store."""

Entry = dict[str, Any]
_TAIL = 4096
"""Bytes in which the last line stands, unless that is one of a lead."""


class Manifest:
    """What was done for one initial time, in order. Any number of processes may read, one may append."""

    def __init__(self, path: Path | str) -> None:
        self._name = str(path)
        self._seen: tuple[int, int] = (0, 0)
        self._entries: list[Entry] = []

    @classmethod
    def of(cls, store: Path, initial_time: datetime) -> "Manifest":
        return cls(f"{store}/{MANIFEST}/{stamp(initial_time)}.jsonl")

    @property
    def path(self) -> Path:
        return Path(self._name)  # made when it is asked for: of a season's thousands hardly any is

    def entries(self) -> list[Entry]:
        """The whole lines, oldest first. Raises InputError when one before the last is damaged."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return []
        seen = (status.st_size, status.st_mtime_ns)
        if seen != self._seen:
            self._entries, self._seen = self._parse()[0], seen
        return self._entries

    def last(self) -> Entry | None:
        """The last whole line, mostly without reading the others; None where there is none."""
        try:
            with open(self._name, "rb", buffering=0) as file:
                start = max(0, os.fstat(file.fileno()).st_size - _TAIL)
                file.seek(start)
                lines = file.read().splitlines(keepends=True)
        except FileNotFoundError:
            return None
        whole = (entry for line in reversed(lines) if (entry := _entry(line)) is not None)
        return next(whole, None) or next(reversed(self.entries()), None)

    def leads(self) -> dict[timedelta, dict[str, Any]]:
        """The committed leads; of each, size and checksum of every channel's shard."""
        committed = [entry for entry in self.entries() if entry["kind"] == "lead"]
        return {timedelta(seconds=entry["lead_seconds"]): entry["shards"] for entry in committed}

    def append(self, entry: Entry, *, durable: bool = True) -> None:
        """The entry is the last line, on the device unless told otherwise."""
        with writing(self.path):
            append(self.path, _line(entry), durable=durable)

    def cut_torn_line(self) -> None:
        """The file ends with a whole line."""
        if not self.path.exists():
            return
        whole = self._parse()[1]
        if whole < self.path.stat().st_size:
            with writing(self.path):
                os.truncate(self.path, whole)
                flush(self.path)

    def _parse(self) -> tuple[list[Entry], int]:
        """The whole entries and the bytes they take."""
        lines = self.path.read_bytes().splitlines(keepends=True)
        entries = [_entry(line) for line in lines]
        if None in entries[:-1]:
            number = entries.index(None) + 1
            raise InputError(
                f"{self.path}, line {number} does not match its checksum: the file was changed or the disk is "
                "damaged; restore it, or compute the run again with --overwrite"
            )
        whole = [entry for entry in entries if entry is not None]
        return whole, sum(map(len, lines[: len(whole)]))


def stamp(initial_time: datetime) -> str:
    """As it stands in the names of files."""
    # Not by strftime, which takes as long as reading a manifest: of a season there are thousands.
    day = f"{initial_time.year:04}{initial_time.month:02}{initial_time.day:02}"
    return f"{day}T{initial_time.hour:02}{initial_time.minute:02}{initial_time.second:02}"


def _line(entry: Entry) -> bytes:
    return _canonical(entry | {"crc32c": f"{checksum(_canonical(entry)):08x}"}) + b"\n"


def _entry(line: bytes) -> Entry | None:
    """The entry of a whole line, else None."""
    try:
        entry = json.loads(line)
        stated = entry.pop("crc32c")
    except (ValueError, KeyError, AttributeError, TypeError):
        return None
    return entry if line.endswith(b"\n") and _sums_up(line, entry, stated) else None


def _sums_up(line: bytes, entry: Entry, stated: str) -> bool:
    # The entry as it was written, without its checksum, is nearly always the line without it: nothing to spell anew.
    bare = line[:-1].replace(f'"crc32c":"{stated}",'.encode(), b"", 1)
    return stated == f"{checksum(bare):08x}" or stated == f"{checksum(_canonical(entry)):08x}"


def _canonical(entry: Entry) -> bytes:
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
