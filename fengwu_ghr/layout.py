"""What a run store is made of: its plan, and every array with dimensions, chunks, coordinates and CF attributes.

The names are those of WeatherBench 2 (dimensions) and ECMWF (variables). No storage library is used here.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import PurePath
from typing import Any

import numpy as np

from fengwu_ghr.errors import InputError
from fengwu_ghr.grid import LatLonGrid
from fengwu_ghr.projected_grid import ProjectedGrid, RadarGrid
from fengwu_ghr.variables import VARIABLES, Channel

CONVENTIONS = "CF-1.11"
GRID_MAPPING = "projection"
"""The scalar array whose attributes describe the projection of a projected grid."""
INNER_CHUNKS = (3, 4)
"""Along latitude and longitude; a shard is one field. 667 x 1000 values each at 0.09 degrees."""
MANTISSA_BITS = 23
BYTE_SHUFFLE, BIT_SHUFFLE = "shuffle", "bitshuffle"
"""Fields of full precision, as interpolation and networks give them, are compressed by bytes as small as by bits and
in 0.6 of the time; rounded ones become a quarter smaller by bits."""

_LOSSLESS_BITS = 22
"""What lz4 with bit-shuffling leaves of a float32 field at 0.09 degrees, on the safe side (19 to 22 measured)."""


@dataclass(frozen=True, eq=False)
class StorePlan:
    """Which fields a run store holds. Shape and time axis are fixed by it, once.

    `initial_times` (naive UTC) and `leads` ascend, in whole seconds. `keep_bits` (1 to 23) rounds the mantissa of
    what is stored; None stores every bit. Raises ValueError.
    """

    channels: tuple[Channel, ...]
    grid: RadarGrid
    initial_times: tuple[datetime, ...]
    leads: tuple[timedelta, ...]
    keep_bits: int | None = None

    def __post_init__(self) -> None:
        _check_axis("channels", [str(channel) for channel in self.channels], ordered=False)
        _check_axis("initial times", list(self.initial_times))
        _check_axis("leads", list(self.leads))
        for time in self.initial_times:
            if time.tzinfo is not None or time.microsecond:
                raise ValueError(f"initial times are naive UTC in whole seconds; got {time.isoformat()}")
        if self.leads[0] < timedelta(0) or any(lead % timedelta(seconds=1) for lead in self.leads):
            raise ValueError(f"leads are whole seconds from zero on; got {', '.join(map(str, self.leads))}")
        if self.keep_bits is not None and not 1 <= self.keep_bits <= MANTISSA_BITS:
            raise ValueError(f"keep_bits must lie in 1 ... {MANTISSA_BITS}; got {self.keep_bits}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StorePlan) and not self.differences(other)

    def __hash__(self) -> int:
        return hash((self.channels, self.grid, self.initial_times, self.leads, self.keep_bits))

    def differences(self, other: "StorePlan") -> list[str]:
        """What the other plan has otherwise, in words: `leads (41, not 5)`."""
        pairs = {
            name: (getattr(self, name), getattr(other, name))
            for name in ("channels", "grid", "initial_times", "leads", "keep_bits")
        }
        return [f"{name} ({_difference(a, b)})" for name, (a, b) in pairs.items() if a != b]

    @property
    def latlon(self) -> LatLonGrid:
        """The grid, for what needs latitudes and longitudes as axes. Raises InputError where it is projected."""
        if isinstance(self.grid, ProjectedGrid):
            raise InputError(
                f"this needs latitudes and longitudes as axes; the store is on {self.grid}: it holds a nowcast, for "
                "which there are the verbs of fengwu-ghr nowcast"
            )
        return self.grid

    @cached_property
    def time_index(self) -> dict[datetime, int]:
        """Where each initial time stands; there may be thousands."""
        return {time: index for index, time in enumerate(self.initial_times)}

    @property
    def levels(self) -> tuple[int, ...]:
        """In hPa, ascending; a variable that is not kept on one of them is NaN there."""
        return tuple(sorted({channel.level for channel in self.channels if channel.level is not None}))

    @property
    def variables(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(channel.variable for channel in self.channels))

    @property
    def lead_bytes(self) -> int:
        """Of the float32 values of one lead."""
        return 4 * self.grid.points * len(self.channels)

    @property
    def predicted_bytes(self) -> int:
        """What the store will take on disk when every lead is committed: each mantissa bit dropped saves one."""
        dropped = MANTISSA_BITS - (self.keep_bits or MANTISSA_BITS)
        bits = max(_LOSSLESS_BITS - dropped, 3)
        return self.lead_bytes * len(self.leads) * len(self.initial_times) * bits // 32

    def shard(self, channel: Channel, initial_time: datetime, lead: timedelta) -> tuple[int, ...]:
        """Where the channel's field stands along the dimensions before latitude and longitude.

        Raises ValueError for what is not planned.
        """
        parts = (("channels", channel, self.channels), ("leads", lead, self.leads))
        for name, value, planned in (*parts, ("initial_times", initial_time, self.time_index)):
            if value not in planned:
                raise ValueError(f"the plan's {name} do not have {value}")
        index = self.time_index[initial_time], self.leads.index(lead)
        return index if channel.level is None else (*index, self.levels.index(channel.level))

    def shard_path(self, channel: Channel, initial_time: datetime, lead: timedelta) -> PurePath:
        """Of the field's file, relative to the store."""
        index = self.shard(channel, initial_time, lead)
        return PurePath(channel.variable, "c", *map(str, index), "0", "0")

    def lead_folder(self, variable: str, initial_time: datetime, lead: timedelta) -> PurePath:
        """Of all the shards of a variable at one lead, relative to the store."""
        index = self.time_index[initial_time], self.leads.index(lead)
        return PurePath(variable, "c", *map(str, index))


@dataclass(frozen=True, eq=False)
class ArrayLayout:
    """One array of a store: a field variable, where `values` is None, or a coordinate.

    `shuffle` is what rearranges the values of a field before they are compressed.
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    attributes: dict[str, Any]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None = None
    shuffle: str = BYTE_SHUFFLE
    values: np.ndarray | None = None


def arrays(plan: StorePlan) -> list[ArrayLayout]:
    """Coordinates first, then the variables in the order of their channels."""
    return [*_coordinates(plan), *(_field(plan, name) for name in plan.variables)]


def channel_key(channel: Channel) -> str:
    """`z_500`, `2t`: how a store's attributes name a channel. `u100` could be read as the wind at 100 m."""
    return channel.variable if channel.level is None else f"{channel.variable}_{channel.level}"


def channel_of(key: str) -> Channel:
    """The inverse of `channel_key`."""
    variable, _, level = key.partition("_")
    return Channel(variable, int(level) if level else None)


def global_attributes(plan: StorePlan) -> dict[str, Any]:
    """From which, with the coordinates, the plan can be read back."""
    rounding = {} if plan.keep_bits is None else {"keep_bits": plan.keep_bits}
    return {
        "Conventions": CONVENTIONS,
        "channels": [channel_key(channel) for channel in plan.channels],
        "grid": plan.grid.name,
        **({"projection": plan.grid.projection.text} if isinstance(plan.grid, ProjectedGrid) else {}),
        **rounding,
    }


def _field(plan: StorePlan, name: str) -> ArrayLayout:
    rows, columns = plan.grid.shape
    chunk = -(-rows // INNER_CHUNKS[0]), -(-columns // INNER_CHUNKS[1])
    shard = chunk[0] * INNER_CHUNKS[0], chunk[1] * INNER_CHUNKS[1]
    leading: tuple[str, ...] = ("time", "prediction_timedelta")
    sizes: tuple[int, ...] = (len(plan.initial_times), len(plan.leads))
    if VARIABLES[name].on_levels:
        leading, sizes = (*leading, "level"), (*sizes, len(plan.levels))
    ones = (1,) * len(sizes)
    return ArrayLayout(
        name,
        (*leading, *horizontal_dims(plan.grid)),
        (*sizes, rows, columns),
        _field_attributes(plan, name),
        chunks=(*ones, *chunk),
        shards=(*ones, *shard),
        shuffle=BYTE_SHUFFLE if plan.keep_bits is None else BIT_SHUFFLE,
    )


def _field_attributes(plan: StorePlan, name: str) -> dict[str, Any]:
    what = VARIABLES[name]
    attributes = {
        "standard_name": what.standard_name,
        "long_name": what.long_name,
        "units": what.units,
        "GRIB_paramId": what.param_id,
        "GRIB_shortName": name.removesuffix(f"{what.period_hours}h") if what.is_accumulated else name,
        "GRIB_stepType": "accum" if what.is_accumulated else "instant",
        "coordinates": "valid_time",
    }
    if isinstance(plan.grid, ProjectedGrid):
        attributes |= {"coordinates": "valid_time latitude longitude", "grid_mapping": GRID_MAPPING}
    if what.is_accumulated:
        attributes["cell_methods"] = f"valid_time: sum (comment: over the last {what.period_hours} hours)"
    if plan.keep_bits is not None:
        attributes["keep_bits"] = plan.keep_bits
    return attributes


def _coordinates(plan: StorePlan) -> list[ArrayLayout]:
    time = np.array(plan.initial_times, "datetime64[s]").astype(np.int64)
    lead = np.array([lead // timedelta(seconds=1) for lead in plan.leads], np.int64)
    level = np.array(plan.levels, np.int64)
    clock = {"units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian"}
    # The dtype attribute is how xarray marks a duration: by units alone it decodes one with a warning, or not.
    duration = {"units": "seconds", "dtype": "timedelta64[ns]"}
    found = [
        _coordinate("time", time, clock, "forecast_reference_time", "initial time", axis="T"),
        _coordinate("prediction_timedelta", lead, duration, "forecast_period", "time since the initial time"),
        *_horizontal(plan.grid),
        _coordinate(
            "valid_time", time[:, None] + lead, clock, "time", "valid time", ("time", "prediction_timedelta")
        ),
    ]
    if level.size:
        pressure = {"units": "hPa", "positive": "down"}
        found.append(_coordinate("level", level, pressure, "air_pressure", "pressure level", axis="Z"))
    return found


def horizontal_dims(grid: RadarGrid) -> tuple[str, str]:
    """The names of rows and columns."""
    return ("y", "x") if isinstance(grid, ProjectedGrid) else ("latitude", "longitude")


def _horizontal(grid: RadarGrid) -> list[ArrayLayout]:
    """Coordinates of rows and columns; of a projected grid also every point's place, and the grid mapping."""
    north, east = {"units": "degrees_north"}, {"units": "degrees_east"}
    if isinstance(grid, LatLonGrid):
        return [
            _coordinate("latitude", grid.latitude, north, "latitude", axis="Y"),
            _coordinate("longitude", grid.longitude, east, "longitude", axis="X"),
        ]
    metres = {"units": "m"}
    latitude, longitude = grid.places
    mapping = np.zeros((), np.int64)
    return [
        _coordinate("y", grid.y, metres, "projection_y_coordinate", axis="Y"),
        _coordinate("x", grid.x, metres, "projection_x_coordinate", axis="X"),
        _coordinate("latitude", latitude, north, "latitude", dims=("y", "x")),
        _coordinate("longitude", longitude, east, "longitude", dims=("y", "x")),
        ArrayLayout(GRID_MAPPING, (), (), grid.attributes(), chunks=(), values=mapping),
    ]


def _coordinate(
    name: str,
    values: np.ndarray,
    attributes: dict[str, str],
    standard_name: str,
    long_name: str = "",
    dims: tuple[str, ...] = (),
    *,
    axis: str = "",
) -> ArrayLayout:
    described = {"standard_name": standard_name, "long_name": long_name or standard_name, **attributes}
    if axis:
        described["axis"] = axis
    return ArrayLayout(name, dims or (name,), values.shape, described, chunks=values.shape, values=values)


def _check_axis(name: str, values: list[Any], *, ordered: bool = True) -> None:
    if not values or len(set(values)) < len(values) or (ordered and sorted(values) != values):
        order = "distinct and ascending" if ordered else "distinct"
        raise ValueError(f"a store's {name} must be {order}, at least one; got {', '.join(map(str, values))}")


def _difference(a: object, b: object) -> str:
    if isinstance(a, tuple) and isinstance(b, tuple):
        only = [_text(value) for value in sorted({*a} ^ {*b})] or ["another order"]
        return f"{len(a)}, not {len(b)}: {', '.join(only[:4])}{' ...' if len(only) > 4 else ''}"
    return f"{a}, not {b}"


def _text(value: object) -> str:
    return f"+{value / timedelta(hours=1):g} h" if isinstance(value, timedelta) else str(value)
