"""The nine over two processes: one rank's forecast to rounding, the same bytes again, and no hanging."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from fengwu_ghr.backbone import architecture
from fengwu_ghr.catalogue import create_model
from fengwu_ghr.checkpoint import Checkpoint
from fengwu_ghr.engine import sharded
from fengwu_ghr.engine.sharded import ShardedStepper, open_stepper
from fengwu_ghr.engine.stepper import Sender, Stepper
from fengwu_ghr.engine.torch_engine import Compute, TorchStepper
from fengwu_ghr.errors import ConformanceError, ResourceError

TIME = datetime(2000, 1, 1)
SMALL = {"width": 32, "heads": 2, "decoder_width": 16, "lora_rank": 2, "lora_steps": 3}
TWO = Compute(batch=3, ranks=2)


def _checkpoint(folder: Path, **changes: object) -> Checkpoint:
    return create_model(architecture("ghr-tiny", scale=20, **{**SMALL, **changes}), output=folder / "model")


def _state(checkpoint: Checkpoint) -> np.ndarray:
    shape = (len(checkpoint.channels), *checkpoint.grid.shape)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@contextmanager
def _two(checkpoint: Checkpoint) -> Iterator[ShardedStepper]:
    stepper = open_stepper(checkpoint, TWO)
    assert isinstance(stepper, ShardedStepper)
    try:
        yield stepper
    finally:
        stepper.close()


def _after(stepper: Stepper, state: np.ndarray, steps: range) -> np.ndarray:
    stepper.put([state], TIME + timedelta(hours=6 * steps.start))
    for index in steps:
        stepper.step(index)
    out = np.empty_like(state)
    stepper.get(out)
    return out


def test_one_rank_needs_no_other_process(tmp_path: Path) -> None:
    assert type(open_stepper(_checkpoint(tmp_path), Compute())) is TorchStepper


def test_two_ranks_forecast_as_one_resume_to_the_bit_and_fail_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = _checkpoint(tmp_path, sharing=1)  # RES blocks with convolutions, whose rows have neighbours
    state = _state(checkpoint)
    with _two(checkpoint) as stepper:
        assert isinstance(stepper, Stepper)
        assert isinstance(stepper, Sender)
        first = _after(stepper, state, range(1))
        whole = _after(stepper, first, range(1, 3))
        assert stepper.numerics["ranks"] == 2
    alone = _after(TorchStepper(checkpoint, Compute(batch=3)), state, range(3))
    np.testing.assert_allclose(whole, alone, atol=2e-5)
    assert np.abs(whole - state).max() > 1e-3
    with _two(checkpoint) as again:
        np.testing.assert_array_equal(_after(again, first, range(1, 3)), whole)
        monkeypatch.setattr(sharded, "LAST_WORDS", 5.0)
        again._others[0].process.kill()
        with pytest.raises(
            ResourceError, match=r"rank 1 of 2 ended with status -9; run the same command again"
        ):
            _after(again, first, range(1, 3))
        assert again._others[0].process.poll() == -9


def test_ranks_agree_on_what_is_not_finite(tmp_path: Path) -> None:
    """The token-level split, perceptrons in the RES block; the state is spoilt where rank 1 alone looks first."""
    checkpoint = _checkpoint(tmp_path, split="token", res_mlp="plain")
    state = _state(checkpoint)
    with _two(checkpoint) as stepper:
        alone = _after(TorchStepper(checkpoint, Compute(batch=3)), state, range(1))
        np.testing.assert_allclose(_after(stepper, state, range(1)), alone, atol=2e-5)
        state[0, 50, 50] = np.nan
        with pytest.raises(ConformanceError, match=r"step 1 \(\+6 h\): the output of the encoder"):
            _after(stepper, state, range(1))
        assert stepper._others[0].process.poll() is not None, "no rank is left behind"


def test_a_rank_that_does_not_start_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = _checkpoint(tmp_path)
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(ResourceError, match="rank 1 of 2 ended with status 1"):
        open_stepper(checkpoint, TWO)
