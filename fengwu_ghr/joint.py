"""Global attention of the nine sub-fields together: a global block sees the whole fine state instead of one ninth.

The nine tokens that lie together are nearly alike: they are the clusters of wave attention, without a search. What it
is held against: each of the nine for itself (`none`), attention to the means of the nine alone (`means`), and exact
attention to all fine tokens (`dense`).
"""

from functools import lru_cache, partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from fengwu_ghr.attention.wave_field import Tiles, attend_field
from fengwu_ghr.attention.wave_index import co_located, index_of, region_order
from fengwu_ghr.backbone import Architecture, Block, JointKind, Step
from fengwu_ghr.res import SUBFIELDS

_TILE = (4, 6)
"""At most so many places down and across make a tile: 216 fine tokens, which share what they retrieve."""


class Joint(nn.Module):
    """What one global block needs to mix the nine: which of the nine a token came from, where it is to be told.

    The phase (9 x width) starts at zero; without it there is nothing to learn here.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.kind, self.heads = architecture.joint, architecture.heads
        self.retrieval = architecture.joint_retrieval
        self.phase = (
            nn.Parameter(torch.empty(SUBFIELDS, architecture.width)) if architecture.joint_phase else None
        )

    def forward(
        self, tokens: Float[Tensor, "nine_batch down across width"], block: Block, step: Step | None
    ) -> Float[Tensor, "nine_batch down across width"]:
        """All nine after this block of the trunk."""
        return block(tokens, step, partial(self.mix, block))

    def mix(
        self, block: Block, tokens: Float[Tensor, "nine_batch down across width"], step: Step | None
    ) -> Float[Tensor, "nine_batch down across width"]:
        """What attention over the whole fine state makes of normed tokens."""
        if self.phase is not None:
            tokens = tokens + self.phase.repeat(len(tokens) // SUBFIELDS, 1)[:, None, None]
        down, across = tokens.shape[1:3]
        qkv = block.qkv(tokens.flatten(1, 2), step)
        mixed = joint_attention(
            qkv, kind=self.kind, heads=self.heads, places=(down, across), retrieval=self.retrieval
        )
        return block.proj(mixed, step).unflatten(1, (down, across))


def joint_attention(
    qkv: Float[Tensor, "nine_batch place three_width"],
    *,
    kind: JointKind,
    heads: int,
    places: tuple[int, int],
    retrieval: float,
) -> Float[Tensor, "nine_batch place width"]:
    """softmax(q kᵀ / √d) v of every token of the nine over those of all nine, as `kind` approximates it."""
    q, k, v = qkv.unflatten(0, (-1, SUBFIELDS)).unflatten(-1, (3, heads, -1)).permute(3, 0, 4, 2, 1, 5)
    shape = q.shape  # (batch, heads, place, nine, d): the nine that lie together are neighbours
    asked = q.flatten(2, 3)
    if kind == "wave":
        mixed = torch.stack(
            [
                _wave(*one, places=places, retrieval=retrieval)
                for one in zip(asked, k.flatten(2, 3), v.flatten(2, 3))
            ]
        )
    elif kind == "means":
        mixed = scaled_dot_product_attention(asked, k.mean(3), v.mean(3))
    else:
        mixed = scaled_dot_product_attention(asked, k.flatten(2, 3), v.flatten(2, 3))
    return mixed.view(shape).permute(0, 3, 2, 1, 4).flatten(3).flatten(0, 1)


def _wave(
    q: Float[Tensor, "head token dim"],
    k: Float[Tensor, "head token dim"],
    v: Float[Tensor, "head token dim"],
    *,
    places: tuple[int, int],
    retrieval: float,
) -> Float[Tensor, "head token dim"]:
    labels = co_located(q.shape[1], SUBFIELDS, device=q.device).expand(len(q), -1)
    index = index_of(k, v, labels, q.shape[1] // SUBFIELDS)
    return attend_field(q, k, v, index, _tiles(*places).to(q.device), retrieval=retrieval)[0]


@lru_cache(maxsize=4)
def _tiles(down: int, across: int) -> Tiles:
    """Tiles of all nine tokens of some places; a tile's own places are always attended to exactly."""
    height, breadth = (
        max(size for size in range(1, most + 1) if length % size == 0)
        for length, most in zip((down, across), _TILE)
    )
    regions = region_order(down, across, down=down // height, across=across // breadth)
    place = regions.view(-1, height * breadth, 1)
    tokens = (place * SUBFIELDS + torch.arange(SUBFIELDS)).flatten(1)
    return Tiles(tokens, torch.arange(len(tokens)).unsqueeze(1))
