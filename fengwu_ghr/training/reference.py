"""What the simulator itself can do: forecasts at a coarse truncation, twins of the truth, and analyses as GRIB2.

The numerical baseline is to our forecasts what IFS-HRES is to a learned model of the real atmosphere: the same
equations and physics at the resolution of the backbone's grid, begun from the same analysis, spectrally truncated, over
its own truncated orography. The twin is the simulator itself, begun 0.1 K beside the truth: no forecast can be better
for long.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from fengwu_ghr.durable import make_folder, writing
from fengwu_ghr.errors import InputError
from fengwu_ghr.grib.encode import GribEncoder, GribEncoding, write_messages
from fengwu_ghr.progress import Progress
from fengwu_ghr.training.members import Member, restart_path
from fengwu_ghr.training.simulate import StateMaker
from fengwu_ghr.training.simulator import Simulator
from fengwu_ghr.training.world import Series, World
from fengwu_ghr.variables import Channel

_ANALYSIS = GribEncoding(is_analysis=True)
INITIAL_CONDITIONS = "initial-conditions"
"""The folder of a world in which analyses of its test series lie as GRIB2."""


class ReferenceForecasts:
    """Forecasts of the simulator from the restarts of a world; `truncation` the world's own, or a coarser one."""

    def __init__(
        self, world: World, *, truncation: int | None = None, kelvin: float = 0.0, seed: int = 0
    ) -> None:
        self._world, self._kelvin, self._seed = world, kelvin, seed
        self._truncation = truncation or int(world.made_by["truncation"])

    def forecast(
        self, member: int, initial_time: datetime, *, hours: int
    ) -> Iterator[Float32[np.ndarray, "channel lat lon"]]:
        """The states on the product grid every six hours, the first at six. Raises InputError without a restart."""
        path = restart_path(self._world.folder / f"member-{member}", initial_time)
        if not path.exists():
            raise InputError(
                f"the world keeps no restart of {initial_time:%Y-%m-%d %H:%M}, member {member}: {path}"
            )
        truth = self._simulator(member, int(self._world.made_by["truncation"]))
        restart = truth.load(path)
        if self._kelvin:
            restart = truth.perturbed(restart, kelvin=self._kelvin, seed=self._seed)
        simulator = self._simulator(member, self._truncation)
        if simulator is not truth:
            restart = simulator.from_spectral(truth, restart)
        yield from self._states(simulator, restart, hours)

    def _states(self, simulator: Simulator, restart: Any, hours: int) -> Iterator[np.ndarray]:
        maker = StateMaker(simulator, scale=self._world.scale, channels=self._world.channels)
        # In the pieces of the truth, which chose the length of its steps for each.
        piece = 24 * int(self._world.made_by["chunk_days"])
        for begun in range(0, hours, piece):
            restart, states = simulator.advance(restart, hours=min(piece, hours - begun))
            yield from (maker.fine(state) for state in states)

    def _simulator(self, member: int, truncation: int) -> Simulator:
        made_by = self._world.made_by
        start = Member.model_validate(made_by["members"][member]).start
        return _simulator(truncation, tuple(made_by["time_steps"]), start)


# A simulator is compiled when it first runs: those of one truncation and start are one.
@lru_cache
def _simulator(truncation: int, time_steps: tuple[int, ...], start: datetime) -> Simulator:
    return Simulator(truncation=truncation, time_steps=time_steps, start=start)


def restart_indices(world: World, series: Series) -> list[int]:
    """The states of a series of which the world keeps a restart: where a reference forecast can begin."""
    folder = world.folder / f"member-{series.member}"
    return [i for i, valid_time in enumerate(series.times) if restart_path(folder, valid_time).exists()]


def write_analysis(
    world: World, fine: Float32[np.ndarray, "channel lat lon"], valid_time: datetime, path: Path
) -> None:
    """A state of the world lies in this file as a GRIB2 analysis, every channel of it."""
    write_messages(path, state_messages(world, fine, valid_time, world.channels.names))


def state_messages(
    world: World,
    fine: Float32[np.ndarray, "channel lat lon"],
    initial_time: datetime,
    names: Sequence[str],
    *,
    lead: timedelta = timedelta(0),
    encoding: GribEncoding = _ANALYSIS,
) -> list[tuple[Channel, bytes]]:
    """These channels of a state on the world's grid as GRIB2 messages: of an analysis, or at a lead of a forecast."""
    encoder, rows = (
        GribEncoder(world.fine_grid, encoding),
        [world.channels.names.index(name) for name in names],
    )
    return [
        (channel, encoder.encode(channel, fine[row], initial_time=initial_time, lead=lead))
        for row, channel in ((row, world.channels.channels[row]) for row in rows)
    ]


def write_initial_conditions(world: World, progress: Progress) -> list[Path]:
    """One GRIB2 analysis per member and 00 UTC of the test series, in order; what exists is left as it is."""
    with writing(world.folder / INITIAL_CONDITIONS):
        make_folder(world.folder / INITIAL_CONDITIONS)
    midnights = list(_midnights(world))
    missing = [(series, index, path) for series, index, path in midnights if not path.exists()]
    before = len(midnights) - len(missing)
    if missing:
        progress.begin("initial conditions as GRIB2", before, len(midnights))
    for done, (series, index, path) in enumerate(missing, start=before + 1):
        write_analysis(world, series.fine(index), series.times[index], path)
        progress.stepped(done, {})
    return initial_conditions(world)


def initial_conditions(world: World) -> list[Path]:
    """The files that `write_initial_conditions` left."""
    return [path for _, _, path in _midnights(world) if path.exists()]


def _midnights(world: World) -> Iterator[tuple[Series, int, Path]]:
    for series in world.series("test"):
        for index, valid_time in enumerate(series.times):
            if valid_time.hour == 0:
                name = f"member-{series.member}-{valid_time:%Y%m%d%H}.grib2"
                yield series, index, world.folder / INITIAL_CONDITIONS / name
