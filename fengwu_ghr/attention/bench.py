"""Wave attention measured against its rivals, on keys of a known kind, in one run: seconds, errors, bytes.

Every rival that approximates has the smallest budget that keeps the mean error within the same limit. Queries take
turns: each is new to whatever a cache holds.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fengwu_ghr.attention.certified import decode_certified
from fengwu_ghr.attention.probe import Context, Kind, make_context, smooth
from fengwu_ghr.attention.rivals import PageRetrieval, StreamedAttention, full_attention, oracle_top_k
from fengwu_ghr.attention.wave import WaveAttention, WaveSettings
from fengwu_ghr.attention.wave_field import attend_field, grid_tiles
from fengwu_ghr.attention.wave_index import Clustering, WaveIndex, build_index, region_order
from fengwu_ghr.attention.wave_store import FileStore, MemoryStore, Store

Where = Literal["memory", "file"]

SINK, RECENT = 4, 64
BUDGETS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.018, 0.03, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Shares of clusters or pages that are tried in turn until one keeps the error."""


@dataclass(frozen=True)
class Row:
    """One way of attending: budget as a share of the tokens, mean relative error, seconds and bytes of a decode."""

    name: str
    budget: float
    error: float
    seconds: float
    megabytes: float


@dataclass(frozen=True)
class DecodeBench:
    """What is decoded. `tokens` for each of `heads` of width `dim`, `share` queries a head, `max_error` relative."""

    tokens: int
    heads: int = 8
    dim: int = 128
    share: int = 4
    kind: Kind = "topics"
    gain: float = 1.0
    max_error: float = 0.01
    decodes: int = 5
    clusters: tuple[int, ...] = (16, 64)
    pages: tuple[int, ...] = (16, 64)
    iterations: int = 4

    def context(self) -> Context:
        """Queries of one group ask nearly the same, as those of one token do."""
        made = make_context(
            self.kind,
            heads=self.heads,
            tokens=self.tokens,
            dim=self.dim,
            queries=self.decodes,
            gain=self.gain,
        )
        near = made.queries.repeat_interleave(self.share, 1)
        g = torch.Generator().manual_seed(2)
        near = near + 0.1 * near.std() * torch.randn(near.shape, generator=g)
        return Context(made.keys, made.values, near)

    def clustering(self, cluster: int) -> Clustering:
        return Clustering(cluster=cluster, iterations=self.iterations, last_pass="segment")


@dataclass(frozen=True)
class Build:
    """What the index took, and what it is a part of: causal attention over the same context, at the measured rate."""

    seconds: float
    prefill_seconds: float

    @property
    def share(self) -> float:
        return self.seconds / self.prefill_seconds


@torch.inference_mode()
def bench_decode(
    bench: DecodeBench, *, where: Where, folder: Path, note: Callable[[str], None], threads: int = 1
) -> tuple[list[Row], Build]:
    """Rows for full attention, full attention streamed, page retrieval, the oracle and wave attention.

    With a file, the system's page cache is emptied before every decode that reads it.
    """
    torch.set_num_threads(threads)
    note(f"making {bench.tokens} tokens for {bench.heads} heads")
    context = bench.context()
    queries = context.queries.split(bench.share, 1)
    exact = [full_attention(q, context.keys, context.values) for q in queries]
    cut = slice(SINK, bench.tokens - RECENT)
    keys, values = context.keys[:, cut], context.values[:, cut]
    steady = _ends(torch.cat([context.keys, context.values], -1))
    rows = []
    if where == "memory":
        timed = [_timed(partial(full_attention, q, context.keys, context.values)) for q in queries]
        size = context.keys.nbytes + context.values.nbytes
        rows.append(Row("full attention (torch)", 1.0, 0.0, min(timed), size / 1e6))
    note("full attention, streamed; pages")
    with _stored(keys, values, None, where, folder) as store:
        rows.append(_streamed(store, steady, queries))
        rows += [_pages(bench, page, store, keys, steady, queries, exact) for page in bench.pages]
    rows.append(_oracle(bench, context, queries, exact))
    builds = []
    for cluster in bench.clusters:
        note(f"wave attention, clusters of {cluster}")
        start = perf_counter()
        index = build_index(keys, values, bench.clustering(cluster))
        builds.append(perf_counter() - start)
        with _stored(keys, values, index, where, folder) as store:
            rows.append(_wave(bench, store, index, steady, queries, exact))
    return rows, Build(max(builds), _prefill_seconds(bench, context))


def bench_certificate(
    kind: Kind, gain: float, max_error: float, *, tokens: int = 16384
) -> tuple[float, float, float]:
    """Shares of queries certified without falling back and of tokens read; seconds over those of full attention."""
    context = make_context(kind, tokens=tokens, gain=gain)
    wave = WaveAttention(context.keys, context.values, WaveSettings(certify=True))
    queries = context.queries.split(1, 1)
    start = perf_counter()
    found = [decode_certified(wave, q, max_error=max_error) for q in queries]
    middle = perf_counter()
    for q in queries:
        full_attention(q, context.keys, context.values)
    ratio = (middle - start) / (perf_counter() - middle)
    certified = 1 - torch.stack([f.fell_back for f in found]).float().mean()
    return float(certified), float(torch.stack([f.retrieved for f in found]).mean()), ratio


@dataclass(frozen=True)
class FieldRow:
    """All queries of a field: seconds of dense attention and of ours, index included, by head; errors."""

    gain: float
    length: float
    cluster: int
    retrieval: float
    dense_seconds: float
    build_seconds: float
    seconds: float
    error: float
    error_95: float

    @property
    def ratio(self) -> float:
        return self.dense_seconds / (self.build_seconds + self.seconds)


def bench_field(
    *,
    gain: float,
    length: float,
    cluster: int,
    retrieval: float,
    rows: int = 180,
    columns: int = 360,
    heads: int = 1,
    dim: int = 64,
    tile: tuple[int, int] = (12, 20),
) -> FieldRow:
    """Every token of a smooth field to every token, against dense attention over the same keys.

    `length` is over how many tokens a field changes. Dense attention is timed on an eighth of the queries, its cost
    being the same for each; the error is of 500 random ones.
    """
    g, tokens = torch.Generator().manual_seed(1), rows * columns
    k, v = (smooth(heads * dim, (rows, columns), size, g) for size in (length, 2 * length))
    k, v = (x.view(heads, dim, tokens).transpose(1, 2).contiguous() for x in (k, v))
    v = v + 0.25 * torch.randn(heads, 1, dim, generator=g)
    q = gain * k
    some = q[None, :, : tokens // 8]
    dense = _timed(lambda: scaled_dot_product_attention(some, k[None], v[None])) * tokens / some.shape[2]
    start = perf_counter()
    index = field_index(k, v, rows=rows, columns=columns, cluster=cluster)
    middle = perf_counter()
    tiles = grid_tiles(rows, columns, height=tile[0], breadth=tile[1], rings=0)
    out, _ = attend_field(q, k, v, index, tiles, retrieval=retrieval)
    end = perf_counter()
    picked = torch.randint(tokens, (500,), generator=g)
    exact = scaled_dot_product_attention(q[None, :, picked], k[None], v[None])[0]
    off = (out[:, picked] - exact).norm(dim=-1) / exact.norm(dim=-1)
    return FieldRow(
        gain, length, cluster, retrieval, dense / heads, (middle - start) / heads, (end - middle) / heads,
        float(off.mean()), float(off.quantile(0.95)),
    )  # fmt: skip


def field_index(
    k: Float[Tensor, "head token dim"],
    v: Float[Tensor, "head token dim"],
    *,
    rows: int,
    columns: int,
    cluster: int,
) -> WaveIndex:
    """An index of a field, region by region, in three iterations."""
    order = region_order(rows, columns, down=4, across=4)
    clustering = Clustering(cluster=cluster, iterations=3, segment=rows * columns // 16, last_pass="segment")
    index = build_index(k[:, order], v[:, order], clustering)
    return WaveIndex(index.means, index.value_sums, index.sizes, order[index.order])


class _stored:
    """A store of keys and values, in the order of an index or of their tokens, for as long as it is wanted."""

    def __init__(
        self, keys: Tensor, values: Tensor, index: WaveIndex | None, where: Where, folder: Path
    ) -> None:
        self.path = folder / "kv.bin"
        heads = self._records(keys, values, index)
        if where == "memory":
            self.store: Store = MemoryStore(torch.stack(list(heads)))
        else:
            self.store = FileStore.create(self.path, heads, count=len(keys))

    def _records(self, keys: Tensor, values: Tensor, index: WaveIndex | None) -> Iterator[Tensor]:
        for head in range(len(keys)):
            order = slice(None) if index is None else index.order[head]
            yield torch.cat([keys[head, order], values[head, order]], -1)

    def __enter__(self) -> Store:
        return self.store

    def __exit__(self, *_: object) -> None:
        if isinstance(self.store, FileStore):
            self.store.close()
            self.path.unlink()


def _timed(function: Callable[[], object], before: Callable[[], None] | None = None) -> float:
    if before:
        before()
    start = perf_counter()
    function()
    return perf_counter() - start


def _forget(store: Store) -> Callable[[], None] | None:
    return store.forget if isinstance(store, FileStore) else None


def _error(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    off = [((a - b).norm(dim=-1) / b.norm(dim=-1)).mean() for a, b in zip(found, exact)]
    return float(torch.stack(off).mean())


def _ends(records: Float[Tensor, "head token record"]) -> Float[Tensor, "head steady record"]:
    return torch.cat([records[:, :SINK], records[:, records.shape[1] - RECENT :]], 1)


def _prefill_seconds(bench: DecodeBench, context: Context) -> float:
    """Causal attention over the whole context, from the rate of dense attention over a few thousand queries."""
    queries = min(2048, bench.tokens)
    q = context.keys[None, :1, :queries]
    long = context.keys[None, :1, :16384], context.values[None, :1, :16384]
    seconds = min(_timed(lambda: scaled_dot_product_attention(q, *long)) for _ in range(2))
    pairs = bench.tokens * (bench.tokens + 1) / 2 * bench.heads * bench.share
    return seconds * pairs / (queries * long[0].shape[2])


def _streamed(store: Store, steady: Tensor, queries: Sequence[Tensor]) -> Row:
    """The steady tokens are a 20,000th of the context: they are left out of the time, not of the count of bytes."""
    streamed = StreamedAttention(store)
    seconds = [_timed(partial(streamed.decode, q), _forget(store)) for q in queries[:2]]
    moved = streamed.buffer.report.bytes_moved / len(seconds)
    return Row("full attention, streamed", 1.0, 0.0, min(seconds), (moved + steady.nbytes) / 1e6)


def _pages(
    bench: DecodeBench,
    page: int,
    store: Store,
    keys: Tensor,
    steady: Tensor,
    queries: Sequence[Tensor],
    exact: Sequence[Tensor],
) -> Row:
    pages = PageRetrieval(store, keys, steady, page=page)
    for budget in BUDGETS:
        count = max(round(budget * pages.pages), 1)
        error = _error([pages.decode(q, count) for q in queries], exact)
        if error <= bench.max_error:
            break
    before = pages.buffer.report.bytes_moved
    seconds = [_timed(partial(pages.decode, q, count), _forget(store)) for q in queries]
    moved = (pages.buffer.report.bytes_moved - before) / len(queries)
    index = pages.smallest.nbytes + pages.largest.nbytes
    return Row(
        f"page retrieval, pages of {page}", budget, error, min(seconds), (moved + index + steady.nbytes) / 1e6
    )


def _oracle(bench: DecodeBench, context: Context, queries: Sequence[Tensor], exact: Sequence[Tensor]) -> Row:
    """Without a time: it looks at every key to know which to look at."""
    for budget in BUDGETS:
        count = max(round(budget * bench.tokens), 1)
        error = _error([oracle_top_k(q, context.keys, context.values, count) for q in queries], exact)
        if error <= bench.max_error:
            break
    return Row("oracle top-k", budget, error, float("nan"), float("nan"))


def _wave(
    bench: DecodeBench,
    store: Store,
    index: WaveIndex,
    steady: Tensor,
    queries: Sequence[Tensor],
    exact: Sequence[Tensor],
) -> Row:
    keys, values = steady.chunk(2, dim=-1)
    for budget in BUDGETS:
        wave = WaveAttention(keys, values, WaveSettings(retrieval=budget), store=store, index=index)
        error = _error([wave.decode(q) for q in queries], exact)
        if error <= bench.max_error:
            break
    before = wave.report.bytes_moved
    seconds = [_timed(partial(wave.decode, q), _forget(store)) for q in queries]
    moved = (wave.report.bytes_moved - before) / len(queries)
    meta = index.means.nbytes + index.value_sums.nbytes
    size = round(index.tokens / index.clusters)
    return Row(
        f"wave attention, clusters of {size}",
        budget,
        error,
        min(seconds),
        (moved + meta + steady.nbytes) / 1e6,
    )
