"""The chain of training in one file of settings: the world, the backbone, its transfer, the evidence.

Each part has its verb: `train simulate`, `train pretrain`, `train adapt`, `train evidence`. Everything lies below
`folder`: seed-N/backbone/model, seed-N/NAME/model of each stage, evidence.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from fengwu_ghr.checkpoint import Checkpoint
from fengwu_ghr.config import Section
from fengwu_ghr.durable import make_folder, writing
from fengwu_ghr.errors import UsageError
from fengwu_ghr.progress import Progress
from fengwu_ghr.training.adapt import adapt
from fengwu_ghr.training.downscale import DownscaleSettings, train_downscaling
from fengwu_ghr.training.evidence import EvidenceSettings, baseline_bias, score
from fengwu_ghr.training.identity import check_unseen, persisted_of
from fengwu_ghr.training.members import SimulateSettings, complete_world
from fengwu_ghr.training.normals import Normals
from fengwu_ghr.training.pretrain import PretrainSettings, pretrain
from fengwu_ghr.training.reference import write_initial_conditions
from fengwu_ghr.training.simulate import simulate
from fengwu_ghr.training.specs import Kind, SourceSpec
from fengwu_ghr.training.stage import AdaptStage
from fengwu_ghr.training.tables import Tables
from fengwu_ghr.training.world import SPLITS, World
from fengwu_ghr.verify.climatology import Climatology

BACKBONE, SPLIT = "backbone", "zero-shot"


class Transfer(Section):
    """One stage of transfer, and from what it begins."""

    after: str = BACKBONE
    """The name of an earlier stage, or `backbone`."""
    stage: AdaptStage


class ChainSettings(Section):
    """From nothing to a table: everything that a training run is made of."""

    folder: Path
    """Where checkpoints and tables lie; the world lies where [simulate] says."""
    headline: str = SPLIT
    """The stage whose model the verdict is about; the split where nothing is said."""
    sharp: str | None = None
    """The stage whose model is to have the amplitude of the truth, and is held to that."""
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    """Pretraining and transfer are done once per seed, and scored beside the baselines of their own backbone."""
    like: Path | None = None
    """A checkpoint whose statistics the world takes, so that its training goes on with new weather."""
    simulate: SimulateSettings
    pretrain: PretrainSettings
    downscale: DownscaleSettings | None = None
    """The downscaling baseline; none without."""
    transfer: tuple[Transfer, ...] = ()
    evidence: EvidenceSettings = EvidenceSettings()

    @model_validator(mode="after")
    def _fit_together(self) -> "ChainSettings":
        known = [BACKBONE]
        for transfer in self.transfer:
            if transfer.after not in known:
                raise ValueError(f"a stage begins after one of {', '.join(known)}; got {transfer.after!r}")
            if transfer.stage.name in known:
                raise ValueError(f"stages need names of their own; {transfer.stage.name!r} came twice")
            known.append(transfer.stage.name)
        for role, name in (("headline", self.headline), ("sharp", self.sharp or SPLIT)):
            if name not in (stages := [*known[1:], SPLIT]):
                raise ValueError(f"{role} must be one of {', '.join(stages)}; got {name!r}")
        seeded = [self.pretrain, *(transfer.stage for transfer in self.transfer)]
        if any("seed" in section.model_fields_set for section in seeded):
            raise ValueError("pretraining and stages have the seeds of `seeds`: give none of their own")
        return self

    @property
    def names(self) -> list[str]:
        """Of all that is trained per seed."""
        return [BACKBONE, *(transfer.stage.name for transfer in self.transfer)]

    @property
    def evidence_folder(self) -> Path:
        """Where tables, report and pictures lie."""
        return self.folder / "evidence"

    def model(self, seed: int, name: str) -> Path:
        """Where the checkpoint of a stage, or of the backbone, lies."""
        return self.folder / f"seed-{seed}" / name / "model"


def run_simulate(settings: ChainSettings, progress: Progress) -> World:
    """The world is there; its statistics are its own, or those of the checkpoint it is to be `like`.

    Raises UsageError where that checkpoint was trained on what this world holds out for tests.
    """
    world = World.open(simulate(settings.simulate, progress))
    if settings.simulate.initial_conditions and "test" in world.splits:
        write_initial_conditions(world, progress)
    if settings.like:
        source = Checkpoint.open(settings.like)
        check_unseen(source.card, world)
        world.adopt_statistics(source.normalisation, persisted_of(source.card), source=source.digest)
    return world


def run_pretrain(settings: ChainSettings, progress: Progress) -> list[Path]:
    """The backbones, one per seed. Raises InputError where the world, or a part of it, is missing."""
    world = complete_world(settings.simulate, "train", "validation")
    seeded = ((seed, settings.pretrain.model_copy(update={"seed": seed})) for seed in settings.seeds)
    return [pretrain(world, own, settings.model(seed, BACKBONE).parent, progress) for seed, own in seeded]


def run_adapt(settings: ChainSettings, progress: Progress) -> list[Path]:
    """The transferred models, stage by stage and seed by seed. Raises UsageError where there is no backbone yet."""
    world, made = complete_world(settings.simulate, "train", "validation"), []

    def climatology() -> Climatology:
        return _normals(settings, world, progress).fine

    for seed in settings.seeds:
        for transfer in settings.transfer:
            base = settings.model(seed, transfer.after)
            _check_made(base, "train pretrain")
            stage = transfer.stage.model_copy(update={"seed": seed})
            folder = settings.model(seed, stage.name).parent
            made.append(adapt(world, stage, base, folder, progress, climatology=climatology))
    return made


def run_evidence(settings: ChainSettings, progress: Progress) -> dict[str, tuple[SourceSpec, Tables]]:
    """Every source and its tables, complete. The downscaling baseline is trained where it is missing.

    Raises InputError where the world, or a part of it, is missing, UsageError where a model is.
    """
    world, folder = complete_world(settings.simulate, *SPLITS), settings.evidence_folder
    for seed in settings.seeds:
        for name in settings.names:
            _check_made(settings.model(seed, name), "train pretrain and train adapt")
    normals = _normals(settings, world, progress)
    if settings.downscale:
        train_downscaling(world, normals, settings.downscale, settings.folder / "downscaling", progress)
    specs = list(sources_of(settings, world, folder, progress))
    tables = score(world, specs, settings.evidence, folder, progress)
    return {spec.name: (spec, tables[spec.name]) for spec in specs}


def _normals(settings: ChainSettings, world: World, progress: Progress) -> Normals:
    folder = settings.evidence_folder
    with writing(folder):
        make_folder(folder)
    return Normals.of(world, folder, harmonics=settings.evidence.harmonics, progress=progress)


def _check_made(model: Path, verbs: str) -> None:
    if not model.exists():
        raise UsageError(f"{model} is not there; run {verbs} with this configuration first")


def sources_of(
    settings: ChainSettings, world: World, folder: Path, progress: Progress
) -> Iterator[SourceSpec]:
    """What is compared, in the order of the tables: a model with the baselines of its own seed."""
    yield SourceSpec("persistence", "(a) persistence", "persistence")
    yield SourceSpec("climatology", "(b) climatology", "climatology")
    for seed in settings.seeds:
        yield from _trained(settings, seed)
    yield from _simulated(world, settings.evidence, folder, progress)


def _trained(settings: ChainSettings, seed: int) -> Iterator[SourceSpec]:
    """What stands on the backbone of this seed."""
    backbone, precision = settings.model(seed, BACKBONE), settings.evidence.precision
    of_seed = "" if len(settings.seeds) == 1 else f", seed {seed}"

    def spec(name: str, title: str, kind: Kind, **more: Any) -> SourceSpec:
        return SourceSpec(f"{name}-{seed}", title + of_seed, kind, **({"checkpoint": backbone} | more))

    yield spec("coarse", "(c) backbone, interpolated", "coarse")
    yield spec("detailed", "(c1) with climatological fine detail", "detailed")
    nine = "(c9) mean of nine sub-fields, with detail"
    yield spec("mean-of-nine", nine, "mean-of-nine", precision=precision)
    if settings.downscale:
        folder = settings.folder / "downscaling"
        yield spec("downscaled", "(c-cnn) downscaled by a network", "downscaled", downscaling=folder)
    yield spec(SPLIT, "(d) zero-shot split", "transferred", precision=precision)
    for transfer in settings.transfer:
        name = transfer.stage.name
        model = settings.model(seed, name)
        yield spec(name, name, "transferred", checkpoint=model, precision=precision)


def _simulated(
    world: World, evidence: EvidenceSettings, folder: Path, progress: Progress
) -> Iterator[SourceSpec]:
    """What the simulator itself forecasts."""
    if evidence.baseline_truncation:
        truncation = evidence.baseline_truncation
        raw = SourceSpec(
            f"numerical-t{truncation}", f"(e) simulator at T{truncation}", "numerical", truncation=truncation
        )
        yield raw
        bias = baseline_bias(world, raw, evidence, folder, progress)
        yield replace(raw, name=f"{raw.name}-corrected", title=f"{raw.title}, bias removed", bias=bias)
    if evidence.twin_dates:
        yield SourceSpec("twin", "twin of the truth", "twin", dates=evidence.twin_dates)
