"""Regridding against formulas, against scipy and ecCodes, and against torch's resize. Errors are stated here.

The fields are of order one; their harmonics go up to degree 5 (`analytic`).
"""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import analytic
import eccodes
import numpy as np
import pytest

from fengwu_ghr import regrid
from fengwu_ghr.errors import InputError
from fengwu_ghr.grid import (
    LatLonGrid,
    ReducedGaussianGrid,
    product_grid,
    regular_gaussian_grid,
    regular_grid,
)
from fengwu_ghr.regrid import Regridder

SCALAR = [(analytic.scalar, False)]
WIND = [(analytic.eastward, True), (analytic.northward, True)]
WIND_OVER_POLES = [(analytic.constant_eastward, True), (analytic.constant_northward, True)]

CLASSIC_N16 = ReducedGaussianGrid(
    np.array([20, 27, 32, 40, 45, 48, 60, 60, 64, 64, 64, 64, 64, 64, 64, 64] * 2)[
        np.r_[0:16, 15:-1:-1]
    ].astype(np.int64),
    "N16",
)
CELL_CENTRED = LatLonGrid(np.linspace(88.75, -88.75, 72), -180 + 2.5 * np.arange(144), "cell-centred")
ODD_COLUMNS = LatLonGrid(np.linspace(90, -90, 73), np.arange(143) * 360 / 143, "odd columns")
NO_POLES_ODD = LatLonGrid(np.linspace(88.75, -88.75, 72), np.arange(143) * 360 / 143, "odd, no poles")
SEPARABLE = [
    regular_grid(2.5),
    CELL_CENTRED,
    ODD_COLUMNS,
    NO_POLES_ODD,
    regular_gaussian_grid(32),
    regular_gaussian_grid(32, longitude_start=-77.3),
]
REDUCED = [ReducedGaussianGrid.octahedral(32), CLASSIC_N16]
TARGETS = [product_grid(20), regular_gaussian_grid(24), regular_grid(3.0)]

CUBIC_ERROR = 2e-5
"""Largest at steps of 2.8 degrees, four points along each axis."""
LINEAR_ERROR = 3e-3
"""Likewise with two points."""
REDUCED_ERROR = {"O32": 3e-3, "N16": 1e-2}
"""Two points along rows and between them, at steps of 2.8 and 5.6 degrees; four in the caps."""
POLE_ERROR = {"O32": 2e-4, "N16": 4e-4}
"""At the poles of reduced grids."""


def shifted(grid: LatLonGrid, columns: int) -> LatLonGrid:
    """The same points, the first `columns` of them a turn further and last."""
    return LatLonGrid(grid.latitude, np.append(grid.longitude[columns:], grid.longitude[:columns] + 360))


@pytest.mark.parametrize(("field", "is_vector"), SCALAR + WIND)
@pytest.mark.parametrize("source", SEPARABLE, ids=str)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_smooth_fields_come_out_everywhere(
    source: LatLonGrid, target: LatLonGrid, field: analytic.Field, is_vector: bool
) -> None:
    result = Regridder(source, target).apply(analytic.on(source, field), is_vector=is_vector)
    np.testing.assert_allclose(result, analytic.on(target, field), atol=CUBIC_ERROR)


@pytest.mark.parametrize(("field", "is_vector"), SCALAR + WIND)
@pytest.mark.parametrize("source", SEPARABLE, ids=str)
def test_two_points_are_second_order(source: LatLonGrid, field: analytic.Field, is_vector: bool) -> None:
    target = product_grid(20)
    result = Regridder(source, target).apply(analytic.on(source, field), is_vector=is_vector, smooth=False)
    np.testing.assert_allclose(result, analytic.on(target, field), atol=LINEAR_ERROR)


@pytest.mark.parametrize(("field", "is_vector"), SCALAR + WIND + WIND_OVER_POLES)
@pytest.mark.parametrize("source", REDUCED, ids=str)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_reduced_grids(
    source: ReducedGaussianGrid, target: LatLonGrid, field: analytic.Field, is_vector: bool
) -> None:
    result = Regridder(source, target).apply(analytic.on(source, field), is_vector=is_vector)
    expected = analytic.on(target, field)
    np.testing.assert_allclose(result, expected, atol=REDUCED_ERROR[source.name])
    if target.reaches_poles:
        np.testing.assert_allclose(result[[0, -1]], expected[[0, -1]], atol=POLE_ERROR[source.name])


@pytest.mark.parametrize("source", SEPARABLE + REDUCED, ids=str)
@pytest.mark.parametrize("smooth", [True, False])
def test_constants_stay(source: LatLonGrid | ReducedGaussianGrid, smooth: bool) -> None:
    values = analytic.on(source, lambda lat, lon: np.full_like(lat + lon, 101325.0))
    for target in TARGETS:
        result = Regridder(source, target).apply(values, smooth=smooth)
        np.testing.assert_allclose(result, 101325.0, rtol=1e-6)


def test_equal_grids_give_an_exact_copy(rng: np.random.Generator) -> None:
    source = product_grid(40)
    values = rng.normal(size=source.shape).astype(np.float32)
    result = Regridder(source, LatLonGrid(source.latitude.copy(), source.longitude, "other")).apply(values)
    np.testing.assert_array_equal(result, values)
    assert not np.shares_memory(result, values)


@pytest.mark.parametrize("is_vector", [False, True])
@pytest.mark.parametrize("smooth", [False, True])
def test_start_longitude_does_not_matter(rng: np.random.Generator, is_vector: bool, smooth: bool) -> None:
    source, target = regular_grid(5.0), product_grid(40)
    values = rng.normal(size=source.shape).astype(np.float32)
    expected = Regridder(source, target).apply(values, is_vector=is_vector, smooth=smooth)
    for columns in (1, 36, 71):
        moved = Regridder(shifted(source, columns), target)
        result = moved.apply(np.roll(values, -columns, axis=1), is_vector=is_vector, smooth=smooth)
        np.testing.assert_allclose(result, expected, atol=2e-6)


@pytest.mark.parametrize("source", [regular_grid(5.0), CELL_CENTRED, *REDUCED], ids=str)
@pytest.mark.parametrize("is_vector", [False, True])
def test_a_crop_is_the_same_as_cropping_after(
    source: LatLonGrid | ReducedGaussianGrid, is_vector: bool, rng: np.random.Generator
) -> None:
    shape = source.shape if isinstance(source, LatLonGrid) else source.points
    values = rng.normal(size=shape).astype(np.float32)
    whole = product_grid(20)
    rows, columns = whole.crop(90, -30, 40, 20)
    longitude = (whole.longitude[columns] + 180) % 360 - 180
    crop = LatLonGrid(whole.latitude[rows], longitude)
    expected = Regridder(source, whole).apply(values, is_vector=is_vector)[rows][:, columns]
    result = Regridder(source, crop).apply(values, is_vector=is_vector)
    np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("source", SEPARABLE + REDUCED, ids=str)
@pytest.mark.parametrize("smooth", [True, False])
def test_what_is_not_smooth_is_not_overshot(
    source: LatLonGrid | ReducedGaussianGrid, smooth: bool, rng: np.random.Generator
) -> None:
    shape = source.shape if isinstance(source, LatLonGrid) else source.points
    rain = np.maximum(0, rng.normal(size=shape)).astype(np.float32)
    result = Regridder(source, product_grid(10)).apply(rain, smooth=smooth)
    assert (result.min() < -1e-3) == smooth
    if not smooth:
        assert result.max() <= rain.max() * (1 + 1e-6)


@pytest.mark.parametrize("source", SEPARABLE + REDUCED, ids=str)
def test_a_scalar_has_one_value_at_a_pole(
    source: LatLonGrid | ReducedGaussianGrid, rng: np.random.Generator
) -> None:
    shape = source.shape if isinstance(source, LatLonGrid) else source.points
    result = Regridder(source, product_grid(20)).apply(rng.normal(size=shape).astype(np.float32))
    assert np.ptp(result[0]) == np.ptp(result[-1]) == 0


@pytest.mark.parametrize("source", SEPARABLE + REDUCED, ids=str)
def test_a_vector_at_a_pole_is_one_vector(
    source: LatLonGrid | ReducedGaussianGrid, rng: np.random.Generator
) -> None:
    """Whatever came: only zonal wavenumber one is left, which is a constant vector in the tangent plane."""
    shape = source.shape if isinstance(source, LatLonGrid) else source.points
    values = rng.normal(size=shape).astype(np.float32)
    result = Regridder(source, product_grid(20)).apply(values, is_vector=True)
    power = np.abs(np.fft.rfft(result[[0, -1]]))
    assert np.delete(power, 1, axis=1).max() < 1e-4 < power[:, 1].min()


@pytest.mark.parametrize(("field", "is_vector"), WIND_OVER_POLES)
@pytest.mark.parametrize("source", SEPARABLE, ids=str)
@pytest.mark.parametrize("target", [product_grid(20), product_grid(5)], ids=str)
def test_wind_blows_straight_over_the_poles(
    source: LatLonGrid, target: LatLonGrid, field: analytic.Field, is_vector: bool
) -> None:
    result = Regridder(source, target).apply(analytic.on(source, field), is_vector=is_vector)
    np.testing.assert_allclose(result, analytic.on(target, field), atol=1e-6)


def test_poles_of_a_consistent_source_are_exact() -> None:
    source, target = regular_grid(2.5), product_grid(20)
    for field, is_vector in SCALAR + WIND:
        result = Regridder(source, target).apply(analytic.on(source, field), is_vector=is_vector)
        np.testing.assert_allclose(result[[0, -1]], analytic.on(target, field)[[0, -1]], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("source", REDUCED, ids=str)
def test_reduced_rows_equal_two_steps_of_numpy(source: ReducedGaussianGrid, rng: np.random.Generator) -> None:
    """Away from the caps: along the rows, then between them, by numpy.interp."""
    values = rng.normal(size=source.points).astype(np.float32)
    first = np.count_nonzero(source.row_points[: source.latitude.size // 2] < regrid.CAP_POINTS)
    edge = min(source.latitude[first - 1], 60.0)
    target = LatLonGrid(np.linspace(edge, -edge, 37), np.linspace(-170, 185, 41))
    rows = np.array(
        [_along_row(source, values, row, target.longitude) for row in range(source.latitude.size)]
    )
    expected = [np.interp(-target.latitude, -source.latitude, column) for column in rows.T]
    result = Regridder(source, target).apply(values, smooth=False)
    inside = np.abs(target.latitude) < (source.latitude[first] if first < source.latitude.size // 2 else 0)
    np.testing.assert_allclose(result[inside], np.transpose(expected)[inside], atol=1e-6)


def _along_row(
    source: ReducedGaussianGrid, values: np.ndarray, row: int, longitude: np.ndarray
) -> np.ndarray:
    start, count = source.row_starts[row], source.row_points[row]
    return np.interp(longitude, 360 / count * np.arange(count), values[start : start + count], period=360)


def test_missing_values_stay_near() -> None:
    """A NaN reaches the points whose stencil holds it, with a weight, and no others."""
    source, target = regular_grid(10.0), regular_grid(5.0)
    values = np.ones(source.shape, np.float32)
    values[9, 18] = np.nan  # 0 N, 180 E
    missing = np.isnan(Regridder(source, target).apply(values, smooth=False))
    assert {(int(i), int(j)) for i, j in np.argwhere(missing)} == {
        (i, j) for i in (17, 18, 19) for j in (35, 36, 37)
    }


def test_a_region_is_refused_with_its_extent() -> None:
    region = LatLonGrid(np.linspace(70, 30, 41), np.linspace(-20, 40, 61), "europe")
    with pytest.raises(
        InputError, match=r"whole globe; europe 41 x 61 covers latitude 70 to 30, longitude -20"
    ):
        Regridder(region, product_grid(20))


@pytest.mark.parametrize("source", [regular_grid(5.0), REDUCED[0]], ids=str)
def test_a_field_of_another_shape_is_refused(source: LatLonGrid | ReducedGaussianGrid) -> None:
    with pytest.raises(ValueError, match=r"has shape .*; got \(3, 4\)"):
        Regridder(source, product_grid(20)).apply(np.zeros((3, 4), np.float32))


@pytest.mark.parametrize("source", [regular_grid(2.5), REDUCED[0]], ids=str)
def test_threads_share_a_regridder(
    source: LatLonGrid | ReducedGaussianGrid, rng: np.random.Generator
) -> None:
    shape = source.shape if isinstance(source, LatLonGrid) else source.points
    fields = [rng.normal(size=shape).astype(np.float32) for _ in range(8)]
    regridder = Regridder(source, product_grid(10))
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(regridder.apply, fields))
    for field, result in zip(fields, results):
        np.testing.assert_array_equal(result, Regridder(source, product_grid(10)).apply(field))


# The cache of weights.

SOURCE, TARGET = ReducedGaussianGrid.octahedral(8), product_grid(40)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever weights are built; nothing is remembered from before."""
    calls: list[int] = []
    build = regrid._build
    monkeypatch.setattr(regrid, "_build", lambda *grids: calls.append(1) or build(*grids))
    regrid._four_point.cache_clear()
    regrid._body.cache_clear()
    return calls


def apply(folder: Path | None) -> np.ndarray:
    """A field regridded as by a new process."""
    regrid._four_point.cache_clear()
    regrid._body.cache_clear()
    return Regridder(SOURCE, TARGET, cache_dir=folder).apply(analytic.on(SOURCE, analytic.scalar))


def test_weights_are_built_once(builds: list[int], tmp_path: Path) -> None:
    first, second = apply(tmp_path), apply(tmp_path)
    assert len(builds) == 1
    np.testing.assert_array_equal(first, second)
    assert [path.suffix for path in tmp_path.iterdir()] == [".weights"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-4],
        lambda content: b"",
        lambda content: content[:-3],
        lambda content: content[:1000] + bytes([content[1000] ^ 1]) + content[1001:],
        lambda content: bytes([content[0] ^ 128]) + content[1:],
    ],
    ids=["short", "empty", "odd", "flipped", "checksum"],
)
def test_damaged_weights_are_built_again(
    builds: list[int], tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    expected = apply(tmp_path)
    [path] = tmp_path.iterdir()
    good = path.read_bytes()
    path.write_bytes(damage(good))
    np.testing.assert_array_equal(apply(tmp_path), expected)
    assert len(builds) == 2
    assert "again" in caplog.text
    assert path.read_bytes() == good


def test_without_a_cache_folder_the_work_goes_on(
    builds: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(apply(blocked), apply(tmp_path))
    assert "built at every start" in caplog.text


def test_the_users_cache_folder(builds: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FENGWU_GHR_CACHE", str(tmp_path / "a"))
    apply(None)
    monkeypatch.delenv("FENGWU_GHR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    apply(None)
    kept = [path.relative_to(tmp_path).parent for path in sorted(tmp_path.rglob("*.weights"))]
    assert kept == [Path("a/weights"), Path("b/fengwu_ghr/weights")]


# Real fields.


def first_message(path: Path) -> tuple[int, np.ndarray]:
    with open(path, "rb") as file:
        handle = eccodes.codes_grib_new_from_file(file)
    return handle, eccodes.codes_get_values(handle)


@pytest.mark.parametrize(
    "name", ["O32_global.grib1", "O32_global.grib2", "o96.grib2", "reduced_gg.grib", "regular_gg_pl.grib"]
)
def test_real_fields_keep_their_values_at_their_points(data_dir: Path, name: str) -> None:
    """Asked for its own points, a field gives what ecCodes finds nearest to them."""
    handle, values = first_message(data_dir / "native_grids" / name)
    number = eccodes.codes_get(handle, "N")
    source: LatLonGrid | ReducedGaussianGrid = regular_gaussian_grid(number)
    counts = np.full(2 * number, 4 * number)
    if eccodes.codes_get(handle, "gridType") == "reduced_gg":
        counts = eccodes.codes_get_array(handle, "pl").astype(np.int64)
        source = ReducedGaussianGrid(counts)
    field = values.astype(np.float32).reshape(source.shape if isinstance(source, LatLonGrid) else -1)
    for row in range(number - 2, number + 3):
        longitude = 360 / counts[row] * np.array([0, 5, counts[row] - 1])
        result = Regridder(source, LatLonGrid(source.latitude[[row]], longitude)).apply(field)
        latitude = float(source.latitude[row])
        nearest = [eccodes.codes_grib_find_nearest(handle, latitude, float(x))[0].value for x in longitude]
        np.testing.assert_allclose(result[0], nearest, rtol=1e-6)
    eccodes.codes_release(handle)


def test_a_real_o1280_field(data_dir: Path) -> None:
    handle, values = first_message(data_dir / "native_grids" / "param=msl,levtype=sfc,grid=O1280")
    eccodes.codes_release(handle)
    source = ReducedGaussianGrid.octahedral(1280)
    result = Regridder(source, product_grid(40)).apply(values.astype(np.float32), smooth=False)
    assert result.shape == (51, 100)
    assert values.min() * (1 - 1e-6) <= result.min()
    assert result.max() <= values.max() * (1 + 1e-6)
