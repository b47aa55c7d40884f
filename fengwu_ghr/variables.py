"""Variables: what the numbers mean. One registry, and the channel sets that select from it.

A variable is defined once (units, GRIB coding, plausible range, how it is derived); a channel set is an ordered
selection and belongs to the weights. Order is never configuration.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log

STANDARD_GRAVITY = 9.80665
"""m s-2; geopotential over geopotential height, by definition."""

HEADLINE = ("z500", "t850", "u850", "v850", "q700", "2t", "10u", "10v", "msl")
"""The channels that tables of scores show."""
LEVELS = (1000, 925, 850, 700, 600, 500, 400, 300, 250, 200, 150, 100, 50)
"""The thirteen pressure levels in hPa, from the ground upward."""

# GRIB codes of surfaces (GRIB2 table 4.5; GRIB1 table 3 where it differs).
SURFACE, MEAN_SEA, ENTIRE_ATMOSPHERE, ISOBARIC, HEIGHT_ABOVE_GROUND = 1, 101, 10, 100, 103
MEAN_SEA_1, HEIGHT_ABOVE_GROUND_1, ENTIRE_ATMOSPHERE_1 = 102, 105, 200


@dataclass(frozen=True)
class Coding:
    """One way in which a GRIB message carries a variable, by raw keys.

    `parameter` is (discipline, category, number) in GRIB2 and (table, indicator) in GRIB1, where table 0 stands
    for the WMO tables 1 to 3. `level` is the fixed level of the surface (2 for 2 m), None where levels vary.
    Decoded values times `factor` are in the registry's units.
    """

    edition: int
    parameter: tuple[int, ...]
    surface: int
    level: float | None = None
    factor: float = 1.0
    units: str = ""


@dataclass(frozen=True)
class Derivation:
    """A variable computed from others at the same level and time when it is not in the input itself."""

    inputs: tuple[str, ...]
    rule: str


@dataclass(frozen=True)
class Variable:
    """A physical quantity. `period_hours` > 0 marks an accumulation over the hours up to the valid time.

    `may_miss`: NaN is no error but a place without a value, as beyond the reach of radars.
    """

    name: str
    long_name: str
    standard_name: str
    units: str
    param_id: int
    codings: tuple[Coding, ...]
    plausible: tuple[float, float]
    on_levels: bool = False
    period_hours: int = 0
    is_vector: bool = False
    is_smooth: bool = True
    may_miss: bool = False
    minimum: float | None = None
    maximum: float | None = None
    derivations: tuple[Derivation, ...] = ()
    aliases: tuple[str, ...] = ()

    @property
    def is_accumulated(self) -> bool:
        return self.period_hours > 0

    @property
    def encoding(self) -> Coding:
        """How we write it: the first GRIB2 coding."""
        return next(coding for coding in self.codings if coding.edition == 2)


@dataclass(frozen=True, order=True)
class Channel:
    """One two-dimensional field of a state: a variable, on a pressure level (hPa) or on its own surface."""

    variable: str
    level: int | None = None

    def __post_init__(self) -> None:
        if VARIABLES[self.variable].on_levels != (self.level is not None):
            wants = "a pressure level" if VARIABLES[self.variable].on_levels else "no level"
            raise ValueError(f"{self.variable} needs {wants}; got level {self.level}")

    def __str__(self) -> str:
        return self.variable if self.level is None else f"{self.variable}{self.level}"

    @property
    def definition(self) -> Variable:
        return VARIABLES[self.variable]

    @property
    def description(self) -> str:
        """For messages: name, level and units."""
        where = f" at {self.level} hPa" if self.level is not None else ""
        return f"{self.variable}{where} [{self.definition.units}]"

    @property
    def plausible(self) -> tuple[float, float]:
        """Values outside this range cannot be this variable, in its units."""
        if self.variable == "z" and self.level is not None:
            standard = STANDARD_GRAVITY * standard_height(self.level)
            margin = 7000 + 0.1 * abs(standard)
            return standard - margin, standard + margin
        return self.definition.plausible


@dataclass(frozen=True)
class ChannelSet:
    """The ordered channels of a model."""

    name: str
    channels: tuple[Channel, ...]

    def __len__(self) -> int:
        return len(self.channels)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(str(channel) for channel in self.channels)

    def index(self, channel: Channel | str) -> int:
        try:
            return self.names.index(str(channel))
        except ValueError:
            raise ValueError(
                f"{self.name} has no channel {channel}; it has {', '.join(self.names)}"
            ) from None


def standard_height(pressure: float) -> float:
    """Height in metres of a pressure (hPa) in the International Standard Atmosphere, up to 20 km and above."""
    if pressure > 226.32:
        return 44330.77 * (1 - (pressure / 1013.25) ** 0.190263)
    return 11000 + 6341.62 * log(226.32 / pressure)


def standard_temperature(pressure: float) -> float:
    """Temperature in K of the International Standard Atmosphere: 6.5 K/km to 11 km, then constant."""
    return 288.15 - 0.0065 * min(standard_height(pressure), 11000.0)


def _grib2(discipline: int, category: int, number: int, surface: int, **options: object) -> Coding:
    return Coding(2, (discipline, category, number), surface, **options)  # type: ignore[arg-type]


def _ecmwf1(table: int, number: int, surface: int, **options: object) -> Coding:
    return Coding(1, (table, number), surface, **options)  # type: ignore[arg-type]


def _wmo1(number: int, surface: int, **options: object) -> Coding:
    return Coding(1, (0, number), surface, **options)  # type: ignore[arg-type]


def _isobaric(grib2: tuple[int, int, int], ecmwf: int, wmo: int) -> tuple[Coding, ...]:
    return (_grib2(*grib2, ISOBARIC), _ecmwf1(128, ecmwf, ISOBARIC), _wmo1(wmo, ISOBARIC))


def _near_surface(
    grib2: tuple[int, int, int], height: int, ecmwf: tuple[int, int], wmo: int
) -> tuple[Coding, ...]:
    return (
        _grib2(*grib2, HEIGHT_ABOVE_GROUND, level=height),
        _ecmwf1(*ecmwf, SURFACE),
        _ecmwf1(*ecmwf, HEIGHT_ABOVE_GROUND_1, level=height),
        _wmo1(wmo, HEIGHT_ABOVE_GROUND_1, level=height),
    )


_DEFINITIONS = (
    Variable(
        "z", "geopotential", "geopotential", "m2 s-2", 129, _isobaric((0, 3, 4), 129, 6), (-1e4, 3e5),
        on_levels=True, derivations=(Derivation(("gh",), "z = 9.80665 gh"),), aliases=("geopotential",),
    ),
    Variable(
        "gh", "geopotential height", "geopotential_height", "m", 156, _isobaric((0, 3, 5), 156, 7),
        (-1e3, 3.2e4), on_levels=True, aliases=("geopotential_height",),
    ),
    Variable(
        "q", "specific humidity", "specific_humidity", "kg kg-1", 133, _isobaric((0, 1, 0), 133, 51),
        (-1e-3, 0.05), on_levels=True, minimum=0.0, aliases=("specific_humidity",),
        derivations=(Derivation(("r", "t"), "q from r, t, p; saturation over water and ice as in the IFS"),),
    ),
    Variable(
        "r", "relative humidity", "relative_humidity", "%", 157, _isobaric((0, 1, 1), 157, 52), (-20.0, 250.0),
        on_levels=True, aliases=("relative_humidity",),
    ),
    Variable(
        "u", "eastward wind", "eastward_wind", "m s-1", 131, _isobaric((0, 2, 2), 131, 33), (-200.0, 200.0),
        on_levels=True, is_vector=True, aliases=("u_component_of_wind",),
    ),
    Variable(
        "v", "northward wind", "northward_wind", "m s-1", 132, _isobaric((0, 2, 3), 132, 34), (-200.0, 200.0),
        on_levels=True, is_vector=True, aliases=("v_component_of_wind",),
    ),
    Variable(
        "t", "temperature", "air_temperature", "K", 130, _isobaric((0, 0, 0), 130, 11), (150.0, 350.0),
        on_levels=True, aliases=("temperature",),
    ),
    Variable(
        "w", "vertical velocity", "lagrangian_tendency_of_air_pressure", "Pa s-1", 135,
        _isobaric((0, 2, 8), 135, 39), (-100.0, 100.0), on_levels=True, aliases=("vertical_velocity",),
    ),
    Variable(
        "2t", "2 metre temperature", "air_temperature", "K", 167, _near_surface((0, 0, 0), 2, (128, 167), 11),
        (170.0, 345.0), aliases=("t2m", "2m_temperature"),
    ),
    Variable(
        "10u", "10 metre eastward wind", "eastward_wind", "m s-1", 165,
        _near_surface((0, 2, 2), 10, (128, 165), 33), (-120.0, 120.0), is_vector=True,
        aliases=("u10", "u10m", "10m_u_component_of_wind"),
    ),
    Variable(
        "10v", "10 metre northward wind", "northward_wind", "m s-1", 166,
        _near_surface((0, 2, 3), 10, (128, 166), 34), (-120.0, 120.0), is_vector=True,
        aliases=("v10", "v10m", "10m_v_component_of_wind"),
    ),
    Variable(
        "100u", "100 metre eastward wind", "eastward_wind", "m s-1", 228246,
        _near_surface((0, 2, 2), 100, (228, 246), 33), (-150.0, 150.0), is_vector=True,
        aliases=("u100", "u100m", "100m_u_component_of_wind"),
    ),
    Variable(
        "100v", "100 metre northward wind", "northward_wind", "m s-1", 228247,
        _near_surface((0, 2, 3), 100, (228, 247), 34), (-150.0, 150.0), is_vector=True,
        aliases=("v100", "v100m", "100m_v_component_of_wind"),
    ),
    Variable(
        "msl", "mean sea level pressure", "air_pressure_at_mean_sea_level", "Pa", 151,
        (_grib2(0, 3, 0, MEAN_SEA), _ecmwf1(128, 151, SURFACE), _ecmwf1(128, 151, MEAN_SEA_1)),
        (8.5e4, 1.1e5), aliases=("mean_sea_level_pressure",),
        derivations=(Derivation(("prmsl",), "msl = prmsl (pressure reduced to mean sea level)"),),
    ),
    Variable(
        "prmsl", "pressure reduced to mean sea level", "air_pressure_at_mean_sea_level", "Pa", 260074,
        (_grib2(0, 3, 1, MEAN_SEA), _wmo1(2, MEAN_SEA_1)), (8.5e4, 1.1e5),
    ),
    Variable(
        "sp", "surface pressure", "surface_air_pressure", "Pa", 134,
        (_grib2(0, 3, 0, SURFACE), _ecmwf1(128, 134, SURFACE), _wmo1(1, SURFACE)), (3e4, 1.12e5),
        aliases=("surface_pressure",),
    ),
    Variable(
        "tcc", "total cloud cover", "cloud_area_fraction", "1", 164,
        (
            _grib2(0, 6, 1, ENTIRE_ATMOSPHERE, factor=0.01, units="%"),
            _grib2(0, 6, 1, SURFACE, factor=0.01, units="%"),
            _grib2(0, 6, 192, SURFACE),
            _grib2(0, 6, 192, ENTIRE_ATMOSPHERE),
            _ecmwf1(128, 164, SURFACE),
            _wmo1(71, ENTIRE_ATMOSPHERE_1, factor=0.01, units="%"),
        ),
        (-0.02, 1.02), is_smooth=False, minimum=0.0, maximum=1.0, aliases=("total_cloud_cover",),
    ),
    Variable(
        "tp6h", "total precipitation of the last 6 hours", "precipitation_amount", "kg m-2", 228,
        (
            _grib2(0, 1, 52, SURFACE),
            _grib2(0, 1, 8, SURFACE),
            _grib2(0, 1, 193, SURFACE, factor=1000.0, units="m"),
            _ecmwf1(128, 228, SURFACE, factor=1000.0, units="m"),
            _wmo1(61, SURFACE),
        ),
        (-0.5, 1500.0), period_hours=6, is_smooth=False, minimum=0.0,
        aliases=("tp", "tp06", "total_precipitation_6hr"),
    ),
    Variable(
        "ssr6h", "surface net short-wave radiation of the last 6 hours", "surface_net_downward_shortwave_flux",
        "J m-2", 176, (_grib2(0, 4, 9, SURFACE), _ecmwf1(128, 176, SURFACE)), (-1e6, 4e7), period_hours=6,
        is_smooth=False, minimum=0.0, aliases=("ssr",),
    ),
    Variable(
        "rare", "radar reflectivity", "equivalent_reflectivity_factor", "dBZ", 231066,
        (_grib2(0, 16, 4, ENTIRE_ATMOSPHERE),), (-35.0, 95.0), is_smooth=False, may_miss=True,
        aliases=("reflectivity",),
    ),
)  # fmt: skip

VARIABLES: dict[str, Variable] = {variable.name: variable for variable in _DEFINITIONS}
_READ_IN = {
    "z": ("m", 1 / STANDARD_GRAVITY),
    "q": ("g kg-1", 1000.0),
    "msl": ("hPa", 0.01),
    "sp": ("hPa", 0.01),
}
_ALIASES = {alias: v.name for v in _DEFINITIONS for alias in v.aliases}


def reading_units(name: str) -> tuple[str, float]:
    """The units in which people read errors of this channel, and the factor to them from those of the registry."""
    definition = channel(name).definition
    return _READ_IN.get(definition.name, (definition.units, 1.0))


def variable(name: str) -> Variable:
    """The variable of this name or alias (ECMWF, cfgrib, earth2studio and WeatherBench spellings)."""
    found = VARIABLES.get(_ALIASES.get(name, name))
    if found is None:
        raise ValueError(f"no variable is named {name!r}; known: {', '.join(VARIABLES)}")
    return found


def channel(text: str) -> Channel:
    """The channel a user writes as `z500`, `z_500`, `geopotential_500`, `2t` or `t2m`.

    `u100` is u at 100 hPa, as `str` writes it, although cfgrib calls the wind at 100 m so.
    """
    match = re.fullmatch(r"(.*?[a-z])_?(\d+)", text)
    is_level = match and match[1] in VARIABLES and int(match[2]) in LEVELS
    if not is_level and (text in VARIABLES or text in _ALIASES):
        return Channel(variable(text).name)
    if match is None:
        raise ValueError(f"{text!r} is no channel; write for instance z500, t850 or 2t")
    return Channel(variable(match[1]).name, int(match[2]))


def upper_air(names: str, levels: Sequence[int]) -> tuple[Channel, ...]:
    """Every level of the first variable, then of the next."""
    return tuple(Channel(name, level) for name in names for level in levels)


def single_level(*names: str) -> tuple[Channel, ...]:
    return tuple(Channel(name) for name in names)


CHANNEL_SETS: dict[str, ChannelSet] = {
    channel_set.name: channel_set
    for channel_set in (
        ChannelSet("ghr-69", upper_air("zquvt", LEVELS) + single_level("2t", "10u", "10v", "msl")),
        ChannelSet(
            "ghr-74",
            upper_air("zquvt", LEVELS)
            + single_level("10v", "10u", "100v", "100u", "2t", "tcc", "sp", "tp6h", "msl"),
        ),
        ChannelSet(
            "ghr-88",
            upper_air("zquvtw", LEVELS)
            + single_level("10v", "10u", "100v", "100u", "2t", "tcc", "sp", "msl", "tp6h", "ssr6h"),
        ),
        ChannelSet("fengwu-69", single_level("10u", "10v", "2t", "msl") + upper_air("zquvt", LEVELS[::-1])),
    )
}


def channel_set(name: str) -> ChannelSet:
    """The channel set of this name; raises ValueError listing those there are."""
    if name not in CHANNEL_SETS:
        raise ValueError(f"no channel set is named {name!r}; there are {', '.join(CHANNEL_SETS)}")
    return CHANNEL_SETS[name]
