"""Checkpoints: a folder of `model.toml` and `*.safetensors`, hashed, and loaded strictly or not at all.

No pickle, no code from data. Every defect is a UsageError that names the folder, the file or the tensor.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fengwu_ghr.backbone import Architecture
from fengwu_ghr.durable import flush_tree
from fengwu_ghr.errors import OutputError, UsageError
from fengwu_ghr.grid import NetworkGrid
from fengwu_ghr.model_card import CARD, ModelCard, OnnxPackage, listed, read_card, write_card
from fengwu_ghr.normalise import Normalisation
from fengwu_ghr.transfer import TransferModel
from fengwu_ghr.variables import ChannelSet, channel_set

_WEIGHT_TYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Checkpoint:
    """A folder whose card is valid and whose weight files are exactly those the card lists, bit for bit."""

    folder: Path
    card: ModelCard

    @classmethod
    def open(cls, folder: Path) -> "Checkpoint":
        """Reads the card and checks every file against its sum; raises UsageError on the first defect."""
        card = read_card(folder)
        check_files(folder, card.files)
        return cls(folder, card)

    @property
    def architecture(self) -> Architecture:
        """Of the network whose weights these are. Raises UsageError for an ONNX package, which has none of ours."""
        if self.card.architecture is None:
            raise UsageError(
                f"{self.folder} is an ONNX package: it makes forecasts, but cannot be trained or exported"
            )
        return self.card.architecture

    @property
    def onnx(self) -> OnnxPackage | None:
        """The graphs that make a step, where the model is made of such."""
        return self.card.onnx

    @property
    def history(self) -> int:
        """How many states, one step apart, a forecast starts from."""
        return (self.onnx or self.architecture).history

    @property
    def step(self) -> timedelta:
        return timedelta(hours=self.card.step_hours)

    @property
    def channels(self) -> ChannelSet:
        return channel_set(self.card.channel_set)

    @property
    def grid(self) -> NetworkGrid:
        return NetworkGrid((self.onnx or self.architecture).scale, self.card.registration)

    @cached_property
    def normalisation(self) -> Normalisation:
        return self.card.statistics.normalisation(self.channels)

    @cached_property
    def digest(self) -> str:
        """sha256 of the card, which holds the sums of all weights: the identity of the model."""
        return hash_of(self.folder / CARD)

    def facts(self) -> dict[str, str | int | bool]:
        """What a table about this model shows."""
        card = self.card
        provenance = {f"provenance: {key}": value for key, value in card.provenance.items()}
        return {
            "name": card.name,
            "description": card.description,
            "trained": card.trained,
            "licence": card.licence,
            "channels": f"{card.channel_set} ({len(self.channels)})",
            "grid": f"{self.grid.name} {self.grid.shape[0]} x {self.grid.shape[1]}, {card.registration}",
            "a step": f"{card.step_hours} h, from {self.history} state(s)",
            **(_facts_of_graphs(card.onnx) if card.onnx else _facts_of_weights(self.architecture)),
            "sha256": self.digest,
            **provenance,
        }


def _facts_of_weights(a: Architecture) -> dict[str, str | int]:
    sets = f"rank {a.lora_rank}, {a.lora_steps} set(s) of {a.lora_group} lead step(s)"
    return {
        "architecture": f"{a.name}: width {a.width}, {a.depth} blocks, {len(a.res_after)} RES, {a.heads} heads",
        "parameters": sum(tensor.numel() for tensor in _outline(a).parameters()),
        "predicts": a.predicts,
        "split": f"{a.split} level",
        "forcings": ", ".join(a.forcings) or "none",
        "joint": "global blocks see one of the nine each"
        if a.joint == "none"
        else f"global blocks: {a.joint}",
        "sharing": f"over {a.sharing} points to every side" if a.sharing else "none",
        "diffusion": "of departures from the mean" if a.diffusion else "none",
        "adapters": sets if a.lora_steps else "none",
    }


def _facts_of_graphs(package: OnnxPackage) -> dict[str, str | int]:
    size = sum(graph.bytes for graph in package.graphs)
    return {
        "graphs": f"{len(package.graphs)}, {size / 1e9:.3g} GB, {package.precision}",
        "predicts": package.predicts,
        "operations": f"{sum(graph.flops for graph in package.graphs) / 1e9:.3g} GFLOP a step",
    }


def load_model(
    checkpoint: Checkpoint, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> TransferModel:
    """The model with these weights, on this device, in this precision.

    The files are mapped into memory and nothing is initialised first: the peak is the weights themselves.
    Raises UsageError naming tensors that are missing, extra or misshapen.
    """
    check_tensors(checkpoint)
    model = _outline(checkpoint.architecture)
    # A mean that is rounded would be pulled at in every step.
    weights = {
        name: tensor.to(device, torch.float32 if part_of(name) == "diffusion" else dtype)
        for name, tensor in tensors_in(_files_of(checkpoint))
    }
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval()


def check_tensors(checkpoint: Checkpoint) -> None:
    """Raises UsageError unless the files hold exactly the tensors of the architecture; reads only their headers."""
    outline = _outline(checkpoint.architecture).state_dict()
    wanted = {name: tuple(tensor.shape) for name, tensor in outline.items()}
    check_same_tensors(
        checkpoint.folder, checkpoint.architecture.name, wanted, headers(_files_of(checkpoint))
    )


def check_same_tensors(
    folder: Path,
    architecture: str,
    wanted: Mapping[str, tuple[int, ...]],
    there: Iterable[tuple[str, tuple[int, ...], str]],
) -> None:
    """Raises UsageError unless what is `there` (name, shape, type) is exactly what an architecture has."""
    found: dict[str, tuple[int, ...]] = {}
    problems = []
    for name, shape, kind in there:
        if name in found:
            problems.append(f"{name} twice")
        if kind not in _WEIGHT_TYPES:
            problems.append(f"{name} of type {kind}, not one of {', '.join(_WEIGHT_TYPES)}")
        found[name] = shape
    problems += [f"{name} missing" for name in wanted if name not in found]
    problems += [f"{name} extra" for name in found if name not in wanted]
    for name, shape in wanted.items():
        if found.get(name, shape) != shape:
            problems.append(f"{name} of shape {found[name]}, not {shape}")
    if problems:
        raise UsageError(
            f"the weights in {folder} are not those of its architecture {architecture}: {listed(problems)}"
        )


def save(folder: Path, model: TransferModel, *, card: ModelCard) -> Checkpoint:
    """The model in a new folder, whole or not at all; the card's list of files is filled in.

    Backbone, RES blocks and adapters go to files of their own: the adapters change, the backbone stays. Raises
    OutputError where the folder exists or cannot be written, ValueError where card and model differ.
    """
    if card.architecture != model.architecture:
        raise ValueError(
            f"the card is of {card.architecture}, the model of {model.architecture}: give its own"
        )
    put_folder(folder, lambda made: _write(made, model, card))
    return Checkpoint.open(folder)


def check_absent(folder: Path) -> None:
    """Raises OutputError where a file or folder has this name already."""
    if folder.exists():
        raise OutputError(f"{folder} exists already; choose another folder or remove it")


def put_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """What `write` makes of a new folder stands there durably, whole or not at all; raises OutputError."""
    check_absent(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            made = Path(temporary, folder.name)
            made.mkdir()
            write(made)
            flush_tree(made)
            made.rename(folder)
    except OSError as error:
        raise OutputError(
            f"{folder} could not be written: {error}; see to the disk or choose another"
        ) from error


def verify(checkpoint: Checkpoint) -> None:
    """Raises UsageError unless the weights are those of the architecture and every number is finite.

    The sums of an ONNX package's files, checked when it was opened, are all that is looked at.
    """
    if checkpoint.onnx:
        return
    check_tensors(checkpoint)
    broken = [name for name, tensor in tensors_in(_files_of(checkpoint)) if not bool(tensor.isfinite().all())]
    if broken:
        raise UsageError(f"weights in {checkpoint.folder} are not finite: {listed(broken)}")


def _outline(architecture: Architecture) -> TransferModel:
    """The network without numbers: shapes only."""
    with torch.device("meta"):
        return TransferModel(architecture)


def part_of(name: str) -> str:
    """The part of the model that a tensor belongs to: backbone, res, adapters ...; its file is named so."""
    return "adapters" if ".lora_" in name else name.split(".")[0]


def _write(folder: Path, model: TransferModel, card: ModelCard) -> None:
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        parts.setdefault(f"{part_of(name)}.safetensors", {})[name] = tensor.detach().contiguous()
    for file, tensors in parts.items():
        save_file(tensors, folder / file)
        # safetensors writes files that only their owner may read.
        (folder / file).chmod(0o644)
    files = {file: hash_of(folder / file) for file in sorted(parts)}
    write_card(folder, card.model_copy(update={"files": files}))


def check_files(folder: Path, files: Mapping[str, str]) -> None:
    """Raises UsageError unless the weight files of the folder are exactly these, by name and sha256."""
    if not files:
        raise UsageError(f"{folder / CARD} lists no weight files; a model has at least one")
    unlisted = sorted({path.name for path in folder.glob("*.safetensors")} - set(files))
    if unlisted:
        raise UsageError(f"{folder} holds weight files that {CARD} does not list: {', '.join(unlisted)}")
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise UsageError(f"{folder} lacks {name}, which {CARD} lists")
        if path.resolve().parent != folder.resolve():
            raise UsageError(f"{path} leads out of its folder, to {path.resolve()}; copy the file itself")
        if (found := hash_of(path)) != expected:
            raise UsageError(f"{path} is not the file that was saved: sha256 {found}, {CARD} says {expected}")


def headers(files: Iterable[Path]) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape and type of every tensor of safetensors files. Raises UsageError where one is none."""
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a dict)
                    part = tensors.get_slice(name)
                    yield name, tuple(part.get_shape()), part.get_dtype()
        except SafetensorError as error:
            raise UsageError(f"{file} is not a safetensors file: {error}") from error


def tensors_in(files: Iterable[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of safetensors files, mapped into memory."""
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                yield name, tensors.get_tensor(name)


def _files_of(checkpoint: Checkpoint) -> list[Path]:
    return [checkpoint.folder / file for file in checkpoint.card.files]


def hash_of(path: Path) -> str:
    """sha256 of a file."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
