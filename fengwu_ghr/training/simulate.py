"""Makes a world to learn from: members simulated from rest, each in a process of its own, resumable at every chunk.

Members share nothing: each has its seed, its start and its segments. The first days are discarded, and between
segments of different splits lie days of no split, so that no weather is seen twice.
"""

import json
import multiprocessing
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from time import sleep

import numpy as np
from jaxtyping import Float32

from fengwu_ghr.coarsen import AreaMean
from fengwu_ghr.durable import lock, replace_file
from fengwu_ghr.errors import FengwuError, InputError, UsageError
from fengwu_ghr.grid import backbone_grid, product_grid
from fengwu_ghr.progress import Progress
from fengwu_ghr.regrid import Regridder
from fengwu_ghr.remap import remap_state
from fengwu_ghr.training.levels import mean_sea_level_pressure, to_pressure_level
from fengwu_ghr.training.members import (
    Chunk,
    SimulateSettings,
    chunks_of,
    days_done,
    is_complete,
    member_folder,
    missing_chunks,
    reached,
    restart_path,
)
from fengwu_ghr.training.simulator import SimulatedState, Simulator
from fengwu_ghr.training.world import World, coarse_path, new_array, save_array
from fengwu_ghr.variables import ChannelSet, channel_set

_POLL_SECONDS = 1.0
_LIBRARIES = ("jcm", "dinosaur")


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
    waiting = [number for number in range(len(settings.members)) if not is_complete(settings, number)]
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
    last = reached(settings, number)
    restart = simulator.load(restart_path(folder, last)) if last else simulator.from_rest(seed=member.seed)
    for chunk in chunks_of(settings, member):
        if not last or chunk.first >= last:
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
