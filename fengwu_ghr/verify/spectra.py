"""Spectra: power and coherence by total wavenumber, and truncation, for scalar fields on pole-to-pole grids.

A spherical harmonic analysis for rows at colatitudes 180° i / L, i = 0 ... L, and 2 L columns (all our regular grids:
L = 100 at 1.8°, 2000 at 0.09°). Along a meridian and back on the other side, the coefficient of zonal wavenumber m is a
trigonometric polynomial of even or odd parity; on twice as many rows its product with a Legendre function is
integrated exactly by the weights of Clenshaw and Curtis (1960). So fields of total wavenumbers n < L are analysed
exactly (the idea of McEwen and Wiaux 2011, IEEE Trans. Signal Process. 59); what a field holds beyond is aliased.
Wind components are no scalars at the poles: their spectra carry a small error from there.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from math import log

import numpy as np
from jaxtyping import Float, Float32, Float64

from fengwu_ghr.grid import LatLonGrid
from fengwu_ghr.verify.statistics import Sums

POWERS = ("forecast_power", "truth_power", "cross_power")

_CACHED_DEGREES = 200  # up to here all Legendre functions fit into 65 MB and are kept
_SCALE = 500  # powers of two by which the recursion starts enlarged


def power(
    fields: Float32[np.ndarray, "*batch lat lon"], grid: LatLonGrid
) -> Float64[np.ndarray, "*batch wavenumber"]:
    """The power at total wavenumbers 0 ... L - 1, in squared units; the sum is the area mean of the square."""
    return _products(fields, fields, grid)[0]


def cross(
    first: Float32[np.ndarray, "*batch lat lon"],
    second: Float32[np.ndarray, "*batch lat lon"],
    grid: LatLonGrid,
) -> Float64[np.ndarray, "*batch wavenumber"]:
    """The cross power at total wavenumbers 0 ... L - 1; the sum is the area mean of the product."""
    return _products(first, second, grid)[2]


def is_analysable(grid: LatLonGrid) -> bool:
    """Whether spectra of fields on this grid are exact: from pole to pole, twice as many columns as steps of rows."""
    rows, columns = grid.shape
    even = rows > 2 and np.allclose(np.diff(grid.latitude), -180 / (rows - 1), atol=1e-6)
    return bool(even and grid.reaches_poles and grid.is_periodic and columns == 2 * (rows - 1))


def spectral_sums(
    forecast: Float32[np.ndarray, "*batch lat lon"],
    truth: Float32[np.ndarray, "*batch lat lon"],
    grid: LatLonGrid,
) -> Sums:
    """POWERS of one forecast and its truth, of weight one; they add up over dates."""
    products = _products(forecast, truth, grid)
    return Sums(np.ones(products[0].shape), dict(zip(POWERS, products)))


def power_ratio(sums: Sums) -> Float64[np.ndarray, "*batch wavenumber"]:
    """Power of the forecast over that of the truth; no number where neither has any."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums.mean("forecast_power") / sums.mean("truth_power")


def coherence(sums: Sums) -> Float64[np.ndarray, "*batch wavenumber"]:
    """|C_fo| / sqrt(P_f P_o), each summed over dates first: 1 where all waves are in place, 0 where by chance."""
    powers = sums.mean("forecast_power") * sums.mean("truth_power")
    return np.abs(sums.mean("cross_power")) / np.sqrt(powers)


def effective_wavenumber(
    power_ratio: Float64[np.ndarray, " wavenumber"],
    coherence: Float64[np.ndarray, " wavenumber"],
    *,
    within: tuple[float, float] = (0.5, 2.0),
    coherent: float = 0.5,
) -> int:
    """The total wavenumber n up to which, from 1 on, power stays `within` these ratios and coherence >= `coherent`.

    The effective resolution is the wavelength 360° / n: four lengths of a 1.8° grid are n = 50. 0: none is resolved.
    """
    good = (power_ratio >= within[0]) & (power_ratio <= within[1]) & (coherence >= coherent)
    return int(np.argmin(np.append(good[1:], False)))


def truncate(
    fields: Float32[np.ndarray, "*batch lat lon"], grid: LatLonGrid, *, wavenumber: int
) -> Float32[np.ndarray, "*batch lat lon"]:
    """The fields without total wavenumbers above this one. Raises ValueError unless 0 <= wavenumber < L."""
    degrees = _degrees(grid)
    if not 0 <= wavenumber < degrees:
        raise ValueError(f"{grid} resolves total wavenumbers 0 ... {degrees - 1}; got {wavenumber}")
    batch, rows, columns = fields.shape[:-2], *grid.shape
    weighted = _weighted_waves(fields.reshape(-1, rows, columns), wavenumber + 1)
    waves = np.zeros((weighted.shape[1] // 2, rows, columns // 2 + 1), np.complex128)
    for m, legendre in zip(range(wavenumber + 1), _legendre_functions(degrees, wavenumber + 1)):
        kept = legendre[: wavenumber + 1 - m]
        real, imaginary = np.split(weighted[m] @ kept.T @ kept[:, ::2], 2)  # (field, lat)
        waves[:, :, m] = real + 1j * imaginary
    result = np.fft.irfft(waves * columns, n=columns, axis=-1)
    return result.astype(np.float32).reshape(*batch, rows, columns)


def _products(first: np.ndarray, second: np.ndarray, grid: LatLonGrid) -> tuple[np.ndarray, ...]:
    """Powers of both and their cross power, (*batch, wavenumber); zonal wavenumber by zonal wavenumber."""
    degrees = _degrees(grid)
    if first.shape != second.shape or first.shape[-2:] != grid.shape:
        raise ValueError(f"two fields on {grid} are needed; got shapes {first.shape} and {second.shape}")
    one = _weighted_waves(first.reshape(-1, *grid.shape), degrees)
    two = one if second is first else _weighted_waves(second.reshape(-1, *grid.shape), degrees)
    totals = [np.zeros((one.shape[1] // 2, degrees)) for _ in range(3)]
    for m, legendre in enumerate(_legendre_functions(degrees, degrees)):
        a, b = one[m] @ legendre.T, two[m] @ legendre.T  # (real and imaginary part x field, n - m)
        sides = 1 if m == 0 else 2  # -m holds the complex conjugate of +m
        for total, product in zip(totals, (a * a, b * b, a * b)):
            total[:, m:] += sides * sum(np.split(product, 2))
    return tuple(total.reshape(*first.shape[:-2], degrees) for total in totals)


def _weighted_waves(
    fields: Float[np.ndarray, "field lat lon"], waves: int
) -> Float64[np.ndarray, "zonal part fine"]:
    """Zonal Fourier coefficients m < `waves` on 2 L + 1 rows, times quadrature weights.

    `part` holds the real parts of all fields, then the imaginary ones: real matrix products are the faster.
    """
    _, rows, columns = fields.shape
    degrees = rows - 1
    zonal = np.fft.rfft(fields.astype(np.float64), axis=-1)[..., :waves] / columns  # (field, lat, m)
    parity = (-1.0) ** np.arange(waves)
    circle = np.concatenate([zonal, parity * zonal[:, -2:0:-1]], axis=1)  # down one meridian, up the other
    fine = _twice_as_fine(circle)[:, : 2 * degrees + 1] * _quadrature_weights(2 * degrees)[:, None]
    parts = np.concatenate([fine.real, fine.imag])  # (part, fine, m)
    return np.ascontiguousarray(parts.transpose(2, 0, 1))


def _twice_as_fine(circle: np.ndarray) -> np.ndarray:
    """Trigonometric interpolation along axis 1, of even length, to twice as many points."""
    points = circle.shape[1]
    half = points // 2
    spectrum = np.fft.fft(circle, axis=1)
    padded = np.zeros((circle.shape[0], 2 * points, circle.shape[2]), np.complex128)
    padded[:, :half], padded[:, -half + 1 :] = spectrum[:, :half], spectrum[:, -half + 1 :]
    padded[:, half] = padded[:, -half] = spectrum[:, half] / 2
    return 2 * np.fft.ifft(padded, axis=1)


@lru_cache(maxsize=8)
def _quadrature_weights(intervals: int) -> Float64[np.ndarray, " fine"]:
    """w with sum_j w_j g(θ_j) = 1/2 of the integral of g sin θ over θ = 0 ... π, for cosine series to `intervals`.

    Clenshaw and Curtis (1960): the cosine series of g, term by term, of which only even k have an integral,
    2 / (1 - k²).
    """
    k = np.arange(0, intervals + 1, 2)
    moments = 1 / (1.0 - k**2)
    moments[[0, -1]] /= 2
    weights = np.cos(np.pi / intervals * np.outer(np.arange(intervals + 1), k)) @ moments * 2 / intervals
    weights[[0, -1]] /= 2
    weights.flags.writeable = False
    return weights


def _legendre_functions(degrees: int, waves: int) -> Iterable[Float64[np.ndarray, "wavenumber fine"]]:
    """For m = 0, 1 ... the functions of n = m ... degrees - 1; from the cache where the grid is small."""
    if degrees <= _CACHED_DEGREES:
        return _legendre_table(degrees)
    return (_legendre(degrees, m) for m in range(waves))


@lru_cache(maxsize=2)
def _legendre_table(degrees: int) -> tuple[Float64[np.ndarray, "wavenumber fine"], ...]:
    return tuple(_legendre(degrees, m) for m in range(degrees))


def _legendre(degrees: int, m: int) -> Float64[np.ndarray, "wavenumber fine"]:
    """Associated Legendre functions of order m on 2 L + 1 rows, of mean square one over the sphere with exp(i m λ).

    Upward recursion in n (Holmes and Featherstone 2002, J. Geodesy 76). Where sin^m θ would underflow at n = m and
    yet matter at n < 2500, starting with 2^500 times the values keeps them representable.
    """
    colatitude = np.linspace(0, np.pi, 2 * degrees + 1)
    x, y = np.cos(colatitude), np.sin(colatitude)
    k = np.arange(1, m + 1)
    start = 0.5 * np.sum(np.log1p(1 / (2.0 * k))) + _SCALE * log(2)
    result = np.zeros((degrees - m, x.size))
    result[0, 1:-1] = np.exp(start + m * np.log(y[1:-1]))
    result[0, [0, -1]] = 2.0**_SCALE if m == 0 else 0.0
    for row, (a, b) in enumerate(_recursion(degrees, m), start=1):
        result[row] = a * x * result[row - 1]
        if row > 1:
            result[row] -= b * result[row - 2]
    return result * 2.0**-_SCALE


def _recursion(degrees: int, m: int) -> Iterator[tuple[float, float]]:
    """(a, b) of P_n = a x P_(n-1) - b P_(n-2) for n = m + 1 ..."""
    n = np.arange(m + 1, degrees, dtype=np.float64)
    a = np.sqrt((4 * n**2 - 1) / (n**2 - m**2))
    b = np.sqrt((2 * n + 1) * ((n - 1) ** 2 - m**2) / np.maximum(2 * n - 3, 1) / (n**2 - m**2))
    return zip(a.tolist(), b.tolist())


@lru_cache(maxsize=16)
def _degrees(grid: LatLonGrid) -> int:
    """L. Raises ValueError where the grid is not of the kind the analysis is exact for."""
    rows, _ = grid.shape
    if not is_analysable(grid):
        raise ValueError(
            f"spectra need evenly spaced rows from pole to pole and twice as many columns as intervals; got {grid}"
        )
    return rows - 1
