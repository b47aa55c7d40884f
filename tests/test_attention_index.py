"""The wave index against sums, means and counts written out."""

import pytest
import torch
from torch import Tensor

from fengwu_ghr.attention.probe import make_context
from fengwu_ghr.attention.wave_index import (
    Clustering,
    build_index,
    cluster_labels,
    co_located,
    index_of,
    key_variance,
    mean_scores,
    region_order,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("tokens", "segments", "clusters"), [(131072, 16, 8192), (1024, 1, 64), (16316, 2, 1016)]
)
def test_sizes_are_those_of_the_published_code(tokens: int, segments: int, clusters: int) -> None:
    assert (Clustering().segments(tokens), Clustering().clusters(tokens)) == (segments, clusters)


@pytest.mark.parametrize("last_pass", ["global", "segment"])
@pytest.mark.parametrize("tokens", [3000, 2999, 40])
def test_every_token_is_in_one_cluster(tokens: int, last_pass: str) -> None:
    keys, values = random(2, tokens, 8), random(2, tokens, 8, seed=1)
    index = build_index(keys, values, Clustering(segment=1000, iterations=4, last_pass=last_pass))  # type: ignore[arg-type]
    assert index.sizes.sum(1).tolist() == [tokens, tokens]
    assert torch.equal(index.order.sort(1).values, torch.arange(tokens).expand(2, -1))
    torch.testing.assert_close(index.value_sums.sum(1), values.sum(1), atol=1e-3, rtol=0)
    for head in range(2):
        for cluster in (0, index.clusters // 2, index.clusters - 1):
            start, end = index.offsets[head, cluster], index.offsets[head, cluster + 1]
            members = index.order[head, start:end]
            assert (index.labels()[head, members] == cluster).all()
            if len(members):
                torch.testing.assert_close(index.means[head, cluster], keys[head, members].mean(0))
                torch.testing.assert_close(index.value_sums[head, cluster], values[head, members].sum(0))


def test_segments_keep_their_tokens() -> None:
    keys = random(1, 4000, 8)
    clustering = Clustering(segment=1000, iterations=3, last_pass="segment")
    labels = cluster_labels(keys, 256, segments=4, clustering=clustering)
    assert torch.equal(labels[0] // 64, torch.arange(4000) // 1000)


def test_clusters_hold_what_is_alike() -> None:
    context = make_context("topics", tokens=4096, dim=32)
    index = build_index(context.keys, context.values)
    labels = index.labels()[0]
    apart = (context.keys[0] - index.means[0, labels]).square().mean()
    spread = (context.keys[0] - context.keys[0].mean(0)).square().mean()
    assert apart < 0.4 * spread


def test_the_same_keys_give_the_same_index() -> None:
    keys = random(2, 2000, 16)
    first, second = (build_index(keys, keys) for _ in range(2))
    assert torch.equal(first.order, second.order)
    assert torch.equal(first.means, second.means)


def test_a_warm_start_goes_on_where_the_last_ended() -> None:
    """Keys that moved a little: one iteration from the old means is about as good as ten from the beginning."""
    context = make_context("topics", tokens=4096, dim=32)
    moved = context.keys + 0.05 * random(*context.keys.shape)
    old = build_index(context.keys, context.values)
    indices = (
        build_index(moved, context.values, Clustering(iterations=1), start=old.means),
        build_index(moved, context.values, Clustering(iterations=1)),
        build_index(moved, context.values),
    )
    warm, cold, converged = (
        float((moved[0] - index.means[0, index.labels()[0]]).square().mean()) for index in indices
    )
    assert warm < 1.1 * converged < cold


def test_empty_clusters_have_no_weight() -> None:
    index = index_of(random(1, 10, 4), random(1, 10, 4), torch.zeros(1, 10, dtype=torch.long), 3)
    assert index.sizes.tolist() == [[10, 0, 0]]
    assert index.log_sizes[0, 1:].isneginf().all()
    assert (index.value_means[0, 1:] == 0).all()


def test_means_are_a_lower_bound() -> None:
    """Jensen: size * exp(s q·mean) <= sum of exp(s q·k), cluster by cluster; identical keys give equality."""
    keys, q = random(1, 2000, 16), 3 * random(1, 40, 16, seed=2)
    index = build_index(keys, keys)
    estimated = mean_scores(q, index.means) + index.log_sizes.unsqueeze(1)
    one_hot = torch.nn.functional.one_hot(index.labels()[0], index.clusters).double()
    true = ((q.double() @ keys.double().transpose(1, 2) / 4).exp() @ one_hot).log()
    assert (estimated <= true + 1e-5).all()
    same = keys[:, :50].repeat_interleave(9, 1)
    index = index_of(same, same, co_located(450, 9), 50)
    exact = (q @ same[:, ::9].transpose(1, 2) / 4) + torch.tensor(9.0).log()
    torch.testing.assert_close(mean_scores(q, index.means) + index.log_sizes.unsqueeze(1), exact)


def test_variance_is_that_of_the_members() -> None:
    keys = random(2, 300, 8)
    index = build_index(keys, keys)
    members = index.order[1, index.offsets[1, 5] : index.offsets[1, 6]]
    expected = keys[1, members].var(0, correction=0)
    torch.testing.assert_close(key_variance(keys, index)[1, 5], expected)


def test_the_second_order_is_closer_but_bounded() -> None:
    keys, q = 0.3 * random(1, 2000, 16), random(1, 40, 16, seed=2)
    index = build_index(keys, keys)
    one_hot = torch.nn.functional.one_hot(index.labels()[0], index.clusters).float()
    true = ((q @ keys.transpose(1, 2) / 4).exp() @ one_hot).log() - index.log_sizes.unsqueeze(1)
    first, second = (mean_scores(q, index.means, v) for v in (None, key_variance(keys, index)))
    assert (second - true).abs().mean() < 0.5 * (first - true).abs().mean()
    far = mean_scores(100 * q, index.means, key_variance(keys, index)) - mean_scores(100 * q, index.means)
    assert far.max() <= 4.001


def test_regions_of_a_grid() -> None:
    order = region_order(6, 8, down=2, across=2)
    assert order[:12].tolist() == [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19]
    assert torch.equal(order.sort().values, torch.arange(48))
    with pytest.raises(ValueError, match="4 x 3 regions do not divide a grid of 6 x 8"):
        region_order(6, 8, down=4, across=3)


def test_an_index_that_grows_keeps_its_clusters() -> None:
    keys = random(2, 600, 8)
    first, second = (build_index(part, part) for part in keys.split([400, 200], 1))
    both = first.followed_by(second)
    assert torch.equal(both.labels()[:, :400], first.labels())
    assert torch.equal(both.labels()[:, 400:], second.labels() + first.clusters)


def test_keys_that_are_no_numbers_are_refused() -> None:
    keys = random(1, 100, 4)
    keys[0, 7, 2] = torch.nan
    with pytest.raises(ValueError, match=r"1 are not, the first at \(0, 7, 2\)"):
        build_index(keys, keys.nan_to_num())


def test_numbers_of_clusters_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="got 65 for 20 tokens"):
        build_index(random(1, 20, 4), random(1, 20, 4), clusters=65)
    with pytest.raises(ValueError, match="runs of 9 tokens do not divide 20"):
        co_located(20, 9)
