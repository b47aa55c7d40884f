"""Views of a run store: the meteogram of a place, the map of a field."""

import csv
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from fengwu_ghr.config import asked_time
from fengwu_ghr.errors import InputError, OutputError, UsageError
from fengwu_ghr.export import series_at
from fengwu_ghr.plot import Caption, draw_map, draw_meteogram
from fengwu_ghr.store import RunStore
from fengwu_ghr.variables import Channel, channel

USUAL = ("2t", "msl", "10u", "10v", "z500", "t850")
"""What a meteogram shows when nothing is asked for."""


def write_meteogram(
    path: Path,
    names: Sequence[str] | None,
    *,
    latitude: float,
    longitude: float,
    stem: Path,
    time: str | None = None,
) -> tuple[Path, Path]:
    """Write `stem`.csv and `stem`.png with the fields at a place over the committed leads; returns both paths.

    Fields and initial times that the store does not hold are an InputError naming what it holds; a stem without a name
    and a `time` that is none are a UsageError.
    """
    if stem.name in ("", ".."):
        raise UsageError(f"the CSV and the PNG need a name, as berlin or folder/berlin; got {str(stem)!r}")
    asked = asked_time(time)
    with RunStore.open(path) as store:
        initial_time = asked or store.plan.initial_times[0]
        model = model_name(store, initial_time)
        usual = [name for name in USUAL if channel(name) in store.plan.channels]
        channels = [
            stored_channel(store, name) for name in names or usual or map(str, store.plan.channels[:6])
        ]
        leads, series = series_at(
            store, channels, initial_time=initial_time, latitude=latitude, longitude=longitude
        )
    if not leads:
        raise InputError(f"{path} holds no committed lead yet; run the forecast to its end")
    table, picture = (stem.with_name(stem.name + suffix) for suffix in (".csv", ".png"))
    _write_csv(table, initial_time, leads, series)
    title = f"{model} at {latitude:g}, {longitude:g}, from {initial_time:%Y-%m-%d %H} UTC"
    draw_meteogram(leads, series, title=title, initial_time=initial_time, output=picture)
    return table, picture


def write_map(
    path: Path, variable: str, level: int | None, *, lead: timedelta, time: str | None, output: Path
) -> Path:
    """Write the map of one committed field; returns its path. A `time` that is none is a UsageError."""
    asked = asked_time(time)
    with RunStore.open(path) as store:
        wanted = stored_channel(store, variable if level is None else f"{variable}_{level}")
        initial_time = asked or store.plan.initial_times[0]
        values = store.read(wanted, initial_time, lead)
        caption = Caption(wanted, initial_time, lead, model_name(store, initial_time))
        draw_map(values, store.plan.latlon, caption, output=output)
    return output


def model_name(store: RunStore, initial_time: datetime) -> str:
    """The model that made the forecast, as its provenance has it."""
    recorded = store.provenance(initial_time)
    if recorded is None:
        return "unknown model"
    model = recorded["identity"]["model"]
    return model["name"] if model.get("trained", True) else f"{model['name']} (untrained, no skill)"


def stored_channel(store: RunStore, name: str) -> Channel:
    """The store's channel of this name; raises InputError listing what there is."""
    levels = [c.level for c in store.plan.channels if c.variable == name and c.level]
    if levels:
        raise UsageError(
            f"{name} needs a level (--level in hPa); {store.path} holds {', '.join(map(str, levels))}"
        )
    try:
        found = channel(name)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if found not in store.plan.channels:
        there = ", ".join(map(str, store.plan.channels))
        raise InputError(f"{store.path} does not hold {found}; it holds {there}")
    return found


def _write_csv(
    path: Path,
    initial_time: datetime,
    leads: Sequence[timedelta],
    series: Mapping[Channel, Float32[np.ndarray, " lead"]],
) -> None:
    header = ["valid_time", "lead_hours", *(f"{c} [{c.definition.units}]" for c in series)]
    rows = (
        [
            f"{initial_time + lead:%Y-%m-%dT%H:%M}",
            f"{lead / timedelta(hours=1):g}",
            *(f"{v[i]:.6g}" for v in series.values()),
        ]
        for i, lead in enumerate(leads)
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from None
