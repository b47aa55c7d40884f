"""Scores of one 0.09-degree state over all regions, against the time it takes to read what they are made of.

`python -m benchmarks.verify [--channels 69] [--peer-channels 4] [--folder DIR]`. RMSE, MAE, bias, ACC and
activity of 69 fields of 2001 x 4000 in nine regions, by one thread; the rival is plain xarray with the `scores`
package, reading the same stores, a few channels of it.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from benchmarks.memory import run_watched
from benchmarks.passport import passport
from benchmarks.store import fields
from fengwu_ghr.config import VerifySection
from fengwu_ghr.grid import product_grid
from fengwu_ghr.layout import StorePlan
from fengwu_ghr.store import RunStore
from fengwu_ghr.variables import Channel, channel_set
from fengwu_ghr.verify.climate_build import keep_climatology
from fengwu_ghr.verify.climatology import Climatology, Period
from fengwu_ghr.verify.verification import plan_verification

START, LEAD = datetime(2024, 1, 1), timedelta(hours=24)
AIM_OVER_READING, AIM_OVER_PEER, AIM_BYTES = 1.8, 5.0, 2 * 2**30


def main(arguments: list[str]) -> None:
    """Makes the stores, measures each part in a process of its own, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=int, default=69)
    parser.add_argument("--peer-channels", type=int, default=4)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--part", choices=tuple(PARTS))
    asked = parser.parse_args(arguments)
    if asked.part:
        print(
            PARTS[asked.part](asked.folder, asked.peer_channels if asked.part == "peer" else asked.channels)
        )
        return
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        make(Path(folder), asked.channels)
        report(Path(folder), asked.channels, asked.peer_channels)


def make(folder: Path, channels: int) -> None:
    """A forecast, a truth 24 hours later, and a climatology with two annual harmonics."""
    grid, made = product_grid(), fields(product_grid())
    names = channel_set("ghr-69").channels[:channels]
    rng = np.random.default_rng(1)
    for name, time_, lead in (("forecast", START, LEAD), ("truth", START + LEAD, timedelta(0))):
        with RunStore.create(folder / f"{name}.zarr", StorePlan(names, grid, (time_,), (lead,)), {}) as store:
            store.begin_run(time_, {"seed": 0})
            writer = store.begin_lead(time_, lead)
            for index, channel in enumerate(names):
                field = _plausible(channel, made[index % len(made)])
                noise = field.std() * 0.05 * rng.standard_normal(grid.shape, dtype=np.float32)
                writer.write(channel, field + (noise if name == "forecast" else np.float32(0)))
            writer.commit()
    first = [str(name) for name in names[: len(made)]]
    own = np.stack([_plausible(c, f) for c, f in zip(names, made)])
    waves = (
        0.1
        * own.std(axis=(1, 2), keepdims=True)
        * np.roll(own / np.abs(own).max(axis=(1, 2), keepdims=True), 7)
    )
    terms = np.stack([own, *(waves / k for k in (1, 2, 3, 4))])
    covers = (Period(datetime(2000, 1, 1), datetime(2001, 1, 1)),)
    keep_climatology(Climatology(grid, tuple(first), terms, covers), first, folder / "normals", hours=(0.0,))
    # The other channels are the same fields under other names: what is read and computed is as much.
    for index, name in enumerate(map(str, names)):
        if name not in first:
            os.symlink(first[index % len(first)], folder / "normals" / name)
    about = json.loads((folder / "normals" / "climate.json").read_text())
    (folder / "normals" / "climate.json").write_text(json.dumps(about | {"channels": list(map(str, names))}))


def _plausible(channel: Channel, field: np.ndarray) -> np.ndarray:
    low, high = channel.plausible
    share = (field - field.min()) / np.ptp(field)
    return (low + (high - low) * (0.4 + 0.2 * share)).astype(np.float32)


def settings(folder: Path, channels: int) -> VerifySection:
    names = tuple(map(str, channel_set("ghr-69").channels[:channels]))
    return VerifySection(
        forecast=(folder / "forecast.zarr",),
        truth=(folder / "truth.zarr",),
        climatology=folder / "normals",
        channels=names,
        persistence=False,
        shown_hours=(),
        output=folder / "scores",
    )


def read(folder: Path, channels: int) -> float:
    """Seconds to read forecast, truth and climatology, field by field."""
    with plan_verification(settings(folder, channels)) as plan:
        climate = plan.climate
        assert climate is not None
        start = time.perf_counter()
        for channel in plan.measures.channels:
            plan.forecasts["forecast"].read(channel, START, LEAD)
            plan.truth.read(channel, START + LEAD)
            climate.mean(str(channel), START + LEAD)
        return time.perf_counter() - start


def score(folder: Path, channels: int) -> float:
    """Seconds to read them and score them."""
    with plan_verification(settings(folder, channels)) as plan:
        scorer = plan.scorer
        assert plan.regions.areas.all()  # regions are made once for a period, and not counted here
        start = time.perf_counter()
        scorer.score(START, LEAD)
        return time.perf_counter() - start


def peer(folder: Path, channels: int) -> float:
    """Seconds of xarray and `scores` for the same: one box at a time, weights of cell areas, masks for land and sea."""
    import scores
    import xarray as xr

    from fengwu_ghr.store import open_run

    with plan_verification(settings(folder, channels)) as plan:
        climate, regions = plan.climate, plan.regions
        assert climate is not None
        dims = ("latitude", "longitude")
        weights = {name: xr.DataArray(regions.weights(name), dims=dims) for name in regions.names}
        forecast, truth = (open_run(folder / f"{name}.zarr") for name in ("forecast", "truth"))
        start = time.perf_counter()
        for channel in plan.measures.channels:
            f, o = (_picked(dataset, channel) for dataset in (forecast, truth))
            c = xr.DataArray(climate.mean(str(channel), START + LEAD), dims=dims)
            for own in weights.values():
                inside = own / own.mean()
                scores.continuous.rmse(f, o, weights=inside)
                scores.continuous.mae(f, o, weights=inside)
                scores.continuous.additive_bias(f, o, weights=inside)
                # `scores` has no weighted correlation: its two deviations and their product, weighted as xarray does.
                a, b = ((values - c).weighted(own) for values in (f, o))
                product = ((f - c - a.mean()) * (o - c - b.mean())).weighted(own).mean()
                float(product / np.sqrt(a.var() * b.var()))
        return time.perf_counter() - start


def _picked(dataset, channel: Channel):  # type: ignore[no-untyped-def]
    array = dataset[channel.variable].isel(time=0, prediction_timedelta=0)
    return (
        (array if channel.level is None else array.sel(level=channel.level))
        .drop_vars(("latitude", "longitude"), errors="ignore")
        .load()
    )


PARTS = {"read": read, "score": score, "peer": peer}


def report(folder: Path, channels: int, peer_channels: int) -> None:
    command = [sys.executable, "-m", "benchmarks.verify", "--folder", str(folder)]
    command += ["--channels", str(channels), "--peer-channels", str(peer_channels), "--part"]
    seconds, peaks = {}, {}
    for part in ("read", "read", "score", "peer"):  # the first reading fills the cache of the machine
        printed, peaks[part] = run_watched([*command, part])
        seconds[part] = float(printed.split()[-1])
    each = {part: s / (peer_channels if part == "peer" else channels) for part, s in seconds.items()}
    print("| part | s a field | peak GiB |\n|---|---|---|")
    for part, value in each.items():
        print(f"| {part} | {value:.3f} | {peaks[part] / 2**30:.2f} |")
    ratio, gain = each["score"] / each["read"], each["peer"] / each["score"]
    print(f"\nscored in {ratio:.2f} x the time of reading (aim {AIM_OVER_READING})", end="; ")
    print(f"{gain:.1f} x faster than xarray and scores (aim {AIM_OVER_PEER:g})", end="; ")
    print(f"peak {peaks['score'] / 2**30:.2f} GiB (aim {AIM_BYTES / 2**30:g})\n")
    print(passport(grid=f"{product_grid()}, {channels} channels, 9 regions"))


if __name__ == "__main__":
    main(sys.argv[1:])
