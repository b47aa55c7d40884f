"""Progress: who hears how far long work has come. The command line shows it."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable


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
