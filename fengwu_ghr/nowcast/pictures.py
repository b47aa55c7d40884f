"""Pictures of a nowcast: observation beside forecast at some leads, and as a film. Needs the `plot` extra."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from fengwu_ghr.durable import make_folder, replace_file, writing
from fengwu_ghr.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Fields = Mapping[str, Float32[np.ndarray, "lead row column"]]
"""By name: observed, a method, another. NaN is drawn grey."""
LOWEST, HIGHEST = 7.0, 60.0
MOST_PIXELS = 512
"""A panel shows every n-th pixel of a larger field: the picture has no more."""


def draw_panels(fields: Fields, minutes: Sequence[int], title: str, *, output: Path) -> None:
    """A PNG with a row for every field and a column for every lead. Raises UsageError without matplotlib."""
    names = list(fields)
    figure = _figure(len(names), len(minutes))
    for row, name in enumerate(names):
        for column, lead in enumerate(minutes):
            axes = figure.axes[row * len(minutes) + column]
            _draw(axes, fields[name][column])
            axes.set_title(f"{name}, +{lead} min", fontsize=8)
    figure.suptitle(title, fontsize=9)
    _write(figure, output)


def animate(fields: Fields, minutes: Sequence[int], title: str, *, output: Path) -> None:
    """A GIF in which all fields go through all leads side by side. Raises UsageError without matplotlib."""
    from PIL import Image

    pictures = []
    for number, lead in enumerate(minutes):
        figure = _figure(1, len(fields))
        for axes, (name, values) in zip(figure.axes, fields.items()):
            _draw(axes, values[number])
            axes.set_title(name, fontsize=9)
        figure.suptitle(f"{title}, +{lead} min", fontsize=9)
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=80)
        pictures.append(Image.open(buffer).convert("P", palette=Image.Palette.ADAPTIVE))
    with writing(output):
        make_folder(output.absolute().parent)
        made = BytesIO()
        pictures[0].save(made, "GIF", save_all=True, append_images=pictures[1:], duration=200, loop=0)
        replace_file(output, made.getvalue())


def _figure(rows: int, columns: int) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("pictures need matplotlib: pip install 'fengwu_ghr[plot]'") from None
    figure = Figure(figsize=(2.6 * columns, 2.7 * rows + 0.3), layout="constrained")
    figure.subplots(rows, columns)
    return figure


def _draw(axes: object, values: Float32[np.ndarray, "row column"]) -> None:
    from matplotlib import colormaps

    step = max(1, max(values.shape) // MOST_PIXELS)
    colours = colormaps["turbo"].with_extremes(under="white", bad="lightgrey")
    axes.imshow(values[::step, ::step], cmap=colours, vmin=LOWEST, vmax=HIGHEST, interpolation="nearest")  # type: ignore[attr-defined]
    axes.set(xticks=[], yticks=[])  # type: ignore[attr-defined]


def _write(figure: "Figure", output: Path) -> None:
    buffer = BytesIO()
    figure.savefig(buffer, format=output.suffix.lstrip(".") or "png", dpi=110)
    with writing(output):
        make_folder(output.absolute().parent)
        replace_file(output, buffer.getvalue())
