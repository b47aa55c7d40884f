"""Statistics: sums against hand-worked numbers and direct float64 arithmetic; tables that merge without a trace."""

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from fengwu_ghr.errors import InputError
from fengwu_ghr.grid import LatLonGrid, product_grid
from fengwu_ghr.verify import statistics
from fengwu_ghr.verify.archive import write_archive
from fengwu_ghr.verify.regions import Regions
from fengwu_ghr.verify.statistics import ANOMALIES, ERRORS, DatedSums, Start, Sums, paired, state_sums

GRID = product_grid(80)
AREAS, GLOBE = GRID.cell_areas(), Regions.globe(GRID)
START, DAY, LEAD = datetime(2001, 1, 1), timedelta(days=1), timedelta(hours=6)


def fields(rng: np.random.Generator, count: int = 3, channels: int = 2) -> list[np.ndarray]:
    """Forecast, truth, ... like geopotential: a large mean, small departures."""
    shape = (count, channels, *GRID.shape)
    return list((5e5 + 1e3 * rng.standard_normal(shape)).astype(np.float32))


def table(rng: np.random.Generator, dates: int = 6) -> DatedSums:
    made = DatedSums(("z500", "t850"), "0p09, above ground", ("globe",))
    for date in range(dates):
        for step in (1, 2):
            made.add(START + date * DAY, step * LEAD, state_sums(*fields(rng), regions=GLOBE))
    return made


def part(whole: DatedSums, keys: list[tuple[Start, timedelta]]) -> DatedSums:
    made = DatedSums(whole.channels, whole.evaluated_on, whole.regions)
    for start, lead in keys:
        made.add(start.initial_time, lead, whole.entries[start, lead], member=start.member)
    return made


def assert_same_bits(first: Sums, second: Sums) -> None:
    assert first.names == second.names
    np.testing.assert_array_equal(first.weight, second.weight)
    for name in first.names:
        np.testing.assert_array_equal(first.sums[name], second.sums[name])


def test_sums_by_hand() -> None:
    forecast = np.array([[[1, 2], [3, 4]]], np.float32)
    truth = np.array([[[1, 4], [2, 1]]], np.float32)
    climatology = np.array([[[0, 3], [3, 3]]], np.float32)
    grid = LatLonGrid(np.array([45.0, -45]), np.array([0.0, 180]))
    areas = np.array([[0.1, 0.2], [0.3, 0.4]], np.float32)
    regions = Regions(grid, {}, {"parts": areas * 4})
    sums = state_sums(forecast, truth, climatology, regions=regions)
    # errors 0 -2 1 3; forecast anomalies 1 -1 0 1; truth anomalies 1 1 -1 -2
    expected = {
        "error": -0.4 + 0.3 + 1.2,
        "squared_error": 0.8 + 0.3 + 3.6,
        "absolute_error": 0.4 + 0.3 + 1.2,
        "forecast_anomaly": 0.1 - 0.2 + 0.4,
        "truth_anomaly": 0.1 + 0.2 - 0.3 - 0.8,
        "squared_forecast_anomaly": 0.1 + 0.2 + 0.4,
        "squared_truth_anomaly": 0.1 + 0.2 + 0.3 + 1.6,
        "anomaly_product": 0.1 - 0.2 - 0.8,
    }
    assert {name: pytest.approx(sums.sums[name].item()) for name in sums.names} == expected
    assert sums.weight.item() == pytest.approx(1.0)
    assert state_sums(forecast, truth, regions=regions).names == ERRORS


@pytest.mark.parametrize("block", [1, 120, 10**9])
def test_sums_equal_direct_float64_arithmetic(
    rng: np.random.Generator, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "_BLOCK_POINTS", block)
    forecast, truth, climatology = fields(rng)
    sums = state_sums(forecast, truth, climatology, regions=GLOBE)
    f, o, c = (values.astype(np.float64) for values in (forecast, truth, climatology))
    for name, values in {
        "squared_error": (f - o) ** 2,
        "absolute_error": abs(f - o),
        "anomaly_product": (f - c) * (o - c),
        "squared_truth_anomaly": (o - c) ** 2,
    }.items():
        expected = np.average(values.reshape(2, -1), axis=1, weights=AREAS.ravel())
        np.testing.assert_allclose(sums.mean(name)[:, 0], expected, rtol=1e-9)


def test_points_left_out_are_never_read(rng: np.random.Generator) -> None:
    forecast, truth, climatology = fields(rng)
    points = rng.random(forecast.shape) < 0.6
    f, o, c = (values.astype(np.float64) for values in (forecast, truth, climatology))
    for values in (forecast, truth, climatology):
        values[~points] = np.nan
    sums = state_sums(forecast, truth, climatology, regions=GLOBE, points=points)
    weights = np.where(points, AREAS, 0)
    np.testing.assert_allclose(sums.weight[:, 0], weights.sum(axis=(1, 2)), rtol=1e-9)
    np.testing.assert_allclose(sums.sums["error"][:, 0], (weights * (f - o)).sum(axis=(1, 2)), rtol=1e-9)
    np.testing.assert_allclose(
        sums.sums["anomaly_product"][:, 0], (weights * (f - c) * (o - c)).sum(axis=(1, 2)), rtol=1e-9
    )


def test_pole_rows_get_their_true_area() -> None:
    truth = np.zeros((1, *GRID.shape), np.float32)
    forecast = truth.copy()
    forecast[:, [0, -1]] = 1
    # Two caps that reach half a row from the poles: (1 - cos) of the sphere's area together.
    cap = 1 - np.cos(np.deg2rad(180 / (GRID.shape[0] - 1) / 2))
    assert state_sums(forecast, truth, regions=GLOBE).mean("squared_error").item() == pytest.approx(cap)


def test_a_constant_error_is_the_mean_error_on_any_points(rng: np.random.Generator) -> None:
    truth = rng.integers(-9, 9, (2, *GRID.shape)).astype(np.float32)
    sums = state_sums(truth + np.float32(3), truth, regions=GLOBE, points=rng.random(truth.shape) < 0.3)
    np.testing.assert_allclose(sums.mean("error"), 3, rtol=1e-9)
    np.testing.assert_allclose(sums.mean("squared_error"), 9, rtol=1e-9)


def test_shifted_longitudes_change_nothing(rng: np.random.Generator) -> None:
    states = fields(rng)
    shifted = [np.roll(values, 17, axis=-1) for values in states]
    first, second = state_sums(*states, regions=GLOBE), state_sums(*shifted, regions=GLOBE)
    for name in ERRORS + ANOMALIES:
        np.testing.assert_allclose(first.sums[name], second.sums[name], rtol=1e-9, atol=1e-9)


def test_nan_stays_loud_in_its_channel_only(rng: np.random.Generator) -> None:
    forecast, truth, climatology = fields(rng)
    forecast[1, 0, 0] = np.inf
    sums = state_sums(forecast, truth, climatology, regions=GLOBE)
    assert not np.isfinite(sums.mean("squared_error")[1])
    assert np.isfinite(sums.mean("squared_error")[0])


def test_fields_that_would_broadcast_are_refused() -> None:
    full, thin = np.zeros((3, *GRID.shape)), np.zeros((1, *GRID.shape))
    with pytest.raises(
        ValueError, match=r"must fit each other and the regions, here \(3, 26, 50\); got \(1, 26, 50\)"
    ):
        statistics._check_shapes(full, thin, shape=GRID.shape)


def test_sums_have_a_zero_and_a_plus(rng: np.random.Generator) -> None:
    sums = state_sums(*fields(rng), regions=GLOBE)
    assert_same_bits(Sums.zeros(sums.names, sums.shape) + sums, sums)
    twice = sums + sums
    np.testing.assert_array_equal(twice.mean("error"), sums.mean("error"))
    np.testing.assert_allclose(twice.weight, 2, rtol=1e-9)
    with pytest.raises(ValueError, match="only like sums can be added"):
        _ = sums + sums.only("error")
    with pytest.raises(ValueError, match="was climatology given"):
        state_sums(*fields(rng, 2), regions=GLOBE).mean("truth_anomaly")


def test_no_data_is_nan() -> None:
    assert np.isnan(Sums.zeros(ERRORS, (2,)).mean("error")).all()


def test_merged_halves_equal_the_whole_in_any_order(rng: np.random.Generator) -> None:
    whole = table(rng)
    keys = list(whole.entries)
    shuffled = [keys[i] for i in rng.permutation(len(keys))]
    late, early = part(whole, shuffled[:5]), part(whole, shuffled[5:])
    late.merge(early)
    assert_same_bits(late.stacked(), whole.stacked())
    assert_same_bits(late.stacked().total(), whole.stacked().total())


def test_stacked_has_dates_leads_channels_and_no_weight_where_nothing_came(rng: np.random.Generator) -> None:
    whole = table(rng, dates=3)
    del whole.entries[Start(0, START + DAY), LEAD]
    stacked = whole.stacked()
    assert stacked.shape == (3, 2, 2, 1)
    there = np.array([[1, 1], [0, 1], [1, 1]])[..., None, None] * np.ones((2, 1))
    np.testing.assert_array_equal(stacked.weight > 0, there > 0)
    entry = whole.entries[Start(0, START + 2 * DAY), LEAD]
    np.testing.assert_array_equal(stacked.sums["error"][2, 0], entry.sums["error"])
    assert whole.leads == (LEAD, 2 * LEAD)
    assert whole.starts == tuple(Start(0, START + i * DAY) for i in range(3))


def test_saved_tables_come_back(rng: np.random.Generator, tmp_path: Path) -> None:
    whole = table(rng)
    whole.add(START, LEAD, state_sums(*fields(rng), regions=GLOBE), member=2)
    whole.save(tmp_path / "sub" / "scores")
    loaded = DatedSums.load(tmp_path / "sub" / "scores")
    assert (loaded.channels, loaded.evaluated_on) == (whole.channels, whole.evaluated_on)
    assert (loaded.starts, loaded.leads) == (whole.starts, whole.leads)
    assert loaded.starts[-1] == Start(2, START)
    assert_same_bits(loaded.stacked(), whole.stacked())
    empty = DatedSums(("z500",), "0p09")
    empty.save(tmp_path / "empty")
    assert DatedSums.load(tmp_path / "empty").entries == {}


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no table of verification sums at"):
        DatedSums.load(tmp_path / "nothing")
    (tmp_path / "text").write_text("not an archive")
    with pytest.raises(InputError, match="cannot be read as a table of verification sums"):
        DatedSums.load(tmp_path / "text")
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(InputError, match="it holds a single array"):
        DatedSums.load(tmp_path / "array.npy")
    write_archive(tmp_path / "other", "harmonic climatology", {})
    with pytest.raises(InputError, match="it holds a harmonic climatology"):
        DatedSums.load(tmp_path / "other")
    with pytest.raises(InputError, match="no forecast was verified"):
        DatedSums((), "").stacked()


def test_a_truncated_archive_is_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    path = tmp_path / "scores"
    table(rng).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match="cannot be read as a table"):
        DatedSums.load(path)


def test_a_forecast_counts_once_and_tables_must_be_alike(rng: np.random.Generator) -> None:
    whole = table(rng, dates=2)
    with pytest.raises(InputError, match="of 2001-01-01 00:00 at 6 h came twice"):
        whole.merge(part(whole, [(Start(0, START), LEAD)]))
    with pytest.raises(InputError, match="must agree on evaluated_on; got '0p09, above ground' and '0p25'"):
        whole.merge(DatedSums(whole.channels, "0p25", whole.regions))
    with pytest.raises(ValueError, match="channels and regions got sums of shape"):
        whole.add(START - DAY, LEAD, state_sums(*fields(rng, channels=1), regions=GLOBE))
    with pytest.raises(ValueError, match="a table of"):
        whole.add(START - DAY, LEAD, state_sums(*fields(rng, 2), regions=GLOBE))


def test_only_the_same_forecasts_are_compared(rng: np.random.Generator) -> None:
    first, second = table(rng), table(rng)
    ours, theirs = paired(first, second)
    assert ours.shape == theirs.shape
    del second.entries[Start(0, START + DAY), 2 * LEAD]
    with pytest.raises(InputError, match="1 are in one only, the first 2001-01-02 00:00 at 12 h"):
        paired(first, second)
    with pytest.raises(InputError, match="same channels, regions and points"):
        paired(first, DatedSums(first.channels, "0p25", first.regions))
