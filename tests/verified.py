"""A period to verify, made in a second: analyses as WeatherBench-2 Zarr, forecasts of known error as run stores."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import xarray as xr

from fengwu_ghr.grid import LatLonGrid, product_grid
from fengwu_ghr.store import RunStore, StorePlan
from fengwu_ghr.synthetic import synthetic_state
from fengwu_ghr.variables import Channel, channel

GRID = product_grid(80)
CHANNELS = tuple(map(channel, ("z500", "t850", "u850", "v850", "2t", "10u", "10v")))
START = datetime(2020, 6, 1)
HOUR = timedelta(hours=1)
LONG = {"z": "geopotential", "t": "temperature", "u": "u_component_of_wind", "v": "v_component_of_wind"}
LONG |= {"2t": "2m_temperature", "10u": "10m_u_component_of_wind", "10v": "10m_v_component_of_wind"}


def truth_at(time: datetime, grid: LatLonGrid = GRID, channels: Sequence[Channel] = CHANNELS) -> np.ndarray:
    return synthetic_state(grid, channels, initial_time=time).values


def error_of(lead: timedelta, scale: float = 1.0) -> float:
    """What is added to every value of every channel: it grows with the lead."""
    return scale * lead / timedelta(hours=24)


def write_analyses(
    path: Path, times: Sequence[datetime], *, grid: LatLonGrid = GRID, units: dict[str, str] | None = None
) -> Path:
    """As WeatherBench 2 has them: long names, south to north."""
    states = np.stack([truth_at(time, grid) for time in times])
    variables = {}
    stated = {
        "z": "m**2 s**-2",
        "t": "K",
        "u": "m s**-1",
        "v": "m s**-1",
        "2t": "K",
        "10u": "m s**-1",
        "10v": "m s**-1",
    }
    for name, long in LONG.items():
        rows = [i for i, c in enumerate(CHANNELS) if c.variable == name]
        values = states[:, rows][:, :, ::-1]
        dims: tuple[str, ...] = ("time", "level", "latitude", "longitude")
        if CHANNELS[rows[0]].level is None:
            values, dims = values[:, 0], ("time", "latitude", "longitude")
        else:
            full = np.full((len(times), 2, *grid.shape), np.nan, np.float32)
            full[:, [500, 850].index(CHANNELS[rows[0]].level or 0)] = values[:, 0]
            values = full
        variables[long] = (dims, values, {"units": (stated | (units or {}))[name]})
    coordinates = {
        "time": np.array(times, "M8[ns]"),
        "level": [500, 850],
        "latitude": grid.latitude[::-1],
        "longitude": grid.longitude,
    }
    xr.Dataset(variables, coordinates).to_zarr(path, consolidated=False)
    return path


def write_run(
    path: Path,
    initial_times: Sequence[datetime],
    leads: Sequence[timedelta],
    *,
    scale: float = 1.0,
    noise: float = 0.0,
    grid: LatLonGrid = GRID,
    channels: Sequence[Channel] = CHANNELS,
) -> Path:
    """The truth plus `error_of` the lead, plus noise that is another for every date."""
    plan = StorePlan(tuple(channels), grid, tuple(initial_times), tuple(leads))
    with RunStore.create(path, plan, {"title": "a test"}) as store:
        for time in initial_times:
            store.begin_run(time, {"seed": 1})
            for lead in leads:
                values = truth_at(time + lead, grid, channels) + np.float32(error_of(lead, scale))
                seed = int((time - START) / HOUR) + 1000 * int(lead / HOUR)
                if noise and lead:
                    values = values + np.float32(noise * np.random.default_rng(seed).standard_normal())
                writer = store.begin_lead(time, lead)
                for c, field in zip(channels, values):
                    writer.write(c, np.ascontiguousarray(field, np.float32))
                writer.commit()
    return path
