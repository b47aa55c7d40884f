"""The torch engine: the same forecast whatever the batch, history carried, poles rebuilt, memory and work foreseen."""

from datetime import datetime

import numpy as np
import pytest
import torch

from fengwu_ghr.backbone import Architecture, architecture
from fengwu_ghr.catalogue import create_model
from fengwu_ghr.checkpoint import Checkpoint
from fengwu_ghr.engine.stepper import Stepper
from fengwu_ghr.engine.torch_engine import BATCHES, Compute, TorchStepper, activation_bytes, flops_per_step
from fengwu_ghr.errors import UsageError

TIME = datetime(2000, 1, 1)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    folder = tmp_path_factory.mktemp("models")
    shapes: dict[str, Architecture] = {
        "pixel": architecture("ghr-tiny", scale=20),
        "token": architecture("ghr-tiny", scale=20, split="token"),
        "history": architecture("ghr-tiny", scale=20, history=2),
    }
    return {name: create_model(shape, output=folder / name) for name, shape in shapes.items()}


def _states(checkpoint: Checkpoint, rng: np.random.Generator) -> list[np.ndarray]:
    shape = (len(checkpoint.channels), *checkpoint.grid.shape)
    return [rng.standard_normal(shape, np.float32) for _ in range(checkpoint.history)]


def _forecast(checkpoint: Checkpoint, states: list[np.ndarray], *, batch: int, steps: int = 2) -> np.ndarray:
    stepper = TorchStepper(checkpoint, Compute(batch=batch))
    assert isinstance(stepper, Stepper)
    stepper.put(states, TIME)
    for index in range(steps):
        stepper.step(index)
    out = np.empty_like(states[0])
    stepper.get(out)
    return out


@pytest.mark.parametrize("name", ["pixel", "token", "history"])
def test_batches_agree_to_rounding_and_each_with_itself_to_the_bit(
    name: str, checkpoints: dict[str, Checkpoint], rng: np.random.Generator
) -> None:
    checkpoint = checkpoints[name]
    states = _states(checkpoint, rng)
    forecasts = [_forecast(checkpoint, states, batch=batch) for batch in BATCHES]
    for forecast in forecasts[1:]:
        np.testing.assert_allclose(forecast, forecasts[0], atol=2e-5)
    np.testing.assert_array_equal(_forecast(checkpoint, states, batch=3), forecasts[1])


def test_both_states_of_a_history_matter_and_move_on(
    checkpoints: dict[str, Checkpoint], rng: np.random.Generator
) -> None:
    checkpoint = checkpoints["history"]
    older, newer = _states(checkpoint, rng)
    changed = _forecast(checkpoint, [older + 1, newer], batch=9, steps=1)
    assert np.abs(changed - _forecast(checkpoint, [older, newer], batch=9, steps=1)).max() > 1e-4
    stepper = TorchStepper(checkpoint, Compute(batch=9))
    stepper.put([older, newer], TIME)
    stepper.step(0)
    before = np.empty_like(newer)
    stepper.get(before, age=1)
    np.testing.assert_array_equal(before, newer)


def test_the_rows_beyond_the_poles_follow_the_rows_inside(
    checkpoints: dict[str, Checkpoint], rng: np.random.Generator
) -> None:
    checkpoint = checkpoints["pixel"]
    normalised = _forecast(checkpoint, _states(checkpoint, rng), batch=9, steps=1)
    state = checkpoint.normalisation.denormalise(normalised)
    half = state.shape[2] // 2
    for name, sign in (("u500", -1), ("v500", -1), ("t500", 1), ("10u", -1), ("msl", 1)):
        field = state[checkpoint.channels.index(name)]
        scale = float(np.abs(field).max())
        for outer, inner in ((0, 2), (-1, -3)):
            expected = sign * np.roll(field[inner], half)
            np.testing.assert_allclose(field[outer], expected, atol=2e-6 * scale)


def test_put_copies_and_get_copies(checkpoints: dict[str, Checkpoint], rng: np.random.Generator) -> None:
    checkpoint = checkpoints["pixel"]
    states = _states(checkpoint, rng)
    kept = states[0].copy()
    stepper = TorchStepper(checkpoint, Compute(batch=9))
    stepper.put(states, TIME)
    stepper.step(0)
    np.testing.assert_array_equal(states[0], kept)
    first, again = np.empty_like(kept), np.empty_like(kept)
    stepper.get(first)
    stepper.step(1)
    stepper.get(again)
    assert not np.array_equal(first, again)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_a_usage_error(checkpoints: dict[str, Checkpoint]) -> None:
    with pytest.raises(UsageError, match="ask for the device cpu"):
        TorchStepper(checkpoints["pixel"], Compute(device="cuda"))


def test_numerics_name_all_that_decides_the_bits(checkpoints: dict[str, Checkpoint]) -> None:
    numerics = TorchStepper(checkpoints["pixel"], Compute(batch=3)).numerics
    assert {"engine", "device", "capability", "precision", "threads", "batch", "torch", "numpy"} <= set(
        numerics
    )


def test_memory_grows_with_the_batch_and_with_the_network() -> None:
    tiny, small = (architecture(name, scale=1) for name in ("ghr-tiny", "ghr-small"))
    assert activation_bytes(tiny, 1) < activation_bytes(tiny, 3) < activation_bytes(tiny, 9)
    assert activation_bytes(tiny, 1) < activation_bytes(small, 1)


def test_work_is_counted_as_by_hand_for_the_trunk() -> None:
    """Doubling the depth from 4 to 8 adds 4 blocks and a RES block: 2 flops per weight and token, and attention."""
    few, many = (architecture("ghr-tiny", scale=20, depth=depth, lora_steps=0) for depth in (4, 8))
    width, tokens = few.width, 9 * 288
    linear = 2 * 12 * width**2 * tokens
    windows = [a * b for a, b in few.windows]
    attention = sum(4 * tokens * size * width for size in (*windows, 288))
    res = 2 * (4 + 18) * width**2 * tokens + 4 * tokens * 288 * width
    expected = 4 * linear + attention + res
    assert flops_per_step(many) - flops_per_step(few) == pytest.approx(expected, rel=0.02)
