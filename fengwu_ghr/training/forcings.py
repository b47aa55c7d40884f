"""What a network in training is told beside the states: the forcings of its world."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from fengwu_ghr.coarsen import AreaMean
from fengwu_ghr.forcing import STATIC, Forcing, ForcingFields
from fengwu_ghr.grid import NetworkGrid
from fengwu_ghr.regrid import NetworkMap
from fengwu_ghr.training.world import STEP_HOURS, World
from fengwu_ghr.variables import STANDARD_GRAVITY


def coarse_forcings(world: World, names: Sequence[Forcing]) -> ForcingFields | None:
    """Those of the backbone's grid, area means as its states are; None where there are no names."""
    if not names:
        return None
    to_coarse = AreaMean(world.fine_grid, world.coarse_grid)
    static = _stacked([to_coarse.apply(field) for field in _static(world, names)], world.coarse_grid.shape)
    return ForcingFields(tuple(names), static, world.coarse_grid, STEP_HOURS)


def network_static(world: World, names: Sequence[Forcing]) -> Float32[Tensor, "static row column"]:
    """The forcings that do not change, on the network grid: what a checkpoint carries."""
    network = NetworkMap(NetworkGrid(world.scale))
    to_network = partial(network.from_source, source=world.fine_grid, is_vector=False, smooth=False)
    fields = [to_network(field) for field in _static(world, names)]
    return _stacked(fields, network.network.shape)


def _static(world: World, names: Sequence[Forcing]) -> list[Float32[np.ndarray, "lat lon"]]:
    """Numbers of order one: see `forcing`."""
    found = {"orography": world.orography / np.float32(1000 * STANDARD_GRAVITY)}
    if "land_mask" in names:  # worlds of an older simulator lack it
        found["land_mask"] = world.land_mask
    return [found[name] for name in STATIC if name in names]


def _stacked(fields: Sequence[np.ndarray], shape: tuple[int, int]) -> Float32[Tensor, "static row column"]:
    stacked = np.stack(fields) if fields else np.empty((0, *shape))
    return torch.from_numpy(stacked.astype(np.float32))
