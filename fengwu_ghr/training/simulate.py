"""Makes a world to learn from: members simulated from rest, each in a process of its own, resumable at every chunk.

Members share nothing: each has its seed, its start and its segments. The first days are discarded, and between
segments of different splits lie days of no split, so that no weather is seen twice.
"""

import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from time import sleep
from typing import Literal

import numpy as np
from jaxtyping import Float32
from pydantic import Field, model_validator

from fengwu_ghr.coarsen import AreaMean
from fengwu_ghr.config import Section
from fengwu_ghr.durable import lock, replace_file
from fengwu_ghr.errors import FengwuError, InputError, UsageError
from fengwu_ghr.grid import backbone_grid, product_grid
from fengwu_ghr.regrid import Regridder
from fengwu_ghr.remap import remap_state
from fengwu_ghr.training.levels import mean_sea_level_pressure, to_pressure_level
from fengwu_ghr.training.progress import Progress
from fengwu_ghr.training.simulator import TIME_STEPS, SimulatedState, Simulator
from fengwu_ghr.training.world import World, chunk_path, coarse_path, new_array, save_array
from fengwu_ghr.variables import ChannelSet, channel_set

_POLL_SECONDS = 1.0
_LIBRARIES = ("jcm", "dinosaur")
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


def simulate(settings: SimulateSettings, progress: Progress) -> Path:
    """The world is in its folder, complete. A step of progress is a simulated day.

    Raises UsageError where the folder holds a world made otherwise, InputError where a simulation becomes unstable.
    """
    settings.folder.mkdir(parents=True, exist_ok=True)
    with lock(settings.folder / ".lock", holder=f"another process simulates the world in {settings.folder}"):
        _claim(settings)
        _simulate_missing(settings, progress)
    return settings.folder


def _simulate_missing(settings: SimulateSettings, progress: Progress) -> None:
    # A process that finds nothing to do would still compile the simulator.
    waiting = [number for number in range(len(settings.members)) if not _is_complete(settings, number)]
    running: list[_Running] = []
    done = days_done(settings)
    progress.begin("simulate, days", done, settings.days)
    try:
        while waiting or running:
            while waiting and len(running) < settings.workers:
                free = min(set(range(settings.workers)) - {one.core for one in running})
                running.append(_start(settings, waiting.pop(0), free))
            sleep(_POLL_SECONDS)
            running = [one for one in running if not one.has_ended()]
            before, done = done, days_done(settings)
            if done > before:
                progress.stepped(done, {})
    finally:
        for one in running:
            one.process.terminate()
            one.process.join()


def days_done(settings: SimulateSettings) -> int:
    """Simulated days that need not be simulated again."""
    done = 0
    for number, member in enumerate(settings.members):
        reached = _reached(settings, number)
        done += (
            sum(1 for c in chunks_of(settings, member) if reached and c.first < reached) * settings.chunk_days
        )
    return done


def restart_path(folder: Path, valid_time: datetime) -> Path:
    """Where a member's restart of this valid time lies."""
    return folder / f"restart-{valid_time:%Y%m%d%H}.npz"


def member_folder(settings: SimulateSettings, number: int) -> Path:
    return settings.folder / f"member-{number}"


class StateMaker:
    """Turns simulated states into states of a channel set on the product grid, and these into area means."""

    def __init__(self, simulator: Simulator, *, scale: int, channels: ChannelSet) -> None:
        self._channels, self._simulator = channels, simulator
        self._to_fine = Regridder(simulator.grid, product_grid(scale))
        self._to_coarse = AreaMean(product_grid(scale), backbone_grid(scale))

    @property
    def orography(self) -> Float32[np.ndarray, "lat lon"]:
        return self._to_fine.apply(self._simulator.orography)

    @property
    def land_mask(self) -> Float32[np.ndarray, "lat lon"]:
        return self._to_fine.apply(self._simulator.land_mask, smooth=False)

    def fine(self, state: SimulatedState) -> Float32[np.ndarray, "channel lat lon"]:
        """Every channel on the product grid, in registry units, within the bounds of the variables."""
        fields = dict(state.near_surface)
        fields["msl"] = mean_sea_level_pressure(state.columns, self._simulator.orography)
        levels = sorted({c.level for c in self._channels.channels if c.level is not None})
        on_levels = {level: to_pressure_level(state.columns, 100.0 * level) for level in levels}
        sources = [
            fields[c.variable] if c.level is None else on_levels[c.level][c.variable]
            for c in self._channels.channels
        ]
        return remap_state(np.stack(sources), self._channels.channels, self._to_fine.apply)

    def coarse(
        self, fine: Float32[np.ndarray, "channel lat lon"]
    ) -> Float32[np.ndarray, "channel row column"]:
        return self._to_coarse.apply(fine)


def _claim(settings: SimulateSettings) -> None:
    """The folder says how its world is made; another world there is an error."""
    card = json.loads(
        settings.model_dump_json(exclude={"folder", "workers", "keep_fine", "initial_conditions"})
    )
    members = card.pop("members")
    path = settings.folder / "world.json"
    old = World.open(settings.folder).made_by if path.exists() else {}
    # A world that is complete is nothing to simulate, and needs no simulator.
    card |= {key: old.get(key) for key in _LIBRARIES} if old and not missing_chunks(settings) else _versions()
    card["members"] = members
    if old:
        before = old.get("members", [])
        differing = [key for key in card.keys() - {"members"} if old.get(key) != card[key]]
        if any(one != other for one, other in zip(before, members)):
            differing.append("members")
        if differing:
            raise UsageError(
                f"{settings.folder} holds a world made with another {', '.join(sorted(differing))}; "
                "choose another folder, or remove that one"
            )
        card["members"] = max(before, members, key=len)
    replace_file(path, json.dumps(card, indent=1).encode())


def _versions() -> dict[str, str]:
    try:
        return {name: version(name) for name in _LIBRARIES}
    except PackageNotFoundError as error:
        raise UsageError(f"simulating needs {error.name}: pip install 'fengwu_ghr[sim]'") from error


def _start(settings: SimulateSettings, number: int, core: int) -> "_Running":
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run_member, args=(settings, number, core, sender), daemon=True)
    process.start()
    sender.close()
    return _Running(process, receiver, core)


@dataclass(frozen=True)
class _Running:
    """A process that simulates a member, where its error comes out, and which of the cores it has."""

    process: BaseProcess
    errors: Connection
    core: int

    def has_ended(self) -> bool:
        """Raises what made it end."""
        if self.process.is_alive():
            return False
        self.process.join()
        if self.errors.poll():
            try:
                raise self.errors.recv()
            except EOFError:
                pass
        if code := self.process.exitcode:
            raise InputError(f"a simulating process ended with code {code}; run again to go on")
        return True


def _run_member(settings: SimulateSettings, number: int, core: int, errors: Connection) -> None:
    """The whole of one process: simulates what is missing of one member; ends when the process that started it does."""
    Thread(target=_follow_parent, daemon=True).start()
    if settings.workers > 1:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[core % len(cores)]})
    try:
        simulate_member(settings, number)
    except FengwuError as error:
        errors.send(error)
    except KeyboardInterrupt:
        pass


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # between two chunks or within one: what is not whole is not there


def simulate_member(settings: SimulateSettings, number: int) -> None:
    """The member's chunks all exist; restarts are kept at the end, and throughout its test segments."""
    member, folder = settings.members[number], member_folder(settings, number)
    folder.mkdir(exist_ok=True)
    simulator = Simulator(truncation=settings.truncation, time_steps=settings.time_steps, start=member.start)
    maker = StateMaker(simulator, scale=settings.scale, channels=channel_set(settings.channel_set))
    save_array(settings.folder / "orography.npy", maker.orography)
    save_array(settings.folder / "land_mask.npy", maker.land_mask)
    reached = _reached(settings, number)
    restart = (
        simulator.load(restart_path(folder, reached)) if reached else simulator.from_rest(seed=member.seed)
    )
    for chunk in chunks_of(settings, member):
        if not reached or chunk.first >= reached:
            restart = _simulate_chunk(settings, simulator, maker, folder, chunk, restart)
        if not chunk.keeps_restart:
            restart_path(folder, chunk.first).unlink(missing_ok=True)


def _simulate_chunk(
    settings: SimulateSettings,
    simulator: Simulator,
    maker: StateMaker,
    folder: Path,
    chunk: Chunk,
    restart: object,
) -> object:
    hours = 24 * settings.chunk_days
    after, states = simulator.advance(restart, hours=hours)
    if chunk.split != "discard":
        _keep(maker, states, chunk.path(folder), fine=chunk.split in settings.keep_fine)
    simulator.save(after, restart_path(folder, chunk.first + timedelta(hours=hours)))
    return after


def _keep(maker: StateMaker, states: Sequence[SimulatedState], path: Path, *, fine: bool) -> None:
    """The chunk lies in its files. One fine state is held at a time: at the true scale it has two gigabytes."""
    coarse = []
    with new_array(path, len(states)) if fine else nullcontext() as write:
        for state in states:
            made = maker.fine(state)
            coarse.append(maker.coarse(made))
            if write:
                write(made)
    save_array(coarse_path(path), np.stack(coarse))


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


def _is_complete(settings: SimulateSettings, number: int) -> bool:
    """Whether nothing of the member is left to be simulated."""
    member, reached = settings.members[number], _reached(settings, number)
    days = settings.spin_up_days + sum(segment.days for segment in member.segments)
    return reached is not None and reached >= member.start + timedelta(days=days)


def _reached(settings: SimulateSettings, number: int) -> datetime | None:
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
