"""GRIB2 encoding of a full 0.09-degree state: the threads of the forecast against one, and against ecCodes alone.

The rival is the loop one would write with ecCodes' Python interface: one handle, keys, values, message; no bitmaps,
no checks. Fields are smooth waves with noise of a thousandth of their range, so that they compress as real ones do.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import eccodes
import numpy as np

from benchmarks.passport import best_of, passport
from fengwu_ghr.grib.encode import GribEncoder
from fengwu_ghr.grid import LatLonGrid, product_grid
from fengwu_ghr.variables import Channel, channel_set

START, LEAD = datetime(2024, 1, 1), timedelta(hours=6)
THREADS, ROUNDS, AIM = 2, 3, 1.8


def fields(grid: LatLonGrid, channels: Sequence[Channel]) -> dict[Channel, np.ndarray]:
    """One array per variable, shared by its levels: what counts is its texture, not its height."""
    rng = np.random.default_rng(1)
    phi, lam = np.deg2rad(grid.latitude)[:, None], np.deg2rad(grid.longitude)
    arrays: dict[str, np.ndarray] = {}
    for channel in channels:
        if channel.variable not in arrays:
            m = len(arrays) + 2
            wave = np.cos(phi) * np.cos(m * lam) + 0.2 * np.cos(5 * phi) * np.sin(4 * m * lam)
            wave += 1e-3 * rng.standard_normal(grid.shape)
            low, high = channel.plausible
            arrays[channel.variable] = ((low + high) / 2 + 0.2 * (high - low) * wave).astype(np.float32)
    return {channel: arrays[channel.variable] for channel in channels}


def plain_loop(state: dict[Channel, np.ndarray], grid: LatLonGrid) -> list[bytes]:
    sample = eccodes.codes_grib_new_from_samples("regular_ll_pl_grib2")
    keys = {
        "Ni": grid.shape[1],
        "Nj": grid.shape[0],
        "iDirectionIncrement": 90_000,
        "jDirectionIncrement": 90_000,
        "latitudeOfFirstGridPoint": 90_000_000,
        "latitudeOfLastGridPoint": -90_000_000,
        "longitudeOfLastGridPoint": 359_910_000,
        "packingType": "grid_ccsds",
        "bitsPerValue": 16,
    }
    for key, value in keys.items():
        eccodes.codes_set(sample, key, value)
    messages = []
    for channel, values in state.items():
        handle = eccodes.codes_clone(sample)
        eccodes.codes_set(handle, "parameterCategory", channel.definition.encoding.parameter[1])
        eccodes.codes_set(handle, "parameterNumber", channel.definition.encoding.parameter[2])
        eccodes.codes_set_values(handle, values.astype(np.float64).ravel())
        messages.append(eccodes.codes_get_message(handle))
        eccodes.codes_release(handle)
    eccodes.codes_release(sample)
    return messages


def encode_all(state: dict[Channel, np.ndarray], encoder: GribEncoder, *, threads: int) -> list[bytes]:
    def encode(item: tuple[Channel, np.ndarray]) -> bytes:
        return encoder.encode(*item, initial_time=START, lead=LEAD)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(encode, state.items()))


def main() -> None:
    grid, channels = product_grid(1), channel_set("ghr-74").channels
    state, encoder = fields(grid, channels), GribEncoder(grid)
    first = dict(list(state.items())[::10])
    assert encode_all(first, encoder, threads=THREADS) == encode_all(first, encoder, threads=1)
    runs: dict[str, Callable[[], list[bytes]]] = {
        "ecCodes alone, one thread": lambda: plain_loop(state, grid),
        "GribEncoder, one thread": lambda: encode_all(state, encoder, threads=1),
        f"GribEncoder, {THREADS} threads": lambda: encode_all(state, encoder, threads=THREADS),
    }
    rounds = [{name: best_of(run, 1) for name, run in runs.items()} for _ in range(ROUNDS)]
    seconds = {name: min(r[name] for r in rounds) for name in runs}
    size = sum(map(len, encode_all(first, encoder, threads=THREADS))) / len(first)
    report(seconds, len(channels), size)
    print(passport(grid=f"{grid}, {len(channels)} channels, CCSDS, 16 bit"))


def report(seconds: dict[str, float], count: int, size: float) -> None:
    _, one, threaded = seconds.values()
    print("| GRIB2 encoding of a state | s | ms a field | times as fast as one thread |\n|---|---|---|---|")
    for name, time in seconds.items():
        print(f"| {name} | {time:.2f} | {1000 * time / count:.0f} | {one / time:.2f} |")
    verdict = "met" if one / threaded >= AIM else "missed"
    print(f"\nAim: {THREADS} threads at least {AIM} times as fast as one: {verdict}.")
    print(f"A message takes {size / 1e6:.1f} MB; threads give the same bytes.\n")


if __name__ == "__main__":
    main()
