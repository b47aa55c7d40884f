"""Fields in GRIB files, to be verified: of IFS-HRES, of other centres, and our own."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from threading import Lock

import numpy as np
from jaxtyping import Float32

from fengwu_ghr.errors import InputError
from fengwu_ghr.grib.decode import pick, read_recipes
from fengwu_ghr.grib.geometry import lay_out
from fengwu_ghr.grib.messages import FieldInfo, channel_of, scan
from fengwu_ghr.grib.pool import WorkerPool
from fengwu_ghr.grib.selection import Holdings
from fengwu_ghr.variables import VARIABLES, Channel
from fengwu_ghr.verify.fields import AnyGrid, state_of_files, what_is_missing

SHORTEST = "else the shortest forecast"
"""Of a truth that has no analysis at some of its times."""


@dataclass(frozen=True, eq=False)
class GribFiles:
    """What GRIB files hold of our channels, and the workers that decode it; threads take turns with them."""

    name: str
    fields: tuple[FieldInfo, ...]
    pool: WorkerPool
    turn: Lock = field(default_factory=Lock)

    @classmethod
    def open(cls, paths: Sequence[Path], *, workers: int = 2) -> "GribFiles":
        """The fields of these files. Raises InputError where one cannot be read or none is ours."""
        with ExitStack() as opened:  # no worker is left where nothing is opened
            pool = opened.enter_context(WorkerPool(workers))
            fields = tuple(found for found in scan(list(paths), pool=pool) if channel_of(found) is not None)
            if not fields:
                raise InputError(f"{', '.join(map(str, paths))} hold none of our variables")
            opened.pop_all()
        return cls(paths[0].stem, fields, pool)

    @cached_property
    def grid(self) -> AnyGrid:
        """The one grid of all fields. Raises InputError where there are several, or one that is not read."""
        geometries = {found.geometry: found for found in self.fields}
        try:
            laid = {lay_out(geometry).grid for geometry in geometries}
        except ValueError as error:
            raise InputError(f"{self.name}: {error}") from None
        if len(laid) > 1:
            raise InputError(
                f"{self.name} holds fields on several grids, {', '.join(map(str, laid))}: give files of one"
            )
        return laid.pop()

    def fingerprint(self, valid_time: datetime) -> str:
        """Of the files with fields of this time."""
        return state_of_files(list(self._paths.get(valid_time, ())))

    @cached_property
    def _paths(self) -> dict[datetime | None, dict[Path, None]]:
        """The files with fields of each valid time, in the order of the fields."""
        found: dict[datetime | None, dict[Path, None]] = {}
        for one in self.fields:
            found.setdefault(one.valid_time, {})[one.path] = None
        return found

    def decode(self, holdings: Holdings, channel: Channel, time: datetime) -> Float32[np.ndarray, "*points"]:
        """The channel at its valid time, one way or another. Raises InputError where it cannot be had."""
        with self.turn:
            recipe = holdings.recipe(channel, time, self._latest)
        if recipe is None:
            raise InputError(
                f"{self.name} does not hold {channel} at {time:%Y-%m-%d %H:%M}: {holdings.hint(channel, time)}"
            )
        with self.turn:
            return read_recipes([recipe], pool=self.pool)[channel].values.copy()

    def _latest(self, found: Sequence[FieldInfo]) -> FieldInfo:
        """Of several messages of one field at one time, that of the latest run: the analysis, where there is one.

        Raises InputError where these differ, as members of an ensemble do.
        """
        shortest = min(one.step_end or timedelta(0) for one in found)
        candidates = [one for one in found if (one.step_end or timedelta(0)) == shortest]
        try:
            return pick(candidates, self.pool)
        except InputError as error:
            members = len({one.member for one in candidates})
            remedy = "keep one member" if members > 1 else "keep the files of one run"
            raise InputError(
                f"{self.name} holds {len(candidates)} different messages of one field at one time; {remedy}: {error}"
            ) from None


@dataclass(frozen=True, eq=False)
class _OfFiles:
    """What forecasts and analyses in GRIB files have in common."""

    files: GribFiles

    @property
    def name(self) -> str:
        return self.files.name

    @property
    def grid(self) -> AnyGrid:
        return self.files.grid

    def close(self) -> None:
        self.files.pool.close()


@dataclass(frozen=True, eq=False)
class GribForecasts(_OfFiles):
    """Forecasts in GRIB files, by the initial time of their messages."""

    kind: str = "forecast"

    @cached_property
    def channels(self) -> tuple[Channel, ...]:
        return _channels(self._runs[self.initial_times[0]])

    @property
    def initial_times(self) -> tuple[datetime, ...]:
        return tuple(sorted(self._runs))

    def leads(self, initial_time: datetime) -> tuple[timedelta, ...]:
        run = self._run(initial_time)
        times = {time for at in run.instant.values() for time in at}
        times |= {time for at in run.intervals.values() for time in at}
        return tuple(sorted(time - initial_time for time in times))

    def read(
        self, channel: Channel, initial_time: datetime, lead: timedelta
    ) -> Float32[np.ndarray, "*points"]:
        run = self._run(initial_time)
        if initial_time + lead not in run.times(channel):
            raise InputError(f"{self.name} does not hold {what_is_missing(channel, initial_time, lead)}")
        return self.files.decode(run, channel, initial_time + lead)

    def holds(self, channel: Channel, initial_time: datetime, lead: timedelta) -> bool:
        run = self._runs.get(initial_time)
        return run is not None and initial_time + lead in run.times(channel)

    def fingerprint(self, initial_time: datetime, lead: timedelta) -> str:
        return self.files.fingerprint(initial_time + lead)

    def _run(self, initial_time: datetime) -> Holdings:
        if initial_time not in self._runs:
            raise InputError(f"{self.name} has no initial time {initial_time:%Y-%m-%d %H:%M}")
        return self._runs[initial_time]

    @cached_property
    def _runs(self) -> dict[datetime, Holdings]:
        by_time: dict[datetime, list[FieldInfo]] = {}
        for found in self.files.fields:
            if found.initial_time is not None:
                by_time.setdefault(found.initial_time, []).append(found)
        return {time: Holdings(fields) for time, fields in by_time.items()}


@dataclass(frozen=True, eq=False)
class GribAnalyses(_OfFiles):
    """Analyses in GRIB files by valid time; where only forecasts have a field the shortest is taken, and said."""

    @cached_property
    def kind(self) -> str:
        """What IFS writes as step 0 of a forecast (type fc) is not its analysis."""
        instant = [found for found in self.files.fields if found.statistic is None]
        analysed = {found.data_type for found in instant if not found.step_end} <= {"an", ""}
        first = "analysis" if analysed else "step 0 of forecasts"
        return first if all(not found.step_end for found in instant) else f"{first}, {SHORTEST}"

    @cached_property
    def channels(self) -> tuple[Channel, ...]:
        return _channels(self._held)

    @cached_property
    def valid_times(self) -> tuple[datetime, ...]:
        return tuple(sorted({time for at in self._held.instant.values() for time in at}))

    def read(self, channel: Channel, valid_time: datetime) -> Float32[np.ndarray, "*points"]:
        return self.files.decode(self._held, channel, valid_time)

    def holds(self, channel: Channel, valid_time: datetime) -> bool:
        return valid_time in self._held.times(channel)

    def fingerprint(self, valid_time: datetime) -> str:
        return self.files.fingerprint(valid_time)

    @cached_property
    def _held(self) -> Holdings:
        return Holdings(self.files.fields)


def _channels(held: Holdings) -> tuple[Channel, ...]:
    """All that can be had, computed ones too."""
    levels = sorted({channel.level for channel in held.instant if channel.level is not None})
    candidates = [
        Channel(name, level)
        for name, definition in VARIABLES.items()
        for level in (levels if definition.on_levels else [None])
    ]
    return tuple(channel for channel in candidates if held.times(channel))
