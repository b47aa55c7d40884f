"""Fields and whole states from grid to grid: each as its variable asks, kept to the bounds of the variable."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32

from fengwu_ghr.variables import Channel, Variable

FieldMap = Callable[..., Float32[np.ndarray, "row column"]]
"""Called with a field, `is_vector` and `smooth`, it gives the field on another grid in new memory: `Regridder.apply`,
`NetworkMap.to_product`, `NetworkMap.from_source` of a source."""


def remap_field(
    values: Float32[np.ndarray, "*points"], what: Variable, to: FieldMap
) -> Float32[np.ndarray, "row column"]:
    """The field of this variable on the other grid: vectors turned at the poles, within the variable's bounds."""
    return _bounded(to(values, is_vector=what.is_vector, smooth=what.is_smooth), what)


def remap_state(
    values: Float32[np.ndarray, "channel *points"], channels: Sequence[Channel], to: FieldMap
) -> Float32[np.ndarray, "channel row column"]:
    """All fields of a state, in registry units, on the other grid. Raises ValueError where their number differs."""
    fields = (remap_field(f, c.definition, to) for f, c in zip(values, channels, strict=True))
    first = next(fields)
    state = np.empty((len(channels), *first.shape), np.float32)
    state[0] = first
    for row, field in enumerate(fields, start=1):
        state[row] = field
    return state


def keep_to_bounds(
    state: Float32[np.ndarray, "channel *space"], channels: Sequence[Channel]
) -> Float32[np.ndarray, "channel *space"]:
    """The state itself, in registry units, every field cut off at the bounds of its variable."""
    for field, channel in zip(state, channels, strict=True):
        _bounded(field, channel.definition)
    return state


def _bounded(field: Float32[np.ndarray, "*space"], what: Variable) -> Float32[np.ndarray, "*space"]:
    """The field itself, cut off at the physical bounds, which interpolation and networks overstep."""
    if what.minimum is not None or what.maximum is not None:
        np.clip(field, what.minimum, what.maximum, out=field)
    return field
