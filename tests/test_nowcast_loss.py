"""The dynamic loss: each level by itself, nothing from what is unknown, plain squared error without any level."""

import pytest
import torch

from fengwu_ghr.nowcast.loss import PLAIN, DynamicLoss, dynamic_loss, pixel_weights
from fengwu_ghr.nowcast.model import SCALE

OFF = {"epoch": False, "intensity": False, "lead": False}


def of(settings: DynamicLoss, forecast: torch.Tensor, truth: torch.Tensor, *, known: torch.Tensor | None = None,
       progress: float = 1.0) -> float:  # fmt: skip
    shown = torch.ones_like(truth, dtype=torch.bool) if known is None else known
    places = torch.linspace(0, 1, truth.shape[1]).expand(len(truth), -1)
    return float(dynamic_loss(forecast, truth, shown, settings=settings, progress=progress, places=places))


def dbz(*values: float) -> torch.Tensor:
    """One batch, one lead, one row."""
    return torch.tensor(values)[None, None, None] / SCALE


def test_without_levels_it_is_the_mean_squared_error() -> None:
    forecast, truth = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    assert PLAIN.is_plain
    assert of(PLAIN, forecast, truth) == pytest.approx(float((forecast - truth).square().mean()), rel=1e-5)


def test_unknown_pixels_cost_nothing() -> None:
    forecast, truth = torch.rand(1, 2, 8, 8), torch.rand(1, 2, 8, 8)
    known = torch.rand(1, 2, 8, 8) > 0.3
    for settings in (PLAIN, DynamicLoss(change=0.5)):
        wild = torch.where(known, forecast, 100.0)
        assert of(settings, wild, truth, known=known) == pytest.approx(
            of(settings, forecast, truth, known=known)
        )
    assert of(DynamicLoss(), forecast, truth, known=known & False) == 0


def test_intense_echoes_count_more() -> None:
    settings = DynamicLoss(**{**OFF, "intensity": True}, miss=0.0)
    truth = dbz(0, 25, 38, 50)
    weights = pixel_weights(truth, truth, settings, 1.0).flatten().tolist()
    assert weights == pytest.approx([1, 2, 5, 13], abs=0.8)
    assert weights == sorted(weights)


def test_missing_costs_more_than_a_false_alarm_of_the_same_size() -> None:
    settings = DynamicLoss(**{**OFF, "intensity": True}, miss=1.0)
    truth = dbz(40, 40)
    missed, alarmed = (of(settings, dbz(40, 40 + error), truth) for error in (-10, 10))
    weights = pixel_weights(dbz(30, 50), truth, settings, 1.0).flatten()
    assert float(weights[0]) == pytest.approx(2 * float(weights[1]))
    assert missed > alarmed
    weak = dbz(30, 30)
    assert of(settings, dbz(30, 25), weak) == pytest.approx(of(settings, dbz(30, 35), weak)), (
        "below 35 dBZ alike"
    )


def test_later_leads_count_more() -> None:
    settings = DynamicLoss(**{**OFF, "lead": True}, last_lead=3.0)
    truth = torch.zeros(1, 2, 4, 4)
    late, early = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
    late[:, 1], early[:, 0] = 1, 1
    assert of(settings, late, truth) == pytest.approx(3 * of(settings, early, truth))


def test_weights_grow_with_training() -> None:
    """At the beginning it is the squared error; after `ramp` of it the weights are full."""
    forecast, truth = torch.rand(1, 2, 8, 8), torch.rand(1, 2, 8, 8)
    settings, steady = DynamicLoss(ramp=0.5), DynamicLoss(epoch=False)
    assert of(settings, forecast, truth, progress=0) == pytest.approx(of(PLAIN, forecast, truth), rel=1e-5)
    assert of(settings, forecast, truth, progress=0.5) == pytest.approx(of(steady, forecast, truth))
    assert of(settings, forecast, truth, progress=0.9) == pytest.approx(of(steady, forecast, truth))


def test_differences_keep_structures() -> None:
    """A flat forecast of the right mean pays for what it has smoothed away."""
    truth = torch.zeros(1, 1, 8, 8)
    truth[..., ::2] = 1
    flat = torch.full_like(truth, 0.5)
    settings = DynamicLoss(**OFF, change=1.0)
    assert of(settings, flat, truth) == pytest.approx(0.25 + 0.5)
    assert of(settings, truth, truth) == 0
