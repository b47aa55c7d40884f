"""Section 3 of projected grids: polar stereographic and Lambert conformal planes of a spherical Earth.

GRIB2 has ellipsoids and other projections too, but ecCodes does not find the places of their points, so that no reader
could: fields on those are brought to latitudes and longitudes.
"""

from typing import Any

from fengwu_ghr.errors import ConformanceError
from fengwu_ghr.projected_grid import ProjectedGrid

_TEMPLATES = {"stere": 20, "lcc": 30}
_FROM_SOUTH_WEST = 64
_STEPS_GIVEN = 8
_MICRO, _MILLI = 1_000_000, 1000


def is_plane(grid: ProjectedGrid) -> bool:
    """Whether GRIB output can stay on this grid."""
    a, b = grid.projection.axes
    return grid.projection.kind in _TEMPLATES and a == b


def plane_keys(grid: ProjectedGrid) -> dict[str, Any]:
    """Section 3, rows from the south. Raises ConformanceError where `is_plane` is not so."""
    if not is_plane(grid):
        raise ConformanceError(
            "GRIB output stays on polar stereographic and Lambert planes of a sphere; "
            f"{grid.projection.text!r} is none: remap to latitudes and longitudes"
        )
    projection, (dx, dy) = grid.projection, grid.steps
    latitude, longitude = grid.places
    is_stereographic = projection.kind == "stere"
    true_at = projection.degrees("lat_ts", 90.0) if is_stereographic else projection.degrees("lat_1")
    rows, columns = grid.shape
    keys = {
        "gridDefinitionTemplateNumber": _TEMPLATES[projection.kind],
        "shapeOfTheEarth": 1,
        "scaleFactorOfRadiusOfSphericalEarth": 0,
        "scaledValueOfRadiusOfSphericalEarth": round(projection.axes[0]),
        "numberOfDataPoints": grid.points,
        "Nx": columns,
        "Ny": rows,
        "latitudeOfFirstGridPoint": round(latitude[-1, 0] * _MICRO),
        "longitudeOfFirstGridPoint": round(longitude[-1, 0] % 360 * _MICRO),
        "resolutionAndComponentFlags": _STEPS_GIVEN,
        "LaD": round(true_at * _MICRO),
        "orientationOfTheGrid" if is_stereographic else "LoV": round(
            projection.degrees("lon_0") % 360 * _MICRO
        ),
        "Dx": round(dx * _MILLI),
        "Dy": round(dy * _MILLI),
        "projectionCentreFlag": 0 if projection.degrees("lat_0", 90.0) > 0 else 128,
        "scanningMode": _FROM_SOUTH_WEST,
    }
    if is_stereographic:
        return keys
    parallels = {"Latin1": "lat_1", "Latin2": "lat_2" if "lat_2" in projection.words else "lat_1"}
    return (
        keys
        | {key: round(projection.degrees(name) * _MICRO) for key, name in parallels.items()}
        | {
            "latitudeOfSouthernPole": -90 * _MICRO,
            "longitudeOfSouthernPole": 0,
        }
    )
