"""Wave attention for decoding: a few queries at a time over a context that waits in host memory or in a file.

Three zones, merged by log-sum-exp: the steady zone (first and newest tokens) and the clusters that rank first are
attended to exactly, the others by their means, `size * exp(s q·mean)`. After RetroInfer (Chen et al., PVLDB 19(5),
2026).
"""

from dataclasses import dataclass, field
from threading import Lock

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fengwu_ghr.attention.certificate import Spread, measure_spread
from fengwu_ghr.attention.partial import Part, attend_part, merge, mix
from fengwu_ghr.attention.wave_buffer import BufferReport, Policy, WaveBuffer
from fengwu_ghr.attention.wave_index import (
    Clustering,
    WaveIndex,
    build_index,
    check_finite,
    key_variance,
    mean_scores,
)
from fengwu_ghr.attention.wave_store import MemoryStore, Store


@dataclass(frozen=True)
class WaveSettings:
    """Budgets and zones; raises ValueError where they make none.

    `retrieval` and `estimation` are shares of the clusters: what ranks first is attended to exactly, what comes next
    by its means, the rest not at all (1.0 estimates whatever is not retrieved). `by_size` ranks by a cluster's
    estimated weight, not by that of one token of it. `second_order` corrects logits for the spread of keys: closer,
    but no longer a lower bound. `certify` measures the spread of every cluster, which bounds need. Tokens wait in the
    steady zone until there are `update` of them beyond `recent`; then they become clusters.
    """

    retrieval: float = 0.018
    estimation: float = 1.0
    sink: int = 4
    recent: int = 64
    update: int = 1024
    by_size: bool = False
    second_order: bool = False
    certify: bool = False
    clustering: Clustering = field(default_factory=Clustering)

    def __post_init__(self) -> None:
        if self.certify and (self.second_order or self.estimation < 1):
            raise ValueError(
                "a certificate is of clusters that are all estimated by their means: estimation 1, no second order; "
                f"got estimation {self.estimation}, second_order {self.second_order}"
            )
        if not (0 <= self.retrieval <= 1 and 0 <= self.estimation <= 1):
            raise ValueError(
                f"budgets are shares from 0 to 1; got retrieval {self.retrieval}, estimation {self.estimation}"
            )
        if min(self.sink, self.recent, self.update - 1) < 0:
            raise ValueError(
                f"zones hold 0 or more tokens, updates 1 or more; got sink {self.sink}, recent {self.recent}, "
                f"update {self.update}"
            )

    def retrieved(self, clusters: int) -> int:
        """How many of so many clusters are retrieved."""
        return round(self.retrieval * clusters)

    def estimated(self, clusters: int) -> int:
        return min(round(self.estimation * clusters), clusters - self.retrieved(clusters))


def cluster_scores(
    q: Float[Tensor, "head share dim"],
    index: WaveIndex,
    variance: Float[Tensor, "head cluster dim"] | None = None,
) -> Float[Tensor, "head share cluster"]:
    """Logits of one token of each cluster; those of empty clusters are -inf. With variances, to the second order."""
    return mean_scores(q, index.means, variance).masked_fill_((index.sizes == 0).unsqueeze(1), -torch.inf)


def ranked(
    scores: Float[Tensor, "head share cluster"], index: WaveIndex, *, count: int, by_size: bool
) -> Int64[Tensor, "head rank"]:
    """The clusters with the largest softmax over clusters, summed over the queries that share them."""
    logits = scores + index.log_sizes.unsqueeze(1) if by_size else scores
    return logits.softmax(-1).sum(1).masked_fill_(index.sizes == 0, -1.0).topk(count, dim=1).indices


def estimate(
    scores: Float[Tensor, "head share cluster"],
    index: WaveIndex,
    *,
    among: Bool[Tensor, "head cluster"] | None,
) -> Part:
    """The part of the clusters that `among` names (None: all), each by its mean.

    Z = Σ size exp(score), o = Σ exp(score) value_sum / Z: the sum holds the size already.
    """
    scores = scores if among is None else scores.masked_fill(~among.unsqueeze(1), -torch.inf)
    top = scores.amax(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).min)
    weights = (scores - top).exp()
    total = (weights * index.sizes.unsqueeze(1)).sum(-1, keepdim=True)
    out = mix(weights, index.value_sums) / total.clamp_min(torch.finfo(scores.dtype).tiny)
    return out, (top + total.log()).squeeze(-1)


class WaveAttention:
    """One layer's attention over a growing context, for groups of queries that share keys and values.

    A head is one of keys and values, of one sequence (batch and heads flattened); the queries of its group share what
    is retrieved. A context too short for clusters stays in the steady zone and is attended to exactly. Calls from
    several threads take turns.
    """

    def __init__(
        self,
        keys: Float[Tensor, "head token dim"],
        values: Float[Tensor, "head token dim"],
        settings: WaveSettings = WaveSettings(),
        *,
        store: Store | None = None,
        index: WaveIndex | None = None,
        cache_blocks: int = 0,
        policy: Policy = "lru",
    ) -> None:
        """Prefills. A `store` that holds the clusters of the `index` already is used as it is; keys and values are then
        those of the steady zone.
        """
        check_finite(keys, values)
        if (store is None) != (index is None):
            raise ValueError("a store and its index come together")
        self.settings, self.lock = settings, Lock()
        self._cache_blocks, self._policy = cache_blocks, policy
        self.index = index
        self.buffer: WaveBuffer | None = None
        self.spread: Spread | None = None
        self.norms = keys.new_zeros(keys.shape[0], 2)
        self._variance: Tensor | None = None
        self._counts = (0, 0)
        self._note_norms(keys, values)
        if index is not None and store is not None:
            self._adopt(index, store)
            self._steady = torch.cat([keys, values], -1)
        else:
            self._prefill(keys, values)
        self.tokens = self._steady.shape[1] + (self.index.tokens if self.index else 0)

    @classmethod
    def empty(cls, *, heads: int, dim: int, settings: WaveSettings = WaveSettings()) -> "WaveAttention":
        nothing = torch.zeros(heads, 0, dim)
        return cls(nothing, nothing, settings)

    @property
    def report(self) -> BufferReport:
        return self.buffer.report if self.buffer else BufferReport()

    @property
    def counts(self) -> tuple[int, int]:
        """How many clusters are retrieved and estimated."""
        return self._counts

    def append(self, keys: Float[Tensor, "head token dim"], values: Float[Tensor, "head token dim"]) -> None:
        """The context goes on with these tokens. Every `update` of them become clusters; older ones never change."""
        check_finite(keys, values)
        with self.lock:
            self._steady = torch.cat([self._steady, torch.cat([keys, values], -1)], 1)
            self.tokens += keys.shape[1]
            self._note_norms(keys, values)
            s = self.settings
            while self._steady.shape[1] >= s.sink + s.recent + s.update:
                self._absorb(s.update)

    def decode(self, q: Float[Tensor, "head share dim"]) -> Float[Tensor, "head share dim"]:
        """The attention of these queries over the whole context. Raises ValueError where heads or widths differ."""
        self.check(q)
        with self.lock:
            steady = self.steady(q)
            if self.index is None or self.buffer is None:
                return steady[0]
            scores = cluster_scores(q, self.index, self._variance)
            retrieved, estimated = self._counts
            best = ranked(scores, self.index, count=retrieved + estimated, by_size=self.settings.by_size)
            clusters = best[:, :retrieved]
            return merge(
                steady, self.retrieve(q, clusters), self._estimate(scores, clusters, best[:, retrieved:])
            )[0]

    def steady(self, q: Float[Tensor, "head share dim"]) -> Part:
        """The exact part of the first and the newest tokens."""
        return self._exact(q, self._steady)

    def retrieve(self, q: Float[Tensor, "head share dim"], clusters: Int64[Tensor, "head rank"]) -> Part:
        """The exact part of these clusters."""
        assert self.buffer is not None
        if not clusters.shape[1]:
            return torch.zeros_like(q), q.new_full(q.shape[:-1], -torch.inf)
        records, counts = self.buffer.fetch(clusters)
        slots = torch.arange(records.shape[1], device=counts.device)
        bias = torch.zeros(records.shape[:2]).masked_fill_(slots >= counts.unsqueeze(1), -torch.inf)
        return self._exact(q, records, bias.to(q).unsqueeze(1))

    def _estimate(
        self, scores: Tensor, retrieved: Int64[Tensor, "head rank"], estimated: Int64[Tensor, "head next"]
    ) -> Part:
        assert self.index is not None
        among = torch.ones_like(self.index.sizes, dtype=torch.bool)
        if self.settings.estimation < 1:
            among = torch.zeros_like(among).scatter_(1, estimated, True)
        return estimate(scores, self.index, among=among.scatter_(1, retrieved, False))

    def _exact(
        self, q: Tensor, records: Float[Tensor, "head slot record"], bias: Tensor | None = None
    ) -> Part:
        keys, values = records.to(q).split(q.shape[-1], dim=-1)
        return attend_part(q, keys, values, bias)

    def check(self, q: Float[Tensor, "head share dim"]) -> None:
        """Raises ValueError for queries of other heads or another width, and where there is no token yet."""
        heads, dim = self._steady.shape[0], self._steady.shape[2] // 2
        if q.shape[0] != heads or q.shape[2] != dim:
            raise ValueError(f"queries come by {heads} heads of width {dim}; got {tuple(q.shape)}")
        if not self.tokens:
            raise ValueError("there is nothing to attend to yet: append keys and values first")

    def _prefill(self, keys: Tensor, values: Tensor) -> None:
        s, tokens = self.settings, keys.shape[1]
        self._steady = torch.cat([keys, values], -1)
        if tokens >= s.sink + s.recent + s.update:
            self._absorb(tokens - s.sink - s.recent)

    def _absorb(self, count: int) -> None:
        """The oldest tokens behind the first few become clusters of their own."""
        sink, dim = self.settings.sink, self._steady.shape[2] // 2
        oldest = self._steady[:, sink : sink + count]
        self._steady = torch.cat([self._steady[:, :sink], self._steady[:, sink + count :]], 1)
        later = build_index(oldest[..., :dim], oldest[..., dim:], self.settings.clustering)
        self._measure(oldest, later)
        places = later.order.unsqueeze(-1).expand(-1, -1, 2 * dim)
        records = oldest.gather(1, places)
        if self.index is None or self.buffer is None:
            self._adopt(later, MemoryStore(records))
            return
        self.buffer.append(records, later.sizes)
        self.index = self.index.followed_by(later)
        self._count(later.clusters)

    def _note_norms(self, keys: Tensor, values: Tensor) -> None:
        """The largest norms of keys and values so far, by head."""
        if keys.shape[1]:
            new = torch.stack([part.norm(dim=-1).amax(1) for part in (keys, values)], 1)
            self.norms = torch.maximum(self.norms, new)

    def _measure(self, records: Tensor, index: WaveIndex) -> None:
        """What the settings ask to be known of new clusters, beside their means."""
        keys, values = records.chunk(2, dim=-1)
        if self.settings.second_order:
            more = key_variance(keys, index)
            self._variance = more if self._variance is None else torch.cat([self._variance, more], 1)
        if self.settings.certify:
            spread = measure_spread(keys, values, index)
            self.spread = spread if self.spread is None else self.spread.followed_by(spread)

    def _adopt(self, index: WaveIndex, store: Store) -> None:
        self.index = index
        self.buffer = WaveBuffer(
            store,
            index.sizes,
            cache_blocks=self._cache_blocks,
            policy=self._policy,
            device=index.means.device,
        )
        self._count(index.clusters)

    def _count(self, clusters: int) -> None:
        s, (retrieved, estimated) = self.settings, self._counts
        self._counts = (retrieved + s.retrieved(clusters), estimated + s.estimated(clusters))


def group_queries(q: Float[Tensor, "batch query_head dim"], *, heads: int) -> Float[Tensor, "head share dim"]:
    """Queries by the head of keys and values that they share (grouped-query attention), batch flattened.

    Raises ValueError where heads do not divide.
    """
    batch, query_heads, dim = q.shape
    if heads < 1 or query_heads % heads:
        raise ValueError(f"{heads} heads of keys and values must divide the query heads; got {query_heads}")
    return q.reshape(batch * heads, query_heads // heads, dim)
