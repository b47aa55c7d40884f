"""The torch engine: the master state stays in one tensor; sub-fields pass through the network a few at a time."""

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fengwu_ghr.checkpoint import Checkpoint, load_model
from fengwu_ghr.engine.stepper import MasterState
from fengwu_ghr.errors import ResourceError, UsageError
from fengwu_ghr.grid import SUBFIELDS_PER_AXIS

BATCHES = (9, 3, 1)
"""How many of the nine sub-fields may run together."""

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

    All nine sub-fields are encoded before the first is decoded, so the state can be overwritten sub-field by
    sub-field: memory holds one master state (`history` of them), the tokens of all nine, and the activations of
    `batch` sub-fields. Results for different `batch` agree to rounding, for equal `Compute` bit by bit.
    """

    def __init__(self, checkpoint: Checkpoint, compute: Compute) -> None:
        _check_device(compute.device)
        torch.set_num_threads(compute.threads)
        self.network = checkpoint.network
        self.channel_set = checkpoint.channel_set
        self.history = checkpoint.history
        self.step_hours = checkpoint.step_hours
        self.numerics = numerics(compute)
        self._compute = compute
        self._dtype = PRECISIONS[compute.precision]
        self._model = load_model(checkpoint, device=compute.device, dtype=self._dtype)
        is_vector = np.array([c.definition.is_vector for c in checkpoint.channel_set.channels])
        self._sign, self._offset = (
            torch.from_numpy(a).to(compute.device) for a in checkpoint.normalisation.across_pole(is_vector)
        )
        self._states: list[Tensor] = []

    def put(self, states: Sequence[MasterState]) -> None:
        self._states = []
        for state in states:
            self._states.append(torch.from_numpy(state).to(self._compute.device, copy=True))

    def get(self, out: MasterState, *, age: int = 0) -> None:
        torch.from_numpy(out).copy_(self._states[-1 - age])

    @torch.inference_mode()
    def step(self, index: int) -> None:
        with _memory_errors(self._compute):
            target = self._next_state()
            if self._model.splits_tokens:
                self._step_tokens(target, index)
            else:
                self._step_pixels(target, index)
            self.network.refill_beyond_poles(target, sign=self._sign, offset=self._offset)
        self._states = [*self._states, target][-self.history :]

    def _next_state(self) -> Tensor:
        """Where the new state goes: over the newest when one is enough, else over a copy of it."""
        return self._states.pop() if self.history == 1 else self._states[-1].clone()

    def _step_pixels(self, target: Tensor, index: int) -> None:
        sources = self._states or [target]
        tokens = torch.cat([self._model.encode(_stack(sources, part, self._dtype)) for part in self._parts()])
        tokens = self._model.advance(tokens, step=index, batch=self._compute.batch)
        for part in self._parts():
            decoded = self._model.decode(tokens[part])
            for values, k in zip(decoded, range(9)[part]):
                self._apply(_subfield(target, k), values)

    def _step_tokens(self, target: Tensor, index: int) -> None:
        sources = self._states or [target]
        inner = torch.cat([source[:, 1:-1] for source in sources]).to(self._dtype)
        tokens = self._model.encode_token_split(inner)
        del inner
        tokens = self._model.advance(tokens, step=index, batch=self._compute.batch)
        self._apply(target[:, 1:-1], self._model.decode_token_split(tokens))

    def _apply(self, target: Float[Tensor, "channel a b"], decoded: Float[Tensor, "channel a b"]) -> None:
        if self._model.predicts_tendency:
            target += decoded.to(torch.float32)
        else:
            target.copy_(decoded)

    def _parts(self) -> Iterator[slice]:
        for first in range(0, 9, self._compute.batch):
            yield slice(first, first + self._compute.batch)


def numerics(compute: Compute) -> dict[str, str | int]:
    """All that decides the bits of a forecast beside weights and input."""
    device = "cpu" if compute.device == "cpu" else torch.cuda.get_device_name()
    return {
        "engine": "torch",
        "device": device,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "precision": compute.precision,
        "threads": compute.threads,
        "batch": compute.batch,
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def measured_flops_per_second(compute: Compute) -> float:
    """What a large matrix product reaches here, now; a few hundredths of a second."""
    torch.set_num_threads(compute.threads)
    a = torch.ones(1024, 1024, dtype=PRECISIONS[compute.precision], device=compute.device)
    best = min(_seconds(lambda: a @ a) for _ in range(4))
    return 2 * 1024**3 / best


def _seconds(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def _subfield(state: Float[Tensor, "channel row column"], k: int) -> Float[Tensor, "channel lat lon"]:
    n = SUBFIELDS_PER_AXIS
    return state[:, k // n :: n, k % n :: n]


def _stack(
    sources: Sequence[Tensor], part: slice, dtype: torch.dtype
) -> Float[Tensor, "subfield channel lat lon"]:
    """The sub-fields of one part; several states lie behind one another on the channel axis."""
    fields = [torch.cat([_subfield(s, k) for s in sources]) for k in range(9)[part]]
    return torch.stack(fields).to(dtype)


def _check_device(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda was asked for, but torch sees no GPU here; use --device cpu")


@contextmanager
def _memory_errors(compute: Compute) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ResourceError(
            f"the device's memory does not hold {compute.batch} sub-fields at once ({error}); "
            "give a smaller --memory-budget, which makes them fewer"
        ) from None
