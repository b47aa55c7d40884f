"""GRIB ingest of the 74 fields of ghr-74 at 0.25 degrees (CCSDS, 16 bit), beside cfgrib, each in a fresh process.

    python -m benchmarks.grib_ingest [--repeat 3] [--workers 2]

Both hold all values as float32 at the end. Ours also checks ranges, hashes the file and survives corrupt messages.
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
    keys = {
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


def table(ours: dict[str, float], cfgrib: dict[str, float]) -> str:
    rows = [
        ("reading, s", cfgrib["reading"], ours["reading"], AIM_SPEED),
        (
            "with imports, s",
            cfgrib["imports"] + cfgrib["reading"],
            ours["imports"] + ours["reading"],
            AIM_SPEED,
        ),
    ]
    lines = ["| 74 fields | cfgrib | ours | ratio | aim | |", "|---|---|---|---|---|---|"]
    for what, theirs, mine, aim in rows:
        lines.append(
            f"| {what} | {theirs:.2f} | {mine:.2f} | {theirs / mine:.2f} x faster | >= {aim} | "
            f"{'met' if theirs / mine >= aim else 'missed'} |"
        )
    share = ours["peak"] / cfgrib["peak"]
    lines.append(
        f"| peak of all processes, MiB | {cfgrib['peak']:.0f} | {ours['peak']:.0f} | {share:.2f} x as much | "
        f"<= {AIM_MEMORY} | {'met' if share <= AIM_MEMORY else 'missed'} |"
    )
    return "\n".join(lines)


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
            "cfgrib": CFGRIB.format(path=str(path)),
            "ours": OURS.format(path=str(path), workers=options.workers),
        }
        print(table(**measure(programs, options.repeat)))
    print()
    print(passport(grid="721 x 1440, 74 fields"))


if __name__ == "__main__":
    main()
