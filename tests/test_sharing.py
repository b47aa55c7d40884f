"""Sharing: what averaging with positive weights must keep, and that a forecast in stages is the forecast at once."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fengwu_ghr.catalogue import architecture
from fengwu_ghr.errors import UsageError
from fengwu_ghr.initialise import build, wake
from fengwu_ghr.sharing import BANDS, Sharing
from fengwu_ghr.training.adapt import grow
from fengwu_ghr.training.stage import AdaptStage
from fengwu_ghr.transfer import TransferModel

SHAPE = architecture("ghr-tiny", scale=20, width=32, depth=2, heads=2, decoder_width=16, sharing=2)


@pytest.fixture
def sharing() -> Sharing:
    made = Sharing(3, 111, radius=2)
    torch.manual_seed(1)
    torch.nn.init.normal_(made.logits, std=0.1)
    return made


def fields() -> Tensor:
    return torch.randn(2, 3, 111, 216, generator=torch.Generator().manual_seed(2))


def awake() -> TransferModel:
    model = build(SHAPE, seed=3)
    wake(model, seed=3, tendency=0.1)
    return model


def test_weights_are_positive_and_sum_to_one(sharing: Sharing) -> None:
    weights = sharing.weights()
    assert weights.shape == (3, 111, 25)
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(3, 111))


def test_what_is_the_same_everywhere_stays_and_nothing_grows(sharing: Sharing) -> None:
    constant = torch.full((1, 3, 111, 216), 2.5)
    torch.testing.assert_close(sharing(constant), constant)
    assert sharing(fields()).abs().max() <= fields().abs().max()


def test_longitude_has_no_beginning_and_hemispheres_are_alike(sharing: Sharing) -> None:
    torch.testing.assert_close(sharing(fields().roll(50, dims=3)), sharing(fields()).roll(50, dims=3))
    with torch.no_grad():  # the same to north and south
        kernels = sharing.logits.view(BANDS, 3, 5, 5)
        kernels.copy_((kernels + kernels.flip(2)) / 2)
    torch.testing.assert_close(sharing(fields().flip(2)), sharing(fields()).flip(2))


def test_it_begins_with_half_at_the_point_itself() -> None:
    model = build(SHAPE)
    assert model.sharing is not None
    torch.testing.assert_close(model.sharing.weights()[..., 12], torch.full((69, 111), 0.5))


@pytest.mark.parametrize("batch", [1, 9])
@torch.no_grad()
def test_a_step_in_stages_is_the_step_at_once(batch: int) -> None:
    model = awake()
    state = torch.randn(69, 111, 216, generator=torch.Generator().manual_seed(4))
    whole = model(state[None], 0)[0]
    for target in (state.clone(), torch.empty_like(state)):
        newest = target if batch == 1 else state.clone()
        newest.copy_(state)
        tokens = model.advance(model.tokens_of([newest], batch=batch), step=0, batch=batch)
        model.write_next(target, newest, tokens=tokens, batch=batch)
        torch.testing.assert_close(target, whole, atol=1e-5, rtol=1e-5)


def test_a_stage_adds_it_and_a_later_one_keeps_it() -> None:
    base = build(replace(SHAPE, sharing=0, res_after=(), lora_steps=0), seed=3)
    stage = AdaptStage.model_validate({"kind": "res", "name": "shared", "res": {"sharing": 2}})
    grown = grow(base, stage.architecture(base.architecture))
    assert grown.sharing is not None
    later = AdaptStage.model_validate({"kind": "lora", "name": "adapted", "adapters": {"rank": 2}})
    adapted = grow(grown, later.architecture(grown.architecture))
    torch.testing.assert_close(adapted.sharing.logits, grown.sharing.logits)
    with pytest.raises(UsageError, match="its sharing is 2, not 0"):
        grow(grown, replace(grown.architecture, sharing=0))


def test_it_needs_tendencies() -> None:
    with pytest.raises(ValueError, match="tendencies and the pixel-level split for sharing"):
        replace(SHAPE, predicts="state")


def test_it_travels_in_the_checkpoint_and_through_the_engine(tmp_path: Path) -> None:
    from fengwu_ghr.catalogue import create_model
    from fengwu_ghr.checkpoint import Checkpoint
    from fengwu_ghr.engine.torch_engine import Compute, TorchStepper

    create_model(SHAPE, output=tmp_path / "model", init="random", seed=5)
    checkpoint = Checkpoint.open(tmp_path / "model")
    assert (tmp_path / "model" / "sharing.safetensors").exists()
    assert checkpoint.facts()["sharing"] == "over 2 points to every side"
    stepper = TorchStepper(checkpoint, Compute(precision="float32", threads=1, batch=9))
    state = np.random.default_rng(6).standard_normal((69, 111, 216)).astype(np.float32)
    stepper.put([state], datetime(2020, 1, 1))
    stepper.step(0)
    out = np.empty_like(state)
    stepper.get(out)
    assert np.isfinite(out).all()
    assert 0 < np.abs(out - state)[:, 2:-2].max() < 10
