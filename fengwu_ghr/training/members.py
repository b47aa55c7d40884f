"""What a world is to hold: members, their segments, the chunks they are simulated in; and how far they have come."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from fengwu_ghr.config import Section
from fengwu_ghr.errors import InputError
from fengwu_ghr.training.simulator import TIME_STEPS
from fengwu_ghr.training.world import World, chunk_path, coarse_path

_TRAIN_RESTARTS = 5
"""Of so many chunks of training, one keeps its restart."""


class Segment(Section):
    """Consecutive days of a member: kept for a split, or simulated and let go."""

    split: Literal["train", "validation", "test", "discard"]
    days: int = Field(gt=0)


class Member(Section):
    """One simulation from rest: its seed, where its calendar starts, what its days are for after the spin-up."""

    seed: int = Field(ge=0)
    start: datetime
    segments: tuple[Segment, ...] = Field(min_length=1)


class SimulateSettings(Section):
    """`[simulate]`: the world. Nothing is computed twice: run it again after a stop, or with more members."""

    folder: Path
    """Where the world lies."""
    scale: int = 20
    """Grids: 20 is 101 x 200 fine and 37 x 72 coarse."""
    channel_set: str = "ghr-69"
    truncation: int = 85
    """Spectral truncation; below 85 the fine grid shows little that the coarse one does not."""
    time_steps: tuple[int, ...] = Field(default=TIME_STEPS, min_length=1)
    """Minutes, divisors of 6 hours: the longest that the wind allows is taken, chunk by chunk."""
    spin_up_days: int = Field(default=90, ge=0)
    """Days from rest that are discarded."""
    separation_days: int = Field(default=30, ge=0)
    """The least number of days between segments of different splits."""
    chunk_days: int = Field(default=3, gt=0)
    """Days from one restart to the next; every segment is a whole number of them."""
    keep_fine: tuple[Literal["train", "validation", "test"], ...] = ("train", "validation", "test")
    """Splits whose fine states are kept too; area means always are."""
    initial_conditions: bool = True
    """Whether every 00 UTC of the test series is written as GRIB2 too, to `initial-conditions`."""
    workers: int = Field(default=2, gt=0)
    """Members simulated at a time, each on one core; one worker uses all cores."""
    members: tuple[Member, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _fit_together(self) -> "SimulateSettings":
        begun = [(member.seed, member.start) for member in self.members]
        if len(set(begun)) < len(begun):
            raise ValueError("members need seeds or starts of their own: two of these are the same weather")
        if self.initial_conditions and "test" not in self.keep_fine:
            raise ValueError("initial_conditions are made of fine test states: keep_fine must hold test")
        for number, member in enumerate(self.members):
            days = [self.spin_up_days, *(segment.days for segment in member.segments)]
            if any(count % self.chunk_days for count in days):
                raise ValueError(
                    f"member {number}: days must be multiples of chunk_days = {self.chunk_days}; {days}"
                )
            if member.start.time() != time(0) or member.start.tzinfo:
                raise ValueError(f"member {number} must start at 00:00 UTC; got {member.start.isoformat()}")
            self._check_separation(number, member)
        return self

    @property
    def days(self) -> int:
        """All that is simulated, spin-up and discarded days included."""
        return sum(self.spin_up_days + sum(s.days for s in member.segments) for member in self.members)

    def _check_separation(self, number: int, member: Member) -> None:
        kept = [(i, segment) for i, segment in enumerate(member.segments) if segment.split != "discard"]
        for (i, one), (j, other) in pairwise(kept):
            between = sum(segment.days for segment in member.segments[i + 1 : j])
            if one.split != other.split and between < self.separation_days:
                raise ValueError(
                    f"member {number}: {one.split} and {other.split} must lie {self.separation_days} days apart; "
                    f"got {between}; put a discard segment between them"
                )


@dataclass(frozen=True)
class Chunk:
    """Days that are simulated at once: from which valid time, and for which split."""

    split: str
    first: datetime
    """The valid time of the restart the chunk starts from."""
    number: int
    """Of the member's chunks."""

    @property
    def keeps_restart(self) -> bool:
        """Whether the restart it starts from is kept: reference forecasts begin in test and, now and then, training."""
        return self.split == "test" or (self.split == "train" and self.number % _TRAIN_RESTARTS == 2)

    def path(self, folder: Path) -> Path:
        return chunk_path(folder, self.split, self.first + timedelta(hours=6))

    def is_missing(self, folder: Path, *, keep_fine: Sequence[str]) -> bool:
        path = self.path(folder)
        has_fine = self.split not in keep_fine or path.exists()
        return self.split != "discard" and not (has_fine and coarse_path(path).exists())


def chunks_of(settings: SimulateSettings, member: Member) -> Iterator[Chunk]:
    """What a member simulates, in order."""
    clock, number = member.start, 0
    segments = (Segment(split="discard", days=settings.spin_up_days),) if settings.spin_up_days else ()
    for segment in (*segments, *member.segments):
        for _ in range(segment.days // settings.chunk_days):
            yield Chunk(segment.split, clock, number)
            clock, number = clock + timedelta(days=settings.chunk_days), number + 1


def days_done(settings: SimulateSettings) -> int:
    """Simulated days that need not be simulated again."""
    done = 0
    for number, member in enumerate(settings.members):
        last = reached(settings, number)
        done += sum(1 for c in chunks_of(settings, member) if last and c.first < last) * settings.chunk_days
    return done


def restart_path(folder: Path, valid_time: datetime) -> Path:
    """Where a member's restart of this valid time lies."""
    return folder / f"restart-{valid_time:%Y%m%d%H}.npz"


def member_folder(settings: SimulateSettings, number: int) -> Path:
    return settings.folder / f"member-{number}"


def complete_world(settings: SimulateSettings, *splits: str) -> World:
    """The world that was simulated by these settings, these splits of it whole.

    Raises InputError where there is none, or how many chunks are missing.
    """
    world = World.open(settings.folder)
    if missing := missing_chunks(settings, *splits):
        raise InputError(
            f"the world in {settings.folder} lacks {missing} of the chunks of {', '.join(splits)} that [simulate] "
            "describes; run train simulate with this configuration, it goes on where it stopped"
        )
    return world


def missing_chunks(settings: SimulateSettings, *splits: str) -> int:
    """Chunks of these splits, of all where none is given, that are not in the folder yet."""
    return sum(
        chunk.is_missing(member_folder(settings, number), keep_fine=settings.keep_fine)
        for number, member in enumerate(settings.members)
        for chunk in chunks_of(settings, member)
        if not splits or chunk.split in splits
    )


def is_complete(settings: SimulateSettings, number: int) -> bool:
    """Whether nothing of the member is left to be simulated."""
    member, last = settings.members[number], reached(settings, number)
    days = settings.spin_up_days + sum(segment.days for segment in member.segments)
    return last is not None and last >= member.start + timedelta(days=days)


def reached(settings: SimulateSettings, number: int) -> datetime | None:
    """The valid time of the member's last restart before which no chunk is missing."""
    folder = member_folder(settings, number)
    chunks = chunks_of(settings, settings.members[number])
    missing = (c.first for c in chunks if c.is_missing(folder, keep_fine=settings.keep_fine))
    end = next(missing, datetime.max)
    found = [
        datetime.strptime(path.stem.removeprefix("restart-"), "%Y%m%d%H")
        for path in folder.glob("restart-*.npz")
    ]
    return max((valid_time for valid_time in found if valid_time <= end), default=None)
