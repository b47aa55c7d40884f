"""The analytic atmosphere obeys the balances it claims."""

from datetime import datetime, timedelta

import numpy as np
import pytest

from fengwu_ghr.grid import product_grid
from fengwu_ghr.synthetic import EARTH_RADIUS, EARTH_ROTATION, GAS_CONSTANT, synthetic_state
from fengwu_ghr.variables import CHANNEL_SETS, Channel

TIME = datetime(2024, 1, 1)


def _fields(*channels: Channel) -> list[np.ndarray]:
    state = synthetic_state(product_grid(8), channels, initial_time=TIME)
    return [state[c].astype(np.float64) for c in channels]


@pytest.mark.parametrize("name", list(CHANNEL_SETS))
def test_every_channel_is_plausible(name: str) -> None:
    channels = CHANNEL_SETS[name].channels
    state = synthetic_state(product_grid(20), channels, initial_time=TIME)
    for channel in channels:
        low, high = channel.plausible
        assert low <= state[channel].min() <= state[channel].max() <= high, channel


def test_temperature_is_hydrostatic() -> None:
    low, middle, high = _fields(Channel("z", 850), Channel("t", 700), Channel("z", 600))
    thickness_temperature = (high - low) / (GAS_CONSTANT * np.log(850 / 600))
    assert np.abs(thickness_temperature - middle).max() < 4.0  # a layer mean against one level inside it


def test_wind_is_the_balanced_wind_of_the_geopotential_in_the_middle_latitudes() -> None:
    z, v = _fields(Channel("z", 500), Channel("v", 500))
    grid = product_grid(8)
    phi = np.deg2rad(grid.latitude)[:, None]
    slope = (np.roll(z, -1, 1) - np.roll(z, 1, 1)) / (2 * np.deg2rad(360 / grid.shape[1]))
    with np.errstate(divide="ignore", invalid="ignore"):
        geostrophic = slope / (2 * EARTH_ROTATION * np.sin(phi) * EARTH_RADIUS * np.cos(phi))
    band = (np.abs(grid.latitude) > 30) & (np.abs(grid.latitude) < 70)
    assert np.abs(geostrophic - v)[band].max() < 0.1
    assert np.abs(v[band]).max() > 10


def test_poles_are_single_valued() -> None:
    z, t = _fields(Channel("z", 500), Channel("t", 850))
    for field in (z, t):
        assert np.ptp(field[0]) < 0.05
        assert np.ptp(field[-1]) < 0.05


def test_waves_travel_and_the_same_valid_time_is_the_same_weather() -> None:
    z500 = (Channel("z", 500),)
    grid = product_grid(20)
    first = synthetic_state(grid, z500, initial_time=TIME)
    later = synthetic_state(grid, z500, initial_time=TIME, lead=timedelta(days=2))
    again = synthetic_state(grid, z500, initial_time=TIME + timedelta(days=2))
    assert np.abs(first.values - later.values).max() > 500
    np.testing.assert_array_equal(later.values, again.values)
    assert later.initial_time == TIME


def test_seeds_make_different_weather() -> None:
    z500 = (Channel("z", 500),)
    one, two = (synthetic_state(product_grid(20), z500, initial_time=TIME, seed=s).values for s in (0, 1))
    assert np.abs(one - two).max() > 500
