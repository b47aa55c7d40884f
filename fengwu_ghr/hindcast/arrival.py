"""Input that comes late, or is still being copied: waited for, or left for the next run.

A file is looked at twice, and this process's own clock says how long it kept still: the clocks of machines differ.
"""

import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import monotonic, sleep

from fengwu_ghr.grib.sections import END
from fengwu_ghr.hindcast.season import Season
from fengwu_ghr.hindcast.settings import matching

LOOK_SECONDS = 1.0
STILL_SECONDS = 5.0
"""A file that is cut off and kept still for so long is as whole as it will be: bad, not late."""


@dataclass
class _Look:
    """What a file that is cut off looked like, since when, and whether it was ever seen to change."""

    looks: tuple[int, int] | None
    since: float
    has_changed: bool = False


class Arrivals:
    """Which input files are there. One that does not end as GRIB does is coming as long as it changes."""

    def __init__(self, *, now: Callable[[], float] = monotonic) -> None:
        self._now = now
        self._cut_off: dict[Path, _Look] = {}

    def lacking(self, names: Sequence[str]) -> list[str]:
        """Of these files and patterns those that are not there, or not whole yet; empty where all are."""
        absent = [name for name in names if not matching(name)]
        return absent or [f"{path} (still being written)" for path in _files(names) if self._is_coming(path)]

    def lacking_for_sure(self, names: Sequence[str]) -> list[str]:
        """The same, after as many looks as it takes to tell what is being written from what is cut off."""
        while (found := self.lacking(names)) and self.is_unsure(names):
            sleep(LOOK_SECONDS)
        return found

    def is_unsure(self, names: Sequence[str]) -> bool:
        """Whether a cut-off file among these may be one or the other: it has not been watched long enough."""
        seen = (self._cut_off.get(path) for path in _files(names))
        return any(not look.has_changed and not self._is_still(look) for look in seen if look)

    def _is_coming(self, path: Path) -> bool:
        if ends_like_grib(path):
            self._cut_off.pop(path, None)
            return False
        looks, before = _looks_of(path), self._cut_off.get(path)
        if before is None or before.looks != looks:
            self._cut_off[path] = _Look(looks, self._now(), has_changed=before is not None)
            return True
        return not self._is_still(before)

    def _is_still(self, look: _Look) -> bool:
        return self._now() - look.since >= STILL_SECONDS


def ends_like_grib(path: Path) -> bool:
    """Whether the last message of the file is all there; also where it cannot be read: who decodes it says why."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - len(END)))
            return file.read() == END
    except OSError:
        return True


def _looks_of(path: Path) -> tuple[int, int] | None:
    """Size and time of change; None where it has just been taken away."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns


def _files(names: Sequence[str]) -> list[Path]:
    return [path for name in names for path in matching(name)]


class LateInput:
    """Initial times whose input is not there yet: they are taken out of those that wait, and given back when it is."""

    def __init__(
        self,
        season: Season,
        waiting: deque[datetime],
        arrivals: Arrivals,
        *,
        now: Callable[[], float] = monotonic,
    ) -> None:
        self._season, self._waiting, self._arrivals, self._now = season, waiting, arrivals, now
        self.asked = set(waiting)
        found = {time: arrivals.lacking(season.input_names(time)) for time in waiting}
        self.absent = {time: told_absent(names) for time, names in found.items() if names}
        for time in self.absent:
            waiting.remove(time)
        self._patience = 60 * season.config.input.wait_minutes
        self._idle_since: float | None = None

    @property
    def may_come(self) -> bool:
        """Whether it is worth while to wait."""
        if not self.absent:
            return False
        if self._patience and (self._idle_since is None or self._now() - self._idle_since < self._patience):
            return True
        return any(self._arrivals.is_unsure(self._season.input_names(time)) for time in self.absent)

    def look(self, *, is_idle: bool) -> None:
        """What has come waits for its turn; `is_idle` where there is nothing else to do."""
        came = [time for time in self.absent if not self._arrivals.lacking(self._season.input_names(time))]
        for time in came:
            del self.absent[time]
            self._waiting.append(time)
        if not is_idle or came:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = self._now()


def told_absent(names: Sequence[str]) -> str:
    """Why an initial time is not computed: these names are not there."""
    return f"not there: {', '.join(names)}"
