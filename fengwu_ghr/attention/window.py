"""Exact attention inside the windows of a token grid. Global attention is one window as large as the grid."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def to_windows(
    tokens: Float[Tensor, "batch row column width"], *, window: tuple[int, int]
) -> Float[Tensor, "group token width"]:
    """The tokens of each window (rows, columns), window after window, row by row within each.

    A grid that the window does not divide is filled up with zeros at the bottom and on the right. The zeros take
    part in the attention like any token and are not masked, nor does the grid wrap around in longitude: weights
    trained this way expect it.
    """
    batch, rows, columns, width = tokens.shape
    height, breadth = window
    down, across = -(-rows // height), -(-columns // breadth)
    padded = F.pad(tokens, (0, 0, 0, across * breadth - columns, 0, down * height - rows))
    grid = padded.view(batch, down, height, across, breadth, width)
    return grid.transpose(2, 3).reshape(batch * down * across, height * breadth, width)


def from_windows(
    groups: Float[Tensor, "group token width"], *, rows: int, columns: int, window: tuple[int, int]
) -> Float[Tensor, "batch {rows} {columns} width"]:
    """The inverse of `to_windows`: the tokens back on their grid, what was filled in dropped."""
    height, breadth = window
    down, across = -(-rows // height), -(-columns // breadth)
    grid = groups.view(-1, down, across, height, breadth, groups.shape[-1]).transpose(2, 3)
    whole = grid.reshape(-1, down * height, across * breadth, groups.shape[-1])
    return whole[:, :rows, :columns]


def self_attention(
    qkv: Float[Tensor, "group token three_width"], *, heads: int
) -> Float[Tensor, "group token width"]:
    """softmax(q kᵀ / √d) v for each head of d = width / heads; the last axis of `qkv` is (3, heads, d).

    Without gradients no score matrix is held: memory grows with the tokens, not with their square (PyTorch's fused
    kernels).
    """
    group, tokens, _ = qkv.shape
    q, k, v = qkv.view(group, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)  # (group, heads, token, d) each
    if qkv.requires_grad and qkv.device.type == "cpu":
        # The backward of the fused kernel is slow there in bfloat16; at training sizes the scores fit.
        mixed = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
    else:
        mixed = F.scaled_dot_product_attention(q, k, v)
    return mixed.transpose(1, 2).reshape(group, tokens, -1)
