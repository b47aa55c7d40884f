"""Pictures of the evidence: errors by lead and shares of targets won; power and coherence by total wavenumber.

Sources differ in colour and in dashes, and the colours in lightness (those of Okabe and Ito), so that nobody needs to
tell red from green. The model the verdict is about is black and thick.
"""

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fengwu_ghr.durable import writing
from fengwu_ghr.training.tables import Tables
from fengwu_ghr.training.verdict import Comparison
from fengwu_ghr.variables import HEADLINE, reading_units
from fengwu_ghr.verify import metrics
from fengwu_ghr.verify.spectra import coherence, power_ratio
from fengwu_ghr.verify.statistics import Sums, hours_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DRAWN = ("z500", "t850", "2t", "u850")
"""Channels whose errors are drawn."""
WAVES_OF = ("z500", "u850")

_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#999999")
_DASHES = ("-", "--", "-.", ":")  # as many as the colours have no divisor in common with: 28 looks


def draw_pictures(
    folder: Path,
    tables: Mapping[str, Tables],
    titles: Mapping[str, str],
    ours: str,
    comparisons: Mapping[str, Comparison],
) -> list[Path]:
    """scores.png and spectra.png lie in the folder; nothing is drawn without matplotlib. Raises OutputError."""
    if find_spec("matplotlib") is None:
        return []
    looks = _looks(tables, ours)
    figures = {
        "scores.png": _scores(tables, titles, looks, comparisons),
        "spectra.png": _spectra(tables, titles, looks),
    }
    for name, figure in figures.items():
        with writing(folder / name):
            figure.savefig(folder / name, dpi=110)
    return [folder / name for name in figures]


def _looks(names: Iterable[str], ours: str) -> dict[str, dict[str, Any]]:
    """How the line of each source is drawn."""
    others = [name for name in names if name != ours]
    looks = {
        name: {"color": _COLOURS[i % len(_COLOURS)], "linestyle": _DASHES[i % len(_DASHES)], "linewidth": 1.3}
        for i, name in enumerate(others)
    }
    return looks | {ours: {"color": "black", "linestyle": "-", "linewidth": 2.6, "zorder": 3}}


def _scores(
    tables: Mapping[str, Tables],
    titles: Mapping[str, str],
    looks: Mapping[str, dict[str, Any]],
    comparisons: Mapping[str, Comparison],
) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 8.5), layout="constrained")
    axes = figure.subplot_mosaic("ABC\nDEC", width_ratios=(1, 1, 0.8))
    for axis, name in zip((axes[letter] for letter in "ABDE"), DRAWN):
        for source, table in tables.items():
            hours, errors = _errors(table, name)
            # A single lead is a point.
            axis.plot(
                hours, errors, label=titles[source], marker="." if len(hours) < 5 else "", **looks[source]
            )
        axis.set(
            title=f"{name}: RMSE [{reading_units(name)[0]}]",
            xlabel="lead time [h]",
            xlim=(0, None),
            ylim=(0, None),
        )
        axis.grid(alpha=0.3)
    _bars(axes["C"], titles, comparisons)
    _legend(figure, axes["A"])
    return figure


def _errors(table: Tables, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Lead times in hours, and the RMSE there in units of display."""
    row = table.everywhere.channels.index(name)
    hours = np.array([lead.total_seconds() / 3600 for lead in table.everywhere.leads])
    return hours, reading_units(name)[1] * metrics.rmse(table.everywhere.stacked()[..., row])


def _bars(axis: "Axes", titles: Mapping[str, str], comparisons: Mapping[str, Comparison]) -> None:
    """The share of all targets won against each source; hatched: by too smooth a forecast."""
    for place, (name, comparison) in enumerate(comparisons.items()):
        share = comparison.shares().get("all")
        if share is None:
            continue
        whole, interval = 100 * share.share, comparison.interval
        axis.barh(place, whole, color="#BFE0F5", edgecolor="black", linewidth=0.5)
        smooth = 100 * share.starred / share.targets
        axis.barh(
            place, smooth, left=whole - smooth, color="none", edgecolor="black", hatch="///", linewidth=0.5
        )
        axis.plot(
            [100 * float(interval.lower), 100 * float(interval.upper)], [place] * 2, "|-", color="black"
        )
        axis.text(2, place, f"{titles[name]}: {whole:.1f}", va="center", fontsize=8)
    axis.axvline(50, color="black", linewidth=0.5)
    axis.set(xlim=(0, 100), yticks=[], title="targets won [%]\nline: 95 % over dates; hatched: starred")
    axis.invert_yaxis()


def _spectra(
    tables: Mapping[str, Tables], titles: Mapping[str, str], looks: Mapping[str, dict[str, Any]]
) -> "Figure":
    from matplotlib.figure import Figure

    leads = next(iter(tables.values())).spectra.leads
    figure = Figure(figsize=(max(4.4 * len(leads) + 1, 10), 12), layout="constrained")
    axes = figure.subplots(2 * len(WAVES_OF), len(leads), squeeze=False, sharex=True)
    for source, table in tables.items():
        stacked = table.spectra.stacked()
        for column, lead in enumerate(leads):
            for pair, name in enumerate(WAVES_OF):
                sums = stacked[:, column].total()[HEADLINE.index(name)]
                _waves(axes[2 * pair : 2 * pair + 2, column], sums, titles[source], looks[source])
                axes[2 * pair, column].set_title(f"{name}, {hours_text(lead)}: power over the truth's")
                axes[2 * pair + 1, column].set_title(f"{name}: coherence with the truth")
    for axis in axes[-1]:
        axis.set_xlabel("total wavenumber")
    _legend(figure, axes[0, 0])
    return figure


def _waves(axes: np.ndarray, sums: Sums, title: str, look: Mapping[str, Any]) -> None:
    power, coherent = power_ratio(sums)[1:], coherence(sums)[1:]
    wavenumbers = np.arange(1, power.size + 1)
    axes[0].loglog(wavenumbers, power, label=title, **look)
    axes[0].set_ylim(0.05, 5)
    axes[0].axhspan(0.5, 2, color="0.93", zorder=0)
    axes[1].semilogx(wavenumbers, coherent, **look)
    axes[1].set_ylim(0, 1.02)


def _legend(figure: "Figure", axis: "Axes") -> None:
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
