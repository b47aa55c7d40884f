"""RadarSequence: reflectivity at evenly spaced times on one grid. The noun of the nowcast.

Values are dBZ from DRY to MOST; what was not observed is NaN, and never becomes rain or dry weather.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Float32

from fengwu_ghr.errors import InputError
from fengwu_ghr.projected_grid import RadarGrid, coarsened_grid, pixel_km

DRY, MOST = 0.0, 95.0
"""dBZ. Echoes below DRY are dry; no weather reaches MOST."""
LEAST = -35.0
"""dBZ below which no radar reports."""


@dataclass(frozen=True)
class ZR:
    """Z = a R^b, with Z in mm6 m-3 and the rain rate R in mm/h."""

    a: float = 200.0
    b: float = 1.6

    def __post_init__(self) -> None:
        if not (self.a > 0 and self.b > 0):
            raise InputError(f"Z = a R^b needs a > 0 and b > 0; got a {self.a:g}, b {self.b:g}")

    def __str__(self) -> str:
        return f"Z = {self.a:g} R^{self.b:g}"

    def reflectivity(self, rain_rate: Float[np.ndarray, "*points"]) -> Float32[np.ndarray, "*points"]:
        """dBZ, not below DRY, of mm/h; NaN stays NaN."""
        with np.errstate(divide="ignore", invalid="ignore"):
            decibel = 10 * (np.log10(self.a) + self.b * np.log10(np.maximum(rain_rate, 0)))
        return np.maximum(decibel, DRY).astype(np.float32)

    def rain_rate(self, reflectivity: Float[np.ndarray, "*points"]) -> Float32[np.ndarray, "*points"]:
        """mm/h of dBZ; nothing where it is dry."""
        rate = np.asarray(reflectivity, np.float32) * np.float32(np.log(10) / 10 / self.b)
        np.exp(rate, out=rate)
        rate *= np.float32(self.a ** (-1 / self.b))
        rate[reflectivity <= DRY] = 0
        return rate


@dataclass(frozen=True, eq=False)
class RadarSequence:
    """Frames of dBZ, NaN where nothing was observed; times are naive UTC. Raises InputError where parts do not fit.

    `source` says for messages and cards where it comes from, `zr` how reflectivity and rain rate belong together.
    """

    values: Float32[np.ndarray, "time row column"]
    times: tuple[datetime, ...]
    grid: RadarGrid
    zr: ZR = ZR()
    source: str = "radar"

    def __post_init__(self) -> None:
        expected = (len(self.times), *self.grid.shape)
        if self.values.shape != expected or not self.times:
            raise InputError(
                f"{self.source}: {len(self.times)} times on {self.grid} need {expected}, one frame at least; got "
                f"{self.values.shape}"
            )
        if any(later <= earlier for earlier, later in zip(self.times, self.times[1:])):
            raise InputError(f"{self.source}: times must ascend, each once; got {_brief(self.times)}")

    @classmethod
    def of(
        cls,
        values: Float[np.ndarray, "time row column"],
        times: Sequence[datetime],
        grid: RadarGrid,
        *,
        zr: ZR = ZR(),
        source: str = "radar",
    ) -> "RadarSequence":
        """Of dBZ as files have them: what is below DRY is dry. Raises InputError for what no radar measures."""
        wild = (values < LEAST) | (values > MOST)  # NaN is neither
        if wild.any():
            frame = int(np.argmax(wild.any(axis=(1, 2))))
            raise InputError(
                f"{source}: reflectivities lie in {LEAST:g} ... {MOST:g} dBZ; at {times[frame]:%Y-%m-%d %H:%M} there "
                f"are {np.nanmin(values[frame]):.4g} ... {np.nanmax(values[frame]):.4g}: see to units and to the value "
                "that stands for no data"
            )
        return cls(np.maximum(values, np.float32(DRY)).astype(np.float32), tuple(times), grid, zr, source)

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, frames: slice) -> "RadarSequence":
        return replace(self, values=self.values[frames], times=self.times[frames])

    @cached_property
    def step(self) -> timedelta:
        """The time from frame to frame. Raises InputError where it varies or is no whole number of minutes."""
        if len(self) < 2:
            raise InputError(f"{self.source}: a step needs two frames or more; got one, of {self.times[0]}")
        steps = {later - earlier for earlier, later in zip(self.times, self.times[1:])}
        step = min(steps)
        if len(steps) > 1:
            raise InputError(f"{self.source}: {self._gaps(step)}")
        if step % timedelta(minutes=1):
            raise InputError(f"{self.source}: frames come in whole minutes; got a step of {step}")
        return step

    @property
    def minutes(self) -> int:
        """The step in minutes."""
        return self.step // timedelta(minutes=1)

    @property
    def known(self) -> Bool[np.ndarray, "time row column"]:
        """Where something was observed."""
        return ~np.isnan(self.values)

    def bridged(self, *, longest: timedelta = timedelta(minutes=15)) -> "RadarSequence":
        """The same without gaps: missing frames are interpolated in time between their neighbours.

        Raises InputError where a gap is longer than this, or times do not lie on a common step.
        """
        step = min(later - earlier for earlier, later in zip(self.times, self.times[1:]))
        frames, times = [self.values[0]], [self.times[0]]
        for values, time in zip(self.values[1:], self.times[1:]):
            gap = time - times[-1]
            if gap % step or gap - step > longest:
                raise InputError(f"{self.source}: {self._gaps(step)} A gap is bridged up to {longest}.")
            before, last = frames[-1], times[-1]
            for number in range(1, gap // step + 1):
                share = np.float32(number / (gap // step))
                frames.append(values if share == 1 else before + share * (values - before))
                times.append(last + number * step)
        return replace(self, values=np.stack(frames), times=tuple(times))

    def every(self, stride: int, *, first: int = 0) -> "RadarSequence":
        """Every so many frames only."""
        return self[first::stride]

    def coarsened(self, factor: int) -> "RadarSequence":
        """Mean rain rates over `factor` x `factor` pixels, as dBZ; unknown where half of the pixels or more are."""
        if factor == 1:
            return self
        grid = coarsened_grid(self.grid, factor)
        rows, columns = grid.shape
        means = np.empty((len(self), rows, columns), np.float32)
        for frame, values in zip(means, self.values):
            blocks = values[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor)
            rain = self.zr.rain_rate(blocks)
            count = np.isfinite(rain).sum(axis=(1, 3))
            total = np.nansum(rain, axis=(1, 3))
            enough = count > factor**2 / 2
            frame[:] = self.zr.reflectivity(np.where(enough, total / np.maximum(count, 1), np.nan))
        return replace(self, values=means, grid=grid)

    def at_one_kilometre(self) -> "RadarSequence":
        """The same at about 1 km: finer pixels are averaged. Raises InputError for coarser or odd ones."""
        height, width = pixel_km(self.grid)
        factor = max(1, round(1 / max(height, width)))
        if not (0.7 <= height * factor <= 1.4 and 0.7 <= width * factor <= 1.4):
            raise InputError(
                f"{self.source}: nowcasts are made at 1 km, of pixels of 0.7 to 1.4 km or whole fractions of them; "
                f"these are {height:.3g} x {width:.3g} km: resample the composite first"
            )
        return self.coarsened(factor)

    def _gaps(self, step: timedelta) -> str:
        pairs = [(a, b) for a, b in zip(self.times, self.times[1:]) if b - a != step]
        missing = ", ".join(f"{a:%Y-%m-%d %H:%M} to {b:%H:%M}" for a, b in pairs[:4])
        return (
            f"frames must follow each other by one step, {step // timedelta(minutes=1)} minutes here; it is not so "
            f"from {missing}{' ...' if len(pairs) > 4 else ''}: add the missing frames, or let short gaps be bridged."
        )


def _brief(times: Sequence[datetime]) -> str:
    return ", ".join(f"{time:%Y-%m-%d %H:%M}" for time in times[:6]) + (" ..." if len(times) > 6 else "")
