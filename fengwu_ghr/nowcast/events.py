"""Events: which radar sequences train, validate and test, and the windows cut from each.

A window never straddles two blocks, and blocks of one file in different splits lie GAP apart: weather two hours later
is other weather to a two-hour forecast. The split is written in the settings, before anything is trained.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import combinations
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from fengwu_ghr.config import Instant, Section
from fengwu_ghr.errors import InputError, UsageError
from fengwu_ghr.nowcast.radar import read_radar
from fengwu_ghr.nowcast.sequence import RadarSequence

Split = Literal["train", "validation", "test"]
GAP = timedelta(hours=2)
_START, _END = datetime(1900, 1, 1), datetime(2200, 1, 1)


class EventSettings(Section):
    """A block of one radar sequence, and what it is for."""

    name: str = Field(min_length=1)
    """What results call it; simultaneous crops of one storm share one name, they are one event."""
    files: tuple[Path, ...] = Field(min_length=1)
    """Radar files, or a folder of them; relative to the folder of the radar data."""
    split: Split
    """`train`, `validation` or `test`."""
    first: Instant | None = None
    """The first frame that belongs to the block; all from the beginning where it is left out."""
    last: Instant | None = None
    """The last one."""
    strides: tuple[int, ...] = (1,)
    """Every how many frames make a step: 1 and 2 give steps of 5 and 10 minutes of a radar of 5."""

    @field_validator("strides")
    @classmethod
    def _are_counts(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 1:
            raise ValueError("strides count frames, each 1 or more")
        return value

    @model_validator(mode="after")
    def _ends_after_it_begins(self) -> "EventSettings":
        if self.period[0] >= self.period[1]:
            raise ValueError(f"a block begins before it ends; got {self.period[0]} and {self.period[1]}")
        return self

    @property
    def period(self) -> tuple[datetime, datetime]:
        return self.first or _START, self.last or _END

    def read(self, folder: Path) -> RadarSequence:
        """The frames of the block at 1 km. Raises InputError where there are none."""
        whole = read_radar([folder / path for path in self.files])
        inside = [i for i, time in enumerate(whole.times) if self.period[0] <= time <= self.period[1]]
        if not inside:
            raise InputError(f"{self.name}: no frame of {whole.source} lies in {self.first} ... {self.last}")
        return whole[slice(inside[0], inside[-1] + 1)].at_one_kilometre()


def check_splits(events: Sequence[EventSettings]) -> None:
    """Raises UsageError where blocks of different splits share an event, or weather less than GAP apart."""
    for one, other in combinations(events, 2):
        if one.split == other.split:
            continue
        if one.name == other.name:
            raise UsageError(f"{one.name} is one event: it cannot be {one.split} and {other.split}")
        if set(one.files) & set(other.files):
            (begin1, end1), (begin2, end2) = one.period, other.period
            apart = max(begin2 - end1, begin1 - end2)
            if apart < GAP:
                raise UsageError(
                    f"{one.name} ({one.split}) and {other.name} ({other.split}) are of the same files and must lie "
                    f"{GAP} apart; set `last` of one and `first` of the other so"
                )


@dataclass(frozen=True)
class Window:
    """A place in a block: `now` is the last frame that is seen, `stride` the frames per step."""

    block: int
    now: int
    stride: int
    leads: int


@dataclass(frozen=True, eq=False)
class Block:
    """The frames of one event's block."""

    name: str
    frames: RadarSequence

    def windows(
        self, number: int, *, strides: Sequence[int], inputs: int, leads: int, least: int
    ) -> Iterator[Window]:
        """Every window with all inputs and `least` or more of the leads, `number` being the block's own."""
        for stride in strides:
            for now in range((inputs - 1) * stride, len(self.frames)):
                there = min(leads, (len(self.frames) - 1 - now) // stride)
                if there >= least:
                    yield Window(number, now, stride, there)


def read_blocks(
    events: Sequence[EventSettings], split: Split, folder: Path
) -> list[tuple[EventSettings, Block]]:
    """The blocks of a split, in the order of the settings. Raises InputError where there is none."""
    found = [(event, Block(event.name, event.read(folder))) for event in events if event.split == split]
    if not found:
        raise InputError(f'no event is for {split}; give [[events]] with split = "{split}"')
    return found
