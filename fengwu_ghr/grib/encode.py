"""From fields to GRIB2: one message per field, one file per lead, an index beside it.

The header follows the WPMIP profile (regular latitude-longitude grid in microdegrees from the north-west, CCSDS
packing, bitmaps for missing values, WMO tables 36 without local ones), so no centre's local definitions are needed to
read it. Two choices of ours inside it: the centre is 255, since the profile's 323 belongs to its archive; a quantity
of the whole atmosphere lies between the ground and the nominal top (surfaces 1 and 8), the only coding in which
ecCodes, cfgrib and cdo recognise total cloud cover.
"""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from glob import escape
from pathlib import Path
from types import MappingProxyType

import eccodes
import numpy as np
from jaxtyping import Float, Float32, Float64

from fengwu_ghr.durable import flush, make_folder, writing
from fengwu_ghr.errors import ConformanceError
from fengwu_ghr.grib.header import HOUR, Handle, grid_keys, in_units, parameter_keys, time_keys
from fengwu_ghr.grib.plane import plane_keys
from fengwu_ghr.grid import LatLonGrid
from fengwu_ghr.projected_grid import ProjectedGrid, RadarGrid
from fengwu_ghr.variables import VARIABLES, Channel, Coding

PACKINGS = ("grid_ccsds", "grid_simple")
"""Those that lose nothing but the rounding to `bits`; JPEG and second-order packing are ten times as slow."""
MOST_BITS = 24
SPANS = 10
"""A field may span this many times the plausible range of its variable: beyond, rounding would blur all of it."""

_INSTANT_TEMPLATE, _INTERVAL_TEMPLATE = 0, 8
_MISSING = -1e30
_THINNED_POINTS = 100


@dataclass(frozen=True)
class Packing:
    """How values become integers: the representation, and how many bits each integer has."""

    kind: str = "grid_ccsds"
    bits: int = 16

    def __post_init__(self) -> None:
        if self.kind not in PACKINGS:
            raise ValueError(f"the packing must be one of {', '.join(PACKINGS)}; got {self.kind!r}")
        if not 1 <= self.bits <= MOST_BITS:
            raise ValueError(f"a value is packed into 1 to {MOST_BITS} bits; got {self.bits}")


@dataclass(frozen=True)
class GribEncoding:
    """What the headers say beside the field itself. `overrides` gives variables a packing of their own.

    `production_status` is 16 for products, 17 for tests of the same chain (WMO table 1.3). Fields are of a forecast,
    its step 0 too, unless `is_analysis` (tables 1.2, 1.4 and 4.3).
    """

    packing: Packing = Packing()
    overrides: Mapping[str, Packing] = field(default_factory=lambda: MappingProxyType({}))
    centre: int = 255
    sub_centre: int = 0
    generating_process: int = 255
    production_status: int = 16
    is_analysis: bool = False

    def __post_init__(self) -> None:
        unknown = sorted(set(self.overrides) - set(VARIABLES))
        if unknown:
            raise ValueError(
                f"packings are given to variables, of which there are {', '.join(VARIABLES)}; "
                f"got {', '.join(unknown)}"
            )

    def packing_of(self, variable: str) -> Packing:
        return self.overrides.get(variable, self.packing)


class GribEncoder:
    """Turns fields on one grid into GRIB2 messages. Threads share it: it holds bytes only, handles live in a call.

    Raises ConformanceError for a grid that is not evenly spaced in microdegrees, or whose projection GRIB has not.
    """

    def __init__(self, grid: RadarGrid, encoding: GribEncoding = GribEncoding()) -> None:
        self.grid, self.encoding = grid, encoding
        self._templates = {
            is_accumulated: _template(grid, encoding, number)
            for is_accumulated, number in ((False, _INSTANT_TEMPLATE), (True, _INTERVAL_TEMPLATE))
        }

    def encode(
        self,
        channel: Channel,
        values: Float32[np.ndarray, "lat lon"],
        *,
        initial_time: datetime,
        lead: timedelta,
    ) -> bytes:
        """The message of one field in registry units, NaN being missing; equal arguments give equal bytes.

        An accumulation ends at `lead`. Decoded values differ by at most `packing_bound`. Raises ConformanceError for
        values that are infinite or span more than `SPANS` times what is plausible, ValueError for a lead that GRIB
        or the channel cannot have.
        """
        if values.shape != self.grid.shape:
            raise ValueError(f"a field on {self.grid} has the shape {self.grid.shape}; got {values.shape}")
        if isinstance(self.grid, ProjectedGrid):
            values = values[::-1]  # rows from the south: ecCodes finds the places of no other order
        missing = _missing(channel, values)
        coded = _coded(values, missing, channel.definition.encoding)
        keys = parameter_keys(channel) | time_keys(channel, initial_time, lead)
        keys |= self._packing_keys(channel, has_missing=missing is not None)
        template = self._templates[channel.definition.is_accumulated]
        with Handle(eccodes.codes_new_from_message(template)) as handle:
            try:
                handle.set(keys)
                eccodes.codes_set_values(handle.id, coded)
                message: bytes = eccodes.codes_get_message(handle.id)
            except eccodes.CodesInternalError as error:
                raise ConformanceError(f"{channel.description} cannot be coded as GRIB2: {error}") from error
        return message

    def _packing_keys(self, channel: Channel, *, has_missing: bool) -> dict[str, str | int | float]:
        packing = self.encoding.packing_of(channel.variable)
        keys: dict[str, str | int | float] = {"bitsPerValue": packing.bits}
        if packing.kind != self.encoding.packing.kind:
            keys |= {"packingType": packing.kind}
        return keys | {"bitmapPresent": 1, "missingValue": _MISSING} if has_missing else keys


def packing_bound(values: Float[np.ndarray, "..."], bits: int) -> float:
    """The largest error of packing these values into this many bits, in their units; NaN counts as missing.

    The integers step by the smallest power of two not below (max - min) / (2^bits - 1), so half a step is at most
    that quotient; the reference value and the decoded value are float32, which adds a rounding of each.
    """
    present = values[np.isfinite(values)]
    if present.size == 0:
        return 0.0
    low, high = float(present.min()), float(present.max())
    return (high - low) / (2**bits - 1) + 2 * float(np.spacing(np.float32(max(abs(low), abs(high)))))


def lead_file_name(initial_time: datetime, lead: timedelta) -> str:
    """The file of one lead, named as in ECMWF's open data: 20240101000000-24h-oper-fc.grib2, 90m for minutes."""
    amount, unit = in_units(lead)
    return f"{initial_time:%Y%m%d%H%M%S}-{amount}{'h' if unit is HOUR else 'm'}-oper-fc.grib2"


def index_path(path: Path) -> Path:
    """Where the index of a GRIB file lies."""
    return path.with_suffix(".index")


def write_messages(path: Path, messages: Sequence[tuple[Channel, bytes]]) -> None:
    """The file holds these messages durably, and `.index` beside it says in JSON lines where each one lies.

    The keys of a line are those of ECMWF's open data. The file appears whole or not at all, its index after it; an
    index never speaks of another file. Several processes may write the same file: one of them is the last. Raises
    OutputError naming the path when it cannot be written, ValueError without messages: no reader takes an empty file.
    """
    if not messages:
        raise ValueError(f"a GRIB file holds at least one message; got none for {path}")
    index = index_path(path)
    with writing(path):
        make_folder(path.parent)
        with _written_aside(path, [message for _, message in messages]) as unfinished:
            index.unlink(missing_ok=True)
            os.replace(unfinished, path)
    with writing(index):
        with _written_aside(index, _index_lines(messages)) as unfinished:
            os.replace(unfinished, index)
        flush(path.parent)


def check_templates(
    grid: LatLonGrid,
    channels: Sequence[Channel],
    *,
    encoding: GribEncoding = GribEncoding(),
    initial_time: datetime = datetime(2000, 2, 29, 18),
    threads: int = 2,
) -> None:
    """Every channel can be encoded: a plausible field of each was, and came back within the bound.

    The whole grid is tried once for instants and once for accumulations, the channels on a thinned one. Raises
    ConformanceError naming the first channel that did not, and how.
    """
    kinds = {channel.definition.is_accumulated: channel for channel in channels}
    tasks = [(grid, channel) for channel in kinds.values()] + [
        (_thinned(grid), channel) for channel in channels
    ]
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(partial(_check_template, encoding, initial_time), *zip(*tasks)):
            pass


def _template(grid: RadarGrid, encoding: GribEncoding, number: int) -> bytes:
    """A message with everything that all fields of one kind have in common."""
    with Handle(eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib2")) as handle:
        handle.set(
            {
                "tablesVersion": 36,
                "localTablesVersion": 0,
                "centre": encoding.centre,
                "subCentre": encoding.sub_centre,
                "significanceOfReferenceTime": 0 if encoding.is_analysis else 1,
                "typeOfProcessedData": 0 if encoding.is_analysis else 1,
                "productionStatusOfProcessedData": encoding.production_status,
                "productDefinitionTemplateNumber": number,
                "typeOfGeneratingProcess": 0 if encoding.is_analysis else 2,
                "backgroundProcess": 255,
                "generatingProcessIdentifier": encoding.generating_process,
                "hoursAfterDataCutoff": None,
                "minutesAfterDataCutoff": None,
                "packingType": encoding.packing.kind,
                **(plane_keys(grid) if isinstance(grid, ProjectedGrid) else grid_keys(grid)),
            }
        )
        message: bytes = eccodes.codes_get_message(handle.id)
        return message


def _missing(channel: Channel, values: Float32[np.ndarray, "lat lon"]) -> np.ndarray | None:
    """Where the values are missing, None where they never are; ecCodes itself would write NaN as the minimum."""
    low, high = float(values.min()), float(values.max())
    missing = np.isnan(values) if np.isnan(low) else None
    if missing is not None:
        low, high = float(np.fmin.reduce(values, axis=None)), float(np.fmax.reduce(values, axis=None))
    if np.isinf(low) or np.isinf(high):
        raise ConformanceError(
            f"{channel.description} has {int(np.isinf(values).sum())} infinite values, which GRIB cannot hold"
        )
    plausible = channel.plausible
    if high - low > SPANS * (plausible[1] - plausible[0]):
        raise ConformanceError(
            f"{channel.description} lies in {low:.4g} ... {high:.4g}, more than {SPANS} times wider than the "
            f"plausible {plausible[0]:.4g} ... {plausible[1]:.4g}: packed, little of the field would remain"
        )
    return missing


def _coded(
    values: Float32[np.ndarray, "lat lon"], missing: np.ndarray | None, coding: Coding
) -> Float64[np.ndarray, " point"]:
    """Flat, in the units of the coding."""
    coded = values.astype(np.float64).ravel()
    if coding.factor != 1:
        coded /= coding.factor
    if missing is not None:
        coded[missing.ravel()] = _MISSING
    return coded


@contextmanager
def _written_aside(path: Path, parts: Sequence[bytes]) -> Iterator[Path]:
    """A file of this process beside `path` that holds these bytes durably; gone after the block, unless renamed."""
    _remove_abandoned(path)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.unfinished")
    try:
        with open(unfinished, "xb") as file:
            with suppress(OSError):  # without locks a file of a killed process stays, nothing worse
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
            yield unfinished
    finally:
        unfinished.unlink(missing_ok=True)


def _remove_abandoned(path: Path) -> None:
    """No unfinished file of a killed process is left beside `path`: nobody holds its lock, and it may be large."""
    for unfinished in path.parent.glob(f".{escape(path.name)}.*.unfinished"):
        with suppress(OSError), open(unfinished, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unfinished.unlink()


def _index_lines(messages: Sequence[tuple[Channel, bytes]]) -> list[bytes]:
    lines, offset = [], 0
    for channel, message in messages:
        entry = _index_entry(channel, message) | {"_offset": offset, "_length": len(message)}
        lines.append(json.dumps(entry).encode() + b"\n")
        offset += len(message)
    return lines


def _index_entry(channel: Channel, message: bytes) -> dict[str, str]:
    with Handle(eccodes.codes_new_from_message(message)) as handle:
        date, time, step = (
            eccodes.codes_get(handle.id, key, kind)
            for key, kind in (("dataDate", int), ("dataTime", int), ("endStep", str))
        )
    period = channel.definition.period_hours
    level = {} if channel.level is None else {"levelist": str(channel.level)}
    return {
        "date": f"{date:08d}",
        "time": f"{time:04d}",
        "stream": "oper",
        "type": "fc",
        "step": step,
        "levtype": "pl" if level else "sfc",
        **level,
        "param": channel.variable.removesuffix(f"{period}h") if period else channel.variable,
    }


def _thinned(grid: LatLonGrid) -> LatLonGrid:
    """Every n-th row and column of the grid, about a hundred of each."""
    rows, columns = (max(1, size // _THINNED_POINTS) for size in grid.shape)
    return LatLonGrid(grid.latitude[::rows], grid.longitude[::columns])


def _plausible_field(grid: LatLonGrid, channel: Channel) -> Float32[np.ndarray, "lat lon"]:
    low, high = channel.plausible
    phi, lam = np.deg2rad(grid.latitude)[:, None], np.deg2rad(grid.longitude)
    values = (low + high) / 2 + 0.4 * (high - low) * np.cos(phi) * np.cos(lam)
    return values.astype(np.float32)


def _check_template(
    encoding: GribEncoding, initial_time: datetime, grid: LatLonGrid, channel: Channel
) -> None:
    values, lead = _plausible_field(grid, channel), timedelta(hours=max(6, channel.definition.period_hours))
    message = GribEncoder(grid, encoding).encode(channel, values, initial_time=initial_time, lead=lead)
    wanted = grid_keys(grid) | parameter_keys(channel) | time_keys(channel, initial_time, lead)
    with Handle(eccodes.codes_new_from_message(message)) as handle:
        wrong = [key for key, value in wanted.items() if value is not None and _read(handle, key) != value]
        decoded = eccodes.codes_get_values(handle.id).reshape(values.shape)
    if wrong:
        raise ConformanceError(f"{channel.description} reads back with another {', '.join(wrong)}")
    error = float(np.abs(decoded * channel.definition.encoding.factor - values).max())
    bound = packing_bound(values, encoding.packing_of(channel.variable).bits)
    if not error <= bound:
        raise ConformanceError(
            f"{channel.description} reads back {error:.3g} off, where packing explains {bound:.3g}"
        )


def _read(handle: Handle, key: str) -> int:
    value: int = eccodes.codes_get(handle.id, key, int)
    return value
