"""A bound on the error of estimated clusters, proved by their spread; it holds for every query, whatever the keys.

With s = 1/√d, x_j = s q·(k_j - mean_c) for the keys of cluster c, m_c = n_c exp(s q·mean_c), and Z̃, õ the denominator
and the output with clusters estimated:

    o - õ = (1/Z) Σ_c m_c { (E e^x - 1) (v̄_c - õ) + E[(e^x - κ) (v - v̄_c)] }    for any κ;   Z >= Z̃ (Jensen)

In a cluster E x = 0, |x| <= a and E x² <= σ². Hence E e^x <= B(a, σ), the largest of all such distributions (Bennett's
two points: a, and -σ²/a). The second term is at most δ sinh a with κ = cosh a, δ the mean of |v - v̄|; and, with κ the
mean of e^x, at most σ_v √(B(2a, 2σ) - 1), σ_v² the largest eigenvalue of the covariance of the values.

a and σ follow from the extent of a cluster along one direction u and across it (triangle inequality):
a = s (|q·u| ρ_u + |q - (q·u) u| ρ_⊥), and likewise σ. Any u gives a bound; the longest axis gives a close one.
Everything is in logarithms, as e^a may overflow, and carries slack for rounding.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fengwu_ghr.attention.wave_index import WaveIndex

_SLACK = 1e-3
"""Relative, on every extent and on the bound; float32 sums of some thousand terms err by 1e-4 of their size."""

_GRAM_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Spread:
    """How far the members of each cluster are from its mean.

    Of keys along a unit vector and across it: the farthest, and the root of the (largest) variance. Of values: the
    mean distance, and the root of the largest variance in any direction.
    """

    direction: Float[Tensor, "head cluster dim"]
    along_far: Float[Tensor, "head cluster"]
    along_std: Float[Tensor, "head cluster"]
    across_far: Float[Tensor, "head cluster"]
    across_std: Float[Tensor, "head cluster"]
    value_mean: Float[Tensor, "head cluster"]
    value_std: Float[Tensor, "head cluster"]

    def followed_by(self, later: "Spread") -> "Spread":
        """The spread of these clusters, then of those."""
        return Spread(*(torch.cat([a, b], 1) for a, b in zip(_columns(self), _columns(later))))


def _columns(spread: Spread) -> list[Tensor]:
    return [getattr(spread, part.name) for part in fields(spread)]


def measure_spread(
    keys: Float[Tensor, "head token dim"], values: Float[Tensor, "head token dim"], index: WaveIndex
) -> Spread:
    """The spread of all clusters; keys and values are in the order in which the index was built."""
    parts = [_spread_of_head(keys[head], values[head], index.of(head)) for head in range(len(keys))]
    return Spread(*(torch.stack(column) for column in zip(*parts)))


def contributions(
    q: Float[Tensor, "head share dim"],
    index: WaveIndex,
    spread: Spread,
    scores: Float[Tensor, "head share cluster"],
    out: Float[Tensor, "head share dim"],
) -> Float[Tensor, "head share cluster"]:
    """Logarithms of what each cluster adds at most to |o - õ| Z̃ while it is estimated; `out` is õ."""
    far, std = _extent(q, spread)
    log_growth = _log_bennett(far, std)
    log_beyond = _log_expm1(log_growth)
    to_out = torch.cdist(out, index.value_means)
    by_radius = spread.value_mean.log().unsqueeze(1) + _log_sinh(far)
    by_std = spread.value_std.log().unsqueeze(1) + 0.5 * _log_expm1(_log_bennett(2 * far, 2 * std))
    second = torch.minimum(by_radius, by_std)
    first = torch.minimum(log_beyond, _log_cosh_m1(far)) + to_out.log()
    return scores + index.log_sizes.unsqueeze(1) + torch.logaddexp(first, second)


def error_bound(
    log_terms: Float[Tensor, "head share cluster"], lse: Float[Tensor, "head share"]
) -> Float[Tensor, "head share"]:
    """The most that |o - õ| can be with the clusters of these terms estimated; lse is log Z̃ of all zones."""
    return (log_terms.logsumexp(-1) - lse).exp() * (1 + _SLACK)


def rounding(
    q: Float[Tensor, "head share dim"], norms: Float[Tensor, "head 2"]
) -> Float[Tensor, "head share"]:
    """The most that float arithmetic is taken to add to an output, given the largest norms of keys and values.

    A logit is a sum of d products, whose roundings add up as a random walk (Higham and Mary, 2019): √d eps/2 of
    s |q| |k|, here twice that; a weight errs as its logit, an output by as much of the largest value.
    """
    dim = q.shape[-1]
    logits = q.norm(dim=-1) * dim**-0.5 * norms[:, :1]
    return torch.finfo(q.dtype).eps * (8 + dim**0.5 * logits) * norms[:, 1:]


def _spread_of_head(keys: Tensor, values: Tensor, index: WaveIndex) -> tuple[Tensor, ...]:
    count, dim = index.clusters, keys.shape[-1]
    key_means, value_means = index.means[0], index.value_means[0]
    direction = keys.new_zeros(count, dim)
    along_far, along_std, across_far, across_std, value_mean, value_std = keys.new_zeros(6, count)
    for clusters, members, there in _by_size(index):
        x = (keys[members] - key_means[clusters].unsqueeze(1)) * there
        y = (values[members] - value_means[clusters].unsqueeze(1)) * there
        sizes = there.sum(1)
        u = _longest_axis(x)
        along = (x @ u.unsqueeze(-1)).squeeze(-1)
        across = x - along.unsqueeze(-1) * u.unsqueeze(1)
        direction[clusters] = u
        along_far[clusters] = along.abs().amax(1)
        along_std[clusters] = (along.square().sum(1, keepdim=True) / sizes).sqrt().squeeze(1)
        across_far[clusters] = across.norm(dim=-1).amax(1)
        across_std[clusters] = _top_std(across, sizes)
        value_mean[clusters] = (y.norm(dim=-1).sum(1, keepdim=True) / sizes).squeeze(1)
        value_std[clusters] = _top_std(y, sizes)
    # The mean itself is rounded: what is measured about it is short by at most that.
    floor = 1e-6 * key_means.norm(dim=-1)
    keys_spread = ((1 + _SLACK) * part + floor for part in (along_far, along_std, across_far, across_std))
    value_floor = 1e-6 * value_means.norm(dim=-1)
    values_spread = ((1 + _SLACK) * part + value_floor for part in (value_mean, value_std))
    return (direction, *keys_spread, *values_spread)


def _by_size(index: WaveIndex) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Clusters of like sizes: their numbers, their members filled up to the same count, which of them are members."""
    sizes, offsets, order = index.sizes[0], index.offsets[0], index.order[0]
    widest = 1
    while widest < 2 * int(sizes.max()):
        clusters = ((sizes > widest // 2) & (sizes <= widest)).nonzero().squeeze(1)
        slots = torch.arange(widest, device=sizes.device)
        for some in clusters.split(max(_GRAM_AT_ONCE // (widest * (widest + 128)), 1)):
            there = slots < sizes[some].unsqueeze(1)
            rows = (offsets[:-1][some].unsqueeze(1) + slots).clamp_max(len(order) - 1)
            yield some, order[rows], there.unsqueeze(-1).to(index.means)
        widest *= 2


def _longest_axis(x: Float[Tensor, "cluster member dim"]) -> Float[Tensor, "cluster dim"]:
    """About the axis of the largest variance, a unit vector, or zero where all members are one."""
    farthest = x.norm(dim=-1).argmax(1)
    axis = x[torch.arange(len(x), device=x.device), farthest]
    for _ in range(8):
        axis = F.normalize(axis, dim=-1)
        axis = (x.transpose(1, 2) @ (x @ axis.unsqueeze(-1))).squeeze(-1)
    return F.normalize(axis, dim=-1)


def _top_std(
    x: Float[Tensor, "cluster member dim"], sizes: Float[Tensor, "cluster 1"]
) -> Float[Tensor, "cluster"]:
    """At least the root of the largest eigenvalue of the covariance.

    (tr G⁸)^(1/8) of the Gram matrix is never below its largest eigenvalue, and not above 1.7 times it among sixty equal
    ones; three products instead of a decomposition.
    """
    narrow = x if x.shape[1] <= x.shape[2] else x.transpose(1, 2)
    gram = narrow @ narrow.transpose(1, 2)
    size = gram.diagonal(dim1=1, dim2=2).sum(1).clamp_min(torch.finfo(x.dtype).tiny)
    power = gram / size[:, None, None]
    for _ in range(2):
        power = power @ power
    top = power.square().sum((1, 2)) ** 0.125
    return (top * size / sizes.squeeze(1)).sqrt()


def _extent(
    q: Float[Tensor, "head share dim"], spread: Spread
) -> tuple[Float[Tensor, "head share cluster"], Float[Tensor, "head share cluster"]]:
    """The most that |x| and the root of E x² can be, by query and cluster."""
    scale = q.shape[-1] ** -0.5
    along = (q @ spread.direction.transpose(1, 2)).abs()
    # Unit to rounding: the slack of a millionth keeps what remains from falling short.
    across = (q.square().sum(-1, keepdim=True) * (1 + 1e-5) - along.square()).clamp_min(0.0).sqrt()
    far = along * spread.along_far.unsqueeze(1) + across * spread.across_far.unsqueeze(1)
    std = along * spread.along_std.unsqueeze(1) + across * spread.across_std.unsqueeze(1)
    far = (scale * far).clamp_min(1e-9)
    return far, torch.minimum(scale * std, far).clamp_min(1e-9)


def _log_bennett(far: Tensor, std: Tensor) -> Tensor:
    """log of the largest E e^x with E x = 0, x <= far, E x² <= std²: mass p = σ²/(σ² + a²) at a, the rest at -σ²/a."""
    ratio = (std / far).square()  # σ²/a², at most 1
    near = -ratio * far
    # Written about the first point, so that what is small stays exact: e^near (1 + p (e^(a - near) - 1)).
    p = ratio / (1 + ratio)
    jump = far - near
    log_total = torch.where(
        jump < 20, (p * jump.clamp_max(20.0).expm1()).log1p(), torch.logaddexp((1 - p).log(), p.log() + jump)
    )
    # To second order it is σ²/2; rounding of the difference must not fall below.
    return near + log_total + 4e-7 * (near.abs() + log_total)


def _log_expm1(x: Tensor) -> Tensor:
    """log(e^x - 1) for x > 0."""
    return torch.where(x < 20, x.clamp(1e-30, 20.0).expm1().log(), x)


def _log_sinh(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-2 * x)) - 0.6931471


def _log_cosh_m1(x: Tensor) -> Tensor:
    """log(cosh x - 1) = log(2 sinh²(x/2))."""
    return 0.6931472 + 2 * _log_sinh(x / 2)
