"""Samples of a world: the right states, normalised, on the right grid, in an order that nothing disturbs."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from worlds import tiny_world

from fengwu_ghr.errors import InputError
from fengwu_ghr.training.dataset import (
    CoarseSamples,
    FineSamples,
    StridedSamples,
    Window,
    backbone_samples,
    draw,
    noise_generator,
)
from fengwu_ghr.training.world import World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def fine(world: World) -> FineSamples:
    return FineSamples(world, "validation", in_memory=0)


def test_windows_hold_consecutive_states_of_one_series(world: World) -> None:
    samples = CoarseSamples(world, "train")
    lengths = [len(series) for series in samples.series]
    assert lengths == [24, 12]
    assert len(samples) == 36
    assert samples.windows(1)[-1] == Window(1, 11)
    windows = samples.windows(5)
    assert len(windows) == samples.count(5) == (24 - 4) + (12 - 4)
    for number, start in windows:
        times = samples.series[number].times[start : start + 5]
        assert np.all(np.diff(times) == timedelta(hours=6))
        assert len(times) == 5
    assert samples.count(25) == 0
    with pytest.raises(ValueError, match="one state or more; got 0"):
        samples.windows(0)


@pytest.mark.parametrize("in_memory", [0, 2**30])
def test_coarse_samples_are_the_normalised_area_means(world: World, in_memory: int) -> None:
    samples = CoarseSamples(world, "train", in_memory=in_memory)
    number = samples.windows(3).index(Window(1, 4))
    found = samples.sample(number, 3)
    assert found.shape == (3, 69, 37, 72)
    assert found.dtype == torch.float32
    statistics = world.statistics.normalisation
    for step in range(3):
        physical = world.series("train")[1].coarse(4 + step)
        expected = (physical - statistics.mean[:, None, None]) / statistics.std[:, None, None]
        np.testing.assert_allclose(found[step].numpy(), expected, rtol=1e-6, atol=1e-6)


def test_fine_samples_agree_with_the_product_grid_where_the_grids_meet(
    world: World, fine: FineSamples
) -> None:
    """Every 45 degrees both grids have a point, where cubic interpolation gives the value itself."""
    normalisation = world.statistics.normalisation
    found = normalisation.denormalise(fine.sample(3, 1)[0].numpy())[:, 1:-1, 1:][:, ::27, ::27]
    expected = world.series("validation")[0].fine(3)[:, ::25, ::25].copy()
    humidity = [name.startswith("q") for name in world.channels.names]
    expected[humidity] = np.maximum(expected[humidity], 0)
    assert found.shape == expected.shape == (69, 5, 8)
    # At the poles the mean of a ring, or its wave one, takes the place of what the product grid holds.
    error = np.abs(found - expected)[:, 1:-1] / normalisation.std[:, None, None]
    assert error.max() < 1e-5


def test_fine_samples_refill_the_rows_beyond_the_poles(world: World, fine: FineSamples) -> None:
    state = world.statistics.normalisation.denormalise(fine.sample(0, 1)[0].numpy())
    is_vector = np.array([channel.definition.is_vector for channel in world.channels.channels])
    sign = np.where(is_vector, -1, 1)[:, None]
    scale = world.statistics.normalisation.std[:, None]
    for outer, inside in ((0, 2), (-1, -3)):
        expected = sign * np.roll(state[:, inside], 108, axis=1)
        assert (np.abs(state[:, outer] - expected) / scale).max() < 1e-5
    assert state[[name.startswith("q") for name in world.channels.names]].min() > -1e-9


def test_strided_samples_are_the_nine_sub_fields(world: World, fine: FineSamples) -> None:
    samples = backbone_samples(world, "validation", coarsening="strided", in_memory=0)
    assert isinstance(samples, StridedSamples)
    assert samples.count(2) == 9 * fine.count(2)
    whole = fine.sample(2, 2)
    found = samples.sample(9 * 2 + 5, 2)  # 5 = 3 x 1 + 2
    assert found.shape == (2, 69, 37, 72)
    assert torch.equal(found, whole[:, :, 1::3, 2::3])
    assert isinstance(backbone_samples(world, "validation", coarsening="area"), CoarseSamples)


def test_every_epoch_is_another_permutation() -> None:
    epochs = [[draw(10 * e + i, count=10, stream=(7, 1)) for i in range(10)] for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert epochs[0] != [draw(i, count=10, stream=(8, 1)) for i in range(10)]
    # Asked in another order, the same: a resumed run begins anywhere.
    assert [draw(i, count=10, stream=(7, 1)) for i in (25, 3)] == [epochs[2][5], epochs[0][3]]


def test_noise_belongs_to_the_number_of_the_sample() -> None:
    def noise(number: int, seed: int) -> torch.Tensor:
        generator = noise_generator(number, stream=(seed, 1), device=torch.device("cpu"))
        return torch.randn(1000, generator=generator)

    assert torch.equal(noise(3, 0), noise(3, 0))
    for other in (noise(4, 0), noise(3, 1)):
        assert abs(float(torch.corrcoef(torch.stack([noise(3, 0), other]))[0, 1])) < 0.15


def test_a_state_that_is_not_finite_is_named(tmp_path: Path) -> None:
    world = tiny_world(tmp_path / "world", days=3)
    assert world.statistics.normalisation.std.min() > 0
    path = tmp_path / "world" / "member-1" / "train-2000070106.coarse.npy"
    values = np.load(path)
    values[2, world.channels.index("t850"), 4, 5] = np.nan
    np.save(path, values)
    world = World.open(tmp_path / "world")
    with pytest.raises(InputError, match=r"t850 of member 1 \(train\) at 2000-07-01T18 is not"):
        CoarseSamples(world, "train")
    lazy = CoarseSamples(world, "train", in_memory=0)
    lazy.sample(lazy.windows(1).index(Window(1, 1)), 1)
    with pytest.raises(InputError, match="member 1"):
        lazy.sample(lazy.windows(1).index(Window(1, 2)), 1)
