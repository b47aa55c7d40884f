"""Which engine runs a model, and what it will take: weights of ours run in torch, ONNX packages in onnxruntime."""

from fengwu_ghr.checkpoint import Checkpoint
from fengwu_ghr.engine import device_memory, onnx_engine, torch_engine
from fengwu_ghr.engine.graph_pool import PoolPlan
from fengwu_ghr.engine.onnx_engine import OnnxStepper
from fengwu_ghr.engine.sharded import open_stepper
from fengwu_ghr.engine.stepper import Stepper
from fengwu_ghr.engine.torch_engine import BATCHES, OPTIONS, Compute
from fengwu_ghr.errors import ResourceError, UsageError
from fengwu_ghr.model_card import OnnxPackage


def stepper_for(checkpoint: Checkpoint, compute: Compute, *, weight_bytes: int) -> Stepper:
    """The stepper of this model; graphs of an ONNX package are loaded as far as `weight_bytes` go."""
    if checkpoint.onnx:
        return OnnxStepper(checkpoint, compute, weight_bytes=weight_bytes)
    return open_stepper(checkpoint, compute)


def numerics(checkpoint: Checkpoint, compute: Compute) -> dict[str, str | int]:
    """All that decides the bits of a forecast beside weights and input."""
    return (
        onnx_engine.numerics(checkpoint.onnx, compute) if checkpoint.onnx else torch_engine.numerics(compute)
    )


def batches(checkpoint: Checkpoint) -> tuple[int, ...]:
    """How many of the nine sub-fields may run together, most first; graphs take all of them always."""
    return (max(BATCHES),) if checkpoint.onnx else BATCHES


def check(checkpoint: Checkpoint, compute: Compute) -> None:
    """Raises UsageError for settings that the graphs of an ONNX package do not know."""
    package = checkpoint.onnx
    if package is None:
        return
    if compute.precision not in ("float32", package.precision):
        raise UsageError(
            f"the graphs of {checkpoint.card.name} compute in {package.precision}; leave --precision "
            f"{compute.precision} out"
        )
    options = [name for name in (*OPTIONS, "paging") if getattr(compute, name) != getattr(Compute, name)]
    if options:
        raise UsageError(
            f"{', '.join(options)} are for weights of ours; {checkpoint.card.name} is made of ONNX graphs, which "
            "--memory-budget keeps within bounds: leave them out"
        )


def ways_to_fit(checkpoint: Checkpoint) -> str:
    """What a user can do where a GPU does not hold the model."""
    if checkpoint.onnx:
        return "take the package in float16, or a smaller one, or free the GPU"
    return "keep blocks in host memory with --paging, take --precision bfloat16 or a smaller model, or free the GPU"


def check_runtime(checkpoint: Checkpoint, compute: Compute) -> None:
    """Raises UsageError where what runs the model is not installed here."""
    if checkpoint.onnx:
        onnx_engine.runtime(compute.device)


def host_parts(checkpoint: Checkpoint, compute: Compute, *, room: int) -> dict[str, int]:
    """What an engine holds on the host beside the states. Graphs computed there take what is left of `room`."""
    package = checkpoint.onnx
    if package is None:
        weights = sum((checkpoint.folder / name).stat().st_size for name in checkpoint.card.files)
        return {"weights": weights} | ({} if compute.device == "cuda" else _computing(checkpoint, compute))
    if compute.device == "cuda":
        return {"graph being loaded": max(graph.bytes for graph in package.graphs)}
    return _parts_of_graphs(checkpoint, package, compute, room)


def device_parts(checkpoint: Checkpoint, compute: Compute, *, room: int | None) -> dict[str, int]:
    """What a model takes on a GPU at the peak of a step. Graphs take what is left of `room`, None for any."""
    package = checkpoint.onnx
    if package is None:
        return device_memory.device_parts(checkpoint.architecture, compute)
    rows, columns = checkpoint.grid.shape
    fixed = {
        "libraries": device_memory.LIBRARIES,
        "master states": 4 * len(checkpoint.channels) * rows * columns * package.history,
    }
    left = (2**62 if room is None else room) - sum(fixed.values())
    return fixed | _parts_of_graphs(checkpoint, package, compute, left)


def _computing(checkpoint: Checkpoint, compute: Compute) -> dict[str, int]:
    rows, columns = checkpoint.grid.shape
    fields = 4 * rows * columns * (len(checkpoint.channels) + 2)
    return {
        "shared tendencies": fields if checkpoint.architecture.sharing else 0,
        "activations": torch_engine.activation_bytes(checkpoint.architecture, compute.batch),
    }


def _parts_of_graphs(
    checkpoint: Checkpoint, package: OnnxPackage, compute: Compute, room: int
) -> dict[str, int]:
    working = onnx_engine.working_bytes(checkpoint, package, compute.device)
    return {
        "weights": _weights(package_sizes(checkpoint, compute.device), room - working),
        "activations": working,
    }


def _weights(sizes: list[int], room: int) -> int:
    """Of the graphs that stay loaded in this room; of the largest where not even that one fits."""
    try:
        return PoolPlan.of(sizes, room).bytes
    except ResourceError:
        return max(sizes)


def package_sizes(checkpoint: Checkpoint, device: str) -> list[int]:
    """Bytes of each graph of an ONNX package when it is loaded; empty for weights of ours."""
    return onnx_engine.loaded_bytes(checkpoint.onnx, device) if checkpoint.onnx else []


def plan_in_words(checkpoint: Checkpoint, batch: int, *, device: str, weight_bytes: int) -> str:
    """How a step is worked off within these bytes of weights."""
    if checkpoint.onnx:
        return str(PoolPlan.of(package_sizes(checkpoint, device), weight_bytes))
    return f"{batch} of 9 sub-fields at a time"


def flops_per_step(checkpoint: Checkpoint) -> int:
    """Floating-point operations of one step; 0 where they are not known."""
    if checkpoint.onnx:
        return sum(graph.flops for graph in checkpoint.onnx.graphs)
    return torch_engine.flops_per_step(checkpoint.architecture)
