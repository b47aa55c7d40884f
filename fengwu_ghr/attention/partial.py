"""Attention over a part of the keys, and how parts become the whole.

A part is (output, lse): what softmax attention over these keys alone gives, and the logarithm of its denominator.
Parts over disjoint keys merge exactly, in any order: Z = Z_a + Z_b, o = (Z_a o_a + Z_b o_b) / Z.
"""

from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

_FEW = 16
"""Fewer rows than that leave the kernels of batched products idle on a CPU."""

Part = tuple[Float[Tensor, "*batch query dim"], Float[Tensor, "*batch query"]]
"""Output and lse of some keys; (0, -inf) of none."""


def attend_part(
    q: Float[Tensor, "*batch query dim"],
    k: Float[Tensor, "*batch key dim"],
    v: Float[Tensor, "*batch key dim"],
    bias: Float[Tensor, "*batch #query key"] | None = None,
) -> Part:
    """softmax(q kᵀ / √d + bias) v and its lse. A bias of -inf leaves a key out; with all keys left out it is (0, -inf).

    On a CPU and without gradients no score matrix is held.
    """
    if k.shape[-2] == 0:
        return torch.zeros_like(q), q.new_full(q.shape[:-1], -torch.inf)
    learns = torch.is_grad_enabled() and any(part.requires_grad for part in (q, k, v))
    if q.ndim == 3 and q.device.type == "cpu" and not learns:
        return _fused(q, k, v, bias)
    scores = q.shape[-1] ** -0.5 * q @ k.transpose(-2, -1)
    return attend_scores(scores if bias is None else scores + bias, v)


def attend_scores(scores: Float[Tensor, "*batch query key"], v: Float[Tensor, "*batch key dim"]) -> Part:
    """softmax(scores) v and its lse. Without gradients the scores are used up: nothing as large is made."""
    top = scores.detach().amax(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).min)
    learns = torch.is_grad_enabled() and scores.requires_grad
    weights = (scores - top).exp() if learns else scores.sub_(top).exp_()
    # With every key left out the lse is the smallest number there is: -inf has no gradient.
    total = weights.sum(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
    out = mix(weights, v) / total
    return out, (top + total.log()).squeeze(-1)


def products(
    q: Float[Tensor, "*batch query dim"], rows: Float[Tensor, "*batch row dim"]
) -> Float[Tensor, "*batch query row"]:
    """q rowsᵀ. For a few queries the other way round, so that rows are read as they lie: 2-3 times as fast."""
    if q.shape[-2] < _FEW:
        return (rows @ q.transpose(-2, -1)).transpose(-2, -1).contiguous()
    return q @ rows.transpose(-2, -1)


def mix(
    weights: Float[Tensor, "*batch query row"], rows: Float[Tensor, "*batch row dim"]
) -> Float[Tensor, "*batch query dim"]:
    """weights rows. For a few queries matrix by matrix, which is 2-3 times as fast."""
    if weights.ndim == 3 and weights.shape[1] < _FEW and weights.device.type == "cpu":
        return torch.stack([some @ row for some, row in zip(weights, rows)])
    return weights @ rows


def merge(first: Part, *others: Part) -> Part:
    """One part over the keys of all of these, which share none. Logits of any size: nothing overflows."""
    return reduce(_merged, others, first)


def _merged(a: Part, b: Part) -> Part:
    lse = torch.logaddexp(a[1], b[1])
    # Where neither has a key both shares are exp(-inf - -inf): no number, for no weight.
    shares = [(part[1] - lse).exp().nan_to_num(0.0).unsqueeze(-1) for part in (a, b)]
    return shares[0] * a[0] + shares[1] * b[0], lse


def _fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Part:
    """The kernel of `scaled_dot_product_attention` on a CPU, which the public function drops the lse of."""
    mask = None if bias is None else bias.expand(*q.shape[:-1], k.shape[-2])[None]
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q[None], k[None], v[None], attn_mask=mask
    )
    if bias is not None and (none := bias.isneginf().all(-1).expand(lse.shape[1:])).any():
        # Of no key at all the kernel says an lse of zero.
        return out[0].masked_fill(none.unsqueeze(-1), 0.0), lse[0].masked_fill(none, -torch.inf)
    return out[0], lse[0]
