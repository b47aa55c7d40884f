"""Graphs that do not all fit into memory: which stay loaded, which are loaded anew at every step.

They run in a circle. What was used last is needed latest, so it is what must go: the least recently used, which
most caches evict, is needed next, and evicting it would load every graph at every step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from fengwu_ghr.errors import ResourceError

Loaded = TypeVar("Loaded")


class GraphPool(Generic[Loaded]):
    """Loads graphs by their number when they are fetched, and keeps within `budget` bytes.

    Raises ResourceError where one graph alone is larger. Whoever fetches a graph must let go of the one before.
    """

    def __init__(self, sizes: Sequence[int], budget: int, *, load: Callable[[int], Loaded]) -> None:
        if max(sizes) > budget:
            raise ResourceError(
                f"graph {sizes.index(max(sizes))} takes {max(sizes) / 2**30:.2f} GiB, and {max(budget, 0) / 2**30:.2f} "
                "GiB are left for graphs; raise --memory-budget"
            )
        self._sizes, self._budget, self._load = sizes, budget, load
        self._loaded: dict[int, Loaded] = {}
        self.loads = 0
        """How often a graph was loaded."""
        self.loaded_bytes = 0
        """Bytes that were loaded, each as often as it was."""

    def fetch(self, number: int) -> Loaded:
        """The graph of this number, loaded."""
        if number not in self._loaded:
            self._make_room(number)
            self._loaded[number] = self._load(number)
            self.loads += 1
            self.loaded_bytes += self._sizes[number]
        return self._loaded[number]

    @property
    def resident(self) -> frozenset[int]:
        """Numbers of the graphs that are loaded now."""
        return frozenset(self._loaded)

    def _make_room(self, number: int) -> None:
        while self._loaded and self._held + self._sizes[number] > self._budget:
            latest = max(self._loaded, key=lambda other: (other - number) % len(self._sizes))
            del self._loaded[latest]

    @property
    def _held(self) -> int:
        return sum(self._sizes[number] for number in self._loaded)


@dataclass(frozen=True)
class PoolPlan:
    """What every step costs after the first."""

    graphs: int
    bytes: int
    """Held at the most."""
    loads: int
    loaded_bytes: int

    @classmethod
    def of(cls, sizes: Sequence[int], budget: int) -> "PoolPlan":
        """As a pool of this budget would do. Raises ResourceError where a graph is larger."""
        pool: GraphPool[int] = GraphPool(sizes, budget, load=lambda number: number)
        held = 0
        for step in range(len(sizes) + 1):  # by then what stays has come to rest
            before = pool.loads, pool.loaded_bytes
            for number in range(len(sizes)):
                pool.fetch(number)
                held = max(held, sum(sizes[one] for one in pool.resident))
            if step and pool.loads == before[0]:
                break
        return cls(len(sizes), held, pool.loads - before[0], pool.loaded_bytes - before[1])

    def __str__(self) -> str:
        stay = f"{self.graphs - self.loads} of {self.graphs} graphs stay loaded"
        if not self.loads:
            return stay
        return f"{stay}, {self.loads} are loaded anew at every step ({self.loaded_bytes / 2**30:.2f} GiB)"
