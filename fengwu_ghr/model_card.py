"""The card of a model: `model.toml`, read strictly and written so that it reads back the same.

Everything a forecast must know about its weights stands here: what the numbers mean (channels, grid, registration,
statistics of the training world), where they come from, what they may be used for. Every defect is a UsageError
that names the file and the key.
"""

import json
import math
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fengwu_ghr.backbone import Architecture
from fengwu_ghr.errors import UsageError
from fengwu_ghr.normalise import Normalisation
from fengwu_ghr.variables import ChannelSet, channel_set

CARD = "model.toml"
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAMED_AT_MOST = 12


class Strict(BaseModel):
    """Unknown keys are errors, and so are values of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Statistics(Strict):
    """Mean and std by channel name, in registry units."""

    mean: dict[str, float]
    std: dict[str, float]

    @classmethod
    def of(cls, channels: ChannelSet, normalisation: Normalisation) -> "Statistics":
        named = [dict(zip(channels.names, map(float, v))) for v in (normalisation.mean, normalisation.std)]
        return cls(mean=named[0], std=named[1])

    def normalisation(self, channels: ChannelSet) -> Normalisation:
        """In the order of these channels; raises ValueError when they are not exactly those."""
        for kind, values in (("mean", self.mean), ("std", self.std)):
            if set(values) != set(channels.names):
                odd = sorted(set(values) ^ set(channels.names))
                raise ValueError(
                    f"statistics.{kind} must name the channels of {channels.name}; differing: {', '.join(odd)}"
                )
        mean, std = (np.array([v[n] for n in channels.names], np.float32) for v in (self.mean, self.std))
        return Normalisation(mean, std)


class Graph(Strict):
    """One ONNX file of a package: what it takes to load and to run it, as it was found when the card was written."""

    file: str
    bytes: int = Field(gt=0)
    """Of the file and of the tensors it keeps in files of their own."""
    working_bytes: int = Field(ge=0)
    """Of what it holds at its peak beside its weights, in its own precision; 0 where shapes did not tell."""
    flops: int = Field(ge=0)
    """Of one run; 0 where shapes did not tell."""


class OnnxPackage(Strict):
    """`[onnx]`: graphs that together make a step, in the order in which they run, each fed what the one before gave.

    The first takes `history` normalised states on the channel axis, the oldest first, and where it wants one the
    lead step; the last gives the next state, or its tendency, in its first channels.
    """

    graphs: tuple[Graph, ...] = Field(min_length=1)
    scale: int
    precision: Literal["float16", "float32"]
    history: Literal[1, 2] = 1
    predicts: Literal["state", "tendency"] = "state"


class ModelCard(Strict):
    """What `model.toml` says, one field per key. `files` maps each weight file to its sha256.

    A model is weights of ours for an `architecture`, or an `onnx` package.
    """

    format: Literal[1] = 1
    name: str = Field(min_length=1)
    description: str
    trained: bool
    licence: str
    channel_set: str
    registration: Literal["nested", "pixel", "backbone"] = "nested"
    step_hours: int = Field(default=6, gt=0)
    architecture: Architecture | None = None
    onnx: OnnxPackage | None = None
    statistics: Statistics
    provenance: dict[str, str] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_together(self) -> "ModelCard":
        channels = channel_set(self.channel_set)
        self.statistics.normalisation(channels)
        if (self.architecture is None) == (self.onnx is None):
            raise ValueError("a model has an [architecture] or an [onnx] package, one of the two")
        if self.architecture:
            self._fits_architecture(self.architecture, channels)
        if self.onnx:
            self._fits_package(self.onnx)
        self._steps_end_accumulations(channels)
        for name, digest in self.files.items():
            suits = self.onnx is not None or name.endswith(".safetensors")
            if not suits or not _FILE_NAME.fullmatch(name) or not _SHA256.fullmatch(digest):
                raise ValueError(
                    f"files maps plain *.safetensors names (of an ONNX package any plain names) to sha256 sums; "
                    f"got {name!r} = {digest!r}"
                )
        return self

    def _fits_architecture(self, architecture: Architecture, channels: ChannelSet) -> None:
        if len(channels) != architecture.channels:
            raise ValueError(
                f"{self.channel_set} has {len(channels)} channels, the architecture {architecture.channels}"
            )
        if self.registration == "backbone":
            raise ValueError("weights of ours work on nine sub-fields: registration is nested or pixel")
        if architecture.split == "token" and self.registration != "nested":
            raise ValueError(
                "the token-level split works on pole-to-pole rows: its registration must be nested"
            )

    def _fits_package(self, package: OnnxPackage) -> None:
        absent = [graph.file for graph in package.graphs if graph.file not in self.files]
        if absent and self.files:
            raise ValueError(f"files must list every graph of the package; it lacks {', '.join(absent)}")

    def _steps_end_accumulations(self, channels: ChannelSet) -> None:
        """A state accumulates over whole steps; otherwise its leads would end within what is accumulated."""
        for channel in channels.channels:
            what = channel.definition
            if what.is_accumulated and self.step_hours % what.period_hours:
                raise ValueError(
                    f"step_hours must be a multiple of the {what.period_hours} hours over which {what.name} "
                    f"is accumulated; got {self.step_hours}"
                )


Card = TypeVar("Card", bound=Strict)


def read_card(folder: Path) -> ModelCard:
    """The card of this folder, valid; weight files are not looked at."""
    return read_card_of(ModelCard, folder)


def read_card_of(kind: type[Card], folder: Path) -> Card:
    """The same of another kind of model."""
    path = folder / CARD
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        # By way of JSON, whose strict mode takes arrays for tuples and nothing else for anything else.
        return kind.model_validate_json(json.dumps(content, default=str))
    except FileNotFoundError:
        raise UsageError(f"a model is a folder with a {CARD}; {folder} has none") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        raise UsageError(f"{path} is not a valid model card: {explain(error)}") from error


def write_card(folder: Path, card: Strict) -> None:
    """The card stands in this folder, as TOML."""
    (folder / CARD).write_text(to_toml(card.model_dump()), encoding="utf-8")


def to_toml(content: dict[str, Any]) -> str:
    """TOML text of nested tables, arrays of tables, strings, numbers, booleans and arrays; None is left out.

    `tomllib` reads back the same.
    """
    return "\n".join(_toml_lines(content, ())) + "\n"


def listed(problems: list[str]) -> str:
    """For messages: the first dozen, and how many more."""
    more = len(problems) - _NAMED_AT_MOST
    return "; ".join(problems[:_NAMED_AT_MOST]) + (f"; and {more} more" if more > 0 else "")


def explain(error: ValidationError) -> str:
    """For messages: each key and what is wrong with it."""
    problems = []
    for item in error.errors(include_url=False):
        where = ".".join(map(str, item["loc"]))
        problems.append(f"{where}: {item['msg']}" if where else item["msg"])
    return listed(problems)


def _toml_lines(content: dict[str, Any], path: tuple[str, ...], *, each: bool = False) -> Iterator[str]:
    tables = {key: value for key, value in content.items() if isinstance(value, dict)}
    arrays = {key: value for key, value in content.items() if _is_array_of_tables(value)}
    if path:
        name = ".".join(map(_toml_key, path))
        yield f"\n[[{name}]]" if each else f"\n[{name}]"
    for key, value in content.items():
        if value is not None and key not in tables and key not in arrays:
            yield f"{_toml_key(key)} = {_toml_value(value)}"
    for key, table in tables.items():
        yield from _toml_lines(table, (*path, key))
    for key, rows in arrays.items():
        for row in rows:
            yield from _toml_lines(row, (*path, key), each=True)


def _is_array_of_tables(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(row, dict) for row in value)


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return repr(value) if math.isfinite(value) else str(value)
        case str():
            # JSON's escapes are TOML's, but for DEL, which TOML wants escaped too.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case Iterable():
            return f"[{', '.join(map(_toml_value, value))}]"
    raise ValueError(f"TOML cannot hold {value!r} of type {type(value).__name__}")
