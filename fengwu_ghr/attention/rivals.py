"""What wave attention is measured against: full attention, streamed or not; retrieval of pages, of single tokens."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fengwu_ghr.attention.partial import Part, attend_part, merge, products
from fengwu_ghr.attention.wave_buffer import WaveBuffer
from fengwu_ghr.attention.wave_store import Store

_STREAMED_AT_ONCE = 16384


def full_attention(
    q: Float[Tensor, "head share dim"], k: Float[Tensor, "head token dim"], v: Float[Tensor, "head token dim"]
) -> Float[Tensor, "head share dim"]:
    """PyTorch's kernel. Queries that share keys are rows of one product: the fastest of its forms for a few queries."""
    return scaled_dot_product_attention(q[None], k[None], v[None])[0]


class StreamedAttention:
    """Exact attention over a store, which goes by once, a part at a time."""

    def __init__(self, store: Store) -> None:
        sizes = torch.full((store.heads, -(-store.tokens // _STREAMED_AT_ONCE)), _STREAMED_AT_ONCE)
        sizes[:, -1] = store.tokens - sizes[:, :-1].sum(1)
        self.buffer, self.parts = WaveBuffer(store, sizes), sizes.shape[1]

    def decode(self, q: Float[Tensor, "head share dim"]) -> Float[Tensor, "head share dim"]:
        whole: Part = (torch.zeros_like(q), q.new_full(q.shape[:-1], -torch.inf))
        for part in range(self.parts):
            records, _ = self.buffer.fetch(torch.full((len(q), 1), part))
            keys, values = records.chunk(2, dim=-1)
            whole = merge(whole, attend_part(q, keys, values))
        return whole[0]


class PageRetrieval:
    """Pages of consecutive tokens, those with the largest bound on a logit attended to exactly, the others not at all.

    The bound of a page is Σ_d max(q_d min_d, q_d max_d) over the smallest and largest key components in it, summed over
    the queries that share keys. After Quest (Tang et al., ICML 2024). The first and newest tokens are always attended
    to, as with wave attention.
    """

    def __init__(
        self,
        store: Store,
        keys: Float[Tensor, "head token dim"],
        steady: Float[Tensor, "head steady record"],
        *,
        page: int = 16,
    ) -> None:
        pages = keys.shape[1] // page
        cut = keys[:, : pages * page].unflatten(1, (pages, page))
        self.smallest, self.largest, self.steady = cut.amin(2), cut.amax(2), steady
        self.pages = pages
        self.buffer = WaveBuffer(store, torch.full((keys.shape[0], pages), page))

    def decode(self, q: Float[Tensor, "head share dim"], count: int) -> Float[Tensor, "head share dim"]:
        """With so many pages."""
        bound = products(q.clamp_min(0), self.largest).add_(products(q.clamp_max(0), self.smallest))
        chosen: Int64[Tensor, "head page"] = bound.sum(1).topk(count, dim=1).indices
        records, _ = self.buffer.fetch(chosen)
        parts = [attend_part(q, *part.chunk(2, dim=-1)) for part in (self.steady, records) if part.shape[1]]
        return merge(*parts)[0]


def oracle_top_k(
    q: Float[Tensor, "head share dim"],
    k: Float[Tensor, "head token dim"],
    v: Float[Tensor, "head token dim"],
    count: int,
) -> Float[Tensor, "head share dim"]:
    """Attention to the tokens that truly have the largest logits, query by query: no retrieval alone can do better."""
    scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
    best = scores.topk(count, dim=-1)
    values = torch.stack([v[head][found] for head, found in enumerate(best.indices)])
    return (best.values.softmax(-1).unsqueeze(-2) @ values).squeeze(-2)
