"""What a source of forecasts is, in a few words that can be sent to another process, and how it is made of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fengwu_ghr.checkpoint import Checkpoint
from fengwu_ghr.durable import checksum_file
from fengwu_ghr.training import sources
from fengwu_ghr.training.downscale import WEIGHTS, Downscaling
from fengwu_ghr.training.normals import Normals
from fengwu_ghr.training.reference import ReferenceForecasts
from fengwu_ghr.training.world import World

TWIN_KELVIN = 0.1
"""Std of the temperature noise between the truth and its twin."""

Kind = Literal[
    "persistence",
    "climatology",
    "coarse",
    "detailed",
    "mean-of-nine",
    "downscaled",
    "transferred",
    "numerical",
    "twin",
]


@dataclass(frozen=True)
class SourceSpec:
    """A source: its name in folders, its title in tables, and what it needs by its kind.

    `checkpoint` is a model's folder, for `downscaled` the backbone's; `dates` fewer initial times than the others.
    """

    name: str
    title: str
    kind: Kind
    checkpoint: Path | None = None
    downscaling: Path | None = None
    truncation: int | None = None
    bias: Path | None = None
    dates: int | None = None
    precision: str = "float32"
    """Of the engine, where one steps on the network grid."""

    def describe(self) -> dict[str, Any]:
        """All that decides its forecasts, as JSON values: models by their digests, other files by their sums."""
        weights = self.downscaling / WEIGHTS if self.downscaling else None
        files = {"downscaling": weights, "bias": self.bias}
        return {
            "kind": self.kind,
            "truncation": self.truncation,
            "precision": self.precision,
            "checkpoint": Checkpoint.open(self.checkpoint).digest if self.checkpoint else None,
            **{name: path and checksum_file(path) for name, path in files.items()},
        }

    def make(self, world: World, normals: Normals | None) -> sources.Source:
        """The source itself. Raises ValueError where its kind needs what was not given."""
        match self.kind, self.checkpoint, normals:
            case "persistence", _, _:
                return sources.Persistence(world)
            case "climatology", _, Normals():
                return sources.ClimatologyForecast(world, normals)
            case "coarse", Path() as checkpoint, _:
                return sources.CoarseForecast(world, checkpoint)
            case "detailed", Path() as checkpoint, Normals():
                return sources.DetailedForecast(world, checkpoint, normals)
            case "mean-of-nine", Path() as checkpoint, Normals():
                return sources.MeanOfNine(world, checkpoint, normals, precision=self.precision)
            case "transferred", Path() as checkpoint, _:
                return sources.TransferredForecast(world, checkpoint, precision=self.precision)
            case "downscaled", Path() as checkpoint, Normals() if self.downscaling:
                downscaling = Downscaling.load(self.downscaling, world, normals)
                return sources.DownscaledForecast(world, checkpoint, downscaling)
            case "numerical", _, _:
                reference = ReferenceForecasts(world, truncation=self.truncation)
                return sources.NumericalForecast(world, reference, bias=self.bias)
            case "twin", _, _:
                return sources.NumericalForecast(world, ReferenceForecasts(world, kelvin=TWIN_KELVIN, seed=1))
        raise ValueError(f"the source {self.name} of kind {self.kind} lacks a checkpoint or climatology")
