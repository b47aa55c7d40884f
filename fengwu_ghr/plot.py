"""Pictures: a map of one field, a meteogram of one point. Needs the `plot` extra."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, Float64

from fengwu_ghr.errors import OutputError, UsageError
from fengwu_ghr.grid import LatLonGrid
from fengwu_ghr.shores import coastlines
from fengwu_ghr.variables import STANDARD_GRAVITY, Channel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PIXELS = (1000, 2000)
"""A map of more rows and columns than this is thinned before it is drawn; the picture has no more pixels."""


@dataclass(frozen=True)
class Look:
    """How a variable is shown: colours, display units = (value x factor + offset), contour step in those units."""

    colours: str
    units: str
    factor: float = 1.0
    offset: float = 0.0
    contours: float | None = None
    is_signed: bool = False


_TEMPERATURE = Look("RdYlBu_r", "°C", offset=-273.15)
_WIND = Look("RdBu_r", "m/s", is_signed=True)
LOOKS: Mapping[str, Look] = {
    "z": Look("viridis", "dam", factor=0.1 / STANDARD_GRAVITY, contours=8),
    "t": _TEMPERATURE,
    "2t": _TEMPERATURE,
    "q": Look("YlGnBu", "g/kg", factor=1e3),
    "w": Look("PuOr", "Pa/s", is_signed=True),
    "msl": Look("viridis", "hPa", factor=0.01, contours=4),
    "sp": Look("viridis", "hPa", factor=0.01),
    "tcc": Look("Blues_r", "%", factor=100),
    "tp6h": Look("YlGnBu", "mm"),
    "ssr6h": Look("inferno", "MJ/m²", factor=1e-6),
    "rare": Look("turbo", "dBZ"),
} | dict.fromkeys(("u", "v", "10u", "10v", "100u", "100v"), _WIND)


@dataclass(frozen=True)
class Caption:
    """What a picture must say about its field."""

    channel: Channel
    initial_time: datetime
    lead: timedelta
    model: str

    def __str__(self) -> str:
        hours = self.lead / timedelta(hours=1)
        valid = self.initial_time + self.lead
        level = f" at {self.channel.level} hPa" if self.channel.level else ""
        return (
            f"{self.channel.definition.long_name}{level} [{LOOKS[self.channel.variable].units}]\n"
            f"{self.model}, {self.initial_time:%Y-%m-%d %H} UTC + {hours:g} h, valid {valid:%Y-%m-%d %H} UTC"
        )


def draw_map(
    values: Float32[np.ndarray, "lat lon"], grid: LatLonGrid, caption: Caption, *, output: Path
) -> None:
    """Write a PNG (or what the suffix says) of a field in plate carrée, with coastlines, range and mean."""
    plt = _pyplot()
    look = LOOKS[caption.channel.variable]
    shown = values * np.float32(look.factor) + np.float32(look.offset)
    latitude, longitude, field = _drawable(shown, grid)
    limit = float(np.abs(shown).max()) if look.is_signed else None
    figure, axes = plt.subplots(figsize=(12, 6.4), layout="constrained")
    mesh = axes.pcolormesh(
        longitude, latitude, field, cmap=look.colours, shading="nearest", rasterized=True,
        vmin=None if limit is None else -limit, vmax=limit,
    )  # fmt: skip
    if look.contours:
        _contours(axes, longitude, latitude, field, step=look.contours)
    _coastlines(axes, longitude)
    axes.set(xlim=(longitude[0], longitude[-1]), ylim=(latitude[-1], latitude[0]))
    axes.set(xlabel="longitude [°E]", ylabel="latitude [°N]")
    axes.set_title(str(caption), fontsize=11, loc="left")
    mean = float(np.average(shown.mean(axis=1, dtype=np.float64), weights=grid.row_weights))
    axes.set_title(f"{shown.min():.4g} ... {shown.max():.4g}, mean {mean:.4g}", fontsize=9, loc="right")
    figure.colorbar(mesh, ax=axes, label=look.units, shrink=0.85, pad=0.01)
    _save(figure, output)


def draw_meteogram(
    leads: Sequence[timedelta],
    series: Mapping[Channel, Float32[np.ndarray, " lead"]],
    *,
    title: str,
    initial_time: datetime,
    output: Path,
) -> None:
    """Write a picture with one panel per variable over valid time."""
    plt = _pyplot()
    rows = max(1, len(series))
    figure, panels = plt.subplots(
        rows, figsize=(9, 1.2 + 1.7 * rows), sharex=True, layout="constrained", squeeze=False
    )
    times = [initial_time + lead for lead in leads]
    for axes, (channel, values) in zip(panels[:, 0], series.items()):
        look = LOOKS[channel.variable]
        axes.plot(times, values * look.factor + look.offset, marker="o", markersize=3, color="tab:blue")
        axes.set_ylabel(f"{channel}\n[{look.units}]", fontsize=9)
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.grid(alpha=0.3)
    panels[0, 0].set_title(title, fontsize=11, loc="left")
    figure.autofmt_xdate()
    _save(figure, output)


def _pyplot():  # type: ignore[no-untyped-def]
    """matplotlib's interface with the file back end; raises UsageError when the extra is not installed."""
    os.environ.setdefault("MPLBACKEND", "agg")
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise UsageError(
            "pictures need matplotlib; install the extra: pip install 'fengwu_ghr[plot]'"
        ) from None
    return plt


def _save(figure: "Figure", output: Path) -> None:
    import matplotlib.pyplot as plt

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output, dpi=110)
    except OSError as error:
        raise OutputError(f"the picture {output} cannot be written: {error.strerror or error}") from None
    except ValueError as error:
        raise UsageError(f"the picture {output} cannot be written: {error}") from None
    finally:
        plt.close(figure)


def _drawable(
    shown: Float32[np.ndarray, "lat lon"], grid: LatLonGrid
) -> tuple[Float64[np.ndarray, " y"], Float64[np.ndarray, " x"], Float32[np.ndarray, "y x"]]:
    """Thinned to the pixels of a picture; on a global grid the first meridian closes the map on the other side."""
    rows, columns = (slice(None, None, max(1, n // most)) for n, most in zip(grid.shape, MAX_PIXELS))
    latitude, longitude, field = grid.latitude[rows], grid.longitude[columns], shown[rows, columns]
    if grid.is_periodic:
        longitude, field = np.append(longitude, longitude[0] + 360), np.c_[field, field[:, :1]]
    return latitude, longitude, field


def _contours(
    axes: "Axes", longitude: np.ndarray, latitude: np.ndarray, shown: np.ndarray, *, step: float
) -> None:
    first, last = np.floor(shown.min() / step), np.ceil(shown.max() / step)
    while (last - first) > 40:
        step, first, last = 2 * step, np.floor(first / 2), np.ceil(last / 2)
    levels = step * np.arange(first, last + 1)
    lines = axes.contour(longitude, latitude, shown, levels=levels, colors="white", linewidths=0.6)
    axes.clabel(lines, fontsize=6, fmt="%g")


def _coastlines(axes: "Axes", longitude: np.ndarray) -> None:
    from matplotlib.collections import LineCollection

    lines = []
    for line in coastlines():
        for shift in (-360.0, 0.0, 360.0):
            moved = line + np.array([shift, 0.0])
            if np.nanmax(moved[:, 0]) >= longitude[0] and np.nanmin(moved[:, 0]) <= longitude[-1]:
                lines.append(moved)
    axes.add_collection(LineCollection(lines, colors="black", linewidths=0.5), autolim=False)
