"""ProjectedGrid: points evenly spaced on a plane, as radar composites have them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float64

from fengwu_ghr.grid import LatLonGrid
from fengwu_ghr.projection import Projection

EARTH_RADIUS_KM = 6371.229
_EVEN = 1e-3
"""Of a pixel: by so much a coordinate may depart from even spacing."""


@dataclass(frozen=True, eq=False)
class ProjectedGrid:
    """Centres of pixels on the plane of a projection, in metres: `x` rises eastward, `y` falls southward.

    Raises ValueError where they do not, or are not evenly spaced.
    """

    projection: Projection
    x: Float64[np.ndarray, " x"]
    y: Float64[np.ndarray, " y"]
    name: str = ""

    def __post_init__(self) -> None:
        for axis, values, sign in (("x", self.x, 1), ("y", self.y, -1)):
            steps = sign * np.diff(values)
            if values.size < 2 or not steps.min() > 0 or np.ptp(steps) > _EVEN * steps.mean():
                order = "rise" if sign > 0 else "fall"
                raise ValueError(
                    f"a projected grid's {axis} must {order} in even steps; got {values.size} values, "
                    f"{values[:1]} ... {values[-1:]}"
                )

    @classmethod
    def of_corners(
        cls, projection: Projection, west_south: tuple[float, float], pixel: tuple[float, float],
        shape: tuple[int, int], name: str = "",
    ) -> "ProjectedGrid":  # fmt: skip
        """The grid whose south-western pixel has this outer corner, of so many rows and columns."""
        rows, columns = shape
        x = west_south[0] + pixel[0] * (np.arange(columns) + 0.5)
        y = west_south[1] + pixel[1] * (np.arange(rows)[::-1] + 0.5)
        return cls(projection, x, y, name)

    @property
    def shape(self) -> tuple[int, int]:
        return self.y.size, self.x.size

    @property
    def points(self) -> int:
        return self.x.size * self.y.size

    @property
    def steps(self) -> tuple[float, float]:
        """Along x and y, in metres, positive."""
        return (self.x[-1] - self.x[0]) / (self.x.size - 1), (self.y[0] - self.y[-1]) / (self.y.size - 1)

    @cached_property
    def key(self) -> str:
        """A hash of projection and coordinates."""
        digest = hashlib.sha256(" ".join(sorted(self.projection.text.split())).encode())
        for values in (self.x, self.y):
            digest.update(np.round(values, 3).tobytes())
        return digest.hexdigest()[:32]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ProjectedGrid) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __str__(self) -> str:
        rows, columns = self.shape
        return f"{self.name or 'projected grid'} {rows} x {columns} ({self.projection.kind})"

    @cached_property
    def places(self) -> tuple[Float64[np.ndarray, "y x"], Float64[np.ndarray, "y x"]]:
        """Latitude and longitude of every point, in degrees."""
        return self.projection.inverse(*np.meshgrid(self.x, self.y))

    def fractional(
        self, latitude: Float64[np.ndarray, "*points"], longitude: Float64[np.ndarray, "*points"]
    ) -> tuple[Float64[np.ndarray, "*points"], Float64[np.ndarray, "*points"]]:
        """Row and column of places in degrees, between points and beyond the edges too."""
        x, y = self.projection.forward(latitude, longitude)
        dx, dy = self.steps
        return (self.y[0] - y) / dy, (x - self.x[0]) / dx

    def attributes(self) -> dict[str, Any]:
        """CF attributes of the grid mapping; `proj4` says all, also where CF has no name for it."""
        a, b = self.projection.axes
        named = {"grid_mapping_name": self.projection.cf_name} if self.projection.cf_name else {}
        angles: Mapping[str, float] = {
            "longitude_of_projection_origin": self.projection.degrees("lon_0"),
            "latitude_of_projection_origin": self.projection.degrees("lat_0"),
        }
        return {**named, "proj4": self.projection.text, "semi_major_axis": a, "semi_minor_axis": b, **angles}


RadarGrid = ProjectedGrid | LatLonGrid


def pixel_km(grid: RadarGrid) -> tuple[float, float]:
    """Height and width of a pixel in km, at the middle of the grid."""
    if isinstance(grid, ProjectedGrid):
        dx, dy = grid.steps
        return dy / 1000, dx / 1000
    degree = np.deg2rad(1.0) * EARTH_RADIUS_KM
    height = float(np.abs(np.diff(grid.latitude)).mean()) * degree
    width = float(np.diff(grid.longitude).mean()) * degree * float(np.cos(np.deg2rad(grid.latitude.mean())))
    return height, width


def coarsened_grid(grid: RadarGrid, factor: int) -> RadarGrid:
    """The grid of means over `factor` x `factor` pixels; rows and columns that fill no block are left out."""

    def means(values: Float64[np.ndarray, " point"]) -> Float64[np.ndarray, " mean"]:
        return values[: values.size // factor * factor].reshape(-1, factor).mean(axis=1)

    if isinstance(grid, ProjectedGrid):
        return ProjectedGrid(grid.projection, means(grid.x), means(grid.y), grid.name)
    return LatLonGrid(means(grid.latitude), means(grid.longitude), grid.name)


def covering_grid(grid: ProjectedGrid, *, degrees: float = 0.01) -> LatLonGrid:
    """The regular latitude-longitude grid of this step whose points cover the projected one."""
    latitude, longitude = grid.places
    north, south = (int(np.round(np.ceil(v / degrees))) for v in (latitude.max(), latitude.min()))
    west, east = (int(np.floor(v / degrees)) for v in (longitude.min(), longitude.max()))
    return LatLonGrid(
        np.arange(north, south - 2, -1) * degrees, np.arange(west, east + 2) * degrees, f"{degrees:g} degrees"
    )
