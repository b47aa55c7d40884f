"""Seeded mutations of GRIB files: an InputError, or exactly what ecCodes decodes; never a crash, never ten seconds."""

import json
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import gribs
import numpy as np
import pytest

from fengwu_ghr.errors import InputError
from fengwu_ghr.grib.decode import SourceField, decode
from fengwu_ghr.grib.messages import scan
from fengwu_ghr.grib.pool import WorkerPool
from fengwu_ghr.grid import LatLonGrid

LIMIT = 10.0
ORACLE = Path(__file__).with_name("eccodes_oracle.py")


class Oracle:
    """ecCodes in a process that may die or hang; then it is asked again in a new one next time."""

    process: subprocess.Popen[str] | None = None

    def ask(self, path: Path) -> tuple[list[np.ndarray], str]:
        """The fields of a file, and the error that ended them."""
        if self.process is None:
            command = [sys.executable, str(ORACLE)]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            line = self.process.stdout.readline() if selector.select(4 * LIMIT) else ""
        if not line:
            self.close()
            return [], "it died or hung"
        with np.load(f"{path}.npz") as fields:
            return [fields[name] for name in fields.files], json.loads(line)["error"]

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            with self.process:
                self.process = None


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    asked = Oracle()
    yield asked
    asked.close()


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(1) as ready:
        yield ready


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Every kind of message we can write: both editions, most packings, a bitmap, two fields in one message."""
    path = tmp_path_factory.mktemp("own") / "multi.grib"
    small = {"rows": 7, "columns": 12, "step": 30.0}
    gribs.multi([gribs.regular(**small, **gribs.pressure(p)) for p in (gribs.U, gribs.V)], path)
    packings = (
        "grid_simple",
        "grid_ccsds",
        "grid_second_order",
        "grid_complex_spatial_differencing",
        "grid_jpeg",
    )
    messages = [path.read_bytes()]
    messages += [gribs.regular(**small, **gribs.pressure(packingType=packing)) for packing in packings]
    messages += [gribs.regular(edition=1, scan=0x40, west=180.0, **small, packingType="grid_second_order")]
    messages += [gribs.regular(edition=1, **small), gribs.encode("reduced_gg_pl_32_grib2", {})]
    messages += [
        gribs.regular(_with_holes, bitmapPresent=1, scan=scan_mode, **small) for scan_mode in (0x80, 0x30)
    ]
    return b"".join(messages)


def _with_holes(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    return np.where(longitude % 90 == 30, 9999.0, gribs.smooth(latitude, longitude))


@pytest.fixture(scope="module")
def real(data_dir: Path) -> bytes:
    """The first messages of a GFS file; u and v share one of them."""
    path = data_dir / "gfs_2p5_26lev" / "gfs.t12z.pgrbf120.2p5deg.grib2"
    whole, offsets = path.read_bytes(), [field.offset for field in scan([path])]
    shared = next(o for o in offsets if offsets.count(o) > 1)
    ends = sorted({*offsets, len(whole)})
    return b"".join(whole[o : ends[ends.index(o) + 1]] for o in (offsets[0], offsets[1], shared))


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """One to three changes: flipped bits, other bytes, a cut, a block that is gone, doubled, or blanked."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        _change(data, rng)
    return bytes(data)


def _change(data: bytearray, rng: np.random.Generator) -> None:
    at, length = _place(data, rng), int(rng.integers(1, 400))
    kind = rng.choice(
        ["flip", "byte", "cut", "delete", "double", "blank"], p=[0.45, 0.25, 0.05, 0.08, 0.09, 0.08]
    )
    if kind == "flip":
        data[at] ^= 1 << int(rng.integers(8))
    elif kind == "byte":
        data[at] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))]))
    elif kind == "cut":
        del data[max(at, 1) :]
    elif kind == "delete":
        del data[at : min(at + length, len(data) - 1)]
    elif kind == "double":
        data[at:at] = data[at : at + length]
    else:
        data[at : at + length] = bytes([int(rng.choice([0, 255]))]) * len(data[at : at + length])


def _place(data: bytearray, rng: np.random.Generator) -> int:
    """Mostly in headers: a change to packed values cannot be seen, and decodes."""
    starts = [i for i in range(len(data) - 3) if data[i : i + 4] == b"GRIB"]
    if starts and rng.random() < 0.8:
        return min(int(rng.choice(starts)) + int(rng.integers(260)), len(data) - 1)
    return int(rng.integers(len(data)))


def check(path: Path, pool: WorkerPool, oracle: Oracle) -> bool:
    """Whether the file was refused; fails when it was read otherwise than by ecCodes, or slowly."""
    start = time.monotonic()
    try:
        decoded = decode(scan([path], pool=pool), pool=pool)
    except InputError:
        return True
    finally:
        assert time.monotonic() - start < LIMIT
    fields, error = oracle.ask(path)
    assert not error
    assert len(decoded) == len(fields)
    for ours, theirs in zip(decoded, fields):
        _check_equal(ours, theirs)
    return False


def _check_equal(ours: SourceField, theirs: np.ndarray) -> None:
    found, expected = _by_place(*_points(ours)), _by_place(*theirs)
    if np.isnan(expected[0]).all():
        np.testing.assert_array_equal(np.sort(found[2]), np.sort(expected[2]))
        return
    np.testing.assert_array_equal(found[2], expected[2])
    np.testing.assert_allclose(found[0], expected[0], atol=3e-3)
    np.testing.assert_allclose((found[1] - expected[1] + 180) % 360 - 180, 0, atol=3e-3)


def _points(field: SourceField) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    grid = field.grid
    if isinstance(grid, LatLonGrid):
        latitude, longitude = np.meshgrid(grid.latitude, grid.longitude, indexing="ij")
        return latitude.ravel(), longitude.ravel(), field.values.ravel()
    longitude = np.concatenate([np.arange(n) * 360 / n for n in grid.row_points])
    return np.repeat(grid.latitude, grid.row_points), longitude, field.values


def _by_place(latitude: np.ndarray, longitude: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, ...]:
    """North to south, then eastward from 0; to a hundredth of a degree, so that rounded headers do not matter."""
    order = np.lexsort((np.round(longitude % 360, 2) % 360, -np.round(latitude, 2)))
    return latitude[order], longitude[order], values[order]


@pytest.mark.parametrize(
    "seeds", [range(200), pytest.param(range(200, 2000), marks=pytest.mark.slow)], ids=len
)
def test_a_real_file(tmp_path: Path, pool: WorkerPool, oracle: Oracle, real: bytes, seeds: range) -> None:
    _fuzz(real, tmp_path / "real.grib", pool, oracle, seeds)


@pytest.mark.parametrize(
    "seeds", [range(100), pytest.param(range(100, 2000), marks=pytest.mark.slow)], ids=len
)
def test_an_own_file(tmp_path: Path, pool: WorkerPool, oracle: Oracle, own: bytes, seeds: range) -> None:
    _fuzz(own, tmp_path / "own.grib", pool, oracle, seeds)


def _fuzz(content: bytes, path: Path, pool: WorkerPool, oracle: Oracle, seeds: range) -> None:
    path.write_bytes(content)
    assert not check(path, pool, oracle)
    refused = 0
    for seed in seeds:
        path.write_bytes(mutated(content, np.random.default_rng(seed)))
        try:
            refused += check(path, pool, oracle)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    assert 0.2 * len(seeds) < refused < 0.98 * len(seeds)
