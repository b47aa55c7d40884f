"""Where GRIB messages begin and end in a file, and a multi-field message taken apart. No ecCodes here.

Octets are counted from 1 as in the WMO Manual on Codes, FM 92; indices from 0.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fengwu_ghr.errors import InputError

MAGIC, END = b"GRIB", b"7777"
_HEADER = 16
_CHUNK = 1 << 20
_LARGE_GRIB1 = 1 << 23
_EMPTY_DATA = b"\0\0\0\5\7"
_OWN_BITMAP, _REPEATED_BITMAP, _NO_BITMAP = 0, 254, 255

Bytes = bytes | memoryview


@dataclass(frozen=True)
class Extent:
    """The bytes of one message in its file."""

    offset: int
    length: int


def find_messages(path: Path) -> list[Extent]:
    """Every message of the file, in order; padding, bulletin headers and other bytes between them are passed over.

    Raises InputError naming file and offset when a message is cut off, does not end where it says, or is of an
    edition other than 1 and 2; also when there is no message at all.
    """
    try:
        found = _read_extents(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    if not found:
        raise InputError(f"{path} holds no GRIB message; give GRIB 1 or 2 files")
    return found


def read_message(path: str | Path, offset: int, length: int) -> bytes:
    """These bytes of the file; raises InputError when it has become shorter."""
    with Path(path).open("rb") as file:
        file.seek(offset)
        message = file.read(length)
    if len(message) != length:
        raise InputError(f"{path} changed while it was read: no {length} bytes at byte {offset}")
    return message


def take_apart(message: bytes, *, headers_only: bool = False) -> list[bytes]:
    """One complete message for each field: itself, unless several fields share its first sections (GRIB2).

    A field that repeats the bitmap before it gets its own copy. `headers_only` leaves GRIB2 messages with an empty
    data section, which is all that reading their headers takes. Raises ValueError when the sections do not fill the
    message, or when a bitmap is not in it.
    """
    if message[7] == 1:
        return [message]
    fields: list[dict[int, Bytes]] = []
    held: dict[int, Bytes] = {}
    bitmap: Bytes = b""
    for number, section in sections(message):
        held = {n: s for n, s in held.items() if n < number}
        held[number] = section
        if number == 6 and section[5] != _NO_BITMAP:
            held[6] = bitmap = _bitmap(section, before=bitmap)
        if number == 7:
            fields.append(held | {7: _EMPTY_DATA} if headers_only else held)
    if not fields:
        raise ValueError("it has no data section")
    if len(fields) == 1 and not headers_only:
        return [message]
    return [_assemble(message, field) for field in fields]


def sections(message: bytes) -> Iterator[tuple[int, memoryview]]:
    """Number and bytes of each section of a GRIB2 message, between the indicator section and the end marker.

    Raises ValueError when they do not fill it.
    """
    position, last, view = _HEADER, len(message) - len(END), memoryview(message)
    while position < last:
        length = int.from_bytes(message[position : position + 4], "big")
        number = message[position + 4]
        if not (6 if number == 6 else 5) <= length <= last - position or not 1 <= number <= 7:
            raise ValueError(f"section {number} at byte {position} of the message takes {length} bytes")
        yield number, view[position : position + length]
        position += length


def _read_extents(path: Path) -> list[Extent]:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is not a regular file; give GRIB files")
        found, position = [], 0
        while (start := _next_magic(file.fileno(), position)) is not None:
            extent = _extent(path, file.fileno(), start, size=status.st_size)
            found.append(extent)
            position = extent.offset + extent.length
    return found


def _next_magic(descriptor: int, position: int) -> int | None:
    """Offset of the next `GRIB` from this position on; only the header is read where it stands right there."""
    chunk = os.pread(descriptor, _HEADER, position)
    while len(chunk) >= len(MAGIC):
        at = chunk.find(MAGIC)
        if at >= 0:
            return position + at
        position += len(chunk) - len(MAGIC) + 1
        chunk = os.pread(descriptor, _CHUNK, position)
    return None


def _extent(path: Path, descriptor: int, start: int, *, size: int) -> Extent:
    where = f"{path}: the message at byte {start}"
    header = os.pread(descriptor, _HEADER, start)
    if len(header) < _HEADER:
        raise InputError(f"{where} is cut off: the file ends {len(header)} bytes later")
    edition = header[7]
    if edition not in (1, 2):
        raise InputError(
            f"{path}: the letters GRIB at byte {start} begin no message of GRIB 1 or 2, but of edition {edition}"
        )
    length = int.from_bytes(header[8:16], "big") if edition == 2 else _length_1(descriptor, start)
    if start + length > size:
        raise InputError(f"{where} is cut off: it takes {length} bytes, the file ends after {size - start}")
    if length < 2 * _HEADER or os.pread(descriptor, len(END), start + length - len(END)) != END:
        raise InputError(f"{where} is corrupt: it says it takes {length} bytes, but does not end there")
    return Extent(start, length)


def _length_1(descriptor: int, start: int) -> int:
    """Octets of a GRIB1 message.

    The length has 24 bits. Above 2^23 ECMWF counts in units of 120 octets and stores in the length of section 4
    how many octets less than that the message takes (as in grib_io.c of ecCodes).
    """
    length = _uint24(descriptor, start + 4)
    if not length & _LARGE_GRIB1:
        return length
    section, flags = start + 8, os.pread(descriptor, 1, start + 15)
    position = section + _uint24(descriptor, section)
    for present in (0x80, 0x40):
        if flags and flags[0] & present:
            position += _uint24(descriptor, position)
    shortfall = _uint24(descriptor, position)
    return (length ^ _LARGE_GRIB1) * 120 - shortfall + 4 if shortfall < 120 else length


def _uint24(descriptor: int, position: int) -> int:
    return int.from_bytes(os.pread(descriptor, 3, position), "big")


def _bitmap(section: Bytes, *, before: Bytes) -> Bytes:
    """The section 6 that is meant: this one, or the one before it in the message."""
    if section[5] == _OWN_BITMAP:
        return section
    if section[5] != _REPEATED_BITMAP or not before:
        raise ValueError(f"its bitmap is not in it (indicator {section[5]})")
    return before


def _assemble(message: bytes, held: dict[int, Bytes]) -> bytes:
    missing = {1, 3, 4, 5, 6, 7} - set(held)
    if missing:
        raise ValueError(f"it lacks section {min(missing)}")
    length = _HEADER + sum(len(section) for section in held.values()) + len(END)
    parts = [message[:8], length.to_bytes(8, "big"), *(held[number] for number in sorted(held)), END]
    return b"".join(parts)
