"""Decoded fields against ecCodes' own coordinates and values, and analyses against what they were written from."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import eccodes
import gribs
import numpy as np
import pytest

from fengwu_ghr.errors import InputError
from fengwu_ghr.grib.decode import SourceField, decode, plan_analysis, read_analysis
from fengwu_ghr.grib.derive import saturation_pressure, specific_humidity
from fengwu_ghr.grib.messages import scan
from fengwu_ghr.grib.pool import WorkerPool
from fengwu_ghr.grid import LatLonGrid, ReducedGaussianGrid, gaussian_latitudes
from fengwu_ghr.variables import Channel, channel, channel_set

NOON = datetime(2024, 1, 1, 12)


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(2) as ready:
        yield ready


def read(pool: WorkerPool, path: Path, *messages: bytes) -> list[SourceField]:
    return decode(scan([gribs.write(path / "own.grib", *messages)], pool=pool), pool=pool)


def points(field: SourceField) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latitude, longitude and value of every point, flat."""
    grid = field.grid
    if isinstance(grid, LatLonGrid):
        latitude, longitude = np.meshgrid(grid.latitude, grid.longitude, indexing="ij")
        return latitude.ravel(), longitude.ravel(), field.values.ravel()
    longitude = np.concatenate([np.arange(n) * 360 / n for n in grid.row_points])
    return np.repeat(grid.latitude, grid.row_points), longitude, field.values


# Scanning modes, start longitudes, kinds of grid


@pytest.mark.parametrize("west", [0.0, 180.0, 5.0, -15.0, 350.0])
@pytest.mark.parametrize(
    ("edition", "scan_mode"), [(2, s) for s in range(0, 256, 16)] + [(1, s) for s in range(0, 256, 32)]
)
def test_every_scanning_mode_and_start_is_put_north_to_south_west_to_east(
    tmp_path: Path, pool: WorkerPool, edition: int, scan_mode: int, west: float
) -> None:
    message = gribs.regular(edition=edition, scan=scan_mode, west=west, bitsPerValue=24)
    (field,) = read(pool, tmp_path, message)
    assert isinstance(field.grid, LatLonGrid)
    assert field.values.shape == (19, 36)
    np.testing.assert_allclose(field.grid.latitude, np.linspace(90, -90, 19), atol=1e-9)
    np.testing.assert_allclose(field.grid.longitude, west % 10 + 10 * np.arange(36), atol=1e-9)
    latitude, longitude, values = points(field)
    np.testing.assert_allclose(values, gribs.smooth(latitude, longitude), atol=1e-4)


@pytest.mark.parametrize("west", [330.0, -30.0, 10.0])
@pytest.mark.parametrize("scan_mode", [0, 0x40, 0x80, 0xF0])
def test_an_area_keeps_its_start(tmp_path: Path, pool: WorkerPool, west: float, scan_mode: int) -> None:
    message = gribs.regular(rows=5, columns=7, west=west, north=60, scan=scan_mode, bitsPerValue=24)
    (field,) = read(pool, tmp_path, message)
    assert isinstance(field.grid, LatLonGrid)
    np.testing.assert_allclose(field.grid.longitude, west % 360 + 10 * np.arange(7), atol=1e-9)
    latitude, longitude, values = points(field)
    np.testing.assert_allclose(values, gribs.smooth(latitude, longitude), atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "columns", "step"), [(541, 1080, 1 / 3), (2001, 4000, 0.09), (193, 384, 0.9375)]
)
@pytest.mark.parametrize("edition", [1, 2])
def test_coordinates_do_not_collect_rounding(
    tmp_path: Path, pool: WorkerPool, edition: int, rows: int, columns: int, step: float
) -> None:
    keys = gribs.grid_keys(rows, columns, step=step) | {"bitsPerValue": 0}
    sample = f"regular_ll_pl_grib{edition}"
    (field,) = read(pool, tmp_path, gribs.encode(sample, keys, np.full(rows * columns, 280.0)))
    assert isinstance(field.grid, LatLonGrid)
    assert field.grid.is_global
    assert field.grid.reaches_poles
    np.testing.assert_allclose(field.grid.latitude, np.linspace(90, -90, rows), atol=1e-9)
    np.testing.assert_allclose(field.grid.longitude, np.arange(columns) * 360 / columns, atol=1e-9)


def _octahedral(number: int) -> list[int]:
    north = [20 + 4 * i for i in range(number)]
    return north + north[::-1]


def _gaussian_keys(number: int, row_points: list[int]) -> dict[str, object]:
    latitude = gaussian_latitudes(number)
    return {
        "N": number,
        "Nj": 2 * number,
        "latitudeOfFirstGridPointInDegrees": float(latitude[0]),
        "latitudeOfLastGridPointInDegrees": float(latitude[-1]),
        "longitudeOfFirstGridPointInDegrees": 0.0,
        "longitudeOfLastGridPointInDegrees": 360 - 360 / max(row_points),
        "pl": np.array(row_points),
    }


@pytest.mark.parametrize("edition", [1, 2])
@pytest.mark.parametrize("kind", ["octahedral", "classic"])
def test_reduced_gaussian_grids(tmp_path: Path, pool: WorkerPool, edition: int, kind: str) -> None:
    sample = f"reduced_gg_pl_32_grib{edition}"
    classic = _sample_array(sample, "pl")
    row_points = _octahedral(32) if kind == "octahedral" else [int(n) for n in classic]
    grid = ReducedGaussianGrid(np.array(row_points, np.int64))
    latitude = np.repeat(grid.latitude, grid.row_points)
    longitude = np.concatenate([np.arange(n) * 360 / n for n in row_points])
    keys = {**_gaussian_keys(32, row_points), "bitsPerValue": 24}
    (field,) = read(pool, tmp_path, gribs.encode(sample, keys, gribs.smooth(latitude, longitude)))
    assert field.grid == grid
    assert field.grid.name == ("O32" if kind == "octahedral" else "N32")
    np.testing.assert_allclose(field.values, gribs.smooth(latitude, longitude), atol=1e-4)


def _sample_array(sample: str, key: str) -> np.ndarray:
    handle = eccodes.codes_grib_new_from_samples(sample)
    found = eccodes.codes_get_array(handle, key)
    eccodes.codes_release(handle)
    return found


def test_regular_gaussian_latitudes_are_exact(tmp_path: Path, pool: WorkerPool) -> None:
    message = gribs.encode(
        "regular_gg_pl_grib1", {"bitsPerValue": 24}, _sample_array("regular_gg_pl_grib1", "values")
    )
    (field,) = read(pool, tmp_path, message)
    assert isinstance(field.grid, LatLonGrid)
    np.testing.assert_array_equal(field.grid.latitude, gaussian_latitudes(field.grid.shape[0] // 2))


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        (gribs.encode("sh_pl_grib2", {}), "spherical harmonics"),
        (gribs.encode("polar_stereographic_pl_grib2", {}), "polar stereographic"),
        (gribs.encode("rotated_ll_pl_grib2", {}), "rotated pole"),
        (gribs.regular(gribs.smooth, jDirectionIncrementInDegrees=9.0), "18 steps of 9 make 162"),
        (gribs.regular(scanningMode=64), "against its scanning mode 64"),
        (
            gribs.encode("reduced_gg_pl_32_grib2", {"latitudeOfFirstGridPointInDegrees": 60.0}),
            "part of a reduced",
        ),
    ],
)
def test_other_grids_are_refused_by_name(
    tmp_path: Path, pool: WorkerPool, message: bytes, cause: str
) -> None:
    with pytest.raises(InputError, match=rf"own\.grib: the message at byte 0 .*{cause}"):
        read(pool, tmp_path, message)


# Packings, bitmaps, absurd sizes

PACKINGS = {
    1: ("grid_simple", "grid_second_order", "grid_ieee"),
    2: (
        "grid_simple", "grid_ccsds", "grid_second_order", "grid_complex", "grid_complex_spatial_differencing",
        "grid_jpeg", "grid_png", "grid_ieee", "grid_simple_log_preprocessing",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("edition", "packing"), [(e, p) for e, all_of in PACKINGS.items() for p in all_of])
def test_every_packing_gives_what_eccodes_gives(
    tmp_path: Path, pool: WorkerPool, edition: int, packing: str
) -> None:
    try:
        message = gribs.regular(edition=edition, bitsPerValue=12, packingType=packing)
    except eccodes.CodesInternalError as error:
        pytest.skip(f"this ecCodes does not write {packing} in GRIB{edition}: {error}")
    (field,) = read(pool, tmp_path, message)
    handle = eccodes.codes_new_from_message(message)
    assert eccodes.codes_get(handle, "packingType") == packing
    np.testing.assert_array_equal(field.values.ravel(), eccodes.codes_get_values(handle).astype(np.float32))
    eccodes.codes_release(handle)


@pytest.mark.parametrize("packing", ["grid_simple", "grid_ccsds", "grid_complex"])
def test_missing_values_are_nan_wherever_they_are(tmp_path: Path, pool: WorkerPool, packing: str) -> None:
    def holed(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
        return np.where(longitude % 40 == 20, 9999.0, gribs.smooth(latitude, longitude))

    message = gribs.regular(
        holed, scan=0x50, west=180.0, bitmapPresent=1, bitsPerValue=20, packingType=packing
    )
    (field,) = read(pool, tmp_path, message)
    latitude, longitude, values = points(field)
    np.testing.assert_array_equal(np.isnan(values), longitude % 40 == 20)
    there = ~np.isnan(values)
    np.testing.assert_allclose(values[there], gribs.smooth(latitude, longitude)[there], atol=1e-2)


def test_a_value_of_9999_is_a_value(tmp_path: Path, pool: WorkerPool) -> None:
    (field,) = read(pool, tmp_path, gribs.regular(lambda a, b: a * 0 + 9999.0 - (a == 90)))
    assert not np.isnan(field.values).any()


def test_a_header_that_claims_two_thousand_million_points_is_an_error(
    tmp_path: Path, pool: WorkerPool
) -> None:
    message = bytearray(gribs.regular(lambda a, b: a * 0 + 280.0))
    grid = 16 + int.from_bytes(message[16:20], "big")
    rows, columns = 30001, 60000
    for start, number in ((grid + 6, rows * columns), (grid + 30, columns), (grid + 34, rows)):
        message[start : start + 4] = number.to_bytes(4, "big")
    increments = grid + 63
    message[increments : increments + 8] = (6000).to_bytes(4, "big") * 2
    message[grid + 59 : grid + 63] = (359_994_000).to_bytes(4, "big")
    data = message.index(b"\0\0\0\x15\x05")
    message[data + 5 : data + 9] = (rows * columns).to_bytes(4, "big")
    with pytest.raises(InputError, match=r"own\.grib: the message at byte 0"):
        read(pool, tmp_path, bytes(message))


@pytest.mark.parametrize(
    ("packing", "octet", "cause"),
    [
        ("grid_simple", 20, "its data section holds 1026 bytes, its values need"),
        ("grid_complex", 20, "its values need|groups hold"),
        ("grid_complex", 35, "its values need|groups hold"),
        ("grid_complex_spatial_differencing", 37, "its values need|groups hold"),
        ("grid_complex_spatial_differencing", 46, "groups hold"),
        ("grid_complex_spatial_differencing", 49, "its values need|groups hold"),
        ("grid_ieee", 12, "its values need"),
    ],
)
def test_values_that_reach_past_their_section_are_refused(
    tmp_path: Path, pool: WorkerPool, packing: str, octet: int, cause: str
) -> None:
    """ecCodes would read on, into whatever lies behind."""
    message = bytearray(gribs.regular(bitsPerValue=12, packingType=packing))
    start = next(at for at in _section_starts(message) if message[at + 4] == 5)
    message[start + octet - 1] += 1 if packing == "grid_ieee" else 9
    with pytest.raises(
        InputError, match=rf"own\.grib: the message at byte 0: ecCodes cannot read it: .*({cause})"
    ):
        read(pool, tmp_path, bytes(message))


def _section_starts(message: bytearray) -> Iterator[int]:
    at = 16
    while at < len(message) - 4:
        yield at
        at += int.from_bytes(message[at : at + 4], "big")


# Analyses

CHANNELS = tuple(channel(name) for name in ("z500", "q850", "u300", "v300", "t850", "2t", "msl"))


def constant(value: float, slope: float = 0.01) -> gribs.Field:
    """Nearly: it rises northward, so that rows can be told apart."""
    return lambda latitude, longitude: value + slope * latitude


def ecmwf_like(*, hour: int = 12, step: int = 0, west: float = 180.0) -> dict[str, bytes]:
    """Fields as ECMWF's open data has them: gh, r and t instead of z and q."""
    at = gribs.when(hour=hour, step=step)
    keys = {
        "gh500": (5500, gribs.pressure(gribs.GH, 500)),
        "r850": (60, gribs.pressure(gribs.R, 850)),
        "t850": (280, gribs.pressure(gribs.T, 850)),
        "u300": (30, gribs.pressure(gribs.U, 300)),
        "v300": (-5, gribs.pressure(gribs.V, 300)),
        "2t": (285, gribs.surface(gribs.T, 103, 2)),
        "prmsl": (101_000, gribs.surface((0, 3, 1), 101)),
    }
    return {name: gribs.regular(constant(mean), west=west, **(k | at)) for name, (mean, k) in keys.items()}


def precipitation(start: int, end: int, *, hour: int, amount: float, local: bool = False) -> bytes:
    """ECMWF's local parameter is in metres, the other in mm."""
    keys = gribs.surface((0, 1, 193) if local else (0, 1, 52)) | gribs.accumulated(start, end, hour=hour)
    return gribs.regular(constant(amount, 1e-3 * amount), west=180.0, **keys)


def test_an_analysis_is_complete_derived_and_in_order(tmp_path: Path, pool: WorkerPool) -> None:
    path = gribs.write(tmp_path / "an.grib", *ecmwf_like().values())
    plan = plan_analysis([path], CHANNELS, pool=pool)
    analysis = read_analysis(plan, pool=pool)
    assert (plan.valid_time, analysis.valid_time, analysis.lead_of_input) == (NOON, NOON, timedelta(0))
    assert tuple(analysis.fields) == CHANNELS
    z, q, t = (analysis.fields[channel(name)].values for name in ("z500", "q850", "t850"))
    np.testing.assert_allclose(z[0], 9.80665 * 5500.9, rtol=1e-5)
    np.testing.assert_allclose(t[0], 280.9, rtol=1e-5)
    np.testing.assert_allclose(q.mean(), _humidity_by_bolton(60, 280, 850), rtol=0.02)
    assert plan.bytes == 4 * 19 * 36 * 7


def test_provenance_says_where_every_channel_comes_from(tmp_path: Path, pool: WorkerPool) -> None:
    path = gribs.write(tmp_path / "an.grib", *ecmwf_like().values())
    found = read_analysis(plan_analysis([path], CHANNELS, pool=pool), pool=pool).provenance
    assert found["files"][0]["size"] == path.stat().st_size
    assert [m["read_as"] for m in found["channels"]["q850"]["messages"]] == ["r850", "t850"]
    assert "saturation over water and ice" in found["channels"]["q850"]["rule"]
    assert found["channels"]["t850"]["rule"] == "as read"


def test_a_field_used_twice_is_not_overwritten(tmp_path: Path, pool: WorkerPool) -> None:
    wanted = (Channel("gh", 500), Channel("z", 500), Channel("r", 850), Channel("q", 850))
    path = gribs.write(tmp_path / "an.grib", *ecmwf_like().values())
    plan = plan_analysis([path], wanted, pool=pool)
    fields = read_analysis(plan, pool=pool).fields
    assert fields[wanted[0]].values.max() < 5502
    assert 59 < fields[wanted[2]].values.min() < fields[wanted[2]].values.max() < 61
    assert plan.bytes == 4 * 19 * 36 * 5


def test_everything_missing_stands_in_one_error(tmp_path: Path, pool: WorkerPool) -> None:
    messages = ecmwf_like()
    late = ecmwf_like(step=6)["t850"]
    kept = [m for name, m in messages.items() if name not in ("r850", "u300", "t850")]
    average = gribs.regular(
        constant(30), **gribs.pressure(gribs.U, 300) | gribs.accumulated(0, 6, statistic=0)
    )
    path = gribs.write(tmp_path / "an.grib", *kept, late, average)
    with pytest.raises(InputError) as caught:
        plan_analysis([path], CHANNELS, initial_time=NOON, pool=pool)
    lines = str(caught.value).splitlines()
    assert lines[0] == "3 of the 7 fields needed at 2024-01-01 12:00 UTC are missing from the input:"
    assert lines[1] == "  q at 850 hPa [kg kg-1] at 2024-01-01 12:00 UTC: not in the input"
    assert lines[2].startswith(
        "  u at 300 hPa [m s-1] at 2024-01-01 12:00 UTC: there as average over steps 0-6 h"
    )
    assert lines[3] == "  t at 850 hPa [K] at 2024-01-01 12:00 UTC: there at 2024-01-01 18:00 instead"


def test_half_a_derivation_is_named(tmp_path: Path, pool: WorkerPool) -> None:
    path = gribs.write(tmp_path / "an.grib", ecmwf_like()["r850"])
    with pytest.raises(InputError, match="r is there, but not t to compute it with"):
        plan_analysis([path], [channel("q850")], pool=pool)


def test_several_initial_times_must_be_chosen_from(tmp_path: Path, pool: WorkerPool) -> None:
    path = gribs.write(tmp_path / "an.grib", *ecmwf_like().values(), *ecmwf_like(step=6).values())
    with pytest.raises(InputError, match="2024-01-01 12:00, 2024-01-01 18:00; choose one"):
        plan_analysis([path], CHANNELS, pool=pool)
    plan = plan_analysis([path], CHANNELS, initial_time=NOON + timedelta(hours=6), pool=pool)
    assert read_analysis(plan, pool=pool).lead_of_input == timedelta(hours=6)


def test_equal_copies_are_accepted_and_contradictions_named(tmp_path: Path, pool: WorkerPool) -> None:
    messages = ecmwf_like()
    path = gribs.write(tmp_path / "an.grib", *messages.values(), messages["2t"])
    plan_analysis([path, path], CHANNELS, pool=pool)
    other = gribs.regular(constant(290), west=180.0, **gribs.surface(gribs.T, 103, 2))
    path = gribs.write(tmp_path / "an.grib", *messages.values(), other)
    with pytest.raises(
        InputError, match=r"more than once, with different values:\n  2t \[K\]: .*at byte \d+ \("
    ):
        plan_analysis([path], CHANNELS, pool=pool)


def test_two_fields_of_one_multi_field_message_are_told_apart(tmp_path: Path, pool: WorkerPool) -> None:
    messages = ecmwf_like()
    gribs.multi([messages["u300"], messages["v300"]], tmp_path / "uv.grib")
    plan = plan_analysis([tmp_path / "uv.grib"], [channel("u300"), channel("v300")], pool=pool)
    u, v = (f.values.mean() for f in read_analysis(plan, pool=pool).fields.values())
    assert (round(float(u)), round(float(v))) == (30, -5)


def test_precipitation_is_told_apart_by_its_steps(tmp_path: Path, pool: WorkerPool) -> None:
    """Twelve hours are not six; the six hours that end then are, whatever run they come from."""
    twelve = precipitation(0, 12, hour=0, amount=9.0)
    path = gribs.write(tmp_path / "tp.grib", twelve)
    with pytest.raises(
        InputError, match=r"tp6h \[kg m-2\].*accumulated over steps 0-12 h up to 2024-01-01 12:00"
    ):
        plan_analysis([path], [Channel("tp6h")], initial_time=NOON, pool=pool)
    path = gribs.write(tmp_path / "tp.grib", twelve, precipitation(0, 6, hour=6, amount=3.0))
    assert _mean(pool, path, "tp6h") == pytest.approx(3.0, abs=0.01)


def test_precipitation_is_the_difference_of_two_accumulations(tmp_path: Path, pool: WorkerPool) -> None:
    whole, part = precipitation(0, 12, hour=0, amount=9.0), precipitation(0, 6, hour=0, amount=2.0)
    path = gribs.write(tmp_path / "tp.grib", whole, part)
    assert _mean(pool, path, "tp6h") == pytest.approx(7.0, abs=0.01)


def test_accumulations_from_different_starts_are_not_subtracted(tmp_path: Path, pool: WorkerPool) -> None:
    whole, part = precipitation(0, 12, hour=0, amount=9.0), precipitation(0, 3, hour=3, amount=2.0)
    path = gribs.write(tmp_path / "tp.grib", whole, part)
    with pytest.raises(InputError, match="1 of the 1 fields needed"):
        _mean(pool, path, "tp6h")


def test_the_first_hours_of_the_calendar_have_nothing_before_them(tmp_path: Path, pool: WorkerPool) -> None:
    """A header may be dated to the year 1; what lies before it has no date."""
    day_one = gribs.when(day=10101, hour=0)
    shorter = gribs.accumulated(0, 3) | day_one | {"stepRange": "0-3"}
    messages = [
        gribs.regular(constant(3), west=180.0, **gribs.surface((0, 1, 52)) | shorter),
        gribs.regular(constant(285), west=180.0, **gribs.surface(gribs.T, 103, 2) | day_one),
    ]
    path = gribs.write(tmp_path / "early.grib", *messages)
    assert {f.initial_time for f in scan([path], pool=pool)} == {datetime(1, 1, 1)}
    with pytest.raises(InputError, match=r"tp6h.*accumulated over steps 0-3 h"):
        plan_analysis([path], [Channel("tp6h")], pool=pool)
    with pytest.raises(InputError, match="1 of the 1 fields needed"):
        plan_analysis([path], [Channel("2t")], earlier=[timedelta(hours=6)], pool=pool)


def test_precipitation_in_metres_becomes_millimetres(tmp_path: Path, pool: WorkerPool) -> None:
    path = gribs.write(tmp_path / "tp.grib", precipitation(6, 12, hour=0, amount=0.95, local=True))
    assert _mean(pool, path, "tp6h") == pytest.approx(950.0, abs=0.1)


@pytest.mark.parametrize(("step", "is_found"), [(6, True), (12, False)])
def test_grib1_accumulations_of_ecmwf_run_from_the_start(
    tmp_path: Path, pool: WorkerPool, step: int, is_found: bool
) -> None:
    keys = {"indicatorOfParameter": 228, "indicatorOfTypeOfLevel": 1, "level": 0, "dataDate": 20240101}
    message = gribs.regular(
        constant(0.95, 1e-4), edition=1, **keys, dataTime=600, marsType=9, P1=step, table2Version=128
    )
    path = gribs.write(tmp_path / "tp.grib", message)
    if is_found:
        assert _mean(pool, path, "tp6h") == pytest.approx(950.0, abs=0.1)
    else:
        with pytest.raises(InputError, match="accumulated over steps 0-12 h"):
            _mean(pool, path, "tp6h")


def _mean(pool: WorkerPool, path: Path, name: str) -> float:
    plan = plan_analysis([path], [channel(name)], initial_time=NOON, pool=pool)
    return float(read_analysis(plan, pool=pool).fields[channel(name)].values.mean())


@pytest.mark.parametrize(
    ("field", "cause"),
    [
        (constant(2.0), r"2t \[K\]: .*an\.grib: the message at byte 0: its values run from 1.1 to 2.9"),
        (lambda a, b: np.where(a > 80, 9999.0, 280.0), r"36 of 684 values are missing; .* complete fields"),
    ],
)
def test_fields_that_cannot_be_are_refused(
    tmp_path: Path, pool: WorkerPool, field: gribs.Field, cause: str
) -> None:
    message = gribs.regular(field, **gribs.surface(gribs.T, 103, 2), bitmapPresent=1)
    plan = plan_analysis([gribs.write(tmp_path / "an.grib", message)], [channel("2t")], pool=pool)
    with pytest.raises(InputError, match=cause):
        read_analysis(plan, pool=pool)


def test_areas_and_mixed_grids_are_refused_when_planned(tmp_path: Path, pool: WorkerPool) -> None:
    area = gribs.regular(constant(280), rows=5, columns=7, north=60, **gribs.pressure(gribs.T, 850))
    path = gribs.write(tmp_path / "an.grib", area, ecmwf_like()["r850"])
    with pytest.raises(InputError, match=r"t at 850 hPa .* does not cover the globe"):
        plan_analysis([path], [channel("t850")], pool=pool)
    with pytest.raises(InputError, match=r"q at 850 hPa .*on different grids"):
        plan_analysis([path], [channel("q850")], pool=pool)


def test_times_must_be_naive() -> None:
    with pytest.raises(ValueError, match="naive UTC"):
        plan_analysis(["x.grib"], CHANNELS, initial_time=NOON.replace(tzinfo=UTC))


# Humidity


def _goff_gratch(t: np.ndarray, *, over_ice: bool) -> np.ndarray:
    """Saturation pressure in Pa, Smithsonian Tables 1984; nothing of Tetens in it."""
    if over_ice:
        x = 273.16 / t
        power = -9.09718 * (x - 1) - 3.56654 * np.log10(x) + 0.876793 * (1 - 1 / x) + np.log10(6.1071)
    else:
        x = 373.16 / t
        power = -7.90298 * (x - 1) + 5.02808 * np.log10(x) + np.log10(1013.246)
        power -= 1.3816e-7 * (10 ** (11.344 * (1 - 1 / x)) - 1)
        power += 8.1328e-3 * (10 ** (-3.49149 * (x - 1)) - 1)
    return 100 * 10**power


def test_saturation_agrees_with_goff_and_gratch() -> None:
    warm, cold = (
        np.linspace(273.16, 313, 50, dtype=np.float32),
        np.linspace(210, 250.16, 50, dtype=np.float32),
    )
    np.testing.assert_allclose(saturation_pressure(warm), _goff_gratch(warm, over_ice=False), rtol=6e-3)
    np.testing.assert_allclose(saturation_pressure(cold), _goff_gratch(cold, over_ice=True), rtol=6e-3)


def test_between_the_phases_saturation_lies_between_water_and_ice() -> None:
    t = np.linspace(250.2, 273.1, 100, dtype=np.float32)
    found = saturation_pressure(t)
    assert (np.diff(found) > 0).all()
    assert (found >= 0.995 * _goff_gratch(t, over_ice=True)).all()
    assert (found <= 1.005 * _goff_gratch(t, over_ice=False)).all()


def _humidity_by_bolton(r: float, t: float, p: float) -> float:
    """A textbook estimate over water, p in hPa (Bolton 1980)."""
    e = r / 100 * 6.112 * np.exp(17.67 * (t - 273.15) / (t - 29.65))
    return 0.622 * e / (p - 0.378 * e)


def _humidity_in_doubles(r: np.ndarray, t: np.ndarray, p: float) -> np.ndarray:
    """The IFS' definition written from its own constants, point by point (Rd = 287.0597, Rv = 461.5250; p in Pa)."""

    def point(r: float, t: float) -> float:
        water = 611.21 * np.exp(17.502 * (t - 273.16) / (t - 32.19))
        ice = 611.21 * np.exp(22.587 * (t - 273.16) / (t + 0.7))
        alpha = 1.0 if t >= 273.16 else 0.0 if t <= 250.16 else ((t - 250.16) / 23.0) ** 2
        vapour = r / 100 * (alpha * water + (1 - alpha) * ice)
        ratio = 287.0597 / 461.5250
        return ratio * vapour / (p + (ratio - 1) * vapour)

    return np.vectorize(point)(np.asarray(r, float), np.asarray(t, float))


@pytest.mark.parametrize("level", [1000, 500, 50])
def test_humidity_agrees_with_the_definition(rng: np.random.Generator, level: int) -> None:
    r = rng.uniform(0.5, 110, 500).astype(np.float32)
    t = rng.uniform(185, 310 if level > 500 else 265, 500).astype(np.float32)
    found = specific_humidity(r, t, pressure=100.0 * level)
    np.testing.assert_allclose(found, _humidity_in_doubles(r, t, 100.0 * level), rtol=2e-5)


# Real files


def test_gfs_gives_all_69_channels(data_dir: Path, pool: WorkerPool) -> None:
    path = data_dir / "gfs_2p5_26lev" / "gfs.t12z.pgrbf120.2p5deg.grib2"
    channels = channel_set("ghr-69").channels
    analysis = read_analysis(plan_analysis([path], channels, pool=pool), pool=pool)
    assert tuple(analysis.fields) == channels
    assert analysis.valid_time == datetime(2011, 1, 15, 12)
    assert analysis.lead_of_input == timedelta(hours=120)
    oracle = _by_short_name(path)
    for c in channels:
        name = {"z": "gh", "msl": "prmsl"}.get(c.variable, c.variable)
        if c.variable != "q":
            expected = oracle[name, c.level or 0] * (9.80665 if c.variable == "z" else 1)
            np.testing.assert_allclose(analysis.fields[c].values.ravel(), expected, rtol=2e-7, err_msg=str(c))
            continue
        r, t = oracle["r", c.level], oracle["t", c.level]
        expected = _humidity_in_doubles(r, t, 100.0 * (c.level or 0))
        np.testing.assert_allclose(analysis.fields[c].values.ravel(), expected, rtol=1e-3, atol=1e-12)


def _by_short_name(path: Path) -> dict[tuple[str, int], np.ndarray]:
    """Instantaneous fields on pressure levels, near the ground (level 0) and at sea level, as ecCodes names them."""
    found = {}
    for handle in _handles(path):
        kind, name = eccodes.codes_get(handle, "typeOfLevel"), eccodes.codes_get(handle, "shortName")
        level = eccodes.codes_get(handle, "level") if kind == "isobaricInhPa" else 0
        if kind in ("isobaricInhPa", "heightAboveGround", "meanSea"):
            found[name, level] = eccodes.codes_get_values(handle)
    return found


def _handles(path: Path) -> Iterator[int]:
    eccodes.codes_grib_multi_support_on()
    try:
        with path.open("rb") as file:
            while (handle := eccodes.codes_grib_new_from_file(file)) is not None:
                yield handle
                eccodes.codes_release(handle)
    finally:
        eccodes.codes_grib_multi_support_off()


FOLDERS = ("ifs_open_0p25", "native_grids", "odd")
REFUSED_FILES = {
    "era5-levels-corrupted.grib": "the message at byte 0 is corrupt",
    "LICENSE.gribberish": "no GRIB message",
    "MANIFEST.md": "no GRIB message|no message of GRIB 1 or 2",
    "README.grib-rs-testdata.md": "no message of GRIB 1 or 2",
}
REFUSED_FIELDS = {
    "2t-automatic-polar-south-full.grib": "part of a reduced Gaussian grid",
    "2t-automatic.grib": "part of a reduced Gaussian grid",
    "daily_clims.grib": "part of a reduced Gaussian grid",
    "rgg_small_subarea_cellarea_ref.grib": "part of a reduced Gaussian grid",
    "regular_gg_wrong_increment.grib": "its grid is 64 x 192, but it holds 18432 values",
}
REFUSED_GRIDS = {
    "sh": "spherical harmonics",
    "lambert": "Lambert",
    "healpix": "HEALPix",
    "rotated_ll": "rotated pole",
}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_real_file_is_read_right_or_refused(data_dir: Path, pool: WorkerPool, folder: str) -> None:
    for path in sorted((data_dir / folder).iterdir()):
        if path.name in REFUSED_FILES:
            with pytest.raises(InputError, match=REFUSED_FILES[path.name]):
                scan([path], pool=pool)
        else:
            _check_file(path, pool)


def _check_file(path: Path, pool: WorkerPool) -> None:
    fields, checked = scan([path], pool=pool), 0
    cause = REFUSED_FIELDS.get(path.name)
    readable = [f for f in fields if f.grid_type not in REFUSED_GRIDS and not cause]
    for field in fields:
        if field not in readable:
            with pytest.raises(InputError, match=cause or REFUSED_GRIDS[field.grid_type]):
                decode([field], pool=pool)
    decoded = dict(zip(readable, decode(readable, pool=pool)))
    for field, handle in zip(fields, _handles(path), strict=True):
        if field in decoded:
            _check_points(decoded[field], handle, f"{path.name} {field.offset} {field.part}")
            checked += 1
    assert checked == len(readable)


def _check_points(field: SourceField, handle: int, what: str) -> None:
    """Every value at the place where ecCodes' own coordinates put it; on large fields a sample."""
    latitude, longitude, values = _eccodes_points(handle)
    chosen = np.random.default_rng(1).choice(values.size, min(values.size, 500), replace=False)
    chosen = np.concatenate([[0, values.size - 1], chosen])
    latitude, longitude, values = latitude[chosen], longitude[chosen], values[chosen].astype(np.float32)
    grid = field.grid
    row = np.abs(grid.latitude[:, None] - latitude).argmin(axis=0)
    if isinstance(grid, LatLonGrid):
        off = np.abs((grid.longitude[:, None] - longitude + 180) % 360 - 180)
        column = off.argmin(axis=0)
        assert off.min(axis=0).max() < 2e-3, what
        found = field.values[row, column]
    else:
        column = np.rint(longitude * grid.row_points[row] / 360).astype(int)
        assert np.abs(column * 360 / grid.row_points[row] - longitude).max() < 2e-3, what
        found = field.values[grid.row_starts[row] + column]
    assert np.abs(grid.latitude[row] - latitude).max() < 2e-3, what
    np.testing.assert_array_equal(found, values, err_msg=what)


def _eccodes_points(handle: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ecCodes' coordinates and values, NaN where missing, in the order of its iterator."""
    eccodes.codes_set(handle, "missingValue", 1e34)
    if eccodes.codes_get(handle, "scanningMode"):
        found = np.array(list(_iterate(handle)))
        latitude, longitude, values = found.T
        values = _unfold(handle, values)
    else:
        latitude, longitude, values = (
            eccodes.codes_get_array(handle, key) for key in ("latitudes", "longitudes", "values")
        )
    return latitude, longitude, np.where(values == 1e34, np.nan, values)


def _unfold(handle: int, values: np.ndarray) -> np.ndarray:
    """ecCodes' iterator leaves alternating rows as they were sent, at the wrong end of their latitude."""
    if not eccodes.codes_get(handle, "alternativeRowScanning"):
        return values
    rows = values.reshape(eccodes.codes_get(handle, "Nj"), -1).copy()
    rows[1::2] = rows[1::2, ::-1]
    return rows.ravel()


def _iterate(handle: int) -> Iterator[list[float]]:
    iterator = eccodes.codes_grib_iterator_new(handle, 0)
    while point := eccodes.codes_grib_iterator_next(iterator):
        yield point
    eccodes.codes_grib_iterator_delete(iterator)


def test_a_real_field_with_alternating_rows_is_smooth(data_dir: Path, pool: WorkerPool) -> None:
    path = data_dir / "odd" / "alternate-scanning.grib"
    (field,) = decode(scan([path], pool=pool), pool=pool)
    folded = field.values.copy()
    folded[1::2] = folded[1::2, ::-1]
    roughness = [float(np.abs(np.diff(v, axis=0)).mean()) for v in (field.values, folded)]
    assert roughness[0] < 0.2 * roughness[1]


@pytest.mark.parametrize(
    ("name", "wanted", "cause"),
    [
        ("ifs_open_0p25/t850.grb", "2t", r"2t \[K\].*there as average"),
        ("odd/fields_with_missing_values.grib", "2t", "several initial times|values are missing"),
        ("odd/t_with_missing.grib", "t1000", "values are missing"),
        ("odd/ineg_jpos.grib2", "t1000", "there as average over steps -28587-6477 h"),
        ("odd/alternate-scanning.grib", "2t", "does not cover the globe"),
        ("odd/tp_on_different_grid_resolutions.grib", "tp6h", "accumulated over steps 0-12 h"),
        ("odd/cfrzr_and_cprat.grib", "tp6h", "local number of centre 7"),
        ("native_grids/spherical_harmonics.grib", "z500", "spherical harmonics"),
        ("native_grids/climatology.grib", "z50", "of type pb, not a plain analysis"),
        ("odd/nam.t00z.awp21100.tm00.grib2", "t500", "Lambert"),
    ],
)
def test_real_fields_that_must_not_start_a_forecast(
    data_dir: Path, pool: WorkerPool, name: str, wanted: str, cause: str
) -> None:
    with pytest.raises(InputError, match=re.compile(cause, re.DOTALL)):
        read_analysis(plan_analysis([data_dir / name], [channel(wanted)], pool=pool), pool=pool)
