"""Losses: hand-worked costs, areas from sines, and what amplitude is worth."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from fengwu_ghr.grid import LatLonGrid, NetworkGrid, backbone_grid
from fengwu_ghr.normalise import standard_statistics
from fengwu_ghr.training.losses import LossSettings, LossWeights, mean_one_rows, spectral_loss, weighted_mse
from fengwu_ghr.training.world import WorldStatistics
from fengwu_ghr.variables import channel_set

CHANNELS = channel_set("ghr-69")
NETWORK, BACKBONE = NetworkGrid(20), backbone_grid(20)
PERSISTED = ("q100", "q50")


def statistics() -> WorldStatistics:
    tendency = np.linspace(0.05, 0.5, len(CHANNELS)).astype(np.float32)
    tendency[[CHANNELS.index(name) for name in PERSISTED]] = 0
    return WorldStatistics(standard_statistics(CHANNELS.channels), tendency, PERSISTED)


def weights(grid: LatLonGrid | NetworkGrid = BACKBONE, **settings: object) -> LossWeights:
    return LossWeights.of(CHANNELS, statistics(), grid, LossSettings(**settings))


def tendency_std() -> Tensor:
    return torch.from_numpy(statistics().tendency_std)[:, None, None]


def random_fields(grid: LatLonGrid | NetworkGrid = BACKBONE, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, len(CHANNELS), *grid.shape, generator=generator) * (tendency_std() + 0.01)


@pytest.mark.parametrize("grid", [BACKBONE, NETWORK])
@pytest.mark.parametrize("settings", [{}, {"level_floor": 1.0}, {"variables": {"z": 3.0, "msl": 0.1}}])
def test_an_error_of_one_tendency_costs_one(grid: LatLonGrid | NetworkGrid, settings: dict) -> None:
    truth = random_fields(grid)
    sign = torch.where(random_fields(grid, seed=1) > 0, 1.0, -1.0)
    cost = weighted_mse(truth + sign * tendency_std(), truth, weights(grid, **settings))
    assert float(cost) == pytest.approx(1, rel=1e-5)


def test_a_row_costs_its_area() -> None:
    """On a polar cap 2.5 degrees wide: the share of the sphere is (1 - cos 2.5°) / 2."""
    truth = torch.zeros(1, len(CHANNELS), *BACKBONE.shape)
    forecast = truth.clone()
    forecast[:, :, 0] = tendency_std()[:, 0]
    cap = (1 - np.cos(np.deg2rad(2.5))) / 2
    assert float(weighted_mse(forecast, truth, weights())) == pytest.approx(cap, rel=1e-5)


def test_what_lies_beyond_the_poles_or_persists_costs_nothing() -> None:
    truth = random_fields(NETWORK)
    forecast = truth.clone()
    forecast[:, :, [0, -1]] += 5
    forecast[:, [CHANNELS.index(name) for name in PERSISTED]] += 5
    for loss in weighted_mse, spectral_loss:
        assert float(loss(forecast, truth, weights(NETWORK))) == pytest.approx(0, abs=1e-6)
    rows = mean_one_rows(NETWORK)
    assert rows.shape == (111,)
    assert rows.mean() == pytest.approx(1)


def test_levels_weigh_as_their_pressure_down_to_a_floor() -> None:
    found = weights(level_floor=0.3).channels.numpy() * statistics().tendency_std ** 2
    share = dict(zip(CHANNELS.names, found))
    assert share["z1000"] / share["z500"] == pytest.approx(2, rel=1e-5)
    assert share["t50"] / share["t300"] == pytest.approx(1, rel=1e-5)
    assert share["2t"] == pytest.approx(np.mean([share[f"u{level}"] for level in _levels()]), rel=1e-5)
    doubled = weights(level_floor=0.3, variables={"u": 2.0}).channels.numpy() * statistics().tendency_std ** 2
    ratio = doubled / np.where(found > 0, found, 1)
    u, v = CHANNELS.index("u850"), CHANNELS.index("v850")
    assert ratio[u] / ratio[v] == pytest.approx(2, rel=1e-5)


def _levels() -> list[int]:
    return [channel.level for channel in CHANNELS.channels if channel.variable == "u" and channel.level]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variables": {"zz": 1.0}}, "got zz"),
        ({"variables": {"z": -1.0}}, "not negative"),
        ({"level_floor": 2.0}, "less than or equal to 1"),
        ({"levels": 2.0}, "Extra inputs"),
    ],
)
def test_settings_are_checked(settings: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LossSettings(**settings)


def test_statistics_must_fit_and_leave_something_to_learn() -> None:
    short = WorldStatistics(standard_statistics(CHANNELS.channels[:3]), np.ones(3, np.float32), ())
    with pytest.raises(ValueError, match="statistics of 3 channels"):
        LossWeights.of(CHANNELS, short, BACKBONE, LossSettings())
    idle = WorldStatistics(statistics().normalisation, statistics().tendency_std, CHANNELS.names)
    with pytest.raises(ValueError, match="nothing to learn"):
        LossWeights.of(CHANNELS, idle, BACKBONE, LossSettings())


@pytest.mark.parametrize("grid", [BACKBONE, NETWORK])
def test_of_fields_of_equal_power_the_spectral_loss_is_the_mean_square(
    grid: LatLonGrid | NetworkGrid,
) -> None:
    """A turn of the globe keeps every amplitude: Parseval makes both losses one."""
    truth = random_fields(grid)
    forecast = truth.roll(5, dims=3)
    mse, spectral = (float(loss(forecast, truth, weights(grid))) for loss in (weighted_mse, spectral_loss))
    assert mse > 0.5
    assert spectral == pytest.approx(mse, rel=1e-4)


def test_damping_a_coherent_forecast_costs_its_lost_amplitude() -> None:
    """Where phases are right the loss is (1 - a)² of the power, as the mean square is."""
    truth = random_fields()
    power = float(weighted_mse(0 * truth, truth, weights()))
    for factor in (0.5, 1.5):
        cost = float(spectral_loss(factor * truth, truth, weights()))
        assert cost == pytest.approx((1 - factor) ** 2 * power, rel=1e-3)


def test_damping_an_incoherent_forecast_gains_nothing() -> None:
    """The mean square of a forecast without skill is least at amplitude zero, the spectral loss near the truth's.

    Not quite at it: in bins of few wavenumbers the two happen to have different powers.
    """
    truth, other = random_fields(), random_fields(seed=1)
    factors = [0.0, 0.25, 0.5, 0.75, 1.0, 1.5]
    mse, spectral = (
        [float(loss(factor * other, truth, weights())) for factor in factors]
        for loss in (weighted_mse, spectral_loss)
    )
    assert np.argmin(mse) == 0
    assert factors[int(np.argmin(spectral))] in (0.75, 1.0)
    assert spectral[factors.index(0.0)] > 1.05 * min(spectral)


def test_the_slope_stays_finite_where_there_is_nothing() -> None:
    forecast = torch.zeros(1, len(CHANNELS), *BACKBONE.shape, requires_grad=True)
    spectral_loss(forecast, torch.zeros_like(forecast), weights()).backward()
    assert forecast.grad is not None
    assert bool(forecast.grad.isfinite().all())


def test_losses_are_not_rounded_in_mixed_precision() -> None:
    truth = random_fields()
    forecast = truth + 0.1 * random_fields(seed=2)
    for loss in weighted_mse, spectral_loss:
        expected = loss(forecast, truth, weights())
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(loss(forecast, truth, weights()), expected)
