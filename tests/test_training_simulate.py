"""The simulated world: its settings, its chunks, what a stop leaves, and the simulator itself at T21.

One simulator is made and compiled for the whole module, which takes nearly all of its time.
"""

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from importlib.metadata import PackageNotFoundError
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from worlds import tiny_world

from fengwu_ghr.errors import InputError, UsageError
from fengwu_ghr.grib.decode import plan_analysis, read_analysis
from fengwu_ghr.grib.encode import packing_bound
from fengwu_ghr.grid import LatLonGrid, product_grid, regular_gaussian_grid
from fengwu_ghr.progress import Progress, Silence
from fengwu_ghr.training import reference
from fengwu_ghr.training import simulate as module
from fengwu_ghr.training.levels import DRY_AIR, SIGMA, SigmaColumns
from fengwu_ghr.training.members import (
    Chunk,
    Member,
    SimulateSettings,
    chunks_of,
    complete_world,
    days_done,
    member_folder,
    restart_path,
)
from fengwu_ghr.training.reference import ReferenceForecasts, restart_indices, write_initial_conditions
from fengwu_ghr.training.simulate import simulate, simulate_member
from fengwu_ghr.training.simulator import SimulatedState, Simulator
from fengwu_ghr.training.world import World, coarse_path

pytestmark = pytest.mark.filterwarnings("ignore:::jcm")

START = datetime(2000, 1, 1)
DAY = timedelta(days=1)
SIX_HOURS = timedelta(hours=6)


def settings(folder: Path, *segments: tuple[str, int], members: int = 1, **changes: Any) -> SimulateSettings:
    member = {
        "seed": 1,
        "start": START,
        "segments": [{"split": split, "days": days} for split, days in segments or [("train", 6)]],
    }
    given = {"spin_up_days": 6, "members": [member | {"seed": 1 + n} for n in range(members)]}
    return SimulateSettings.model_validate({"folder": folder, **given, **changes})


class Heard:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, int, int]] = []
        self.steps: list[int] = []

    def note(self, text: str) -> None: ...

    def begin(self, title: str, done: int, total: int) -> None:
        self.begun.append((title, done, total))

    def stepped(self, done: int, facts: Mapping[str, float]) -> None:
        self.steps.append(done)


# Settings


def test_splits_must_lie_apart_and_discarded_days_count(tmp_path: Path) -> None:
    message = "member 0: train and test must lie 30 days apart; got 27; put a discard segment between them"
    with pytest.raises(ValidationError, match=message):
        settings(tmp_path, ("train", 6), ("discard", 12), ("discard", 15), ("test", 6))
    settings(tmp_path, ("train", 6), ("discard", 30), ("test", 6), ("discard", 3), ("test", 3))
    settings(tmp_path, ("train", 6), ("test", 6), separation_days=0)


@pytest.mark.parametrize(
    ("segments", "spin_up"), [([("train", 7)], 6), ([("train", 6), ("discard", 1)], 6), ([("train", 6)], 4)]
)
def test_days_must_be_whole_chunks(tmp_path: Path, segments: list[tuple[str, int]], spin_up: int) -> None:
    with pytest.raises(ValidationError, match="days must be multiples of chunk_days = 3"):
        settings(tmp_path, *segments, spin_up_days=spin_up)


@pytest.mark.parametrize("start", ["2000-01-01T06:00:00", "2000-01-01T00:00:00+00:00"])
def test_members_start_at_midnight_without_a_time_zone(tmp_path: Path, start: str) -> None:
    member = {"seed": 1, "start": start, "segments": [{"split": "train", "days": 3}]}
    with pytest.raises(ValidationError, match="member 0 must start at 00:00 UTC; got 2000-01-01T0"):
        SimulateSettings.model_validate({"folder": tmp_path, "members": [member]})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"truncation": 50, "time_steps": (30,)}, "truncation must be one of 21, 31, .*; got 50"),
        ({"truncation": 21, "time_steps": (30, 25)}, r"must divide six hours, in minutes; got \[30, 25\]"),
        ({"truncation": 21, "time_steps": (0,)}, r"must divide six hours, in minutes; got \[0\]"),
    ],
)
def test_what_the_simulator_cannot_do_is_said_before_it_is_loaded(
    wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Simulator(start=START, **wrong)


# Chunks


def test_chunks_follow_each_other_and_belong_to_their_segments(tmp_path: Path) -> None:
    chosen = settings(
        tmp_path,
        ("train", 6),
        ("discard", 6),
        ("validation", 3),
        ("discard", 3),
        ("test", 6),
        separation_days=3,
    )
    chunks = list(chunks_of(chosen, chosen.members[0]))
    kinds = [*["discard"] * 2, *["train"] * 2, *["discard"] * 2, "validation", "discard", *["test"] * 2]
    assert [chunk.split for chunk in chunks] == kinds
    assert [chunk.first for chunk in chunks] == [START + 3 * DAY * i for i in range(10)]
    assert [chunk.number for chunk in chunks] == list(range(10))
    assert chosen.days == 30
    first = chunks[2]
    assert first.path(tmp_path) == tmp_path / "train-2000010706.npy", (
        "six hours after the restart it starts from"
    )


def test_without_spin_up_the_first_chunk_is_the_first_segments(tmp_path: Path) -> None:
    chosen = settings(tmp_path, ("test", 3), spin_up_days=0)
    assert list(chunks_of(chosen, chosen.members[0])) == [Chunk("test", START, 0)]


def test_restarts_are_kept_throughout_the_test_and_now_and_then_in_training() -> None:
    def kept(split: str) -> list[int]:
        return [number for number in range(15) if Chunk(split, START, number).keeps_restart]

    assert kept("test") == list(range(15))
    assert kept("train") == [2, 7, 12]
    assert kept("validation") == kept("discard") == []


# Which world a folder holds


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"truncation": 31}, "truncation"),
        ({"time_steps": (20,)}, "time_steps"),
        ({"spin_up_days": 3}, "spin_up_days"),
        ({"scale": 10, "chunk_days": 1}, "chunk_days, scale"),
    ],
)
def test_a_world_made_otherwise_is_not_gone_on_with(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    module._claim(settings(tmp_path))
    before = (tmp_path / "world.json").read_bytes()
    with pytest.raises(UsageError, match=f"holds a world made with another {named}; choose another folder"):
        simulate(settings(tmp_path, **change), Silence())
    assert (tmp_path / "world.json").read_bytes() == before


def test_members_may_be_added_but_not_changed(tmp_path: Path) -> None:
    module._claim(settings(tmp_path, workers=1))
    module._claim(settings(tmp_path, members=3, workers=3))
    module._claim(settings(tmp_path, members=2))
    assert len(World.open(tmp_path).made_by["members"]) == 3, "members that were simulated stay described"
    with pytest.raises(UsageError, match="made with another members"):
        simulate(settings(tmp_path, ("train", 9), members=2), Silence())


def test_a_damaged_card_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "world.json").write_text("{")
    with pytest.raises(InputError, match=r"world\.json does not describe a world"):
        simulate(settings(tmp_path), Silence())


# Processes. These functions stand for one, and are found by name in the child.


def finish(chosen: SimulateSettings, number: int, core: int, errors: Connection) -> None:
    folder = member_folder(chosen, number)
    folder.mkdir()
    (folder / "core").write_text(str(core))
    for chunk in chunks_of(chosen, chosen.members[number]):
        for path in (chunk.path(folder), coarse_path(chunk.path(folder))):
            path.touch()
        restart_path(folder, chunk.first + timedelta(days=chosen.chunk_days)).touch()


def fail_beside_another(chosen: SimulateSettings, number: int, core: int, errors: Connection) -> None:
    if number == 1:
        (chosen.folder / "child").write_text(str(os.getpid()))
        time.sleep(60)
    while not (chosen.folder / "child").exists():
        time.sleep(0.02)
    errors.send(InputError("the simulation has become unstable"))


def vanish(chosen: SimulateSettings, number: int, core: int, errors: Connection) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.05)
    return monkeypatch


def test_members_run_as_processes_and_progress_counts_days(tmp_path: Path, quick: pytest.MonkeyPatch) -> None:
    quick.setattr(module, "_run_member", finish)
    heard, chosen = Heard(), settings(tmp_path, ("train", 3), members=2)
    assert isinstance(heard, Progress)
    assert simulate(chosen, heard) == tmp_path
    assert heard.begun == [("simulate, days", 0, 18)]
    assert heard.steps == sorted(set(heard.steps))
    assert heard.steps[-1] == days_done(chosen) == 18
    assert {(member_folder(chosen, n) / "core").read_text() for n in (0, 1)} == {"0", "1"}


def test_a_world_is_whole_when_no_chunk_of_a_split_is_missing(tmp_path: Path) -> None:
    chosen = settings(tmp_path, ("train", 6), ("discard", 30), ("test", 3))
    module._claim(chosen)
    folder = member_folder(chosen, 0)
    folder.mkdir()
    train, later, test = (
        c.path(folder) for c in chunks_of(chosen, chosen.members[0]) if c.split != "discard"
    )
    for path in (train, coarse_path(train), coarse_path(later)):
        path.touch()
    with pytest.raises(InputError, match="lacks 1 of the chunks of train, validation that"):
        complete_world(chosen, "train", "validation")
    without_fine = chosen.model_copy(update={"keep_fine": ("test",)})
    assert complete_world(without_fine, "train").folder == tmp_path
    with pytest.raises(InputError, match="lacks 1 of the chunks of test"):
        complete_world(without_fine, "test")
    assert not test.exists()


def test_settings_that_repeat_the_weather_are_refused(tmp_path: Path) -> None:
    twins = [
        {"seed": 1, "start": START, "segments": [{"split": split, "days": 3}]} for split in ("train", "test")
    ]
    with pytest.raises(ValidationError, match="seeds or starts of their own"):
        SimulateSettings.model_validate({"folder": tmp_path, "members": twins})
    with pytest.raises(ValidationError, match="keep_fine must hold test"):
        settings(tmp_path, keep_fine=("train",))


def test_a_complete_world_needs_no_simulator(tmp_path: Path, quick: pytest.MonkeyPatch) -> None:
    quick.setattr(module, "_run_member", finish)
    chosen = settings(tmp_path, ("train", 3))
    simulate(chosen, Silence())

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    quick.setattr(module, "version", missing)
    assert simulate(chosen, Silence()) == tmp_path
    with pytest.raises(UsageError, match=r"simulating needs jcm: pip install 'fengwu_ghr\[sim\]'"):
        simulate(settings(tmp_path, ("train", 3), members=2), Silence())


def test_an_error_in_a_process_is_raised_and_the_others_end(
    tmp_path: Path, quick: pytest.MonkeyPatch
) -> None:
    quick.setattr(module, "_run_member", fail_beside_another)
    began = time.monotonic()
    with pytest.raises(InputError, match="the simulation has become unstable"):
        simulate(settings(tmp_path, members=2), Silence())
    assert time.monotonic() - began < 50, "nobody waited for the other to come to its end"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "child").read_text()), 0)


def test_a_process_that_is_killed_says_so(tmp_path: Path, quick: pytest.MonkeyPatch) -> None:
    quick.setattr(module, "_run_member", vanish)
    with pytest.raises(InputError, match="a simulating process ended with code -9; run again to go on"):
        simulate(settings(tmp_path), Silence())


# The length of the step


def with_wind(speed: float) -> SimulatedState:
    shape = (1, 2, 2)
    wind = np.full(shape, speed, np.float32)
    calm = np.zeros(shape, np.float32)
    columns = SigmaColumns(np.array([0.5]), calm, calm, wind, calm, calm, calm[0])
    return SimulatedState(START, columns, {})


def stepper(monkeypatch: pytest.MonkeyPatch, *, wind: float, ends: dict[int, list[float]]) -> Simulator:
    """A T85 simulator in this wind whose runs end as given for each length of the step; no library behind it."""
    simulator = object.__new__(Simulator)
    simulator.truncation, simulator.time_steps = 85, (30, 24, 20)
    monkeypatch.setattr(simulator, "_fastest_wind", lambda restart: wind)
    monkeypatch.setattr(simulator, "valid_time", lambda restart: START)
    monkeypatch.setattr(
        simulator, "_run", lambda restart, step, hours: (step, [with_wind(speed) for speed in ends[step]])
    )
    return simulator


@pytest.mark.parametrize(("wind", "step"), [(70.0, 30), (90.0, 24), (110.0, 20), (150.0, 20)])
def test_the_longest_step_is_taken_that_the_wind_allows(
    monkeypatch: pytest.MonkeyPatch, wind: float, step: int
) -> None:
    """A Courant number of 1.9 at T85: 79 m s-1 at 30 minutes, 99 at 24, and the shortest beyond."""
    simulator = stepper(monkeypatch, wind=wind, ends={30: [60.0], 24: [60.0], 20: [60.0]})
    assert simulator.advance(None, hours=6)[0] == step


@pytest.mark.parametrize("end", [[60.0, 250.0], [np.nan, 60.0], [60.0, np.nan], [np.inf]])
def test_an_unstable_run_is_done_again_with_a_shorter_step(
    monkeypatch: pytest.MonkeyPatch, end: list[float]
) -> None:
    simulator = stepper(monkeypatch, wind=50.0, ends={30: end, 24: end, 20: [60.0, -70.0]})
    final, states = simulator.advance(None, hours=12)
    assert final == 20
    assert len(states) == 2
    simulator = stepper(monkeypatch, wind=50.0, ends={30: end, 24: end, 20: end})
    with pytest.raises(
        InputError, match=r"unstable after 2000-01-01 00:00 .*use time_steps below 20 minutes"
    ):
        simulator.advance(None, hours=12)


# The simulator


SEGMENTS = (("train", 3), ("validation", 1), ("test", 2))


@pytest.fixture(scope="module")
def module_patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def days_of(folder: Path) -> SimulateSettings:
    """A day of spin-up and six that are kept, a day a chunk."""
    chosen = settings(
        folder, *SEGMENTS, spin_up_days=1, chunk_days=1, separation_days=0, truncation=21, time_steps=(60,)
    )
    folder.mkdir()
    module._claim(chosen)
    return chosen


@pytest.fixture(scope="module")
def simulator(module_patch: pytest.MonkeyPatch) -> Simulator:
    """The one that every simulation and reference forecast of this module runs on."""
    made = reference._simulator(21, (60,), START)
    module_patch.setattr(module, "Simulator", lambda **how: reference._simulator(*how.values()))
    return made


def test_its_levels_are_known_without_it(simulator: Simulator) -> None:
    np.testing.assert_allclose(simulator.sigma, SIGMA, atol=1e-6)


@pytest.fixture(scope="module")
def world(simulator: Simulator, tmp_path_factory: pytest.TempPathFactory) -> World:
    chosen = days_of(tmp_path_factory.mktemp("simulated") / "world")
    simulate_member(chosen, 0)
    assert days_done(chosen) == chosen.days
    return World.open(chosen.folder)


def test_the_chunks_are_series_of_the_world(world: World) -> None:
    begun = {split: world.series(split)[0].times[0] for split in world.splits}
    assert begun == {"train": START + DAY + SIX_HOURS, "validation": START + 4 * DAY + SIX_HOURS} | {
        "test": START + 5 * DAY + SIX_HOURS
    }
    assert [len(world.series(split)[0]) for split in world.splits] == [12, 4, 8]
    kept = sorted(path.name for path in (world.folder / "member-0").glob("restart-*"))
    days = ["20000103", "20000106", "20000107", "20000108"]  # one of training, two of the test, the end
    assert kept == [f"restart-{day}00.npz" for day in days]
    assert restart_indices(world, world.series("train")[0]) == [3]
    assert restart_indices(world, world.series("test")[0]) == [3, 7]


def test_states_are_finite_and_plausible(world: World) -> None:
    names = world.channels.names
    states = np.stack([world.series("test")[0].fine(i) for i in range(8)])
    assert np.isfinite(states).all()
    bounds = {"t": (210, 320), "u": (-60, 60), "v": (-60, 60), "q": (0, 0.03), "z": (-3000, 280000)} | {
        "2t": (220, 315), "10u": (-30, 30), "10v": (-30, 30), "msl": (95000, 109000)
    }  # fmt: skip
    for index, name in enumerate(names):
        low, high = bounds.get(name) or bounds[name[0]]
        assert low <= states[:, index].min() <= states[:, index].max() <= high, name
        assert states[:, index].std() > 0
    for upper, lower in pairwise(
        f"z{level}" for level in (50, 100, 150, 200, 250, 300, 400, 500, 700, 850, 1000)
    ):
        assert (states[:, names.index(upper)] > states[:, names.index(lower)]).all()


def test_the_columns_are_hydrostatic(world: World, simulator: Simulator) -> None:
    """φ1 - φ2 = R ln(p2 / p1) times the mean of both virtual temperatures; the ground is where φ begins."""
    restart = simulator.load(restart_path(world.folder / "member-0", START + 7 * DAY))
    columns = simulator.advance(restart, hours=6)[1][0].columns
    virtual = columns.temperature * (1 + (461.51 / DRY_AIR - 1) * columns.humidity)
    steps = np.diff(np.log(columns.sigma))[:, None, None]
    expected = DRY_AIR * steps * (virtual[1:] + virtual[:-1]) / 2
    np.testing.assert_allclose(columns.geopotential[:-1] - columns.geopotential[1:], expected, rtol=2e-4)
    lowest = -DRY_AIR * np.log(columns.sigma[-1]) * virtual[-1]
    np.testing.assert_allclose(columns.geopotential[-1] - simulator.orography, lowest, atol=10)


def test_geopotential_and_temperature_on_pressure_levels_are_hydrostatic(world: World) -> None:
    """Not quite: between two pressure levels may lie a sigma level, where the slope of T changes."""
    names, state = world.channels.names, world.series("test")[0].fine(7)
    field = {name: state[names.index(name)] for name in names}
    above_ground = field["z850"] > world.orography + 3000
    for lower, upper in pairwise((850, 700, 600, 500, 400, 300, 250, 200, 150, 100, 50)):
        warmth = sum(field[f"t{p}"] * (1 + 0.608 * field[f"q{p}"]) for p in (lower, upper)) / 2
        thickness = DRY_AIR * warmth * np.log(lower / upper)
        error = (field[f"z{upper}"] - field[f"z{lower}"])[above_ground] / thickness[above_ground] - 1
        assert abs(error.mean()) < 0.005
        assert np.abs(error).max() < 0.02


def test_fields_lie_where_the_earth_has_them(world: World, simulator: Simulator) -> None:
    grid, names, state = world.fine_grid, world.channels.names, world.series("test")[0].fine(7)
    row, column = np.unravel_index(world.orography.argmax(), grid.shape)
    assert 25 < grid.latitude[row] < 42, "Tibet"
    assert 70 < grid.longitude[column] < 105
    assert 3000 < world.orography.max() / 9.81 < 5500
    pacific = np.ix_(np.abs(grid.latitude) < 30, np.abs(grid.longitude - 190) < 20)
    assert np.abs(world.orography[pacific]).max() / 9.81 < 400
    warmth = state[names.index("2t")].mean(axis=1)
    assert warmth[np.abs(grid.latitude) < 10].mean() > 10 + max(warmth[0], warmth[-1])
    np.testing.assert_array_equal(simulator.orography.shape, regular_gaussian_grid(16).shape)


def test_a_pole_has_one_value_and_one_wind(world: World) -> None:
    """All meridians meet there: a scalar is the same on each, components of the wind turn once around."""
    state = dict(zip(world.channels.names, world.series("test")[0].fine(7)))
    for name, field in state.items():
        for row in (0, -1):
            waves = np.abs(np.fft.rfft(field[row].astype(np.float64)))
            own = 1 if name[0] in "uv" or name in ("10u", "10v") else 0
            assert waves[own] > 0 or name.startswith("q")
            assert np.delete(waves, own).max() <= 1e-4 * max(waves[own], field.std()), name


def test_winds_blow_along_the_isobars(world: World) -> None:
    """Geostrophic winds from z500 in middle latitudes, both components, both hemispheres: signs and directions."""
    grid, names, series = world.fine_grid, world.channels.names, world.series("test")[0]
    state = np.mean([series.fine(i) for i in range(8)], axis=0)
    height = state[names.index("z500")].astype(np.float64)
    middle = (np.abs(grid.latitude) > 35) & (np.abs(grid.latitude) < 65)
    latitude, step = np.deg2rad(grid.latitude[middle, None]), 6.371e6 * np.deg2rad(1.8)
    coriolis = 2 * 7.292e-5 * np.sin(latitude)
    northward = (np.roll(height, 1, 0) - np.roll(height, -1, 0))[middle] / (2 * step)
    eastward = (np.roll(height, -1, 1) - np.roll(height, 1, 1))[middle] / (2 * step * np.cos(latitude))
    for hemisphere in (latitude[:, 0] > 0, latitude[:, 0] < 0):
        for wind, geostrophic in (("u500", -northward / coriolis), ("v500", eastward / coriolis)):
            own = state[names.index(wind)][middle][hemisphere]
            assert np.corrcoef(own.ravel(), geostrophic[hemisphere].ravel())[0, 1] > 0.6


def test_a_restart_read_back_goes_on_to_the_same_bits(
    world: World, simulator: Simulator, tmp_path: Path
) -> None:
    path = restart_path(world.folder / "member-0", START + 2 * DAY)
    restart = simulator.load(path)
    assert simulator.valid_time(restart) == START + 2 * DAY
    simulator.save(restart, tmp_path / "again.npz")
    with np.load(path) as one, np.load(tmp_path / "again.npz") as other:
        assert one.files == other.files
        for name in one.files:
            np.testing.assert_array_equal(one[name], other[name])
    assert [path.name for path in tmp_path.iterdir()] == ["again.npz"]
    after, states = simulator.advance(restart, hours=12)
    assert [state.valid_time for state in states] == [START + 2 * DAY + SIX_HOURS * i for i in (1, 2)]
    halves, first = simulator.advance(restart, hours=6)
    halves, second = simulator.advance(halves, hours=6)
    for whole, part in zip(states, first + second):
        np.testing.assert_array_equal(whole.columns.temperature, part.columns.temperature)
        np.testing.assert_array_equal(whole.near_surface["10u"], part.near_surface["10u"])
    leaves = simulator._jcm.leaves
    assert all(np.array_equal(a, b) for a, b in zip(leaves(after), leaves(halves)))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [("truncate", "not a restart of the simulator"), ("other", "a restart of another truncation")],
)
def test_a_restart_that_is_none_is_named(
    world: World, simulator: Simulator, tmp_path: Path, spoil: str, said: str
) -> None:
    path = tmp_path / "restart.npz"
    if spoil == "truncate":
        content = restart_path(world.folder / "member-0", START + 2 * DAY).read_bytes()
        path.write_bytes(content[: len(content) // 2])
    else:
        np.savez(path, leaf000=np.zeros(3))
    with pytest.raises(InputError, match=rf"{path} is {said}.*; remove it"):
        simulator.load(path)


class Killed(BaseException):
    """As sudden as a signal."""


def test_what_is_killed_anywhere_ends_as_if_it_never_was(
    world: World, simulator: Simulator, tmp_path: Path
) -> None:
    """Killed before the area means of a chunk, between them and its states, between these and the restart, between
    the restart and the removal of the one before; and a chunk is lost when all is done."""
    chosen = days_of(tmp_path / "world")
    for name, calls in (("save_array", 2), ("save_array", 3), ("restart_path", 5), ("restart_path", 6)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, name, dying_after(getattr(module, name), calls))
            with pytest.raises(Killed):
                simulate_member(chosen, 0)
    member, kept = chosen.folder / "member-0", restart_path(chosen.folder / "member-0", START + 3 * DAY)
    assert kept.exists(), "the last one came between a restart and the removal of this one"
    simulate_member(chosen, 0)
    assert contents(chosen.folder) == contents(world.folder)
    coarse_path(Chunk("train", START + 3 * DAY, 3).path(member)).unlink()
    assert days_done(chosen) == 2, "the last restart before what is missing is that of 3 January"
    simulate_member(chosen, 0)
    assert contents(chosen.folder) == contents(world.folder)


def dying_after(function: Any, calls: int) -> Any:
    """The function, until it is called so often."""
    left = [calls]

    def called(*args: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            raise Killed
        return function(*args)

    return called


def contents(folder: Path) -> dict[str, bytes]:
    """What lies in a world, by name; of restarts the arrays, for archives hold the time of writing."""
    found = {}
    for path in sorted(folder.rglob("*.np[yz]")):
        with open(path, "rb") as file:
            data = np.load(file)
            arrays = [data] if path.suffix == ".npy" else [data[name] for name in data.files]
            found[str(path.relative_to(folder))] = b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)
    return found


def test_transforms_by_fft_are_those_by_matrices(rng: np.random.Generator) -> None:
    """Both ways, for one field and for several, against the simulator's library; coefficients it has no use for are
    zero."""
    from dinosaur.coordinate_systems import CoordinateSystem
    from jcm.physics.speedy.speedy_coords import get_speedy_coords

    from fengwu_ghr.training.harmonics import with_fft

    theirs: CoordinateSystem = get_speedy_coords(layers=8, spectral_truncation=31)
    ours = with_fft(theirs)
    for shape in ((), (3,), (2, 4)):
        values = rng.standard_normal((*shape, *theirs.horizontal.nodal_shape)).astype(np.float32)
        expected = np.asarray(theirs.horizontal.to_modal(values))
        found = np.asarray(ours.horizontal.to_modal(values))
        np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())
        back = np.asarray(theirs.horizontal.to_nodal(expected))
        found = np.asarray(ours.horizontal.to_nodal(expected))
        np.testing.assert_allclose(found, back, atol=5e-6 * np.abs(back).max())


def test_seeds_make_different_atmospheres(simulator: Simulator) -> None:
    one, same, other = (
        np.asarray(simulator.from_rest(seed=seed).dynamics.log_surface_pressure) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0


@pytest.mark.parametrize("kelvin", [0.1, 2.0])
def test_a_perturbation_has_the_standard_deviation_asked_for(
    world: World, simulator: Simulator, kelvin: float
) -> None:
    restart = simulator.load(restart_path(world.folder / "member-0", START + 7 * DAY))
    varied, again, other = (
        simulator.perturbed(restart, kelvin=kelvin, seed=seed).dynamics for seed in (1, 1, 2)
    )
    to_values = simulator._coords.horizontal.to_nodal
    noise = np.asarray(to_values(varied.temperature_variation - restart.dynamics.temperature_variation))
    degree = simulator._model(60).dycore.physics_specs.nondimensionalize(simulator._jcm.kelvin)
    assert noise.std() / degree == pytest.approx(kelvin, rel=1e-3)
    assert abs(noise.mean()) / degree < 0.05 * kelvin
    np.testing.assert_array_equal(varied.temperature_variation, again.temperature_variation)
    assert not np.array_equal(varied.temperature_variation, other.temperature_variation)
    np.testing.assert_array_equal(varied.vorticity, restart.dynamics.vorticity)


def test_a_coarser_restart_has_the_large_scales_of_the_finer(world: World, simulator: Simulator) -> None:
    """A T21 state seen as one of T31, with noise in what only T31 has: what is cut out of it is the T21 state."""
    from dinosaur.coordinate_systems import get_spectral_upsample_fn

    restart = simulator.load(restart_path(world.folder / "member-0", START + 7 * DAY))
    fine = simulator._jcm.coordinates(layers=8, spectral_truncation=31)
    dynamics = get_spectral_upsample_fn(simulator._coords, fine)(restart.dynamics)
    small = np.ones(np.shape(dynamics.vorticity), bool)
    small[..., : np.shape(restart.dynamics.vorticity)[-2], : np.shape(restart.dynamics.vorticity)[-1]] = False
    noise = np.random.default_rng(0).standard_normal(small.shape).astype(np.float32)
    noisy = dynamics.replace(vorticity=dynamics.vorticity + noise * small)
    assert np.abs(noisy.vorticity - dynamics.vorticity).max() > 1
    cut = simulator.from_spectral(SimpleNamespace(_coords=fine), restart.replace(dynamics=noisy))
    assert simulator.valid_time(cut) == START + 7 * DAY
    for name in ("vorticity", "divergence", "temperature_variation", "log_surface_pressure"):
        np.testing.assert_array_equal(getattr(cut.dynamics, name), getattr(restart.dynamics, name))


# Reference forecasts


@pytest.mark.parametrize(("split", "index", "hours"), [("train", 3, 30), ("test", 3, 24)])
def test_the_simulators_own_forecast_is_the_truth(world: World, split: str, index: int, hours: int) -> None:
    series = world.series(split)[0]
    forecast = ReferenceForecasts(world).forecast(0, series.times[index], hours=hours)
    states = list(forecast)
    assert len(states) == hours // 6
    for lead, state in enumerate(states, start=1):
        truth = series.fine(index + lead)
        error = np.abs(state - truth) / truth.std(axis=(1, 2), keepdims=True)
        assert error.max() < 1e-4


def test_a_twin_stays_close_and_is_another(world: World) -> None:
    series = world.series("test")[0]
    truth = np.stack([series.fine(i) for i in range(4, 8)])
    twin = ReferenceForecasts(world, kelvin=0.1, seed=1).forecast(0, series.times[3], hours=24)
    t500 = world.channels.names.index("t500")
    error = [float((state - true)[t500].std()) for state, true in zip(twin, truth)]
    assert len(error) == 4
    assert all(0.005 < e < 0.3 for e in error)
    assert 4 * max(error) < truth[:, t500].std()


def test_a_forecast_needs_a_restart(world: World) -> None:
    with pytest.raises(
        InputError, match=r"keeps no restart of 2000-01-05 06:00, member 0: .*restart-2000010506"
    ):
        next(ReferenceForecasts(world).forecast(0, datetime(2000, 1, 5, 6), hours=6))


# Initial conditions as GRIB2


@pytest.fixture(scope="module")
def analyses(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, list[Path]]:
    made = tiny_world(tmp_path_factory.mktemp("tiny"), days=3)
    return made, write_initial_conditions(made, Silence())


def test_there_is_an_analysis_for_every_midnight_and_it_is_written_once(
    analyses: tuple[World, list[Path]],
) -> None:
    world, paths = analyses
    assert [path.name for path in paths] == [f"member-1-200009{day:02}00.grib2" for day in (2, 3, 4)]
    before = [path.stat().st_mtime_ns for path in paths]
    assert write_initial_conditions(world, Silence()) == paths
    assert [path.stat().st_mtime_ns for path in paths] == before


def test_analyses_read_back_as_the_states_they_were(analyses: tuple[World, list[Path]]) -> None:
    world, paths = analyses
    analysis = read_analysis(plan_analysis(paths[1:2], world.channels.channels))
    assert analysis.valid_time == datetime(2000, 9, 3)
    assert analysis.lead_of_input == timedelta(0)
    state = world.series("test")[0].fine(7)
    for (channel, field), expected in zip(analysis.fields.items(), state):
        assert isinstance(field.grid, LatLonGrid)
        assert field.grid == product_grid(20)
        # Twice: once for the packing, once for float32.
        assert np.abs(field.values - expected).max() <= 2 * packing_bound(expected, 16), channel


def test_cfgrib_reads_them_too(analyses: tuple[World, list[Path]]) -> None:
    import cfgrib

    world, paths = analyses
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        datasets = cfgrib.open_datasets(str(paths[0]), backend_kwargs={"indexpath": ""})
    fields = {name: array for dataset in datasets for name, array in dataset.data_vars.items()}
    assert set(fields) == {"z", "q", "u", "v", "t", "t2m", "u10", "v10", "msl"}
    assert {array.valid_time.values for array in fields.values()} == {np.datetime64(datetime(2000, 9, 2))}
    expected = world.series("test")[0].fine(3)[world.channels.names.index("u250")]
    assert np.abs(fields["u"].sel(isobaricInhPa=250) - expected).max() <= 2 * packing_bound(expected, 16)


# Two truncations, and processes that are killed: minutes


@pytest.mark.slow
def test_the_coarse_baseline_beats_persistence_for_a_day(
    world: World, simulator: Simulator, module_patch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chosen = settings(
        tmp_path, ("test", 3), spin_up_days=6, separation_days=0, truncation=31, time_steps=(30,)
    )
    module._claim(chosen)
    simulate_member(chosen, 0)
    finer = World.open(tmp_path)
    series = finer.series("test")[0]
    first = Member.model_validate(finer.made_by["members"][0]).start + 6 * DAY
    states = list(ReferenceForecasts(finer, truncation=21).forecast(0, first, hours=24))
    names = finer.channels.names
    for name in ("z500", "t850", "u850"):
        index = names.index(name)
        truth, start = series.fine(3)[index], series.fine(0)[index]
        assert np.square(states[3][index] - truth).mean() < 0.7 * np.square(start - truth).mean()


@pytest.mark.slow
def test_killed_processes_resume_to_the_same_bytes(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from fengwu_ghr.progress import Silence
from fengwu_ghr.training.members import SimulateSettings
from fengwu_ghr.training.simulate import simulate
if __name__ == "__main__":
    members = [{"seed": s, "start": "2000-01-01", "segments": [{"split": "train", "days": 9}]} for s in (1, 2)]
    simulate(SimulateSettings(folder=sys.argv[1], truncation=21, time_steps=(60,), spin_up_days=1, chunk_days=1,
                              separation_days=0, members=members), Silence())
"""
    (tmp_path / "job.py").write_text(script)
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}

    def begin(folder: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(tmp_path / "job.py"), str(tmp_path / folder)]
        return subprocess.Popen(command, env={**os.environ, **cache}, start_new_session=True)

    assert begin("whole").wait(timeout=600) == 0
    killed = begin("killed")
    while not list((tmp_path / "killed").glob("member-1/train-2000010[4-9]*.npy")):
        assert killed.poll() is None
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert begin("killed").wait(timeout=600) == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
