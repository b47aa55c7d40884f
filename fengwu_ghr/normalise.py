"""Normalisation: physical values to the network's numbers and back, channel by channel."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp

import numpy as np
from jaxtyping import Float32

from fengwu_ghr.variables import STANDARD_GRAVITY, Channel, standard_height, standard_temperature

_TROPOPAUSE = 11000.0  # m, of the International Standard Atmosphere


@dataclass(frozen=True, eq=False)
class Normalisation:
    """x_normalised = (x - mean) / std per channel, in registry units. A missing or useless statistic is an error.

    Raises ValueError where the two differ in length, are not finite, or a std is not positive.
    """

    mean: Float32[np.ndarray, " channel"]
    std: Float32[np.ndarray, " channel"]

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape:
            raise ValueError(
                f"mean and std hold one value per channel; got {self.mean.shape}, {self.std.shape}"
            )
        wrong = ~(np.isfinite(self.mean) & np.isfinite(self.std) & (self.std > 0))
        if wrong.any():
            index = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                "statistics must be finite with a positive std; "
                f"channel {index} has mean {self.mean[index]}, std {self.std[index]}"
            )

    def __len__(self) -> int:
        return self.mean.size

    def normalise(
        self,
        values: Float32[np.ndarray, "channel *space"],
        *,
        out: Float32[np.ndarray, "channel *space"] | None = None,
    ) -> Float32[np.ndarray, "channel *space"]:
        """The normalised values, written to `out` where given (which may be `values` itself)."""
        self._check_channels(values)
        result = np.empty_like(values) if out is None else out
        for index, (mean, std) in enumerate(zip(self.mean, self.std)):
            # Field by field: no temporary of the size of a state.
            np.subtract(values[index], mean, out=result[index])
            np.divide(result[index], std, out=result[index])
        return result

    def denormalise_field(
        self,
        field: Float32[np.ndarray, "*space"],
        channel: int,
        *,
        out: Float32[np.ndarray, "*space"] | None = None,
    ) -> Float32[np.ndarray, "*space"]:
        """One channel's field in its physical unit, written to `out` where given (which may be `field`)."""
        result = np.multiply(field, self.std[channel], out=out)
        return np.add(result, self.mean[channel], out=result)

    def denormalise(
        self,
        values: Float32[np.ndarray, "channel *space"],
        *,
        out: Float32[np.ndarray, "channel *space"] | None = None,
    ) -> Float32[np.ndarray, "channel *space"]:
        """The physical values, written to `out` where given (which may be `values` itself)."""
        self._check_channels(values)
        result = np.empty_like(values) if out is None else out
        for index in range(len(self)):
            self.denormalise_field(values[index], index, out=result[index])
        return result

    def across_pole(
        self, is_vector: Sequence[bool]
    ) -> tuple[Float32[np.ndarray, " channel"], Float32[np.ndarray, " channel"]]:
        """(sign, offset): sign x n + offset is the normalised value seen from beyond a pole.

        A scalar stays. A vector component changes its physical sign, and with x = n std + mean,
        (-x - mean) / std = -n - 2 mean / std.
        """
        if len(is_vector) != len(self):
            raise ValueError(
                f"one flag per channel is needed: {len(self)} channels, got {len(is_vector)} flags"
            )
        vector = np.asarray(is_vector, dtype=bool)
        sign = np.where(vector, np.float32(-1), np.float32(1))
        offset = np.where(vector, -2 * self.mean / self.std, np.float32(0))
        return sign.astype(np.float32), offset.astype(np.float32)

    def _check_channels(self, values: np.ndarray) -> None:
        if values.shape[:1] != (len(self),):
            raise ValueError(f"statistics of {len(self)} channels do not fit values of shape {values.shape}")


def standard_statistics(channels: Sequence[Channel]) -> Normalisation:
    """Rough statistics for models that were never trained, from plain formulae of height.

    Means: the International Standard Atmosphere for z and t, moisture decaying with a scale height of 2.3 km,
    no wind. Spreads: what a global sample of weather and seasons spans, to a factor of about 1.5. Not climatology:
    a trained model brings the statistics of its own training world. Raises ValueError for a variable without a rule.
    """
    pairs = [_mean_and_std(channel) for channel in channels]
    mean, std = np.array(pairs, dtype=np.float32).reshape(-1, 2).T.copy()
    return Normalisation(mean, std)


def _mean_and_std(channel: Channel) -> tuple[float, float]:
    if channel.level is not None and channel.variable in _UPPER_AIR:
        return _UPPER_AIR[channel.variable](float(channel.level))
    if channel.level is None and channel.variable in _NEAR_SURFACE:
        return _NEAR_SURFACE[channel.variable]
    raise ValueError(f"no standard statistics for {channel}; give the model statistics of its own")


def _geopotential(pressure: float) -> tuple[float, float]:
    # A column warmer by some kelvins is taller throughout: the spread grows up to the tropopause.
    height = standard_height(pressure)
    return STANDARD_GRAVITY * height, 1000.0 + 0.42 * min(height, _TROPOPAUSE)


def _temperature(pressure: float) -> tuple[float, float]:
    return standard_temperature(pressure), 16.5 - 0.0008 * min(standard_height(pressure), _TROPOPAUSE)


def _humidity(pressure: float) -> tuple[float, float]:
    moisture = exp(-standard_height(pressure) / 2300)
    return 0.008 * moisture + 3e-6, 0.006 * moisture + 1e-6


def _jet(pressure: float, *, base: float, peak: float, centre: float, depth: float) -> tuple[float, float]:
    """No mean; a spread of `base`, and of `base + peak` at height `centre` (m)."""
    return 0.0, base + peak * exp(-(((standard_height(pressure) - centre) / depth) ** 2))


_UPPER_AIR: dict[str, Callable[[float], tuple[float, float]]] = {
    "z": _geopotential,
    "t": _temperature,
    "q": _humidity,
    "u": lambda pressure: _jet(pressure, base=7.0, peak=11.0, centre=_TROPOPAUSE, depth=6000),
    "v": lambda pressure: _jet(pressure, base=5.0, peak=8.0, centre=_TROPOPAUSE, depth=6000),
    "w": lambda pressure: _jet(pressure, base=0.05, peak=0.2, centre=5000, depth=5000),
}

_NEAR_SURFACE: dict[str, tuple[float, float]] = {
    "2t": (288.15, 20.0),
    "10u": (0.0, 5.5),
    "10v": (0.0, 5.0),
    "100u": (0.0, 7.0),
    "100v": (0.0, 6.0),
    "msl": (101325.0, 1300.0),
    "sp": (97000.0, 9000.0),
    "tcc": (0.6, 0.35),
    "tp6h": (0.7, 2.0),
    # A quarter of 1361 W m-2 at the top, about half of it absorbed by the surface, for six hours.
    "ssr6h": (1361 / 4 * 0.5 * 21600, 4.5e6),
}
