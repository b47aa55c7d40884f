"""The simulator: jcm with SPEEDY physics (JAX), stepped in chunks that begin and end with a restart.

Loaded only in the processes that simulate: jax and jcm come with the extra `sim`.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from fengwu_ghr.durable import flush
from fengwu_ghr.errors import InputError, UsageError
from fengwu_ghr.grid import LatLonGrid, regular_gaussian_grid
from fengwu_ghr.training.levels import SigmaColumns
from fengwu_ghr.variables import STANDARD_GRAVITY

FASTEST_WIND = 200.0
"""m s-1; a simulation beyond this has left physics."""

_GAUSSIAN = {21: 16, 31: 24, 42: 32, 63: 48, 85: 64, 106: 80}


@dataclass(frozen=True, eq=False)
class SimulatedState:
    """What the simulator knows of one valid time, on its own grid: columns, and the fields near the surface.

    Near-surface temperature (K) and wind (m s-1) are the simulator's own: SPEEDY's air temperature at the surface,
    and its surface wind, a fixed fraction of the lowest level's.
    """

    valid_time: datetime
    columns: SigmaColumns
    near_surface: dict[str, Float32[np.ndarray, "lat lon"]]


class Simulator:
    """SPEEDY at this spectral truncation, eight sigma levels, with orography and the annual cycle of sea and land.

    `time_step` is in minutes and divides six hours. The clock starts at `start`. Raises UsageError where the
    truncation is not one of jcm's, the step does not divide, or jcm is not installed.
    """

    def __init__(self, *, truncation: int, time_step: int, start: datetime) -> None:
        if truncation not in _GAUSSIAN:
            raise UsageError(f"truncation must be one of {', '.join(map(str, _GAUSSIAN))}; got {truncation}")
        if time_step <= 0 or 360 % time_step:
            raise UsageError(f"time_step must divide six hours, in minutes; got {time_step}")
        jcm = _jcm()
        self.truncation, self.time_step, self.start = truncation, time_step, start
        self.grid: LatLonGrid = regular_gaussian_grid(_GAUSSIAN[truncation])
        boundary = Path(jcm.package).parent / "data" / "bc" / "t63"
        self._coords = jcm.coordinates(layers=8, spectral_truncation=truncation)
        terrain = jcm.terrain.from_file(boundary / "terrain.nc", coords=self._coords)
        self._forcing = jcm.forcing.from_file(
            boundary / "forcing.nc", coords=self._coords, align_mode="wrap_year"
        )
        self._model = jcm.model(
            coords=self._coords, terrain=terrain, time_step=time_step, start_time=start.isoformat()
        )
        self._boundary_orography = terrain.phis0
        self._jcm = jcm

    @cached_property
    def orography(self) -> Float32[np.ndarray, "lat lon"]:
        """Geopotential of the surface as the dynamics sees it, truncated, in m2 s-2."""
        horizontal = self._coords.horizontal
        heights = horizontal.to_nodal(self._model.dycore._truncated_orography)
        metres = self._model.dycore.physics_specs.dimensionalize(heights, self._jcm.metre).magnitude
        return _north_first(np.asarray(metres, np.float32) * np.float32(STANDARD_GRAVITY))

    @cached_property
    def sigma(self) -> Float64[np.ndarray, " level"]:
        """Pressure of the levels over surface pressure, top to bottom."""
        return np.asarray(self._coords.vertical.centers, np.float64)

    def from_rest(self, *, seed: int) -> Any:
        """A restart at `start`: an isothermal atmosphere at rest, its pressure disturbed by this seed."""
        self._model.bootstrap_state(self._model.initial_state(random_seed=seed))
        return self._model.run_state

    def from_spectral(self, other: "Simulator", restart: Any, *, valid_time: datetime) -> Any:
        """A restart at this time from another truncation's restart: its spectral coefficients, cut off.

        The physics begins anew, as after an analysis. `valid_time` decides the season; it may lie before `start`.
        """
        cut = self._jcm.truncate(other._coords, self._coords)
        self._model.bootstrap_state(cut(restart.dynamics))
        fresh = self._model.run_state
        steps = (valid_time - self.start) // timedelta(minutes=self.time_step)
        return fresh.replace(time=restart.time, step=fresh.step + steps)

    def perturbed(self, restart: Any, *, kelvin: float, seed: int) -> Any:
        """The same restart with temperature changed everywhere by noise of this standard deviation."""
        dynamics = restart.dynamics
        specs = self._model.dycore.physics_specs
        horizontal = self._coords.horizontal
        shape = (len(self.sigma), *horizontal.nodal_shape)
        noise = horizontal.to_modal(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))
        # The truncation takes part of the noise away: what is left is given the size asked for.
        size = specs.nondimensionalize(kelvin * self._jcm.kelvin) / float(horizontal.to_nodal(noise).std())
        varied = dynamics.temperature_variation + noise * size
        return restart.replace(dynamics=dynamics.replace(temperature_variation=varied))

    def advance(
        self, restart: Any, *, hours: int, every: int | None = None
    ) -> tuple[Any, list[SimulatedState]]:
        """The restart after `hours`, and the states every `every` hours on the way, the last included.

        Raises InputError where the simulation has become unphysical.
        """
        every = every or hours
        final, predictions = self._model.run_from_state_with_carry(
            initial_state=restart.dynamics,
            initial_physics_state=restart.physics,
            initial_time=restart.time,
            initial_step=restart.step,
            forcing=self._forcing,
            save_interval=every / 24,
            total_time=hours / 24,
        )
        began = self.valid_time(restart)
        times = [began + timedelta(hours=every * (i + 1)) for i in range(hours // every)]
        states = [self._state(predictions, index, time) for index, time in enumerate(times)]
        for state in states:
            self._check(state)
        return final, states

    def valid_time(self, restart: Any) -> datetime:
        """The time a restart stands at."""
        return self.start + timedelta(minutes=self.time_step * int(restart.step))

    def save(self, restart: Any, path: Path) -> None:
        """The restart lies in this .npz durably; nothing else is ever seen under the name."""
        leaves = self._jcm.leaves(restart)
        unfinished = path.with_name(f".{path.name}")
        with open(unfinished, "wb") as file:
            np.savez(file, **{f"leaf{i:03}": np.asarray(leaf) for i, leaf in enumerate(leaves)})  # type: ignore[arg-type]
        flush(unfinished)
        unfinished.replace(path)

    def load(self, path: Path) -> Any:
        """The restart kept in this file; raises InputError where it is not one of this simulator's."""
        template = self.from_rest(seed=0)
        wanted = self._jcm.leaves(template)
        try:
            with np.load(path, allow_pickle=False) as file:
                found = [file[name] for name in sorted(file.files)]
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path} is not a restart of the simulator ({error}); remove it") from error
        if [leaf.shape for leaf in found] != [np.shape(leaf) for leaf in wanted]:
            raise InputError(
                f"{path} is a restart of another truncation or version of the simulator; remove it"
            )
        return self._jcm.rebuild(template, found)

    def _state(self, predictions: Any, index: int, time: datetime) -> SimulatedState:
        air, surface = predictions.dynamics, predictions.physics["_surface_flux"]
        pressure = _north_first(np.asarray(air.normalized_surface_pressure[index]))
        fields = {
            name: _north_first(np.asarray(getattr(air, source)[index]))
            for name, source in (
                ("temperature", "temperature"),
                ("u", "u_wind"),
                ("v", "v_wind"),
                ("humidity", "specific_humidity"),
                ("geopotential", "geopotential"),
            )
        }
        columns = SigmaColumns(
            sigma=self.sigma, surface_pressure=pressure * np.float32(self._jcm.reference_pressure), **fields
        )
        near = {"2t": surface.t0, "10u": surface.u0, "10v": surface.v0}
        return SimulatedState(
            time, columns, {name: _north_first(np.asarray(field[index])) for name, field in near.items()}
        )

    def _check(self, state: SimulatedState) -> None:
        fastest = max(float(np.abs(wind).max()) for wind in (state.columns.u, state.columns.v))
        if not fastest < FASTEST_WIND:
            raise InputError(
                f"the simulation has become unstable at {state.valid_time:%Y-%m-%d %H:%M} (wind {fastest:g} m s-1, "
                f"at most {FASTEST_WIND:g}); use a time_step below {self.time_step} minutes"
            )


def _north_first(values: Float32[np.ndarray, "*level lon lat"]) -> Float32[np.ndarray, "*level lat lon"]:
    """From (..., longitude, latitude from the south) to our order."""
    return np.ascontiguousarray(np.swapaxes(values, -1, -2)[..., ::-1, :], np.float32)


@dataclass(frozen=True)
class _Library:
    """The parts of jax, dinosaur and jcm that are used, under names of ours."""

    package: str
    coordinates: Any
    terrain: Any
    forcing: Any
    model: Any
    truncate: Any
    leaves: Any
    rebuild: Any
    metre: Any
    kelvin: Any
    reference_pressure: float


def _jcm() -> _Library:
    try:
        import jax
        import jcm
        from dinosaur.coordinate_systems import get_spectral_downsample_fn
        from dinosaur.scales import units
        from jcm.constants import physical_constants
        from jcm.forcing import ForcingData
        from jcm.model import Model
        from jcm.physics.speedy.speedy_coords import get_speedy_coords
        from jcm.terrain import TerrainData
    except ImportError as error:
        raise UsageError(f"simulating needs jcm: pip install 'fengwu_ghr[sim]' ({error})") from error
    return _Library(
        package=str(jcm.__file__),
        coordinates=get_speedy_coords,
        terrain=TerrainData,
        forcing=ForcingData,
        model=Model,
        truncate=get_spectral_downsample_fn,
        leaves=jax.tree.leaves,
        rebuild=lambda template, found: jax.tree.unflatten(
            jax.tree.structure(template), [jax.numpy.asarray(leaf) for leaf in found]
        ),
        metre=units.meter,
        kelvin=units.degK,
        reference_pressure=float(physical_constants.p0),
    )
