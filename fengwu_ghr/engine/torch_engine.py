"""The torch engine: the master state stays in one tensor; sub-fields pass through the network a few at a time."""

import os
import platform
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import version
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fengwu_ghr.backbone import Architecture
from fengwu_ghr.checkpoint import Checkpoint, load_model
from fengwu_ghr.engine.finite import LAST, Seen, Watch
from fengwu_ghr.engine.float8 import CAPABILITY, to_float8
from fengwu_ghr.engine.graphs import GraphedTrunk, check_compiler, compile_blocks, hold_adapters
from fengwu_ghr.engine.out_of_memory import memory_errors
from fengwu_ghr.engine.outgoing import Outgoing, pinned
from fengwu_ghr.engine.paging import Pager, paged_parts
from fengwu_ghr.engine.stepper import MasterState
from fengwu_ghr.errors import UsageError
from fengwu_ghr.res import SUBFIELDS
from fengwu_ghr.transfer import TransferModel

BATCHES = (9, 3, 1)
"""How many of the nine sub-fields may run together."""

VERSIONS = ("fengwu_ghr", "torch", "numpy", "scipy", "eccodes")
"""Packages that take part in the bits of a product."""

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float8": torch.bfloat16}
"""What tensors are held in, by precision; float8 is that of the products of linear layers alone."""


OPTIONS = ("compile", "cuda_graphs", "ranks")
"""Fields of `Compute` that are recorded where they are not left as they are."""


@dataclass(frozen=True)
class Compute:
    """How to compute. Every field but `paging` changes the bits of the result and is recorded.

    Blocks may be compiled, the trunk recorded as a CUDA graph, blocks paged from host memory, or the nine sub-fields
    spread over `ranks` processes, each on a GPU of its own.
    """

    device: str = "cpu"
    precision: str = "float32"
    threads: int = 2
    batch: int = 1
    compile: bool = False
    cuda_graphs: bool = False
    paging: bool = False
    ranks: int = 1


class TorchStepper:
    """A transferred model on one device, advancing one master state in place.

    All nine sub-fields are encoded before the first is decoded, so the oldest state can be overwritten in place:
    memory holds `history` master states, the tokens of all nine, and the activations of `batch` sub-fields.
    Results for different `batch` agree to rounding, for equal `Compute` bit by bit.
    """

    def __init__(self, checkpoint: Checkpoint, compute: Compute) -> None:
        check_compute(compute)
        check_joint(checkpoint, compute)
        check_machine(compute)
        _make_reproducible(compute)
        self.network = checkpoint.grid
        self.channel_set = checkpoint.channels
        self.history = checkpoint.history
        self.step_hours = checkpoint.card.step_hours
        self.numerics = numerics(compute)
        self._compute = compute
        self._watch = Watch(self.step_hours)
        with _memory_errors(compute):
            self._model = _prepared(checkpoint, compute, self._watch)
        is_vector = [channel.definition.is_vector for channel in checkpoint.channels.channels]
        self._sign, self._offset = (
            torch.from_numpy(a).to(compute.device) for a in checkpoint.normalisation.across_pole(is_vector)
        )
        self._forcing = self._model.forcing_fields(self.network, step_hours=self.step_hours)
        self._graph = GraphedTrunk(self._trunk, self._watch) if compute.cuda_graphs else None
        self.sends = compute.device == "cuda"
        self._outgoing = Outgoing() if self.sends else None
        self._states: list[Tensor] = []
        self._seen: Seen | None = None

    def put(self, states: Sequence[MasterState], valid_time: datetime) -> None:
        self._states, self._valid_time, self._seen = [], valid_time, None
        with _memory_errors(self._compute):
            for state in states:
                self._states.append(torch.from_numpy(state).to(self._compute.device, copy=True))

    def get(self, out: MasterState, *, age: int = 0) -> None:
        """As `Stepper.get`; raises ConformanceError naming the part of the step whose output is not finite."""
        self._check()
        torch.from_numpy(out).copy_(self._states[-1 - age])

    def allocate(self) -> list[MasterState]:
        """Pinned arrays for the newest `history` states."""
        with _memory_errors(self._compute):
            return [pinned(self._states[0].shape) for _ in range(self.history)]

    def send(self, out: Sequence[MasterState]) -> Callable[[], None]:
        """As `Sender.send`, on a GPU; what it returns raises as `get` does."""
        assert self._outgoing is not None, "only a GPU copies by itself"
        assert self._seen is not None, "there is nothing to send before the first step"
        seen, self._seen = self._seen, None
        return self._outgoing.send(self._states, out, seen)

    @torch.inference_mode()
    def step(self, index: int) -> None:
        """As `Stepper.step`; raises as `get` does, for this step on a CPU, for the one before it on a GPU."""
        self._check()
        newest, target = self._states[-1], self._states[0]
        with _memory_errors(self._compute):
            forcing = None if self._forcing is None else self._forcing.at([self._valid_time])[0]
            tokens = self._advance(self._tokens(forcing), index)
            if self._outgoing is not None:
                self._outgoing.hold()
            # The oldest state is needed no longer (with history 1 it is the newest): the next one replaces it.
            self._write(target, newest, tokens)
        self.network.refill_beyond_poles(target, sign=self._sign, offset=self._offset)
        if self._model.diffusion is not None:
            self._model.diffusion.write(target, index)
            self.network.refill_beyond_poles(target, sign=self._sign, offset=self._offset)
        self._watch.see(LAST, target)
        self._states = [*self._states[1:], target]
        self._valid_time += timedelta(hours=self.step_hours)
        self._seen = self._saw(index)
        if not self.sends:
            self._check()

    def _saw(self, index: int) -> Seen:
        return self._watch.close(index)

    def _check(self) -> None:
        seen, self._seen = self._seen, None
        if seen is not None:
            seen.check()

    def _tokens(self, forcing: Tensor | None) -> Tensor:
        return self._model.tokens_of(self._states, forcing=forcing, batch=self._compute.batch)

    def _advance(self, tokens: Tensor, index: int) -> Tensor:
        if not (self._compute.compile or self._compute.cuda_graphs):
            return self._trunk(tokens, index)
        hold_adapters(self._model, index)
        return self._graph(tokens) if self._graph is not None else self._trunk(tokens)

    def _trunk(self, tokens: Tensor, index: int = 0) -> Tensor:
        together = 1 if self._compute.paging else None  # every block is brought once a step
        return self._model.advance(tokens, step=index, batch=self._compute.batch, together=together)

    def _write(self, target: Tensor, newest: Tensor, tokens: Tensor) -> None:
        self._model.write_next(target, newest, tokens=tokens, batch=self._compute.batch)


def _prepared(checkpoint: Checkpoint, compute: Compute, watch: Watch) -> TransferModel:
    """The model on its device, as these settings want it, watched."""
    home = "cpu" if compute.paging else compute.device
    model = load_model(checkpoint, device=home, dtype=PRECISIONS[compute.precision])
    watch.over(model)
    if compute.precision == "float8":
        to_float8(model)
    if compute.paging:
        _page(model, torch.device(compute.device))
    if compute.compile:
        compile_blocks(model)
    return model


def _page(model: TransferModel, device: torch.device) -> None:
    """What is paged stays on the host; all else is on the device."""
    paged = paged_parts(model)
    Pager(paged, device)
    elsewhere = {id(tensor) for part in paged for tensor in (*part.parameters(), *part.buffers())}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in elsewhere:
            tensor.data = tensor.data.to(device)


def _make_reproducible(compute: Compute) -> None:
    """The same bits every time: fixed threads; on a GPU no atomics, and float32 with its whole mantissa."""
    torch.set_num_threads(max(1, compute.threads // compute.ranks))
    if compute.device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.use_deterministic_algorithms(True)
        # Every array that is made is filled at once; filling it before takes time and hides nothing.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def numerics(compute: Compute) -> dict[str, str | int]:
    """All that decides the bits of a forecast beside weights and input."""
    device = "cpu" if compute.device == "cpu" else torch.cuda.get_device_name()
    found: dict[str, str | int] = {
        "engine": "torch",
        "device": device,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "precision": compute.precision,
        "threads": compute.threads,
        "batch": compute.batch,
        "cuda": str(torch.version.cuda or "none"),
    }
    return found | {name: version(name) for name in VERSIONS} | chosen_options(compute)


def chosen_options(settings: Any) -> dict[str, int]:
    """The `OPTIONS` of a Compute, or of a configuration's, that are not left as they are.

    The others stand in no record: what was begun before there was such an option can be gone on with.
    """
    found = {name: getattr(settings, name) for name in OPTIONS}
    return {name: value for name, value in found.items() if value != getattr(Compute, name)}


def activation_bytes(architecture: Architecture, batch: int) -> int:
    """What a step needs beside states and weights, at its peak, when `batch` sub-fields run together.

    An estimate from the shapes: the tokens of all nine, and the largest of the gathered fields, the trunk's hidden
    layers, the exchange between the nine, the decoder's finest features with the fields it leaves; a quarter on top.
    """
    rows, columns = architecture.grid_shape
    tokens = architecture.token_shape[0] * architecture.token_shape[1]
    fields = batch * rows * columns * architecture.channels
    # A global block that sees the nine together has all of them pass it at once.
    passing = batch if architecture.joint == "none" else 9
    hidden = passing * tokens * architecture.width * (architecture.mlp_ratio + 6)
    exchange = 8 * 9 * tokens * architecture.width if architecture.res_after else 0
    finest = tokens * 4**architecture.doublings * (*architecture.up_blocks, architecture.decoder_width)[-1]
    everywhere = 9 if architecture.split == "token" else batch
    decoder = fields + 4 * everywhere * finest
    return 5 * (
        2 * 9 * tokens * architecture.width + max(fields * architecture.history, hidden, exchange, decoder)
    )


def flops_per_step(architecture: Architecture) -> int:
    """Floating-point operations of one step, counted over the whole model on tensors without data."""
    rows, columns = architecture.grid_shape
    with torch.device("meta"):
        model = TransferModel(architecture)
        state = torch.empty(1, architecture.channels * architecture.history, 3 * rows, 3 * columns)
        told = architecture.forcings
        forcing = torch.empty(1, len(told), *state.shape[2:]) if told else None
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(state, 0, forcing)
    return counter.get_total_flops()


def measured_flops_per_second(compute: Compute) -> float:
    """What a large matrix product reaches here, now; a few hundredths of a second."""
    torch.set_num_threads(compute.threads)
    a = torch.ones(1024, 1024, dtype=PRECISIONS[compute.precision], device=compute.device)
    best = min(
        _seconds(lambda: (a @ a)[0, 0].item()) for _ in range(4)
    )  # fetching a value waits for the device
    return 2 * 1024**3 / best


def _seconds(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def check_compute(compute: Compute) -> None:
    """Raises UsageError for settings that cannot work together, wherever they are computed."""
    on_cpu, alone = compute.device == "cpu", compute.ranks == 1
    rules = [
        (compute.cuda_graphs and on_cpu, "cuda_graphs needs the device cuda; got cpu"),
        (
            compute.paging and compute.compile,
            "paging moves weights, which compile holds fast; leave one of them out",
        ),
        (
            compute.paging and compute.cuda_graphs,
            "paging moves weights, which cuda_graphs hold fast; leave one out",
        ),
        (compute.paging and not alone, "ranks share the work, paging the memory; leave one of them out"),
        (compute.cuda_graphs and not alone, "cuda_graphs record one GPU; leave them out, or ranks"),
        (
            not 1 <= compute.ranks <= SUBFIELDS,
            f"there is work for 1 to {SUBFIELDS} ranks; got {compute.ranks}",
        ),
    ]
    for is_broken, rule in rules:
        if is_broken:
            raise UsageError(rule)


def check_joint(checkpoint: Checkpoint, compute: Compute) -> None:
    """Raises UsageError where global attention over all nine sub-fields meets settings that take blocks apart."""
    asked = {
        "compile": compute.compile, "cuda_graphs": compute.cuda_graphs, "ranks": compute.ranks > 1,
        "paging": compute.paging,
    }  # fmt: skip
    given = [name for name, wanted in asked.items() if wanted]
    if given and checkpoint.architecture.joint != "none":
        raise UsageError(
            f"{checkpoint.card.name} attends to all nine sub-fields at once, which works on one device without "
            f"{', '.join(asked)}; got {', '.join(given)}: leave it out"
        )


def check_device(device: str) -> None:
    """Raises UsageError for a device that is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda was asked for, but torch sees no GPU here; ask for the device cpu")


def check_machine(compute: Compute) -> None:
    """Raises UsageError for what this machine cannot do."""
    check_device(compute.device)
    on_cuda = compute.device == "cuda"
    if on_cuda and compute.ranks > gpu_count():
        raise UsageError(
            f"every rank takes a GPU of its own; got {compute.ranks} ranks for {gpu_count()}: ask for fewer"
        )
    if compute.precision == "float8" and not (on_cuda and torch.cuda.get_device_capability() >= CAPABILITY):
        raise UsageError(
            "float8 needs a GPU with e4m3 units (capability 8.9 or more: Ada, Hopper or newer); got "
            f"{numerics(compute)['device']}; ask for bfloat16"
        )
    if compute.compile:
        check_compiler()


def gpu_count() -> int:
    """GPUs that torch sees."""
    return torch.cuda.device_count()


def _memory_errors(compute: Compute) -> AbstractContextManager[None]:
    return memory_errors(
        f"the memory of {compute.device} does not hold {compute.batch} sub-fields at once; give a smaller "
        "--memory-budget, which makes them fewer, or take a smaller model"
    )
