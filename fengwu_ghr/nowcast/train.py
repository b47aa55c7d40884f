"""Training of a nowcast: generated storms first, then real events, by the only optimiser loop there is."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from fengwu_ghr.config import Section
from fengwu_ghr.errors import InputError, UsageError
from fengwu_ghr.nowcast.events import Block, EventSettings, Window, check_splits, read_blocks
from fengwu_ghr.nowcast.loss import PLAIN, DynamicLoss, dynamic_loss
from fengwu_ghr.nowcast.model import SCALE, NowcastArchitecture, build_network
from fengwu_ghr.nowcast.samples import Batch, Cutter, Sample, StormCutter
from fengwu_ghr.nowcast.weights import NowcastCard, resolve_nowcast, save_nowcast
from fengwu_ghr.progress import Progress
from fengwu_ghr.training.dataset import draw, evenly_spaced
from fengwu_ghr.training.loop import Ranks, Task, TrainSettings, run_loop
from fengwu_ghr.training.record import last_validation
from fengwu_ghr.verify.events import CELLS, frequency_bias, hss
from fengwu_ghr.verify.statistics import Sums

_FREE: Any = {"data": True, "train": {"validate_every", "save_every", "threads"}}
"""Settings that decide nothing about the result."""
_VALIDATED = (35.0, 45.0)


class NetworkSettings(Section):
    """The shape of the network; see NowcastArchitecture."""

    translator: Literal["impa", "gsta", "tau"] = "impa"
    """`impa` of IMPA-Net, `gsta` of SimVP, `tau`."""
    mixer: bool = True
    """Whether the Spatial Mixer exchanges fields in blocks of 2 x 2 pixels."""
    advection: bool = False
    """Whether the network sees echoes from the air that carries them; ours."""
    leads: int = Field(24, gt=0)
    """Frames that it gives."""
    stem: int = Field(8, gt=0)
    """Channels at full resolution."""
    hidden: int = Field(16, gt=0)
    """Channels of a latent frame."""
    width: int = Field(64, gt=0)
    """Channels of the translator."""
    depth: int = Field(4, gt=0)
    """Its blocks."""

    def architecture(self, name: str) -> NowcastArchitecture:
        return NowcastArchitecture(name=name, **self.model_dump())


class NowcastSettings(Section):
    """All that decides what a nowcast model becomes."""

    name: str = Field("impa-net", min_length=1)
    """The name in the model card."""
    description: str = "Radar nowcasts over two hours, trained on a few events: for experiments."
    """The sentence in the model card."""
    licence: str = "CC-BY-4.0"
    """Of the weights."""
    seed: int = Field(0, ge=0)
    """Fixes the weights before training, the crops and their order."""
    data: Path = Path(".")
    """The folder in which the files of events are."""
    start: Path | None = None
    """A nowcast checkpoint of this very network to go on from."""
    network: NetworkSettings = NetworkSettings()
    """The network."""
    loss: DynamicLoss = DynamicLoss()
    """What an error costs."""
    plain_loss: bool = False
    """The mean squared error in place of `loss`."""
    train: TrainSettings = TrainSettings(precision="float32", batch=8, learning_rate=2e-3)
    """How to optimise."""
    storms: int = Field(0, ge=0)
    """So many of the samples, the first ones, are of generated storms."""
    crop: int = Field(96, ge=32)
    """Rows and columns of a sample, a multiple of 4."""
    leads: int = Field(6, gt=0)
    """Leads of a sample that are decoded, drawn by chance: all of them would take most of the time."""
    least_leads: int = Field(4, gt=0)
    """A window with fewer leads inside its block is left out."""
    validation_windows: int = Field(12, gt=0)
    """Windows of the validation events that are looked at, evenly spread."""
    events: tuple[EventSettings, ...] = ()
    """Real sequences and what each is for; none trains on generated storms alone."""

    @model_validator(mode="after")
    def _fits_together(self) -> "NowcastSettings":
        if self.crop % 4:
            raise ValueError(f"crop must be a multiple of 4; got {self.crop}")
        if not self.events and self.storms < self.train.samples:
            raise ValueError("without events all samples are of generated storms: storms = train.samples")
        return self

    @property
    def effective_loss(self) -> DynamicLoss:
        return PLAIN if self.plain_loss else self.loss


def train_nowcast(settings: NowcastSettings, folder: Path, progress: Progress) -> Path:
    """The folder of the trained checkpoint, `folder`/model; a stopped run goes on, a finished one is left alone.

    Raises the errors of `run_loop` and of the events; UsageError where the folder holds a model of other settings.
    """
    check_splits(settings.events)
    target, identity = folder / "model", identity_of(settings)
    if target.exists():
        if resolve_nowcast(str(target)).card.provenance.get("identity") != identity:
            raise UsageError(f"{target} was made with other settings; choose another folder, or remove it")
        progress.note(f"{target} is trained already")
        return target
    task = NowcastTask(settings)
    run_loop(task, settings.train, folder, progress)
    task.model.cpu()
    if Ranks.join(settings.train.device).leads:
        save_nowcast(target, task.network, _card(settings, task, identity, last_validation(folder)))
    return target


class NowcastTask(Task):
    """Crops of storms, then of events, against what came."""

    def __init__(self, settings: NowcastSettings) -> None:
        self.settings = settings
        self.architecture = settings.network.architecture(settings.name)
        self.model = self.network = build_network(self.architecture, seed=settings.seed)
        if settings.start is not None:
            self._begin_from(settings.start)
        self._storms = StormCutter(self.architecture, size=settings.crop, seed=settings.seed)
        self.blocks, self._windows = self._split("train")
        self._cutter = Cutter(self.blocks, self.architecture, size=settings.crop)

    def loss(self, numbers: range) -> Float[Tensor, ""]:
        batch = Batch.of([self._sample(number) for number in numbers])
        device = next(self.network.parameters()).device
        fields, truth, known, leads, minutes, places = (
            getattr(batch, name).to(device)
            for name in ("fields", "truth", "known", "leads", "minutes", "places")
        )
        made = self.network(fields, minutes, leads)
        progress = numbers.start / self.settings.train.samples
        chosen = self.settings.effective_loss
        return dynamic_loss(made, truth, known, settings=chosen, progress=progress, places=places)

    def validate(self) -> dict[str, float]:
        """Mean squared error over that of no change, HSS and bias at 35 and 45 dBZ, of crops that stay the same."""
        device = next(self.network.parameters()).device
        squared, still, tables = 0.0, 0.0, Sums.zeros(CELLS, (1, len(_VALIDATED)))
        for made in self._validation:
            given = made.fields[None].to(device), torch.tensor([float(made.minutes)], device=device)
            forecast = self.network(*given, made.leads[None].to(device))[0].float().cpu()
            known, unchanged = made.known, made.fields[-1, 0]
            squared += float((forecast - made.truth)[known].square().sum())
            still += float((unchanged - made.truth)[known].square().sum())
            tables = tables + _tables(forecast * SCALE, made.truth * SCALE, known)
        scores, biases = hss(tables), frequency_bias(tables)
        found = {"mse over no change": squared / max(still, 1e-9)}
        for threshold, score, bias in zip(_VALIDATED, scores, biases):
            found |= {
                f"HSS {threshold:g}": float(np.nan_to_num(score)),
                f"bias {threshold:g}": float(np.nan_to_num(bias)),
            }
        return found

    def describe(self) -> dict[str, Any]:
        return {"identity": identity_of(self.settings)}

    @property
    def step_range(self) -> tuple[int, int]:
        """Minutes of the shortest and the longest step that is learned from."""
        steps = [self.blocks[w.block].frames.minutes * w.stride for w in self._windows]
        steps += [5, 10] if self.settings.storms else []
        return min(steps), max(steps)

    def _sample(self, number: int) -> Sample:
        settings = self.settings
        rng = np.random.default_rng((settings.seed, number))
        if number < settings.storms:
            return self._storms.crop(number, rng, leads=settings.leads)
        index = draw(number - settings.storms, count=len(self._windows), stream=(settings.seed, 1))
        return self._cutter.crop(self._windows[index], rng, leads=settings.leads)

    @cached_property
    def _validation(self) -> list[Sample]:
        """Larger crops, fewer leads: the same at every call."""
        settings, rng = self.settings, np.random.default_rng((settings_seed := self.settings.seed, 2))
        if not any(event.split == "validation" for event in settings.events):
            storms = StormCutter(self.architecture, size=settings.crop, seed=settings_seed + 1_000_003)
            return [storms.crop(4 * n, rng, leads=settings.leads) for n in range(settings.validation_windows)]
        blocks, windows = self._split("validation")
        cutter = Cutter(blocks, self.architecture, size=2 * settings.crop)
        chosen = evenly_spaced(windows, settings.validation_windows)
        return [cutter.crop(window, rng, leads=settings.leads) for window in chosen]

    def _split(self, split: Literal["train", "validation"]) -> tuple[list[Block], list[Window]]:
        settings = self.settings
        if not settings.events:
            return [], []
        read = read_blocks(settings.events, split, settings.data)
        windows = [
            window
            for number, (event, block) in enumerate(read)
            for window in block.windows(
                number, strides=event.strides, inputs=self.architecture.inputs, leads=self.architecture.leads,
                least=settings.least_leads,
            )
        ]  # fmt: skip
        if not windows:
            raise InputError(
                f"no block of {split} holds {self.architecture.inputs} + {settings.least_leads} frames"
            )
        return [block for _, block in read], windows

    def _begin_from(self, start: Path) -> None:
        model = resolve_nowcast(str(start))
        mine = self.architecture
        theirs = model.card.architecture
        if NowcastArchitecture(**{**vars(theirs), "name": mine.name}) != mine:
            raise UsageError(f"{start} is of {theirs}, not of {mine}: give the same network")
        self.network.load_state_dict(model.network().state_dict())


def identity_of(settings: NowcastSettings) -> str:
    """sha256 of all that decides the result, where the data lie excepted."""
    decides = settings.model_dump(mode="json", exclude=_FREE)
    if settings.start:
        decides["start"] = resolve_nowcast(str(settings.start)).digest
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _tables(forecast: Tensor, truth: Tensor, known: Tensor) -> Sums:
    cells: dict[str, list[float]] = {name: [] for name in CELLS}
    for threshold in _VALIDATED:
        said, came = (values >= threshold for values in (forecast, truth))
        for name, where in zip(CELLS, (said & came, said & ~came, ~said & came, ~said & ~came)):
            cells[name].append(float((where & known).sum()))
    sums = {name: np.array([counts]) for name, counts in cells.items()}
    return Sums(np.full((1, len(_VALIDATED)), float(known.sum())), sums)


def _card(
    settings: NowcastSettings, task: NowcastTask, identity: str, scores: dict[str, float]
) -> NowcastCard:
    shortest, longest = task.step_range
    return NowcastCard(
        name=settings.name,
        description=settings.description,
        trained=True,
        licence=settings.licence,
        shortest_step_minutes=shortest,
        longest_step_minutes=longest,
        architecture=task.architecture,
        provenance={
            "made by": f"fengwu_ghr {version('fengwu_ghr')}, nowcast train",
            "identity": identity,
            "trained on": _trained_on(settings),
            "samples": f"{settings.train.samples}, {settings.storms} of them of generated storms",
            "loss": "mean squared error" if settings.effective_loss.is_plain else "dynamic",
            "seed": str(settings.seed),
            **{f"validation: {name}": f"{value:.5g}" for name, value in scores.items()},
        },
    )


def _trained_on(settings: NowcastSettings) -> str:
    def told(event: EventSettings) -> str:
        ends: Sequence[str] = [f"{time:%Y-%m-%d %H:%M}" if time else "" for time in (event.first, event.last)]
        return event.name + (f" ({ends[0]} ... {ends[1]})" if any(ends) else "")

    return ", ".join(told(event) for event in settings.events if event.split == "train") or "generated storms"
