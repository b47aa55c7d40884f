"""Diffusion: what smoothing departures from a mean must keep, how it damps waves, and that engines agree about it."""

from collections.abc import Iterator
from datetime import datetime
from math import cos, pi
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from worlds import save_base, tiny_world

from fengwu_ghr import checkpoint
from fengwu_ghr.backbone import architecture
from fengwu_ghr.checkpoint import Checkpoint, load_model
from fengwu_ghr.diffusion import FIRST, Diffusion
from fengwu_ghr.engine.torch_engine import Compute, TorchStepper
from fengwu_ghr.progress import Silence
from fengwu_ghr.training import loop
from fengwu_ghr.training.adapt import adapt, mean_state
from fengwu_ghr.training.fine import FineForecast
from fengwu_ghr.training.normals import Normals
from fengwu_ghr.training.stage import AdaptStage
from fengwu_ghr.training.world import World

SHAPE = (111, 216)


@pytest.fixture
def diffusion() -> Diffusion:
    made = Diffusion(3, SHAPE, sets=2, group=4)
    made.start()
    torch.manual_seed(1)
    with torch.no_grad():
        made.logits.add_(0.05 * torch.randn_like(made.logits))
        made.mean.normal_()
    return made


def wave(number: int) -> Tensor:
    return torch.cos(number * torch.arange(SHAPE[1]) * 2 * pi / SHAPE[1]).expand(1, 3, *SHAPE)


@torch.no_grad()
def test_the_mean_and_what_departs_from_it_everywhere_alike_stay(diffusion: Diffusion) -> None:
    for departure in (0.0, 2.5):
        state = diffusion.mean[None] + departure
        torch.testing.assert_close(diffusion(state, 0), state)


@pytest.mark.parametrize("number", [1, 20, 108])
@torch.no_grad()
def test_waves_are_damped_as_the_scheme_says(diffusion: Diffusion, number: int) -> None:
    for step in (0, 3, 4, 100):
        damped = diffusion(diffusion.mean + wave(number), step) - diffusion.mean
        factor = 1 - 2 * diffusion.shares(step) * (1 - cos(2 * pi * number / SHAPE[1]))
        torch.testing.assert_close(damped, factor[:, None, None] * wave(number), atol=1e-5, rtol=0)
        assert (factor > -1e-6).all()  # never beyond nothing: waves do not change sign


@torch.no_grad()
def test_sets_follow_lead_steps_and_begin_alike(diffusion: Diffusion) -> None:
    assert torch.equal(diffusion.shares(0), diffusion.shares(3))
    assert not torch.equal(diffusion.shares(3), diffusion.shares(4))
    assert torch.equal(diffusion.shares(4), diffusion.shares(100))
    diffusion.start()
    torch.testing.assert_close(diffusion.shares(0), torch.full((3,), FIRST))


@torch.no_grad()
def test_in_place_it_is_the_same_and_nothing_grows(diffusion: Diffusion) -> None:
    state = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(2))
    expected = diffusion(state[None], 5)[0]
    most = (state - diffusion.mean).abs().amax(dim=(1, 2))
    diffusion.write(state, 5)
    assert torch.equal(state, expected)
    assert ((state - diffusion.mean).abs().amax(dim=(1, 2)) <= most).all()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world(tmp_path_factory.mktemp("world") / "world", days=3)


@pytest.fixture(scope="module", autouse=True)
def _no_curves() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "draw_curves", lambda folder: None)
        yield


@pytest.fixture(scope="module")
def normals(world: World, tmp_path_factory: pytest.TempPathFactory) -> Normals:
    return Normals.of(world, tmp_path_factory.mktemp("normals"), harmonics=0, progress=Silence())


@pytest.fixture(scope="module")
def adapted(world: World, normals: Normals, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """After a stage that adds adapters with diffusion."""
    folder = tmp_path_factory.mktemp("adapted")
    sizes = {"width": 16, "heads": 2, "decoder_width": 16, "depth": 2, "lora_steps": 0, "res_after": ()}
    shape = architecture("ghr-tiny", scale=20, **sizes)
    base = save_base(world, folder / "base", shape)
    quick = {"samples": 6, "batch": 2, "learning_rate": 3e-3, "warmup_steps": 1, "precision": "float32"}
    stage = {
        "kind": "lora",
        "name": "lora",
        "train": quick | {"average_decay": 0.0, "validate_every": 100, "save_every": 100},
        "adapters": {"rank": 2, "sets": 2, "group": 2, "diffusion": True},
        "replay": {"entries": 2, "lead_steps": 4},
        "validation_windows": 1,
    }
    made = adapt(
        world,
        AdaptStage.model_validate(stage),
        base,
        folder / "lora",
        Silence(),
        climatology=lambda: normals.fine,
    )
    return Checkpoint.open(made)


def test_a_stage_keeps_the_mean_and_learns_the_shares(
    adapted: Checkpoint, world: World, normals: Normals
) -> None:
    diffusion = load_model(adapted).diffusion
    assert diffusion is not None
    np.testing.assert_array_equal(diffusion.mean.numpy(), mean_state(world, normals.fine))
    assert "diffusion.safetensors" in adapted.card.files
    with torch.no_grad():
        assert (diffusion.shares(0) - FIRST).abs().max() > 1e-4


def test_the_mean_is_not_rounded_with_the_weights(adapted: Checkpoint) -> None:
    model = load_model(adapted, dtype=torch.bfloat16)
    assert model.diffusion is not None
    assert model.diffusion.mean.dtype == torch.float32
    assert model.backbone.position.dtype == torch.bfloat16


def test_the_engine_steps_as_training_did(adapted: Checkpoint, world: World) -> None:
    state = world.statistics.normalisation.normalise(np.array(mean_like(world)))
    forecast = FineForecast(load_model(adapted), world)
    stepper = TorchStepper(adapted, Compute(threads=2, batch=3))
    following, found = forecast.refilled(torch.from_numpy(state)[None]), np.empty_like(state)
    stepper.put([following[0].numpy()], datetime(2000, 7, 1))
    for lead in range(3):
        stepper.step(lead)
        with torch.no_grad():
            following = forecast.step(following, lead, [datetime(2000, 7, 1)])
    stepper.get(found)
    np.testing.assert_allclose(found, following[0].numpy(), atol=2e-4)


def mean_like(world: World) -> np.ndarray:
    """Something on the network grid with detail."""
    rng = np.random.default_rng(5)
    statistics = world.statistics.normalisation
    noise = rng.standard_normal((len(world.channels), *SHAPE)).astype(np.float32)
    return statistics.denormalise(noise)


def test_diffusion_without_adapters_is_refused() -> None:
    with pytest.raises(ValueError, match="adapters, whose sets diffusion has"):
        architecture("ghr-tiny", scale=20, lora_steps=0, diffusion=True)


def test_the_embedded_mean_is_small(adapted: Checkpoint, tmp_path: Path) -> None:
    from pipelines.embed import for_the_package

    saved = checkpoint.save(tmp_path / "model", for_the_package(adapted), card=adapted.card)
    assert (saved.folder / "diffusion.safetensors").stat().st_size < 2.1 * 69 * SHAPE[0] * SHAPE[1]
    before, after = (load_model(found).diffusion for found in (adapted, saved))
    assert before is not None
    assert after is not None
    torch.testing.assert_close(after.mean, before.mean, rtol=1e-3, atol=1e-3)
