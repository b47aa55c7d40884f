"""Area means: what a coarse grid holds of a fine one, exactly conserved."""

from functools import cached_property

import numpy as np
from jaxtyping import Float32, Float64

from fengwu_ghr.grid import LatLonGrid


class AreaMean:
    """Maps fields of one global grid to the means over the cells of another (first-order conservative remapping).

    Each row of weights sums to one and the global area mean is conserved to rounding. Components of a vector are
    averaged as they are: cells are narrow in longitude but for the polar rows. Raises ValueError unless both grids
    are global.
    """

    def __init__(self, source: LatLonGrid, target: LatLonGrid) -> None:
        for grid in (source, target):
            if not grid.is_global:
                raise ValueError(f"area means need global grids; {grid} is not")
        self.source, self.target = source, target

    def apply(
        self, values: Float32[np.ndarray, "*channel lat lon"]
    ) -> Float32[np.ndarray, "*channel row column"]:
        """The means on the target grid, in new memory."""
        if values.shape[-2:] != self.source.shape:
            raise ValueError(
                f"a field on {self.source} has shape {self.source.shape}; got {values.shape[-2:]}"
            )
        return np.einsum("ri,...ij,cj->...rc", self._rows, values, self._columns, optimize=True)

    @cached_property
    def _rows(self) -> Float32[np.ndarray, "row lat"]:
        source, target = (np.sin(np.deg2rad(grid.row_edges)) for grid in (self.source, self.target))
        return _shares(-source, -target)

    @cached_property
    def _columns(self) -> Float32[np.ndarray, "column lon"]:
        source, target = (_meridian_edges(grid) for grid in (self.source, self.target))
        # Three turns of the source, so that target cells across the dateline find their parts.
        turns = np.concatenate([source[:-1] + turn for turn in (-360, 0, 360)] + [source[-1:] + 360])
        return _shares(turns, target).reshape(len(target) - 1, 3, -1).sum(axis=1)


def _meridian_edges(grid: LatLonGrid) -> Float64[np.ndarray, " edge"]:
    """Midway between the columns; one more than there are columns."""
    around = np.append(grid.longitude, grid.longitude[0] + 360)
    middle = (around[1:] + around[:-1]) / 2
    return np.concatenate([middle[-1:] - 360, middle])


def _shares(
    source: Float64[np.ndarray, " edge"], target: Float64[np.ndarray, " other"]
) -> Float32[np.ndarray, "cell part"]:
    """What part of each target interval each source interval covers; both ascend."""
    lower = np.maximum(source[None, :-1], target[:-1, None])
    upper = np.minimum(source[None, 1:], target[1:, None])
    overlap = np.clip(upper - lower, 0, None)
    return (overlap / overlap.sum(axis=1, keepdims=True)).astype(np.float32)
