"""Replay: what is in the buffer is always a forecast at its lead step, beside the analysis of its valid time."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from fengwu_ghr.errors import InputError
from fengwu_ghr.training.dataset import Samples, Window
from fengwu_ghr.training.replay import Leg, ReplayBuffer, ReplaySettings

LENGTHS = (9, 14)
MODEL_ERROR = 0.25


class Clock(Samples):
    """Two series whose states hold their own number: 100 s + t for state t of series s, at both points."""

    def __init__(self, lengths: tuple[int, ...] = LENGTHS) -> None:
        self.world = SimpleNamespace(channels=range(1), folder="a clock")  # type: ignore[assignment]
        self.series = [range(length) for length in lengths]  # type: ignore[misc]
        self.shape, self._held = (1, 2), []

    def state(self, series: int, index: int) -> np.ndarray:
        assert 0 <= index < len(self.series[series])
        return np.full((1, 1, 2), 100 * series + index, np.float32)

    def read(self, series: object, index: int) -> np.ndarray:
        raise NotImplementedError


def buffer(samples: Samples | None = None, *, seed: int = 0, **settings: float) -> ReplayBuffer:
    chosen = ReplaySettings(**({"entries": 5, "lead_steps": 6, "restart_share": 0.1} | settings))  # type: ignore[arg-type]
    return ReplayBuffer(samples or Clock(), chosen, stream=(seed, 1))


def fly(replay: ReplayBuffer, step: int, count: int = 2) -> list[Leg]:
    """One training step of a model that is a quarter off at every step."""
    legs = replay.draw(step, count)
    replay.put(step, legs, [replay[leg.entry] + 1 + MODEL_ERROR for leg in legs])
    return legs


def content(replay: ReplayBuffer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in replay.tensors().items()}


def test_a_forecast_of_so_many_steps_has_made_so_many_errors() -> None:
    """State = analysis of its valid time + a quarter per lead step: nothing is mixed up, ever."""
    replay, samples, leads = buffer(), Clock(), Counter[int]()
    for step in range(400):
        for leg in replay.draw(step, 2):
            truth = samples.state(*leg.valid)
            np.testing.assert_array_equal(replay[leg.entry].numpy(), truth + MODEL_ERROR * leg.lead)
            assert leg.target == Window(leg.valid.series, leg.valid.start + 1)
            assert samples.state(*leg.target) == pytest.approx(truth + 1)
            leads[leg.lead] += 1
        fly(replay, step)
    assert set(leads) == set(range(6))
    assert min(leads.values()) > 40


def test_forecasts_end_with_their_series() -> None:
    """Series of three states: from the first, two steps can be verified; from the second, one."""
    replay = buffer(Clock((3,)), lead_steps=40, restart_share=0.0)
    flown = Counter((leg.valid.start, leg.lead) for step in range(100) for leg in fly(replay, step))
    assert set(flown) == {(0, 0), (1, 0), (1, 1)}


def test_some_begin_anew_by_chance() -> None:
    replay = buffer(Clock((500,)), lead_steps=400, restart_share=1.0)
    assert all(leg.lead == 0 for step in range(50) for leg in fly(replay, step))
    replay = buffer(Clock((5000,)), lead_steps=4000, restart_share=0.2, entries=1)
    lead = [fly(replay, step, count=1)[0].lead for step in range(2000)]
    assert 0.17 < np.mean(np.array(lead[1:]) == 0) < 0.23


def test_no_entry_is_taken_twice_in_a_step() -> None:
    replay, taken = buffer(), Counter[int]()
    for step in range(200):
        entries = [leg.entry for leg in replay.draw(step, 3)]
        assert len(set(entries)) == 3
        taken.update(entries)
    assert min(taken[entry] for entry in range(5)) > 90
    with pytest.raises(ValueError, match="takes 6 forecasts; the replay buffer holds 5"):
        replay.draw(0, 6)


def test_what_is_remembered_is_enough_to_go_on() -> None:
    whole, cut = buffer(), buffer()
    for step in range(30):
        fly(whole, step)
    for step in range(12):
        fly(cut, step)
    resumed = buffer()
    resumed.restore(content(cut))
    for step in range(12, 30):
        fly(resumed, step)
    for name, tensor in content(whole).items():
        assert torch.equal(resumed.tensors()[name], tensor)


def test_the_seed_decides() -> None:
    one, same, other = buffer(), buffer(), buffer(seed=1)
    for step in range(10):
        assert fly(one, step) == fly(same, step)
        fly(other, step)
    assert torch.equal(one.tensors()["states"], same.tensors()["states"])
    assert not torch.equal(one.tensors()["states"], other.tensors()["states"])


def test_single_states_cannot_be_replayed() -> None:
    with pytest.raises(InputError, match="series of two states or more"):
        buffer(Clock((1, 1)))
