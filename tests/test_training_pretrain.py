"""Pretraining on a tiny world: it learns, its checkpoint is an ordinary one, and stopping it changes nothing."""

import os
import signal
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from worlds import tiny_world

from fengwu_ghr.backbone import Backbone
from fengwu_ghr.checkpoint import Checkpoint, load_model, verify
from fengwu_ghr.config import InputSection, ModelSection, OutputSection, RunConfig
from fengwu_ghr.engine.torch_engine import Compute, TorchStepper
from fengwu_ghr.errors import InputError, Interrupted, UsageError
from fengwu_ghr.grid import backbone_grid
from fengwu_ghr.initialise import build
from fengwu_ghr.training.dataset import CoarseSamples, FineSamples
from fengwu_ghr.training.loop import Ranks
from fengwu_ghr.training.pretrain import (
    PretrainSettings,
    PretrainTask,
    output_scale,
    pretrain,
    scale_output,
    scaled_step,
)
from fengwu_ghr.training.record import last_validation, read_log
from fengwu_ghr.training.scores import Scores
from fengwu_ghr.training.world import World

SMALL = {"width": 32, "heads": 2, "depth": 4, "decoder_width": 32}
TRAIN = {
    "samples": 96,
    "batch": 4,
    "learning_rate": 2e-3,
    "warmup_steps": 4,
    "precision": "float32",
    "average_decay": 0.9,
    "validate_every": 100,
    "threads": 1,
}
PHASES = ({}, {"rollout_steps": 2, "samples": 8, "learning_rate": 2e-4})


class Listener:
    """Keeps the notes; `halt` is called after so many steps in all."""

    def __init__(self, halt: Mapping[int, Any] | None = None) -> None:
        self.notes: list[str] = []
        self.halt, self.steps = dict(halt or {}), 0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def begin(self, title: str, done: int, total: int) -> None:
        pass

    def stepped(self, done: int, facts: Mapping[str, float]) -> None:
        self.steps += 1
        self.halt.get(self.steps, lambda: None)()


def settings(**changes: Any) -> PretrainSettings:
    fixed = {"backbone": SMALL, "train": TRAIN, "phases": PHASES, "validation_windows": 3}
    return PretrainSettings(**(fixed | changes))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world(tmp_path_factory.mktemp("world"), days=3)


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert pretrain(world, settings(), folder, Listener()) == folder / "model"
    return folder


def persisted(world: World) -> list[int]:
    return [world.channels.index(name) for name in world.statistics.persisted]


def test_it_learns_more_than_persistence(run: Path) -> None:
    losses = [entry["loss"] for entry in read_log(run / "phase-1") if "loss" in entry]
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:2])
    scores = last_validation(run / "phase-2")
    for name in ("z500", "t850", "u850"):
        for hours in (6, 24):
            assert scores[f"{name} {hours} h"] < scores[f"{name} {hours} h persistence"]
    assert (run / "phase-1" / "curves.png").exists()


def test_the_card_says_where_the_weights_come_from(run: Path, world: World) -> None:
    checkpoint = Checkpoint.open(run / "model")
    verify(checkpoint)
    card = checkpoint.card
    assert card.trained
    assert (card.architecture.lora_steps, card.architecture.res_after) == (0, ())
    assert card.channel_set == "ghr-69"
    assert np.array_equal(checkpoint.normalisation.std, world.statistics.normalisation.std)
    assert '"seed":0' in card.provenance["settings"]
    assert "z500 24 h: " in card.provenance["validation RMSE"]
    assert set(card.provenance["persisted channels"].split(", ")) == set(world.statistics.persisted)


def test_the_scale_of_the_output_goes_into_the_weights() -> None:
    backbone = build(settings().backbone.architecture(20, 69), seed=1).backbone
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 69, 37, 72, generator=generator)
    scale = torch.rand(69, 1, 1, generator=generator) / 10
    scale[5] = 0
    with torch.no_grad():
        in_training = scaled_step(backbone, states, scale)
        scale_output(backbone, scale)
        afterwards = backbone(states)
    assert float((in_training - states).abs().max()) > 1e-2
    assert torch.allclose(afterwards, in_training, atol=1e-6)
    assert torch.equal(afterwards[:, 5], states[:, 5])


def test_unresolved_channels_are_persisted(world: World) -> None:
    names = ("z500", "q50", "2t")
    statistics = type(world.statistics)(
        world.statistics.normalisation, np.array([0.1, 0.2, 0.3], np.float32), ("q50",)
    )
    assert output_scale(statistics, names).flatten().tolist() == pytest.approx([0.1, 0, 0.3])


def test_the_checkpoint_forecasts_the_validation_states_as_in_training(run: Path, world: World) -> None:
    """What validation found with the running mean of the weights, found with the checkpoint."""
    backbone = load_model(Checkpoint.open(run / "model")).backbone
    with torch.no_grad():
        scores = Scores(CoarseSamples(world, "validation"), 3, backbone_grid(20))
        found = scores.of(lambda states, lead, times: backbone(states), torch.device("cpu"))
    then = last_validation(run / "phase-2")
    assert found == pytest.approx({name: then[name] for name in found}, rel=1e-4)
    assert set(then) == set(found) | {f"{name} persistence" for name in found}


def test_the_checkpoint_runs_as_the_split(run: Path, world: World) -> None:
    """On the network grid each of the nine sub-fields is what the backbone alone makes of it."""
    checkpoint = Checkpoint.open(run / "model")
    state = FineSamples(world, "validation", in_memory=0).sample(0, 1)[0]
    stepper = TorchStepper(checkpoint, Compute(threads=1, batch=9))
    stepper.put([state.numpy()], datetime(2000, 1, 1))
    stepper.step(0)
    following = np.empty_like(state.numpy())
    stepper.get(following)
    with torch.no_grad():
        alone = load_model(checkpoint).backbone(state[None, :, 1::3, 2::3])[0]
    assert np.abs(following[:, 1::3, 2::3] - alone.numpy()).max() < 1e-5
    inner = slice(1, -1)
    assert np.array_equal(following[persisted(world), inner], state.numpy()[persisted(world), inner])


def test_the_checkpoint_makes_a_forecast(run: Path, analysis: Path, tmp_path: Path) -> None:
    from fengwu_ghr.forecast import run_forecast
    from fengwu_ghr.store import open_run

    class Silent:
        def note(self, text: str) -> None: ...
        def begin(self, done: int, total: int) -> None: ...
        def stepped(self, done: int, lead: object) -> None: ...

    config = RunConfig(
        model=ModelSection(name=str(run / "model")),
        input=InputSection(files=(analysis,)),
        output=OutputSection(zarr=tmp_path / "run.zarr"),
        forecast={"lead_time_hours": 12, "variables": ("z", "q"), "levels": (500,)},
    )
    run_forecast(config, reporter=Silent())
    geopotential = open_run(tmp_path / "run.zarr")["z"].values
    assert geopotential.shape == (1, 3, 1, 101, 200)
    assert np.isfinite(geopotential).all()
    assert np.abs(np.diff(geopotential, axis=1)).max() > 1


def test_a_stopped_pretraining_goes_on_as_if_it_had_not_been(run: Path, world: World, tmp_path: Path) -> None:
    """Stopped once in each phase, after steps 10 of 24 and 1 of 2."""

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match=r"step 10 of 24; everything is saved in .*phase-1"):
        pretrain(world, settings(), tmp_path, Listener({10: stop}))
    with pytest.raises(Interrupted, match=r"step 1 of 2; everything is saved in .*phase-2"):
        pretrain(world, settings(), tmp_path, Listener({15: stop}))
    assert not (tmp_path / "model").exists()
    pretrain(world, settings(), tmp_path, Listener())
    ours, theirs = (load_file(folder / "model" / "backbone.safetensors") for folder in (tmp_path, run))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_finished_model_is_left_alone(run: Path, world: World) -> None:
    listener = Listener()
    before = (run / "model" / "model.toml").stat().st_mtime_ns
    pretrain(world, settings(), run, listener)
    assert listener.notes == [f"{run / 'model'} is trained already"]
    assert (run / "model" / "model.toml").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="made with other settings, of another base or on another world"):
        pretrain(world, settings(noise=0.2), run, listener)


def test_losses_belong_to_the_numbers_of_samples(world: World) -> None:
    """However a batch is shared between ranks: its loss is the mean of theirs."""
    backbone = build(settings().backbone.architecture(20, 69), seed=1).backbone
    samples = CoarseSamples(world, "train"), CoarseSamples(world, "validation")
    task = PretrainTask(backbone, *samples, settings=settings(), phase=2)
    with torch.no_grad():
        whole = float(task.loss(range(8, 12)))
        parts = [float(task.loss(Ranks(r, 2, torch.device("cpu")).share(range(8, 12)))) for r in (0, 1)]
    assert np.mean(parts) == pytest.approx(whole, rel=1e-5)
    assert parts[0] != parts[1]


def test_noise_is_that_part_of_the_tendency(world: World) -> None:
    """A model that changes nothing is as wrong as persistence, and by the squared noise more."""

    def loss(noise: float) -> float:
        backbone = build(settings().backbone.architecture(20, 69), seed=1).backbone
        torch.nn.init.zeros_(backbone.decoder.deconvolution.weight)
        samples = CoarseSamples(world, "train"), CoarseSamples(world, "validation")
        task = PretrainTask(backbone, *samples, settings=settings(noise=noise), phase=1)
        with torch.no_grad():
            return float(task.loss(range(12)))

    assert isinstance(build(settings().backbone.architecture(20, 69)).backbone, Backbone)
    assert loss(0.5) - loss(0.0) == pytest.approx(0.25, rel=0.02)


def test_strided_samples_can_be_learned_from(world: World, tmp_path: Path) -> None:
    few = settings(coarsening="strided", phases=({"samples": 4},), validation_windows=1)
    card = Checkpoint.open(pretrain(world, few, tmp_path, Listener())).card
    assert '"coarsening":"strided"' in card.provenance["settings"]


def test_mistakes_are_named(world: World, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="backbone of the configuration does not fit"):
        pretrain(world, settings(backbone=SMALL | {"width": 31}), tmp_path, Listener())
    with pytest.raises(InputError, match=r"rollouts of 12 steps need series of 13 states; .* has 12"):
        pretrain(world, settings(phases=({"rollout_steps": 12},)), tmp_path, Listener())
    for wrong in ({"nois": 1}, {"phases": ()}, {"phases": ({"samples": 2},)}, {"backbone": {"breadth": 3}}):
        with pytest.raises(ValidationError):
            settings(**wrong)
