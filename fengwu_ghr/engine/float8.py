"""Linear layers in 8-bit floating point (e4m3): a scale for each row of the weights and for each token."""

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from fengwu_ghr.transfer import AdaptedLinear, TransferModel

LARGEST = 448.0
"""The largest number of e4m3."""
MULTIPLE = 16
"""Widths that the matrix units take are multiples of this."""
CAPABILITY = (8, 9)
"""Of a GPU: from this one on it has such units."""


def quantise(values: Float[Tensor, "row column"]) -> tuple[Tensor, Float32[Tensor, "row 1"]]:
    """Every row in e4m3, its largest number at the end of the range, and the factor that brings it back.

    What is not finite stays so.
    """
    scale = values.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / LARGEST
    return (values.float() / scale).to(torch.float8_e4m3fn), scale


class Float8Linear(nn.Module):
    """A linear layer whose product is of e4m3 numbers, summed in float32; bias and adapters stay as they were."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        quantised, scale = quantise(layer.weight.detach())
        self.register_buffer("weight", quantised)
        self.register_buffer("scale", scale)
        self.weight: Tensor
        self.scale: Tensor
        self.bias = layer.bias
        self.adapted = _without_base(layer) if isinstance(layer, AdaptedLinear) else None

    def forward(
        self, tokens: Float[Tensor, "*place inputs"], step: int | None = None
    ) -> Float[Tensor, "*place outputs"]:
        rows, scale = quantise(tokens.flatten(0, -2))
        product = torch._scaled_mm(
            rows,
            self.weight.t(),
            scale_a=scale,
            scale_b=self.scale.t(),
            bias=self.bias,
            out_dtype=tokens.dtype,
        )
        base = product.view(*tokens.shape[:-1], -1)
        return base if step is None or self.adapted is None else self.adapted.correct(base, tokens, step)


def to_float8(model: TransferModel) -> int:
    """The linear layers of trunk and RES blocks are in e4m3; how many, where widths allow it."""
    count = 0
    for part in (*model.backbone.blocks, *model.res):
        for parent in list(part.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, nn.Linear) and not any(side % MULTIPLE for side in layer.weight.shape):
                    setattr(parent, name, Float8Linear(layer))
                    count += 1
    return count


def _without_base(layer: AdaptedLinear) -> AdaptedLinear:
    """Its adapters alone."""
    layer.register_parameter("weight", None)
    layer.register_parameter("bias", None)
    return layer
