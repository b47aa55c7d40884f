"""The optimiser loop on a small regression: what it learns, and that nothing which stops it changes a number."""

import atexit
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fengwu_ghr.errors import Interrupted, UsageError
from fengwu_ghr.training.dataset import draw, noise_generator
from fengwu_ghr.training.loop import Task, TrainSettings, run_loop
from fengwu_ghr.training.record import last_validation, read_log

SAMPLES = 40
CPU = torch.device("cpu")


class Regression(Task):
    """y = W x + b + noise, with 2 layers of which the first is frozen; `halt` steps in at the given sample."""

    def __init__(self, halt: Mapping[int, Any] | None = None, slope: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(SAMPLES, 5, generator=generator)
        self.y = self.x @ torch.randn(5, 3, generator=generator) + 2.0
        self.model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 3))
        for layer in self.model:
            layer.weight.data = torch.eye(*layer.weight.shape)
            layer.bias.data.zero_()
        self.model[0].requires_grad_(False)
        self.halt, self.slope, self.seen = dict(halt or {}), slope, 0

    def loss(self, numbers: range) -> Tensor:
        index = [draw(n, count=SAMPLES, stream=(1,)) for n in numbers]
        noise = torch.stack(
            [torch.randn(5, generator=noise_generator(n, stream=(1,), device=CPU)) for n in numbers]
        )
        for number in numbers:
            self.halt.pop(number, lambda: None)()
        self.seen += len(numbers)
        return self.slope * (self.model(self.x[index] + 0.01 * noise) - self.y[index]).square().mean()

    def validate(self) -> dict[str, float]:
        return {"mse": float((self.model(self.x) - self.y).square().mean())}

    def describe(self) -> dict[str, Any]:
        return {"slope": self.slope}

    def memory(self) -> dict[str, Tensor]:
        return {"seen": torch.tensor(float(self.seen))}

    def recall(self, memory: Mapping[str, Tensor]) -> None:
        self.seen = int(memory["seen"])


class Listener:
    """Keeps what it hears, and the weights after every step."""

    def __init__(self, task: Regression | None = None) -> None:
        self.notes: list[str] = []
        self.begun: list[tuple[str, int, int]] = []
        self.weights: list[Tensor] = []
        self.task = task

    def note(self, text: str) -> None:
        self.notes.append(text)

    def begin(self, title: str, done: int, total: int) -> None:
        self.begun.append((title, done, total))

    def stepped(self, done: int, facts: Mapping[str, float]) -> None:
        assert set(facts) == {"loss", "rate", "gradient", "samples/s"}
        if self.task is not None:
            self.weights.append(self.task.model[1].weight.detach().clone())


def settings(**changes: Any) -> TrainSettings:
    fixed = {
        "samples": 96,
        "batch": 4,
        "learning_rate": 0.1,
        "warmup_steps": 3,
        "precision": "float32",
        "validate_every": 8,
        "save_every": 5,
        "average_decay": 0.9,
        "weight_decay": 0.0,
        "threads": 1,
    }
    return TrainSettings(**(fixed | changes))


def train(folder: Path, task: Regression | None = None, **changes: Any) -> Regression:
    task = task or Regression()
    run_loop(task, settings(**changes), folder, Listener())
    return task


def test_a_regression_is_learned(tmp_path: Path) -> None:
    """Least squares, the exact solution, is the oracle."""
    task = train(tmp_path / "run", samples=4000, batch=20, learning_rate=0.05, validate_every=500)
    ones = torch.cat([task.x, torch.ones(SAMPLES, 1)], dim=1)
    exact = torch.linalg.lstsq(ones, task.y).solution
    assert torch.allclose(task.model[1].weight.T, exact[:5], atol=0.02)
    assert torch.allclose(task.model[1].bias, exact[5], atol=0.02)


def test_what_needs_no_gradient_is_neither_trained_nor_saved(tmp_path: Path) -> None:
    task = train(tmp_path / "run")
    assert torch.equal(task.model[0].weight, torch.eye(5))
    names = load_file(tmp_path / "run" / "state.safetensors")
    assert {name.split("/")[1] for name in names} == {"1.weight", "1.bias", "seen"}


def test_the_folder_tells_the_course_of_training(tmp_path: Path) -> None:
    task, folder = Regression(), tmp_path / "run"
    listener = Listener(task)
    run_loop(task, settings(), folder, listener)
    log = read_log(folder)
    assert [entry["step"] for entry in log if "loss" in entry] == list(range(1, 25))
    assert [entry["step"] for entry in log if "validation" in entry] == [8, 16, 24]
    with torch.no_grad():
        assert last_validation(folder) == {"mse": pytest.approx(task.validate()["mse"])}
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert listener.begun == [("run", 0, 24)]
    assert any("mse" in note for note in listener.notes)


def test_what_is_kept_is_the_running_mean_of_the_weights(tmp_path: Path) -> None:
    task = Regression()
    first = task.model[1].weight.detach().clone()
    listener = Listener(task)
    run_loop(task, settings(validate_every=7), tmp_path / "run", listener)
    mean = first
    for step, weight in enumerate(listener.weights):
        decay = min(0.9, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * weight
    assert torch.allclose(task.model[1].weight, mean, atol=1e-6)
    assert not torch.allclose(listener.weights[-1], mean, atol=1e-4)


def test_rates_rise_linearly_and_fall_to_a_fiftieth() -> None:
    plan = settings(samples=4000, warmup_steps=10, learning_rate=0.5)
    rates = [plan.rate_at(step) for step in range(plan.steps)]
    assert rates[:10] == pytest.approx([0.05 * (step + 1) for step in range(10)])
    assert np.argmax(rates) in (9, 10)
    assert np.all(np.diff(rates[10:]) < 0)
    assert rates[-1] == pytest.approx(0.02 * 0.5, rel=0.01)
    half = 10 + (plan.steps - 10) // 2
    assert rates[half] == pytest.approx(0.5 * (1 + 0.02) / 2, rel=0.01)


def test_matrices_decay_and_vectors_do_not(tmp_path: Path) -> None:
    """Without a gradient AdamW multiplies by 1 - rate x decay at every step."""
    task = Regression(slope=0.0)
    task.model[1].bias.data += 3
    run_loop(task, settings(weight_decay=0.1, average_decay=0.0), tmp_path / "run", Listener())
    shrunk = np.prod([1 - 0.1 * settings().rate_at(step) for step in range(24)])
    assert torch.allclose(task.model[1].weight, shrunk * torch.eye(3, 5), atol=1e-6)
    assert torch.equal(task.model[1].bias, torch.full((3,), 3.0))


# Stopping and resuming


def assert_same_run(folder: Path, other: Path) -> None:
    assert (folder / "log.jsonl").read_text() == (other / "log.jsonl").read_text()
    ours, theirs = (load_file(path / "state.safetensors") for path in (folder, other))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path: Path, number: signal.Signals) -> None:
    whole = train(tmp_path / "whole")
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="stopped after step 8 of 24"):
        train(tmp_path / "cut", Regression({31: lambda: os.kill(os.getpid(), number)}))
    assert signal.getsignal(number) == before
    resumed, listener = Regression(), Listener()
    run_loop(resumed, settings(), tmp_path / "cut", listener)
    assert listener.begun == [("cut", 8, 24)]
    assert resumed.seen == 96
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    assert torch.equal(resumed.model[1].weight, whole.model[1].weight)


def test_a_run_that_broke_goes_on_from_the_last_save(tmp_path: Path) -> None:
    """As after kill -9: nothing is saved on the way out, and the log has got ahead of the state."""

    def fail() -> None:
        raise RuntimeError("power cut")

    train(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path / "cut", Regression({70: fail}))
    assert read_log(tmp_path / "cut")[-1]["step"] == 17
    with open(tmp_path / "cut" / "log.jsonl", "a") as log:
        log.write('{"step": 18, "lo')
    train(tmp_path / "cut")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_a_finished_run_is_only_loaded(tmp_path: Path) -> None:
    trained = train(tmp_path / "run")
    again = train(tmp_path / "run", Regression({0: lambda: pytest.fail("it trains again")}))
    assert torch.equal(again.model[1].weight, trained.model[1].weight)
    assert len(read_log(tmp_path / "run")) == 24 + 3


def test_a_resumed_run_must_have_the_settings_it_began_with(tmp_path: Path) -> None:
    train(tmp_path / "run")
    with pytest.raises(UsageError, match=r"train\.learning_rate was 0\.1, is 0\.2"):
        train(tmp_path / "run", learning_rate=0.2)
    with pytest.raises(UsageError, match=r"task\.slope was 1\.0, is 2\.0; give the former"):
        train(tmp_path / "run", Regression(slope=2.0))
    train(tmp_path / "run", save_every=7, validate_every=9)


def test_a_damaged_state_is_an_error(tmp_path: Path) -> None:
    train(tmp_path / "run")
    path = tmp_path / "run" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UsageError, match="cannot be resumed from"):
        train(tmp_path / "run")


def test_a_diverging_run_stops(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="diverged: at step 1 the loss is nan"):
        train(tmp_path / "run", Regression(slope=float("nan")))
    assert read_log(tmp_path / "run") == []


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="fill one batch of 8"):
        TrainSettings(samples=4, batch=8)
    with pytest.raises(ValueError, match="Extra inputs"):
        TrainSettings(sample=4)


# Several ranks


def test_two_ranks_learn_what_one_learns(tmp_path: Path) -> None:
    train(tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meet = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path / "two")]
    ranks = [
        subprocess.Popen(command, env=os.environ | meet | {"RANK": str(rank)}, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=120)[1].decode() for rank in ranks]
    assert ([rank.returncode for rank in ranks], said) == ([0, 0], ["", ""])
    one, two = (read_log(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) == 27
    for ours, theirs in zip(one, two):
        assert theirs == pytest.approx(ours, rel=1e-4) if "loss" in ours else theirs.keys() == ours.keys()


def test_ranks_must_divide_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fengwu_ghr.training import loop

    alone = loop.Ranks(0, 3, CPU)
    monkeypatch.setattr(loop.Ranks, "join", lambda device: alone)
    with pytest.raises(UsageError, match="3 ranks must divide the batch of 4"):
        train(tmp_path / "run")


def say_what_still_runs() -> None:
    names = {task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")}
    if left := [name for name in names if "gloo" in name]:
        print(f"{left} outlive their group", file=sys.stderr)


if __name__ == "__main__":
    atexit.register(say_what_still_runs)  # registered first, called last
    train(Path(sys.argv[1]))
