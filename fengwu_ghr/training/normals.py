"""Normals of a simulated world: the climatology of its training years, fine and coarse, and the detail between."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from fengwu_ghr.errors import InputError
from fengwu_ghr.progress import Progress
from fengwu_ghr.regrid import Regridder
from fengwu_ghr.remap import remap_state
from fengwu_ghr.training.identity import claim, describe_world
from fengwu_ghr.training.world import World
from fengwu_ghr.variables import ChannelSet
from fengwu_ghr.verify.climatology import Climatology, HarmonicFit, Period

NAMES = ("fine", "coarse")


@dataclass(frozen=True, eq=False)
class Normals:
    """Climatologies of the product grid and of the area means on the backbone grid, of the same years."""

    fine: Climatology
    coarse: Climatology

    @classmethod
    def of(cls, world: World, folder: Path, *, harmonics: int = 2, progress: Progress) -> "Normals":
        """Those kept in the folder, else made of every training state and kept there.

        Raises UsageError where what is kept belongs to another world, or has other harmonics; InputError where its
        files cover other training states.
        """
        claim(folder / "normals", {"harmonics": harmonics, "world": describe_world(world)})
        paths = [folder / "normals" / f"{name}.npz" for name in NAMES]
        if not all(path.exists() for path in paths):
            for climatology, path in zip(_fit(world, harmonics, progress), paths):
                climatology.save(path)
        kept = cls(*(Climatology.load(path) for path in paths))
        kept._check_is_of(world, harmonics, paths[0])
        return kept

    def _check_is_of(self, world: World, harmonics: int, path: Path) -> None:
        spans = [Period(s.times[0], s.times[-1], s.member) for s in world.series("train")]
        has_terms = len(self.fine.coefficients) == 1 + 2 * harmonics
        if not (has_terms and _covers_just(self.fine.covers, spans)):
            raise InputError(
                f"{path} was made of other training states than those in {world.folder}, or has other annual "
                f"harmonics than {harmonics}; remove it"
            )


def _covers_just(periods: Sequence[Period], spans: Sequence[Period]) -> bool:
    """Whether the periods hold all spans, and begin and end with one: a few days between two spans do not part them."""
    firsts, lasts = ({(s.member, s[end]) for s in spans} for end in (0, 1))
    return all((p.member, p.first) in firsts and (p.member, p.last) in lasts for p in periods) and all(
        any(p.member == s.member and p.first <= s.first and s.last <= p.last for p in periods) for s in spans
    )


class FineDetail:
    """What the fine normals hold and the interpolated coarse ones do not, for any day of the year.

    Orography and coasts, for the most part: the detail that needs no forecast.
    """

    def __init__(self, normals: Normals, channels: ChannelSet) -> None:
        self._normals, self._channels = normals, channels.channels
        self._to_fine = Regridder(normals.coarse.grid, normals.fine.grid)

    def at(self, valid_time: datetime) -> Float32[np.ndarray, "channel lat lon"]:
        """That of noon of the day; not to be written to."""
        return self._of_day(valid_time.date())

    @lru_cache(maxsize=16)  # noqa: B019  # lives as long as its source
    def _of_day(self, day: date) -> Float32[np.ndarray, "channel lat lon"]:
        noon = datetime.combine(day, time(12))
        coarse = remap_state(self._normals.coarse.at(noon), self._channels, self._to_fine.apply)
        return self._normals.fine.at(noon) - coarse


def _fit(world: World, harmonics: int, progress: Progress) -> tuple[Climatology, Climatology]:
    grids = (world.fine_grid, world.coarse_grid)
    fits = [HarmonicFit(grid, world.channels.names, harmonics=harmonics) for grid in grids]
    series = world.series("train")
    progress.begin("climatology", 0, sum(map(len, series)))
    done = 0
    for run in series:
        for index, valid_time in enumerate(run.times):
            for fit, states in zip(fits, (run.fine, run.coarse)):
                fit.add(states(index), valid_time, member=run.member)
            done += 1
            progress.stepped(done, {})
    return fits[0].solve(), fits[1].solve()
