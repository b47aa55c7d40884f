"""Where keys and values wait: in host memory or in a file, one record of both for each token, clusters contiguous."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

Indices = Int64[np.ndarray, "run"]

READERS = 16
"""Reads of a file under way at a time: a disk answers them together."""


@dataclass(frozen=True)
class Runs:
    """Consecutive tokens that are fetched together: `length` records of `head` from `start`, to `place` in a buffer.

    `cluster` says whose records they are, `counts` how many records each head gets; buffers are as wide as the most.
    """

    head: Indices
    cluster: Indices
    start: Indices
    length: Indices
    place: Indices
    counts: Int64[np.ndarray, "head"]

    @classmethod
    def of(
        cls,
        clusters: Int64[np.ndarray, "head rank"],
        sizes: Int64[np.ndarray, "head cluster"],
        offsets: Int64[np.ndarray, "head edge"],
    ) -> "Runs":
        """One run for each of these clusters, one behind the other by head; none for -1."""
        chosen = np.maximum(clusters, 0)
        length = np.where(clusters < 0, 0, np.take_along_axis(sizes, chosen, 1))
        start = np.take_along_axis(offsets, chosen, 1)
        ends = length.cumsum(1)
        head = np.broadcast_to(np.arange(len(clusters))[:, None], clusters.shape)
        counts = ends[:, -1] if clusters.shape[1] else np.zeros(len(clusters), np.int64)
        return cls(
            head.ravel(), clusters.ravel(), start.ravel(), length.ravel(), (ends - length).ravel(), counts
        )

    @property
    def width(self) -> int:
        return int(self.counts.max(initial=0))

    @property
    def tokens(self) -> int:
        return int(self.length.sum())

    def where(self, chosen: np.ndarray) -> "Runs":
        """Some of the runs, to the same places."""
        head, cluster, start = self.head[chosen], self.cluster[chosen], self.start[chosen]
        return Runs(head, cluster, start, self.length[chosen], self.place[chosen], self.counts)

    def within(self) -> Int64[np.ndarray, "token"]:
        """The number of each token within its run."""
        return np.arange(self.tokens) - np.repeat(self.length.cumsum() - self.length, self.length)

    def spread(self, by_run: Indices) -> Int64[np.ndarray, "token"]:
        """What is said of each run, for each of its tokens."""
        return np.repeat(by_run, self.length)

    def targets(self) -> Int64[np.ndarray, "token"]:
        """Rows of the buffer, heads one after the other."""
        return self.spread(self.head * self.width + self.place) + self.within()


class MemoryStore:
    """Records in host memory, pinned where they are on their way to a GPU."""

    def __init__(self, records: Float[Tensor, "head token record"], *, pinned: bool = False) -> None:
        self.pinned = pinned
        self.tokens = records.shape[1]
        self.records = records.contiguous().pin_memory() if pinned else records.contiguous()
        self.heads, self.record, self.dtype = records.shape[0], records.shape[2], records.dtype

    def gather(self, runs: Runs, out: Float[Tensor, "row record"]) -> None:
        """The records of these runs stand in their places of a buffer, heads one after the other."""
        rows = runs.spread(runs.head * self.records.shape[1] + runs.start) + runs.within()
        source, targets = self.records.flatten(0, 1), torch.from_numpy(runs.targets())
        if out.device.type == "cpu" and len(runs.counts) == self.heads and runs.tokens == runs.counts.sum():
            # All of the buffer: one pass, in which what no run fills takes any record.
            every = torch.zeros(len(out), dtype=torch.long).index_copy_(0, targets, torch.from_numpy(rows))
            torch.index_select(source, 0, every, out=out)
        else:
            some = source.index_select(0, torch.from_numpy(rows))
            out.index_copy_(0, targets.to(out.device), some.to(out.device))

    def append(self, records: Float[Tensor, "head token record"]) -> None:
        """These records stand behind all others."""
        end = self.tokens + records.shape[1]
        if end > self.records.shape[1]:
            grown = self.records.new_zeros(self.heads, max(end, self.tokens * 5 // 4), self.record)
            grown[:, : self.tokens] = self.records[:, : self.tokens]
            self.records = grown.pin_memory() if self.pinned else grown
        self.records[:, self.tokens : end] = records.to(self.records)
        self.tokens = end


class FileStore:
    """Records in a file of `capacity` tokens for each head, read run by run, many at a time.

    Raises ValueError where the file is not as long as its shape says, or more is appended than there is room for.
    """

    def __init__(self, path: Path, *, heads: int, tokens: int, record: int, capacity: int = 0) -> None:
        self.path, self.heads, self.tokens, self.record = path, heads, tokens, record
        self.dtype = torch.float32
        self.capacity = max(capacity, tokens)
        self._row = 4 * record
        needed, there = heads * self.capacity * self._row, path.stat().st_size
        if there != needed:
            raise ValueError(
                f"a file of {heads} heads x {self.capacity} records of {record} numbers has {needed} bytes; "
                f"{path} has {there}"
            )
        self._file = os.open(path, os.O_RDWR)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="wave-read")

    @classmethod
    def create(
        cls, path: Path, heads: Iterator[Float[Tensor, "token record"]], *, count: int, capacity: int = 0
    ) -> "FileStore":
        """A file with the records of `count` heads, which come one after the other."""
        tokens = record = 0
        with path.open("wb") as file:
            for number, records in enumerate(heads):
                tokens, record = records.shape
                file.seek(number * max(capacity, tokens) * record * 4)
                records.float().contiguous().numpy().tofile(file)
            file.truncate(count * max(capacity, tokens) * record * 4)
            os.fsync(file.fileno())
        return cls(path, heads=count, tokens=tokens, record=record, capacity=capacity)

    def gather(self, runs: Runs, out: Float[Tensor, "row record"]) -> None:
        host = out if out.device.type == "cpu" else torch.empty(out.shape, dtype=self.dtype)
        rows = host.numpy()
        sources = ((runs.head * self.capacity + runs.start) * self._row).tolist()
        targets = (runs.head * runs.width + runs.place).tolist()
        lengths = runs.length.tolist()
        along = np.argsort(sources, kind="stable").tolist()

        def read(part: list[int]) -> None:
            for run in part:
                into = rows[targets[run] : targets[run] + lengths[run]]
                if into.size and os.preadv(self._file, [into.data], sources[run]) != into.nbytes:
                    raise OSError(f"{self.path} ends within the records of a cluster")

        step = -(-len(along) // READERS) or 1
        parts = [along[first : first + step] for first in range(0, len(along), step)]
        list(self._readers.map(read, parts))
        if host is not out:
            places = torch.from_numpy(runs.targets())
            out.index_copy_(0, places.to(out.device), host.index_select(0, places).to(out.device))

    def append(self, records: Float[Tensor, "head token record"]) -> None:
        end = self.tokens + records.shape[1]
        if end > self.capacity:
            raise ValueError(
                f"{self.path} has room for {self.capacity} tokens; got {end}: create it with more capacity"
            )
        for head, some in enumerate(records.float().cpu().numpy()):
            os.pwrite(self._file, some.tobytes(), (head * self.capacity + self.tokens) * self._row)
        self.tokens = end

    def forget(self) -> None:
        """The system's page cache holds nothing of the file: what is read next comes from the disk."""
        os.fsync(self._file)
        os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        self._readers.shutdown()
        os.close(self._file)


Store = MemoryStore | FileStore
"""Both hold `tokens` records of `record` numbers (a key, a value) for each of `heads`, in cluster order."""
