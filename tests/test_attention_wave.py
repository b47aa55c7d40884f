"""Wave attention against `scaled_dot_product_attention` over everything."""

import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fengwu_ghr.attention.partial import attend_part, attend_scores, merge
from fengwu_ghr.attention.probe import make_context
from fengwu_ghr.attention.wave import (
    WaveAttention,
    WaveSettings,
    cluster_scores,
    estimate,
    group_queries,
    ranked,
)
from fengwu_ghr.attention.wave_index import Clustering, build_index, co_located, index_of
from fengwu_ghr.attention.wave_store import FileStore, MemoryStore

EVERYTHING = WaveSettings(retrieval=1.0)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(got: Tensor, exact: Tensor) -> float:
    return float(((got - exact).norm(dim=-1) / exact.norm(dim=-1)).mean())


@pytest.mark.parametrize("sizes", [(7, 0, 93), (40, 30, 30)])
def test_parts_merge_to_the_whole_in_any_order(sizes: tuple[int, ...]) -> None:
    q, k, v = random(3, 5, 16), random(3, 100, 16, seed=1), random(3, 100, 16, seed=2)
    parts = [attend_part(q, *pair) for pair in zip(k.split(sizes, 1), v.split(sizes, 1))]
    exact = scaled_dot_product_attention(q, k, v)
    for order in ((0, 1, 2), (2, 0, 1)):
        torch.testing.assert_close(merge(*(parts[i] for i in order))[0], exact)
    torch.testing.assert_close(merge(parts[0], merge(parts[1], parts[2]))[0], exact)


def test_parts_merge_with_extreme_logits() -> None:
    """Logits of thousands: exp of any of them overflows, and of their differences vanishes."""
    scores = torch.tensor([[[5000.0, 4999.0, -5000.0, 4998.0]]], dtype=torch.float64)
    v = random(1, 4, 3).double()
    whole = attend_scores(scores.clone(), v)
    halves = [attend_scores(s.clone(), part) for s, part in zip(scores.split(2, -1), v.split(2, 1))]
    merged = merge(*halves)
    torch.testing.assert_close(merged, whole)
    assert merged[0].isfinite().all()


def test_a_part_of_no_keys_changes_nothing() -> None:
    q, k, v = random(2, 3, 8), random(2, 9, 8, seed=1), random(2, 9, 8, seed=2)
    some = attend_part(q, k, v)
    none = attend_part(q, k, v, torch.full((2, 1, 9), -torch.inf))
    assert none[1].isneginf().all()
    torch.testing.assert_close(merge(some, none), some)
    assert (merge(none, none)[0] == 0).all()


@pytest.mark.parametrize("tokens", [3, 68, 1091, 1092, 5000])
def test_a_full_budget_is_exact(tokens: int) -> None:
    """Also where the context is shorter than the steady zone, and where it is just long enough for clusters."""
    q, k, v = random(2, 4, 32), random(2, tokens, 32, seed=1), random(2, tokens, 32, seed=2)
    wave = WaveAttention(k, v, EVERYTHING)
    assert (wave.index is None) == (tokens < 1092)
    torch.testing.assert_close(wave.decode(q), scaled_dot_product_attention(q, k, v), atol=1e-5, rtol=0)


def test_one_cluster_for_each_token_is_exact() -> None:
    q, k, v = random(2, 4, 32), random(2, 500, 32, seed=1), random(2, 500, 32, seed=2)
    index = index_of(k, v, torch.arange(500).expand(2, -1), 500)
    out, _ = estimate(cluster_scores(q, index), index, among=None)
    torch.testing.assert_close(out, scaled_dot_product_attention(q, k, v), atol=1e-5, rtol=0)


def test_identical_keys_in_clusters_are_estimated_exactly() -> None:
    q, k, v = random(2, 4, 16), random(2, 50, 16, seed=1).repeat_interleave(9, 1), random(2, 450, 16, seed=2)
    index = index_of(k, v, co_located(450, 9).expand(2, -1), 50)
    out, _ = estimate(cluster_scores(q, index), index, among=None)
    torch.testing.assert_close(out, scaled_dot_product_attention(q, k, v), atol=1e-5, rtol=0)


def test_the_estimated_denominator_is_never_too_large() -> None:
    context = make_context("field", tokens=4096, queries=32, gain=2.0)
    index = build_index(context.keys, context.values)
    _, lse = estimate(cluster_scores(context.queries, index), index, among=None)
    exact = attend_part(context.queries, context.keys, context.values)[1]
    assert (lse <= exact + 1e-5).all()


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("estimation", [0.0, 0.232, 1.0])
def test_zones_are_what_they_are_by_the_formula(estimation: float, second_order: bool) -> None:
    """The output again, from a softmax over tokens and clusters side by side."""
    context = make_context("topics", tokens=3000, dim=16, queries=1, gain=0.5)
    settings = WaveSettings(retrieval=0.05, estimation=estimation, second_order=second_order)
    wave = WaveAttention(context.keys, context.values, settings)
    index, q = wave.index, context.queries
    assert index is not None
    scores = cluster_scores(q, index, wave._variance)
    best = ranked(scores, index, count=sum(wave.counts), by_size=False)
    retrieved, estimated = best[0, : wave.counts[0]], best[0, wave.counts[0] :]
    exact = torch.ones(3000, dtype=torch.bool)
    exact[4:-64] = torch.isin(index.labels()[0], retrieved)
    k, v = context.keys[0, exact], context.values[0, exact]
    logits = torch.cat([q[0] @ k.T / 4, (scores + index.log_sizes.unsqueeze(1))[0][:, estimated]], 1)
    expected = logits.softmax(-1) @ torch.cat([v, index.value_means[0, estimated]])
    torch.testing.assert_close(wave.decode(q)[0], expected, atol=1e-5, rtol=1e-4)


def test_tokens_become_clusters_1024_at_a_time() -> None:
    k, v = random(2, 5000, 16), random(2, 5000, 16, seed=1)
    wave = WaveAttention(k[:, :2000], v[:, :2000], WaveSettings(estimation=0.232))
    before, clusters = wave.counts, wave.index.clusters if wave.index else 0
    for token in range(2000, 2000 + 1024):
        wave.append(k[:, token : token + 1], v[:, token : token + 1])
    assert wave.index is not None
    assert wave.index.clusters == clusters + 64
    assert wave.counts == (before[0] + 1, before[1] + 15)
    assert wave.tokens == 3024


def test_a_context_that_grew_is_attended_to_whole() -> None:
    q, k, v = random(2, 4, 16), random(2, 4000, 16, seed=1), random(2, 4000, 16, seed=2)
    wave = WaveAttention.empty(heads=2, dim=16, settings=EVERYTHING)
    for start in range(0, 4000, 400):
        wave.append(k[:, start : start + 400], v[:, start : start + 400])
    torch.testing.assert_close(wave.decode(q), scaled_dot_product_attention(q, k, v), atol=1e-5, rtol=0)


@pytest.mark.parametrize("where", ["memory", "file"])
def test_results_are_the_same_bits_with_and_without_a_cache(where: str, tmp_path: Path) -> None:
    context = make_context("topics", tokens=4000, dim=16, queries=60, gain=0.5)
    plain = WaveAttention(context.keys, context.values)
    assert plain.index is not None
    for blocks in (1, 20, 1000):
        records = torch.cat([context.keys, context.values], -1)[:, 4:-64][:, plain.index.order[0]]
        store = (
            MemoryStore(records)
            if where == "memory"
            else FileStore.create(tmp_path / f"{blocks}.bin", iter(records), count=1)
        )
        ends = (
            torch.cat([context.keys[:, :4], context.keys[:, -64:]], 1),
            torch.cat([context.values[:, :4], context.values[:, -64:]], 1),
        )
        cached = WaveAttention(*ends, store=store, index=plain.index, cache_blocks=blocks)
        for query in context.queries.split(1, 1):
            assert torch.equal(plain.decode(query), cached.decode(query))
        if blocks == 1000:
            assert cached.report.hit_ratio > 0.1


def test_queries_that_wander_find_what_they_need_in_the_cache() -> None:
    context = make_context("topics", tokens=16384, dim=32)
    g, q = torch.Generator().manual_seed(3), context.queries[:, :1]
    wave = WaveAttention(context.keys, context.values, cache_blocks=3 * 18 * 2)
    for _ in range(60):
        q = q + 0.15 * torch.randn(q.shape, generator=g)
        wave.decode(q)
    assert wave.report.hit_ratio > 0.5


def test_a_group_of_queries_shares_what_is_retrieved() -> None:
    context = make_context("topics", tokens=4000, dim=16, queries=4, gain=0.5)
    index = build_index(context.keys, context.values)
    scores = cluster_scores(context.queries, index)
    together = ranked(scores, index, count=10, by_size=False)
    assert together.shape == (1, 10)
    weights = scores.softmax(-1).sum(1)
    assert set(together[0].tolist()) == set(weights[0].topk(10).indices.tolist())


def test_empty_clusters_are_never_ranked_among_the_first() -> None:
    k = random(1, 60, 8)
    index = index_of(k, k, torch.arange(60).unsqueeze(0) % 6 * 3, 18)
    best = ranked(cluster_scores(random(1, 2, 8), index), index, count=6, by_size=True)
    assert set(best[0].tolist()) == {0, 3, 6, 9, 12, 15}


def test_threads_take_turns() -> None:
    """One appends what another attends to: every answer is that of some moment, and the last of all tokens."""
    q, k, v = random(2, 4, 16), random(2, 6000, 16, seed=1), random(2, 6000, 16, seed=2)
    wave = WaveAttention(k[:, :2000], v[:, :2000], EVERYTHING, cache_blocks=50)
    moments = {n: scaled_dot_product_attention(q, k[:, :n], v[:, :n]) for n in range(2000, 6001, 500)}
    problems: list[object] = []

    def append() -> None:
        for start in range(2000, 6000, 500):
            wave.append(k[:, start : start + 500], v[:, start : start + 500])

    writer = threading.Thread(target=append)
    writer.start()
    while writer.is_alive():
        got = wave.decode(q)
        if not any(torch.allclose(got, exact, atol=1e-5) for exact in moments.values()):
            problems.append(got)
    writer.join()
    assert not problems
    torch.testing.assert_close(wave.decode(q), moments[6000], atol=1e-5, rtol=0)


def test_bad_input_is_refused() -> None:
    k = random(2, 100, 16)
    wave = WaveAttention(k, k)
    with pytest.raises(ValueError, match=r"2 heads of width 16; got \(3, 1, 16\)"):
        wave.decode(random(3, 1, 16))
    with pytest.raises(ValueError, match="must be finite"):
        wave.append(torch.full((2, 1, 16), torch.inf), k[:, :1])
    with pytest.raises(ValueError, match="nothing to attend to"):
        WaveAttention.empty(heads=2, dim=16).decode(random(2, 1, 16))
    with pytest.raises(ValueError, match=r"3 heads .* must divide the query heads; got 8"):
        group_queries(random(1, 8, 16), heads=3)
    with pytest.raises(ValueError, match=r"shares from 0 to 1; got retrieval 1.8"):
        WaveSettings(retrieval=1.8)
    with pytest.raises(ValueError, match="estimation 1, no second order"):
        WaveSettings(certify=True, second_order=True)
    with pytest.raises(ValueError, match="at least 1 each"):
        Clustering(cluster=0)


def test_groups_are_those_of_grouped_query_attention() -> None:
    q, k, v = random(2, 8, 16), random(2, 2, 30, 16, seed=1), random(2, 2, 30, 16, seed=2)
    wave = WaveAttention(k.flatten(0, 1), v.flatten(0, 1))
    exact = scaled_dot_product_attention(q.unsqueeze(2), k, v, enable_gqa=True)
    torch.testing.assert_close(wave.decode(group_queries(q, heads=2)).reshape(2, 8, 1, 16), exact)
