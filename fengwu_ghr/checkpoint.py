"""Checkpoints: a folder of `model.toml` and `*.safetensors`, hashed, and loaded strictly or not at all.

No pickle, no code from data. Everything a forecast must know about its weights stands in `model.toml`: what the
numbers mean (channels, grid, registration, statistics of the training world), where they come from, what they may
be used for. Every defect is a UsageError that names the folder, the file or the tensor, and what to do.
"""

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fengwu_ghr.backbone import Architecture
from fengwu_ghr.errors import OutputError, UsageError
from fengwu_ghr.grid import NetworkGrid
from fengwu_ghr.normalise import Normalisation
from fengwu_ghr.transfer import TransferModel
from fengwu_ghr.variables import ChannelSet, channel_set

CARD = "model.toml"
FORMAT = 1
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_WEIGHT_TYPES = ("F32", "F16", "BF16")
_NAMED_AT_MOST = 12


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Statistics(_Strict):
    """Mean and std by channel name, in registry units."""

    mean: dict[str, float]
    std: dict[str, float]

    @classmethod
    def of(cls, channels: ChannelSet, normalisation: Normalisation) -> Self:
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


class ModelCard(_Strict):
    """What `model.toml` says, one field per key. `files` maps each weight file to its sha256."""

    format: Literal[1] = 1
    name: str = Field(min_length=1)
    description: str
    trained: bool
    licence: str
    channel_set: str
    registration: Literal["nested", "pixel"] = "nested"
    step_hours: int = Field(default=6, gt=0)
    architecture: Architecture
    statistics: Statistics
    provenance: dict[str, str] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        channels = channel_set(self.channel_set)
        self.statistics.normalisation(channels)
        if len(channels) != self.architecture.channels:
            raise ValueError(
                f"{self.channel_set} has {len(channels)} channels, the architecture {self.architecture.channels}"
            )
        if self.architecture.split == "token" and self.registration != "nested":
            raise ValueError(
                "the token-level split works on pole-to-pole rows: its registration must be nested"
            )
        for name, digest in self.files.items():
            if not _FILE_NAME.fullmatch(name) or not _SHA256.fullmatch(digest):
                raise ValueError(
                    f"files maps plain *.safetensors names to sha256 sums; got {name!r} = {digest!r}"
                )
        return self


@dataclass(frozen=True)
class Checkpoint:
    """A folder whose card is valid and whose files are exactly those the card lists, bit for bit."""

    folder: Path
    card: ModelCard

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Reads the card and checks every file against its sum; raises UsageError on the first defect."""
        card = read_card(folder)
        _check_files(folder, card)
        return cls(folder, card)

    @property
    def architecture(self) -> Architecture:
        return self.card.architecture

    @property
    def history(self) -> int:
        """How many states, one step apart, a forecast starts from."""
        return self.card.architecture.history

    @property
    def step(self) -> timedelta:
        return timedelta(hours=self.card.step_hours)

    @property
    def channels(self) -> ChannelSet:
        return channel_set(self.card.channel_set)

    @property
    def grid(self) -> NetworkGrid:
        return NetworkGrid(self.card.architecture.scale, self.card.registration)

    @cached_property
    def normalisation(self) -> Normalisation:
        return self.card.statistics.normalisation(self.channels)

    @cached_property
    def digest(self) -> str:
        """sha256 of the card, which holds the sums of all weights: the identity of the model."""
        return hashlib.sha256((self.folder / CARD).read_bytes()).hexdigest()


def read_card(folder: Path) -> ModelCard:
    """The card of this folder, valid; weight files are not looked at."""
    path = folder / CARD
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        # By way of JSON, whose strict mode takes arrays for tuples and nothing else for anything else.
        return ModelCard.model_validate_json(json.dumps(content, default=str))
    except FileNotFoundError:
        raise UsageError(f"a model is a folder with a {CARD}; {folder} has none") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        raise UsageError(f"{path} is not a valid model card: {_explain(error)}") from error


def load_model(
    checkpoint: Checkpoint, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> TransferModel:
    """The model with these weights, on this device, in this precision.

    The files are mapped into memory and nothing is initialised first, so that the peak is the weights themselves.
    Raises UsageError naming tensors that are missing, extra or misshapen.
    """
    with torch.device("meta"):
        model = TransferModel(checkpoint.architecture)
    check_tensors(checkpoint)
    weights = {name: tensor.to(device, dtype) for name, tensor in _tensors(checkpoint)}
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval()


def check_tensors(checkpoint: Checkpoint) -> None:
    """Raises UsageError unless the files hold exactly the tensors of the architecture; reads only their headers."""
    with torch.device("meta"):
        model = TransferModel(checkpoint.architecture)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found: dict[str, tuple[int, ...]] = {}
    problems = []
    for name, shape, kind in _headers(checkpoint):
        if name in found:
            problems.append(f"{name} twice")
        if kind not in _WEIGHT_TYPES:
            problems.append(f"{name} of type {kind}, not one of {', '.join(_WEIGHT_TYPES)}")
        found[name] = shape
    problems += [f"{name} missing" for name in wanted if name not in found]
    problems += [f"{name} extra" for name in found if name not in wanted]
    problems += [
        f"{name} of shape {found[name]}, not {shape}"
        for name, shape in wanted.items()
        if found.get(name, shape) != shape
    ]
    if problems:
        raise UsageError(
            f"the weights in {checkpoint.folder} are not those of its architecture "
            f"{checkpoint.architecture.name}: {_listed(problems)}"
        )


def save(folder: Path, model: TransferModel, *, card: ModelCard) -> Checkpoint:
    """The model in a new folder, whole or not at all; the card's list of files is filled in.

    Backbone, RES blocks and adapters go to files of their own: the adapters change, the backbone stays. Raises
    OutputError where the folder exists or cannot be written, ValueError where card and model differ.
    """
    if card.architecture != model.architecture:
        raise ValueError(
            f"the card describes {card.architecture}, the model is a {model.architecture}: give it its own card"
        )
    if folder.exists():
        raise OutputError(f"{folder} exists already; choose another folder or remove it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise OutputError(f"a model cannot be written beside {folder}: {error}") from error
    try:
        _write(temporary, model, card)
        temporary.rename(folder)
    except OSError as error:
        raise OutputError(f"{folder} could not be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Checkpoint.open(folder)


def to_toml(content: dict) -> str:
    """TOML text of nested tables with strings, numbers, booleans and arrays; `tomllib` reads back the same."""
    return "\n".join(_toml_lines(content, ())) + "\n"


def _write(folder: Path, model: TransferModel, card: ModelCard) -> None:
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        part = "adapters" if ".lora_" in name else name.split(".")[0]
        parts.setdefault(f"{part}.safetensors", {})[name] = tensor.detach().contiguous()
    for file, tensors in parts.items():
        save_file(tensors, folder / file)
    files = {file: _sha256(folder / file) for file in sorted(parts)}
    text = to_toml(card.model_copy(update={"files": files}).model_dump())
    (folder / CARD).write_text(text, encoding="utf-8")
    for file in (CARD, *files):
        (folder / file).chmod(0o644)
        with open(folder / file, "rb") as handle:
            os.fsync(handle.fileno())
    folder.chmod(0o755)


def _check_files(folder: Path, card: ModelCard) -> None:
    if not card.files:
        raise UsageError(f"{folder / CARD} lists no weight files; a model has at least one")
    unlisted = sorted({path.name for path in folder.glob("*.safetensors")} - set(card.files))
    if unlisted:
        raise UsageError(f"{folder} holds weight files that {CARD} does not list: {', '.join(unlisted)}")
    for name, expected in card.files.items():
        path = folder / name
        if not path.is_file():
            raise UsageError(f"{folder} lacks {name}, which {CARD} lists")
        if path.resolve().parent != folder.resolve():
            raise UsageError(f"{path} leads out of its folder, to {path.resolve()}; copy the file itself")
        if (found := _sha256(path)) != expected:
            raise UsageError(f"{path} is not the file that was saved: sha256 {found}, {CARD} says {expected}")


def _headers(checkpoint: Checkpoint) -> Iterator[tuple[str, tuple[int, ...], str]]:
    for file in checkpoint.card.files:
        try:
            with safe_open(checkpoint.folder / file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a dict)
                    part = tensors.get_slice(name)
                    yield name, tuple(part.get_shape()), part.get_dtype()
        except SafetensorError as error:
            raise UsageError(f"{checkpoint.folder / file} is not a safetensors file: {error}") from error


def _tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    for file in checkpoint.card.files:
        with safe_open(checkpoint.folder / file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                yield name, tensors.get_tensor(name)


def _sha256(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _explain(error: ValidationError) -> str:
    problems = []
    for item in error.errors(include_url=False):
        where = ".".join(map(str, item["loc"]))
        problems.append(f"{where}: {item['msg']}" if where else item["msg"])
    return _listed(problems)


def _listed(problems: list[str]) -> str:
    more = len(problems) - _NAMED_AT_MOST
    return "; ".join(problems[:_NAMED_AT_MOST]) + (f"; and {more} more" if more > 0 else "")


def _toml_lines(content: dict, path: tuple[str, ...]) -> Iterator[str]:
    tables = {key: value for key, value in content.items() if isinstance(value, dict)}
    if path:
        yield f"\n[{'.'.join(map(_toml_key, path))}]"
    for key, value in content.items():
        if key not in tables:
            yield f"{_toml_key(key)} = {_toml_value(value)}"
    for key, table in tables.items():
        yield from _toml_lines(table, (*path, key))


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
