"""The wave buffer: fetches clusters from the store into fast memory, and keeps there what is wanted again.

A lookup only reads: where a cluster is says the mapping table, and results are the same bits wherever that is. After
it another thread brings the cache up to date, while attention is computed.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fengwu_ghr.attention.wave_store import Runs, Store

PAGE = 8
"""Records of a block: clusters take whole blocks of the cache."""

Policy = Literal["lru", "future"]


@dataclass
class BufferReport:
    """What a buffer did: records found in the cache and fetched, bytes moved, seconds of the cache's updates."""

    fetches: int = 0
    hits: int = 0
    misses: int = 0
    bytes_moved: int = 0
    extended: int = 0
    update_seconds: float = 0.0
    waited_seconds: float = 0.0

    @property
    def hit_ratio(self) -> float:
        return self.hits / max(self.hits + self.misses, 1)

    @property
    def overlap(self) -> float:
        """The share of the updates that nobody waited for; 0 where waking up takes longer than updating."""
        return max(1 - self.waited_seconds / self.update_seconds, 0.0) if self.update_seconds else 1.0


class BlockCache:
    """Blocks of `PAGE` records in fast memory, the same number for each head; clusters come and go whole.

    A cluster has a priority; the cache holds those of the highest, in order, as far as they fit. With `lru` that is
    when it was last asked for, the better rank later; with a known future how soon it is asked for again.
    """

    def __init__(self, sizes: Int64[np.ndarray, "head cluster"], *, blocks: int, like: Tensor) -> None:
        self.blocks = blocks
        self.memory = like.new_zeros(len(sizes), blocks * PAGE, like.shape[-1])
        self._sizes = np.zeros((len(sizes), 0), np.int64)
        self._slot = np.zeros((len(sizes), 0), np.int64)
        self.resident: Bool[np.ndarray, "head cluster"] = np.zeros((len(sizes), 0), bool)
        self._priority = np.zeros((len(sizes), 0), np.int64)
        self._free = [np.arange(blocks) for _ in sizes]
        self.extend(sizes)

    def extend(self, sizes: Int64[np.ndarray, "head cluster"]) -> None:
        """There are more clusters, none of them here yet."""
        self._sizes = np.concatenate([self._sizes, sizes], 1)
        self._needs = -(-self._sizes // PAGE)
        self._first = self._needs.cumsum(1) - self._needs
        known = self._slot.shape[1]
        more = int(self._needs.sum(1).max(initial=0)) - known
        self._slot = np.pad(self._slot, ((0, 0), (0, max(more, 0))), constant_values=-1)
        nothing = ((0, 0), (0, sizes.shape[1]))
        self.resident = np.pad(self.resident, nothing)
        self._priority = np.pad(self._priority, nothing)

    def holds(self, runs: Runs) -> Bool[np.ndarray, "run"]:
        return self.resident[runs.head, runs.cluster]

    def rows(self, runs: Runs) -> Int64[np.ndarray, "token"]:
        """Where the records of runs that are here lie in `memory`, heads one after the other."""
        within = runs.within()
        block = runs.spread(self._first[runs.head, runs.cluster]) + within // PAGE
        head = runs.spread(runs.head)
        return (head * self.blocks + self._slot[head, block]) * PAGE + within % PAGE

    def update(
        self,
        runs: Runs,
        priority: Int64[np.ndarray, "run"],
        buffer: Float[Tensor, "row record"],
    ) -> None:
        """The cache holds the clusters of the highest priority among its own and those of the runs."""
        self._priority[runs.head, runs.cluster] = priority
        admitted = np.zeros(len(runs.head), bool)
        for head in range(len(self.resident)):
            mine = np.flatnonzero(runs.head == head)
            admitted[mine] = self._choose(head, runs.cluster[mine])
        new = runs.where(admitted)
        if new.tokens:
            targets, sources = (torch.from_numpy(rows) for rows in (self.rows(new), new.targets()))
            flat = self.memory.view(-1, self.memory.shape[-1])
            device = flat.device
            flat.index_copy_(0, targets.to(device), buffer.index_select(0, sources.to(device)))

    def _choose(self, head: int, asked: Int64[np.ndarray, "rank"]) -> Bool[np.ndarray, "rank"]:
        """Evicts what must go; says which of the asked come in, and gives them blocks."""
        resident, needs = self.resident[head], self._needs[head]
        there = np.flatnonzero(resident)
        missing = asked[~resident[asked] & (needs[asked] <= self.blocks) & (needs[asked] > 0)]
        both = np.concatenate([there, missing])
        best = both[np.argsort(-self._priority[head, both], kind="stable")]
        kept = best[needs[best].cumsum() <= self.blocks]
        stays = np.zeros(len(resident), bool)
        stays[kept] = True
        for cluster in there[~stays[there]].tolist():
            self._release(head, cluster)
        for cluster in missing[stays[missing]].tolist():
            self._take(head, cluster)
        return np.isin(asked, missing) & stays[asked]

    def _release(self, head: int, cluster: int) -> None:
        first = self._first[head, cluster]
        mine = slice(first, first + self._needs[head, cluster])
        self._free[head] = np.concatenate([self._free[head], self._slot[head, mine]])
        self._slot[head, mine] = -1
        self.resident[head, cluster] = False

    def _take(self, head: int, cluster: int) -> None:
        first, count = self._first[head, cluster], self._needs[head, cluster]
        self._slot[head, first : first + count] = self._free[head][:count]
        self._free[head] = self._free[head][count:]
        self.resident[head, cluster] = True


class WaveBuffer:
    """Fetches clusters, rank by rank, into one buffer that all fetches share; see `fetch`.

    `cache_blocks` blocks for each head are kept in fast memory (0: nothing is kept). With the policy `future` the
    clusters of all coming fetches must be announced. The buffer grows where a fetch needs more than it holds.
    """

    def __init__(
        self,
        store: Store,
        sizes: Int64[Tensor, "head cluster"],
        *,
        cache_blocks: int = 0,
        policy: Policy = "lru",
        device: torch.device | str = "cpu",
    ) -> None:
        if cache_blocks < 0:
            raise ValueError(f"a cache has 0 or more blocks for each head; got {cache_blocks}")
        if int(sizes.sum(1).max()) > store.tokens or sizes.shape[0] != store.heads:
            raise ValueError(
                f"clusters of {tuple(sizes.sum(1).tolist())} tokens need as many in each head of the store; "
                f"it has {store.heads} heads of {store.tokens}"
            )
        self.store, self.policy, self.report = store, policy, BufferReport()
        self._sizes = sizes.cpu().numpy()
        self._offsets = _offsets(self._sizes)
        self._buffer = torch.zeros(0, store.record, dtype=store.dtype, device=device)
        self.cache = BlockCache(self._sizes, blocks=cache_blocks, like=self._buffer) if cache_blocks else None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="wave-cache")
        self._pending: Future[None] | None = None
        self._next_use: list[Int64[np.ndarray, "head rank"]] = []

    def announce(self, future: Sequence[Int64[Tensor, "head rank"]]) -> None:
        """From now on fetches are of these clusters, in this order; the policy `future` keeps what comes soonest."""
        self.wait()
        never = len(future) + 1
        upcoming = np.full(self._sizes.shape, never, np.int64)
        self._next_use = []
        for step in range(len(future) - 1, -1, -1):
            clusters = future[step].cpu().numpy()
            self._next_use.append(np.take_along_axis(upcoming, clusters, 1))
            np.put_along_axis(upcoming, clusters, step, 1)

    def fetch(
        self, clusters: Int64[Tensor, "head rank"]
    ) -> tuple[Float[Tensor, "head slot record"], Int64[Tensor, "head"]]:
        """The records of these clusters, in their order, and how many each head has; what lies behind means nothing.

        They are there until the next fetch. A cluster of -1 is none, so that heads may ask for different numbers.
        """
        self.wait()
        every = Runs.of(clusters.cpu().numpy(), self._sizes, self._offsets)
        some = every.length > 0
        runs = every.where(some)
        out = self._room(len(runs.counts) * runs.width)
        self._collect(runs, out)
        if self.cache is not None:
            priorities = self._priorities(clusters)[some]
            self._pending = self._pool.submit(self._update, runs, priorities, out)
        self.report.fetches += 1
        counts = torch.from_numpy(runs.counts).to(out.device)
        return out.view(len(runs.counts), runs.width, self.store.record), counts

    def append(
        self, records: Float[Tensor, "head token record"], sizes: Int64[Tensor, "head cluster"]
    ) -> None:
        """There are more clusters: these records, in cluster order."""
        self.wait()
        self.store.append(records)
        more = sizes.cpu().numpy()
        self._sizes = np.concatenate([self._sizes, more], 1)
        self._offsets = _offsets(self._sizes)
        if self.cache is not None:
            self.cache.extend(more)

    def wait(self) -> None:
        """The cache is up to date; an error of its update is raised here."""
        if self._pending is not None:
            start, pending, self._pending = perf_counter(), self._pending, None
            pending.result()
            self.report.waited_seconds += perf_counter() - start

    def close(self) -> None:
        self.wait()
        self._pool.shutdown()

    def _room(self, rows: int) -> Float[Tensor, "row record"]:
        if rows > len(self._buffer):
            self.report.extended += len(self._buffer) > 0
            # Zeros: what no fetch has filled yet is multiplied by zero weights, which NaN would survive.
            self._buffer = self._buffer.new_zeros(rows * 9 // 8, self.store.record)
        return self._buffer[:rows]

    def _collect(self, runs: Runs, out: Float[Tensor, "row record"]) -> None:
        report, width = self.report, out.shape[1] * out.element_size()
        if self.cache is None:
            report.misses += runs.tokens
            report.bytes_moved += runs.tokens * width
            self.store.gather(runs, out)
            return
        hit = self.cache.holds(runs)
        hits, misses = runs.where(hit), runs.where(~hit)
        report.hits += hits.tokens
        report.misses += misses.tokens
        report.bytes_moved += misses.tokens * width
        if misses.tokens:
            self.store.gather(misses, out)
        if hits.tokens:
            rows, places = (
                torch.from_numpy(r).to(out.device) for r in (self.cache.rows(hits), hits.targets())
            )
            out.index_copy_(0, places, self.cache.memory.flatten(0, 1).index_select(0, rows))

    def _priorities(self, clusters: Int64[Tensor, "head rank"]) -> Int64[np.ndarray, "run"]:
        heads, ranks = clusters.shape
        if self.policy == "future":
            if not self._next_use:
                raise ValueError("the policy `future` needs the coming fetches: announce all of them first")
            return -self._next_use.pop().ravel()
        newest = (self.report.fetches + 1) * self._sizes.shape[1]
        return np.tile(newest + ranks - np.arange(ranks), heads)

    def _update(self, runs: Runs, priority: np.ndarray, out: Tensor) -> None:
        assert self.cache is not None
        start = perf_counter()
        self.cache.update(runs, priority, out)
        self.report.update_seconds += perf_counter() - start


def _offsets(sizes: Int64[np.ndarray, "head cluster"]) -> Int64[np.ndarray, "head edge"]:
    return np.pad(sizes.cumsum(1), ((0, 0), (1, 0)))
