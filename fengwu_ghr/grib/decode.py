"""Files -> Analysis: every channel of the initial time, decoded, derived and checked, or an error that says why not."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from fengwu_ghr.errors import InputError, MissingValues
from fengwu_ghr.grib.derive import derive
from fengwu_ghr.grib.geometry import Layout, lay_out
from fengwu_ghr.grib.messages import FieldInfo, scan
from fengwu_ghr.grib.pool import SharedArray, WorkerPool
from fengwu_ghr.grib.selection import DIFFERENCE, Reading, Recipe, clock, select
from fengwu_ghr.grid import LatLonGrid, ReducedGaussianGrid
from fengwu_ghr.variables import Channel

DECODE_DEADLINE = 8.0
"""Seconds for the values of one message."""


@dataclass(frozen=True, eq=False)
class SourceField:
    """One field on the grid it came on: "lat lon" on a LatLonGrid, "point" on a reduced one; NaN where missing."""

    values: Float32[np.ndarray, "*points"]
    grid: LatLonGrid | ReducedGaussianGrid


@dataclass(frozen=True, eq=False)
class AnalysisPlan:
    """An analysis that can be read: the recipe of every channel, in the order they were asked for."""

    recipes: tuple[Recipe, ...]
    valid_time: datetime

    @property
    def fields(self) -> tuple[FieldInfo, ...]:
        """Every message that is decoded, once."""
        return tuple(dict.fromkeys(r.field for recipe in self.recipes for r in recipe.readings))

    @property
    def channels(self) -> tuple[Channel, ...]:
        return tuple(recipe.channel for recipe in self.recipes)

    @property
    def lead_of_input(self) -> timedelta:
        """How far the oldest initial time lies before the valid time; zero for an analysis."""
        return max(self.valid_time - _initial(field) for field in self.fields)

    @cached_property
    def files(self) -> tuple[dict[str, Any], ...]:
        """Name, size and sha256 of every file the fields come from; they are read once, on first use."""
        paths = dict.fromkeys(field.path for field in self.fields)
        return tuple(_file_facts(path) for path in paths)

    @property
    def bytes(self) -> int:
        """Of all decoded values, derived fields included."""
        points = sum(field.points for field in self.fields)
        uses = _uses(self.recipes)
        extra = [r.readings[0].field.points for r in self.recipes if r.rule and uses[r.readings[0].field] > 1]
        return 4 * (points + sum(extra))


@dataclass(frozen=True, eq=False)
class Analysis:
    """The decoded fields of one time, by channel in the order asked for; `valid_time` is naive UTC.

    `lead_of_input` is zero for an analysis, else the forecast step the fields come from. `provenance` is JSON-able.
    """

    fields: dict[Channel, SourceField]
    valid_time: datetime
    lead_of_input: timedelta
    provenance: dict[str, Any]


def plan_analysis(
    paths: Sequence[Path | str],
    channels: Sequence[Channel],
    *,
    initial_time: datetime | None = None,
    earlier: Sequence[timedelta] = (),
    pool: WorkerPool | None = None,
    workers: int = 2,
) -> AnalysisPlan:
    """What is to be decoded for these channels, from the headers alone.

    The initial time is the valid time that all channels share; `initial_time` chooses where there are several. A
    model that starts from several states asks that they be there `earlier` by these spans too.
    Raises InputError for files that cannot be read, and one that lists every field that is missing by name, unit,
    level and time, that is there twice with different bytes, or on a grid that cannot be used.
    """
    if initial_time is not None and initial_time.tzinfo is not None:
        raise ValueError(f"times are naive UTC; got {initial_time.isoformat()}")
    with _borrow(pool, workers) as ready:
        fields = scan(paths, pool=ready)
        time, recipes = select(
            fields,
            channels,
            initial_time=initial_time,
            pick=lambda found: pick(found, ready),
            earlier=earlier,
        )
    _check_grids(recipes)
    return AnalysisPlan(tuple(recipes), time)


def read_analysis(
    plan: AnalysisPlan,
    *,
    pool: WorkerPool | None = None,
    workers: int = 2,
    deadline: float = DECODE_DEADLINE,
) -> Analysis:
    """Every channel of the plan: complete, global, in the registry's units and within its plausible range.

    Raises InputError that lists every field that is not, with the range found and the file; and the errors of `decode`.
    """
    with ThreadPoolExecutor(1) as thread, _borrow(pool, workers) as ready:
        facts = thread.submit(lambda: plan.files)  # while the workers decode
        fields = read_recipes(plan.recipes, pool=ready, deadline=deadline)
        provenance = _provenance(plan, facts.result())
    return Analysis(fields, plan.valid_time, plan.lead_of_input, provenance)


def read_recipes(
    recipes: Sequence[Recipe], *, pool: WorkerPool, deadline: float = DECODE_DEADLINE
) -> dict[Channel, SourceField]:
    """The channels that these recipes make, checked as in `read_analysis`, whose errors it raises."""
    fields = tuple(dict.fromkeys(r.field for recipe in recipes for r in recipe.readings))
    return _make(recipes, dict(zip(fields, _decode(fields, pool, deadline))))


def decode(
    fields: Sequence[FieldInfo],
    *,
    pool: WorkerPool | None = None,
    workers: int = 2,
    deadline: float = DECODE_DEADLINE,
) -> list[SourceField]:
    """The values of these fields as the messages hold them (no units changed), north to south, west to east.

    Global grids start at their smallest longitude from 0 on. Values lie in one array shared with the workers.
    Raises InputError naming file and offset for a grid that is not read, and for a message that is corrupt, kills its
    worker or takes more than `deadline` seconds.
    """
    with _borrow(pool, workers) as ready:
        return [SourceField(d.values, d.grid) for d in _decode(fields, ready, deadline)]


@dataclass(eq=False)
class _Decoded:
    """A field and its range; both None when every value is missing."""

    values: Float32[np.ndarray, "*points"]
    grid: LatLonGrid | ReducedGaussianGrid
    minimum: float | None
    maximum: float | None
    missing: int

    def scale(self, factor: float) -> None:
        if factor != 1:
            self.values *= np.float32(factor)
            self.minimum = None if self.minimum is None else self.minimum * factor
            self.maximum = None if self.maximum is None else self.maximum * factor


@contextmanager
def _borrow(pool: WorkerPool | None, workers: int) -> Iterator[WorkerPool]:
    """The caller's pool, left running; or one of our own."""
    if pool is not None:
        yield pool
        return
    with WorkerPool(workers) as own:
        yield own


def _decode(fields: Sequence[FieldInfo], pool: WorkerPool, deadline: float) -> list[_Decoded]:
    layouts = [_layout(field) for field in fields]
    shared = SharedArray([field.points for field in fields])
    tasks = [
        {**field.task("decode"), "points": field.points, "at": start, "layout": layout.recipe}
        for field, layout, start in zip(fields, layouts, shared.starts)
    ]
    try:
        replies = pool.run(tasks, deadline=deadline, shared=shared)
    finally:
        shared.close()
    return [
        _Decoded(_shaped(values, layout), layout.grid, **reply)
        for values, layout, reply in zip(shared.regions, layouts, replies)
    ]


def _layout(field: FieldInfo) -> Layout:
    try:
        return lay_out(field.geometry)
    except ValueError as error:
        raise InputError(f"{field.where} ({field.name}): {error}") from None


def _shaped(values: Float32[np.ndarray, " point"], layout: Layout) -> Float32[np.ndarray, "*points"]:
    return values.reshape(layout.rows, layout.columns) if layout.rows else values


def pick(found: Sequence[FieldInfo], pool: WorkerPool) -> FieldInfo:
    """The first of several messages of one field at one time; raises InputError unless all are byte-identical."""
    if len(found) > 1:
        replies = pool.run([field.task("digest") for field in found], deadline=DECODE_DEADLINE)
        if len({reply["digest"] for reply in replies}) > 1:
            told = (f"{f.where} ({_origin(f)})" for f in found)
            raise InputError("; ".join(told))
    return found[0]


def _origin(field: FieldInfo) -> str:
    member = "" if field.member is None else f", member {field.member}"
    return f"from {clock(_initial(field))}, {field.when}{member}"


def _initial(field: FieldInfo) -> datetime:
    assert field.initial_time is not None
    return field.initial_time


def _check_grids(recipes: Sequence[Recipe]) -> None:
    problems = [problem for recipe in recipes if (problem := _grid_problem(recipe))]
    if problems:
        raise InputError("these fields lie on grids that cannot be used:\n" + "\n".join(problems))


def _grid_problem(recipe: Recipe) -> str:
    """Why the grids of a recipe do not serve; empty when they do."""
    what = f"  {recipe.channel.description}"
    try:
        grids = [_layout(reading.field).grid for reading in recipe.readings]
    except InputError as error:
        return f"{what}: {error}"
    if any(grid != grids[0] for grid in grids):
        return f"{what}: it is computed from fields on different grids, {', '.join(map(str, grids))}"
    if not grids[0].is_global:
        return f"{what}: {recipe.readings[0].field.where}: its {grids[0]} does not cover the globe"
    return ""


def _make(recipes: Sequence[Recipe], decoded: dict[FieldInfo, _Decoded]) -> dict[Channel, SourceField]:
    """The channels, computed in the place of their inputs where nothing else needs these."""
    for field, factor in {r.field: r.factor for recipe in recipes for r in recipe.readings}.items():
        decoded[field].scale(factor)
    problems = {
        problem: bool(decoded[reading.field].missing)
        for recipe in recipes
        for reading in recipe.readings
        if (problem := _reading_problem(recipe, reading, decoded[reading.field]))
    }
    _raise(list(problems), MissingValues if all(problems.values()) else InputError)
    uses = _uses(recipes)
    fields = {recipe.channel: _cook(recipe, decoded, uses) for recipe in recipes}
    _raise(
        [p for recipe in recipes if recipe.rule and (p := _result_problem(recipe, fields[recipe.channel]))]
    )
    return fields


def _raise(problems: Sequence[str], kind: type[InputError] = InputError) -> None:
    if problems:
        raise kind("these fields cannot be what their headers say:\n" + "\n".join(dict.fromkeys(problems)))


def _cook(recipe: Recipe, decoded: dict[FieldInfo, _Decoded], uses: Counter[FieldInfo]) -> SourceField:
    inputs = [decoded[reading.field] for reading in recipe.readings]
    first = inputs[0]
    if not recipe.rule:
        return SourceField(first.values, first.grid)
    values = [i.values for i in inputs]
    result = values[0] - values[1] if recipe.rule == DIFFERENCE else derive(recipe.channel, values)
    if uses[recipe.readings[0].field] > 1:
        return SourceField(result, first.grid)
    first.values[...] = result
    return SourceField(first.values, first.grid)


def _uses(recipes: Sequence[Recipe]) -> Counter[FieldInfo]:
    return Counter(reading.field for recipe in recipes for reading in recipe.readings)


def _reading_problem(recipe: Recipe, reading: Reading, found: _Decoded) -> str:
    """Why the values cannot be used; empty when they can."""
    what = f"  {reading.channel.description}: {reading.field.where}"
    if found.missing or found.minimum is None or found.maximum is None:
        return f"{what}: {found.missing} of {found.values.size} values are missing; a forecast needs complete fields"
    if recipe.rule == DIFFERENCE:
        return ""
    return _range_problem(what, reading.channel, found.minimum, found.maximum)


def _result_problem(recipe: Recipe, result: SourceField) -> str:
    files = ", ".join(dict.fromkeys(reading.field.where for reading in recipe.readings))
    what = f"  {recipe.channel.description}: computed ({recipe.rule}) from {files}"
    return _range_problem(what, recipe.channel, float(result.values.min()), float(result.values.max()))


def _range_problem(what: str, channel: Channel, minimum: float, maximum: float) -> str:
    low, high = channel.plausible
    if low <= minimum and maximum <= high:
        return ""
    return f"{what}: its values run from {minimum:g} to {maximum:g}, plausible is {low:g} to {high:g}"


def _file_facts(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return {"name": path.name, "size": path.stat().st_size, "sha256": digest}
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


def _provenance(plan: AnalysisPlan, files: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "files": list(files),
        "valid_time": plan.valid_time.isoformat(),
        "lead_of_input_hours": plan.lead_of_input / timedelta(hours=1),
        "channels": {str(recipe.channel): _origins(recipe) for recipe in plan.recipes},
    }


def _origins(recipe: Recipe) -> dict[str, Any]:
    messages = [
        {
            "file": reading.field.path.name,
            "offset": reading.field.offset,
            "field": reading.field.part,
            "read_as": str(reading.channel),
            "edition": reading.field.edition,
            "parameter": list(reading.field.parameter),
            "surface": reading.field.surface,
            "factor": reading.factor,
            "initial_time": _initial(reading.field).isoformat(),
            "when": reading.field.when,
            "packing": reading.field.packing,
            "grid": str(_layout(reading.field).grid),
        }
        for reading in recipe.readings
    ]
    return {"rule": recipe.rule or "as read", "messages": messages}
