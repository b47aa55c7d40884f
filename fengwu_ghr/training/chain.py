"""The chain of training in one file of settings: the world, the backbone, its transfer, the evidence.

Each part has its verb: `train simulate`, `train pretrain`, `train adapt`, `train evidence`. Everything lies below
`folder`: seed-N/backbone/model, seed-N/NAME/model of each stage, evidence.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from pydantic import Field, model_validator

from fengwu_ghr.checkpoint import Checkpoint
from fengwu_ghr.config import Section
from fengwu_ghr.durable import make_folder, writing
from fengwu_ghr.errors import UsageError
from fengwu_ghr.training.adapt import adapt
from fengwu_ghr.training.downscale import DownscaleSettings, train_downscaling
from fengwu_ghr.training.evidence import EvidenceSettings, baseline_bias, score
from fengwu_ghr.training.pretrain import PretrainSettings, pretrain
from fengwu_ghr.training.progress import Progress
from fengwu_ghr.training.reference import write_initial_conditions
from fengwu_ghr.training.simulate import SimulateSettings, simulate
from fengwu_ghr.training.specs import SourceSpec
from fengwu_ghr.training.stage import AdaptStage
from fengwu_ghr.training.tables import Tables
from fengwu_ghr.training.world import World

BACKBONE = "backbone"


class Transfer(Section):
    """One stage of transfer, and from what it begins."""

    after: str = BACKBONE
    """The name of an earlier stage, or `backbone`."""
    stage: AdaptStage


class ChainSettings(Section):
    """From nothing to a table: everything that a training run is made of."""

    folder: Path
    """Where checkpoints and tables lie; the world lies where [simulate] says."""
    headline: str
    """The stage whose model the verdict is about."""
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    """Pretraining and transfer are done once per seed; baselines come from the first."""
    like: Path | None = None
    """A checkpoint whose statistics the world takes, so that its training goes on with new weather."""
    simulate: SimulateSettings
    pretrain: PretrainSettings
    downscale: DownscaleSettings | None = None
    """The downscaling baseline; none without."""
    transfer: tuple[Transfer, ...] = Field(min_length=1)
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
        if self.headline not in known[1:]:
            raise ValueError(f"headline must be one of {', '.join(known[1:])}; got {self.headline!r}")
        return self

    @property
    def evidence_folder(self) -> Path:
        """Where tables, report and pictures lie."""
        return self.folder / "evidence"

    def model(self, seed: int, name: str) -> Path:
        """Where the checkpoint of a stage, or of the backbone, lies."""
        return self.folder / f"seed-{seed}" / name / "model"


def run_simulate(settings: ChainSettings, progress: Progress) -> World:
    """The world is there; its statistics are its own, or those of the checkpoint it is to be `like`."""
    world = World.open(simulate(settings.simulate, progress))
    if settings.simulate.initial_conditions and "test" in world.splits:
        write_initial_conditions(world, progress)
    if settings.like:
        source = Checkpoint.open(settings.like)
        named = source.card.provenance.get("persisted channels", "none")
        persisted = [] if named == "none" else named.split(", ")
        world.adopt_statistics(source.normalisation, persisted, source=source.digest)
    return world


def run_pretrain(settings: ChainSettings, progress: Progress) -> list[Path]:
    """The backbones, one per seed. Raises InputError where the world is missing."""
    world = World.open(settings.simulate.folder)
    seeded = ((seed, settings.pretrain.model_copy(update={"seed": seed})) for seed in settings.seeds)
    return [pretrain(world, own, settings.model(seed, BACKBONE).parent, progress) for seed, own in seeded]


def run_adapt(settings: ChainSettings, progress: Progress) -> list[Path]:
    """The transferred models, stage by stage and seed by seed. Raises UsageError where there is no backbone yet."""
    world, made = World.open(settings.simulate.folder), []
    for seed in settings.seeds:
        for transfer in settings.transfer:
            base = settings.model(seed, transfer.after)
            if not base.exists():
                raise UsageError(f"{base} is not there; run train pretrain with this configuration first")
            stage = transfer.stage.model_copy(update={"seed": seed})
            made.append(adapt(world, stage, base, settings.model(seed, stage.name).parent, progress))
    return made


def run_evidence(settings: ChainSettings, progress: Progress) -> dict[str, tuple[SourceSpec, Tables]]:
    """Every source and its tables, complete. The downscaling baseline is trained where it is missing."""
    world, folder = World.open(settings.simulate.folder), settings.evidence_folder
    with writing(folder):
        make_folder(folder)
    if settings.downscale:
        train_downscaling(world, settings.downscale, settings.folder / "downscaling", progress)
    specs = list(sources_of(settings, world, folder, progress))
    tables = score(world, specs, settings.evidence, folder, progress)
    return {spec.name: (spec, tables[spec.name]) for spec in specs}


def sources_of(
    settings: ChainSettings, world: World, folder: Path, progress: Progress
) -> Iterator[SourceSpec]:
    """What is compared, in the order of the tables."""
    evidence, backbone = settings.evidence, settings.model(settings.seeds[0], BACKBONE)
    on_network = partial(SourceSpec, precision=evidence.precision)
    yield SourceSpec("persistence", "(a) persistence", "persistence")
    yield SourceSpec("climatology", "(b) climatology", "climatology")
    yield SourceSpec("coarse", "(c) backbone, interpolated", "coarse", backbone)
    yield SourceSpec("detailed", "(c1) with climatological fine detail", "detailed", backbone)
    yield on_network("mean-of-nine", "(c9) mean of nine sub-fields, with detail", "mean-of-nine", backbone)
    if settings.downscale:
        title, own = "(c-cnn) downscaled by a network", settings.folder / "downscaling"
        yield SourceSpec("downscaled", title, "downscaled", backbone, own)
    yield on_network("zero-shot", "(d) zero-shot split", "transferred", backbone)
    for seed in settings.seeds:
        for transfer in settings.transfer:
            name = transfer.stage.name
            title = name if len(settings.seeds) == 1 else f"{name}, seed {seed}"
            yield on_network(f"{name}-{seed}", title, "transferred", settings.model(seed, name))
    yield from _simulated(world, evidence, folder, progress)


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
