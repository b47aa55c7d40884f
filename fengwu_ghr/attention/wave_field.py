"""Wave attention of all tokens of a field to all: queries in tiles, which share what they retrieve.

A tile attends exactly to the clusters of its own tokens, of its neighbours' where asked for, and to those that rank
first for it; to all others by their means. There is no mask: a field has no order in time.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fengwu_ghr.attention.partial import Part, attend_part, attend_scores, merge
from fengwu_ghr.attention.wave_index import WaveIndex, key_variance, mean_scores, region_order

_RANKED_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Tiles:
    """Tokens by tile, and for each tile the tiles around it, itself among them."""

    tokens: Int64[Tensor, "tile query"]
    around: Int64[Tensor, "tile near"]

    def to(self, device: torch.device) -> "Tiles":
        return Tiles(self.tokens.to(device), self.around.to(device))


def grid_tiles(rows: int, columns: int, *, height: int, breadth: int, rings: int = 1) -> Tiles:
    """Tiles of `height` x `breadth` tokens of a grid whose columns go around the globe.

    `rings` of neighbours, 0 for none; beyond a pole there are none. Raises ValueError where tiles do not fit.
    """
    if rings < 0 or min(height, breadth) < 1 or rows % height or columns % breadth:
        raise ValueError(
            f"tiles divide the grid and have 0 or more rings of neighbours; got {height} x {breadth} tokens in "
            f"{rows} x {columns}, {rings} rings"
        )
    down, across = rows // height, columns // breadth
    tokens = region_order(rows, columns, down=down, across=across).view(down * across, -1)
    reach = torch.arange(-rings, rings + 1)
    near_rows = (torch.arange(down).unsqueeze(1) + reach).clamp(0, down - 1)
    near_columns = (torch.arange(across).unsqueeze(1) + reach) % across
    around = near_rows[:, None, :, None] * across + near_columns[None, :, None, :]
    return Tiles(tokens, around.reshape(down * across, -1))


@dataclass(frozen=True)
class FieldReport:
    """The share of tokens that tiles attended to exactly, and how many records of the store were read."""

    exact: float
    records_read: int


def attend_field(
    q: Float[Tensor, "head token dim"],
    k: Float[Tensor, "head token dim"],
    v: Float[Tensor, "head token dim"],
    index: WaveIndex,
    tiles: Tiles,
    *,
    retrieval: float,
    samples: int = 16,
    second_order: bool = True,
    passes: int = 1,
) -> tuple[Float[Tensor, "head token dim"], FieldReport]:
    """The attention of every token to every token, differentiable, with cluster membership taken as given.

    `retrieval` is the share of clusters that a tile attends to exactly, more only where its own and its neighbours'
    are more. `second_order` corrects the estimate for the spread of keys in clusters. Clusters are ranked by their
    estimated weight for `samples` queries of the tile. With several `passes` keys and values go by once, in cluster
    order, one part after the other, and every tile takes what it chose of each. Raises ValueError for budgets that are
    none.
    """
    if not 0 <= retrieval <= 1 or min(samples, passes) < 1:
        raise ValueError(
            f"a share from 0 to 1, one or more samples and passes; got {retrieval}, {samples} and {passes}"
        )
    results, exact = [], 0
    variance = key_variance(k, index) if second_order else None
    for head in range(len(q)):
        spread = None if variance is None else variance[head]
        one = _Head(q[head], torch.cat([k[head], v[head]], -1), index.of(head), spread, tiles)
        chosen = one.choose(retrieval, samples)
        exact += int(one.sizes[chosen].sum())
        results.append(one.attend(chosen, passes))
    share = exact / (len(q) * len(tiles.tokens) * q.shape[1])
    return torch.stack(results), FieldReport(share, len(q) * q.shape[1])


class _Head:
    """One head of a field, its keys and values in cluster order."""

    def __init__(
        self, q: Tensor, records: Tensor, index: WaveIndex, variance: Tensor | None, tiles: Tiles
    ) -> None:
        self.tiles, self.queries = tiles, q[tiles.tokens]  # (tile, query, dim)
        self.variance = None if variance is None else variance.to(q.dtype)
        self.means, self.value_means = index.means[0].to(q.dtype), index.value_means[0].to(q.dtype)
        self.sizes, self.offsets = index.sizes[0], index.offsets[0]
        self.log_sizes = self.sizes.to(q.dtype).log()
        self.labels = index.labels()[0]
        self.records = records[index.order[0]]

    def choose(self, retrieval: float, samples: int) -> Int64[Tensor, "tile rank"]:
        """The clusters that each tile attends to exactly, in the order of the store."""
        clusters = len(self.sizes)
        own = self._own()
        count = max(round(retrieval * clusters), int(own.sum(1).max()))
        queries = self.queries.shape[1]
        some = torch.linspace(0, queries - 1, min(samples, queries), device=own.device).round().long()
        asked = self.queries.detach()[:, some]
        means, variance = self.means.detach(), None if self.variance is None else self.variance.detach()
        found = []
        for part, near in zip(
            *(x.split(max(_RANKED_AT_ONCE // (clusters * len(some)), 1)) for x in (asked, own))
        ):
            logits = mean_scores(part.flatten(0, 1), means, variance) + self.log_sizes
            weight = logits.softmax(-1).view(len(part), -1, clusters).sum(1)
            found.append(weight.masked_fill_(near, torch.inf).topk(count, dim=1).indices)
        return torch.cat(found).sort(dim=1).values

    def _own(self) -> Bool[Tensor, "tile cluster"]:
        """Which clusters hold tokens of a tile or of those around it."""
        of_tile = self.labels[self.tiles.tokens]
        near = of_tile[self.tiles.around].flatten(1)
        none = torch.zeros(len(near), len(self.sizes), dtype=torch.bool, device=near.device)
        return none.scatter_(1, near, True)

    def attend(self, chosen: Int64[Tensor, "tile rank"], passes: int) -> Float[Tensor, "token dim"]:
        parts = [self._estimate(tile, clusters) for tile, clusters in enumerate(chosen)]
        clusters = len(self.sizes)
        for number in range(passes):
            first, last = (clusters * edge // passes for edge in (number, number + 1))
            begin = int(self.offsets[first])
            records = self.records[begin : int(self.offsets[last])]
            for tile, mine in enumerate(chosen):
                within = mine if passes == 1 else mine[(mine >= first) & (mine < last)]
                if len(within):
                    parts[tile] = merge(parts[tile], self._exact(tile, within, records, begin))
        out = torch.cat([out for out, _ in parts])
        return out[self.tiles.tokens.flatten().argsort()]

    def _estimate(self, tile: int, chosen: Int64[Tensor, "rank"]) -> Part:
        bias = self.log_sizes.index_fill(0, chosen, -torch.inf)
        if self.variance is None:
            return _single(self.queries[tile], self.means, self.value_means, bias)
        scores = mean_scores(self.queries[tile], self.means, self.variance)
        return attend_scores(
            scores.add_(bias) if not scores.requires_grad else scores + bias, self.value_means
        )

    def _exact(self, tile: int, chosen: Int64[Tensor, "rank"], records: Tensor, begin: int) -> Part:
        taken = records[self._rows(chosen) - begin]
        keys, values = taken.chunk(2, dim=-1)
        return _single(self.queries[tile], keys, values, None)

    def _rows(self, chosen: Int64[Tensor, "rank"]) -> Int64[Tensor, "row"]:
        """The records of these clusters."""
        sizes = self.sizes[chosen]
        starts = self.offsets[chosen] - (sizes.cumsum(0) - sizes)
        rows = starts.repeat_interleave(sizes)
        return rows + torch.arange(len(rows), device=rows.device)


def _single(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Part:
    mask = None if bias is None else bias[None, None]
    out, lse = attend_part(q[None], k[None], v[None], mask)
    return out[0], lse[0]
