"""The certificate: never violated, on any kind of keys, and no looser than the text says."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fengwu_ghr.attention.certificate import (
    Spread,
    contributions,
    error_bound,
    measure_spread,
)
from fengwu_ghr.attention.certified import decode_certified
from fengwu_ghr.attention.probe import Context, make_context
from fengwu_ghr.attention.wave import WaveAttention, WaveSettings, cluster_scores, estimate
from fengwu_ghr.attention.wave_index import WaveIndex, build_index, co_located, index_of

KINDS = [
    ("iid", 1.0),
    ("iid", 3.0),
    ("topics", 0.5),
    ("topics", 1.0),
    ("field", 1.0),
    ("field", 2.0),
    ("nine", 2.0),
]


def indexed(kind: str, gain: float, seed: int) -> tuple[Context, WaveIndex]:
    if kind != "nine":
        context = make_context(kind, tokens=4096, dim=32, queries=32, gain=gain, seed=seed)  # type: ignore[arg-type]
        return context, build_index(context.keys, context.values)
    c = make_context("field", tokens=1024, dim=32, queries=32, gain=gain, seed=seed)
    g = torch.Generator().manual_seed(seed)
    k, v = (x.repeat_interleave(9, 1) for x in (c.keys, c.values))
    k, v = (x + 0.15 * torch.randn(x.shape, generator=g) for x in (k, v))
    return Context(k, v, c.queries), index_of(k, v, co_located(9216, 9), 1024)


def exact(c: Context) -> Tensor:
    return scaled_dot_product_attention(c.queries.double(), c.keys.double(), c.values.double())


@pytest.mark.parametrize(("kind", "gain"), KINDS)
@pytest.mark.parametrize("seed", [1, 2])
def test_the_bound_is_never_violated(kind: str, gain: float, seed: int) -> None:
    """With everything estimated, where errors are largest; by the norm of the error, query by query."""
    c, index = indexed(kind, gain, seed)
    spread = measure_spread(c.keys, c.values, index)
    scores = cluster_scores(c.queries, index)
    out, lse = estimate(scores.clone(), index, among=None)
    bound = error_bound(contributions(c.queries, index, spread, scores, out), lse)
    assert ((out - exact(c)).norm(dim=-1) <= bound).all()


@pytest.mark.parametrize(("kind", "gain"), KINDS)
def test_each_cluster_stays_within_its_extent(kind: str, gain: float) -> None:
    """What the bound is made of, measured: no member is farther, no direction has more variance."""
    c, index = indexed(kind, gain, seed=3)
    spread = measure_spread(c.keys, c.values, index)
    for cluster in range(0, index.clusters, 37):
        members = index.order[0, index.offsets[0, cluster] : index.offsets[0, cluster + 1]]
        x = (c.keys[0, members] - c.keys[0, members].mean(0)).double()
        y = (c.values[0, members] - c.values[0, members].mean(0)).double()
        u = spread.direction[0, cluster].double()
        along = x @ u
        across = x - along[:, None] * u
        assert along.abs().max() <= spread.along_far[0, cluster]
        assert across.norm(dim=1).max() <= spread.across_far[0, cluster]
        assert along.square().mean().sqrt() <= spread.along_std[0, cluster]
        for part, most in ((across, spread.across_std), (y, spread.value_std)):
            top = torch.linalg.matrix_norm(part, 2) / len(part) ** 0.5
            assert top <= most[0, cluster] <= 1.5 * top + 1e-5
        assert y.norm(dim=1).mean() <= spread.value_mean[0, cluster]


def test_a_direction_of_no_use_still_bounds() -> None:
    """The direction is a choice: any unit vector must give a bound."""
    c, index = indexed("topics", 1.0, seed=1)
    good = measure_spread(c.keys, c.values, index)
    far = good.along_far + good.across_far
    blind = Spread(
        torch.zeros_like(good.direction), torch.zeros_like(far), torch.zeros_like(far), far, far,
        good.value_mean, good.value_std,
    )  # fmt: skip
    scores = cluster_scores(c.queries, index)
    out, lse = estimate(scores.clone(), index, among=None)
    bounds = [error_bound(contributions(c.queries, index, s, scores, out), lse) for s in (good, blind)]
    assert ((out - exact(c)).norm(dim=-1) <= bounds[1]).all()
    assert bounds[0].median() < bounds[1].median()


@pytest.mark.parametrize(("kind", "gain"), [("topics", 1.0), ("iid", 1.0), ("field", 2.0)])
@pytest.mark.parametrize("max_error", [0.01, 0.1])
def test_what_is_certified_holds(kind: str, gain: float, max_error: float) -> None:
    c = make_context(kind, heads=2, tokens=16384, queries=6, gain=gain)  # type: ignore[arg-type]
    wave = WaveAttention(c.keys, c.values, WaveSettings(certify=True))
    truth, fell_back = exact(c), []
    for place in range(0, 6, 2):  # a group of two
        found = decode_certified(wave, c.queries[:, place : place + 2], max_error=max_error)
        off = (found.out - truth[:, place : place + 2]).norm(dim=-1) / truth[:, place : place + 2].norm(
            dim=-1
        )
        assert (off <= found.bound).all()
        assert (found.bound <= max_error).all()
        assert (found.retrieved[found.fell_back] == 1).all()
        fell_back.append(found.fell_back)
    everywhere = torch.stack(fell_back).all()
    # Groups of two queries of different topics: a hundredth is proved for few of them, a tenth for most.
    if kind != "topics":
        assert everywhere
    elif max_error == 0.1:
        assert not everywhere


def test_clusterable_keys_are_certified_without_reading_everything() -> None:
    c = make_context("topics", tokens=16384, queries=8)
    wave = WaveAttention(c.keys, c.values, WaveSettings(certify=True))
    read = [float(decode_certified(wave, q, max_error=0.1).retrieved) for q in c.queries.split(1, 1)]
    assert sum(read) / len(read) < 0.15


def test_a_context_that_grows_stays_certified() -> None:
    c = make_context("topics", tokens=6000, dim=32, queries=4)
    wave = WaveAttention(c.keys[:, :2000], c.values[:, :2000], WaveSettings(certify=True))
    wave.append(c.keys[:, 2000:], c.values[:, 2000:])
    found = decode_certified(wave, c.queries, max_error=0.05)
    assert ((found.out - exact(c)).norm(dim=-1) <= found.bound * exact(c).norm(dim=-1)).all()


def test_without_clusters_only_rounding_is_left() -> None:
    c = make_context("iid", tokens=500, dim=32, queries=4)
    found = decode_certified(
        WaveAttention(c.keys, c.values, WaveSettings(certify=True)), c.queries, max_error=0.0
    )
    assert found.fell_back.all()
    assert (found.bound < 2e-4).all()


def test_it_needs_what_it_is_made_of() -> None:
    c = make_context("iid", tokens=500, dim=32, queries=4)
    wave = WaveAttention(c.keys, c.values)
    with pytest.raises(ValueError, match="set `certify`"):
        decode_certified(wave, c.queries, max_error=0.1)
    with pytest.raises(ValueError, match="0 or more; got -1"):
        decode_certified(wave, c.queries, max_error=-1)
