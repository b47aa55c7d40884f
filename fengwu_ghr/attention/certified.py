"""Decoding to a stated error: clusters are retrieved, the largest contribution first, until the certificate holds."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fengwu_ghr.attention.certificate import contributions, error_bound, rounding
from fengwu_ghr.attention.partial import Part, merge
from fengwu_ghr.attention.wave import WaveAttention, cluster_scores, estimate

_MARGIN = 0.8
"""Retrieving one cluster moves the output, and with it the terms of the others: aim a little lower."""

_WORTHWHILE = 0.5
"""Beyond this share of the clusters full attention costs no more than looking further."""


@dataclass(frozen=True)
class Certified:
    """Outputs, the most that each can be off by, and what it took.

    `bound` is relative to the norm of the exact output; where a head fell back to full attention (`fell_back`) only
    rounding is left of it. `retrieved` is the share of its clustered tokens that a head read.
    """

    out: Float[Tensor, "head share dim"]
    bound: Float[Tensor, "head share"]
    retrieved: Float[Tensor, "head"]
    fell_back: Bool[Tensor, "head"]


def decode_certified(
    wave: WaveAttention, q: Float[Tensor, "head share dim"], *, max_error: float
) -> Certified:
    """The attention of these queries, each within `max_error` of the exact output, as a share of its norm.

    An error below what rounding allows is full attention. Raises ValueError where the settings measure no spread.
    """
    if max_error < 0:
        raise ValueError(f"an error is 0 or more; got {max_error}")
    if not wave.settings.certify:
        raise ValueError("a certificate needs the spread of the clusters: set `certify` in the settings")
    wave.check(q)
    with wave.lock:
        if wave.index is None:
            return _exact(wave, q)
        if wave.spread is None:
            raise ValueError(
                "the spread of these clusters is not known: they came ready, with a store of their own"
            )
        return _search(wave, q, max_error)


def _search(wave: WaveAttention, q: Tensor, max_error: float) -> Certified:
    index, spread = wave.index, wave.spread
    assert index is not None
    assert spread is not None
    exact = wave.steady(q)
    scores = cluster_scores(q, index)
    retrieved = torch.zeros_like(index.sizes, dtype=torch.bool)
    fell_back = torch.zeros(len(q), dtype=torch.bool, device=q.device)
    while True:
        out, lse = merge(exact, estimate(scores, index, among=~retrieved))
        terms = contributions(q, index, spread, scores, out)
        terms = terms.masked_fill(retrieved.unsqueeze(1), -torch.inf)
        bound = _relative(error_bound(terms, lse) + rounding(q, wave.norms), out)
        open_ = (bound > max_error).any(1) & ~fell_back
        if not bool(open_.any()):
            share = (index.sizes * retrieved).sum(1) / index.sizes.sum(1)
            return Certified(out, bound, share, fell_back)
        # By share of each query's own denominator: those of a group differ by orders of magnitude.
        shares = terms - lse.unsqueeze(-1)
        wanted = _wanted(shares, out.norm(dim=-1) * max_error / (1 + max_error))
        allowed = (_WORTHWHILE * index.clusters) - retrieved.sum(1)
        fell_back |= open_ & (wanted > allowed)
        wanted = torch.where(fell_back, index.clusters, wanted).masked_fill(~open_, 0)
        exact, retrieved = _more(wave, q, exact, shares, retrieved, wanted)


def _more(
    wave: WaveAttention,
    q: Tensor,
    exact: Part,
    shares: Tensor,
    retrieved: Tensor,
    wanted: Int64[Tensor, "head"],
) -> tuple[Part, Tensor]:
    """So many more clusters of each head are exact, those of the largest shares."""
    left = int((~retrieved).sum(1).max())
    order = shares.amax(1).masked_fill(retrieved, -torch.inf).argsort(1, descending=True)
    rank = torch.arange(retrieved.shape[1], device=q.device)
    limit = torch.minimum(wanted, (~retrieved).sum(1)).unsqueeze(1)
    clusters = torch.where((rank < limit) & ~retrieved.gather(1, order), order, -1)
    clusters = clusters[:, : min(int(limit.max()), left)]
    chosen = torch.zeros_like(retrieved).scatter_(1, order, rank < limit)
    return merge(exact, wave.retrieve(q, clusters)), retrieved | chosen


def _wanted(
    log_shares: Float[Tensor, "head share cluster"], allowed: Float[Tensor, "head share"]
) -> Int64[Tensor, "head"]:
    """How many of the largest terms of each head must go for the rest to be allowed; at least one."""
    order = log_shares.amax(1).argsort(1, descending=True)
    shares = log_shares.exp().gather(2, order.unsqueeze(1).expand_as(log_shares))
    tail = shares.flip(-1).cumsum(-1).flip(-1)  # what is left when all before have gone
    return (tail > _MARGIN * allowed.unsqueeze(-1)).sum(-1).amax(1).clamp_min(1)


def _relative(bound: Tensor, out: Tensor) -> Tensor:
    """Of the exact output, whose norm is at least that of the estimate less the bound; inf where that says nothing."""
    least = out.norm(dim=-1) - bound
    return torch.where(least > 0, bound / least, torch.inf)


def _exact(wave: WaveAttention, q: Tensor) -> Certified:
    out = wave.steady(q)[0]
    heads = q.shape[0]
    bound = _relative(rounding(q, wave.norms), out)
    return Certified(out, bound, q.new_ones(heads), torch.ones(heads, dtype=torch.bool, device=q.device))
