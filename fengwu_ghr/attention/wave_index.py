"""The wave index: keys of a context in clusters, each with its mean key and the sum of its values.

Segmented spherical k-means after RetroInfer (Chen et al., PVLDB 19(5), 2026): keys are centred, clustered segment by
segment by inner product with unit centroids, and assigned a last time. Everything here is deterministic: centroids
start from keys at even distances, ties go to the first.
"""

from dataclasses import dataclass
from functools import cached_property
from math import lcm
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fengwu_ghr.attention.partial import products

LastPass = Literal["global", "segment"]

_SECOND_ORDER_MOST = 4.0
"""Beyond it the second order says more than it knows: without a bound one cluster far away could take all weight."""

_SCORES_AT_ONCE = 1 << 21
"""Scores that are held while tokens look for their nearest centroid: they stay in the cache of a core or two."""


@dataclass(frozen=True)
class Clustering:
    """How a context is clustered; raises ValueError for what makes no clusters.

    `cluster` tokens make a cluster on average, `segment` tokens a segment: neighbours in the order of the tokens,
    among which keys look alike. Of `iterations` the last assigns for good, to any cluster of the context (`global`)
    or to one of its own segment (`segment`: cheaper by the number of segments).
    """

    cluster: int = 16
    segment: int = 8192
    iterations: int = 10
    last_pass: LastPass = "global"

    def __post_init__(self) -> None:
        if min(self.cluster, self.segment, self.iterations) < 1:
            raise ValueError(f"clusters, segments and iterations are at least 1 each; got {self}")

    def segments(self, tokens: int) -> int:
        return max(round(tokens / self.segment), 1)

    def clusters(self, tokens: int) -> int:
        """One for `cluster` tokens, to the nearest multiple of 8 and of the segments; at most one for each token."""
        unit = lcm(8, self.segments(tokens))
        return min(max(round(tokens / self.cluster / unit), 1) * unit, tokens)


@dataclass(frozen=True)
class WaveIndex:
    """Clusters of a context, head by head.

    `order` lists the tokens cluster after cluster; cluster j holds those from `offsets[j]` to `offsets[j + 1]` of it.
    `means` are the true means of the keys, so that size * exp(s q·mean) <= sum of exp(s q·k) (Jensen). A cluster may be
    empty: then its mean and its sum are zero.
    """

    means: Float[Tensor, "head cluster dim"]
    value_sums: Float[Tensor, "head cluster dim"]
    sizes: Int64[Tensor, "head cluster"]
    order: Int64[Tensor, "head token"]

    @property
    def clusters(self) -> int:
        return self.sizes.shape[1]

    @property
    def tokens(self) -> int:
        return self.order.shape[1]

    @cached_property
    def offsets(self) -> Int64[Tensor, "head edge"]:
        return F.pad(self.sizes.cumsum(1), (1, 0))

    @cached_property
    def log_sizes(self) -> Float[Tensor, "head cluster"]:
        """-inf where a cluster is empty."""
        return self.sizes.to(self.means.dtype).log()

    @cached_property
    def value_means(self) -> Float[Tensor, "head cluster dim"]:
        return self.value_sums / self.sizes.clamp_min(1).unsqueeze(-1)

    def of(self, head: int) -> "WaveIndex":
        """One head alone; where clusters are the same for all heads, they are said once."""
        mine = slice(head, head + 1)
        shared = mine if len(self.order) > 1 else slice(0, 1)
        return WaveIndex(self.means[mine], self.value_sums[mine], self.sizes[shared], self.order[shared])

    def labels(self) -> Int64[Tensor, "head token"]:
        """The cluster of each token."""
        heads, tokens = self.order.shape
        numbers = torch.arange(self.clusters, device=self.sizes.device).repeat(heads)
        in_order = numbers.repeat_interleave(self.sizes.flatten()).view(heads, tokens)
        return torch.empty_like(self.order).scatter_(1, self.order, in_order)

    def followed_by(self, later: "WaveIndex") -> "WaveIndex":
        """The clusters of both, unchanged; the tokens of `later` come after all tokens of this one."""
        return WaveIndex(
            torch.cat([self.means, later.means], 1),
            torch.cat([self.value_sums, later.value_sums], 1),
            torch.cat([self.sizes, later.sizes], 1),
            torch.cat([self.order, later.order + self.tokens], 1),
        )


def build_index(
    keys: Float[Tensor, "head token dim"],
    values: Float[Tensor, "head token dim"],
    clustering: Clustering = Clustering(),
    *,
    clusters: int | None = None,
    start: Float[Tensor, "head cluster dim"] | None = None,
) -> WaveIndex:
    """An index of these keys and values, in float32 or better.

    `start` are means of an earlier index, to go on from (one iteration often does); `clusters` overrides their number.
    Raises ValueError for keys or values that are not finite.
    """
    check_finite(keys, values)
    tokens = keys.shape[1]
    segments = clustering.segments(tokens)
    number = clusters or (start.shape[1] if start is not None else clustering.clusters(tokens))
    if number > tokens or number % segments:
        raise ValueError(
            f"clusters are at most as many as tokens and a multiple of the {segments} segments; "
            f"got {number} for {tokens} tokens"
        )
    labels = cluster_labels(keys, number, segments=segments, clustering=clustering, start=start)
    return index_of(keys, values, labels, number)


def index_of(
    keys: Float[Tensor, "head token dim"],
    values: Float[Tensor, "head token dim"],
    labels: Int64[Tensor, "head token"],
    clusters: int,
) -> WaveIndex:
    """The index of clusters that are known; gradients reach keys and values, not the labels."""
    heads = len(labels)
    flat = _flat(labels, clusters)
    sizes = torch.bincount(flat.flatten(), minlength=heads * clusters).view(heads, clusters)
    means = _sums(keys, flat, clusters) / sizes.clamp_min(1).unsqueeze(-1)
    return WaveIndex(means, _sums(values, flat, clusters), sizes, labels.argsort(dim=1, stable=True))


def mean_scores(
    q: Float[Tensor, "*batch query dim"],
    means: Float[Tensor, "*batch cluster dim"],
    variance: Float[Tensor, "*batch cluster dim"] | None = None,
) -> Float[Tensor, "*batch query cluster"]:
    """Logits s q·mean, s = 1/√d, of one token at the mean of its cluster: at most their average over it (Jensen).

    With the variance of each component of its keys, min(s² Σ q_d² var_d / 2, 4) is added: the logarithm of that average
    to the second order, were the components independent. It is closer, and no longer on one side.
    """
    scale = q.shape[-1] ** -0.5
    scores = products(scale * q, means)
    if variance is None:
        return scores
    return scores + products(0.5 * scale**2 * q.square(), variance).clamp_max(_SECOND_ORDER_MOST)


def key_variance(
    keys: Float[Tensor, "head token dim"], index: WaveIndex
) -> Float[Tensor, "head cluster dim"]:
    """The variance of each component of the keys in each cluster."""
    labels = index.labels().expand(len(keys), -1)
    centred = keys - index.means.gather(1, labels.unsqueeze(-1).expand_as(keys))
    sums = _sums(centred.square(), _flat(labels, index.clusters), index.clusters)
    return sums / index.sizes.clamp_min(1).unsqueeze(-1)


def cluster_labels(
    keys: Float[Tensor, "head token dim"],
    clusters: int,
    *,
    segments: int,
    clustering: Clustering,
    start: Float[Tensor, "head cluster dim"] | None = None,
) -> Int64[Tensor, "head token"]:
    """The cluster of each token. Tokens beyond the last whole segment join in the last pass only."""
    heads, tokens, dim = keys.shape
    keys = _precise(keys.detach())
    mean = keys.mean(1, keepdim=True)
    centred = keys - mean
    whole = tokens // segments * segments
    grouped = centred[:, :whole].reshape(heads * segments, -1, dim)
    centroids = _even(centred, clusters) if start is None else _precise(start) - mean
    centroids = centroids.reshape(heads * segments, -1, dim)
    for _ in range(clustering.iterations - 1):
        centroids = _refined(grouped, centroids)
    if clustering.last_pass == "global" or segments == 1:
        return _nearest(centred, centroids.view(heads, clusters, dim))
    of_segment = torch.arange(segments, device=keys.device).repeat(heads).unsqueeze(1) * (
        clusters // segments
    )
    labels = (_nearest(grouped, centroids) + of_segment).view(heads, whole)
    last = centroids.view(heads, segments, -1, dim)[:, -1]
    beyond = _nearest(centred[:, whole:], last) + clusters - clusters // segments
    return torch.cat([labels, beyond], 1)


def co_located(tokens: int, together: int, *, device: torch.device | None = None) -> Int64[Tensor, "1 token"]:
    """Labels for clusters that need no search: runs of `together` tokens. Raises ValueError where they do not fit."""
    if tokens % together:
        raise ValueError(f"runs of {together} tokens do not divide {tokens} tokens")
    return (torch.arange(tokens, device=device) // together).unsqueeze(0)


def region_order(rows: int, columns: int, *, down: int, across: int) -> Int64[Tensor, "token"]:
    """Tokens of a grid, rectangle after rectangle of `down` x `across` of them, row by row within each.

    Taken in this order, the segments of an index are regions of the sphere. Raises ValueError where they do not divide.
    """
    if rows % down or columns % across:
        raise ValueError(f"{down} x {across} regions do not divide a grid of {rows} x {columns} tokens")
    grid = torch.arange(rows * columns).view(down, rows // down, across, columns // across)
    return grid.transpose(1, 2).flatten()


def check_finite(*tensors: Tensor) -> None:
    """Raises ValueError for NaN or infinities: one would spread to every output by way of a cluster's mean."""
    for tensor in tensors:
        if not bool(torch.isfinite(tensor).all()):
            bad: Bool[Tensor, ...] = ~torch.isfinite(tensor)
            where = tuple(bad.nonzero()[0].tolist())
            raise ValueError(
                f"keys and values must be finite; {int(bad.sum())} are not, the first at {where}"
            )


def _flat(labels: Int64[Tensor, "head token"], clusters: int) -> Int64[Tensor, "head token"]:
    """Labels that count on from head to head."""
    return labels + clusters * torch.arange(len(labels), device=labels.device).unsqueeze(1)


def _even(points: Tensor, number: int) -> Tensor:
    """Points at even distances: the middles of `number` equal runs."""
    tokens = points.shape[1]
    places = ((torch.arange(number, device=points.device) + 0.5) * tokens / number).long()
    return points[:, places]


def _refined(
    points: Float[Tensor, "group token dim"], centroids: Float[Tensor, "group cluster dim"]
) -> Float[Tensor, "group cluster dim"]:
    """The unit mean of the points nearest to each centroid; a centroid that has none stays."""
    clusters = centroids.shape[1]
    sums = _sums(points, _flat(_nearest(points, centroids), clusters), clusters)
    length = sums.norm(dim=-1, keepdim=True)
    return torch.where(length > 0, sums / length.clamp_min(torch.finfo(sums.dtype).tiny), centroids)


def _nearest(
    points: Float[Tensor, "group token dim"], centroids: Float[Tensor, "group cluster dim"]
) -> Int64[Tensor, "group token"]:
    """The centroid with the largest inner product, by point."""
    rows = max(_SCORES_AT_ONCE // centroids.shape[1], 1)
    labels = torch.empty(points.shape[:2], dtype=torch.long, device=points.device)
    for some, among, found in zip(points, centroids, labels):
        for part, out in zip(some.split(rows), found.split(rows)):
            torch.argmax(part @ among.T, dim=1, out=out)
    return labels


def _sums(
    rows: Float[Tensor, "group token dim"], flat: Int64[Tensor, "group token"], clusters: int
) -> Float[Tensor, "group cluster dim"]:
    """Sums by label, in float32 or better; `flat` counts clusters over all groups."""
    rows = _precise(rows)
    total = rows.new_zeros(rows.shape[0] * clusters, rows.shape[2])
    source = rows.flatten(0, 1)
    if rows.device.type == "cpu":
        total = total.index_add(0, flat.flatten(), source)
    else:  # index_add is atomic there, and sums in another order at every run
        total = total.index_put((flat.flatten(),), source, accumulate=True)
    return total.view(rows.shape[0], clusters, -1)


def _precise(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
