"""Keys, values and queries of known kinds, without a trained network: what an index can and cannot do is shown on them.

`iid` has nothing to cluster; `topics` are what a language model's keys are like at their best; `field` is a smooth
field on a grid. Queries are multiplied by a gain: the larger, the more attention concentrates.
"""

from dataclasses import dataclass
from math import isqrt
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fengwu_ghr.attention.wave_index import region_order

Kind = Literal["iid", "topics", "field", "tiles"]
KINDS: tuple[Kind, ...] = ("iid", "topics", "field", "tiles")

_TOPICS, _TOPIC_STRETCH, _TOPIC_RUN, _TOPIC_NOISE, _TOPIC_GAIN = 512, 16384, 3, 0.3, 2.0
_KEY_LENGTH, _VALUE_LENGTH, _VALUE_MEAN = 1.3, 3.0, 0.25
_TILE = 16


@dataclass(frozen=True)
class Context:
    """Keys, values, and queries by key head."""

    keys: Float[Tensor, "head token dim"]
    values: Float[Tensor, "head token dim"]
    queries: Float[Tensor, "head query dim"]


def make_context(
    kind: Kind,
    *,
    heads: int = 1,
    tokens: int = 16384,
    dim: int = 64,
    queries: int = 64,
    gain: float = 1.0,
    seed: int = 1,
) -> Context:
    """A context of this kind, the same for the same seed. Fields take a square number of tokens (ValueError).

    `field` lists its tokens row by row, `tiles` in 16 x 16 tiles. Logits of alike tokens are the same at every width.
    """
    if kind != "iid":
        gain *= (64 / dim) ** 0.5
    g = torch.Generator().manual_seed(seed)
    if kind == "iid":
        keys, values = (torch.randn(heads, tokens, dim, generator=g) for _ in range(2))
        return Context(keys, values, gain * torch.randn(heads, queries, dim, generator=g))
    if kind == "topics":
        return _topics(heads, tokens, dim, queries, gain, g)
    return _field(kind, heads, tokens, dim, queries, gain, g)


def _topics(heads: int, tokens: int, dim: int, queries: int, gain: float, g: torch.Generator) -> Context:
    """Tokens of topics, in short runs; a topic has a key, a value and noise around both.

    Topics are those of a stretch of the text: a longer context has more of them, not more of each.
    """
    stretches, runs = -(-tokens // _TOPIC_STRETCH), -(-tokens // _TOPIC_RUN)
    drawn = torch.randint(_TOPICS, (heads, runs), generator=g).repeat_interleave(_TOPIC_RUN, 1)[:, :tokens]
    subject = drawn + _TOPICS * (torch.arange(tokens) // _TOPIC_STRETCH)
    asked = torch.randint(_TOPICS * stretches, (heads, queries), generator=g)
    key, value = (torch.randn(heads, _TOPICS * stretches, dim, generator=g) for _ in range(2))

    def of(centres: Tensor, topics: Tensor) -> Tensor:
        picked = centres.gather(1, topics.unsqueeze(-1).expand(-1, -1, dim))
        return picked.add_(torch.randn(picked.shape, generator=g), alpha=_TOPIC_NOISE)

    return Context(of(key, subject), of(value, subject), _TOPIC_GAIN * gain * of(key, asked))


def _field(
    kind: Kind, heads: int, tokens: int, dim: int, queries: int, gain: float, g: torch.Generator
) -> Context:
    """Each component of keys and values is a smooth field of unit variance; queries are keys of the field."""
    side = isqrt(tokens)
    if side * side != tokens or (kind == "tiles" and side % _TILE):
        raise ValueError(
            f"a field takes a square number of tokens, tiles a multiple of {_TILE} a side; got {tokens}"
        )
    keys = smooth(heads * dim, (side, side), _KEY_LENGTH, g).view(heads, dim, tokens).transpose(1, 2)
    values = smooth(heads * dim, (side, side), _VALUE_LENGTH, g).view(heads, dim, tokens).transpose(1, 2)
    values = values + _VALUE_MEAN * torch.randn(heads, 1, dim, generator=g)
    places = torch.randint(tokens, (heads, queries, 1), generator=g).expand(-1, -1, dim)
    asked = gain * keys.gather(1, places)
    if kind == "tiles":
        order = region_order(side, side, down=side // _TILE, across=side // _TILE)
        keys, values = keys[:, order], values[:, order]
    return Context(keys.contiguous(), values.contiguous(), asked)


def smooth(
    components: int, shape: tuple[int, int], length: float, g: torch.Generator
) -> Float[Tensor, "component row column"]:
    """Periodic fields of zero mean and unit variance: white noise under a Gaussian of this standard deviation."""
    noise = torch.randn(components, *shape, generator=g)
    down, across = (torch.fft.fftfreq(size) for size in shape)
    damping = torch.exp(-2 * (torch.pi * length) ** 2 * (down[:, None].square() + across.square()))
    fields = torch.fft.ifft2(torch.fft.fft2(noise) * damping).real
    fields = fields - fields.mean((1, 2), keepdim=True)
    return fields / fields.std((1, 2), keepdim=True)
