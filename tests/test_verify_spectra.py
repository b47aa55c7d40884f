"""Spectra: against scipy's spherical harmonics on every kind of our grids; Parseval; coherence; truncation."""

import numpy as np
import pytest
import scipy.special

from fengwu_ghr.grid import LatLonGrid, NetworkGrid, backbone_grid, product_grid, regular_gaussian_grid
from fengwu_ghr.verify import spectra
from fengwu_ghr.verify.spectra import coherence, cross, effective_wavenumber, power, power_ratio, truncate

GRID = product_grid(20)


def harmonic(n: int, m: int, grid: LatLonGrid = GRID, *, turned: float = 0.0) -> np.ndarray:
    """A real spherical harmonic of mean square one, turned eastward by this phase (radians)."""
    colatitude = np.deg2rad(90 - grid.latitude)[:, None]
    values = scipy.special.sph_harm_y(n, m, colatitude, np.deg2rad(grid.longitude)[None])
    scale = np.sqrt(4 * np.pi * (1 if m == 0 else 2))
    return (scale * (values * np.exp(-1j * turned)).real).astype(np.float32)


@pytest.mark.parametrize("grid", [GRID, product_grid(80), backbone_grid(20), NetworkGrid(40).inner], ids=str)
@pytest.mark.parametrize("share", [0, 0.3, 0.7, 1])
def test_a_harmonic_has_all_its_power_at_its_wavenumber(grid: LatLonGrid, share: float) -> None:
    highest = grid.shape[0] - 2
    for n in (0, 1, highest // 2, highest // 2 + 1, highest - 1, highest):
        found = power(harmonic(n, round(share * n), grid), grid)
        np.testing.assert_allclose(found, np.eye(highest + 1)[n], atol=1e-6)


def test_power_sums_to_the_mean_square(rng: np.random.Generator) -> None:
    pieces = {(n, m): rng.standard_normal() for n in range(3, 100, 16) for m in range(0, n + 1, 12)}
    field = sum(np.float32(a) * harmonic(*nm) for nm, a in pieces.items())
    expected = np.zeros(100)
    for (n, _), amplitude in pieces.items():
        expected[n] += amplitude**2
    np.testing.assert_allclose(power(field, GRID), expected, atol=2e-6)
    assert power(field, GRID).sum() == pytest.approx(sum(a**2 for a in pieces.values()), rel=1e-6)


def test_a_constant_has_power_at_zero_only_and_noise_at_all(rng: np.random.Generator) -> None:
    constant = np.full(GRID.shape, 3, np.float32)
    np.testing.assert_allclose(power(constant, GRID), 9 * np.eye(100)[0], atol=1e-6)
    noise = rng.standard_normal(GRID.shape).astype(np.float32)
    noise[[0, -1]] = 0
    assert (power(noise, GRID)[1:] > 0).all()


def test_turning_the_sphere_keeps_the_power(rng: np.random.Generator) -> None:
    field = rng.standard_normal((2, *GRID.shape)).astype(np.float32)
    turned = power(np.roll(field, 31, axis=-1), GRID)
    np.testing.assert_allclose(turned, power(field, GRID), rtol=1e-9)
    np.testing.assert_allclose(power(field[:, ::-1], GRID), power(field, GRID), rtol=1e-9)


def test_cross_power_is_that_of_the_part_in_phase() -> None:
    first, second = 2 * harmonic(40, 12), 3 * harmonic(40, 12, turned=np.pi / 3) + harmonic(9, 4)
    np.testing.assert_allclose(cross(first, second, GRID), 3 * np.eye(100)[40], atol=1e-5)
    both = np.stack([first, second])
    np.testing.assert_allclose(power(both, GRID)[1, [9, 40]], [1, 9], rtol=1e-5)


def test_coherence_and_ratio_over_dates(rng: np.random.Generator) -> None:
    truth = [rng.standard_normal(GRID.shape).astype(np.float32) for _ in range(4)]
    halved = sum_over(truth, [np.float32(0.5) * field for field in truth])
    np.testing.assert_allclose(power_ratio(halved), 0.25, rtol=1e-6)
    np.testing.assert_allclose(coherence(halved), 1, rtol=1e-6)
    apart = sum_over(truth, [rng.standard_normal(GRID.shape).astype(np.float32) for _ in truth])
    assert coherence(apart)[20:].max() < 0.4  # chance: 1 / sqrt(4 dates (2 n + 1) waves)
    # Of equal parts of truth and as strong a noise, the coherence is 1 / sqrt 2.
    noisy = sum_over(truth, [f + rng.standard_normal(GRID.shape).astype(np.float32) for f in truth])
    assert coherence(noisy)[30:90].mean() == pytest.approx(np.sqrt(0.5), abs=0.02)


def sum_over(truth: list[np.ndarray], forecasts: list[np.ndarray]) -> spectra.Sums:
    total = spectra.spectral_sums(forecasts[0], truth[0], GRID)
    for forecast, real in zip(forecasts[1:], truth[1:]):
        total += spectra.spectral_sums(forecast, real, GRID)
    np.testing.assert_array_equal(total.weight, len(truth))
    return total


def test_effective_wavenumber_by_hand() -> None:
    ratio = np.array([9.0, 1.0, 0.5, 2.0, 0.4, 1.0])
    sure = np.ones(6)
    assert effective_wavenumber(ratio, sure) == 3  # the mean, n = 0, does not count
    assert effective_wavenumber(ratio, np.array([0, 0.9, 0.49, 1, 1, 1])) == 1
    assert effective_wavenumber(ratio, np.zeros(6)) == 0
    assert effective_wavenumber(ratio, np.zeros(6), coherent=0, within=(0.1, 10)) == 5
    assert effective_wavenumber(np.full(6, np.nan), sure) == 0


def test_truncation_keeps_what_is_below_and_nothing_above() -> None:
    low = harmonic(36, 36) + 2 * harmonic(36, 0) + harmonic(5, 3, turned=1)
    high = harmonic(37, 36) + harmonic(37, 0) + harmonic(99, 40)
    both = np.stack([low + high, low, high])
    cut = truncate(both, GRID, wavenumber=36)
    np.testing.assert_allclose(cut, np.stack([low, low, 0 * high]), atol=2e-5)
    np.testing.assert_allclose(truncate(cut, GRID, wavenumber=36), cut, atol=2e-5)
    np.testing.assert_allclose(truncate(both, GRID, wavenumber=99), both, atol=2e-5)
    np.testing.assert_allclose(
        truncate(low, GRID, wavenumber=0), low.astype(np.float64).mean() * 0, atol=2e-5
    )


def test_wavenumbers_the_grid_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"resolves total wavenumbers 0 ... 99; got 100"):
        truncate(harmonic(1, 1), GRID, wavenumber=100)


@pytest.mark.parametrize(
    "grid",
    [
        regular_gaussian_grid(16),
        LatLonGrid(np.linspace(90, -90, 19), np.arange(18) * 20.0),
        LatLonGrid(np.linspace(80, -80, 17), np.arange(32) * 11.25),
    ],
    ids=["gaussian", "columns", "no poles"],
)
def test_other_grids_are_refused(grid: LatLonGrid) -> None:
    with pytest.raises(ValueError, match="spectra need evenly spaced rows from pole to pole"):
        power(np.zeros(grid.shape, np.float32), grid)


def test_grids_beyond_the_cache_give_the_same(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    field = rng.standard_normal(GRID.shape).astype(np.float32)
    expected = power(field, GRID), truncate(field, GRID, wavenumber=20)
    monkeypatch.setattr(spectra, "_CACHED_DEGREES", 0)
    np.testing.assert_array_equal(power(field, GRID), expected[0])
    np.testing.assert_array_equal(truncate(field, GRID, wavenumber=20), expected[1])


def test_legendre_functions_survive_underflow_at_full_resolution() -> None:
    """At L = 2000 sin^m θ falls below 1e-308 around m = 736 where the function still grows to order one."""
    functions = spectra._legendre(2000, 736)[-20:]
    products = (functions * spectra._quadrature_weights(4000)) @ functions.T
    np.testing.assert_allclose(products, np.eye(20), atol=1e-10)
