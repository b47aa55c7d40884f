"""Regions: which part of the sphere a score is of; a box cuts cells exactly, a mask takes shares of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float32, Float64

from fengwu_ghr.errors import UsageError
from fengwu_ghr.grid import LatLonGrid

Mask = Float32[np.ndarray, "lat lon"]
"""The share of each cell that belongs to a region, 0 to 1."""


@dataclass(frozen=True)
class Box:
    """Latitudes from south to north, longitudes from west eastward to east, in degrees.

    `west` > `east` crosses the dateline; -180 to 180 is the whole circle.
    """

    south: float
    north: float
    west: float = -180.0
    east: float = 180.0

    def __post_init__(self) -> None:
        if not -90 <= self.south < self.north <= 90:
            raise UsageError(
                f"a region needs -90 <= south < north <= 90; got south {self.south:g}, north {self.north:g}"
            )
        if not all(-360 <= side <= 360 for side in (self.west, self.east)) or self.west == self.east:
            raise UsageError(f"a region needs two different longitudes; got {self.west:g} and {self.east:g}")

    def row_shares(self, grid: LatLonGrid) -> Float64[np.ndarray, " lat"]:
        """What part of each row lies inside, by area."""
        edges = np.sin(np.deg2rad(grid.row_edges[::-1]))
        return _covered(edges, *np.sin(np.deg2rad([self.south, self.north])))[::-1]

    def column_shares(self, grid: LatLonGrid) -> Float64[np.ndarray, " lon"]:
        """What part of each column lies inside."""
        begin, width = self.west, (self.east - self.west) % 360 or 360.0
        sides = _column_edges(grid)
        turns = (_covered(sides, begin + turn, begin + turn + width) for turn in (-720, -360, 0, 360, 720))
        return np.minimum(sum(turns), 1.0)


# Boxes of the WMO's exchange of scores (Manual on the GDPFS, WMO-No. 485, appendix 2.2.34); East Asia is its Asia.
BOXES: Mapping[str, Box] = {
    "globe": Box(-90, 90),
    "northern extratropics": Box(20, 90),
    "southern extratropics": Box(-90, -20),
    "tropics": Box(-20, 20),
    "Europe": Box(25, 70, -10, 28),
    "North America": Box(25, 60, -145, -50),
    "East Asia": Box(25, 65, 60, 145),
}
SURFACES = ("land", "sea")
REGIONS = (*BOXES, *SURFACES)


@dataclass(frozen=True, eq=False)
class Regions:
    """Parts of a grid, and sums over each of them of values at its points, weighted by area.

    A box is a product of rows and columns, so its sums cost one pass over the rows, not one array of weights.
    """

    grid: LatLonGrid
    boxes: Mapping[str, Box]
    masks: Mapping[str, Mask]

    @classmethod
    def named(
        cls,
        grid: LatLonGrid,
        names: Sequence[str],
        *,
        boxes: Mapping[str, Box] | None = None,
        land: Mask | None = None,
        masks: Mapping[str, Mask] | None = None,
    ) -> "Regions":
        """Regions by name: of BOXES, `boxes`, `masks`, and land and sea where a land mask is given.

        Raises UsageError for a name that is none, a region without area, land or sea without a mask.
        """
        all_boxes, all_masks = {**BOXES, **(boxes or {})}, {**_surfaces(land), **(masks or {})}
        for name in names:
            if name not in all_boxes and name not in all_masks:
                hint = ": it needs a land mask" if name in SURFACES else ""
                there = ", ".join(dict.fromkeys((*all_boxes, *SURFACES, *all_masks)))
                raise UsageError(f"no region is named {name!r}{hint}; there are {there}")
        chosen = {name: all_boxes[name] for name in names if name in all_boxes}
        made = cls(grid, chosen, {name: all_masks[name] for name in names if name in all_masks})
        for name, area in zip(made.names, made.areas):
            if not area > 0:
                raise UsageError(f"the region {name} has no area on {grid}")
        return made

    @classmethod
    def globe(cls, grid: LatLonGrid) -> "Regions":
        """The whole grid alone."""
        return cls(grid, {"globe": BOXES["globe"]}, {})

    @property
    def names(self) -> tuple[str, ...]:
        """The boxes, then the masks: the order of every sum."""
        return (*self.boxes, *self.masks)

    @cached_property
    def areas(self) -> Float64[np.ndarray, " region"]:
        """The share of the grid's area in each region."""
        return self.sums(np.ones((1, *self.grid.shape)), slice(None))[0]

    def areas_of(self, rows: slice) -> Float64[np.ndarray, " region"]:
        """The same of these rows of the grid, worked out once."""
        key = rows.start, rows.stop
        if key not in self._areas_of_rows:
            points = np.ones((1, len(range(*rows.indices(self.grid.shape[0]))), self.grid.shape[1]))
            self._areas_of_rows[key] = self.sums(points, rows)[0]
        return self._areas_of_rows[key]

    def weights(self, name: str) -> Float64[np.ndarray, "lat lon"]:
        """The share of the grid's area in each cell inside this region."""
        if name in self.masks:
            return self.grid.cell_areas() * self.masks[name]
        rows, columns = self._row_weights[self.names.index(name)], self.boxes[name].column_shares(self.grid)
        return rows[:, None] * columns[None]

    def sums(
        self, values: Float64[np.ndarray, "statistic row lon"], rows: slice
    ) -> Float64[np.ndarray, "statistic region"]:
        """Sums over each region of values times area, of these rows of the grid."""
        along = [np.einsum("srk,kb->srb", self._along(values), self._shares)]
        if self.masks:
            shares = self._mask_shares[rows]
            along.append(np.matmul(values.transpose(1, 0, 2), shares).transpose(1, 0, 2))
        return np.einsum("srb,br->sb", np.concatenate(along, axis=2), self._row_weights[:, rows])

    def _along(
        self, values: Float64[np.ndarray, "statistic row lon"]
    ) -> Float64[np.ndarray, "statistic row piece"]:
        starts = self._starts
        ends = (*starts[1:], self.grid.shape[1])
        pieces = [values[..., start:end].sum(axis=2) for start, end in zip(starts, ends)]
        return np.stack(pieces, axis=2)

    @cached_property
    def _areas_of_rows(self) -> dict[tuple[int, int], Float64[np.ndarray, " region"]]:
        return {}

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        """The first column of every run of columns that the boxes treat alike."""
        columns = self._columns
        changes = np.any(columns[:, 1:] != columns[:, :-1], axis=0)
        return (0, *(np.flatnonzero(changes) + 1).tolist())

    @cached_property
    def _columns(self) -> Float64[np.ndarray, "box lon"]:
        return np.array([box.column_shares(self.grid) for box in self.boxes.values()]).reshape(
            len(self.boxes), self.grid.shape[1]
        )

    @cached_property
    def _shares(self) -> Float64[np.ndarray, "piece box"]:
        return np.ascontiguousarray(self._columns[:, list(self._starts)].T)

    @cached_property
    def _row_weights(self) -> Float64[np.ndarray, "region lat"]:
        cells = self.grid.row_weights / self.grid.shape[1]
        boxes = [cells * box.row_shares(self.grid) for box in self.boxes.values()]
        return np.array([*boxes, *(cells for _ in self.masks)])

    @cached_property
    def _mask_shares(self) -> Float32[np.ndarray, "lat lon mask"]:
        return np.ascontiguousarray(np.stack(list(self.masks.values()), axis=2))


def _surfaces(land: Mask | None) -> dict[str, Mask]:
    if land is None:
        return {}
    share = np.clip(land, 0, 1).astype(np.float32)
    return {"land": share, "sea": 1 - share}


def _column_edges(grid: LatLonGrid) -> Float64[np.ndarray, " edge"]:
    """Midway between the columns; of a grid that does not close the circle, half a step beyond its ends."""
    longitude = grid.longitude
    if longitude.size == 1:
        return np.array([longitude[0] - 180, longitude[0] + 180])
    middle = (longitude[:-1] + longitude[1:]) / 2
    return np.concatenate([[2 * longitude[0] - middle[0]], middle, [2 * longitude[-1] - middle[-1]]])


def _covered(edges: Float64[np.ndarray, " edge"], lower: float, upper: float) -> Float64[np.ndarray, " cell"]:
    """What part of each interval between ascending edges lies from `lower` to `upper`."""
    overlap = np.minimum(edges[1:], upper) - np.maximum(edges[:-1], lower)
    return np.clip(overlap, 0, None) / np.diff(edges)
