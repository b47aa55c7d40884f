"""A state checks itself: shape, type, distinct channels, naive times."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from fengwu_ghr.grid import product_grid
from fengwu_ghr.state import State
from fengwu_ghr.variables import Channel

CHANNELS = (Channel("z", 500), Channel("t", 850), Channel("2t"))
GRID = product_grid(40)
TIME = datetime(2024, 2, 29, 18)


@pytest.fixture
def values(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(3, *GRID.shape)).astype(np.float32)


def test_times(values: np.ndarray) -> None:
    assert State(values, CHANNELS, GRID, TIME).initial_time == TIME
    later = State(values, CHANNELS, GRID, TIME, timedelta(hours=30))
    assert later.initial_time == datetime(2024, 2, 28, 12)


def test_a_field_by_its_channel(values: np.ndarray) -> None:
    state = State(values, CHANNELS, GRID, TIME)
    np.testing.assert_array_equal(state[Channel("t", 850)], values[1])
    with pytest.raises(KeyError, match="no msl here; there are z500, t850, 2t"):
        _ = state[Channel("msl")]


def test_select_keeps_the_order_asked_for(values: np.ndarray) -> None:
    state = State(values, CHANNELS, GRID, TIME, timedelta(hours=6)).select([CHANNELS[2], CHANNELS[0]])
    assert [str(channel) for channel in state.channels] == ["2t", "z500"]
    np.testing.assert_array_equal(state.values, values[[2, 0]])
    assert (state.valid_time, state.lead, state.grid) == (TIME, timedelta(hours=6), GRID)


def test_values_must_fit_channels_and_grid(values: np.ndarray) -> None:
    with pytest.raises(
        ValueError, match=r"2 channels on 3p6 51 x 100 holds float32 \(2, 51, 100\); got .*\(3, 51"
    ):
        State(values, CHANNELS[:2], GRID, TIME)
    with pytest.raises(ValueError, match=r"got float32 \(3, 51, 99\)"):
        State(values[..., :-1], CHANNELS, GRID, TIME)


def test_channels_must_be_distinct(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="given twice: z500"):
        State(values, (CHANNELS[0], CHANNELS[1], CHANNELS[0]), GRID, TIME)


def test_times_are_naive(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"naive UTC; got 2024-02-29T18:00:00\+00:00"):
        State(values, CHANNELS, GRID, TIME.replace(tzinfo=UTC))


def test_a_state_is_frozen(values: np.ndarray) -> None:
    with pytest.raises(AttributeError):
        State(values, CHANNELS, GRID, TIME).lead = timedelta(0)  # type: ignore[misc]
