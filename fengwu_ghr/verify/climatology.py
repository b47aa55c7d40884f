"""Climatology: a mean and annual harmonics at every point, fitted to states that stream by, seen once.

x(t) ~ a_0 + sum over k of a_k cos(k s) + b_k sin(k s), where s = 2 pi times the part of the year that has passed.
No daily cycle is fitted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import cos, pi, sin
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64

from fengwu_ghr.errors import InputError
from fengwu_ghr.grid import LatLonGrid
from fengwu_ghr.verify.archive import read_archive, write_archive

_KIND = "harmonic climatology"
_BREAK = timedelta(days=30)  # times further apart belong to different periods
_WORST_CONDITION = (
    20.0  # of the normal matrix: 2 for whole years, 13 where three months are missing, 36 for four
)


class Period(NamedTuple):
    """A span of valid times, both ends included, of one member of a simulated world (0 where there is one)."""

    first: datetime
    last: datetime
    member: int = 0

    def __str__(self) -> str:
        return f"{self.first:%Y-%m-%d %H:%M} to {self.last:%Y-%m-%d %H:%M}"


@dataclass(frozen=True, eq=False)
class Climatology:
    """What is normal at each place and season, and the periods it was made of.

    `coefficients`, in physical units: the mean, then cosine and sine of each harmonic.
    """

    grid: LatLonGrid
    channels: tuple[str, ...]
    coefficients: Float32[np.ndarray, "term channel lat lon"]
    covers: tuple[Period, ...]

    def at(self, valid_time: datetime) -> Float32[np.ndarray, "channel lat lon"]:
        """The climatological state for this time of the year, in physical units."""
        weights = harmonic_terms(valid_time, self.coefficients.shape[0] // 2).astype(np.float32)
        return np.tensordot(weights, self.coefficients, axes=1)

    def check_independent(self, valid_times: Iterable[datetime], *, member: int = 0) -> None:
        """Raises InputError where a verified time lies in a period of that member the climatology was made of."""
        check_independent(valid_times, [period for period in self.covers if period.member == member])

    def check_fits(self, grid: LatLonGrid, channels: Sequence[str]) -> None:
        """Raises InputError unless it is of this grid and these channels, in this order."""
        if grid != self.grid:
            raise InputError(
                f"the climatology is on {self.grid}, the fields on {grid}; make it on their grid"
            )
        if tuple(channels) != self.channels:
            raise InputError(
                f"the climatology has the channels {', '.join(self.channels)}, the fields "
                f"{', '.join(channels)}; make it of the same"
            )

    def save(self, path: Path) -> None:
        """One .npz file holds the climatology; raises OutputError where it cannot be written."""
        arrays = {
            "latitude": self.grid.latitude,
            "longitude": self.grid.longitude,
            "grid_name": np.array(self.grid.name),
            "channels": np.array(self.channels, str),
            "coefficients": self.coefficients,
            "periods": np.array([[p.first, p.last] for p in self.covers], "M8[s]"),
            "members": np.array([p.member for p in self.covers], np.int64),
        }
        write_archive(path, _KIND, arrays)

    @classmethod
    def load(cls, path: Path) -> "Climatology":
        """The climatology of a file that `save` wrote. Raises InputError where it is none."""
        a = read_archive(path, _KIND)
        grid = LatLonGrid(a["latitude"], a["longitude"], str(a["grid_name"]))
        spans = zip(a["periods"].tolist(), a["members"].tolist())
        covers = tuple(Period(first, last, member) for (first, last), member in spans)
        return cls(grid, tuple(a["channels"].tolist()), a["coefficients"], covers)


class HarmonicFit:
    """The normal equations of the fit: a small matrix and, per term, one field of sums in float64.

    States may come in any order, and fits made apart merge. Fewer `harmonics` (0: the mean alone) suit worlds
    shorter than a year.
    """

    def __init__(self, grid: LatLonGrid, channels: Sequence[str], *, harmonics: int = 2) -> None:
        terms = 1 + 2 * harmonics
        self.grid, self.channels, self.harmonics = grid, tuple(channels), harmonics
        self._matrix = np.zeros((terms, terms))
        self._sums = np.zeros((terms, len(self.channels), *grid.shape))
        self._times: set[tuple[int, datetime]] = set()

    def add(
        self, values: Float32[np.ndarray, "channel lat lon"], valid_time: datetime, *, member: int = 0
    ) -> None:
        """A state counts. Raises InputError where it is not finite or its time (of that member) came before."""
        if values.shape != self._sums.shape[1:]:
            raise ValueError(f"the fit is of states of shape {self._sums.shape[1:]}; got {values.shape}")
        self._check_finite(values, valid_time)
        self._check_new({(member, valid_time)})
        self._times.add((member, valid_time))
        terms = harmonic_terms(valid_time, self.harmonics)
        self._matrix += np.outer(terms, terms)
        for channel, field in enumerate(values):
            # Channel by channel: the temporaries stay in the cache.
            self._sums[:, channel] += terms[:, None, None] * field.astype(np.float64)

    def merge(self, other: "HarmonicFit") -> None:
        """The other fit's states count too. Raises InputError where some count in both."""
        mine, its = ((fit.grid, fit.channels, fit.harmonics) for fit in (self, other))
        if mine != its:
            raise ValueError(f"only fits of one kind merge; got {mine} and {its}")
        self._check_new(other._times)
        self._times |= other._times
        self._matrix += other._matrix
        self._sums += other._sums

    def solve(self) -> Climatology:
        """The least-squares climatology. Raises InputError where the states leave seasons open."""
        check_condition(self._matrix, periods_of(self._times), states=len(self._times))
        terms = self._matrix.shape[0]
        solution = np.linalg.solve(self._matrix, self._sums.reshape(terms, -1)).reshape(self._sums.shape)
        return Climatology(self.grid, self.channels, solution.astype(np.float32), periods_of(self._times))

    def _check_finite(self, values: np.ndarray, valid_time: datetime) -> None:
        broken = [name for name, field in zip(self.channels, values) if not np.isfinite(field).all()]
        if broken:
            raise InputError(
                f"a climatology is made of finite values; {', '.join(broken)} of {valid_time:%Y-%m-%d %H:%M} are "
                "not: replace that state or leave it out"
            )

    def _check_new(self, times: set[tuple[int, datetime]]) -> None:
        if twice := sorted(self._times & times):
            member, time = twice[0]
            raise InputError(
                f"each state counts once; {len(twice)} came twice, the first of {time:%Y-%m-%d %H:%M} "
                f"(member {member}): leave one out"
            )


def periods_of(times: Iterable[tuple[int, datetime]]) -> tuple[Period, ...]:
    """The periods of these members and times: without a break of more than 30 days."""
    periods: list[Period] = []
    for member, time in sorted(times):
        last = periods[-1] if periods else None
        if last and last.member == member and time - last.last <= _BREAK:
            periods[-1] = last._replace(last=time)
        else:
            periods.append(Period(time, time, member))
    return tuple(periods)


def check_independent(valid_times: Iterable[datetime], covers: Iterable[Period]) -> None:
    """Raises InputError where a verified time lies in one of the periods a climatology was made of."""
    periods = tuple(covers)
    hits = [(t, p) for t in sorted(valid_times) for p in periods if p.first <= t <= p.last]
    if hits:
        time, period = hits[0]
        raise InputError(
            f"climatology overlaps the verified dates: {len(hits)} valid times, the first {time:%Y-%m-%d %H:%M}, lie "
            f"in {period}, of which it was made; verify other dates or make it of other years"
        )


def check_condition(
    matrix: Float64[np.ndarray, "term term"], periods: Sequence[Period], *, states: int
) -> None:
    """Raises InputError where the normal matrix of the fit leaves seasons open."""
    condition = float(np.linalg.cond(matrix)) if states else np.inf
    if not condition <= _WORST_CONDITION:
        raise InputError(
            f"a climatology needs states of all seasons; {states} states in "
            f"{', '.join(map(str, periods)) or 'no period'} leave {matrix.shape[0] // 2} annual harmonics "
            f"undetermined (condition {condition:.3g}, at most {_WORST_CONDITION:g}): add the missing months "
            "or fit fewer harmonics"
        )


def harmonic_terms(valid_time: datetime, harmonics: int) -> Float64[np.ndarray, " term"]:
    """1, cos s, sin s, cos 2 s ...: what the coefficients are multiplied with at this time of the year."""
    year = datetime(valid_time.year, 1, 1)
    season = 2 * pi * ((valid_time - year) / (datetime(valid_time.year + 1, 1, 1) - year))
    waves = ((cos(k * season), sin(k * season)) for k in range(1, harmonics + 1))
    return np.array([1.0, *(value for pair in waves for value in pair)])
