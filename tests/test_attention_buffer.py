"""The wave buffer against plain indexing, whatever is cached and wherever the records wait."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fengwu_ghr.attention.wave_buffer import PAGE, WaveBuffer
from fengwu_ghr.attention.wave_store import FileStore, MemoryStore, Store

HEADS, RECORD = 2, 6
SIZES = torch.tensor([[5, 0, 17, 8, 1, 9], [3, 20, 2, 7, 8, 0]])


def records(tokens: int = 40) -> Tensor:
    return torch.randn(HEADS, tokens, RECORD, generator=torch.Generator().manual_seed(0))


def clusters_of(head: int, clusters: list[int]) -> Tensor:
    edges = [0, *SIZES[head].cumsum(0).tolist()]
    return torch.cat([records()[head, edges[c] : edges[c + 1]] for c in clusters])


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "memory":
        return MemoryStore(records())
    return FileStore.create(tmp_path / "kv.bin", iter(records()), count=HEADS, capacity=64)


def walk(steps: int, ranks: int = 3) -> list[Tensor]:
    """Different clusters in every fetch, of which some come again."""
    g = torch.Generator().manual_seed(1)
    return [torch.stack([torch.randperm(6, generator=g)[:ranks] for _ in range(HEADS)]) for _ in range(steps)]


@pytest.mark.parametrize("cache_blocks", [0, 1, 3, 5, 40])
def test_what_is_fetched_does_not_depend_on_the_cache(store: Store, cache_blocks: int) -> None:
    """Among them caches that hold less than one cluster."""
    buffer = WaveBuffer(store, SIZES, cache_blocks=cache_blocks)
    for clusters in walk(40):
        got, counts = buffer.fetch(clusters)
        for head in range(HEADS):
            expected = clusters_of(head, clusters[head].tolist())
            assert counts[head] == len(expected)
            assert torch.equal(got[head, : len(expected)], expected)
    report = buffer.report
    total = sum(int(SIZES.gather(1, c).sum()) for c in walk(40))
    assert report.hits + report.misses == total
    assert report.bytes_moved == report.misses * RECORD * 4
    assert 0 <= report.overlap <= 1
    if cache_blocks == 40:
        assert report.misses == SIZES.sum()  # each once
    if cache_blocks == 0:
        assert report.hits == 0


def test_no_more_is_held_than_there_are_blocks() -> None:
    buffer = WaveBuffer(MemoryStore(records()), SIZES, cache_blocks=4)
    needs = -(-SIZES.numpy() // PAGE)
    for clusters in walk(60):
        buffer.fetch(clusters)
        buffer.wait()
        assert buffer.cache is not None
        held = (buffer.cache.resident * needs).sum(1)
        assert (held <= 4).all()


def test_the_least_recently_used_goes_first() -> None:
    buffer = WaveBuffer(MemoryStore(records()), SIZES, cache_blocks=2)
    for cluster in (0, 3, 0, 4):  # one block each: 3 goes for 4
        buffer.fetch(torch.full((HEADS, 1), cluster))
    buffer.wait()
    assert buffer.cache is not None
    assert np.flatnonzero(buffer.cache.resident[0]).tolist() == [0, 4]


def test_a_known_future_hits_at_least_as_often() -> None:
    """Clusters asked for in a circle, one more than fit: the least recently used is always the next."""
    rounds = [torch.full((HEADS, 1), cluster) for cluster in [0, 3, 4] * 10]
    hits = {}
    for policy in ("lru", "future"):
        buffer = WaveBuffer(MemoryStore(records()), SIZES, cache_blocks=2, policy=policy)  # type: ignore[arg-type]
        if policy == "future":
            buffer.announce(rounds)
        for clusters in rounds:
            buffer.fetch(clusters)
        hits[policy] = buffer.report.hits
    # Two of three fit, of which one stays: Belady hits every other time.
    assert hits["lru"] < 0.5 * hits["future"]
    with pytest.raises(ValueError, match="announce all of them first"):
        buffer.fetch(rounds[0])


def test_heads_may_ask_for_different_numbers() -> None:
    buffer = WaveBuffer(MemoryStore(records()), SIZES)
    got, counts = buffer.fetch(torch.tensor([[2, -1, -1], [0, 2, 3]]))
    assert counts.tolist() == [17, 12]
    assert torch.equal(got[0, :17], clusters_of(0, [2]))
    assert torch.equal(got[1, :12], clusters_of(1, [0, 2, 3]))


def test_the_buffer_grows_and_says_so() -> None:
    buffer = WaveBuffer(MemoryStore(records()), SIZES)
    buffer.fetch(torch.tensor([[4], [2]]))
    everything = torch.arange(6).expand(HEADS, -1)
    got, _ = buffer.fetch(everything)
    assert torch.equal(got, records())
    assert buffer.report.extended == 1


@pytest.mark.parametrize("cache_blocks", [0, 3])
def test_clusters_that_come_later_are_found(store: Store, cache_blocks: int) -> None:
    buffer = WaveBuffer(store, SIZES, cache_blocks=cache_blocks)
    buffer.fetch(torch.tensor([[0], [0]]))
    more = torch.arange(HEADS * 12 * RECORD, dtype=torch.float32).view(HEADS, 12, RECORD)
    buffer.append(more, torch.tensor([[10, 2], [4, 8]]))
    for _ in range(2):
        got, _ = buffer.fetch(torch.tensor([[7, 6], [7, 6]]))
        assert torch.equal(got[0], torch.cat([more[0, 10:], more[0, :10]]))
        assert torch.equal(got[1], torch.cat([more[1, 4:], more[1, :4]]))


def test_a_file_of_another_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kv.bin"
    FileStore.create(path, iter(records()), count=HEADS).close()
    with pytest.raises(ValueError, match=r"has 1968 bytes; .* has 1920"):
        FileStore(path, heads=HEADS, tokens=41, record=RECORD)
    store = FileStore(path, heads=HEADS, tokens=40, record=RECORD)
    store.forget()
    with pytest.raises(ValueError, match="has room for 40 tokens; got 41"):
        store.append(torch.zeros(HEADS, 1, RECORD))


def test_an_error_of_the_other_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = WaveBuffer(MemoryStore(records()), SIZES, cache_blocks=3)

    def fail(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(buffer.cache, "update", fail)
    buffer.fetch(torch.tensor([[0], [0]]))
    with pytest.raises(OSError, match="no space"):
        buffer.fetch(torch.tensor([[0], [0]]))


def test_sizes_must_be_those_of_the_store() -> None:
    with pytest.raises(ValueError, match="it has 2 heads of 30"):
        WaveBuffer(MemoryStore(records(30)), SIZES)
    with pytest.raises(ValueError, match="0 or more blocks"):
        WaveBuffer(MemoryStore(records()), SIZES, cache_blocks=-1)
