"""Downscaling: a network that makes a coarse state fine, at the same time. A baseline for the transferred model.

What the coarse backbone forecasts can be made fine without stepping in time: by interpolation, by adding the detail
of the season, and by a convolutional network that adds the detail which the weather makes. A transfer that
does not beat the last has only learned to downscale.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fengwu_ghr.config import Section
from fengwu_ghr.durable import replace_file, writing
from fengwu_ghr.errors import UsageError
from fengwu_ghr.grid import NetworkGrid
from fengwu_ghr.initialise import initialise
from fengwu_ghr.normalise import Normalisation
from fengwu_ghr.progress import Progress
from fengwu_ghr.regrid import NetworkMap
from fengwu_ghr.remap import remap_state
from fengwu_ghr.res import SUBFIELDS
from fengwu_ghr.training.dataset import CoarseSamples, FineSamples, Samples, Window, draw, evenly_spaced
from fengwu_ghr.training.identity import describe_world, identity_of, is_made
from fengwu_ghr.training.loop import Ranks, Task, TrainSettings, run_loop
from fengwu_ghr.training.losses import LossSettings, LossWeights, weighted_mse
from fengwu_ghr.training.normals import FineDetail, Normals
from fengwu_ghr.training.scores import SCORED, scored_squares
from fengwu_ghr.training.world import Series, World
from fengwu_ghr.transfer import recombine
from fengwu_ghr.variables import ChannelSet

WEIGHTS = "downscaling.safetensors"


class DownscaleSettings(Section):
    """The size of the network, and how it is trained; by default it is as large as two RES blocks of width 256."""

    width: int = Field(192, gt=0)
    """Features at each point of the backbone grid."""
    blocks: int = Field(2, ge=0)
    """Residual blocks of two convolutions."""
    validation_states: int = Field(12, gt=0)
    """Validation states, evenly spaced, that are made fine at each validation."""
    seed: int = Field(0, ge=0)
    """Fixes the weights before training, and the order of the states."""
    loss: LossSettings = LossSettings()
    """The weights of channels."""
    train: TrainSettings = TrainSettings()
    """How to optimise."""


class Refiner(nn.Module):
    """What to add to an interpolated state: convolutions on the backbone grid, nine fine points from each coarse one.

    Sub-pixel convolution, Shi et al. (2016), "Real-time single image and video super-resolution using an efficient
    sub-pixel convolutional neural network": interpolated fields hold nothing that the coarse ones do not. Every
    place has features of its own, learned; the last layer starts at zero.
    """

    def __init__(
        self, channels: int, shape: tuple[int, int], *, width: int, blocks: int, seed: int = 0
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3)
        self.place = nn.Parameter(torch.zeros(width, *shape))
        self.blocks = nn.ModuleList(Residual(width) for _ in range(blocks))
        self.last = nn.Conv2d(width, SUBFIELDS * channels, 3)
        initialise(self, seed=seed)
        nn.init.zeros_(self.last.weight)

    def forward(
        self, coarse: Float[Tensor, "batch channel lat lon"]
    ) -> Float[Tensor, "batch channel row column"]:
        """Normalised coarse states in, additions to the normalised states of the network grid out."""
        features = self.first(around_the_sphere(coarse)) + self.place
        for block in self.blocks:
            features = block(features)
        nine = self.last(around_the_sphere(F.silu(features)))
        return recombine(nine.reshape(-1, *coarse.shape[1:]))


class Residual(nn.Module):
    """Features, and what two 3 x 3 convolutions make of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3), nn.Conv2d(width, width, 3)

    def forward(self, features: Float[Tensor, "batch width lat lon"]) -> Float[Tensor, "batch width lat lon"]:
        inside = self.conv1(around_the_sphere(F.silu(features)))
        return features + self.conv2(around_the_sphere(F.silu(inside)))


def around_the_sphere(
    fields: Float[Tensor, "batch channel lat lon"],
) -> Float[Tensor, "batch channel more_lat more_lon"]:
    """One more row and column on every side of a grid with both poles: over the poles, and around the circle."""
    half, last = fields.shape[3] // 2, fields.shape[2] - 1
    north, south = (fields[:, :, row : row + 1].roll(half, dims=3) for row in (1, last - 1))
    return F.pad(torch.cat([north, fields, south], dim=2), (1, 1, 0, 0), mode="circular")


class Interpolation:
    """Coarse states on the network grid: cubic interpolation of physical values, kept to the variables' bounds."""

    def __init__(self, scale: int, channels: ChannelSet) -> None:
        self.map, self._channels = NetworkMap(NetworkGrid(scale)), channels.channels
        self._to_network = partial(self.map.from_source, source=self.map.network.backbone)

    def __call__(
        self, coarse: Float32[np.ndarray, "channel lat lon"]
    ) -> Float32[np.ndarray, "channel row column"]:
        """The fields of the backbone grid on the network grid."""
        return remap_state(coarse, self._channels, self._to_network)

    def to_product(
        self, state: Float32[np.ndarray, "channel row column"]
    ) -> Float32[np.ndarray, "channel lat lon"]:
        """The fields of the network grid on the product grid."""
        return remap_state(state, self._channels, self.map.to_product)


class InterpolatedSamples(Samples):
    """The coarse states of a world, interpolated to the network grid whenever they are drawn."""

    def __init__(self, world: World, split: str, interpolation: Interpolation) -> None:
        self._interpolation = interpolation
        super().__init__(world, split, shape=interpolation.map.network.shape, in_memory=0)

    def read(self, series: Series, index: int) -> Float32[np.ndarray, "channel row column"]:
        return self._interpolation(series.coarse(index))


class SeasonalDetail:
    """The climatological fine detail, normalised, on the network grid, day by day."""

    def __init__(self, world: World, normals: Normals) -> None:
        self._detail, self._std = FineDetail(normals, world.channels), world.statistics.normalisation.std
        self._channels, network = world.channels.channels, NetworkMap(NetworkGrid(world.scale))
        self._to_network = partial(network.from_source, source=world.fine_grid)

    def at(self, valid_time: datetime) -> Float32[np.ndarray, "channel row column"]:
        """That of the day; not to be written to."""
        return self._of_day(valid_time.date())

    @lru_cache(maxsize=400)  # noqa: B019  # a year of days, three gigabytes at the demo scale
    def _of_day(self, day: date) -> Float32[np.ndarray, "channel row column"]:
        fine = self._detail.at(datetime.combine(day, time(12)))
        fields = (
            self._to_network(field, is_vector=c.definition.is_vector, smooth=c.definition.is_smooth)
            for field, c in zip(fine, self._channels)
        )
        return np.stack(list(fields)) / self._std[:, None, None]


@dataclass(frozen=True, eq=False)
class Downscaling:
    """A refiner and what it stands on: interpolation, and the climatological detail of the season."""

    refiner: Refiner
    detail: SeasonalDetail
    interpolation: Interpolation
    normalisation: Normalisation

    def apply(
        self, coarse: Float32[np.ndarray, "channel lat lon"], valid_time: datetime, *, refined: bool = True
    ) -> Float32[np.ndarray, "channel fine_lat fine_lon"]:
        """The fine state on the product grid of a coarse one, physical values within the variables' bounds.

        Without `refined`: interpolation and the climatological detail alone.
        """
        state = self.normalisation.normalise(self.interpolation(coarse)) + self.detail.at(valid_time)
        if refined:
            inputs = torch.from_numpy(self.normalisation.normalise(coarse))[None]
            with torch.inference_mode():
                state += self.refiner(inputs)[0].numpy()
        return self.interpolation.to_product(self.normalisation.denormalise(state, out=state))

    @classmethod
    def load(cls, folder: Path, world: World, normals: Normals) -> "Downscaling":
        """What `train_downscaling` left in this folder, of this world. Raises UsageError where it is not that."""
        path = folder / WEIGHTS
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UsageError(f"{path} holds no trained downscaling ({error}); train it first") from error
        settings = DownscaleSettings.model_validate_json(about["settings"])
        if about["identity"] != identity_of(world, settings):
            raise UsageError(f"{path} was trained on another world than {world.folder}; train it on this one")
        refiner = _refiner(world, settings)
        refiner.load_state_dict(tensors)
        return cls(refiner.eval(), SeasonalDetail(world, normals), *_ground(world))


def train_downscaling(
    world: World, normals: Normals, settings: DownscaleSettings, folder: Path, progress: Progress
) -> None:
    """The trained downscaling is in `folder` for `Downscaling.load`; a stopped run goes on, a finished one stays.

    `folder`/phase-1 holds state, log and curves. Raises the errors of `run_loop` and of the samples; UsageError
    where the folder holds a downscaling of other settings or another world.
    """
    path, identity = folder / WEIGHTS, identity_of(world, settings)
    if is_made(path, _identity_in(path), identity):
        progress.note(f"{path} is trained already")
        return
    task = DownscaleTask(world, normals, settings)
    run_loop(task, settings.train, folder / "phase-1", progress)
    if Ranks.join(settings.train.device).leads:
        about = {"settings": settings.model_dump_json(), "identity": identity}
        with writing(path):
            replace_file(path, save(task.refiner.cpu().state_dict(), about))


class DownscaleTask(Task):
    """From coarse to fine analyses of the same time."""

    def __init__(self, world: World, normals: Normals, settings: DownscaleSettings) -> None:
        self._world, self._settings = world, settings
        self.model = self.refiner = _refiner(world, settings)
        detail = SeasonalDetail(world, normals)
        self._train, self._validation = (Pairs(world, split, detail) for split in ("train", "validation"))
        self._weights = LossWeights.of(
            world.channels, world.statistics, NetworkGrid(world.scale), settings.loss
        )

    def loss(self, numbers: range) -> Float[Tensor, ""]:
        windows, stream = self._train.windows, (self._settings.seed,)
        chosen = [windows[draw(number, count=len(windows), stream=stream)] for number in numbers]
        device = self.refiner.place.device
        coarse, missing = (t.to(device) for t in self._train.batch(chosen))
        return weighted_mse(self.refiner(coarse), missing, self._weights.to(device))

    def validate(self) -> dict[str, float]:
        """Area-weighted RMSE in physical units, and beside it that of interpolation and detail alone."""
        windows = evenly_spaced(self._validation.windows, self._settings.validation_states)
        coarse, missing = self._validation.batch(windows)
        added = self.refiner(coarse.to(self.refiner.place.device)).float().cpu()
        refined, plain = self._rmse(added - missing), self._rmse(missing)
        return refined | {f"{name} detail alone": value for name, value in plain.items()}

    def describe(self) -> dict[str, Any]:
        settings = self._settings.model_dump(mode="json", exclude={"train"})
        return settings | {"world": describe_world(self._world)}

    def _rmse(self, errors: Float32[Tensor, "batch channel row column"]) -> dict[str, float]:
        squares = scored_squares(errors, self._world, NetworkGrid(self._world.scale))
        return dict(zip(SCORED, squares.sqrt().tolist()))


class Pairs:
    """Coarse and fine states of the same times of one split."""

    def __init__(self, world: World, split: str, detail: SeasonalDetail) -> None:
        self._coarse = CoarseSamples(world, split, in_memory=0)
        self._interpolated = InterpolatedSamples(world, split, Interpolation(world.scale, world.channels))
        self._fine, self._detail = FineSamples(world, split, in_memory=0), detail
        self.windows = self._fine.windows(1)

    def batch(
        self, windows: Sequence[Window]
    ) -> tuple[Float32[Tensor, "batch channel lat lon"], Float32[Tensor, "batch channel row column"]]:
        """Coarse states, and what interpolation and detail lack of the fine ones; all normalised."""
        coarse = np.stack([self._coarse.state(*window) for window in windows])
        missing = np.stack([self._missing(window) for window in windows])
        return torch.from_numpy(coarse), torch.from_numpy(missing)

    def _missing(self, window: Window) -> Float32[np.ndarray, "channel row column"]:
        detail = self._detail.at(self._fine.valid_time(*window))
        return self._fine.state(*window) - self._interpolated.state(*window) - detail


def _identity_in(path: Path) -> str | None:
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        return str(file.metadata()["identity"])


def _refiner(world: World, settings: DownscaleSettings) -> Refiner:
    shape, seed = NetworkGrid(world.scale).backbone.shape, settings.seed
    return Refiner(len(world.channels), shape, width=settings.width, blocks=settings.blocks, seed=seed)


def _ground(world: World) -> tuple[Interpolation, Normalisation]:
    return Interpolation(world.scale, world.channels), world.statistics.normalisation
