"""Forecasts to be compared: ours, and the baselines that they must beat. Each makes fine states of a test date.

The letters are those of the table: (a) persistence, (b) climatology, (c) the interpolated backbone, (c1) with the
climatological fine detail, (c9) the smoothed mean of the nine sub-field forecasts, (c-cnn) a network's downscaling of
(c), (d) the split without training, (e) the numerical baseline; then the transferred models and the twin.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import cached_property, lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from fengwu_ghr.checkpoint import Checkpoint, load_model
from fengwu_ghr.engine.torch_engine import Compute, TorchStepper
from fengwu_ghr.grid import NetworkGrid
from fengwu_ghr.regrid import NetworkMap, Regridder
from fengwu_ghr.remap import keep_to_bounds, remap_state
from fengwu_ghr.rollout import Start, rollout
from fengwu_ghr.training.dataset import FineSamples
from fengwu_ghr.training.downscale import Downscaling
from fengwu_ghr.training.forcings import coarse_forcings
from fengwu_ghr.training.normals import FineDetail, Normals
from fengwu_ghr.training.reference import ReferenceForecasts
from fengwu_ghr.training.world import STEP, Series, World

Fine = Float32[np.ndarray, "channel lat lon"]


@dataclass(frozen=True)
class InitialDate:
    """An initial time: its split and series in the world, and which state of it."""

    split: str
    series: int
    index: int


class Source(ABC):
    """Makes forecasts of a world; `step` n is lead time 6 n hours."""

    def __init__(self, world: World) -> None:
        self.world = world

    @abstractmethod
    def states(self, date: InitialDate, steps: int) -> Iterator[Fine]:
        """The fine states of steps 1 ... `steps`, in registry units on the product grid."""

    def analysis(self, date: InitialDate) -> Fine:
        return self.series(date).fine(date.index)

    def series(self, date: InitialDate) -> Series:
        """The series of the world that the date lies in."""
        return self._series_of(date.split)[date.series]

    @lru_cache  # noqa: B019  # lives as long as its source; listing a world's files takes longer than a score
    def _series_of(self, split: str) -> tuple[Series, ...]:
        return self.world.series(split)

    def bounded(self, state: Fine) -> Fine:
        """The state itself, kept to the bounds of its variables, as every product is."""
        return keep_to_bounds(state, self.world.channels.channels)

    def valid_time(self, date: InitialDate, step: int) -> datetime:
        return self.series(date).times[date.index] + STEP * step


class Persistence(Source):
    def states(self, date: InitialDate, steps: int) -> Iterator[Fine]:
        analysis = np.array(self.analysis(date))
        return (analysis for _ in range(steps))


class ClimatologyForecast(Source):
    def __init__(self, world: World, normals: Normals) -> None:
        super().__init__(world)
        self._normals = normals

    def states(self, date: InitialDate, steps: int) -> Iterator[Fine]:
        return (self._normals.fine.at(self.valid_time(date, step)) for step in range(1, steps + 1))


class CoarseForecast(Source):
    """The backbone on its own grid, from area means. How it comes to the fine grid is up to who is derived."""

    def __init__(self, world: World, checkpoint: Path) -> None:
        super().__init__(world)
        self._checkpoint = Checkpoint.open(checkpoint)
        self._to_fine = Regridder(world.coarse_grid, world.fine_grid)

    @cached_property
    def _backbone(self) -> torch.nn.Module:
        return load_model(self._checkpoint).backbone.eval()

    def coarse_states(
        self, date: InitialDate, steps: int
    ) -> Iterator[Float32[np.ndarray, "channel row column"]]:
        """The backbone's forecast in registry units."""
        normalisation = self._checkpoint.normalisation
        coarse = self.series(date).coarse(date.index)
        state = torch.from_numpy(normalisation.normalise(np.ascontiguousarray(coarse)))[None]
        told = coarse_forcings(self.world, self._checkpoint.architecture.forcings)
        for step in range(steps):
            forcing = told and told.at([self.valid_time(date, step)])
            with torch.inference_mode():
                state = self._backbone(state, forcing=forcing)
            yield normalisation.denormalise(state[0].numpy())

    def states(self, date: InitialDate, steps: int) -> Iterator[Fine]:
        for coarse in self.coarse_states(date, steps):
            yield remap_state(coarse, self.world.channels.channels, self._to_fine.apply)


class DetailedForecast(CoarseForecast):
    """(c1): the interpolated backbone and the climatological fine detail of the season."""

    def __init__(self, world: World, checkpoint: Path, normals: Normals) -> None:
        super().__init__(world, checkpoint)
        self._detail = FineDetail(normals, world.channels)

    def states(self, date: InitialDate, steps: int) -> Iterator[Fine]:
        for step, state in enumerate(super().states(date, steps), start=1):
            yield self.bounded(state + self._detail.at(self.valid_time(date, step)))


class DownscaledForecast(CoarseForecast):
    """(c-cnn): the backbone's forecast, downscaled by a network that was trained on analyses."""

    def __init__(self, world: World, checkpoint: Path, downscaling: Downscaling) -> None:
        super().__init__(world, checkpoint)
        self._downscaling = downscaling

    def states(self, date: InitialDate, steps: int) -> Iterator[Fine]:
        for step, coarse in enumerate(self.coarse_states(date, steps), start=1):
            yield self._downscaling.apply(coarse, self.valid_time(date, step))


class TransferredForecast(Source):
    """A checkpoint on the network grid, through the engine that forecasts use: (d), and the trained transfers."""

    def __init__(self, world: World, checkpoint: Path, *, precision: str = "float32") -> None:
        super().__init__(world)
        self._precision = precision
        self._checkpoint = Checkpoint.open(checkpoint)
        self._map = NetworkMap(NetworkGrid(world.scale))
        self._analyses: dict[str, FineSamples] = {}

    @cached_property
    def _stepper(self) -> TorchStepper:
        compute = Compute(precision=self._precision, threads=torch.get_num_threads(), batch=9)
        return TorchStepper(self._checkpoint, compute)

    def network_states(
        self, date: InitialDate, steps: int
    ) -> Iterator[Float32[np.ndarray, "channel row column"]]:
        """The states on the network grid, in registry units."""
        samples = self._analyses.setdefault(date.split, FineSamples(self.world, date.split, in_memory=0))
        start = np.ascontiguousarray(samples.read(samples.series[date.series], date.index))
        normalisation = self._checkpoint.normalisation
        state = normalisation.normalise(start, out=start)
        for _ in rollout(self._stepper, Start(0, [state], self.valid_time(date, 0)), steps=steps):
            out = np.empty_like(state)
            self._stepper.get(out)
            yield normalisation.denormalise(out, out=out)

    def states(self, date: InitialDate, steps: int) -> Iterator[Fine]:
        return (self.product(state) for state in self.network_states(date, steps))

    def product(self, state: Float32[np.ndarray, "channel row column"]) -> Fine:
        """The state on the product grid."""
        return remap_state(state, self.world.channels.channels, self._map.to_product)


class MeanOfNine(TransferredForecast):
    """(c9): the mean of the nine sub-field forecasts, each interpolated to all points, and the fine detail.

    Sub-fields lie every third point and are interpolated by cubics between, as (c) is: their mean is the fine
    forecast under fixed weights along both axes. The detail is what the same smoothing takes from the fine normals.
    """

    def __init__(
        self, world: World, checkpoint: Path, normals: Normals, *, precision: str = "float32"
    ) -> None:
        super().__init__(world, checkpoint, precision=precision)
        self._normals = normals
        self._sign = np.array(
            [-1 if c.definition.is_vector else 1 for c in world.channels.channels], np.float32
        )

    def states(self, date: InitialDate, steps: int) -> Iterator[Fine]:
        for step, state in enumerate(self.network_states(date, steps), start=1):
            detail = self._detail(self.valid_time(date, step).date())
            yield self.bounded(self.product(self.smoothed(state)) + detail)

    def smoothed(
        self, state: Float32[np.ndarray, "channel row column"]
    ) -> Float32[np.ndarray, "channel row column"]:
        """The mean of the nine at every point, over the poles and around the circle."""
        padded, rows = self._with_rows_beyond(state), state.shape[1]
        mixed = sum(w * padded[:, _REACH + d : _REACH + d + rows] for d, w in _MEAN_OF_CUBICS.items())
        return sum(w * np.roll(mixed, -d, axis=2) for d, w in _MEAN_OF_CUBICS.items())  # type: ignore[return-value]

    def _with_rows_beyond(self, state: np.ndarray) -> np.ndarray:
        """Five rows more at each end; row 1 - i of the network grid is row 1 + i half a turn away."""
        half, turned = state.shape[2] // 2, self._sign[:, None, None]
        north = np.roll(state[:, _REACH + 2 : 2 : -1], half, axis=2) * turned
        south = np.roll(state[:, -4 : -_REACH - 4 : -1], half, axis=2) * turned
        return np.concatenate([north, state, south], axis=1)

    @lru_cache(maxsize=16)  # noqa: B019  # lives as long as its source
    def _detail(self, day: date) -> Fine:
        fine = self._normals.fine.at(datetime.combine(day, time(12)))
        to_network = partial(self._map.from_source, source=self.world.fine_grid)
        network = remap_state(fine, self.world.channels.channels, to_network)
        return fine - self.product(self.smoothed(network))


_REACH = 5
# Lagrange's cubic a third of the way between two points is -5, 60, 30, -4 over 81 of the four around; a third of each
# of the three cases: at the point itself, and a third of the way from either side.
_MEAN_OF_CUBICS = {
    d: np.float32(w / 243)
    for d, w in {0: 81, 1: 60, -1: 60, 2: 30, -2: 30, 4: -5, -4: -5, 5: -4, -5: -4}.items()
}


class NumericalForecast(Source):
    """(e), or the twin: the simulator itself; `bias` (step, channel, lat, lon) is taken off where given."""

    def __init__(self, world: World, reference: ReferenceForecasts, *, bias: Path | None = None) -> None:
        super().__init__(world)
        self._reference = reference
        self._bias = np.load(bias, mmap_mode="r", allow_pickle=False) if bias else None

    def states(self, date: InitialDate, steps: int) -> Iterator[Fine]:
        series = self.series(date)
        begun = series.times[date.index]
        for step, state in enumerate(self._reference.forecast(series.member, begun, hours=6 * steps)):
            yield state if self._bias is None else self.bounded(state - self._bias[step])
