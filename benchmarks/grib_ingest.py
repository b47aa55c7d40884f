"""GRIB ingest of the 74 fields of ghr-74 at 0.25 degrees (CCSDS, 16 bit), beside cfgrib, each in a fresh process.

    python -m benchmarks.grib_ingest [--repeat 3] [--workers 2]

cfgrib is used in both ways its users have: `cfgrib.open_datasets`, which sorts and merges by itself, and one
`xarray.open_dataset` for each kind of level, which must be told what the file holds. The aims are judged against the
faster one. All hold all values as float32 at the end. Ours also checks ranges, hashes the file and survives corrupt
messages.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median

import eccodes
import numpy as np

from benchmarks.memory import run_watched
from benchmarks.passport import passport
from fengwu_ghr.grid import backbone_grid
from fengwu_ghr.variables import ISOBARIC, STANDARD_GRAVITY, Channel, channel_set, standard_height

CHANNELS = channel_set("ghr-74").channels
AIM_SPEED, AIM_MEMORY = 2.5, 1.5

OURS = """
import time; begin = time.perf_counter()
from fengwu_ghr.grib.decode import plan_analysis, read_analysis
from fengwu_ghr.variables import channel_set
ready = time.perf_counter()
from fengwu_ghr.grib.pool import WorkerPool
with WorkerPool({workers}) as pool:
    plan = plan_analysis([{path!r}], channel_set("ghr-74").channels, pool=pool)
    analysis = read_analysis(plan, pool=pool)
    done = time.perf_counter()
    # Pages that only workers have touched would not count as memory of any living process.
    total = sum(float(field.values.sum(dtype="float64")) for field in analysis.fields.values())
    time.sleep(0.1)
assert len(analysis.fields) == 74
print(ready - begin, done - ready)
"""
CFGRIB = """
import time; begin = time.perf_counter()
import cfgrib
ready = time.perf_counter()
sets = cfgrib.open_datasets({path!r}, backend_kwargs={{"indexpath": ""}})
loaded = [dataset.load() for dataset in sets]
done = time.perf_counter()
assert sum(v.size for dataset in loaded for v in dataset.data_vars.values()) == 74 * 721 * 1440
print(ready - begin, done - ready)
"""
KINDS_OF_LEVELS = (
    {"typeOfLevel": "isobaricInhPa"},
    *({"typeOfLevel": "heightAboveGround", "level": level} for level in (2, 10, 100)),
    *({"typeOfLevel": "surface", "stepType": kind} for kind in ("instant", "accum")),
    {"typeOfLevel": "meanSea"},
    {"typeOfLevel": "atmosphere"},
)
CFGRIB_FILTERED = """
import time; begin = time.perf_counter()
import cfgrib, xarray
ready = time.perf_counter()
loaded = [
    xarray.open_dataset({path!r}, engine="cfgrib", backend_kwargs={{"indexpath": "", "filter_by_keys": keys}}).load()
    for keys in {filters!r}
]
done = time.perf_counter()
assert sum(v.size for dataset in loaded for v in dataset.data_vars.values()) == 74 * 721 * 1440
print(ready - begin, done - ready)
"""


def write_input(path: Path) -> None:
    """One analysis time; 16-bit CCSDS as ECMWF's open data, and noise enough to compress as little as that."""
    rng = np.random.default_rng(0)
    grid = backbone_grid()
    phi, lam = np.deg2rad(grid.latitude)[:, None], np.deg2rad(grid.longitude)
    waves = np.cos(phi) * np.cos(4 * lam) + 0.3 * np.sin(9 * phi) * np.sin(7 * lam)
    with path.open("wb") as file:
        for channel in CHANNELS:
            pattern = waves / 1.3 + 0.02 * rng.standard_normal(waves.shape)
            middle, swing = _typical(channel)
            file.write(_message(channel, middle + swing * np.clip(pattern, -1, 1)))


def _typical(channel: Channel) -> tuple[float, float]:
    if channel.variable == "z":
        return STANDARD_GRAVITY * standard_height(channel.level or 0), 2000.0
    typical = {
        "q": (0.003, 0.0029), "t": (250.0, 30.0), "2t": (285.0, 30.0), "msl": (101_000.0, 2500.0),
        "sp": (95_000.0, 7000.0), "tcc": (0.5, 0.5), "tp6h": (2.0, 2.0),
    }  # fmt: skip
    return typical.get(channel.variable, (0.0, 30.0))


def _message(channel: Channel, values: np.ndarray) -> bytes:
    coding = channel.definition.encoding
    level = 100 * (channel.level or 0) if coding.surface == ISOBARIC else int(coding.level or 0)
    keys: dict[str, str | int | float] = {
        "tablesVersion": 32, "Ni": 1440, "Nj": 721, "latitudeOfFirstGridPointInDegrees": 90.0,
        "longitudeOfFirstGridPointInDegrees": 0.0, "latitudeOfLastGridPointInDegrees": -90.0,
        "longitudeOfLastGridPointInDegrees": 359.75,
        "iDirectionIncrementInDegrees": 0.25, "jDirectionIncrementInDegrees": 0.25,
        **dict(zip(("discipline", "parameterCategory", "parameterNumber"), coding.parameter)),
        "dataDate": 20240101, "dataTime": 600 if channel.definition.is_accumulated else 1200,
    }  # fmt: skip
    if channel.definition.is_accumulated:
        keys |= {"productDefinitionTemplateNumber": 8, "typeOfStatisticalProcessing": 1, "stepRange": "0-6"}
    keys |= {
        "typeOfFirstFixedSurface": coding.surface, "scaleFactorOfFirstFixedSurface": 0,
        "scaledValueOfFirstFixedSurface": level, "packingType": "grid_ccsds", "bitsPerValue": 16,
    }  # fmt: skip
    handle = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
    for key, value in keys.items():
        eccodes.codes_set(handle, key, value)
    eccodes.codes_set_values(handle, (values / coding.factor).ravel())
    message = eccodes.codes_get_message(handle)
    eccodes.codes_release(handle)
    return message


def measure(programs: dict[str, str], repeat: int) -> dict[str, dict[str, float]]:
    """Medians of each: seconds of the imports, seconds of the reading, peak MiB of all processes. They take turns."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in programs}
    for _ in range(repeat):
        for name, program in programs.items():
            printed, peak = run_watched([sys.executable, "-W", "ignore", "-c", program])
            imports, reading = map(float, printed.split())
            runs[name].append({"imports": imports, "reading": reading, "peak": peak / 2**20})
    return {name: {key: median(run[key] for run in of) for key in of[0]} for name, of in runs.items()}


def table(measured: dict[str, dict[str, float]]) -> str:
    """Ours against each rival; only the row of the rival that reads faster says whether the aims are met."""
    *rivals, _ = measured
    fastest = min(rivals, key=lambda name: measured[name]["reading"])
    lines = [
        "| 74 fields | reading, s | with imports, s | peak of all processes, MiB "
        "| ours: reading | with imports | memory | aims |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in measured.items():
        cells = [name, f"{found['reading']:.2f}", f"{_whole(found):.2f}", f"{found['peak']:.0f}"]
        if name in rivals:
            cells += _compared(measured["ours"], found, judge=name == fastest)
        lines.append(f"| {' | '.join(cells + [''] * (8 - len(cells)))} |")
    return "\n".join(lines)


def _compared(ours: dict[str, float], theirs: dict[str, float], *, judge: bool) -> list[str]:
    reading, whole = theirs["reading"] / ours["reading"], _whole(theirs) / _whole(ours)
    memory = ours["peak"] / theirs["peak"]
    is_met = reading >= AIM_SPEED and whole >= AIM_SPEED and memory <= AIM_MEMORY
    aims = f"{'met' if is_met else 'missed'}: >= {AIM_SPEED} x, <= {AIM_MEMORY} x the memory"
    return [f"{reading:.2f} x faster", f"{whole:.2f} x faster", f"{memory:.2f} x", aims if judge else ""]


def _whole(found: dict[str, float]) -> float:
    return found["imports"] + found["reading"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "analysis.grib2"
        write_input(path)
        print(f"{path.stat().st_size / 1e6:.0f} MB, medians of {options.repeat}, page cache warm\n")
        programs = {
            "cfgrib.open_datasets": CFGRIB.format(path=str(path)),
            "xarray.open_dataset by level": CFGRIB_FILTERED.format(path=str(path), filters=KINDS_OF_LEVELS),
            "ours": OURS.format(path=str(path), workers=options.workers),
        }
        print(table(measure(programs, options.repeat)))
    print()
    print(passport(grid="721 x 1440, 74 fields"))


if __name__ == "__main__":
    main()
