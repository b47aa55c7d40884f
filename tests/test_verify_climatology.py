"""Climatology: known harmonics come back, streaming equals least squares, and training periods are not verified."""

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from fengwu_ghr.errors import InputError
from fengwu_ghr.grid import backbone_grid, product_grid
from fengwu_ghr.verify.climatology import Climatology, HarmonicFit, Period

GRID = backbone_grid(80)
CHANNELS = ("z500", "2t")
SHAPE = (len(CHANNELS), *GRID.shape)
START, DAY = datetime(2003, 1, 1), timedelta(days=1)


def season(time: datetime) -> float:
    start, end = datetime(time.year, 1, 1), datetime(time.year + 1, 1, 1)
    return 2 * np.pi * ((time - start) / (end - start))


def design(times: list[datetime]) -> np.ndarray:
    s = np.array([season(time) for time in times])
    return np.stack([np.ones_like(s), np.cos(s), np.sin(s), np.cos(2 * s), np.sin(2 * s)], axis=1)


def fitted(times: list[datetime], states: np.ndarray, harmonics: int = 2) -> HarmonicFit:
    fit = HarmonicFit(GRID, CHANNELS, harmonics=harmonics)
    for time, state in zip(times, states):
        fit.add(state, time)
    return fit


def days(count: int, start: datetime = START) -> list[datetime]:
    return [start + i * DAY for i in range(count)]


def test_harmonics_come_back_at_any_time_of_any_year(rng: np.random.Generator) -> None:
    truth = rng.standard_normal((5, *SHAPE)) * 50 + 5e4 * (np.arange(5) == 0)[:, None, None, None]
    times = days(500)
    climatology = fitted(times, np.tensordot(design(times), truth, axes=1).astype(np.float32)).solve()
    for time in (datetime(2004, 2, 29, 18), datetime(2011, 7, 1), datetime(1990, 12, 31, 23, 59)):
        expected = np.tensordot(design([time])[0], truth, axes=1)
        np.testing.assert_allclose(climatology.at(time), expected, atol=0.02)  # five ulp of 5e4
        assert climatology.at(time).dtype == np.float32


def test_streaming_equals_least_squares_in_any_order_and_merged(rng: np.random.Generator) -> None:
    times = days(420)
    states = rng.standard_normal((420, *SHAPE)).astype(np.float32)
    flat = states.astype(np.float64).reshape(420, -1)
    expected = np.linalg.lstsq(design(times), flat, rcond=None)[0].reshape(5, *SHAPE)
    mixed = rng.permutation(420)
    halves = [fitted([times[i] for i in half], states[half]) for half in (mixed[:200], mixed[200:])]
    halves[0].merge(halves[1])
    for fit in (fitted(times, states), halves[0]):
        np.testing.assert_allclose(fit.solve().coefficients, expected, atol=1e-6)
    assert halves[0].solve().covers == fitted(times, states).solve().covers


def test_periods_are_broken_by_gaps_and_members() -> None:
    fit = HarmonicFit(GRID, CHANNELS, harmonics=0)
    state = np.zeros(SHAPE, np.float32)
    for time in [*days(10), *days(5, START + 60 * DAY), START + 94 * DAY]:
        fit.add(state, time)
    fit.add(state, START + 3 * DAY, member=1)
    assert fit.solve().covers == (
        Period(START, START + 9 * DAY),
        Period(START + 60 * DAY, START + 94 * DAY),
        Period(START + 3 * DAY, START + 3 * DAY, 1),
    )


def test_verified_times_must_lie_outside_the_training_periods() -> None:
    climatology = fitted(days(400), np.zeros((400, *SHAPE), np.float32)).solve()
    last = START + 399 * DAY
    climatology.check_independent([START - DAY, last + timedelta(hours=6)])
    for inside in (START, START + timedelta(hours=6), last):
        with pytest.raises(
            InputError, match=r"climatology overlaps the verified dates: 1 valid times, the first"
        ):
            climatology.check_independent([last + DAY, inside])
    climatology.check_independent([START], member=1)


def test_missing_seasons_are_refused_unless_fewer_harmonics_are_fitted(rng: np.random.Generator) -> None:
    states = rng.standard_normal((180, *SHAPE)).astype(np.float32)
    with pytest.raises(
        InputError, match="2003-01-01 00:00 to 2003-06-29 00:00 leave 2 annual harmonics undet"
    ):
        fitted(days(180), states).solve()
    mean = fitted(days(180), states, harmonics=0).solve()
    np.testing.assert_allclose(mean.at(START), states.mean(axis=0, dtype=np.float64), atol=1e-6)
    with pytest.raises(InputError, match="0 states in no period"):
        HarmonicFit(GRID, CHANNELS, harmonics=0).solve()


def test_states_must_be_finite_and_count_once() -> None:
    fit = HarmonicFit(GRID, CHANNELS)
    state = np.zeros(SHAPE, np.float32)
    fit.add(state, START)
    with pytest.raises(InputError, match=r"1 came twice, the first of 2003-01-01 00:00 \(member 0\)"):
        fit.add(state, START)
    with pytest.raises(InputError, match="1 came twice"):
        fit.merge(fitted([START], state[None]))
    broken = state.copy()
    broken[1, 3, 4] = np.nan
    with pytest.raises(InputError, match="2t of 2003-01-02 00:00 are not"):
        fit.add(broken, START + DAY)
    with pytest.raises(ValueError, match="the fit is of states of shape"):
        fit.add(state[:1], START + DAY)
    with pytest.raises(ValueError, match="only fits of one kind merge"):
        fit.merge(HarmonicFit(GRID, CHANNELS, harmonics=1))


def test_a_saved_climatology_comes_back(rng: np.random.Generator, tmp_path: Path) -> None:
    states = rng.standard_normal((400, *SHAPE)).astype(np.float32)
    climatology = fitted(days(400), states).solve()
    climatology.save(tmp_path / "climatology")
    loaded = Climatology.load(tmp_path / "climatology")
    np.testing.assert_array_equal(loaded.at(START), climatology.at(START))
    assert (loaded.grid, loaded.channels, loaded.covers) == (GRID, CHANNELS, climatology.covers)
    assert str(loaded.grid) == str(GRID)


def test_other_grids_and_channels_are_refused() -> None:
    climatology = Climatology(GRID, CHANNELS, np.zeros((1, *SHAPE), np.float32), ())
    climatology.check_fits(GRID, CHANNELS)
    with pytest.raises(InputError, match="make it on their grid"):
        climatology.check_fits(product_grid(80), CHANNELS)
    with pytest.raises(InputError, match="the channels z500, 2t, the fields 2t, z500"):
        climatology.check_fits(GRID, ("2t", "z500"))
    with pytest.raises(InputError, match="there is no harmonic climatology"):
        Climatology.load(Path("nowhere"))
