"""Pretraining: a backbone learns the 6-hour tendency of coarse states, then to be rolled out.

While it is trained the decoder gives the tendency over its own standard deviation, so that every channel has numbers
and gradients of the same size. The deconvolution is linear and has no bias: multiplied channel by channel by these
standard deviations when training ends, it gives the plain tendency, and the checkpoint is an ordinary backbone.
Channels that the world does not resolve have a factor of zero: they persist.
"""

import copy
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from pydantic import Field, model_validator
from torch import Tensor

from fengwu_ghr import checkpoint
from fengwu_ghr.backbone import Architecture, Backbone, architecture
from fengwu_ghr.checkpoint import Checkpoint, load_model
from fengwu_ghr.config import Section
from fengwu_ghr.errors import InputError, UsageError
from fengwu_ghr.forcing import Forcing
from fengwu_ghr.grid import backbone_grid
from fengwu_ghr.initialise import build
from fengwu_ghr.model_card import ModelCard, Statistics
from fengwu_ghr.progress import Progress
from fengwu_ghr.training.dataset import Coarsening, Samples, backbone_samples, draw, noise_generator
from fengwu_ghr.training.forcings import coarse_forcings, network_static
from fengwu_ghr.training.identity import (
    check_unseen,
    describe_world,
    identity_in,
    identity_of,
    is_made,
    world_provenance,
)
from fengwu_ghr.training.loop import Ranks, Task, TrainSettings, run_loop
from fengwu_ghr.training.losses import LossSettings, LossWeights, weighted_mse
from fengwu_ghr.training.record import last_validation
from fengwu_ghr.training.scores import Scores
from fengwu_ghr.training.world import STEP_HOURS, World, WorldStatistics
from fengwu_ghr.transfer import TransferModel


class BackboneSettings(Section):
    """The shape of the network."""

    size: str = "ghr-small"
    """A named size; what is given below takes the place of its own."""
    width: int | None = None
    """Numbers per token."""
    depth: int | None = None
    """Blocks of the trunk; every fourth is global."""
    heads: int | None = None
    """Attention heads; they divide the width."""
    decoder_width: int | None = None
    """Numbers per token that the decoder spreads over the grid."""

    forcings: tuple[Forcing, ...] = ()
    """What it is told beside the state: `orography`, `land_mask`, `insolation`; nothing by default."""

    def architecture(self, scale: int, channels: int) -> Architecture:
        """A backbone alone: no RES blocks, no adapters. Raises ValueError where the parts do not fit."""
        given = self.model_dump(exclude={"size"}, exclude_none=True)
        return architecture(self.size, scale=scale, channels=channels, lora_steps=0, res_after=(), **given)


class Phase(Section):
    """One run of the optimiser; what is not given is as in `train`."""

    rollout_steps: int = Field(1, gt=0)
    """Steps that the model is rolled out and differentiated through; the loss is their mean."""
    samples: int | None = Field(None, gt=0)
    """Samples to learn from."""
    batch: int | None = Field(None, gt=0)
    """Samples in a step."""
    learning_rate: float | None = Field(None, gt=0)
    """The peak."""
    warmup_steps: int | None = Field(None, ge=0)
    """Steps over which the learning rate rises."""

    def settings(self, train: TrainSettings) -> TrainSettings:
        changes = self.model_dump(exclude={"rollout_steps"}, exclude_none=True)
        return TrainSettings.model_validate(train.model_dump() | changes)


class PretrainSettings(Section):
    """All that decides what a pretrained backbone becomes, beside the world it sees."""

    name: str = Field("ghr-backbone", min_length=1)
    """The name in the model card."""
    description: str = "A backbone pretrained on a simulated world: for experiments, not for the weather."
    """The sentence in the model card."""
    licence: str = "CC-BY-4.0"
    """Of the weights."""
    seed: int = Field(0, ge=0)
    """Fixes the weights before training, the order of the samples and the noise."""
    backbone: BackboneSettings = BackboneSettings()
    """The network."""
    start: Path | None = None
    """A pretrained checkpoint of this network to go on from; the world has its statistics (`like`)."""
    coarsening: Coarsening = "area"
    """How coarse states come from fine ones; `strided` is an ablation, it has seen the fine data."""
    noise: float = Field(0.1, ge=0)
    """Std of white noise on the state a sample starts from, over that of the tendency."""
    loss: LossSettings = LossSettings()
    """The weights of channels."""
    train: TrainSettings = TrainSettings()
    """How to optimise."""
    phases: tuple[Phase, ...] = Field((Phase(),), min_length=1)
    """One step first; then, at small rates, rollouts of a few."""
    validation_windows: int = Field(16, gt=0)
    """Initial times of the validation series, evenly spread, from which forecasts are scored."""

    @model_validator(mode="after")
    def _phases_fit(self) -> "PretrainSettings":
        for phase in self.phases:
            phase.settings(self.train)
        if self.coarsening == "strided" and self.backbone.forcings:
            raise ValueError("forcings are area means: with coarsening = strided give none")
        return self


def pretrain(world: World, settings: PretrainSettings, folder: Path, progress: Progress) -> Path:
    """The folder of the trained checkpoint, `folder`/model; a stopped run goes on, a finished one is left alone.

    `folder`/phase-1, phase-2 ... hold state, log and curves of each phase. Raises the errors of `run_loop` and of
    the samples; UsageError where the folder holds a model of other settings or another world.
    """
    ranks = Ranks.join(settings.train.device)
    if ranks.leads:
        world.statistics  # noqa: B018  # measured by one, read by all
    ranks.wait()
    start = Checkpoint.open(settings.start) if settings.start else None
    target = folder / "model"
    identity = identity_of(world, settings, start=start.digest if start else None)
    if is_made(target, identity_in(target), identity):
        progress.note(f"{target} is trained already")
        return target
    model = _begun(world, settings, start)
    train, validation = (
        backbone_samples(world, split, coarsening=settings.coarsening) for split in ("train", "validation")
    )
    for number, phase in enumerate(settings.phases, start=1):
        task = PretrainTask(model.backbone, train, validation, settings=settings, phase=number)
        run_loop(task, phase.settings(settings.train), folder / f"phase-{number}", progress)
    model.cpu()
    scale_output(model.backbone, output_scale(world.statistics, world.channels.names))
    if ranks.leads:
        scores = last_validation(folder / f"phase-{len(settings.phases)}")
        card = _card(world, settings, model.architecture, start=start, identity=identity, scores=scores)
        checkpoint.save(target, model, card=card)
    ranks.wait()
    return target


class PretrainTask(Task):
    """One phase of pretraining: rollouts of `rollout_steps` from noisy states against the states that followed."""

    def __init__(
        self,
        backbone: Backbone,
        train: Samples,
        validation: Samples,
        *,
        settings: PretrainSettings,
        phase: int,
    ) -> None:
        world = train.world
        self.model = self.backbone = backbone
        self._train, self._settings = train, settings
        self._stream = (settings.seed, phase)
        self._length = settings.phases[phase - 1].rollout_steps + 1
        if train.count(self._length) == 0:
            raise InputError(
                f"rollouts of {self._length - 1} steps need series of {self._length} states; the longest training "
                f"series in {world.folder} has {max(map(len, train.series))}"
            )
        self._weights = LossWeights.of(
            world.channels, world.statistics, backbone_grid(world.scale), settings.loss
        )
        self._scale = output_scale(world.statistics, world.channels.names)
        self._forcings = coarse_forcings(world, settings.backbone.forcings)
        windows = settings.validation_windows
        self._scores = Scores(validation, windows, backbone_grid(world.scale), at_once=windows)

    def loss(self, numbers: range) -> Float[Tensor, ""]:
        device = self.backbone.position.device
        scale, weights = self._scale.to(device), self._weights.to(device)
        indices = [self._index(number) for number in numbers]
        states = torch.stack([self._train.sample(index, self._length) for index in indices]).to(device)
        state = states[:, 0] + self._settings.noise * scale * self._noise(numbers, states[0, 0])
        losses = []
        for step, truth in enumerate(states.unbind(dim=1)[1:]):
            times = [self._train.frame_time(index, self._length, step) for index in indices]
            state = scaled_step(self.backbone, state, scale, self._told(times, device))
            losses.append(weighted_mse(state, truth, weights))
        return torch.stack(losses).mean()

    def validate(self) -> dict[str, float]:
        """Scores of the model, and beside them those of persistence."""
        device = self.backbone.position.device
        scale = self._scale.to(device)

        def step(states: Tensor, lead: int, times: Sequence[datetime]) -> Tensor:
            return scaled_step(self.backbone, states, scale, self._told(times, device))

        found = self._scores.of(step, device)
        return found | {f"{name} persistence": value for name, value in self._persistence.items()}

    @cached_property
    def _persistence(self) -> dict[str, float]:
        return self._scores.of(lambda states, lead, times: states, torch.device("cpu"))

    def describe(self) -> dict[str, Any]:
        """The settings but for those of other phases; the world by its training states and statistics."""
        about = self._settings.model_dump(
            mode="json", include={"seed", "backbone", "coarsening", "noise", "loss", "validation_windows"}
        )
        start = self._settings.start
        about |= {"start": Checkpoint.open(start).digest} if start else {}
        return about | {"rollout_steps": self._length - 1, "world": describe_world(self._train.world)}

    def _index(self, number: int) -> int:
        return draw(number, count=self._train.count(self._length), stream=self._stream)

    def _told(
        self, times: Sequence[datetime], device: torch.device
    ) -> Float32[Tensor, "batch forcing row column"] | None:
        return None if self._forcings is None else self._forcings.at(times).to(device)

    def _noise(
        self, numbers: range, like: Float32[Tensor, "channel row column"]
    ) -> Float32[Tensor, "batch channel row column"]:
        generators = (noise_generator(n, stream=self._stream, device=like.device) for n in numbers)
        return torch.stack([torch.randn(like.shape, generator=g, device=like.device) for g in generators])


def scaled_step(
    backbone: Backbone,
    states: Float32[Tensor, "batch channel lat lon"],
    scale: Float32[Tensor, "channel 1 1"],
    forcing: Float32[Tensor, "batch forcing lat lon"] | None = None,
) -> Float32[Tensor, "batch channel lat lon"]:
    """The next states, of a backbone in training: its decoder gives the tendency over `scale`."""
    tokens = backbone.run(backbone.embed(states, forcing), range(len(backbone.blocks)), None)
    return states + scale * backbone.decoder(tokens)


def output_scale(statistics: WorldStatistics, names: Sequence[str]) -> Float32[Tensor, "channel 1 1"]:
    """The std of the tendency by channel, normalised values; zero for channels that persist."""
    std = np.where(np.isin(names, statistics.persisted), 0, statistics.tendency_std)
    return torch.from_numpy(std.astype(np.float32))[:, None, None]


@torch.no_grad()
def scale_output(backbone: Backbone, factor: Float32[Tensor, "channel 1 1"]) -> None:
    """What the decoder gives is multiplied by these factors: they are in its weights from now on."""
    backbone.decoder.deconvolution.weight.mul_(factor)


def _begun(world: World, settings: PretrainSettings, source: Checkpoint | None) -> TransferModel:
    """The model before training: fresh, or that of `source`, predicting tendencies over their std.

    Raises UsageError where the checkpoint is of another architecture, other channels or other statistics, or was
    trained on what this world holds out for tests.
    """
    shape = _architecture(world, settings)
    if source is None:
        model = build(shape, seed=settings.seed)
        if hasattr(model, "static"):
            model.static = network_static(world, shape.forcings)
        return model
    check_unseen(source.card, world)
    own, theirs = world.statistics.normalisation, source.normalisation
    wanted = [
        (source.architecture == shape, f"its architecture is {source.architecture}, not {shape}"),
        (source.channels == world.channels, f"its channels are {source.channels.name}"),
        (
            np.array_equal([own.mean, own.std], [theirs.mean, theirs.std]),
            "its statistics are not the world's",
        ),
    ]
    if wrong := [problem for holds, problem in wanted if not holds]:
        raise UsageError(
            f"training cannot go on from {source.folder}: {'; '.join(wrong)}; a world takes the statistics of a "
            "checkpoint by `like`"
        )
    model = copy.deepcopy(load_model(source)).train()  # a copy: the weights are mapped from their file
    scale = output_scale(world.statistics, world.channels.names)
    scale_output(model.backbone, torch.where(scale > 0, 1 / scale, 0))
    return model


def _architecture(world: World, settings: PretrainSettings) -> Architecture:
    try:
        return settings.backbone.architecture(world.scale, len(world.channels))
    except ValueError as error:
        raise UsageError(f"the backbone of the configuration does not fit: {error}") from None


def _card(
    world: World,
    settings: PretrainSettings,
    shape: Architecture,
    *,
    start: Checkpoint | None,
    identity: str,
    scores: dict[str, float],
) -> ModelCard:
    return ModelCard(
        name=settings.name,
        description=settings.description,
        trained=True,
        licence=settings.licence,
        channel_set=world.channels.name,
        step_hours=STEP_HOURS,
        architecture=shape,
        statistics=Statistics.of(world.channels, world.statistics.normalisation),
        provenance={
            "made by": f"fengwu_ghr {version('fengwu_ghr')}, train pretrain",
            "identity": identity,
            "base": f"{start.card.name}, {start.digest}" if start else "none",
            **world_provenance(world, start.card if start else None),
            "settings": settings.model_dump_json(),
            "validation RMSE": ", ".join(f"{name}: {value:.4g}" for name, value in scores.items()),
        },
    )
