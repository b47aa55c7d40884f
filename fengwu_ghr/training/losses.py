"""Losses: what an error costs, by place, level and variable.

Both losses are in units of the tendency: an error of one standard deviation of the 6-hour change, in every channel
and everywhere, costs 1, and so does, about, a forecast of no change.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor

from fengwu_ghr.config import Section
from fengwu_ghr.grid import LatLonGrid, NetworkGrid
from fengwu_ghr.training.world import WorldStatistics
from fengwu_ghr.variables import LEVELS, VARIABLES, Channel, ChannelSet

BANDS = 12
"""Bands of latitude within which amplitudes and coherence are measured, 15 degrees each."""

_SINGLE_WAVENUMBERS, _BIN_RATIO = 8, 1.2
_TINY = 1e-12  # of squared normalised values: keeps the slope of a square root finite


class LossSettings(Section):
    """How errors in the channels are weighed against each other."""

    level_floor: float = Field(0.25, ge=0, le=1)
    """A level weighs as its pressure, in units of 1000 hPa, but at least this; then the mean level weighs 1."""

    variables: dict[str, float] = Field(default_factory=dict)
    """Factor by variable name, such as `z = 2.0`; 1 for those that are not named."""

    @field_validator("variables")
    @classmethod
    def _are_known(cls, value: dict[str, float]) -> dict[str, float]:
        if unknown := sorted(set(value) - set(VARIABLES)):
            raise ValueError(f"loss weights name variables, {', '.join(VARIABLES)}; got {', '.join(unknown)}")
        if any(not 0 <= weight < float("inf") for weight in value.values()):
            raise ValueError(f"loss weights are not negative; got {value}")
        return value


@dataclass(frozen=True, eq=False)
class LossWeights:
    """`channels` (over the squared std of the tendency) and `rows` (mean one; zero beyond the poles)."""

    channels: Float[Tensor, " channel"]
    rows: Float[Tensor, " row"]

    @classmethod
    def of(
        cls,
        channels: ChannelSet,
        statistics: WorldStatistics,
        grid: LatLonGrid | NetworkGrid,
        settings: LossSettings,
    ) -> "LossWeights":
        """The weights of fields on this grid, float32 on the CPU; persisted channels weigh nothing.

        Raises ValueError when statistics and channels differ in number, or nothing is left with a weight.
        """
        if statistics.tendency_std.shape != (len(channels),):
            raise ValueError(
                f"statistics of {statistics.tendency_std.size} channels do not fit the {len(channels)} "
                f"of {channels.name}"
            )
        share = np.array([_weight(channel, settings) for channel in channels.channels])
        share[[name in statistics.persisted for name in channels.names]] = 0
        if not share.sum() > 0:
            raise ValueError("every channel is persisted or weighs nothing: there is nothing to learn")
        variance = np.where(share > 0, statistics.tendency_std.astype(np.float64) ** 2, 1)
        weights = share / share.sum() / variance
        return cls(torch.from_numpy(weights).float(), torch.from_numpy(mean_one_rows(grid)).float())

    def to(self, device: torch.device) -> "LossWeights":
        return LossWeights(self.channels.to(device), self.rows.to(device))


def mean_one_rows(grid: LatLonGrid | NetworkGrid) -> np.ndarray:
    """Area of a cell of each row, with a mean of one over the rows; zero for the network's rows beyond the poles."""
    if isinstance(grid, LatLonGrid):
        return grid.row_weights * grid.row_weights.size
    beyond = [0.0] if grid.has_rows_beyond_poles else []
    weights = np.concatenate([beyond, grid.inner.row_weights, beyond])
    return weights * weights.size


def weighted_mse(
    forecast: Float[Tensor, "batch channel row column"],
    truth: Float[Tensor, "batch channel row column"],
    weights: LossWeights,
) -> Float[Tensor, ""]:
    """Σ_c w_c Σ_rows a_row (f - o)² over rows, columns and batch, normalised values: 1 for a unit tendency error."""
    # Out of autocast, which would multiply, and so round, in bfloat16.
    with torch.autocast(forecast.device.type, enabled=False):
        by_row = (forecast - truth).float().square().mean(dim=(0, 3))
        return weights.channels @ (by_row @ weights.rows) / weights.rows.numel()


def spectral_loss(
    forecast: Float[Tensor, "batch channel row column"],
    truth: Float[Tensor, "batch channel row column"],
    weights: LossWeights,
) -> Float[Tensor, ""]:
    """Σ over bands of (√Pf - √Po)² + 2 max(Pf, Po) (1 - Coh): what is smooth pays for the amplitude it lacks.

    Subich et al. (2025), "Fixing the double penalty in data-driven weather forecasting through a modified spherical
    harmonic loss function", here on zonal wavenumbers in bands of latitude. Pf, Po are power and Coh the coherence
    Re(F O*) / √(Pf Po), each summed over the rows of a band (area weights) and a bin of wavenumbers. Where both
    fields have the same power this is `weighted_mse`, by Parseval; where they differ, the cross term keeps the
    larger power, so that a damped forecast gains nothing.
    """
    with torch.autocast(forecast.device.type, enabled=False):
        spectra = [torch.fft.rfft(field.float(), norm="forward") for field in (forecast, truth)]
        bands, bins = _reductions(forecast.shape[2], forecast.shape[3], forecast.device)
        bands = bands * (weights.rows / weights.rows.numel())
        pairs = (spectra[0], spectra[0]), (spectra[1], spectra[1]), spectra
        power_f, power_o, cross = (
            bands @ (a.real * b.real + a.imag * b.imag) @ bins + _TINY for a, b in pairs
        )  # (batch, channel, band, bin) each
        amplitude_f, amplitude_o = power_f.sqrt(), power_o.sqrt()
        coherence = cross / (amplitude_f * amplitude_o)
        cost = (amplitude_f - amplitude_o).square() + 2 * torch.maximum(power_f, power_o) * (1 - coherence)
        return weights.channels @ cost.sum(dim=(2, 3)).mean(dim=0)


@lru_cache(maxsize=8)
def _reductions(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Sums over bands of rows (band, row) and bins of wavenumbers (wavenumber, bin), both signs counted."""
    band = np.arange(rows) * BANDS // rows
    wavenumber = np.arange(columns // 2 + 1)
    # Singly while they are few, then in bins whose ends have the same ratio.
    beyond = np.maximum(wavenumber / _SINGLE_WAVENUMBERS, 1)
    number = np.minimum(wavenumber, _SINGLE_WAVENUMBERS) + np.floor(np.log(beyond) / np.log(_BIN_RATIO))
    _, bin_of = np.unique(number, return_inverse=True)
    counted = np.where((wavenumber == 0) | (2 * wavenumber == columns), 1.0, 2.0)
    bands = (band == np.arange(BANDS)[:, None]).astype(np.float32)
    bins = ((bin_of[:, None] == np.arange(bin_of.max() + 1)) * counted[:, None]).astype(np.float32)
    return torch.from_numpy(bands).to(device), torch.from_numpy(bins).to(device)


def _weight(channel: Channel, settings: LossSettings) -> float:
    factor = settings.variables.get(channel.variable, 1.0)
    if channel.level is None:
        return factor
    heights = [max(level / 1000, settings.level_floor) for level in LEVELS]
    return factor * max(channel.level / 1000, settings.level_floor) * len(heights) / sum(heights)
