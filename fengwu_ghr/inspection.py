"""What a path holds: GRIB files, a checkpoint, a run store. Rows for a table and plain values for JSON."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from fengwu_ghr.checkpoint import CARD, Checkpoint
from fengwu_ghr.errors import FengwuError, InputError
from fengwu_ghr.grib.messages import FieldInfo, match, scan
from fengwu_ghr.store import RunStore

_GROUPED = ("valid time (UTC)", "initial time", "when", "type", "grid", "packing")


@dataclass(frozen=True)
class Description:
    """A table about one thing, and the same as JSON-able values."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    facts: dict[str, Any]


def describe(paths: Sequence[Path]) -> tuple[list[Description], list[FengwuError]]:
    """One description per checkpoint, store or GRIB file; and what was wrong with the paths that are none."""
    descriptions: list[Description] = []
    problems: list[FengwuError] = []
    for path in paths:
        try:
            descriptions.append(_describe(path))
        except FengwuError as problem:
            problems.append(problem)
    return descriptions, problems


def _describe(path: Path) -> Description:
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if (path / CARD).exists():
        return _describe_checkpoint(path)
    if path.is_dir():
        return _describe_store(path)
    return _describe_grib(path)


def _describe_checkpoint(path: Path) -> Description:
    checkpoint = Checkpoint.open(path)
    facts = checkpoint.facts()
    rows = tuple((name, str(value)) for name, value in facts.items())
    return Description(f"checkpoint {path}", ("property", "value"), rows, {"path": str(path), **facts})


def _describe_store(path: Path) -> Description:
    with RunStore.open(path) as store:
        plan = store.plan
        rows, times = [], {}
        for initial_time in plan.initial_times:
            hours = [_hours(lead) for lead in store.committed(initial_time)]
            times[initial_time.isoformat()] = hours
            done = f"{len(hours)} of {len(plan.leads)} leads"
            span = f"+{hours[0]:g} ... +{hours[-1]:g} h" if hours else "nothing committed"
            rows.append((f"{initial_time:%Y-%m-%d %H:%M}", done, span))
        title = f"run store {path}: {len(plan.channels)} channels on {plan.grid}"
        channels = [str(channel) for channel in plan.channels]
        facts = {"path": str(path), "channels": channels, "grid": str(plan.grid), "committed_hours": times}
    return Description(title, ("initial time", "committed", "leads"), tuple(rows), facts)


def _describe_grib(path: Path) -> Description:
    fields = scan([path])
    groups: dict[tuple[str, ...], list[float]] = {}
    for field in fields:
        groups.setdefault(_group(field), []).append(field.level if field.level is not None else float("nan"))
    rows = tuple((*key[:2], _levels(levels), *key[2:], str(len(levels))) for key, levels in groups.items())
    columns = ("variable", "surface", "levels", *_GROUPED, "fields")
    listed = [dict(zip(columns, row)) for row in rows]
    return Description(f"{path}: {len(fields)} fields", columns, rows, {"path": str(path), "groups": listed})


def _group(field: FieldInfo) -> tuple[str, ...]:
    found = match(field)
    name = found[0].name if found else ".".join(map(str, field.parameter))
    start = f"{field.initial_time:%Y-%m-%d %H:%M}" if field.initial_time else "-"
    valid = f"{field.valid_time:%Y-%m-%d %H:%M}" if field.valid_time else "-"
    grid = f"{field.grid_type}, {field.points} points"
    return (name, str(field.surface), valid, start, field.when, field.data_type, grid, field.packing)


def _levels(levels: Sequence[float]) -> str:
    counted = Counter(level for level in levels if level == level)
    return ", ".join(f"{level:g}" for level in sorted(counted)) or "-"


def _hours(span: timedelta) -> float:
    return span / timedelta(hours=1)
