"""The torch engine: the master state stays in one tensor; sub-fields pass through the network a few at a time."""

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import version
from time import perf_counter

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fengwu_ghr.backbone import Architecture
from fengwu_ghr.checkpoint import Checkpoint, load_model
from fengwu_ghr.engine.stepper import MasterState
from fengwu_ghr.errors import ResourceError, UsageError
from fengwu_ghr.transfer import TransferModel

BATCHES = (9, 3, 1)
"""How many of the nine sub-fields may run together."""

VERSIONS = ("fengwu_ghr", "torch", "numpy", "scipy", "eccodes")
"""Packages that take part in the bits of a product."""

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Compute:
    """How to compute: every field changes the bits of the result, so every field is recorded."""

    device: str = "cpu"
    precision: str = "float32"
    threads: int = 2
    batch: int = 1


class TorchStepper:
    """A transferred model on one device, advancing one master state in place.

    All nine sub-fields are encoded before the first is decoded, so the oldest state can be overwritten in place:
    memory holds `history` master states, the tokens of all nine, and the activations of `batch` sub-fields.
    Results for different `batch` agree to rounding, for equal `Compute` bit by bit.
    """

    def __init__(self, checkpoint: Checkpoint, compute: Compute) -> None:
        check_device(compute.device)
        _make_reproducible(compute)
        self.network = checkpoint.grid
        self.channel_set = checkpoint.channels
        self.history = checkpoint.history
        self.step_hours = checkpoint.card.step_hours
        self.numerics = numerics(compute)
        self._compute = compute
        with _memory_errors(compute):
            self._model = load_model(checkpoint, device=compute.device, dtype=PRECISIONS[compute.precision])
        is_vector = [channel.definition.is_vector for channel in checkpoint.channels.channels]
        self._sign, self._offset = (
            torch.from_numpy(a).to(compute.device) for a in checkpoint.normalisation.across_pole(is_vector)
        )
        self._forcing = self._model.forcing_fields(self.network, step_hours=self.step_hours)
        self._states: list[Tensor] = []

    def put(self, states: Sequence[MasterState], valid_time: datetime) -> None:
        self._states, self._valid_time = [], valid_time
        with _memory_errors(self._compute):
            for state in states:
                self._states.append(torch.from_numpy(state).to(self._compute.device, copy=True))

    def get(self, out: MasterState, *, age: int = 0) -> None:
        torch.from_numpy(out).copy_(self._states[-1 - age])

    @torch.inference_mode()
    def step(self, index: int) -> None:
        batch, newest, target = self._compute.batch, self._states[-1], self._states[0]
        with _memory_errors(self._compute):
            forcing = None if self._forcing is None else self._forcing.at([self._valid_time])[0]
            tokens = self._model.tokens_of(self._states, forcing=forcing, batch=batch)
            tokens = self._model.advance(tokens, step=index, batch=batch)
            # The oldest state is needed no longer (with history 1 it is the newest): the next one replaces it.
            self._model.write_next(target, newest, tokens=tokens, batch=batch)
        self.network.refill_beyond_poles(target, sign=self._sign, offset=self._offset)
        if self._model.diffusion is not None:
            self._model.diffusion.write(target, index)
            self.network.refill_beyond_poles(target, sign=self._sign, offset=self._offset)
        self._states = [*self._states[1:], target]
        self._valid_time += timedelta(hours=self.step_hours)


def _make_reproducible(compute: Compute) -> None:
    """The same bits every time: fixed threads; on a GPU no atomics, and float32 with its whole mantissa."""
    torch.set_num_threads(compute.threads)
    if compute.device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.use_deterministic_algorithms(True)


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
    return found | {name: version(name) for name in VERSIONS}


def activation_bytes(architecture: Architecture, batch: int) -> int:
    """What a step needs beside states and weights, at its peak, when `batch` sub-fields run together.

    An estimate from the shapes: the tokens of all nine, and the largest of the gathered fields, the trunk's hidden
    layers, the exchange between the nine, the decoder's finest features with the fields it leaves; a quarter on top.
    """
    rows, columns = architecture.grid_shape
    tokens = architecture.token_shape[0] * architecture.token_shape[1]
    fields = batch * rows * columns * architecture.channels
    hidden = batch * tokens * architecture.width * (architecture.mlp_ratio + 6)
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


def check_device(device: str) -> None:
    """Raises UsageError for a device that is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda was asked for, but torch sees no GPU here; ask for the device cpu")


def gpu_count() -> int:
    """GPUs that torch sees."""
    return torch.cuda.device_count()


@contextmanager
def _memory_errors(compute: Compute) -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(compute, error) from None
    except RuntimeError as error:
        if "allocate memory" not in str(error):  # how torch's allocator for the CPU says it
            raise
        raise _out_of_memory(compute, error) from None


def _out_of_memory(compute: Compute, error: BaseException) -> ResourceError:
    return ResourceError(
        f"the memory of {compute.device} does not hold {compute.batch} sub-fields at once ({error}); give a smaller "
        "--memory-budget, which makes them fewer, or take a smaller model"
    )
