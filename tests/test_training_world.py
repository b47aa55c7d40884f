"""A world on disk: what is read is what was written, in its order; what is damaged or strange is named."""

import json
import os
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from worlds import CHUNK_STATES, tiny_world

from fengwu_ghr.coarsen import AreaMean
from fengwu_ghr.errors import InputError, OutputError, UsageError
from fengwu_ghr.grid import backbone_grid, product_grid
from fengwu_ghr.normalise import Normalisation, standard_statistics
from fengwu_ghr.training.world import (
    FLOOR,
    World,
    chunk_path,
    chunk_start,
    coarse_path,
    new_array,
    save_array,
)

FIRST = datetime(2000, 1, 1, 6)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world(tmp_path_factory.mktemp("worlds") / "original", days=9)


@pytest.fixture
def world(original: World, tmp_path: Path) -> World:
    """One to be spoilt; its files are links, to be replaced and not written to."""
    shutil.copytree(original.folder, tmp_path / "world", copy_function=os.link)
    return World.open(tmp_path / "world")


@pytest.fixture
def short(world: World) -> World:
    """One chunk of training of either member."""
    for number in (1, 2):
        drop(chunk(world, number))
    return world


def drop(path: Path) -> None:
    path.unlink()
    coarse_path(path).unlink()


def put(path: Path, states: np.ndarray) -> None:
    path.unlink()
    np.save(path, states)


def chunk(world: World, number: int, *, member: int = 0) -> Path:
    """The numbered chunk of a member's training."""
    start = FIRST if member == 0 else datetime(2000, 7, 1, 6)
    return chunk_path(world.folder / f"member-{member}", "train", start + timedelta(days=3 * number))


def written(world: World, member: int, *, chunks: int = 1) -> np.ndarray:
    """What numpy reads of the files: (time, channel, lat, lon)."""
    return np.concatenate([np.load(chunk(world, number, member=member)) for number in range(chunks)])


def test_series_are_in_order_six_hours_apart_with_their_members(original: World) -> None:
    series = original.series("train")
    assert [(one.member, len(one), one.split) for one in series] == [(0, 36, "train"), (1, 12, "train")]
    assert series[0].times == tuple(FIRST + timedelta(hours=6 * i) for i in range(36))
    assert series[1].times[0] == datetime(2000, 7, 1, 6)
    assert [one.member for one in original.series("test")] == [1]
    assert original.splits == ("train", "validation", "test")


def test_states_are_those_of_the_files_and_coarse_ones_their_area_means(original: World) -> None:
    mean = AreaMean(product_grid(20), backbone_grid(20))
    series, states = original.series("train")[0], written(original, 0, chunks=3)
    for index in (0, 11, 12, 35):
        np.testing.assert_array_equal(series.fine(index), states[index])
        expected = mean.apply(states[index])
        size = np.abs(expected).max(axis=(1, 2), keepdims=True)
        assert (np.abs(series.coarse(index) - expected) <= 1e-5 * size).all()
    np.testing.assert_array_equal(original.series("train")[1].fine(7), written(original, 1)[7])


def test_states_are_read_only_and_only_those_there_are(original: World) -> None:
    series = original.series("validation")[0]
    with pytest.raises(ValueError, match="read-only"):
        series.fine(0)[0, 0, 0] = 1
    for index in (12, -1):
        with pytest.raises(IndexError, match=f"states 0 to 11 there are; got {index}"):
            series.fine(index)


def test_a_hole_ends_a_series_and_the_next_begins_behind_it(world: World) -> None:
    drop(chunk(world, 1))
    series = world.series("train")
    assert [(one.member, one.times[0], len(one)) for one in series] == [
        (0, FIRST, 12),
        (0, FIRST + timedelta(days=6), 12),
        (1, datetime(2000, 7, 1, 6), 12),
    ]
    np.testing.assert_array_equal(series[1].fine(3), np.load(chunk(world, 2))[3])


def test_area_means_are_enough_for_series_and_statistics(world: World) -> None:
    series = world.series("train")
    expected = np.concatenate([one.coarse(i)[None] for one in series for i in range(len(one))]).astype(
        np.float64
    )
    for path in (world.folder / "member-0").glob("train-*06.npy"):
        path.unlink()
    (world.folder / "member-1" / "train-2000070106.npy").unlink()
    (again, _) = world.series("train")
    assert not again.has_fine
    assert again.times == series[0].times
    with pytest.raises(
        InputError, match=r"fine train states of member 0 were not kept; .* simulate\.keep_fine"
    ):
        again.fine(0)
    mean = np.einsum("tcij,ij->c", expected, world.coarse_grid.cell_areas()) / len(expected)
    np.testing.assert_allclose(world.statistics.normalisation.mean, mean, rtol=1e-5)


def test_members_are_ordered_by_number(world: World) -> None:
    shutil.copytree(world.folder / "member-1", world.folder / "member-10")
    shutil.copytree(world.folder / "member-1", world.folder / "member-2")
    assert [one.member for one in world.series("train")] == [0, 1, 2, 10]


def test_a_world_is_readable_as_far_as_it_has_come(world: World) -> None:
    shutil.rmtree(world.folder / "member-1")
    for path in (world.folder / "member-0").glob("validation*"):
        path.unlink()
    assert world.splits == ("train",)
    assert len(world.series("train")) == 1
    with pytest.raises(InputError, match="has no test states yet; simulate on"):
        world.series("test")
    with pytest.raises(ValueError, match="splits are train, validation, test; got 'tests'"):
        world.series("tests")


def test_statistics_are_the_weighted_moments_of_every_training_state(short: World) -> None:
    series = [written(short, member).astype(np.float64) for member in (0, 1)]
    names, weights = short.channels.names, short.fine_grid.row_weights / short.fine_grid.shape[1]
    mean, square = (
        np.concatenate([(states**power).sum(axis=3) @ weights for states in series]).mean(axis=0)
        for power in (1, 2)
    )
    spread = np.sqrt(square - mean**2)
    steps = [np.diff(states, axis=0) for states in series]
    step, step_square = (
        np.concatenate([(change**power).sum(axis=3) @ weights for change in steps]).mean(axis=0)
        for power in (1, 2)
    )
    assert sum(map(len, steps)) == 11 + 11, "no step leads from one member to the next"
    found = short.statistics
    floor = FLOOR * standard_statistics(short.channels.channels).std
    np.testing.assert_allclose(found.normalisation.mean, mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.normalisation.std, np.maximum(spread, floor), rtol=1e-5)
    expected = np.sqrt(step_square - step**2) / np.maximum(spread, floor)
    np.testing.assert_allclose(found.tendency_std, expected, rtol=1e-5)
    assert found.persisted == tuple(n for n, s, least in zip(names, spread, floor) if s < least)


def test_channels_that_hardly_vary_get_the_floor_and_are_persisted(
    short: World, rng: np.random.Generator
) -> None:
    names, floor = short.channels.names, FLOOR * standard_statistics(short.channels.channels).std
    states, spread = written(short, 0), {"t850": 0.9, "u850": 1.1}
    noise = rng.standard_normal((CHUNK_STATES, *short.fine_grid.shape))
    for name, part in spread.items():
        states[:, names.index(name)] = part * floor[names.index(name)] * noise
    put(chunk(short, 0), states)
    shutil.rmtree(short.folder / "member-1")
    found = short.statistics
    t, u = (names.index(name) for name in spread)
    assert "t850" in found.persisted
    assert "u850" not in found.persisted
    assert found.normalisation.std[t] == floor[t]
    assert found.normalisation.std[u] == pytest.approx(1.1 * floor[u], rel=0.02)


def test_statistics_are_kept_and_are_of_training_alone(short: World) -> None:
    first = short.statistics
    for path in short.folder.glob("member-*/*.npy"):
        path.unlink()
    again = World.open(short.folder).statistics
    np.testing.assert_array_equal(again.normalisation.std, first.normalisation.std)
    np.testing.assert_array_equal(again.tendency_std, first.tendency_std)
    assert again.persisted == first.persisted


def test_statistics_follow_a_world_that_grows(short: World, original: World) -> None:
    assert len(short.series("train")[0]) == 12
    first = short.statistics.normalisation.mean
    path = chunk(original, 1)
    for added in (path, coarse_path(path)):
        shutil.copy(added, short.folder / "member-0" / added.name)
    grown = World.open(short.folder)
    assert not np.array_equal(grown.statistics.normalisation.mean, first)
    statistics = short.folder / "statistics.json"
    content = json.loads(statistics.read_text())
    assert content["states"] == 36
    statistics.write_text(json.dumps(content | {"states": 24, "source": "another world"}))
    with pytest.raises(InputError, match="adopted when the world had 24 training states, it has 36 now"):
        _ = World.open(short.folder).statistics


def test_statistics_of_another_world_can_be_adopted_before_there_are_own(
    short: World, tmp_path: Path
) -> None:
    """What was trained before goes on: its normalisation, and tendencies as large as they are here."""
    shutil.copytree(short.folder, tmp_path / "other", copy_function=os.link)
    own, world = short.statistics, World.open(tmp_path / "other")
    std = own.normalisation.std * np.linspace(0.5, 2, 69, dtype=np.float32)
    theirs = Normalisation(own.normalisation.mean + std, std)
    world.adopt_statistics(theirs, ["q50"], source="the first world")
    found = world.statistics
    np.testing.assert_array_equal(found.normalisation.mean, theirs.mean)
    np.testing.assert_array_equal(found.normalisation.std, theirs.std)
    np.testing.assert_allclose(found.tendency_std * std, own.tendency_std * own.normalisation.std, rtol=1e-5)
    assert found.persisted == ("q50",)
    world.adopt_statistics(theirs, ["q50"], source="the first world")
    with pytest.raises(UsageError, match=r"statistics\.json holds other statistics than those of a third"):
        world.adopt_statistics(theirs, [], source="a third")
    with pytest.raises(UsageError, match="holds other statistics than those of the first world; remove it"):
        short.adopt_statistics(theirs, [], source="the first world")


def spoil_statistics(world: World, **changes: object) -> None:
    path = world.folder / "statistics.json"
    names = world.channels.names
    content = {
        **{key: dict.fromkeys(names, 1.0) for key in ("mean", "std", "tendency_std")},
        "persisted": [],
        **changes,
    }
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": {"t850": 280.0}},
        {"std": dict.fromkeys(("t850",), 0.0)},
        {"tendency_std": None},
        {"persisted": None},
        {"std": "none"},
    ],
)
def test_statistics_of_other_channels_are_an_error(world: World, changes: dict[str, object]) -> None:
    spoil_statistics(world, **changes)
    with pytest.raises(InputError, match=r"statistics\.json does not hold statistics of ghr-69 .*remove it"):
        _ = world.statistics


def test_statistics_that_cannot_divide_are_an_error(world: World) -> None:
    spoil_statistics(world, std=dict.fromkeys(world.channels.names, 0.0))
    with pytest.raises(InputError, match=r"statistics\.json .*finite with a positive std"):
        _ = world.statistics


def test_a_training_state_that_is_not_finite_is_an_error(short: World) -> None:
    states = written(short, 1)
    states[5, 3, 50, 100] = np.nan
    put(chunk(short, 0, member=1), states)
    with pytest.raises(InputError, match="a state of member 1, train, is not finite"):
        _ = short.statistics
    assert not (short.folder / "statistics.json").exists()


def test_a_folder_without_a_world_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"holds no simulated world .*make one with fengwu-ghr train simulate"
    ):
        World.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "card",
    [
        "{",
        "[]",
        '{"scale": 20}',
        '{"scale": 20, "channel_set": "ghr-70"}',
        '{"scale": 3, "channel_set": "ghr-69"}',
    ],
)
def test_a_card_that_describes_no_world_is_an_error(tmp_path: Path, card: str) -> None:
    (tmp_path / "world.json").write_text(card)
    with pytest.raises(InputError, match=r"world\.json does not describe a world"):
        World.open(tmp_path)


@pytest.mark.parametrize("left", [0, 50, 10_000])
def test_a_damaged_chunk_is_named(world: World, left: int) -> None:
    path = chunk(world, 1)
    content = path.read_bytes()[:left]
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{path.name} is no array .*remove it and simulate again"):
        world.series("train")


@pytest.mark.parametrize("shape", [(12, 74, 101, 200), (12, 69, 37, 72), (11, 69, 101, 200)])
def test_a_chunk_of_another_world_is_named(world: World, shape: tuple[int, ...]) -> None:
    path = chunk(world, 1)
    put(path, np.zeros(shape, np.float32))
    with pytest.raises(InputError, match=rf"{path.name} must hold an array of shape \(12, 69, 101, 200\)"):
        world.series("train")


def test_a_chunk_without_area_means_is_not_there_yet(world: World) -> None:
    coarse_path(chunk(world, 1)).unlink()
    assert [len(series) for series in world.series("train")] == [12, 12, 12]


def test_names_of_chunks_are_read_back(tmp_path: Path) -> None:
    path = chunk_path(tmp_path, "validation", datetime(1999, 12, 31, 18))
    assert chunk_start(path) == datetime(1999, 12, 31, 18)
    with pytest.raises(ValueError, match=r"train-2000\.npy is not the name of a chunk"):
        chunk_start(tmp_path / "train-2000.npy")


def test_arrays_are_saved_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "array.npy"
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    save_array(path, values)

    def fail_half_way() -> None:
        with new_array(path, 5) as write:
            write(values[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    np.testing.assert_array_equal(np.load(path), values)
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OutputError, match=r"cannot write .*nowhere/array\.npy"):
        save_array(tmp_path / "nowhere" / "array.npy", values)
