"""Wave attention of all tokens of a field, against dense attention."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fengwu_ghr.attention.bench import field_index
from fengwu_ghr.attention.probe import smooth
from fengwu_ghr.attention.wave_field import attend_field, grid_tiles
from fengwu_ghr.attention.wave_index import WaveIndex, index_of

ROWS, COLUMNS = 24, 48


def field(*, heads: int = 2, dim: int = 16, seed: int = 1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    fields = (smooth(heads * dim, (ROWS, COLUMNS), size, g) for size in (2.0, 4.0))
    k, v = (f.view(heads, dim, -1).transpose(1, 2).contiguous() for f in fields)
    return k, v + 0.5


def indexed(k: Tensor, v: Tensor) -> WaveIndex:
    return field_index(k, v, rows=ROWS, columns=COLUMNS, cluster=9)


def error(out: Tensor, exact: Tensor) -> float:
    return float(((out - exact).norm(dim=-1) / exact.norm(dim=-1)).mean())


TILES = grid_tiles(ROWS, COLUMNS, height=6, breadth=8, rings=0)


@pytest.mark.parametrize("passes", [1, 3])
def test_a_full_budget_is_exact(passes: int) -> None:
    k, v = field()
    out, report = attend_field(2 * k, k, v, indexed(k, v), TILES, retrieval=1.0, passes=passes)
    torch.testing.assert_close(out, scaled_dot_product_attention(2 * k, k, v), atol=1e-5, rtol=1e-4)
    assert report.exact == 1


def test_passes_change_nothing_but_rounding() -> None:
    """The parts of a tile are merged pass by pass; every record is read once."""
    k, v = field()
    one, four = (attend_field(k, k, v, indexed(k, v), TILES, retrieval=0.1, passes=n) for n in (1, 4))
    torch.testing.assert_close(one[0], four[0], atol=1e-5, rtol=1e-4)
    assert one[1] == four[1]
    assert four[1].records_read == 2 * ROWS * COLUMNS


def test_one_cluster_for_each_token_needs_no_retrieval() -> None:
    k, v = field()
    tokens = ROWS * COLUMNS
    index = index_of(k, v, torch.arange(tokens).expand(2, -1), tokens)
    out, _ = attend_field(k, k, v, index, TILES, retrieval=0.0)
    torch.testing.assert_close(out, scaled_dot_product_attention(k, k, v), atol=1e-5, rtol=1e-4)


def test_the_estimate_and_the_second_order_each_bring_something() -> None:
    k, v = field()
    q, index = 2 * k, indexed(k, v)
    exact = scaled_dot_product_attention(q, k, v)
    first, second = (
        error(attend_field(q, k, v, index, TILES, retrieval=0.2, second_order=order)[0], exact)
        for order in (False, True)
    )
    assert second < 0.6 * first < 0.03


def test_more_retrieval_is_closer() -> None:
    k, v = field()
    q, index = 2 * k, indexed(k, v)
    exact = scaled_dot_product_attention(q, k, v)
    errors = [error(attend_field(q, k, v, index, TILES, retrieval=r)[0], exact) for r in (0.05, 0.2, 0.6)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.2 * errors[0]


def test_own_tile_and_neighbours_are_exact() -> None:
    """Values that differ by tile only, in clusters that mix tiles: what tile and ring hold must be right."""
    k, v = field(heads=1)
    index = indexed(k, v)
    ringed = grid_tiles(ROWS, COLUMNS, height=6, breadth=8, rings=1)
    alone, with_ring = (
        attend_field(k, k, v, index, tiles, retrieval=0.0)[1].exact for tiles in (TILES, ringed)
    )
    assert 1 / 24 <= alone < with_ring
    assert with_ring >= 9 / 24 - 0.1  # at the poles there are six


def test_tiles_cover_the_grid_and_wrap_around_it() -> None:
    tiles = grid_tiles(6, 8, height=3, breadth=2)
    assert torch.equal(tiles.tokens.flatten().sort().values, torch.arange(48))
    assert tiles.tokens[1].tolist() == [2, 3, 10, 11, 18, 19]
    # Tile 0 is at the pole and at the first column: around it are 3, 0, 1 and, below, 7, 4, 5.
    assert set(tiles.around[0].tolist()) == {3, 0, 1, 7, 4, 5}


def test_gradients_agree_with_dense_attention() -> None:
    gradients = []
    for exact in (True, False):
        k, v = (x[:, :192].clone().requires_grad_() for x in field())
        if exact:
            out = scaled_dot_product_attention(2 * k, k, v)
        else:
            index = index_of(k, v, (torch.arange(192) // 4).expand(2, -1), 48)
            out = attend_field(2 * k, k, v, index, grid_tiles(12, 16, height=6, breadth=8), retrieval=1.0)[0]
        out.square().sum().backward()
        gradients.append((k.grad, v.grad))
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)


def test_bad_budgets_and_tiles_are_refused() -> None:
    k, v = field()
    with pytest.raises(ValueError, match=r"got 1.5, 16 and 1"):
        attend_field(k, k, v, indexed(k, v), TILES, retrieval=1.5)
    with pytest.raises(ValueError, match=r"got 5 x 8 tokens in 24 x 48, 1 rings"):
        grid_tiles(ROWS, COLUMNS, height=5, breadth=8)
