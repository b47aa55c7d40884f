"""What GRIB files hold, read from the headers alone: one FieldInfo for each field, and the variable it carries."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from fengwu_ghr.grib.geometry import Geometry
from fengwu_ghr.grib.keys import INSTANT, NO_SURFACE, known, later, read_meaning
from fengwu_ghr.grib.pool import WorkerPool
from fengwu_ghr.grib.sections import find_messages
from fengwu_ghr.variables import VARIABLES, Channel, Coding, Variable

HEADER_DEADLINE = 5.0
"""Seconds for the header of one message."""

ECMWF = 98
STATISTICS = {
    0: "average", 1: "accumulation", 2: "maximum", 3: "minimum", 4: "difference", 5: "root mean square",
    6: "standard deviation", 7: "covariance", 8: "difference", 9: "ratio", 10: "standardised anomaly",
    11: "summation",
}  # fmt: skip
ACCUMULATION = 1

_FORECAST_TEMPLATES = (0, 1, 8, 11)
"""GRIB2 table 4.0: a forecast at a point in time or over an interval, of one run or one ensemble member."""
_FORECAST_TYPES_1 = ("an", "ia", "4v", "fc", "cf", "pf")
"""ECMWF's types of single analyses and forecasts in GRIB1, where means and spreads differ in nothing else."""
_FIRST_LOCAL = {1: 128, 2: 192}


@dataclass(frozen=True)
class FieldInfo:
    """One field: where it lies, what it says it is, when it is valid.

    `parameter` and `surface` are as in `variables.Coding`; `level` is in hPa on pressure surfaces. The interval from
    `initial_time + step_start` to `initial_time + step_end` is empty for `statistic` None (instantaneous). What the
    header leaves out or writes nonsensically is None.
    """

    path: Path
    offset: int
    length: int
    part: int
    edition: int
    centre: int
    parameter: tuple[int, ...]
    template: int | None
    surface: int
    second_surface: int
    level: float | None
    initial_time: datetime | None
    step_start: timedelta | None
    step_end: timedelta | None
    statistic: int | None
    member: int | None
    data_type: str
    packing: str
    geometry: Geometry

    @property
    def valid_time(self) -> datetime | None:
        """The end of the interval, in UTC."""
        return later(self.initial_time, self.step_end)

    @property
    def accumulated(self) -> bool:
        return self.statistic == ACCUMULATION

    @property
    def grid_type(self) -> str:
        return self.geometry.grid_type

    @property
    def points(self) -> int:
        return self.geometry.points

    @property
    def name(self) -> str:
        """For messages: the variable and its level, if it is one of ours, else the raw keys."""
        found = match(self)
        if found is None:
            level = "" if self.level is None else f":{self.level:g}"
            return f"parameter {'.'.join(map(str, self.parameter))} at surface {self.surface}{level}"
        if found[0].is_accumulated:
            return found[0].aliases[0]
        return f"{found[0].name}{self.level:g}" if found[0].on_levels else found[0].name

    @property
    def where(self) -> str:
        """For messages: file, offset and number inside a multi-field message."""
        part = f", field {self.part + 1}" if self.part else ""
        return f"{self.path}: the message at byte {self.offset}{part}"

    @property
    def when(self) -> str:
        """For messages: statistic and step range, or the step."""
        kind = STATISTICS.get(self.statistic or 0, f"statistic {self.statistic}")
        kind = "instantaneous" if self.statistic is INSTANT else kind
        if self.step_start is None or self.step_end is None:
            return f"{kind}, with no usable step"
        if self.step_start == self.step_end:
            return f"{kind} at step {hours(self.step_end)} h"
        return f"{kind} over steps {hours(self.step_start)}-{hours(self.step_end)} h"

    def task(self, do: str) -> dict[str, Any]:
        """What a worker needs to know to find it."""
        return {
            "do": do,
            "path": str(self.path),
            "offset": self.offset,
            "length": self.length,
            "part": self.part,
        }


def scan(
    paths: Iterable[Path | str],
    *,
    pool: WorkerPool | None = None,
    workers: int = 2,
    deadline: float = HEADER_DEADLINE,
) -> list[FieldInfo]:
    """Every field of these files, in the order of files and offsets, read in worker processes.

    Raises InputError naming file and offset of the first message that is cut off, corrupt, kills its reader or keeps
    it busy for more than `deadline` seconds.
    """
    tasks = [
        {"do": "describe", "path": str(path), "offset": extent.offset, "length": extent.length}
        for path in (Path(p).absolute() for p in paths)
        for extent in find_messages(path)
    ]
    with nullcontext(pool) if pool else WorkerPool(max(1, min(workers, len(tasks)))) as ready:
        replies = ready.run(tasks, deadline=deadline)
    return [
        _field(task, part, header)
        for task, reply in zip(tasks, replies)
        for part, header in enumerate(reply["fields"])
    ]


def match(field: FieldInfo) -> tuple[Variable, Coding] | None:
    """The variable that a field carries, and the coding it carries it in; None when it is none of ours."""
    for variable, coding in _candidates(field):
        if not obstacle(field, variable):
            return variable, coding
    return None


def channel_of(field: FieldInfo) -> Channel | None:
    """The channel that a field carries; None on levels between ours as well."""
    found = match(field)
    if found is None or not found[0].on_levels:
        return Channel(found[0].name) if found else None
    return (
        Channel(found[0].name, int(field.level)) if field.level and field.level == int(field.level) else None
    )


def near_variables(field: FieldInfo) -> dict[str, str]:
    """Names of the variables whose parameter and surface a field has, and why it is not them all the same."""
    reasons = {variable.name: obstacle(field, variable) for variable, _ in _candidates(field)}
    return {name: reason for name, reason in reasons.items() if reason}


def obstacle(field: FieldInfo, variable: Variable) -> str:
    """Why a field with the right parameter and surface is not this variable; empty when it is."""
    first_local = _FIRST_LOCAL[field.edition]
    if field.centre != ECMWF and max(field.parameter) >= first_local:
        return f"a local number of centre {field.centre}, which may mean anything"
    if field.edition == 2 and field.template not in _FORECAST_TEMPLATES:
        return f"product definition template {field.template}, not a plain forecast"
    if field.edition == 1 and field.centre == ECMWF and field.data_type not in _FORECAST_TYPES_1:
        return f"of type {field.data_type}, not a plain analysis or forecast"
    if variable.is_accumulated and not accumulation(field):
        return f"{field.when}, not accumulated"
    if not variable.is_accumulated and field.statistic is not INSTANT:
        return field.when
    return "" if field.valid_time else "without a usable time"


def accumulation(field: FieldInfo) -> tuple[timedelta, timedelta] | None:
    """The steps between which a field accumulates; None when it does not.

    ECMWF codes accumulations from the start of the forecast as instantaneous in GRIB1.
    """
    if field.step_start is None or field.step_end is None:
        return None
    if field.accumulated:
        return field.step_start, field.step_end
    is_ecmwf_1 = field.edition == 1 and field.centre == ECMWF and field.statistic is INSTANT
    return (timedelta(0), field.step_end) if is_ecmwf_1 else None


def _candidates(field: FieldInfo) -> Sequence[tuple[Variable, Coding]]:
    """Variables of this parameter on this surface at this level."""
    return [
        (variable, coding)
        for variable, coding in _BY_PARAMETER.get((field.edition, field.parameter), ())
        if coding.surface == field.surface
        and field.second_surface == NO_SURFACE
        and (coding.level is None or coding.level == field.level)
        and (field.level is not None or not variable.on_levels)
    ]


def _by_parameter() -> dict[tuple[int, tuple[int, ...]], list[tuple[Variable, Coding]]]:
    found: dict[tuple[int, tuple[int, ...]], list[tuple[Variable, Coding]]] = {}
    for variable in VARIABLES.values():
        for coding in variable.codings:
            found.setdefault((coding.edition, coding.parameter), []).append((variable, coding))
    return found


_BY_PARAMETER = _by_parameter()


def _field(task: dict[str, Any], part: int, header: dict[str, Any]) -> FieldInfo:
    return FieldInfo(
        path=Path(task["path"]),
        offset=task["offset"],
        length=task["length"],
        part=part,
        edition=header["edition"],
        centre=known(header["centre"]),
        member=header["member"],
        data_type=header["dataType"] or "",
        packing=header["packingType"] or "",
        geometry=_geometry(header),
        **read_meaning(header),
    )


def _geometry(header: dict[str, Any]) -> Geometry:
    return Geometry(
        edition=header["edition"],
        grid_type=header["gridType"] or "unknown",
        points=header["points"],
        scan=header["scanningMode"] or 0,
        columns=header["Ni"],
        rows=header["Nj"],
        number=header["N"],
        row_points=tuple(header["row_points"]) if header["row_points"] else None,
        first=(header["latitudeOfFirstGridPointInDegrees"], header["longitudeOfFirstGridPointInDegrees"]),
        last=(header["latitudeOfLastGridPointInDegrees"], header["longitudeOfLastGridPointInDegrees"]),
        increments=(_increment(header, "i"), _increment(header, "j")),
    )


def _increment(header: dict[str, Any], axis: str) -> float | None:
    """In degrees. ecCodes computes one from the corners where the header gives none; that would check nothing."""
    is_given = header[f"{axis}DirectionIncrement"] is not None
    return header[f"{axis}DirectionIncrementInDegrees"] if is_given else None


def hours(step: timedelta) -> str:
    """For messages: a step in hours, without the unit."""
    return f"{step / timedelta(hours=1):g}"
