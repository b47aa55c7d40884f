"""Which engine runs a model, and what it will take: weights of ours run in torch, ONNX packages in onnxruntime."""

from fengwu_ghr.checkpoint import Checkpoint
from fengwu_ghr.engine import onnx_engine, torch_engine
from fengwu_ghr.engine.graph_pool import PoolPlan
from fengwu_ghr.engine.onnx_engine import OnnxStepper
from fengwu_ghr.engine.stepper import Stepper
from fengwu_ghr.engine.torch_engine import BATCHES, Compute, TorchStepper
from fengwu_ghr.errors import ResourceError, UsageError


def stepper_for(checkpoint: Checkpoint, compute: Compute, *, weight_bytes: int) -> Stepper:
    """The stepper of this model; graphs of an ONNX package are loaded as far as `weight_bytes` go."""
    if checkpoint.onnx:
        return OnnxStepper(checkpoint, compute, weight_bytes=weight_bytes)
    return TorchStepper(checkpoint, compute)


def numerics(checkpoint: Checkpoint, compute: Compute) -> dict[str, str | int]:
    """All that decides the bits of a forecast beside weights and input."""
    return (
        onnx_engine.numerics(checkpoint.onnx, compute) if checkpoint.onnx else torch_engine.numerics(compute)
    )


def batches(checkpoint: Checkpoint) -> tuple[int, ...]:
    """How many of the nine sub-fields may run together, most first; graphs take all of them always."""
    return (max(BATCHES),) if checkpoint.onnx else BATCHES


def check(checkpoint: Checkpoint, *, device: str, precision: str) -> None:
    """Raises UsageError where the model cannot run on this device, or not in this precision."""
    package = checkpoint.onnx
    if package is None:
        return
    onnx_engine.runtime(device)
    if precision not in ("float32", package.precision):
        raise UsageError(
            f"the graphs of {checkpoint.card.name} compute in {package.precision}; leave --precision {precision} out"
        )


def step_bytes(checkpoint: Checkpoint, batch: int, *, device: str, room: int) -> dict[str, int]:
    """What an engine holds beside the states, by part. With ONNX graphs weights take what is left of `room`."""
    rows, columns = checkpoint.grid.shape
    package = checkpoint.onnx
    if package is None:
        fields = 4 * rows * columns * (len(checkpoint.channels) + 2)
        return {
            "weights": sum((checkpoint.folder / name).stat().st_size for name in checkpoint.card.files),
            "shared tendencies": fields if checkpoint.architecture.sharing else 0,
            "activations": torch_engine.activation_bytes(checkpoint.architecture, batch),
        }
    working = onnx_engine.working_bytes(checkpoint, package, device)
    return {"weights": _weights(package_sizes(checkpoint, device), room - working), "activations": working}


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
