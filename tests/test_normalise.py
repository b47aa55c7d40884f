"""Normalisation: there and back, in place, over the poles; standard statistics against known climatology."""

import numpy as np
import pytest

from fengwu_ghr.grid import NetworkGrid
from fengwu_ghr.normalise import Normalisation, standard_statistics
from fengwu_ghr.variables import CHANNEL_SETS, Channel, channel_set

MEAN = np.array([10.0, -3.0, 5e4], np.float32)
STD = np.array([2.0, 0.5, 3e3], np.float32)


def test_normalised_values_have_the_stated_mean_and_std(rng: np.random.Generator) -> None:
    values = (rng.standard_normal((3, 40, 50)) * STD[:, None, None] + MEAN[:, None, None]).astype(np.float32)
    normalised = Normalisation(MEAN, STD).normalise(values)
    expected = (values.astype(np.float64) - MEAN[:, None, None]) / STD[:, None, None]
    np.testing.assert_allclose(normalised, expected, atol=1e-5)


def test_denormalise_inverts_normalise(rng: np.random.Generator) -> None:
    normalisation = Normalisation(MEAN, STD)
    values = (rng.standard_normal((3, 7, 9)) * STD[:, None, None] + MEAN[:, None, None]).astype(np.float32)
    back = normalisation.denormalise(normalisation.normalise(values))
    np.testing.assert_allclose(back, values, rtol=3e-7, atol=1e-6)
    for channel in range(3):
        field = normalisation.normalise(values)[channel]
        np.testing.assert_array_equal(normalisation.denormalise_field(field, channel), back[channel])


def test_out_is_filled_and_returned_also_in_place(rng: np.random.Generator) -> None:
    normalisation = Normalisation(MEAN, STD)
    values = rng.standard_normal((3, 4, 5)).astype(np.float32)
    expected, out = normalisation.normalise(values), np.empty_like(values)
    assert normalisation.normalise(values, out=out) is out
    np.testing.assert_array_equal(out, expected)
    assert normalisation.normalise(values, out=values) is values
    np.testing.assert_array_equal(values, expected)
    field = values[1].copy()
    assert normalisation.denormalise_field(field, 1, out=field) is field


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([1.0, 2.0], [1.0], r"one value per channel; got \(2,\), \(1,\)"),
        ([1.0, 2.0], [1.0, 0.0], "channel 1 has mean 2.0, std 0.0"),
        ([1.0, np.nan], [1.0, 1.0], "channel 1 has mean nan"),
        ([1.0], [-1.0], "positive std"),
        ([1.0], [np.inf], "std inf"),
    ],
)
def test_useless_statistics_are_refused(mean: list[float], std: list[float], message: str) -> None:
    # The shape check of the annotations would speak first where lengths differ.
    with pytest.raises((ValueError, TypeError), match=message if len(mean) == len(std) else None):
        Normalisation(np.array(mean, np.float32), np.array(std, np.float32))


def test_values_of_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="statistics of 3 channels do not fit values of shape"):
        Normalisation(MEAN, STD).normalise(np.zeros((2, 4, 4), np.float32))
    with pytest.raises(ValueError, match="3 channels, got 2 flags"):
        Normalisation(MEAN, STD).across_pole([True, False])


def test_across_the_pole_negates_physical_vector_components(rng: np.random.Generator) -> None:
    """Refilling the rows beyond the poles in normalised space is refilling them in physical space."""
    normalisation, grid = Normalisation(MEAN, STD), NetworkGrid(20)
    physical = (rng.standard_normal((3, *grid.shape)) * STD[:, None, None] + MEAN[:, None, None]).astype(
        np.float32
    )
    normalised = normalisation.normalise(physical)
    is_vector = [False, True, False]
    sign, offset = normalisation.across_pole(is_vector)
    grid.refill_beyond_poles(normalised, sign=sign, offset=offset)

    flip = np.where(is_vector, -1, 1).astype(np.float32)
    grid.refill_beyond_poles(physical, sign=flip, offset=np.zeros(3, np.float32))
    np.testing.assert_allclose(normalised, normalisation.normalise(physical), atol=2e-5)
    assert sign.dtype == offset.dtype == np.float32
    assert (sign[0], offset[0]) == (1, 0)


@pytest.mark.parametrize("name", CHANNEL_SETS)
def test_every_channel_set_has_standard_statistics(name: str) -> None:
    channels = channel_set(name).channels
    statistics = standard_statistics(channels)
    assert len(statistics) == len(channels)
    for channel, mean, std in zip(channels, statistics.mean, statistics.std):
        low, high = channel.plausible
        assert low <= mean <= high, channel
        assert std < high - low, channel


@pytest.mark.parametrize(
    ("channel", "mean", "std"),
    [
        (Channel("z", 500), 54117, 3360),
        (Channel("t", 850), 274.6, 15.6),
        (Channel("2t"), 278.5, 21.3),
        (Channel("msl"), 100957, 1335),
        (Channel("10u"), -0.05, 5.5),
        (Channel("sp"), 96647, 9584),
        (Channel("tcc"), 0.675, 0.365),
    ],
)
def test_standard_statistics_are_close_to_climatology(channel: Channel, mean: float, std: float) -> None:
    statistics = standard_statistics([channel])
    assert abs(statistics.mean[0] - mean) < std
    assert std / 1.5 < statistics.std[0] < std * 1.5


def test_a_variable_without_a_rule_is_an_error() -> None:
    with pytest.raises(ValueError, match="no standard statistics for r500"):
        standard_statistics([Channel("r", 500)])
