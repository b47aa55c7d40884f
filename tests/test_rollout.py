"""The rollout sees a model as three calls, so a fake one tests it: indices, history, restart."""

from collections.abc import Sequence
from datetime import datetime

import numpy as np
import pytest

from fengwu_ghr.grid import NetworkGrid
from fengwu_ghr.rollout import RestartSchedule, Start, rollout
from fengwu_ghr.variables import channel_set

TIME = datetime(2000, 1, 1)


class Counting:
    """Adds index + 1 to the newest state, and the older state where there is one."""

    network, channel_set, step_hours = NetworkGrid(20), channel_set("ghr-69"), 6

    def __init__(self, history: int) -> None:
        self.history = history
        self.numerics: dict[str, str | int] = {}
        self.indices: list[int] = []
        self.states: list[np.ndarray] = []

    def put(self, states: Sequence[np.ndarray], valid_time: datetime) -> None:
        self.states = [state.copy() for state in states]

    def step(self, index: int) -> None:
        self.indices.append(index)
        new = self.states[-1] + (index + 1) + (self.states[0] if self.history == 2 else 0)
        self.states = [*self.states, new][-self.history :]

    def get(self, out: np.ndarray, *, age: int = 0) -> None:
        out[:] = self.states[-1 - age]


def _state(value: float) -> np.ndarray:
    return np.full((2, 3, 4), value, np.float32)


def _run(stepper: Counting, start: Start, steps: int) -> list[list[np.ndarray]]:
    seen = []
    for _ in rollout(stepper, start, steps=steps):
        states = [np.empty((2, 3, 4), np.float32) for _ in range(stepper.history)]
        for age, out in enumerate(reversed(states)):
            stepper.get(out, age=age)
        seen.append(states)
    return seen


@pytest.mark.parametrize("history", [1, 2])
def test_a_restart_gives_the_same_states_and_the_same_indices(history: int) -> None:
    first = [_state(v) for v in range(history)]
    whole = _run(Counting(history), Start(0, first, TIME), 5)
    resumed = Counting(history)
    rest = _run(resumed, Start(2, whole[1], TIME), 5)
    assert resumed.indices == [2, 3, 4]
    for expected, got in zip(whole[2:], rest):
        np.testing.assert_array_equal(expected, got)


def test_the_state_put_in_is_not_touched() -> None:
    state = _state(1)
    _run(Counting(1), Start(0, [state], TIME), 3)
    np.testing.assert_array_equal(state, _state(1))


def test_a_wrong_number_of_states_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 2 states to start from; got 1"):
        list(rollout(Counting(2), Start(0, [_state(0)], TIME), steps=1))


def test_a_finished_rollout_takes_no_step() -> None:
    assert list(rollout(Counting(1), Start(4, [_state(0)], TIME), steps=4)) == []


def test_saving_waits_until_it_costs_no_more_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("fengwu_ghr.rollout.perf_counter", lambda: clock[0])
    schedule = RestartSchedule(state_bytes=3 * 10**8, last_save=0.0)  # taken to need 1 s
    clock[0] = 19.0
    assert not schedule.is_due()
    clock[0] = 20.5
    assert schedule.is_due()
    schedule.saved(0.1)
    clock[0] += 1.9
    assert not schedule.is_due()
    clock[0] += 0.2
    assert schedule.is_due()
