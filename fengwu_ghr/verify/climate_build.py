"""Making a climatology: channel by channel, from fields that stream into a scratch file, hour by hour of the day.

Means and variances are annual harmonics, by least squares; percentiles are of all days within 45 of the
middle of a month.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float32, Float64

from fengwu_ghr.durable import make_folder, replace_file, writing
from fengwu_ghr.errors import InputError, UsageError
from fengwu_ghr.grid import LatLonGrid
from fengwu_ghr.lead import round_mantissa
from fengwu_ghr.progress import Progress
from fengwu_ghr.variables import Channel
from fengwu_ghr.verify.climate import ABOUT, ClimateStore, middle_of_month
from fengwu_ghr.verify.climatology import Climatology, Period, check_condition, harmonic_terms, periods_of
from fengwu_ghr.verify.fields import Analyses, ToGrid
from fengwu_ghr.verify.quantities import RAIN, Values, channels_of, earlier, quantity
from fengwu_ghr.verify.rain import DRY_LIMIT_MM

_VARIANCE_HARMONICS = 1
_WINDOW_DAYS = 45
_HEAVY = 2 / 3
"""Of wet days, the share that is light (Rodwell et al. 2010)."""
_ROWS_BYTES = 2**28


@dataclass(frozen=True)
class ClimateSettings:
    """What is made: annual harmonics of the mean, percentiles by channel or quantity; on the analyses' grid or this."""

    harmonics: int = 2
    percentiles: Mapping[str, tuple[float, ...]] | None = None
    grid: LatLonGrid | None = None


def build_climate(
    analyses: Analyses,
    names: Sequence[str],
    path: Path,
    settings: ClimateSettings,
    *,
    progress: Progress,
    times: Sequence[datetime] | None = None,
) -> ClimateStore:
    """A climatology of these channels and quantities at `path`; it goes on where an earlier attempt stopped.

    Raises InputError where the states leave seasons open or a value is missing, UsageError where harmonics are
    negative or the path holds one of other settings.
    """
    chosen = tuple(sorted(analyses.valid_times if times is None else times))
    if settings.harmonics < 0:
        raise UsageError(f"harmonics are counted from 0; got {settings.harmonics}")
    about = _about(analyses, chosen, settings)
    done = _begun(path, about)
    todo = [name for name in names if name not in done]
    progress.begin("climatology", len(names) - len(todo), len(names))
    for count, name in enumerate(todo, start=1):
        done[name] = _build_one(analyses, name, chosen, path, settings)
        _save(path, about, done, wanted=names)
        progress.stepped(len(names) - len(todo) + count, {})
    return ClimateStore.open(path)


def keep_climatology(
    climatology: Climatology,
    names: Sequence[str],
    path: Path,
    *,
    hours: Sequence[float],
    keep_bits: tuple[int, int] = (23, 23),
) -> ClimateStore:
    """These channels of a fitted climatology that knows no hours, kept on disk for some of them.

    The mean, and the harmonics, are rounded to `keep_bits` bits of the mantissa.
    """
    terms, digests = climatology.coefficients, {}
    with writing(path):
        make_folder(path)
        for name in names:
            exact = terms[:, climatology.channels.index(name)]
            own = np.stack([round_mantissa(term.copy(), keep_bits[n > 0]) for n, term in enumerate(exact)])
            dataset = _dataset_of({"mean": [own] * len(hours)}, hours, climatology.grid, {}, name)
            dataset.to_zarr(path / name, mode="w", consolidated=False, encoding=_chunked(dataset))
            digests[name] = _digest(dataset)
    _save(
        path,
        {
            "of": "a fitted climatology",
            "grid": climatology.grid.name,
            "covers": _covers(climatology.covers),
            "harmonics": terms.shape[0] // 2,
            "percentiles": {},
        },
        digests,
    )
    return ClimateStore.open(path)


def _target(analyses: Analyses, settings: ClimateSettings) -> LatLonGrid:
    grid = settings.grid or analyses.grid
    if not isinstance(grid, LatLonGrid):
        raise InputError(
            f"a climatology is made on a latitude-longitude grid; {analyses.name} is on {grid}: give --grid 0p25, "
            "or another no finer than it"
        )
    return grid


def _about(analyses: Analyses, times: Sequence[datetime], settings: ClimateSettings) -> dict[str, Any]:
    return {
        "of": analyses.name,
        "grid": _target(analyses, settings).name,
        "covers": _covers(periods_of((0, time) for time in times)),
        "times": len(times),
        "harmonics": settings.harmonics,
        "percentiles": {name: list(values) for name, values in (settings.percentiles or {}).items()},
    }


def _covers(periods: Sequence[Period]) -> list[list[str]]:
    """As `ClimateStore.covers` reads them."""
    return [[period.first.isoformat(), period.last.isoformat()] for period in periods]


def _begun(path: Path, about: Mapping[str, Any]) -> dict[str, str]:
    """The channels that are there of the same climatology, and their digests; it is begun where there is none."""
    if path.exists() and any(path.iterdir()) and not (path / ABOUT).exists():
        raise UsageError(f"{path} holds something else; write the climatology to another --output")
    if not (path / ABOUT).exists():
        with writing(path):
            make_folder(path)
            _save(path, about, {})
        return {}
    try:
        there = json.loads((path / ABOUT).read_text())
        digests = there.pop("sha256")
        for own in ("channels", "wanted"):
            there.pop(own)
    except (ValueError, KeyError):
        raise UsageError(f"{path / ABOUT} is damaged, or of an earlier version; remove {path}") from None
    if digests and there != about:
        differing = [key for key in about if there.get(key) != about[key]]
        raise UsageError(
            f"{path} holds a climatology with other {', '.join(differing)}; write to another --output or remove it"
        )
    return digests


def _save(
    path: Path, about: Mapping[str, Any], digests: Mapping[str, str], *, wanted: Sequence[str] = ()
) -> None:
    """With digests of what is kept, since the file is another where a value is; `wanted` are all there will be."""
    whole = {**about, "channels": list(digests), "wanted": list({**digests, **dict.fromkeys(wanted)})}
    whole["sha256"] = dict(digests)
    replace_file(path / ABOUT, json.dumps(whole, indent=1).encode())


def _digest(dataset: xr.Dataset) -> str:
    digest = sha256()
    for name in sorted(map(str, dataset.variables)):
        digest.update(name.encode() + np.ascontiguousarray(dataset[name].values).tobytes())
    return digest.hexdigest()


def _build_one(
    analyses: Analyses, name: str, times: Sequence[datetime], path: Path, settings: ClimateSettings
) -> str:
    """The channel is on disk; its digest."""
    reach = earlier(name)
    there = set(analyses.valid_times)
    usable = [time for time in times if all(time - before in there for before in reach)]
    if not usable:
        raise InputError(
            f"{analyses.name} has no time at which {', '.join(map(str, channels_of(name)))} is there"
        )
    _check_seasons(usable, settings)
    grid = _target(analyses, settings)
    to_grid = ToGrid(analyses.grid, grid)
    with writing(path):
        make_folder(path)
        scratch = path / f".{name}.scratch"
        try:
            spool = np.memmap(scratch, np.float32, "w+", shape=(len(usable), *grid.shape))
            for index, time in enumerate(usable):
                values = quantity(name, partial(_read_before, analyses, time))
                spool[index] = to_grid.apply(values, name)
            dataset = _climate_of(name, spool, usable, grid, settings)
            dataset.to_zarr(path / name, mode="w", consolidated=False, encoding=_chunked(dataset))
        finally:
            scratch.unlink(missing_ok=True)
    return _digest(dataset)


def _check_seasons(times: Sequence[datetime], settings: ClimateSettings) -> None:
    """Raises InputError, before anything is read, where the states of some hour leave seasons open."""
    for hour in _hours(times):
        own = [time for time in times if _hour(time) == hour]
        terms = np.array([harmonic_terms(time, settings.harmonics) for time in own])
        check_condition(terms.T @ terms, periods_of((0, time) for time in own), states=len(own))
        if len(own) <= terms.shape[1]:
            raise InputError(
                f"a climatology with {settings.harmonics} harmonics needs more than {terms.shape[1]} states at each "
                f"hour of the day, else nothing departs from it; at {hour:g} h there are {len(own)}: add analyses"
            )


def _hour(time: datetime) -> float:
    return time.hour + time.minute / 60


def _hours(times: Sequence[datetime]) -> list[float]:
    return sorted(set(map(_hour, times)))


def _read_before(analyses: Analyses, time: datetime, channel: Channel, before: timedelta) -> Values:
    return analyses.read(channel, time - before)


def _climate_of(
    name: str, spool: np.ndarray, times: Sequence[datetime], grid: LatLonGrid, settings: ClimateSettings
) -> xr.Dataset:
    hours = _hours(times)
    made: dict[str, list[np.ndarray]] = {}
    for hour in hours:
        chosen = np.array([_hour(time) == hour for time in times])
        own = [time for time, is_chosen in zip(times, chosen) if is_chosen]
        parts = [
            _statistics(name, spool[chosen, rows], own, settings) for rows in _blocks(spool.shape, len(hours))
        ]
        for key in parts[0]:
            made.setdefault(key, []).append(np.concatenate([part[key] for part in parts], axis=-2))
    return _dataset_of(made, hours, grid, settings.percentiles or {}, name)


def _statistics(
    name: str,
    block: Float32[np.ndarray, "time row lon"],
    times: Sequence[datetime],
    settings: ClimateSettings,
) -> dict[str, np.ndarray]:
    """Harmonics of mean and variance; percentiles by month; for rain its categories."""
    values = block.astype(np.float64)
    terms = np.array([harmonic_terms(time, settings.harmonics) for time in times])
    mean = _fitted(terms, values)
    departures = (values - np.tensordot(terms, mean, axes=1)) ** 2
    spread = _fitted(terms[:, : 1 + 2 * _VARIANCE_HARMONICS], departures)
    found = {"mean": mean.astype(np.float32), "variance": spread.astype(np.float32)}
    percents = (settings.percentiles or {}).get(name, ())
    by_month = [block[_near(times, month)] for month in range(12)] if percents or name == RAIN else []
    if percents:
        shares = np.array(percents) / 100
        found["percentiles"] = np.stack([np.quantile(days, shares, axis=0) for days in by_month]).astype(
            np.float32
        )
    if name == RAIN:
        found["dry_share"] = np.stack([(days <= DRY_LIMIT_MM).mean(axis=0) for days in by_month]).astype(
            np.float32
        )
        found["heavy_limit"] = np.stack([_heavy_limit(days) for days in by_month])
    return found


def _fitted(
    terms: Float64[np.ndarray, "time term"], values: Float64[np.ndarray, "time row lon"]
) -> Float64[np.ndarray, "term row lon"]:
    solution = np.linalg.solve(terms.T @ terms, terms.T @ values.reshape(len(values), -1))
    return solution.reshape(-1, *values.shape[1:])


def _heavy_limit(days: Float32[np.ndarray, "day row lon"]) -> Float32[np.ndarray, "row lon"]:
    wet = np.where(days > DRY_LIMIT_MM, days, np.float32(np.nan))
    everywhere_dry = ~np.isfinite(wet).any(axis=0)
    wet[0][everywhere_dry] = DRY_LIMIT_MM
    return np.nanquantile(wet, _HEAVY, axis=0).astype(np.float32)


def _near(times: Sequence[datetime], month: int) -> np.ndarray:
    """Which times lie within the window around the middle of this month, in any year."""
    distances = [
        min(abs((time - middle_of_month(time.year + turn, month)) / timedelta(days=1)) for turn in (-1, 0, 1))
        for time in times
    ]
    near = np.array(distances) <= _WINDOW_DAYS
    if not near.any():
        raise InputError(f"percentiles need states of all seasons; there are none around month {month + 1}")
    return near


def _blocks(shape: tuple[int, ...], hours: int) -> Iterator[slice]:
    times, rows, columns = shape
    step = max(1, _ROWS_BYTES // (8 * columns * max(1, times // hours)))
    return (slice(start, start + step) for start in range(0, rows, step))


def _dataset_of(
    made: Mapping[str, list[np.ndarray]],
    hours: Sequence[float],
    grid: LatLonGrid,
    percentiles: Mapping[str, tuple[float, ...]],
    name: str,
) -> xr.Dataset:
    dims = {
        "mean": ("hour", "term", "latitude", "longitude"),
        "variance": ("hour", "variance_term", "latitude", "longitude"),
        "percentiles": ("hour", "month", "percentile", "latitude", "longitude"),
        "dry_share": ("hour", "month", "latitude", "longitude"),
        "heavy_limit": ("hour", "month", "latitude", "longitude"),
    }
    coordinates: dict[str, Any] = {
        "hour": list(hours),
        "latitude": grid.latitude,
        "longitude": grid.longitude,
    }
    if "percentiles" in made:
        coordinates["percentile"] = list(percentiles[name])
    return xr.Dataset({key: (dims[key], np.stack(values)) for key, values in made.items()}, coordinates)


def _chunked(dataset: xr.Dataset) -> dict[str, dict[str, Any]]:
    """One field a chunk: a verification reads fields."""
    return {
        str(name): {"chunks": (*(1,) * (array.ndim - 2), *array.shape[-2:])}
        for name, array in dataset.items()
    }
