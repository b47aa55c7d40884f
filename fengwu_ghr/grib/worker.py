"""The child process in which ecCodes meets foreign bytes; `pool` starts it, feeds it and buries it.

It imports as little as it can (it is started for every ingest) and answers each line of JSON on its socket with one
line. It may die at any message: nothing that must survive is kept here.
"""

import json
import mmap
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import gribapi
import numpy as np

from fengwu_ghr.grib.sections import read_message, take_apart
from fengwu_ghr.grib.soundness import check_data

ADDRESS_SPACE = 6 << 30
"""Bytes; a 0.05-degree field takes less than one of the six, an absurd header asks for more."""
ORPHAN_GRACE = 30
"""Seconds after the deadline at which a worker ends itself, should nobody be left to do it."""
MISSING = 1e34

_KEYS = {
    1: (
        "centre", "table2Version", "indicatorOfParameter", "indicatorOfTypeOfLevel", "level", "bottomLevel",
        "centuryOfReferenceTimeOfData", "yearOfCentury", "month", "day", "hour", "minute",
        "unitOfTimeRange", "P1", "P2", "timeRangeIndicator",
    ),
    2: (
        "centre", "discipline", "parameterCategory", "parameterNumber", "productDefinitionTemplateNumber",
        "typeOfFirstFixedSurface", "scaleFactorOfFirstFixedSurface", "scaledValueOfFirstFixedSurface",
        "typeOfSecondFixedSurface", "year", "month", "day", "hour", "minute", "second",
        "indicatorOfUnitOfTimeRange", "forecastTime",
    ),
}  # fmt: skip
_STATISTICS_KEYS = (
    "typeOfStatisticalProcessing", "numberOfTimeRange", "indicatorOfUnitForTimeRange", "lengthOfTimeRange",
    "yearOfEndOfOverallTimeInterval", "monthOfEndOfOverallTimeInterval", "dayOfEndOfOverallTimeInterval",
    "hourOfEndOfOverallTimeInterval", "minuteOfEndOfOverallTimeInterval", "secondOfEndOfOverallTimeInterval",
)  # fmt: skip
_GRID_KEYS = ("Ni", "Nj", "N", "scanningMode", "iDirectionIncrement", "jDirectionIncrement")
_GRID_DEGREES = (
    "latitudeOfFirstGridPointInDegrees", "longitudeOfFirstGridPointInDegrees",
    "latitudeOfLastGridPointInDegrees", "longitudeOfLastGridPointInDegrees",
    "iDirectionIncrementInDegrees", "jDirectionIncrementInDegrees",
)  # fmt: skip


def describe(message: bytes) -> list[dict[str, Any]]:
    """The raw header keys of every field of a message; None for a key that is absent or missing."""
    return [_with_handle(field, _describe) for field in take_apart(message, headers_only=True)]


def decode(message: bytes, part: int, out: np.ndarray, layout: dict[str, Any]) -> dict[str, Any]:
    """Fill `out` with a field, rows north to south, columns west to east, NaN where missing; return its range."""
    field = take_apart(message)[part]
    check_data(field)
    values = _with_handle(field, _values)
    if values.size != out.size:
        raise ValueError(f"it holds {values.size} values where its grid has {out.size} points")
    missing = values == MISSING
    count = int(np.count_nonzero(missing))
    if count:
        values[missing] = np.nan
    del missing
    orient(values, out, layout)
    valid = out[np.isfinite(out)] if count else out
    if not valid.size:
        return {"minimum": None, "maximum": None, "missing": count}
    return {"minimum": float(valid.min()), "maximum": float(valid.max()), "missing": count}


def orient(values: np.ndarray, out: np.ndarray, layout: dict[str, Any]) -> None:
    """Copy values from the order in which they were sent to north-south, west-east, starting `roll` columns on."""
    rows, columns, scan, roll = (layout[name] for name in ("rows", "columns", "scan", "roll"))
    if not rows:
        out[:] = values
        return
    j_consecutive = scan & 0x20
    field = values.reshape((columns, rows) if j_consecutive else (rows, columns))
    if scan & 0x10:
        field[1::2] = field[1::2, ::-1].copy()
    field = field.T if j_consecutive else field
    field = field[::-1] if scan & 0x40 else field
    field = field[:, ::-1] if scan & 0x80 else field
    target = out.reshape(rows, columns)
    target[:, : columns - roll] = field[:, roll:]
    target[:, columns - roll :] = field[:, :roll]


def _with_handle(message: bytes, use: Callable[[int], Any]) -> Any:
    handle = gribapi.grib_new_from_message(message)
    try:
        return use(handle)
    finally:
        gribapi.grib_release(handle)


def _values(handle: int) -> np.ndarray:
    # Doubles, then rounded: ecCodes' own float32 path differs by up to 3 units in the last place and is no faster.
    gribapi.grib_set_double(handle, "missingValue", MISSING)
    return gribapi.grib_get_double_array(handle, "values")


def _describe(handle: int) -> dict[str, Any]:
    edition = gribapi.grib_get_long(handle, "edition")
    keys = _KEYS[edition] + _GRID_KEYS
    if edition == 2 and _get(handle, "numberOfTimeRange", gribapi.grib_get_long) is not None:
        keys += _STATISTICS_KEYS
    found = {key: _get(handle, key, gribapi.grib_get_long) for key in keys}
    found |= {key: _get(handle, key, gribapi.grib_get_double) for key in _GRID_DEGREES}
    found |= {
        key: _get(handle, key, gribapi.grib_get_string) for key in ("gridType", "packingType", "dataType")
    }
    found["row_points"] = _row_points(handle)
    points = _get(handle, "numberOfDataPoints", gribapi.grib_get_long) if edition == 2 else None
    found["points"] = points or gribapi.grib_get_size(handle, "values")
    found["member"] = _get(handle, "perturbationNumber", gribapi.grib_get_long)
    return found | {"edition": edition}


def _get(handle: int, key: str, get: Callable[[int, str], Any]) -> Any:
    try:
        return None if gribapi.grib_is_missing(handle, key) else get(handle, key)
    except gribapi.errors.KeyValueNotFoundError:
        return None


def _row_points(handle: int) -> list[int] | None:
    if not _get(handle, "PLPresent", gribapi.grib_get_long):
        return None
    return gribapi.grib_get_long_array(handle, "pl").tolist()


def answer(task: dict[str, Any], shared: int | None) -> dict[str, Any]:
    """What the pool gets back for one task; raises what goes wrong."""
    message = read_message(task["path"], task["offset"], task["length"])
    if task["do"] == "describe":
        return {"fields": describe(message)}
    if task["do"] == "digest":
        return {"digest": sha256(take_apart(message)[task["part"]]).hexdigest()}
    assert shared is not None
    # Not closed but dropped: the frames of an error may still look at it.
    memory = mmap.mmap(shared, 4 * task["points"], offset=task["at"])
    return decode(message, task["part"], np.frombuffer(memory, np.float32), task["layout"])


def serve(channel: socket.socket) -> None:
    """Answer tasks until the other end hangs up. The descriptor of the shared array comes along with a task."""
    channel.sendall(b'{"ready": true}\n')
    while received := _receive(channel):
        text, descriptors = received
        task = json.loads(text)
        # The default action of SIGALRM ends the process even inside ecCodes.
        signal.setitimer(signal.ITIMER_REAL, task["deadline"] + ORPHAN_GRACE)
        try:
            reply = answer(task, descriptors[0] if descriptors else None)
        except Exception as error:
            reply = {"error": str(error) or type(error).__name__}
        for descriptor in descriptors:
            os.close(descriptor)
        signal.setitimer(signal.ITIMER_REAL, 0)
        channel.sendall(json.dumps(reply).encode() + b"\n")


def _receive(channel: socket.socket) -> tuple[bytes, list[int]] | None:
    text, found = b"", list[int]()
    while not text.endswith(b"\n"):
        part, descriptors, _, _ = socket.recv_fds(channel, 1 << 16, 1)
        if not part:
            return None
        text, found = text + part, found + descriptors
    return text, found


def main() -> None:
    """Serve on the socket whose descriptor is the first argument."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        # Import errors have been shown by now; what ecCodes says about corrupt messages comes back as errors.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        serve(channel)


if __name__ == "__main__":
    main()
