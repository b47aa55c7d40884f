"""What a forecast takes of a GPU's memory, from the shapes alone."""

from functools import cache

import torch

from fengwu_ghr.backbone import Architecture
from fengwu_ghr.engine.float8 import to_float8
from fengwu_ghr.engine.paging import paged_parts, part_bytes
from fengwu_ghr.engine.torch_engine import PRECISIONS, Compute, activation_bytes
from fengwu_ghr.transfer import TransferModel

LIBRARIES = 2**30
"""Of the driver, cuBLAS and cuDNN, and what the allocator cannot use."""


def device_parts(architecture: Architecture, compute: Compute) -> dict[str, int]:
    """Bytes on one GPU at the peak of a step, by part; every rank has the same."""
    rows, columns = (3 * points for points in architecture.grid_shape)
    field = 4 * rows * columns
    state = field * architecture.channels
    activations = activation_bytes(architecture, compute.batch) * PRECISIONS[compute.precision].itemsize // 4
    found = {
        "libraries": LIBRARIES,
        **_weights(architecture, compute),
        "master states": state * architecture.history,
        "shared tendencies": state + 2 * field if architecture.sharing else 0,
        "activations": activations,
        "fields in float32": compute.batch * state // 9,
        "recorded graph": activations if compute.cuda_graphs else 0,
    }
    return {name: size for name, size in found.items() if size}


@cache
def free_device_bytes(device: str) -> int | None:
    """What was free on the GPU when this process first asked; None where there is none, and nothing to be planned.

    Asked once: later the model of the forecast before is there, which the next one uses.
    """
    if device != "cuda" or not torch.cuda.is_available():
        return None
    return torch.cuda.mem_get_info()[0]


def _weights(architecture: Architecture, compute: Compute) -> dict[str, int]:
    with torch.device("meta"):
        model = TransferModel(architecture)
    mean = 0 if model.diffusion is None else part_bytes(model.diffusion)
    model.diffusion = None
    model.to(PRECISIONS[compute.precision])
    if compute.precision == "float8":
        to_float8(model)
    blocks = [part_bytes(part) for part in paged_parts(model)]
    rest = part_bytes(model) - sum(blocks)
    if compute.paging:
        return {"two blocks": 2 * max(blocks), "other weights": rest + mean}
    return {"weights": sum(blocks) + rest + mean}
