"""Training: on generated storms it learns something in seconds, and a stop changes no weight."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from fengwu_ghr.errors import Interrupted, UsageError
from fengwu_ghr.nowcast.train import NowcastSettings, NowcastTask, train_nowcast
from fengwu_ghr.nowcast.weights import NowcastModel
from fengwu_ghr.progress import Silence
from fengwu_ghr.training.record import read_log

TINY: dict[str, Any] = {
    "name": "smoke",
    "network": {"stem": 4, "hidden": 8, "width": 16, "depth": 1, "leads": 12, "advection": True},
    "storms": 64,
    "crop": 32,
    "leads": 3,
    "validation_windows": 4,
    "train": {
        "samples": 64, "batch": 4, "learning_rate": 5e-3, "warmup_steps": 3, "average_decay": 0.8,
        "precision": "float32", "threads": 1, "validate_every": 8, "save_every": 4,
    },
}  # fmt: skip


def settings(**changes: Any) -> NowcastSettings:
    return NowcastSettings.model_validate({**TINY, **changes})


class Halting(Silence):
    """Stops training after so many steps, as Ctrl-C would."""

    def __init__(self, after: int) -> None:
        self.after = after

    def stepped(self, done: int, facts: Any) -> None:
        if done == self.after:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)


def test_it_learns_and_a_stop_changes_nothing(tmp_path: Path) -> None:
    plain = settings(plain_loss=True)
    whole = NowcastModel.open(train_nowcast(plain, tmp_path / "whole", Silence()))
    checks = [entry["validation"] for entry in read_log(tmp_path / "whole") if "validation" in entry]
    assert checks[-1]["mse over no change"] < 0.97, "better than carrying the last frame along"
    assert checks[-1]["mse over no change"] < checks[0]["mse over no change"]
    with pytest.raises(Interrupted):
        train_nowcast(plain, tmp_path / "parts", Halting(6))
    parts = NowcastModel.open(train_nowcast(plain, tmp_path / "parts", Silence()))
    for name, tensor in whole.network().state_dict().items():
        assert torch.equal(tensor, parts.network().state_dict()[name]), name
    assert whole.card.provenance["loss"] == "mean squared error"
    assert whole.card.provenance["trained on"] == "generated storms"
    assert (whole.card.shortest_step_minutes, whole.card.longest_step_minutes) == (5, 10)
    with pytest.raises(UsageError, match="made with other settings"):
        train_nowcast(settings(seed=1, plain_loss=True), tmp_path / "whole", Silence())
    assert train_nowcast(plain, tmp_path / "whole", Silence()) == tmp_path / "whole" / "model"


def test_the_dynamic_loss_forecasts_more_strong_echoes() -> None:
    """The same weights, sample and seed: with weights on intense pixels the pull is upward where echoes are missed."""
    numbers = range(40, 64)  # late in training, when the weights have grown
    pulls = []
    for plain in (True, False):
        task = NowcastTask(settings(plain_loss=plain))
        task.loss(numbers).backward()
        bias = task.network.decoder.read.bias.grad
        assert bias is not None
        pulls.append(float(-bias))
    assert pulls[1] > pulls[0]


def test_it_goes_on_from_a_checkpoint_of_the_same_network(tmp_path: Path) -> None:
    few = {**TINY["train"], "samples": 8}
    first = train_nowcast(settings(train=few, storms=8), tmp_path / "first", Silence())
    task = NowcastTask(settings(start=first, name="second"))
    for name, tensor in NowcastModel.open(first).network().state_dict().items():
        assert torch.equal(tensor, task.network.state_dict()[name])
    with pytest.raises(UsageError, match="give the same network"):
        NowcastTask(settings(start=first, network={**TINY["network"], "translator": "tau"}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"crop": 34}, "multiple of 4"),
        ({"storms": 5}, "all samples are of generated storms"),
        ({"colour": "red"}, "extra"),
        ({"loss": {"ramp": 0}}, "greater than 0"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        settings(**changes)
