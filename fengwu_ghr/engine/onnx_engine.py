"""The ONNX engine: graphs run one after the other by onnxruntime, within a memory budget; the state stays float32.

Each graph is fed, by position, what the one before gave; the first also the lead step, counted from 0 as it really
is. On a GPU states, what passes between graphs and what comes out never leave the device.
"""

import ctypes
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fengwu_ghr.checkpoint import Checkpoint
from fengwu_ghr.engine.finite import check_sums
from fengwu_ghr.engine.graph_pool import GraphPool
from fengwu_ghr.engine.out_of_memory import is_out_of_memory, memory_errors
from fengwu_ghr.engine.stepper import MasterState
from fengwu_ghr.engine.torch_engine import VERSIONS, Compute, check_device
from fengwu_ghr.errors import ConformanceError, UsageError
from fengwu_ghr.model_card import Graph, OnnxPackage

_DTYPES = {"float32": torch.float32, "float16": torch.float16}
_LOADED_PER_BYTE = {("cpu", "float32"): 1.4, ("cpu", "float16"): 3.2}
"""Of a loaded graph over its files: measured. A CPU computes in float32 and keeps weights of float16 twice."""
_REMEDY = "The input is not what the model wants, or the model does not suit this precision"
_RUNTIMES = {"cpu": ("onnxruntime", "onnx"), "cuda": ("onnxruntime-gpu", "onnx-gpu")}


def loaded_bytes(package: OnnxPackage, device: str) -> list[int]:
    """What each graph takes when it is loaded, its weights above all."""
    factor = _LOADED_PER_BYTE.get((device, package.precision), 1.2)
    return [int(factor * graph.bytes) for graph in package.graphs]


def working_bytes(checkpoint: Checkpoint, package: OnnxPackage, device: str) -> int:
    """What a step holds beside weights and states: input and output of the package, and the greatest of its graphs."""
    rows, columns = checkpoint.grid.shape
    itemsize = _DTYPES[package.precision].itemsize
    state = package.history * len(checkpoint.channels) * rows * columns * itemsize
    widened = 2 if device == "cpu" and package.precision == "float16" else 1
    # Where shapes did not tell, a few states.
    inside = max((graph.working_bytes for graph in package.graphs), default=0) or 3 * state
    return 2 * state + widened * inside


def numerics(package: OnnxPackage, compute: Compute) -> dict[str, str | int]:
    """All that decides the bits of a forecast beside graphs and input."""
    name = runtime(compute.device)
    device = "cpu" if compute.device == "cpu" else torch.cuda.get_device_name()
    found: dict[str, str | int] = {
        "engine": name,
        "device": device,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "precision": package.precision,
        "threads": compute.threads,
        "batch": compute.batch,
        name: version(name),
    }
    return found | {library: version(library) for library in VERSIONS}


def runtime(device: str) -> str:
    """The distribution of onnxruntime for this device. Raises UsageError without it, or where both are there."""
    name, extra = _RUNTIMES[device]
    found = [one for one, _ in _RUNTIMES.values() if _is_installed(one)]
    if len(found) > 1:
        raise UsageError(
            "onnxruntime and onnxruntime-gpu are both installed and lie in one folder: pip uninstall both, then pip "
            f"install 'fengwu_ghr[{extra}]'"
        )
    # The build for GPUs runs on a CPU too.
    if not found or (device == "cuda" and found != [name]):
        raise UsageError(
            f"this model is made of ONNX graphs, which need {name} here: pip install 'fengwu_ghr[{extra}]'"
            + (" (and pip uninstall onnxruntime before)" if found else "")
        )
    return found[0]


@cache
def _is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


class OnnxStepper:
    """An ONNX package on one device, advancing one master state in place.

    At most `weight_bytes` of graphs are loaded at a time. Raises UsageError where onnxruntime is missing or a graph
    cannot be loaded, ConformanceError where a state is not finite any more, naming the graph it came from.
    """

    def __init__(self, checkpoint: Checkpoint, compute: Compute, *, weight_bytes: int) -> None:
        package = checkpoint.onnx
        if package is None:
            raise ValueError(f"{checkpoint.folder} is no ONNX package")
        check_device(compute.device)
        self.network, self.channel_set = checkpoint.grid, checkpoint.channels
        self.history, self.step_hours = checkpoint.history, checkpoint.card.step_hours
        self.numerics = numerics(package, compute)
        self._package, self._compute, self._folder = package, compute, checkpoint.folder
        self._dtype = _DTYPES[package.precision]
        is_vector = [channel.definition.is_vector for channel in checkpoint.channels.channels]
        self._sign, self._offset = (
            torch.from_numpy(a).to(compute.device) for a in checkpoint.normalisation.across_pole(is_vector)
        )
        sizes = loaded_bytes(package, compute.device)
        self._pool: GraphPool[Any] = GraphPool(sizes, max(weight_bytes, max(sizes)), load=self._load)
        self._states: list[Tensor] = []

    def put(self, states: Sequence[MasterState], valid_time: datetime) -> None:
        self._valid_time = valid_time
        with memory_errors(_held(self._compute, "the states")):
            self._states = [torch.from_numpy(state).to(self._compute.device, copy=True) for state in states]

    def get(self, out: MasterState, *, age: int = 0) -> None:
        torch.from_numpy(out).copy_(self._states[-1 - age])

    def step(self, index: int) -> None:
        with memory_errors(_held(self._compute, "a step")):
            self._step(index)

    def _step(self, index: int) -> None:
        newest, target = self._states[-1], self._states[0]
        predicted = self._run(index)[0, : len(self.channel_set)]
        if not bool(predicted.isfinite().all()):
            self._explain(index)
        if self._package.predicts == "tendency":
            torch.add(newest, predicted.float(), out=target)
        else:
            target.copy_(predicted)
        self.network.refill_beyond_poles(target, sign=self._sign, offset=self._offset)
        self._states = [*self._states[1:], target]
        self._valid_time += timedelta(hours=self.step_hours)

    def _run(self, index: int, *, sums: list[float] | None = None) -> Tensor:
        """What the last graph gives; the sum of what every graph gives is added to `sums`, where asked for."""
        given: list[Any] = [
            self._input(index),
            _ort().OrtValue.ortvalue_from_numpy(np.array(index, np.int64)),
        ]
        for number, graph in enumerate(self._package.graphs):
            is_last = number == len(self._package.graphs) - 1
            with self._errors(graph):
                # No name for the session here: what must go goes before the next is loaded.
                given = self._run_graph(self._pool.fetch(number), graph, given, is_last=is_last)
            if sums is not None:
                sums.append(_sum(given[0]))
        return given[0]

    def _run_graph(self, session: Any, graph: Graph, given: Sequence[Any], *, is_last: bool) -> list[Any]:
        inputs, outputs, device = session.get_inputs(), session.get_outputs(), self._compute.device
        if len(inputs) > len(given):
            raise UsageError(
                f"{graph.file} wants {len(inputs)} inputs, {len(given)} are given; convert the model anew"
            )
        binding = session.io_binding()
        for value, wanted in zip(given, inputs):
            _bind_input(binding, wanted.name, value)
        result = self._output(outputs[0].shape[1]) if is_last else None
        if result is not None:
            shape = tuple(result.shape)
            binding.bind_output(outputs[0].name, device, 0, _numpy(self._dtype), shape, result.data_ptr())
        else:
            for output in outputs:
                binding.bind_output(output.name, device)
        if device == "cuda":
            torch.cuda.synchronize()
        session.run_with_iobinding(binding, self._run_options())
        binding.synchronize_outputs()
        return [result] if result is not None else list(binding.get_outputs())

    def _input(self, index: int) -> Tensor:
        """The states on the channel axis, oldest first, in the precision of the graphs."""
        fed = torch.cat([state.to(self._dtype) for state in self._states])[None]
        if self._dtype is torch.float16 and not bool(fed.isfinite().all()):
            worst = int(
                torch.stack([state.abs().amax(dim=(1, 2)) for state in self._states]).amax(0).argmax()
            )
            raise ConformanceError(
                f"the state before lead step {index} is beyond what float16 holds (65504 standard deviations), worst "
                f"in {self.channel_set.names[worst]}: the forecast has left physics, or the input is not the model's"
            )
        return fed

    def _output(self, told: int | str | None) -> Tensor:
        """Room for what the last graph gives: as many channels as it says, else those of its input."""
        channels = told if isinstance(told, int) else self.history * len(self.channel_set)
        return torch.empty(1, channels, *self.network.shape, dtype=self._dtype, device=self._compute.device)

    def _explain(self, index: int) -> None:
        """Raises ConformanceError, naming the first graph whose output is not finite: the step is run once more."""
        sums: list[float] = []
        self._run(index, sums=sums)
        names = [graph.file for graph in self._package.graphs]
        check_sums(names, sums, index=index, step_hours=self.step_hours, remedy=_REMEDY)
        raise ConformanceError(
            f"step {index + 1} (+{(index + 1) * self.step_hours} h): the state is not finite, and was when the step "
            f"was run again: {self.numerics['engine']} does not compute the same twice here; run again to go on"
        )

    def _load(self, number: int) -> Any:
        graph, ort = self._package.graphs[number], _ort()
        _give_back_memory()
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self._compute.threads, 1
        options.use_deterministic_compute = True
        options.log_severity_level = 3
        # An arena per graph would keep the working memory of all of them.
        options.enable_cpu_mem_arena = len(self._package.graphs) == 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        with self._errors(graph):
            session = ort.InferenceSession(self._folder / graph.file, options, providers=self._providers())
        if self._compute.device == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
            raise UsageError(
                "onnxruntime-gpu does not find CUDA and cuDNN of its version here, and would compute on the CPU; see "
                "https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html, or use --device cpu"
            )
        return session

    def _run_options(self) -> Any:
        options = _ort().RunOptions()
        if self._compute.device == "cuda" and len(self._package.graphs) > 1:
            # Every graph has its own arena on the GPU: what one worked with must be there for the next.
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "gpu:0")
        return options

    def _providers(self) -> list[Any]:
        if self._compute.device == "cpu":
            return ["CPUExecutionProvider"]
        return [
            (
                "CUDAExecutionProvider",
                # The same kernels every time, and float32 that is float32.
                {
                    "arena_extend_strategy": "kSameAsRequested",
                    "cudnn_conv_algo_search": "DEFAULT",
                    "use_tf32": "0",
                },
            ),
            "CPUExecutionProvider",
        ]

    @contextmanager
    def _errors(self, graph: Graph) -> Iterator[None]:
        with memory_errors(_held(self._compute, graph.file)):
            try:
                yield
            except Exception as error:
                is_its_own = isinstance(error, RuntimeError) or type(error).__module__.startswith(
                    "onnxruntime"
                )
                if is_out_of_memory(error) or not is_its_own:
                    raise
                raise UsageError(
                    f"{self._folder / graph.file} cannot be run by onnxruntime: {error}"
                ) from error


def _bind_input(binding: Any, name: str, value: Any) -> None:
    if isinstance(value, Tensor):
        binding.bind_input(
            name, value.device.type, 0, _numpy(value.dtype), tuple(value.shape), value.data_ptr()
        )
    else:
        binding.bind_ortvalue_input(name, value)


def _sum(value: Any) -> float:
    """Not finite where something in it is not."""
    values = value if isinstance(value, Tensor) else torch.from_numpy(value.numpy())
    return float(values.sum(dtype=torch.float64))


def _held(compute: Compute, what: str) -> str:
    fewer = "give a smaller --memory-budget, so that fewer graphs stay loaded"
    remedy = "free the GPU" if compute.device == "cuda" else fewer
    return f"the memory of {compute.device} does not hold {what} and what it works on; {remedy}"


def _numpy(dtype: torch.dtype) -> Any:
    return np.float16 if dtype is torch.float16 else np.float32


def _give_back_memory() -> None:
    """What evicted graphs held goes back to the system: glibc would keep it for itself."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _ort() -> Any:
    import onnxruntime

    return onnxruntime
