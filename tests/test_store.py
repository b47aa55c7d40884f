"""The run store as others see it: through xarray and zarr-python, which know nothing of how it was written."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from fengwu_ghr.errors import InputError, UsageError
from fengwu_ghr.grid import LatLonGrid, product_grid
from fengwu_ghr.store import RunStore, StorePlan, open_run, round_mantissa
from fengwu_ghr.variables import Channel, channel, channel_set

TIME = datetime(2024, 2, 29, 12)
LEADS = tuple(timedelta(hours=6 * step) for step in range(3))
CHANNELS = tuple(map(channel, ("z500", "z1000", "z850", "u100", "100u", "2t", "tp6h")))
GRID = product_grid(20)


def plan_of(**changes: object) -> StorePlan:
    parts = {"channels": CHANNELS, "grid": GRID, "initial_times": (TIME,), "leads": LEADS}
    return StorePlan(**(parts | changes))  # type: ignore[arg-type]


def field(plan: StorePlan, channel: Channel, time: datetime, lead: timedelta) -> np.ndarray:
    """Seeded values that no other field has."""
    seed = [plan.initial_times.index(time), plan.leads.index(lead), plan.channels.index(channel)]
    return np.random.default_rng(seed).normal(280, 30, plan.grid.shape).astype(np.float32)


def write_lead(store: RunStore, time: datetime, lead: timedelta, *, threads: int = 2) -> None:
    writer = store.begin_lead(time, lead)
    with ThreadPoolExecutor(threads) as pool:
        fields = [field(store.plan, channel, time, lead) for channel in store.plan.channels]
        list(pool.map(writer.write, store.plan.channels, fields))
    writer.commit()


def write_run(path: Path, plan: StorePlan, leads: tuple[timedelta, ...] | None = None) -> Path:
    with RunStore.create(path, plan, {"title": "a test"}) as store:
        for time in plan.initial_times:
            store.begin_run(time, {"seed": 7})
            for lead in plan.leads if leads is None else leads:
                write_lead(store, time, lead)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of which the last lead is not committed."""
    return write_run(tmp_path_factory.mktemp("store") / "run.zarr", plan_of(), LEADS[:2])


def test_it_opens_with_the_names_of_weatherbench(run: Path) -> None:
    dataset = xr.open_zarr(run)  # any warning is an error here
    assert dataset.z.dims == ("time", "prediction_timedelta", "level", "latitude", "longitude")
    assert dataset["2t"].dims == ("time", "prediction_timedelta", "latitude", "longitude")
    assert set(dataset.data_vars) == {"z", "u", "100u", "2t", "tp6h"}
    assert dataset.level.values.tolist() == [100, 500, 850, 1000]
    np.testing.assert_array_equal(dataset.latitude, np.linspace(90, -90, 101))
    np.testing.assert_array_equal(dataset.longitude, GRID.longitude)


def test_times_are_decoded_and_fit_together(run: Path) -> None:
    dataset = xr.open_zarr(run)
    assert dataset.time.values.tolist() == [np.datetime64("2024-02-29T12", "ns").item()]
    assert np.issubdtype(dataset.prediction_timedelta.dtype, np.timedelta64)
    assert (dataset.prediction_timedelta.values == [np.timedelta64(h, "h") for h in (0, 6, 12)]).all()
    assert "valid_time" in dataset.coords
    xr.testing.assert_equal(
        dataset.valid_time.compute().drop_vars("valid_time"),
        (dataset.time + dataset.prediction_timedelta).drop_vars("valid_time", errors="ignore"),
    )


def test_attributes_follow_cf_and_grib(run: Path) -> None:
    dataset = xr.open_zarr(run)
    expected = {"units": "K", "standard_name": "air_temperature", "GRIB_paramId": 167, "GRIB_shortName": "2t"}
    assert dataset["2t"].attrs.items() >= expected.items()
    assert dataset.tp6h.attrs["GRIB_shortName"] == "tp"
    assert dataset.tp6h.attrs["cell_methods"].startswith("valid_time: sum")
    names = {
        "time": "forecast_reference_time",
        "prediction_timedelta": "forecast_period",
        "valid_time": "time",
    }
    assert {name: dataset[name].attrs["standard_name"] for name in names} == names
    assert dataset.attrs["title"] == "a test"
    assert json.loads(dataset.attrs["provenance"]) == {"seed": 7}


def test_a_shard_is_one_field(run: Path) -> None:
    group = zarr.open_group(run, mode="r")
    assert group.metadata.consolidated_metadata is not None
    z = group["z"]
    assert isinstance(z, zarr.Array)
    assert z.shards == (1, 1, 1, 102, 200)
    assert z.chunks == (1, 1, 1, 34, 50)
    assert np.isnan(z.fill_value)
    shards = sorted(str(path.relative_to(run)) for path in (run / "z" / "c").rglob("*") if path.is_file())
    assert shards == [f"z/c/0/{lead}/{level}/0/0" for lead in (0, 1) for level in (1, 2, 3)]


def test_chunks_at_the_true_grid_divide_it_exactly(tmp_path: Path) -> None:
    plan = plan_of(grid=product_grid(), channels=(Channel("z", 500),))
    with RunStore.create(tmp_path / "run.zarr", plan, {}) as store:
        z = zarr.open_group(store.path, mode="r")["z"]
    assert isinstance(z, zarr.Array)
    assert (z.chunks[-2:], z.shards[-2:]) == ((667, 1000), (2001, 4000))


def test_every_bit_comes_back(run: Path) -> None:
    plan, group = plan_of(), zarr.open_group(run, mode="r")
    with RunStore.open(run) as store:
        for index, lead in enumerate(LEADS[:2]):
            for each in CHANNELS:
                expected = field(plan, each, TIME, lead)
                rest = () if each.level is None else (store.plan.levels.index(each.level),)
                stored = group[each.variable][(0, index, *rest)]
                np.testing.assert_array_equal(stored, expected)
                np.testing.assert_array_equal(store.read(each, TIME, lead), expected)


def test_the_plan_is_read_back(run: Path) -> None:
    with RunStore.open(run) as store:
        assert store.plan == plan_of()
        assert store.plan.channels == CHANNELS
        assert store.plan.grid.name == GRID.name
        assert store.committed(TIME) == LEADS[:2]
        assert store.provenance(TIME) == {"seed": 7}


def test_what_is_not_committed_or_not_kept_is_missing(run: Path) -> None:
    dataset = open_run(run)
    assert np.isfinite(dataset.z.sel(level=500)[0, :2]).all()
    assert np.isnan(dataset.z[0, 2]).all()
    assert np.isnan(dataset.u.sel(level=850)).all()
    with RunStore.open(run) as store:
        with pytest.raises(InputError, match=r"lead \+12 h .* committed: \+0 h, \+6 h"):
            store.read(CHANNELS[0], TIME, LEADS[2])
        with pytest.raises(InputError, match=r"does not hold msl; it holds z500, "):
            store.read(Channel("msl"), TIME, LEADS[0])
        with pytest.raises(InputError, match="it has 2024-02-29 12:00"):
            store.committed(datetime(2024, 1, 1))


def test_leftovers_of_an_uncommitted_lead_are_masked(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.zarr", plan_of())
    manifest = next((path / "_manifest").glob("*.jsonl"))
    manifest.write_bytes(b"".join(manifest.read_bytes().splitlines(keepends=True)[:-1]))
    assert np.isfinite(xr.open_zarr(path)["2t"][0, 2]).all()  # the shards are there
    dataset = open_run(path)
    assert np.isnan(dataset["2t"][0, 2]).all()
    assert np.isfinite(dataset["2t"][0, 1]).all()
    assert dataset["2t"].dtype == np.float32
    assert dataset["2t"].attrs["units"] == "K"


@pytest.mark.parametrize("keep_bits", [1, 7, 12, 22, 23])
def test_rounding_keeps_its_bound(keep_bits: int, rng: np.random.Generator) -> None:
    values = (rng.normal(size=(101, 200)) * 10.0 ** rng.integers(-20, 20, (101, 200))).astype(np.float32)
    rounded = round_mantissa(values, keep_bits)
    error = np.abs(rounded.astype(np.float64) - values) / np.abs(values)
    assert error.max() <= 2.0 ** -(keep_bits + 1)
    assert not (rounded.view(np.uint32) & (2 ** (23 - keep_bits) - 1)).any()
    np.testing.assert_array_equal(round_mantissa(rounded, keep_bits), rounded)


def test_rounding_leaves_what_is_no_number_alone() -> None:
    special = np.array([[np.nan, np.inf, -np.inf, 0.0, -0.0]], np.float32)
    special.view(np.uint32)[0, 0] = 0x7FFFFFFF  # a NaN that rounding up would turn into -0
    np.testing.assert_array_equal(round_mantissa(special, 5), special)
    ties = np.array([[1.0 + 2**-8, 1.0 + 3 * 2**-8]], np.float32)
    np.testing.assert_array_equal(round_mantissa(ties, 7), np.float32([[1.0, 1.0 + 2**-6]]))


def test_keep_bits_are_recorded_and_save_space(tmp_path: Path) -> None:
    parts = {"channels": (Channel("2t"),), "leads": LEADS[:1], "grid": product_grid(5)}
    full = write_run(tmp_path / "full.zarr", plan_of(**parts))
    thin = write_run(tmp_path / "thin.zarr", plan_of(**parts, keep_bits=10))
    dataset = xr.open_zarr(thin)
    assert dataset.attrs["keep_bits"] == dataset["2t"].attrs["keep_bits"] == 10
    np.testing.assert_allclose(dataset["2t"], xr.open_zarr(full)["2t"], rtol=2.0**-11)
    sizes = [sum(p.stat().st_size for p in path.rglob("0") if p.is_file()) for path in (thin, full)]
    assert sizes[0] < 0.6 * sizes[1]
    with RunStore.open(thin) as store:
        assert store.plan.keep_bits == 10


def test_a_cropped_grid_over_the_dateline(tmp_path: Path) -> None:
    rows, columns = GRID.crop(60, 170, 20, -170)
    longitude = np.where(
        GRID.longitude[columns] > 180, GRID.longitude[columns] - 360, GRID.longitude[columns]
    )
    area = LatLonGrid(GRID.latitude[rows], np.unwrap(longitude, period=360), "area")
    plan = plan_of(grid=area)
    path = write_run(tmp_path / "area.zarr", plan)
    dataset = xr.open_zarr(path)
    assert dataset.z.shape[-2:] == area.shape == (22, 11)
    np.testing.assert_array_equal(dataset.longitude, area.longitude)
    np.testing.assert_array_equal(dataset["2t"][0, 1], field(plan, Channel("2t"), TIME, LEADS[1]))


def test_missing_values_are_stored(tmp_path: Path) -> None:
    plan = plan_of(channels=(Channel("2t"),), leads=LEADS[:1])
    values = np.full(GRID.shape, np.nan, np.float32)
    with RunStore.create(tmp_path / "run.zarr", plan, {}) as store:
        store.begin_run(TIME, {})
        writer = store.begin_lead(TIME, LEADS[0])
        writer.write(Channel("2t"), values)
        writer.commit()
        assert np.isnan(store.read(Channel("2t"), TIME, LEADS[0])).all()
        assert store.verify() == ()


def test_a_written_field_may_be_reused(tmp_path: Path) -> None:
    plan = plan_of(leads=LEADS[:1])
    values = np.empty(GRID.shape, np.float32)
    with RunStore.create(tmp_path / "run.zarr", plan, {}) as store:
        store.begin_run(TIME, {})
        writer = store.begin_lead(TIME, LEADS[0])
        for number, each in enumerate(CHANNELS):
            values[:] = number
            writer.write(each, values)
        values[:] = -1
        writer.commit()
        means = [store.read(each, TIME, LEADS[0]).mean() for each in CHANNELS]
    assert means == list(range(len(CHANNELS)))


def test_many_initial_times_are_written_apart(tmp_path: Path) -> None:
    times = tuple(TIME + timedelta(days=day) for day in range(3))
    plan = plan_of(initial_times=times, leads=LEADS[:2])
    with RunStore.create(tmp_path / "run.zarr", plan, {}):
        pass
    with (
        RunStore.open(tmp_path / "run.zarr", write=times[2:]) as first,
        RunStore.open(tmp_path / "run.zarr", write=times[:1]) as second,
    ):
        for store, time in ((first, times[2]), (second, times[0])):
            store.begin_run(time, {"date": time.isoformat()})
            write_lead(store, time, LEADS[1])
        with pytest.raises(ValueError, match="not open for writing"):
            second.begin_lead(times[1], LEADS[0])
    dataset = open_run(tmp_path / "run.zarr")
    exists = np.isfinite(dataset["2t"]).all(("latitude", "longitude")).values
    assert exists.tolist() == [[False, True], [False, False], [False, True]]
    np.testing.assert_array_equal(dataset["2t"][2, 1], field(plan, Channel("2t"), times[2], LEADS[1]))


def test_numerics_that_change_are_noted(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "run.zarr", plan_of(), {}) as store:
        assert store.provenance(TIME) is None
        store.begin_run(TIME, {"model": "a", "numerics": {"threads": 2}})
        store.note_change(TIME, {"numerics": {"threads": 4}})
        with pytest.raises(ValueError, match="has begun already"):
            store.begin_run(TIME, {})
    with RunStore.open(tmp_path / "run.zarr") as store:
        assert store.provenance(TIME) == {"model": "a", "numerics": {"threads": 4}}
    attribute = json.loads(xr.open_zarr(tmp_path / "run.zarr").attrs["provenance"])
    assert attribute["numerics"] == {"threads": 4}


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "run.zarr", plan_of(), {}) as store:
        with pytest.raises(ValueError, match="begin the run"):
            store.begin_lead(TIME, LEADS[0])
        store.begin_run(TIME, {})
        writer, values = store.begin_lead(TIME, LEADS[0]), np.zeros(GRID.shape, np.float32)
        with pytest.raises(ValueError, match=r"must be float32 \(101, 200\)"):
            writer.write(CHANNELS[0], values[1:])
        with pytest.raises(ValueError, match="do not have msl"):
            writer.write(Channel("msl"), values)
        writer.write(CHANNELS[0], values)
        with pytest.raises(ValueError, match="already written"):
            writer.write(CHANNELS[0], values)
        with pytest.raises(ValueError, match="cannot be committed without z1000, z850"):
            writer.commit()
        write_lead(store, TIME, LEADS[1])
        with pytest.raises(ValueError, match="never rewritten"):
            store.begin_lead(TIME, LEADS[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"leads": LEADS[::-1]}, "leads must be distinct and ascending"),
        ({"leads": ()}, "at least one"),
        ({"leads": (timedelta(seconds=-1),)}, "from zero on"),
        ({"leads": (timedelta(milliseconds=1),)}, "whole seconds"),
        ({"channels": (CHANNELS[0],) * 2}, "channels must be distinct"),
        ({"initial_times": (TIME.astimezone(),)}, "naive UTC"),
        ({"keep_bits": 0}, r"keep_bits must lie in 1 ... 23"),
    ],
)
def test_impossible_plans(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_of(**changes)


def test_sizes_are_foreseen_on_the_safe_side(run: Path, tmp_path: Path) -> None:
    plan = plan_of(channels=channel_set("ghr-74").channels, grid=product_grid())
    assert plan.lead_bytes == 74 * 2001 * 4000 * 4
    assert 0.5 < plan.predicted_bytes / (3 * plan.lead_bytes) < 0.8
    rounded = plan_of(channels=channel_set("ghr-74").channels, grid=product_grid(), keep_bits=10)
    assert rounded.predicted_bytes < 0.5 * plan.predicted_bytes


def test_another_run_is_never_overwritten_unasked(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.zarr", plan_of())
    for changes, named in (
        ({"leads": LEADS[:2]}, "leads"),
        ({"keep_bits": 9}, "keep_bits"),
        ({"grid": product_grid(40)}, "grid"),
    ):
        with pytest.raises(UsageError, match=rf"holds another run, with other {named} .*--overwrite"):
            RunStore.create(path, plan_of(**changes), {})
    with RunStore.create(path, plan_of(), {}) as store:
        assert store.committed(TIME) == LEADS
    with RunStore.create(path, plan_of(leads=LEADS[:2]), {}, overwrite=True) as store:
        assert store.committed(TIME) == ()
        assert store.provenance(TIME) is None
    assert [child.name for child in tmp_path.iterdir()] == ["run.zarr"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_run_store_is_never_touched(tmp_path: Path, overwrite: bool) -> None:
    folder, file, other = tmp_path / "folder", tmp_path / "file", tmp_path / "other.zarr"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    file.write_text("a file")
    zarr.create_group(other, attributes={"mine": True})
    before = sorted(tmp_path.rglob("*"))
    for path in (folder, file, other):
        with pytest.raises(UsageError, match="is not a run store"):
            RunStore.create(path, plan_of(), {}, overwrite=overwrite)
        with pytest.raises(InputError, match="is not a run store"):
            RunStore.open(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "run.zarr").mkdir()
    write_run(tmp_path / "run.zarr", plan_of(), LEADS[:1])


def test_a_store_of_a_later_format_is_refused(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "run.zarr", plan_of(), {}):
        pass
    metadata = json.loads((tmp_path / "run.zarr" / "zarr.json").read_text())
    metadata["attributes"]["fengwu_ghr_store"] = 99
    (tmp_path / "run.zarr" / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(InputError, match="format 99"):
        RunStore.open(tmp_path / "run.zarr")


def test_flipped_bits_are_found(tmp_path: Path, rng: np.random.Generator) -> None:
    path = write_run(tmp_path / "run.zarr", plan_of())
    with RunStore.open(path) as store:
        assert store.verify() == ()
        shard = path / "2t" / "c" / "0" / "1" / "0" / "0"
        content = bytearray(shard.read_bytes())
        content[int(rng.integers(len(content)))] ^= 1
        shard.write_bytes(content)
        (path / "z" / "c" / "0" / "0" / "1" / "0" / "0").unlink()
        damages = store.verify()
        assert len(damages) == 2
        assert any("2t/c/0/1/0/0 does not match its checksum" in damage for damage in damages)
        with pytest.raises(InputError, match="does not match its checksum"):
            store.read(Channel("2t"), TIME, LEADS[1])
