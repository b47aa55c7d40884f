"""Map projections: from latitude and longitude to a plane and back, as radar networks use them.

Formulae of Snyder (1987), "Map projections: a working manual", USGS Professional Paper 1395, on the ellipsoid; the
Swiss oblique Mercator after swisstopo (2016), "Formulas and constants". No PROJ library is used: the one that other
packages bring crashes a process that uses ecCodes. Datum shifts are left out: they move a field by 0.2 km at most.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float64

_ELLIPSOIDS = {
    "WGS84": (6378137.0, 1 / 298.257223563),
    "GRS80": (6378137.0, 1 / 298.257222101),
    "bessel": (6377397.155, 1 / 299.1528128),
    "intl": (6378388.0, 1 / 297),
    "sphere": (6370997.0, 0.0),
}
_CF_NAMES = {
    "stere": "polar_stereographic",
    "lcc": "lambert_conformal_conic",
    "aea": "albers_conical_equal_area",
    "laea": "lambert_azimuthal_equal_area",
}
_WORD = re.compile(r"\+(\w+)(?:=(\S+))?")
_LEAST_ECCENTRICITY = 1e-8
"""Of a sphere, for formulae that divide by it."""

Points = Float64[np.ndarray, "*points"]
Angles = Points | float


@dataclass(frozen=True)
class Projection:
    """A projection as a PROJ string names it: `+proj=stere +lat_0=90 +lat_ts=60 ...`; axes may be in km there.

    Plane coordinates here are metres. Raises ValueError for a projection that is none of ours, naming those.
    """

    text: str

    def __post_init__(self) -> None:
        if self.kind not in _FORWARD:
            raise ValueError(
                f"a projected grid is of {', '.join('+proj=' + kind for kind in _FORWARD)}; got {self.text!r}"
            )
        if self.kind == "stere" and abs(self.degrees("lat_0", 90.0)) != 90:
            raise ValueError(f"stereographic grids are polar, +lat_0=90 or -90; got {self.text!r}")
        self.forward(np.array([self.degrees("lat_0", 45.0) / 2]), np.array([self.degrees("lon_0")]))

    @cached_property
    def words(self) -> Mapping[str, str]:
        return {key: value or "" for key, value in _WORD.findall(self.text)}

    @property
    def kind(self) -> str:
        """`stere`, `lcc` ..."""
        return self.words.get("proj", "none")

    @property
    def cf_name(self) -> str | None:
        """The name in the CF conventions, where they have one."""
        return _CF_NAMES.get(self.kind)

    def degrees(self, key: str, default: float = 0.0) -> float:
        """An angle of the string, as `25E` or `-27.7`; raises ValueError where it is none."""
        text = self.words.get(key, str(default))
        turned = text.endswith(("W", "S"))
        return float(text.rstrip("NESW")) * (-1 if turned else 1)

    @cached_property
    def axes(self) -> tuple[float, float]:
        """Equatorial and polar radius in metres; lengths below 10 km were meant in km."""
        if "R" in self.words or "a" in self.words:
            a = float(self.words.get("R") or self.words["a"])
            b = a if "R" in self.words else float(self.words.get("b", a))
            return a * self._unit, b * self._unit
        name = self.words.get("ellps") or self.words.get("datum", "GRS80")
        if name not in _ELLIPSOIDS:
            raise ValueError(f"the ellipsoids are {', '.join(_ELLIPSOIDS)}; got {name!r}")
        a, flattening = _ELLIPSOIDS[name]
        return a, a * (1 - flattening)

    @property
    def _unit(self) -> float:
        """Metres of a length of the string."""
        radius = self.words.get("R") or self.words.get("a", "inf")
        return 1000.0 if float(radius) < 1e4 else 1.0

    @property
    def eccentricity(self) -> float:
        a, b = self.axes
        return max(float(np.sqrt(1 - (b / a) ** 2)), _LEAST_ECCENTRICITY)

    def forward(self, latitude: Points, longitude: Points) -> tuple[Points, Points]:
        """x and y in metres of places in degrees."""
        turn = np.deg2rad((longitude - self.degrees("lon_0") + 180) % 360 - 180)
        x, y = _FORWARD[self.kind](self, np.deg2rad(latitude), turn)
        false = (float(self.words.get(key, "0")) * self._unit for key in ("x_0", "y_0"))
        return x + next(false), y + next(false)

    def inverse(self, x: Points, y: Points) -> tuple[Points, Points]:
        """Latitude and longitude in degrees of points in metres, to a millionth of a degree.

        Newton's method on the forward formulae, from the centre of the points' own map. Raises ValueError where it does
        not converge: the points then lie where the projection has no place.
        """
        latitude, longitude = self._first_guess(x, y)
        for _ in range(30):
            dx, dy = (wanted - found for wanted, found in zip((x, y), self.forward(latitude, longitude)))
            step = _solved(self._slopes(latitude, longitude), dx, dy)
            latitude = np.clip(latitude + np.clip(step[0], -10, 10), -89.999, 89.999)
            longitude = longitude + np.clip(step[1], -20, 20)
            if max(np.abs(step[0]).max(), np.abs(step[1]).max()) < 1e-7:
                return latitude, (longitude + 180) % 360 - 180
        raise ValueError(f"{self.text!r} has no place for some points of this grid; see to its corners")

    def _first_guess(self, x: Points, y: Points) -> tuple[Points, Points]:
        """The nearest of coarse places."""
        phi, lam = np.meshgrid(np.arange(-85.0, 86, 5), np.arange(-180.0, 180, 5) + self.degrees("lon_0"))
        with np.errstate(all="ignore"):
            px, py = self.forward(phi, lam)
        distance = np.hypot(px - x.mean(), py - y.mean())
        best = np.nanargmin(distance)
        return np.full(x.shape, phi.flat[best]), np.full(x.shape, lam.flat[best])

    def _slopes(self, latitude: Points, longitude: Points) -> tuple[Points, Points, Points, Points]:
        """Derivatives of x and y by latitude, then by longitude, per degree."""
        h = 1e-4
        north, south = (self.forward(latitude + s, longitude) for s in (h, -h))
        east, west = (self.forward(latitude, longitude + s) for s in (h, -h))
        pairs = ((north, south), (east, west))
        return tuple((more[i] - less[i]) / (2 * h) for more, less in pairs for i in (0, 1))


def _solved(slopes: tuple[Points, Points, Points, Points], dx: Points, dy: Points) -> tuple[Points, Points]:
    x_phi, y_phi, x_lam, y_lam = slopes
    determinant = x_phi * y_lam - x_lam * y_phi
    return (dx * y_lam - dy * x_lam) / determinant, (dy * x_phi - dx * y_phi) / determinant


def _t(p: Projection, phi: Angles) -> Any:
    """Snyder 15-9."""
    e = p.eccentricity
    return np.tan(np.pi / 4 - phi / 2) * np.exp(e * np.arctanh(e * np.sin(phi)))


def _m(p: Projection, phi: Angles) -> Any:
    """Snyder 14-15."""
    return np.cos(phi) / np.sqrt(1 - (p.eccentricity * np.sin(phi)) ** 2)


def _q(p: Projection, phi: Angles) -> Any:
    """Snyder 3-12."""
    e, sine = p.eccentricity, np.sin(phi)
    return (1 - e**2) * (sine / (1 - (e * sine) ** 2) + np.arctanh(e * sine) / e)


def _parallel(p: Projection, key: str, default: float = 0.0) -> float:
    return float(np.deg2rad(p.degrees(key, default)))


def _polar_stereographic(p: Projection, phi: Points, turn: Points) -> tuple[Points, Points]:
    """Snyder 21-30 to 21-34."""
    side = np.sign(p.degrees("lat_0", 90.0))
    true = side * _parallel(p, "lat_ts", 90.0 * side)
    e = p.eccentricity
    if np.isclose(true, np.pi / 2):
        scale = 2 * float(p.words.get("k_0") or p.words.get("k", "1"))
        scale /= np.sqrt((1 + e) ** (1 + e) * (1 - e) ** (1 - e))
    else:
        scale = _m(p, true) / _t(p, true)
    radius = p.axes[0] * scale * _t(p, side * phi)
    return radius * np.sin(turn), -side * radius * np.cos(turn)


def _lambert_conformal(p: Projection, phi: Points, turn: Points) -> tuple[Points, Points]:
    """Snyder 15-1 to 15-10."""
    first = _parallel(p, "lat_1")
    second, origin = (_parallel(p, key, p.degrees("lat_1")) for key in ("lat_2", "lat_0"))
    n = np.sin(first)
    if not np.isclose(first, second):
        n = np.log(_m(p, first) / _m(p, second)) / np.log(_t(p, first) / _t(p, second))
    factor = p.axes[0] * _m(p, first) / (n * _t(p, first) ** n)
    radius, at_origin = factor * _t(p, phi) ** n, factor * _t(p, origin) ** n
    return radius * np.sin(n * turn), at_origin - radius * np.cos(n * turn)


def _albers(p: Projection, phi: Points, turn: Points) -> tuple[Points, Points]:
    """Snyder 14-1 to 14-14."""
    first, second, origin = (_parallel(p, key) for key in ("lat_1", "lat_2", "lat_0"))
    n = np.sin(first)
    if not np.isclose(first, second):
        n = (_m(p, first) ** 2 - _m(p, second) ** 2) / (_q(p, second) - _q(p, first))
    constant = _m(p, first) ** 2 + n * _q(p, first)
    radius, at_origin = (p.axes[0] * np.sqrt(constant - n * _q(p, at)) / n for at in (phi, origin))
    return radius * np.sin(n * turn), at_origin - radius * np.cos(n * turn)


def _lambert_azimuthal(p: Projection, phi: Points, turn: Points) -> tuple[Points, Points]:
    """Snyder 24-2 to 24-20, oblique."""
    origin, polar = _parallel(p, "lat_0"), _q(p, np.pi / 2)
    beta, beta0 = (np.arcsin(np.clip(_q(p, at) / polar, -1, 1)) for at in (phi, origin))
    radius = p.axes[0] * np.sqrt(polar / 2)
    d = p.axes[0] * _m(p, origin) / (radius * np.cos(beta0))
    sines, cosines = np.sin(beta0) * np.sin(beta), np.cos(beta0) * np.cos(beta)
    b = radius * np.sqrt(2 / (1 + sines + cosines * np.cos(turn)))
    north = np.cos(beta0) * np.sin(beta) - np.sin(beta0) * np.cos(beta) * np.cos(turn)
    return b * d * np.cos(beta) * np.sin(turn), b / d * north


def _swiss(p: Projection, phi: Points, turn: Points) -> tuple[Points, Points]:
    """Ellipsoid to sphere, turned to the projection's centre, Mercator there (swisstopo 2016, section 3.2)."""
    e, origin = p.eccentricity, _parallel(p, "lat_0")
    radius = p.axes[0] * np.sqrt(1 - e**2) / (1 - (e * np.sin(origin)) ** 2)
    alpha = np.sqrt(1 + e**2 / (1 - e**2) * np.cos(origin) ** 4)
    b0 = np.arcsin(np.sin(origin) / alpha)

    def on_sphere(at: Angles) -> Any:
        return alpha * (np.arctanh(np.sin(at)) - e * np.arctanh(e * np.sin(at)))

    s = on_sphere(phi) - on_sphere(origin) + np.arctanh(np.sin(b0))
    b, around = 2 * np.arctan(np.exp(s)) - np.pi / 2, alpha * turn
    east = np.arctan2(
        np.sin(around) * np.cos(b), np.sin(b0) * np.sin(b) + np.cos(b0) * np.cos(b) * np.cos(around)
    )
    north = np.arctanh(np.cos(b0) * np.sin(b) - np.sin(b0) * np.cos(b) * np.cos(around))
    scale = radius * float(p.words.get("k_0", "1"))
    return scale * east, scale * north


_FORWARD: dict[str, Callable[[Projection, Points, Points], tuple[Points, Points]]] = {
    "stere": _polar_stereographic,
    "lcc": _lambert_conformal,
    "aea": _albers,
    "laea": _lambert_azimuthal,
    "somerc": _swiss,
}
