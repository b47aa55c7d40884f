"""Sigma to pressure levels on atmospheres whose every value is a formula: above, between and below the levels."""

from collections.abc import Callable

import numpy as np
import pytest

from fengwu_ghr.training.levels import (
    DRY_AIR,
    LAPSE_RATE,
    SigmaColumns,
    mean_sea_level_pressure,
    to_pressure_level,
)
from fengwu_ghr.variables import STANDARD_GRAVITY

SIGMA = np.array([0.025, 0.095, 0.2, 0.34, 0.51, 0.685, 0.835, 0.95])
LEVELS = (5000.0, 10000.0, 25000.0, 50000.0, 70000.0, 85000.0, 92500.0, 100000.0)
"""Pa."""
EXPONENT = DRY_AIR * LAPSE_RATE / STANDARD_GRAVITY
SEA_LEVEL, SEA_TEMPERATURE = 101325.0, 288.15
HEIGHTS = np.array([[0.0, 40.0, 900.0], [3000.0, 5200.0, -30.0]])
"""m, of the ground: sea, hills, mountains, a depression."""

Formula = Callable[[np.ndarray], np.ndarray]
"""Of pressure in Pa."""


def columns(temperature: Formula, geopotential: Formula, surface_pressure: np.ndarray) -> SigmaColumns:
    """The atmosphere of these formulas on sigma levels; wind and humidity are polynomials of ln p."""
    pressure = SIGMA[:, None, None] * surface_pressure
    u, v, humidity = (np.polyval(p, np.log(pressure)) for p in ([3.0, -20.0], [-1.0, 5.0], [1e-3, 1e-3]))
    fields = temperature(pressure), u, v, humidity, geopotential(pressure)
    return SigmaColumns(
        SIGMA, *(field.astype(np.float32) for field in fields), surface_pressure.astype(np.float32)
    )


def isothermal(kelvin: float) -> tuple[Formula, Formula]:
    return (
        lambda p: np.full_like(p, kelvin),
        lambda p: DRY_AIR * kelvin * np.log(SEA_LEVEL / p),
    )


def linear_in_ln_p(kelvin: float, slope: float) -> tuple[Formula, Formula]:
    """T = T0 + b x with x = ln(p / p0): φ = -R (T0 x + b x² / 2)."""

    def of(p: np.ndarray) -> np.ndarray:
        return np.log(p / SEA_LEVEL)

    return (
        lambda p: kelvin + slope * of(p),
        lambda p: -DRY_AIR * (kelvin * of(p) + slope / 2 * of(p) ** 2),
    )


def standard_lapse() -> tuple[Formula, Formula]:
    """T = T0 (p / p0)^(R Γ / g), and the height at which T0 - Γ h is that."""

    def temperature(p: np.ndarray) -> np.ndarray:
        return SEA_TEMPERATURE * (p / SEA_LEVEL) ** EXPONENT

    return temperature, lambda p: STANDARD_GRAVITY / LAPSE_RATE * (SEA_TEMPERATURE - temperature(p))


def at_rest() -> tuple[SigmaColumns, np.ndarray]:
    """The standard atmosphere over the ground of HEIGHTS, and the geopotential of the ground."""
    surface = SEA_LEVEL * (1 - LAPSE_RATE * HEIGHTS / SEA_TEMPERATURE) ** (1 / EXPONENT)
    return columns(*standard_lapse(), surface), (STANDARD_GRAVITY * HEIGHTS).astype(np.float32)


@pytest.mark.parametrize("atmosphere", [isothermal(250.0), linear_in_ln_p(290.0, 22.0)])
def test_between_the_levels_it_is_exact_where_temperature_is_linear_in_ln_p(
    atmosphere: tuple[Formula, Formula],
) -> None:
    temperature, geopotential = atmosphere
    state = columns(temperature, geopotential, np.array([[60000.0, 99000.0, 103000.0]]))
    for pressure in LEVELS:
        above = pressure <= SIGMA[-1] * state.surface_pressure
        found = to_pressure_level(state, pressure)
        at = np.array(pressure)
        expected = {
            "t": temperature(at),
            "z": geopotential(at),
            "u": 3 * np.log(at) - 20,
            "v": 5 - np.log(at),
            "q": 1e-3 * np.log(at) + 1e-3,
        }
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][above], value, rtol=1e-5, atol=1.0 if name == "z" else 0)
        assert {field.dtype for field in found.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("kelvin", [220.0, 300.0])
def test_below_the_lowest_level_temperature_follows_the_standard_lapse_rate(kelvin: float) -> None:
    """dT/dz = -Γ and dz = -R T / g d ln p: T = T0 (p / p_low)^(R Γ / g), φ = φ_low - g / Γ (T - T0)."""
    surface = np.array([[55000.0, 101325.0]])
    state = columns(*isothermal(kelvin), surface)
    lowest = SIGMA[-1] * surface
    found = to_pressure_level(state, 100000.0)
    temperature = kelvin * (100000 / lowest) ** EXPONENT
    fall = STANDARD_GRAVITY / LAPSE_RATE * (temperature - kelvin)
    np.testing.assert_allclose(found["t"], temperature, rtol=1e-6)
    np.testing.assert_allclose(found["z"], state.geopotential[-1] - fall, atol=0.5)
    for name, field in (("u", state.u), ("v", state.v), ("q", state.humidity)):
        np.testing.assert_array_equal(found[name], field[-1])


def test_an_atmosphere_at_rest_has_level_surfaces_over_a_mountain() -> None:
    """The standard lapse rate throughout: above the lowest sigma level what is left is the error of interpolation."""
    state, _ = at_rest()
    for pressure in (30000.0, 50000.0, 70000.0, 85000.0, 92500.0, 100000.0):
        found = to_pressure_level(state, pressure)
        temperature, geopotential = (formula(np.array(pressure)) for formula in standard_lapse())
        interpolated = pressure < SIGMA[-1] * state.surface_pressure
        np.testing.assert_allclose(found["t"][~interpolated], temperature, rtol=1e-6)
        np.testing.assert_allclose(found["z"][~interpolated], geopotential, atol=0.5)
        # (R Γ / g)² T Δ² / 8 between levels Δ apart in ln p: 0.34 K at most here; φ errs by R times that, times Δ / 4.
        np.testing.assert_allclose(found["t"][interpolated], temperature, atol=0.34)
        np.testing.assert_allclose(found["z"][interpolated], geopotential, atol=15)


def test_its_pressure_at_mean_sea_level_is_the_same_everywhere() -> None:
    state, orography = at_rest()
    np.testing.assert_allclose(mean_sea_level_pressure(state, orography), SEA_LEVEL, atol=0.3)


def test_an_isothermal_atmosphere_is_carried_to_the_sea_along_the_lapse_rate() -> None:
    """p0 = ps exp(∫ g dz / R T), T the surface's and then Γ per metre warmer, integrated in small steps."""
    height, surface, kelvin = 1500.0, 85000.0, 270.0
    state = columns(*isothermal(kelvin), np.array([[surface]]))
    found = mean_sea_level_pressure(state, np.array([[STANDARD_GRAVITY * height]], np.float32))
    surface_temperature = kelvin * SIGMA[-1] ** -EXPONENT
    middle = (np.arange(15000) + 0.5) * height / 15000
    integral = np.sum(
        STANDARD_GRAVITY / (DRY_AIR * (surface_temperature + LAPSE_RATE * middle)) * height / 15000
    )
    assert float(found[0, 0]) == pytest.approx(surface * np.exp(integral), abs=0.5)


def test_fields_are_those_of_the_level_on_it_and_continuous_across_it(rng: np.random.Generator) -> None:
    """Random columns, for what is special about the levels and not about an atmosphere."""
    fields = {name: rng.standard_normal((8, 2, 3)).astype(np.float32) for name in ("u", "v", "humidity")}
    state = SigmaColumns(
        sigma=SIGMA,
        temperature=(250 + 20 * rng.standard_normal((8, 2, 3))).astype(np.float32),
        geopotential=np.sort(rng.uniform(0, 3e5, (8, 2, 3)), axis=0)[::-1].astype(np.float32),
        surface_pressure=np.full((2, 3), 100000, np.float32),
        **fields,
    )
    own = {"t": state.temperature, "z": state.geopotential, "u": state.u, "v": state.v, "q": state.humidity}
    size = {"t": 20.0, "z": 1e5, "u": 1.0, "v": 1.0, "q": 1.0}
    for index, sigma in enumerate(SIGMA[1:], start=1):
        for pressure in (1e5 * sigma * (1 - 2e-6), 1e5 * sigma * (1 + 2e-6)):
            found = to_pressure_level(state, pressure)
            for name, field in own.items():
                np.testing.assert_allclose(found[name], field[index], atol=2e-4 * size[name])


def test_a_level_above_the_model_is_an_error() -> None:
    state = columns(*isothermal(250.0), np.array([[100000.0, 101000.0]]))
    with pytest.raises(ValueError, match=r"25\.2 hPa lies above the highest model level, 0\.025 of surface"):
        to_pressure_level(state, 2520.0)
