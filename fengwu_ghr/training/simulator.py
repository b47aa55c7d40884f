"""The simulator: jcm with SPEEDY physics (JAX), stepped in chunks that begin and end with a restart.

Loaded only in the processes that simulate: jax and jcm come with the extra `sim`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float32, Float64

from fengwu_ghr.durable import flush
from fengwu_ghr.errors import InputError, UsageError
from fengwu_ghr.grid import LatLonGrid, regular_gaussian_grid
from fengwu_ghr.training.levels import SigmaColumns

FASTEST_WIND = 200.0
"""m s-1; a simulation beyond this has left physics."""

TIME_STEPS = (30, 24, 20, 15)
"""Minutes. At T85 the polar night jet forbids 30 in most winters."""

EARTH_RADIUS = 6.371e6
"""m."""

_EPOCH = datetime(1970, 1, 1)
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

    `time_steps` are in minutes, descending, and divide six hours: the longest is taken that the wind allows, and a
    shorter one where it proves unstable all the same. Raises UsageError where the truncation is not one of jcm's, a
    step does not divide, or jcm is not installed.
    """

    def __init__(self, *, truncation: int, time_steps: Sequence[int] = TIME_STEPS, start: datetime) -> None:
        if truncation not in _GAUSSIAN:
            raise UsageError(f"truncation must be one of {', '.join(map(str, _GAUSSIAN))}; got {truncation}")
        if not time_steps or any(step <= 0 or 360 % step for step in time_steps):
            raise UsageError(f"time_steps must divide six hours, in minutes; got {list(time_steps)}")
        jcm = _jcm()
        self.truncation, self.start = truncation, start
        self.time_steps = tuple(sorted(time_steps, reverse=True))
        self.grid: LatLonGrid = regular_gaussian_grid(_GAUSSIAN[truncation])
        boundary = Path(jcm.package).parent / "data" / "bc" / "t63"
        self._coords = jcm.with_fft(jcm.coordinates(layers=8, spectral_truncation=truncation))
        self._terrain = jcm.terrain.from_file(boundary / "terrain.nc", coords=self._coords)
        self._forcing = jcm.forcing.from_file(
            boundary / "forcing.nc", coords=self._coords, align_mode="wrap_year"
        )
        self._jcm = jcm
        self._models: dict[int, Any] = {}

    @cached_property
    def orography(self) -> Float32[np.ndarray, "lat lon"]:
        """Geopotential of the surface as the dynamics sees it, truncated, in m2 s-2."""
        horizontal = self._coords.horizontal
        dycore = self._model(self.time_steps[0]).dycore
        heights = horizontal.to_nodal(dycore._truncated_orography)
        metres = dycore.physics_specs.dimensionalize(heights, self._jcm.metre).magnitude
        return _north_first(np.asarray(metres, np.float32) * np.float32(self._jcm.gravity))

    @cached_property
    def land_mask(self) -> Float32[np.ndarray, "lat lon"]:
        """The share of land."""
        return _north_first(np.asarray(self._terrain.fmask, np.float32))

    @cached_property
    def sigma(self) -> Float64[np.ndarray, " level"]:
        """Pressure of the levels over surface pressure, top to bottom."""
        return np.asarray(self._coords.vertical.centers, np.float64)

    def from_rest(self, *, seed: int) -> Any:
        """A restart at `start`: an isothermal atmosphere at rest, its pressure disturbed by this seed."""
        model = self._model(self.time_steps[0])
        model.bootstrap_state(model.initial_state(random_seed=seed))
        return self._restart(model.run_state)

    def from_spectral(self, other: "Simulator", restart: Any) -> Any:
        """A restart of the same time from another truncation's: its spectral coefficients, cut off.

        The physics begins anew, as after an analysis.
        """
        model = self._model(self.time_steps[0])
        model.bootstrap_state(self._jcm.truncate(other._coords, self._coords)(restart.dynamics))
        return self._restart(model.run_state.replace(time=restart.time))

    def perturbed(self, restart: Any, *, kelvin: float, seed: int) -> Any:
        """The same restart with temperature changed everywhere by noise of this standard deviation."""
        dynamics = restart.dynamics
        specs = self._model(self.time_steps[0]).dycore.physics_specs
        horizontal = self._coords.horizontal
        shape = (len(self.sigma), *horizontal.nodal_shape)
        noise = horizontal.to_modal(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))
        # The truncation takes part of the noise away: what is left is given the size asked for.
        size = specs.nondimensionalize(kelvin * self._jcm.kelvin) / float(horizontal.to_nodal(noise).std())
        varied = dynamics.temperature_variation + noise * size
        return restart.replace(dynamics=dynamics.replace(temperature_variation=varied))

    def advance(self, restart: Any, *, hours: int) -> tuple[Any, list[SimulatedState]]:
        """The restart after so many hours, a multiple of six, and the state of every sixth, the last included.

        Raises InputError where the simulation has become unphysical.
        """
        fastest = self._fastest_wind(restart)
        for step in self.time_steps:
            is_last = step == self.time_steps[-1]
            if fastest * step <= self._wind_minutes or is_last:
                final, states = self._run(restart, step, hours)
                # Not Python's max, which lets what is not a number pass.
                fastest = float(np.max([np.abs([s.columns.u, s.columns.v]).max() for s in states]))
                if fastest < FASTEST_WIND:
                    return final, states
        raise InputError(
            f"the simulation has become unstable after {self.valid_time(restart):%Y-%m-%d %H:%M} (wind {fastest:g} "
            f"m s-1, at most {FASTEST_WIND:g}); use time_steps below {self.time_steps[-1]} minutes"
        )

    def _run(self, restart: Any, step: int, hours: int) -> tuple[Any, list[SimulatedState]]:
        """Six hours at a time: one program to compile, however far it goes."""
        states = []
        for _ in range(hours // 6):
            began = self.valid_time(restart)
            restart, predictions = self._model(step).run_from_state_with_carry(
                initial_state=restart.dynamics,
                initial_physics_state=restart.physics,
                initial_time=restart.time,
                initial_step=np.int32((began - self.start) // timedelta(minutes=step)),
                forcing=self._forcing,
                save_interval=6 / 24,
                total_time=6 / 24,
            )
            states.append(self._state(predictions, began + timedelta(hours=6)))
        return restart, states

    def _model(self, step: int) -> Any:
        if step not in self._models:
            self._models[step] = self._jcm.model(
                coords=self._coords, terrain=self._terrain, time_step=step, start_time=self.start.isoformat()
            )
        return self._models[step]

    @property
    def _wind_minutes(self) -> float:
        """Wind times step, m s-1 min, up to which a step is tried: a Courant number at the truncation of 1.9.

        The Runge-Kutta scheme is stable to about 2.4; the rest is for what the wind may grow.
        """
        return 1.9 * EARTH_RADIUS / self.truncation / 60

    def _fastest_wind(self, restart: Any) -> float:
        air = self._model(self.time_steps[0]).dycore.to_physics_state(restart.dynamics)
        return max(float(abs(wind).max()) for wind in (air.u_wind, air.v_wind))

    def valid_time(self, restart: Any) -> datetime:
        """The time a restart stands at."""
        since = restart.time.delta
        return _EPOCH + timedelta(days=int(since.days), seconds=int(since.seconds))

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
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                found = [arrays[name] for name in sorted(arrays.files)]
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            raise InputError(f"{path} is not a restart of the simulator ({error}); remove it") from error
        if [leaf.shape for leaf in found] != [np.shape(leaf) for leaf in wanted]:
            raise InputError(
                f"{path} is a restart of another truncation or version of the simulator; remove it"
            )
        return self._jcm.rebuild(template, found)

    def _restart(self, state: Any) -> Any:
        """The same in plain arrays, as if read back from a file: the compiled program is the same for both."""
        return self._jcm.rebuild(state, [np.asarray(leaf) for leaf in self._jcm.leaves(state)])

    def _state(self, predictions: Any, time: datetime) -> SimulatedState:
        air, surface = predictions.dynamics, predictions.physics["_surface_flux"]
        pressure = _north_first(np.asarray(air.normalized_surface_pressure[0]))
        fields = {
            name: _north_first(np.asarray(getattr(air, source)[0]))
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
            time, columns, {name: _north_first(np.asarray(field[0])) for name, field in near.items()}
        )


def _north_first(values: Float32[np.ndarray, "*level lon lat"]) -> Float32[np.ndarray, "*level lat lon"]:
    """From (..., longitude, latitude from the south) to our order."""
    return np.ascontiguousarray(np.swapaxes(values, -1, -2)[..., ::-1, :], np.float32)


@dataclass(frozen=True)
class _Library:
    """The parts of jax, dinosaur and jcm that are used, under names of ours."""

    package: str
    coordinates: Any
    with_fft: Any
    terrain: Any
    forcing: Any
    model: Any
    truncate: Any
    leaves: Any
    rebuild: Any
    metre: Any
    kelvin: Any
    reference_pressure: float
    gravity: float


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

        from fengwu_ghr.training.harmonics import with_fft
    except ImportError as error:
        raise UsageError(f"simulating needs jcm: pip install 'fengwu_ghr[sim]' ({error})") from error
    # jcm's own boundary data are of T63: that what depends on the grid is derived anew is no news.
    logging.getLogger("jcm.terrain").setLevel(logging.ERROR)
    return _Library(
        package=str(jcm.__file__),
        coordinates=get_speedy_coords,
        with_fft=with_fft,
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
        gravity=float(physical_constants.grav),
    )
