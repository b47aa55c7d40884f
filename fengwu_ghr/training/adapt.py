"""Transfer in stages: the split as it is; RES blocks on fine analyses; adapters per lead step from replayed forecasts.

Every stage begins with a checkpoint and leaves another. What a stage adds starts so that the forecast is exactly
that of the checkpoint before: all that is gained was learned from fine analyses.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from fengwu_ghr import checkpoint
from fengwu_ghr.backbone import Architecture
from fengwu_ghr.checkpoint import Checkpoint, load_model, part_of
from fengwu_ghr.errors import UsageError
from fengwu_ghr.grid import NetworkGrid
from fengwu_ghr.initialise import build
from fengwu_ghr.model_card import ModelCard
from fengwu_ghr.progress import Progress
from fengwu_ghr.regrid import NetworkMap
from fengwu_ghr.remap import remap_field
from fengwu_ghr.training.dataset import FineSamples
from fengwu_ghr.training.fine import FineForecast
from fengwu_ghr.training.fine_tasks import Prepared, task_of
from fengwu_ghr.training.identity import (
    describe_world,
    identity_in,
    identity_of,
    inherited_provenance,
    is_made,
)
from fengwu_ghr.training.loop import Ranks, TrainSettings, run_loop
from fengwu_ghr.training.losses import LossWeights
from fengwu_ghr.training.record import last_validation
from fengwu_ghr.training.scores import Scores
from fengwu_ghr.training.stage import AdaptStage
from fengwu_ghr.training.world import STEP_HOURS, World
from fengwu_ghr.transfer import TransferModel
from fengwu_ghr.verify.climatology import Climatology


def adapt(
    world: World,
    stage: AdaptStage,
    base: Path,
    folder: Path,
    progress: Progress,
    *,
    climatology: Callable[[], Climatology] | None = None,
) -> Path:
    """The folder of the checkpoint that this stage leaves, `folder`/model; a stopped run goes on, a finished one stays.

    `folder`/phase-1, phase-2 ... hold state, log and curves of each phase. `climatology`, of the training years, is
    asked for where the stage adds diffusion. Raises the errors of `run_loop` and of
    the samples; UsageError where the base is not of this world, or the folder holds another model.
    """
    source, target = Checkpoint.open(base), folder / "model"
    check_fits(source, world)
    identity = hashlib.sha256(f"{identity_of(world, stage)} {source.digest}".encode()).hexdigest()
    if is_made(target, identity_in(target), identity):
        progress.note(f"{target} is trained already")
        return target
    run = _prepare(world, stage, source, climatology)
    for number, phase in enumerate(stage.phases, start=1):
        task = task_of(run, phase=number)
        run_loop(task, phase.settings(stage.train), folder / f"phase-{number}", progress)
    ranks = Ranks.join(stage.train.device)
    if ranks.leads:
        scores = last_validation(folder / f"phase-{len(stage.phases)}")
        model = run.forecast.model.cpu()
        card = _card(source, stage, model.architecture, identity=identity, scores=scores)
        checkpoint.save(target, model, card=card)
    # The next stage begins with this checkpoint: the other ranks wait here until it is written.
    ranks.wait()
    return target


def grow(base: TransferModel, architecture: Architecture, *, seed: int = 0) -> TransferModel:
    """A model of this architecture that begins as `base`: its weights, and added parts that rest.

    RES blocks end in zeros and adapters have B = 0 (`initialise`); sharing alone, which has no weights of rest, acts
    from the start. Raises UsageError naming what differs where the
    architectures do not share their backbone, or a part of the base would be lost.
    """
    before = asdict(base.architecture)
    free = {"name"}.union(*(names for has, names in _parts(base.architecture) if not has))
    after = asdict(architecture)
    differing = [
        f"{name} is {before[name]}, not {after[name]}"
        for name in before
        if name not in free and before[name] != after[name]
    ]
    if differing:
        raise UsageError(f"transfer keeps what the base has: its {'; its '.join(differing)}")
    model = build(architecture, seed=seed)
    model.load_state_dict(base.state_dict(), strict=False)
    return model


def mean_state(world: World, climatology: Climatology) -> Float32[np.ndarray, "channel row column"]:
    """The annual mean on the network grid, normalised."""
    network = NetworkGrid(world.scale)
    to_network = partial(NetworkMap(network).from_source, source=world.fine_grid)
    fields = zip(climatology.coefficients[0], world.channels.channels)
    mean = np.stack([remap_field(field, channel.definition, to_network) for field, channel in fields])
    return world.statistics.normalisation.normalise(mean)


def check_fits(source: Checkpoint, world: World) -> None:
    """Raises UsageError naming what differs unless this checkpoint was trained on this world's numbers."""
    card, a, own = source.card, source.architecture, world.statistics.normalisation
    theirs = source.normalisation
    same_numbers = np.array_equal(theirs.mean, own.mean) and np.array_equal(theirs.std, own.std)
    wanted: list[tuple[bool, str]] = [
        (card.trained, "its weights are untrained"),
        (a.scale == world.scale, f"its scale is {a.scale}, the world's {world.scale}"),
        (
            card.channel_set == world.channels.name,
            f"its channels are {card.channel_set}, the world's {world.channels.name}",
        ),
        (same_numbers, "its statistics are not the world's"),
        (a.history == 1, f"it forecasts from {a.history} states, not one"),
        (card.registration == "nested", f"its registration is {card.registration}, not nested"),
        (card.step_hours == STEP_HOURS, f"its step is {card.step_hours} h, not {STEP_HOURS}"),
    ]
    if wrong := [problem for holds, problem in wanted if not holds]:
        raise UsageError(
            f"{source.folder} cannot be transferred on the world in {world.folder}: {'; '.join(wrong)}; "
            "give a checkpoint pretrained on this world"
        )


def _prepare(
    world: World,
    stage: AdaptStage,
    source: Checkpoint,
    climatology: Callable[[], Climatology] | None = None,
) -> Prepared:
    model = grow(load_model(source), _architecture(stage, source), seed=stage.seed)
    if model.diffusion is not None and not source.architecture.diffusion:
        if climatology is None:
            raise ValueError("diffusion needs the mean of the training years")
        model.diffusion.mean.copy_(torch.from_numpy(mean_state(world, climatology())))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_is_trained(name, stage))
    ranks = Ranks.join(stage.train.device)
    forecast = FineForecast(model.to(ranks.device), world)
    # Fine states fill memory quickly, and are interpolated in a fraction of a training step.
    train, validation = (FineSamples(world, split, in_memory=0) for split in ("train", "validation"))
    scores = Scores(validation, stage.validation_windows, NetworkGrid(world.scale))
    return Prepared(
        stage=stage,
        forecast=forecast,
        train=train,
        scores=scores,
        weights=LossWeights.of(world.channels, world.statistics, NetworkGrid(world.scale), stage.loss),
        before=_scored(forecast, scores, stage.train) if ranks.leads else {},
        about={"base": source.digest, "world": describe_world(world)},
    )


@torch.no_grad()
def _scored(forecast: FineForecast, scores: Scores, train: TrainSettings) -> dict[str, float]:
    with torch.autocast(forecast.device.type, torch.bfloat16, enabled=train.precision == "bfloat16"):
        return scores.of(forecast.step, forecast.device)


def _architecture(stage: AdaptStage, source: Checkpoint) -> Architecture:
    try:
        return stage.architecture(source.architecture)
    except ValueError as error:
        raise UsageError(f"what the stage {stage.name} adds does not fit: {error}") from None


def _is_trained(name: str, stage: AdaptStage) -> bool:
    part = part_of(name)
    return part in {"res": ("res", "sharing", "joint"), "lora": ("adapters", "diffusion")}[stage.kind] or (
        part == "backbone" and stage.base_rate > 0
    )


def _parts(architecture: Architecture) -> list[tuple[bool, set[str]]]:
    """For what transfer may add: whether it is there, and the fields that describe it."""
    return [
        (bool(architecture.res_after), {"res_after", "res_window", "res_mlp", "phase_embedding"}),
        (bool(architecture.sharing), {"sharing"}),
        (architecture.joint != "none", {"joint", "joint_phase", "joint_retrieval"}),
        (bool(architecture.lora_steps), {"lora_rank", "lora_steps", "lora_alpha", "lora_group", "diffusion"}),
    ]


def _card(
    source: Checkpoint, stage: AdaptStage, shape: Architecture, *, identity: str, scores: Mapping[str, float]
) -> ModelCard:
    about = {
        "settings": stage.model_dump_json(),
        "validation RMSE": ", ".join(f"{name}: {value:.4g}" for name, value in scores.items()),
    }
    changes = {
        "name": stage.name,
        "description": stage.description,
        "licence": stage.licence,
        "architecture": shape,
        "provenance": _provenance(source, identity, f"train adapt, {stage.kind}, {stage.objective}") | about,
    }
    return source.card.model_copy(update=changes)


def _provenance(source: Checkpoint, identity: str, verb: str) -> dict[str, str]:
    """Where a model comes from: what the base says of its world, the base itself, and what was done here."""
    return inherited_provenance(source.card) | {
        "made by": f"fengwu_ghr {version('fengwu_ghr')}, {verb}",
        "identity": identity,
        "base": f"{source.card.name}, {source.digest}",
    }
