"""Projections against places that others published, against PROJ, and back again; grids on them."""

import numpy as np
import pytest

from fengwu_ghr.grid import LatLonGrid
from fengwu_ghr.nowcast.child import has_pysteps, run_child
from fengwu_ghr.projected_grid import ProjectedGrid, coarsened_grid, covering_grid, pixel_km
from fengwu_ghr.projection import Projection

KNMI = "+proj=stere +lat_0=90 +lon_0=0.0 +lat_ts=60.0 +a=6378.137 +b=6356.752 +x_0=0 +y_0=0"  # in kilometres
STRINGS = {
    "knmi": (KNMI, (52.0, 5.0)),
    "fmi": (
        "+proj=stere  +lon_0=25E +lat_0=90N +lat_ts=60 +a=6371288 +x_0=380886.310 +y_0=3395677.920 +no_defs",
        (62.0, 24.0),
    ),
    "pole": ("+proj=stere +lat_0=-90 +lon_0=30 +lat_ts=-71 +ellps=WGS84", (-70.0, 60.0)),
    "unscaled": ("+proj=stere +lat_0=90 +lon_0=10 +k_0=0.97 +ellps=bessel", (55.0, 12.0)),
    "swiss": (
        "+proj=somerc +lon_0=7.43958333333333 +lat_0=46.9524055555556 +k_0=1 +x_0=600000 +y_0=200000 +ellps=bessel",
        (46.5, 9.0),
    ),
    "bom": ("+proj=aea +lon_0=153.240 +lat_0=-27.718 +lat_1=-26.200 +lat_2=-29.300", (-27.0, 152.5)),
    "opera": ("+proj=laea +lat_0=55 +lon_0=10 +x_0=1950000 +y_0=-2100000 +ellps=WGS84", (48.0, 2.0)),
    "lambert": ("+proj=lcc +lat_1=30 +lat_2=60 +lat_0=45 +lon_0=10 +datum=WGS84", (50.0, 3.0)),
    "tangent": ("+proj=lcc +lat_1=48 +lat_0=48 +lon_0=10 +a=6371229", (50.0, 3.0)),
}


def around(place: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Places up to a few degrees away."""
    latitude, longitude = np.meshgrid(place[0] + np.linspace(-3, 3, 5), place[1] + np.linspace(-5, 5, 4))
    return latitude, longitude


def test_the_corners_that_knmi_states() -> None:
    """`geo_product_corners` of its files, rounded to a thousandth of a degree; the plane is 700 x 765 km."""
    x, y = Projection(KNMI).forward(
        np.array([49.362, 55.974, 55.389, 48.895]), np.array([0.0, 0.0, 10.856, 9.009])
    )
    np.testing.assert_allclose(x / 1000, [0, 0, 700, 700], atol=0.06)
    np.testing.assert_allclose(y / 1000, [-4415, -3650, -3650, -4415], atol=0.06)


def test_the_swiss_origin_and_scale() -> None:
    """Bern is 600 km east, 200 km north by definition; a kilometre north of it is one on the plane."""
    swiss = Projection(STRINGS["swiss"][0])
    x, y = swiss.forward(
        np.array([46.9524055555556, 46.9524055555556 + 1 / 111.1757]), np.full(2, 7.43958333333333)
    )
    np.testing.assert_allclose((x[0], y[0]), (600000, 200000), atol=1e-4)
    assert y[1] - y[0] == pytest.approx(1000, rel=2e-3)


@pytest.mark.parametrize("name", STRINGS)
def test_there_and_back(name: str) -> None:
    text, place = STRINGS[name]
    projection = Projection(text)
    latitude, longitude = around(place)
    found = projection.inverse(*projection.forward(latitude, longitude))
    np.testing.assert_allclose(found[0], latitude, atol=1e-7)
    np.testing.assert_allclose(found[1], longitude, atol=1e-7)


@pytest.mark.skipif(not has_pysteps(), reason="pyproj comes with the extra nowcast")
def test_proj_agrees() -> None:
    """In a process of its own; PROJ keeps kilometres where the string has them."""
    for name, (text, place) in STRINGS.items():
        latitude, longitude = around(place)
        theirs, _ = run_child("places", {"projection": text}, {"latitude": latitude, "longitude": longitude})
        unit = 1000.0 if name == "knmi" else 1.0
        for mine, its in zip(Projection(text).forward(latitude, longitude), (theirs["x"], theirs["y"])):
            np.testing.assert_allclose(mine, its * unit, atol=0.01, err_msg=name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("+proj=merc +lon_0=0", r"a projected grid is of \+proj=stere"),
        ("nonsense", r"got 'nonsense'"),
        ("+proj=stere +lat_0=50", r"polar, \+lat_0=90 or -90"),
        ("+proj=aea +lat_1=10 +lat_2=20 +ellps=potato", r"ellipsoids are WGS84.*'potato'"),
    ],
)
def test_other_projections_are_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Projection(text)


def small() -> ProjectedGrid:
    return ProjectedGrid.of_corners(Projection(KNMI), (0.0, -4415e3), (1000.0, 1000.0), (765, 700))


def test_a_grid_knows_its_places() -> None:
    grid = small()
    assert grid.shape == (765, 700)
    latitude, longitude = grid.places
    assert latitude[0, 0] == pytest.approx(55.969, abs=0.001), "row 0 is north"
    row, column = grid.fractional(latitude[[3, 700], [5, 650]], longitude[[3, 700], [5, 650]])
    np.testing.assert_allclose((row, column), [[3, 700], [5, 650]], atol=1e-4)
    assert pixel_km(grid) == pytest.approx((1.0, 1.0))
    assert grid == small()
    assert grid != ProjectedGrid(grid.projection, grid.x + 1000, grid.y)


def test_a_covering_grid_holds_every_point() -> None:
    grid = small()
    target = covering_grid(grid)
    latitude, longitude = grid.places
    assert target.latitude[0] >= latitude.max() - 0.01
    assert target.latitude[-1] <= latitude.min()
    assert target.longitude[0] <= longitude.min()
    assert target.longitude[-1] >= longitude.max() - 0.01


def test_coarser_grids_lie_in_the_middle() -> None:
    grid = coarsened_grid(small(), 2)
    assert grid.shape == (382, 350)
    assert grid.x[0] == pytest.approx(1000)  # type: ignore[union-attr]
    latlon = coarsened_grid(LatLonGrid(np.array([3.0, 2.0, 1.0, 0.0]), np.arange(4.0)), 2)
    np.testing.assert_allclose(latlon.latitude, [2.5, 0.5])  # type: ignore[union-attr]


def test_uneven_or_turned_axes_are_refused() -> None:
    grid = small()
    with pytest.raises(ValueError, match="y must fall in even steps"):
        ProjectedGrid(grid.projection, grid.x, grid.y[::-1].copy())
    with pytest.raises(ValueError, match="x must rise in even steps"):
        ProjectedGrid(grid.projection, np.array([0.0, 1.0, 3.0]), grid.y)
