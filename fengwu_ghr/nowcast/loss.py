"""What an error of a nowcast costs: squared errors with weights by training progress, intensity and lead.

After the idea of the Meteorologically-Aware Dynamic Loss (Cui et al. 2026, arXiv 2604.24224), whose constants are not
public: those here are ours. Each of the three levels can be switched off; with none it is the mean squared error.
"""

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from fengwu_ghr.config import Section
from fengwu_ghr.nowcast.model import SCALE


class DynamicLoss(Section):
    """The levels of the loss and their constants."""

    epoch: bool = True
    """Weights grow from none to full over the first part of training; else they are full from the beginning."""
    intensity: bool = True
    """Strong echoes count more, and missing them more than raising false alarms."""
    lead: bool = True
    """Later leads count more."""
    ramp: float = Field(0.4, gt=0, le=1)
    """The share of training after which `epoch` has brought the weights to full."""
    thresholds: tuple[float, ...] = (20.0, 30.0, 35.0, 40.0, 45.0)
    """dBZ, at each of which the weight of a pixel rises."""
    rises: tuple[float, ...] = (1.0, 1.0, 2.0, 4.0, 4.0)
    """By how much, on top of 1."""
    miss: float = Field(0.5, ge=0)
    """By this share more where an echo of 35 dBZ or more is forecast too weak."""
    last_lead: float = Field(1.6, gt=0)
    """The weight of two hours; that of now is 1."""
    change: float = Field(0.0, ge=0)
    """Weight of absolute errors of differences between neighbouring pixels, which keep structures sharp."""

    @property
    def is_plain(self) -> bool:
        """Whether nothing but the mean squared error is left."""
        return not (self.intensity or self.lead or self.change)


PLAIN = DynamicLoss(epoch=False, intensity=False, lead=False)
"""The mean squared error."""
SOFTNESS, SEVERE = 1.0, 35.0
"""dBZ: over which a weight rises at its threshold; from which a miss costs more."""

Leads = Float[Tensor, "batch lead row column"]


def dynamic_loss(
    forecast: Leads,
    truth: Leads,
    known: Bool[Tensor, "batch lead row column"],
    *,
    settings: DynamicLoss,
    progress: float,
    places: Float[Tensor, "batch lead"],
) -> Float[Tensor, ""]:
    """The weighted mean squared error where the truth is known, over the mean weight; zero where nothing is known.

    Fields are dBZ over SCALE. `progress` is the share of training done, `places` says how late
    each lead is, from 0 now to 1 at two hours. Dividing by the mean weight keeps the size of gradients that of the
    plain error.
    """
    shown = known.float()
    strength = min(1.0, progress / settings.ramp) if settings.epoch else 1.0
    weight = shown * pixel_weights(forecast, truth, settings, strength)
    if settings.lead:
        weight = weight * (1 + strength * (settings.last_lead - 1) * places)[..., None, None]
    loss = (weight * (forecast - truth).square()).sum() / weight.sum().clamp(min=1)
    return loss + settings.change * _difference_error(forecast, truth, shown) if settings.change else loss


def pixel_weights(forecast: Leads, truth: Leads, settings: DynamicLoss, strength: float) -> Leads:
    """1, and up to 13 where the truth is intense; half as much again where it is severe and missed."""
    if not settings.intensity:
        return torch.ones_like(truth)
    echo = truth * SCALE
    weight = torch.ones_like(truth)
    for threshold, rise in zip(settings.thresholds, settings.rises, strict=True):
        weight = weight + strength * rise * torch.sigmoid((echo - threshold) / SOFTNESS)
    missed = (forecast.detach() < truth) & (echo >= SEVERE)
    return weight * (1 + strength * settings.miss * missed)


def _difference_error(forecast: Leads, truth: Leads, known: Leads) -> Float[Tensor, ""]:
    """The mean absolute error of differences along rows and columns, of pairs that are both known."""
    total = forecast.new_zeros(())
    for axis in (-1, -2):
        both = known.narrow(axis, 1, known.shape[axis] - 1) * known.narrow(axis, 0, known.shape[axis] - 1)
        error = (forecast.diff(dim=axis) - truth.diff(dim=axis)).abs()
        total = total + (both * error).sum() / both.sum().clamp(min=1)
    return total / 2
