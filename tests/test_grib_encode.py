"""GRIB out, against ecCodes itself, cfgrib, and Debian's cdo and grib_ls."""

import errno
import json
import os
import shutil
import subprocess
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import cfgrib
import eccodes
import numpy as np
import pytest

from fengwu_ghr.errors import ConformanceError, OutputError
from fengwu_ghr.grib import encode as encode_module
from fengwu_ghr.grib.decode import plan_analysis, read_analysis
from fengwu_ghr.grib.encode import (
    GribEncoder,
    GribEncoding,
    Packing,
    check_templates,
    lead_file_name,
    packing_bound,
    write_messages,
)
from fengwu_ghr.grid import LatLonGrid, NetworkGrid, product_grid, regular_gaussian_grid
from fengwu_ghr.state import State
from fengwu_ghr.synthetic import synthetic_state
from fengwu_ghr.variables import Channel, channel_set

GRID = product_grid(20)
START, LEAD = datetime(2024, 2, 28, 18), timedelta(hours=12)
CHANNELS = channel_set("ghr-88").channels
T850, TP, TCC = Channel("t", 850), Channel("tp6h"), Channel("tcc")
SHORT_NAMES = {"tp6h": "tp", "ssr6h": "ssr", "100u": "u", "100v": "v"}
"""What ecCodes calls what it does not call as we do; it took 100u for u at 100 m in 2025."""


@pytest.fixture(scope="module")
def state() -> State:
    return synthetic_state(GRID, CHANNELS, initial_time=START, lead=LEAD)


@pytest.fixture(scope="module")
def messages(state: State) -> list[tuple[Channel, bytes]]:
    encoder = GribEncoder(GRID)
    return [(c, encoder.encode(c, state[c], initial_time=START, lead=LEAD)) for c in CHANNELS]


@pytest.fixture(scope="module")
def path(messages: list[tuple[Channel, bytes]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grib") / lead_file_name(START, LEAD)
    write_messages(path, messages)
    return path


def encoded(
    wanted: Channel, values: np.ndarray, grid: LatLonGrid = GRID, *, lead: timedelta = LEAD, **options: Any
) -> bytes:
    return GribEncoder(grid, GribEncoding(**options)).encode(wanted, values, initial_time=START, lead=lead)


def read(message: bytes, *keys: str) -> list[Any]:
    handle = eccodes.codes_new_from_message(message)
    try:
        return [eccodes.codes_get(handle, key) for key in keys]
    finally:
        eccodes.codes_release(handle)


def decoded(message: bytes, missing: float = 9e9) -> np.ndarray:
    handle = eccodes.codes_new_from_message(message)
    try:
        eccodes.codes_set(handle, "missingValue", missing)
        return eccodes.codes_get_values(handle)
    finally:
        eccodes.codes_release(handle)


def run(*command: str | Path) -> str:
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("wanted", CHANNELS, ids=str)
def test_a_decoded_field_lies_within_the_bound_of_its_packing(
    wanted: Channel, state: State, messages: list[tuple[Channel, bytes]]
) -> None:
    field, factor = state[wanted], wanted.definition.encoding.factor
    back = decoded(dict(messages)[wanted]).reshape(GRID.shape) * factor
    # The oracle: half of the step 2^E that the message itself states, and a float32 rounding of the reference.
    binary, bits = read(dict(messages)[wanted], "binaryScaleFactor", "bitsPerValue")
    stated = (2.0**binary / 2 + np.spacing(np.abs(field / factor).max())) * factor
    assert bits in (16, 0)
    assert np.abs(back - field).max() <= stated
    assert np.abs(back - field).max() <= packing_bound(field, 16)
    assert packing_bound(field, 16) < 1e-4 * (np.ptp(field) + np.abs(field).max() / 100)


def test_the_bound_holds_for_few_bits_constant_fields_and_no_values_at_all(rng: np.random.Generator) -> None:
    noise = (250 + 20 * rng.standard_normal(GRID.shape)).astype(np.float32)
    for bits in (1, 4, 8, 12, 16, 24):
        back = decoded(encoded(T850, noise, packing=Packing(bits=bits))).reshape(GRID.shape)
        assert np.abs(back - noise).max() <= packing_bound(noise, bits)
    constant = np.full(GRID.shape, 273.15, np.float32)
    assert np.abs(decoded(encoded(T850, constant)) - 273.15).max() <= packing_bound(constant, 16) < 1e-4
    assert packing_bound(np.full(3, np.nan, np.float32), 16) == 0


def test_the_header_is_exact_in_microdegrees_at_the_true_grid() -> None:
    grid = product_grid(1)
    row = 250 + 30 * np.cos(np.deg2rad(grid.latitude)).astype(np.float32)
    message = encoded(T850, np.ascontiguousarray(np.broadcast_to(row[:, None], grid.shape)), grid)
    corners = [
        f"{axis}Of{which}GridPoint" for which in ("First", "Last") for axis in ("latitude", "longitude")
    ]
    assert read(
        message, "Ni", "Nj", "iDirectionIncrement", "jDirectionIncrement", *corners, "scanningMode"
    ) == [
        *(4000, 2001, 90_000, 90_000),
        *(90_000_000, 0, -90_000_000, 359_910_000, 0),
    ]
    assert read(
        message, "numberOfDataPoints", "numberOfValues", "basicAngleOfTheInitialProductionDomain"
    ) == [
        *(8_004_000, 8_004_000, 0),
    ]


def test_the_profile_of_the_header(messages: list[tuple[Channel, bytes]]) -> None:
    profile = {
        "edition": 2,
        "tablesVersion": 36,
        "localTablesVersion": 0,
        "productionStatusOfProcessedData": 16,
        "significanceOfReferenceTime": 1,
        "packingType": "grid_ccsds",
        "gridType": "regular_ll",
        "dataType": "fc",
        "grib2LocalSectionPresent": 0,
        "shapeOfTheEarth": 6,
        "bitmapPresent": 0,
        "centre": "255",
        "generatingProcessIdentifier": 255,
    }
    for _, message in messages:
        assert dict(zip(profile, read(message, *profile))) == profile
    options = {"production_status": 17, "generating_process": 3, "centre": 74}
    keys = "productionStatusOfProcessedData", "generatingProcessIdentifier", "centre"
    assert read(encoded(T850, np.full(GRID.shape, 250, np.float32), **options), *keys) == [17, 3, "egrr"]


@pytest.mark.parametrize("wanted", CHANNELS, ids=str)
def test_ecCodes_knows_every_field_by_name_level_units_and_time(
    wanted: Channel, messages: list[tuple[Channel, bytes]]
) -> None:
    name, units, level, surface, step, date, time = read(
        dict(messages)[wanted],
        *("shortName", "units", "level", "typeOfLevel", "stepRange", "validityDate", "validityTime"),
    )
    assert name in (wanted.variable, SHORT_NAMES.get(wanted.variable))
    assert units.replace("**", "") == (wanted.definition.encoding.units or wanted.definition.units)
    assert (surface == "isobaricInhPa") == wanted.definition.on_levels
    assert level == (wanted.level or wanted.definition.encoding.level or 0)
    assert step == ("6-12" if wanted.definition.is_accumulated else "12")
    assert (date, time) == (20240229, 600)


def test_an_accumulation_states_its_interval_and_the_end_of_it(state: State) -> None:
    message = encoded(TP, state[TP], lead=timedelta(hours=30))
    end = [
        f"{part}OfEndOfOverallTimeInterval" for part in ("year", "month", "day", "hour", "minute", "second")
    ]
    assert read(message, *end) == [2024, 3, 1, 0, 0, 0]
    keys = "productDefinitionTemplateNumber", "forecastTime", "lengthOfTimeRange", "numberOfTimeRange"
    assert read(message, *keys) == [8, 24, 6, 1]
    assert read(message, "typeOfStatisticalProcessing", "stepType", "stepRange") == [1, "accum", "24-30"]
    with pytest.raises(ValueError, match=r"ends at a lead of at least that; got 3:00:00"):
        encoded(TP, state[TP], lead=timedelta(hours=3))


def test_steps_below_the_hour_are_coded_in_minutes(state: State) -> None:
    minutes = timedelta(minutes=90)
    keys = "indicatorOfUnitOfTimeRange", "forecastTime", "stepRange", "validityTime"
    assert read(encoded(T850, state[T850], lead=minutes), *keys) == [0, 90, "90m", 1930]
    assert read(encoded(TP, state[TP], lead=timedelta(hours=6, minutes=10)), "stepRange") == ["10m-370m"]
    assert lead_file_name(START, minutes) == "20240228180000-90m-oper-fc.grib2"
    assert lead_file_name(START, timedelta(hours=240)) == "20240228180000-240h-oper-fc.grib2"
    for wrong in (timedelta(seconds=30), timedelta(hours=-6)):
        with pytest.raises(ValueError, match=r"whole minutes|at a lead of at least"):
            encoded(T850, state[T850], lead=wrong)


def test_missing_values_are_a_bitmap(state: State) -> None:
    values = state[T850].copy()
    values[0, 0] = values[40:60, 10:90] = np.nan
    message = encoded(T850, values)
    assert read(message, "bitmapPresent", "numberOfMissing") == [1, int(np.isnan(values).sum())]
    back = decoded(message).reshape(GRID.shape)
    assert np.array_equal(back == 9e9, np.isnan(values))
    assert np.nanmax(np.abs(np.where(back == 9e9, np.nan, back) - values)) <= packing_bound(values, 16)


def test_a_value_equal_to_the_marker_of_ecCodes_stays(state: State) -> None:
    z = np.where(state[Channel("z", 1000)] > 0, np.float32(9999), state[Channel("z", 1000)])
    z[0, 0] = np.nan
    back = decoded(encoded(Channel("z", 1000), z)).reshape(GRID.shape)
    assert np.count_nonzero(back == 9e9) == 1


def test_a_field_of_nothing_but_missing_values_can_be_written() -> None:
    message = encoded(T850, np.full(GRID.shape, np.nan, np.float32))
    assert np.all(decoded(message) == 9e9)
    assert read(message, "numberOfMissing") == [GRID.points]


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_values_are_refused_beside_missing_ones_too(value: float, state: State) -> None:
    values = state[T850].copy()
    values[3, 4] = value
    with pytest.raises(ConformanceError, match=r"t at 850 hPa \[K\] has 1 infinite values"):
        encoded(T850, values)
    values[5, 6] = np.nan
    with pytest.raises(ConformanceError, match="1 infinite values"):
        encoded(T850, values)


def test_an_outlier_that_would_blur_the_field_is_refused(state: State) -> None:
    values = state[T850].copy()
    values[3, 4] = 1e20
    with pytest.raises(ConformanceError, match="little of the field would remain"):
        encoded(T850, values)


def test_threads_give_the_bytes_of_one_thread(state: State, messages: list[tuple[Channel, bytes]]) -> None:
    encoder = GribEncoder(GRID)
    with ThreadPoolExecutor(8) as pool:
        tasks = [
            pool.submit(encoder.encode, c, state[c], initial_time=START, lead=LEAD)
            for _ in range(3)
            for c in CHANNELS
        ]
        assert [task.result() for task in tasks] == [message for _, message in messages] * 3


def test_a_variable_may_have_a_packing_of_its_own(state: State) -> None:
    encoding = GribEncoding(overrides={"t": Packing("grid_simple", 10), "tcc": Packing(bits=8)})
    encoder = GribEncoder(GRID, encoding)
    for wanted, expected in ((T850, ["grid_simple", 10]), (TCC, ["grid_ccsds", 8])):
        message = encoder.encode(wanted, state[wanted], initial_time=START, lead=LEAD)
        assert read(message, "packingType", "bitsPerValue") == expected
        error = np.abs(
            decoded(message).reshape(GRID.shape) * wanted.definition.encoding.factor - state[wanted]
        )
        assert error.max() <= packing_bound(state[wanted], expected[1])
    simple = encoded(T850, state[T850], packing=Packing("grid_simple"), overrides={"t": Packing()})
    assert read(simple, "packingType") == ["grid_ccsds"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Packing("grid_jpeg"), "one of grid_ccsds, grid_simple; got 'grid_jpeg'"),
        (lambda: Packing(bits=0), "1 to 24 bits; got 0"),
        (lambda: GribEncoding(overrides={"t2": Packing()}), "got t2"),
    ],
)
def test_wrong_encodings_say_what_is_right(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_shapes_and_times_are_refused(state: State) -> None:
    with pytest.raises(ValueError, match=r"shape \(101, 200\); got \(100, 200\)"):
        encoded(T850, state[T850][1:])
    with pytest.raises(ValueError, match="naive UTC"):
        GribEncoder(GRID).encode(T850, state[T850], initial_time=datetime(2024, 1, 1).astimezone(), lead=LEAD)


def grids() -> Sequence[Any]:
    across = LatLonGrid(np.linspace(60, -30, 51), 350 + 1.8 * np.arange(21))
    west = LatLonGrid(np.linspace(45, 27, 11), np.linspace(-135, -117, 11))
    return [
        pytest.param(across, id="across the meridian"),
        pytest.param(west, id="negative longitudes"),
        pytest.param(LatLonGrid(GRID.latitude[::4], GRID.longitude[::5]), id="thinned"),
        pytest.param(NetworkGrid(20).inner, id="steps of 5/3 degrees"),
        pytest.param(LatLonGrid(np.array([50.04]), np.array([8.01])), id="one point"),
        pytest.param(LatLonGrid(np.array([0.0]), np.linspace(0, 350, 36)), id="one row"),
    ]


@pytest.mark.parametrize("grid", grids())
def test_any_regular_grid_comes_back_point_by_point(grid: LatLonGrid) -> None:
    values = synthetic_state(grid, [T850], initial_time=START)[T850]
    handle = eccodes.codes_new_from_message(encoded(T850, values, grid))
    latitude, longitude = (eccodes.codes_get_array(handle, key) for key in ("latitudes", "longitudes"))
    back = eccodes.codes_get_values(handle).reshape(grid.shape)
    eccodes.codes_release(handle)
    assert np.allclose(latitude.reshape(grid.shape), grid.latitude[:, None], atol=2e-6)
    east = longitude.reshape(grid.shape) - grid.longitude
    assert np.allclose(east - 360 * np.round(east / 360), 0, atol=2e-6)
    assert np.abs(back - values).max() <= packing_bound(values, 16)


def test_grids_that_are_not_evenly_spaced_are_refused() -> None:
    with pytest.raises(ConformanceError, match="its rows deviate by"):
        GribEncoder(regular_gaussian_grid(32))


def test_every_template_is_checked_and_a_failure_names_the_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    check_templates(GRID, CHANNELS)
    check_templates(NetworkGrid(20).inner, CHANNELS[::9], encoding=GribEncoding(Packing("grid_simple", 12)))
    monkeypatch.setattr(encode_module, "_coded", lambda values, *_: values.astype(np.float64).ravel() + 1)
    with pytest.raises(ConformanceError, match=r"z at 1000 hPa .* reads back 1.* off"):
        check_templates(GRID, CHANNELS[:1])


def test_the_index_says_where_each_message_lies(path: Path, messages: list[tuple[Channel, bytes]]) -> None:
    lines = [json.loads(line) for line in path.with_suffix(".index").read_text().splitlines()]
    content = path.read_bytes()
    assert [content[x["_offset"] : x["_offset"] + x["_length"]] for x in lines] == [m for _, m in messages]
    assert sum(x["_length"] for x in lines) == len(content)
    found = {(x["param"], x.get("levelist")): x for x in lines}
    assert found["z", "500"] | {"_offset": 0, "_length": 0} == {
        **{"date": "20240228", "time": "1800", "step": "12", "stream": "oper", "type": "fc"},
        **{"levtype": "pl", "levelist": "500", "param": "z", "_offset": 0, "_length": 0},
    }
    assert found["tp", None]["levtype"] == "sfc"
    assert {"ssr", "2t", "100u", "msl"} <= {param for param, level in found if level is None}
    assert len(found) == len(CHANNELS)


def test_a_failed_write_leaves_no_trace_and_names_the_path(
    messages: list[tuple[Channel, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out" / "x.grib2"
    write_messages(path, messages[:2])
    before = {p.name: p.read_bytes() for p in path.parent.iterdir()}

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"x\.grib2: No space left on device"):
        write_messages(path, messages[2:4])
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == before


def test_a_path_that_cannot_be_written_is_an_output_error(
    messages: list[tuple[Channel, bytes]], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OutputError, match="file"):
        write_messages(tmp_path / "file" / "x.grib2", messages[:1])


def test_rewriting_replaces_data_and_index_together(
    messages: list[tuple[Channel, bytes]], tmp_path: Path
) -> None:
    path = tmp_path / "x.grib2"
    write_messages(path, messages[:3])
    write_messages(path, messages[3:5])
    assert path.read_bytes() == b"".join(m for _, m in messages[3:5])
    assert len(path.with_suffix(".index").read_text().splitlines()) == 2
    assert {p.name for p in tmp_path.iterdir()} == {"x.grib2", "x.index"}


def test_a_file_without_messages_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"at least one message; got none for .*x\.grib2"):
        write_messages(tmp_path / "x.grib2", [])
    assert not list(tmp_path.iterdir())


def test_processes_that_write_the_same_file_do_not_share_the_unfinished_one(
    messages: list[tuple[Channel, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one writes all of it while the first is about to rename."""
    path, others = tmp_path / "x[1].grib2", [True]
    replace = os.replace

    def interrupted(source: Path, target: Path) -> None:
        if others:
            others.clear()
            assert _unfinished(tmp_path) == {source.name}
            write_messages(path, messages[:2])
            assert _unfinished(tmp_path) == {source.name}
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    write_messages(path, messages[:3])
    assert path.read_bytes() == b"".join(m for _, m in messages[:3])
    assert {p.name for p in tmp_path.iterdir()} == {"x[1].grib2", "x[1].index"}


def test_what_a_killed_process_left_unfinished_is_removed(
    messages: list[tuple[Channel, bytes]], tmp_path: Path
) -> None:
    (tmp_path / ".x.grib2.0123abcd.unfinished").write_bytes(b"GRIB")
    (tmp_path / ".other.grib2.0123abcd.unfinished").write_bytes(b"GRIB")
    write_messages(tmp_path / "x.grib2", messages[:1])
    assert _unfinished(tmp_path) == {".other.grib2.0123abcd.unfinished"}


def _unfinished(folder: Path) -> set[str]:
    return {path.name for path in folder.glob(".*.unfinished")}


def test_cfgrib_opens_it_without_a_word(path: Path, state: State) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        datasets = cfgrib.open_datasets(str(path), backend_kwargs={"indexpath": ""})
    fields = {name: array for dataset in datasets for name, array in dataset.data_vars.items()}
    surface = {"t2m", "u10", "v10", "u100", "v100", "msl", "sp", "tcc", "tp", "ssr"}
    assert set(fields) == {"z", "t", "u", "v", "q", "w"} | surface
    z = fields["z"]
    assert z.attrs["units"] == "m**2 s**-2"
    assert z.isobaricInhPa.values.tolist() == sorted({c.level for c in CHANNELS if c.level}, reverse=True)
    assert np.allclose(z.latitude, GRID.latitude)
    assert np.allclose(z.longitude, GRID.longitude)
    assert z.time.values == np.datetime64(START)
    assert z.step.values == np.timedelta64(12, "h")
    assert z.valid_time.values == np.datetime64(START + LEAD)
    expected = state[Channel("z", 500)]
    assert np.abs(z.sel(isobaricInhPa=500) - expected).max() <= packing_bound(expected, 16)
    assert fields["tp"].attrs["GRIB_stepType"] == "accum"
    assert fields["tcc"].attrs["units"] == "%"


def test_grib_ls_reads_every_message(path: Path) -> None:
    out = run("grib_ls", "-p", "shortName,level,stepRange,packingType", path)
    rows = [line.split() for line in out.splitlines() if "grid_ccsds" in line]
    assert len(rows) == len(CHANNELS)
    for row, wanted in zip(rows, CHANNELS):
        assert row[0] in (wanted.variable, SHORT_NAMES.get(wanted.variable))


def test_cdo_reads_names_grid_and_values(path: Path, state: State) -> None:
    described = run("cdo", "-s", "griddes", path)
    assert {"gridtype  = lonlat", "xsize     = 200", "ysize     = 101", "xinc      = 1.8"} <= set(
        described.splitlines()
    )
    assert set(run("cdo", "-s", "showname", path).split()) >= {"z", "t", "u", "v", "q", "w", "tcc", "tp"}
    assert run("cdo", "-s", "showtimestamp", path).split() == ["2024-02-29T06:00:00"]
    out = run("cdo", "-s", "outputf,%.6g,1", "-remapnn,lon=90/lat=0", "-sellevel,50000", "-selname,z", path)
    assert float(out) == pytest.approx(float(state[Channel("z", 500)][50, 50]), rel=1e-4)


def test_what_we_write_we_read(path: Path, state: State) -> None:
    analysis = read_analysis(plan_analysis([path], CHANNELS))
    assert analysis.valid_time == START + LEAD
    assert tuple(analysis.fields) == CHANNELS
    for wanted in CHANNELS:
        source = analysis.fields[wanted]
        assert isinstance(source.grid, LatLonGrid)
        assert source.grid.key == GRID.key
        assert np.abs(source.values - state[wanted]).max() <= packing_bound(state[wanted], 16)
