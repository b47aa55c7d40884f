"""Units as others spell them: by unit of the registry, what brings a value there."""

from collections.abc import Mapping

from fengwu_ghr.variables import STANDARD_GRAVITY

_SPELLINGS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "m2 s-2": {"m2/s2": (1, 0), "m": (STANDARD_GRAVITY, 0), "gpm": (STANDARD_GRAVITY, 0)},
    "K": {
        "kelvin": (1, 0),
        "degc": (1, 273.15),
        "c": (1, 273.15),
        "celsius": (1, 273.15),
        "degf": (1 / 1.8, 273.15 - 32 / 1.8),
        "f": (1 / 1.8, 273.15 - 32 / 1.8),
    },
    "Pa": {"hpa": (100, 0), "hectopascal": (100, 0), "mb": (100, 0), "mbar": (100, 0), "millibars": (100, 0)},
    "kg kg-1": {"kg/kg": (1, 0), "1": (1, 0), "g kg-1": (1e-3, 0), "g/kg": (1e-3, 0)},
    "m s-1": {
        "m/s": (1, 0),
        "knots": (0.514_444, 0),
        "kt": (0.514_444, 0),
        "km/h": (1 / 3.6, 0),
        "mph": (0.447_04, 0),
    },
    "kg m-2": {"mm": (1, 0), "m": (1000, 0), "kg/m2": (1, 0), "inches": (25.4, 0), ".01 inches": (0.254, 0)},
    "m": {"gpm": (1, 0), "ft": (0.3048, 0), "feet": (0.3048, 0)},
    "1": {"%": (0.01, 0), "(0 - 1)": (1, 0), "0-1": (1, 0), "dimensionless": (1, 0)},
    "%": {"1": (100, 0)},
}


def conversion(stated: str, ours: str) -> tuple[float, float]:
    """Factor and offset from the stated unit to this one of the registry. Raises ValueError naming those known."""
    known = {_plain(ours): (1.0, 0.0), **_SPELLINGS.get(ours, {})}
    if _plain(stated) not in known:
        raise ValueError(f"{stated!r} cannot be made {ours!r}; known are {', '.join(known)}")
    return known[_plain(stated)]


def _plain(units: str) -> str:
    return units.strip().lower().replace("**", "").replace("^", "")
