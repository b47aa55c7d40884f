"""Tables of sums of one source of forecasts."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fengwu_ghr.training.world import World
from fengwu_ghr.variables import HEADLINE
from fengwu_ghr.verify.statistics import DatedSums, Start


@dataclass(eq=False)
class Tables:
    """The sums of one source, by kind of table."""

    everywhere: DatedSums
    above_ground: DatedSums
    spectra: DatedSums
    truncated: DatedSums

    KINDS: ClassVar = ("everywhere", "above_ground", "spectra", "truncated")

    @classmethod
    def load(cls, folder: Path, ground_channels: Sequence[str], world: World) -> "Tables":
        """Those of the folder, every date in all of them; empty where there are none yet."""
        grid = world.fine_grid.name
        empty = {
            "everywhere": DatedSums(tuple(world.channels.names), grid),
            "above_ground": DatedSums(tuple(ground_channels), f"{grid}, above ground"),
            "spectra": DatedSums(HEADLINE, f"{grid}, by total wavenumber"),
            "truncated": DatedSums(HEADLINE, f"{grid}, truncated"),
        }
        paths = {kind: folder / f"{kind}.npz" for kind in cls.KINDS}
        found = {k: DatedSums.load(path) if path.exists() else empty[k] for k, path in paths.items()}
        done = set(found["everywhere"].starts)
        return cls(**found).only(done)

    def only(self, starts: Collection[Start]) -> "Tables":
        """Those of these starts alone."""
        return Tables(**{kind: getattr(self, kind).only(starts) for kind in self.KINDS})

    def save(self, folder: Path) -> None:
        # The table that says which dates are done is written last: a date that was being written is not in it.
        for kind in reversed(self.KINDS):
            getattr(self, kind).save(folder / f"{kind}.npz")
