"""Spherical harmonic transforms for the simulator on a CPU: the Fourier half by FFT instead of a matrix product.

dinosaur takes matrix products for both halves, which suits accelerators. On one core a T85 step of the dynamics takes
116 ms with these against 146 ms. Loaded only where jcm is.
"""

from dataclasses import replace
from functools import cached_property
from math import pi, prod, sqrt
from typing import Any

import jax.numpy as jnp
import numpy as np
from dinosaur.coordinate_systems import CoordinateSystem
from dinosaur.spherical_harmonic import RealSphericalHarmonics
from jax import lax


class FourierHarmonics(RealSphericalHarmonics):
    """The coefficients of `RealSphericalHarmonics`: zonal wavenumbers 0, +1, -1, +2 ..., functions of unit norm.

    f = a0 / sqrt(2 pi) + sum over m of (a cos m λ + b sin m λ) / sqrt(pi); cosine and sine share a Legendre function.
    """

    @cached_property
    def _legendre(self) -> np.ndarray:
        """(m, latitude, n), m >= 0 once each, over the norm of the Fourier functions."""
        norms = np.full(self.longitude_wavenumbers, 1 / sqrt(pi))
        norms[0] = 1 / sqrt(2 * pi)
        functions = np.concatenate([self.basis.p[:1], self.basis.p[1::2]])
        return functions * norms[:, None, None]

    @cached_property
    def _to_values(self) -> np.ndarray:
        # The inverse FFT divides by the number of points, and takes half of each wave from +m and half from -m.
        halves = np.full(self.longitude_wavenumbers, self.longitude_nodes / 2)
        halves[0] = self.longitude_nodes
        return (self._legendre * halves[:, None, None]).astype(np.float32)

    @cached_property
    def _to_coefficients(self) -> np.ndarray:
        return (self._legendre * np.reshape(self.basis.w, (1, -1, 1))).astype(np.float32)

    def inverse_transform(self, x: Any) -> Any:
        """Coefficients (..., m, n) to values (..., longitude, latitude)."""
        flat = x.reshape(prod(x.shape[:-2]), *x.shape[-2:])
        pairs = jnp.concatenate([flat[:, :1], jnp.zeros_like(flat[:, :1]), flat[:, 1:]], axis=1)
        pairs = pairs.reshape(flat.shape[0], -1, 2, flat.shape[-1])  # (field, m, cosine or sine, n)
        cosine, sine = jnp.einsum("mjl,bmcl->cbjm", self._to_values, pairs)
        values = jnp.fft.irfft(lax.complex(cosine, -sine), n=self.longitude_nodes, axis=-1)
        return jnp.swapaxes(values, -1, -2).reshape(*x.shape[:-2], *self.nodal_shape)

    def transform(self, x: Any) -> Any:
        """Values (..., longitude, latitude) to coefficients (..., m, n), by the quadrature of the grid."""
        flat = jnp.swapaxes(x.reshape(prod(x.shape[:-2]), *x.shape[-2:]), -1, -2)
        spectrum = jnp.fft.rfft(flat, axis=-1)[..., : self.longitude_wavenumbers]
        parts = jnp.stack([spectrum.real, -spectrum.imag])
        pairs = jnp.einsum("mjl,cbjm->bmcl", self._to_coefficients, parts)
        pairs = pairs.reshape(flat.shape[0], -1, pairs.shape[-1])
        return jnp.concatenate([pairs[:, :1], pairs[:, 2:]], axis=1).reshape(*x.shape[:-2], *self.modal_shape)


def with_fft(coordinates: CoordinateSystem) -> CoordinateSystem:
    """The same coordinates, transformed by FourierHarmonics."""
    return replace(
        coordinates, horizontal=replace(coordinates.horizontal, spherical_harmonics_impl=FourierHarmonics)
    )
