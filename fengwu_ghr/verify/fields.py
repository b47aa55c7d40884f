"""Fields to be verified: forecasts by initial time and lead, analyses by valid time, one field at a time.

What is read lies in registry units on the grid its source states. Sources know what they hold without reading it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from fengwu_ghr.coarsen import AreaMean
from fengwu_ghr.errors import InputError
from fengwu_ghr.grid import LatLonGrid, ReducedGaussianGrid, regular_grid
from fengwu_ghr.regrid import Regridder
from fengwu_ghr.store import RunStore
from fengwu_ghr.variables import Channel
from fengwu_ghr.verify.quantities import is_smooth, is_vector
from fengwu_ghr.verify.statistics import hours_text

Field = Float32[np.ndarray, "lat lon"]
AnyGrid = LatLonGrid | ReducedGaussianGrid


class Source(Protocol):
    """Fields by channel. `kind` is what a reader is told of them."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def grid(self) -> AnyGrid: ...

    @property
    def channels(self) -> tuple[Channel, ...]: ...

    def close(self) -> None:
        """Nothing is left open."""
        ...


@runtime_checkable
class Forecasts(Source, Protocol):
    """Fields by channel, initial time and lead."""

    @property
    def initial_times(self) -> tuple[datetime, ...]: ...

    def leads(self, initial_time: datetime) -> tuple[timedelta, ...]:
        """Those that are there, ascending."""
        ...

    def read(
        self, channel: Channel, initial_time: datetime, lead: timedelta
    ) -> Float32[np.ndarray, "*points"]:
        """One field. Raises InputError where it is not there or cannot be what its header says."""
        ...

    def holds(self, channel: Channel, initial_time: datetime, lead: timedelta) -> bool:
        """Whether this one field is there."""
        ...

    def fingerprint(self, initial_time: datetime, lead: timedelta) -> str:
        """Changes where the fields of this time and lead change."""
        ...


@runtime_checkable
class Analyses(Source, Protocol):
    """Fields by channel and valid time: what is taken for the truth."""

    @property
    def valid_times(self) -> tuple[datetime, ...]: ...

    def read(self, channel: Channel, valid_time: datetime) -> Float32[np.ndarray, "*points"]:
        """One field. Raises InputError where it is not there or cannot be what its header says."""
        ...

    def holds(self, channel: Channel, valid_time: datetime) -> bool:
        """Whether this one field is there."""
        ...

    def fingerprint(self, valid_time: datetime) -> str:
        """Changes where the fields of this time change."""
        ...


@dataclass(frozen=True, eq=False)
class RunForecasts:
    """The committed leads of run stores of one grid, each initial time in one of them; channels that all have."""

    stores: tuple[RunStore, ...]
    kind: str = "forecast"

    def __post_init__(self) -> None:
        first = self.stores[0]
        for store in self.stores[1:]:
            if store.plan.grid != first.plan.grid:
                raise InputError(
                    f"{store.path} is on {store.plan.grid}, {first.path} on {first.plan.grid}; verify them apart from "
                    "each other"
                )
        if len(self._holders) < sum(len(store.plan.initial_times) for store in self.stores):
            raise InputError("two of the run stores hold the same initial time; leave one out")

    @classmethod
    def open(cls, paths: Sequence[Path]) -> "RunForecasts":
        """The stores that are there. Raises InputError where one is no run store, or they do not fit each other."""
        return cls(tuple(RunStore.open(path) for path in paths))

    @property
    def name(self) -> str:
        return self.stores[0].path.stem

    @property
    def grid(self) -> LatLonGrid:
        return self.stores[0].plan.latlon

    @cached_property
    def channels(self) -> tuple[Channel, ...]:
        held = [set(store.plan.channels) for store in self.stores]
        return tuple(c for c in self.stores[0].plan.channels if all(c in channels for channels in held))

    @property
    def initial_times(self) -> tuple[datetime, ...]:
        return tuple(sorted(self._holders))

    def leads(self, initial_time: datetime) -> tuple[timedelta, ...]:
        if initial_time not in self._leads:
            self._leads[initial_time] = self._holder(initial_time).committed(initial_time)
        return self._leads[initial_time]

    def read(self, channel: Channel, initial_time: datetime, lead: timedelta) -> Field:
        return self._holder(initial_time).read(channel, initial_time, lead)

    def holds(self, channel: Channel, initial_time: datetime, lead: timedelta) -> bool:
        there = channel in self.channels and initial_time in self._holders
        return there and lead in self.leads(initial_time)

    def fingerprint(self, initial_time: datetime, lead: timedelta) -> str:
        return self._holder(initial_time).fingerprint(initial_time, lead)

    def close(self) -> None:
        for store in self.stores:
            store.close()

    def _holder(self, initial_time: datetime) -> RunStore:
        try:
            return self._holders[initial_time]
        except KeyError:
            raise InputError(f"{self.name} has no initial time {initial_time:%Y-%m-%d %H:%M}") from None

    @cached_property
    def _holders(self) -> dict[datetime, RunStore]:
        return {time: store for store in self.stores for time in store.plan.initial_times}

    @cached_property
    def _leads(self) -> dict[datetime, tuple[timedelta, ...]]:
        """Those asked for so far: a verification asks for every channel of every lead."""
        return {}


@dataclass(frozen=True, eq=False)
class StepZero:
    """The first fields of forecasts taken for the truth: their own analysis, as they hold it."""

    forecasts: Forecasts
    kind: str = "step 0 of forecasts"

    @property
    def name(self) -> str:
        return self.forecasts.name

    @property
    def grid(self) -> AnyGrid:
        return self.forecasts.grid

    @property
    def channels(self) -> tuple[Channel, ...]:
        return self.forecasts.channels

    @cached_property
    def valid_times(self) -> tuple[datetime, ...]:
        return tuple(t for t in self.forecasts.initial_times if timedelta(0) in self.forecasts.leads(t))

    def read(self, channel: Channel, valid_time: datetime) -> Float32[np.ndarray, "*points"]:
        return self.forecasts.read(channel, valid_time, timedelta(0))

    def holds(self, channel: Channel, valid_time: datetime) -> bool:
        return self.forecasts.holds(channel, valid_time, timedelta(0))

    def fingerprint(self, valid_time: datetime) -> str:
        return self.forecasts.fingerprint(valid_time, timedelta(0))

    def close(self) -> None:
        self.forecasts.close()


@dataclass(frozen=True, eq=False)
class Persistence:
    """Forecasts that nothing changes: the analysis of the initial time at every lead."""

    analyses: Analyses
    initial_times: tuple[datetime, ...]
    lead_times: tuple[timedelta, ...]
    name: str = "persistence"
    kind: str = "the analysis of the initial time"

    @property
    def grid(self) -> AnyGrid:
        return self.analyses.grid

    @property
    def channels(self) -> tuple[Channel, ...]:
        return self.analyses.channels

    def leads(self, initial_time: datetime) -> tuple[timedelta, ...]:
        return self.lead_times if initial_time in self.analyses.valid_times else ()

    def holds(self, channel: Channel, initial_time: datetime, lead: timedelta) -> bool:
        return self.analyses.holds(channel, initial_time)

    def read(
        self, channel: Channel, initial_time: datetime, lead: timedelta
    ) -> Float32[np.ndarray, "*points"]:
        return self.analyses.read(channel, initial_time)

    def fingerprint(self, initial_time: datetime, lead: timedelta) -> str:
        return self.analyses.fingerprint(initial_time)

    def close(self) -> None:
        self.analyses.close()


class ToGrid:
    """Fields brought to the evaluation grid; `method` says how.

    Area means where the evaluation grid is the coarser one, which conserves what a cell holds; fields on reduced
    Gaussian grids are interpolated to rows and columns as close as their own first. Raises InputError where the
    evaluation grid is finer than the source.
    """

    def __init__(self, source: AnyGrid, target: LatLonGrid) -> None:
        self.source, self.target, self.method = source, target, "native"
        self._regridder: Regridder | None = None
        self._mean: AreaMean | None = None
        if isinstance(source, ReducedGaussianGrid):
            source = regular_grid(180 / source.row_points.size)
            self._regridder, self.method = Regridder(self.source, source), f"interpolated from {self.source}"
        if source == target:
            return
        if not (source.is_global and target.is_global):
            raise InputError(
                f"a field on {source} cannot be evaluated on {target}: both must cover the globe, or have one grid"
            )
        if source.points < target.points:
            raise InputError(
                f"a field on {self.source} cannot be evaluated on the finer {target}: give --grid native, truth or the "
                "name of a baseline, whichever is the coarsest"
            )
        self._mean = AreaMean(source, target)
        self.method = "area means of " + (self.method if self._regridder else str(source))

    def apply(self, values: Float32[np.ndarray, "*points"], name: str) -> Field:
        """The field of a channel or quantity on the evaluation grid."""
        if self._regridder is not None:
            values = self._regridder.apply(values, is_vector=is_vector(name), smooth=is_smooth(name))
        return values if self._mean is None else self._mean.apply(values)


def check_plausible(values: np.ndarray, channel: Channel, where: str) -> None:
    """Raises InputError where values are far outside what the variable can be: most often another unit."""
    low, high = channel.plausible
    lowest, highest = float(np.nanmin(values)), float(np.nanmax(values))
    if lowest < low or highest > high:
        raise InputError(
            f"{where}: {channel.description} runs from {lowest:g} to {highest:g}, plausible is {low:g} to {high:g}; "
            "are its units as stated?"
        )


def state_of_files(paths: Sequence[Path]) -> str:
    """Names, sizes and times of change: another text where one of the files has changed."""
    return ", ".join(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in paths)


def digest_of(path: Path) -> str:
    """Of the content of a file, or of all files of a folder."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    whole = sha256()
    for file in files:
        whole.update(str(file.relative_to(path)).encode() + file.read_bytes())
    return whole.hexdigest()


def what_is_missing(channel: Channel, initial_time: datetime, lead: timedelta) -> str:
    """For messages: a field by name and time."""
    return f"{channel} of {initial_time:%Y-%m-%d %H:%M} + {hours_text(lead)}"
