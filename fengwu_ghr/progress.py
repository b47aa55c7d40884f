"""Progress: who hears how far long work has come, and on what its time was spent. The command line shows it."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from time import perf_counter
from typing import Protocol, TypeVar, runtime_checkable

Item = TypeVar("Item")


@runtime_checkable
class Progress(Protocol):
    """Hears how far work has come, step by step, whatever a step is."""

    def note(self, text: str) -> None:
        """One line worth knowing."""

    def begin(self, title: str, done: int, total: int) -> None:
        """Stepping starts; `done` of `total` steps lie behind."""

    def stepped(self, done: int, facts: Mapping[str, float]) -> None:
        """One more step is done, or several, `done` in all; `facts` are worth showing beside it."""


class Silence:
    """Progress that nobody hears."""

    def note(self, text: str) -> None:
        return

    def begin(self, title: str, done: int, total: int) -> None:
        return

    def stepped(self, done: int, facts: Mapping[str, float]) -> None:
        return


class Stopwatch:
    """Seconds by activity. Activities may overlap, in any threads: their sum is not the time that has gone by."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._guard = Lock()

    @property
    def seconds(self) -> dict[str, float]:
        """Of every activity so far."""
        return dict(self._seconds)

    @contextmanager
    def measure(self, activity: str) -> Iterator[None]:
        """What happens inside is added to this activity, also where it fails."""
        start = perf_counter()
        try:
            yield
        finally:
            with self._guard:
                self._seconds[activity] += perf_counter() - start

    def each(self, activity: str, items: Iterable[Item]) -> Iterator[Item]:
        """The items; getting them is added to this activity, what is done with them is not."""
        iterator = iter(items)
        while True:
            with self.measure(activity):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item
