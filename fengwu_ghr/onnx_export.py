"""Our checkpoints as ONNX: one graph, as FengWu is published, or a chain of them, as the GHR package is.

The chain: encoder, one graph for every block and every exchange between the nine, decoder. What one gives the next
takes, by position: tokens, the lead step, and where the decoder needs it the state. What comes out is the next state
where the model predicts states, else its tendency, which whoever runs it adds in float32.
"""

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging import ERROR, getLogger
from pathlib import Path
from typing import Literal, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from fengwu_ghr.backbone import Architecture
from fengwu_ghr.checkpoint import Checkpoint, check_absent, load_model
from fengwu_ghr.convert import costs, save_package
from fengwu_ghr.diffusion import Diffusion
from fengwu_ghr.durable import make_folder, writing
from fengwu_ghr.errors import OutputError, UsageError
from fengwu_ghr.grid import NetworkGrid
from fengwu_ghr.model_card import OnnxPackage
from fengwu_ghr.onnx_files import INSTALL, OnnxFile
from fengwu_ghr.progress import Progress
from fengwu_ghr.transfer import TransferModel, recombine, split

Packaging = Literal["single", "chain"]
Precision = Literal["float32", "float16"]
Where = Literal["network", "backbone"]
Tokens = Float[Tensor, "batch token width"]
States = Float[Tensor, "one inputs row column"]
State = Float[Tensor, "one channel row column"]
LeadStep = Int64[Tensor, ""]

_DTYPES = {"float32": torch.float32, "float16": torch.float16}


class Parts(nn.Module):
    """A model in the pieces that become graphs: on the network grid, or its backbone alone on its own."""

    def __init__(self, model: TransferModel, grid: NetworkGrid, across: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.model, self.grid = model, grid
        self.is_whole = grid.is_transferred
        self.diffusion: Diffusion | None = model.diffusion if self.is_whole else None
        self.across = across

    @property
    def architecture(self) -> Architecture:
        return self.model.architecture

    @property
    def needs_state(self) -> bool:
        """Whether what is decoded depends on the state itself."""
        return self.diffusion is not None

    def encode(self, state: States) -> Tokens:
        fields = split(state) if self.is_whole else state
        return self.model.backbone.embed(fields).flatten(1, 2)

    def layers(self) -> Iterator[nn.Module]:
        """Blocks, and after some of them the exchange, in the order in which they run."""
        exchanges = dict(zip(self.architecture.res_after, self.model.res)) if self.is_whole else {}
        for index, block in enumerate(self.model.backbone.blocks):
            yield block
            if index in exchanges:
                yield exchanges[index]

    def apply_layer(self, layer: nn.Module, tokens: Tokens, step: LeadStep) -> Tokens:
        grid = tokens.unflatten(1, self.architecture.token_shape)
        is_block = isinstance(layer, type(self.model.backbone.blocks[0]))
        return (layer(grid, step) if is_block else layer(grid)).flatten(1, 2)

    def decode(self, tokens: Tokens, step: LeadStep, state: States | None) -> State:
        decoded = self.model.backbone.decoder(tokens.unflatten(1, self.architecture.token_shape))
        if not self.is_whole:
            return decoded
        fields = recombine(decoded)
        if self.model.sharing is not None:
            fields = self.model.sharing(fields)
        if self.diffusion is None or state is None:
            return fields
        base = 0 if self.architecture.predicts == "state" else state[:, -self.architecture.channels :].float()
        smoothed = self.diffusion(self._refilled(base + fields.float()), step)
        return (self._refilled(smoothed) - base).to(fields.dtype)

    def _refilled(self, states: State) -> State:
        sign, offset = self.across
        states = states.clone()
        self.grid.refill_beyond_poles(states[0], sign=sign, offset=offset)
        return states


class Encoder(nn.Module):
    """(state, step) -> (tokens, step), and the state where the decoder needs it."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, state: States, step: LeadStep) -> tuple[Tensor, ...]:
        kept = (state.clone(),) if self.parts.needs_state else ()
        return self.parts.encode(state), step + 0, *kept


class Layer(nn.Module):
    """(tokens, step) -> (tokens, step), and the state passed on where there is one."""

    def __init__(self, parts: Parts, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self._apply_layer = parts.apply_layer

    def forward(self, tokens: Tokens, step: LeadStep, *state: States) -> tuple[Tensor, ...]:
        return self._apply_layer(self.layer, tokens, step), step + 0, *(one.clone() for one in state)


class Decoder(nn.Module):
    """(tokens, step) -> output, with the state where it is needed."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, tokens: Tokens, step: LeadStep, *state: States) -> Tensor:
        return self.parts.decode(tokens, step, state[0] if state else None)


class Whole(nn.Module):
    """input -> output: one graph for the step; it wants the lead step only where there are adapters.

    With two states in, the output is as large as the input: the first half is the prediction, the second what the
    first was made from.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, input: States, step: LeadStep | None = None) -> Tensor:
        told = torch.zeros((), dtype=torch.int64) if step is None else step
        tokens = self.parts.encode(input)
        for layer in self.parts.layers():
            tokens = self.parts.apply_layer(layer, tokens, told)
        predicted = self.parts.decode(tokens, told, input)
        channels = self.parts.architecture.channels
        return torch.cat([predicted, input[:, channels:]], dim=1)


@dataclass(frozen=True)
class _Graph:
    """A module that becomes a file, and what it is called with."""

    file: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]


def export_onnx(
    checkpoint: Checkpoint,
    output: Path,
    *,
    packaging: Packaging,
    precision: Precision = "float32",
    where: Where = "network",
    progress: Progress,
) -> Checkpoint:
    """The model as an ONNX package, a checkpoint itself, in a new folder. Raises UsageError, OutputError."""
    check_absent(output)
    with writing(output):
        make_folder(output.parent)
        folder = tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent)
    with folder as made:
        written = write_graphs(
            checkpoint, Path(made), packaging=packaging, precision=precision, where=where, progress=progress
        )
        files, grid = [OnnxFile(path) for path in written[0]], written[1]
        shape, card = checkpoint.architecture, checkpoint.card
        package = OnnxPackage(
            graphs=costs(files, shape.history * shape.channels, grid),
            scale=shape.scale,
            precision=precision,
            history=cast(Literal[1, 2], shape.history),
            predicts=shape.predicts,
        )
        changed = {
            "name": f"{card.name}-onnx",
            "architecture": None,
            "onnx": package,
            "registration": grid.registration,
            "provenance": card.provenance | {"exported from": checkpoint.digest},
        }
        return save_package(files, card.model_copy(update=changed), output)


def write_graphs(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    packaging: Packaging,
    precision: Precision = "float32",
    where: Where = "network",
    progress: Progress,
) -> tuple[list[Path], NetworkGrid]:
    """The graphs lie in this folder; returns them in the order in which they run, and the grid they work on.

    `where` is the network grid, or `backbone`: the trunk alone, without exchange, on its own grid. Raises UsageError
    for what a graph cannot hold.
    """
    shape = checkpoint.architecture
    if shape.split != "pixel" or shape.forcings or shape.joint != "none":
        joint = "joint global attention" if shape.joint != "none" else "the token-level split"
        what = "forcings" if shape.forcings else joint
        raise UsageError(f"{checkpoint.card.name} has {what}, which neither packaging has room for")
    grid = checkpoint.grid if where == "network" else NetworkGrid(shape.scale, "backbone")
    parts = _parts(checkpoint, grid, precision)
    graphs = list(_single(parts, precision) if packaging == "single" else _chain(parts, precision))
    progress.begin("graphs", 0, len(graphs))
    for done, graph in enumerate(graphs, start=1):
        _write(graph, folder)
        progress.stepped(done, {})
    return [folder / graph.file for graph in graphs], grid


def _parts(checkpoint: Checkpoint, grid: NetworkGrid, precision: Precision) -> Parts:
    model = load_model(checkpoint).requires_grad_(False).to(_DTYPES[precision])
    if model.diffusion is not None:
        model.diffusion.float()  # a mean that is rounded would be pulled at in every step
    is_vector = [channel.definition.is_vector for channel in checkpoint.channels.channels]
    sign, offset = map(torch.from_numpy, checkpoint.normalisation.across_pole(is_vector))
    return Parts(model, grid, (sign, offset)).eval()


def _chain(parts: Parts, precision: Precision) -> Iterator[_Graph]:
    state, step = _state(parts, precision), torch.tensor(1)
    kept = {"state": state} if parts.needs_state else {}
    passed = ("tokens_out", "step_out", *(f"{name}_out" for name in kept))
    yield _Graph("encoder.onnx", Encoder(parts), {"state": state, "step": step}, passed)
    given = {"tokens": parts.encode(state), "step": step, **kept}
    for index, layer in enumerate(parts.layers()):
        yield _Graph(f"block_{index}.onnx", Layer(parts, layer), given, passed)
    yield _Graph("decoder.onnx", Decoder(parts), given, ("output",))


def _single(parts: Parts, precision: Precision) -> Iterator[_Graph]:
    inputs = {"input": _state(parts, precision)}
    if parts.architecture.lora_steps:
        inputs["step"] = torch.tensor(1)
    yield _Graph("model.onnx", Whole(parts), inputs, ("output",))


def _state(parts: Parts, precision: Precision) -> Tensor:
    shape = parts.architecture
    return torch.zeros(1, shape.history * shape.channels, *parts.grid.shape, dtype=_DTYPES[precision])


def _write(graph: _Graph, folder: Path) -> None:
    with _quietly():
        try:
            program = torch.onnx.export(
                graph.module,
                tuple(graph.inputs.values()),
                dynamo=True,
                verbose=False,
                optimize=False,  # whoever runs a graph does so anyway, for its own device
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
            )
        except (ImportError, torch.onnx.errors.OnnxExporterError) as error:
            if isinstance(error, ImportError) or isinstance(error.__cause__, ImportError):
                raise UsageError(f"exporting needs onnx and onnxscript: {INSTALL}") from error
            raise
    assert program is not None  # the exporter returns a program where it is given no file
    try:
        program.save(folder / graph.file)
    except OSError as error:
        raise OutputError(f"{folder / graph.file} could not be written: {error}; see to the disk") from error


@contextmanager
def _quietly() -> Iterator[None]:
    """The exporter tells of libraries that it does without, and of its own."""
    log = getLogger("torch.onnx")
    before = log.level
    log.setLevel(ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
