"""Normals of a simulated world: the climatology of its training years, fine and coarse, and the detail between."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from fengwu_ghr.errors import InputError
from fengwu_ghr.regrid import Regridder
from fengwu_ghr.training.world import World
from fengwu_ghr.variables import ChannelSet
from fengwu_ghr.verify.climatology import Climatology, HarmonicFit

NAMES = ("fine", "coarse")


@dataclass(frozen=True, eq=False)
class Normals:
    """Climatologies of the product grid and of the area means on the backbone grid, of the same years."""

    fine: Climatology
    coarse: Climatology

    @classmethod
    def of(
        cls, world: World, folder: Path, *, harmonics: int = 2, progress: Callable[[int, int], None]
    ) -> "Normals":
        """Those kept in the folder, else made of every training state and kept there.

        Raises InputError where what is kept belongs to other training states.
        """
        paths = [folder / f"climatology-{name}.npz" for name in NAMES]
        if not all(path.exists() for path in paths):
            for climatology, path in zip(_fit(world, harmonics, progress), paths):
                climatology.save(path)
        kept = cls(*(Climatology.load(path) for path in paths))
        kept._check_is_of(world, paths[0])
        return kept

    def _check_is_of(self, world: World, path: Path) -> None:
        wanted = {(s.member, s.times[0], s.times[-1]) for s in world.series("train")}
        if {(p.member, p.first, p.last) for p in self.fine.covers} != wanted:
            raise InputError(
                f"{path} was made of other training states than those in {world.folder}; remove it"
            )


def interpolated(
    states: Float32[np.ndarray, "channel row column"], regridder: Regridder, channels: ChannelSet
) -> Float32[np.ndarray, "channel lat lon"]:
    """Every channel interpolated as a product is: cubic, vectors turned at the poles, kept to its bounds."""
    result = np.empty((len(channels), *regridder.target.shape), np.float32)
    for out, field, channel in zip(result, states, channels.channels):
        what = channel.definition
        out[:] = regridder.apply(field, is_vector=what.is_vector, smooth=what.is_smooth)
        if what.minimum is not None or what.maximum is not None:
            np.clip(out, what.minimum, what.maximum, out=out)
    return result


class FineDetail:
    """What the fine normals hold and the interpolated coarse ones do not, for any day of the year.

    Orography and coasts, for the most part: the detail that needs no forecast.
    """

    def __init__(self, normals: Normals, channels: ChannelSet) -> None:
        self._normals, self._channels = normals, channels
        self._to_fine = Regridder(normals.coarse.grid, normals.fine.grid)

    def at(self, valid_time: datetime) -> Float32[np.ndarray, "channel lat lon"]:
        """That of noon of the day; not to be written to."""
        return self._of_day(valid_time.date())

    @lru_cache(maxsize=16)  # noqa: B019  # lives as long as its source
    def _of_day(self, day: date) -> Float32[np.ndarray, "channel lat lon"]:
        noon = datetime.combine(day, time(12))
        coarse = interpolated(self._normals.coarse.at(noon), self._to_fine, self._channels)
        return self._normals.fine.at(noon) - coarse


def _fit(
    world: World, harmonics: int, progress: Callable[[int, int], None]
) -> tuple[Climatology, Climatology]:
    grids = (world.fine_grid, world.coarse_grid)
    fits = [HarmonicFit(grid, world.channels.names, harmonics=harmonics) for grid in grids]
    series = world.series("train")
    total, done = sum(map(len, series)), 0
    for run in series:
        for index, valid_time in enumerate(run.times):
            for fit, states in zip(fits, (run.fine, run.coarse)):
                fit.add(states(index), valid_time, member=run.member)
            done += 1
            progress(done, total)
    return fits[0].solve(), fits[1].solve()
