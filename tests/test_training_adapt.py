"""Transfer in stages: each starts where the last one ended, trains its own part, and can be stopped anywhere."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from worlds import save_base, tiny_world

from fengwu_ghr.backbone import Architecture, architecture
from fengwu_ghr.checkpoint import Checkpoint, load_model
from fengwu_ghr.engine.torch_engine import Compute, TorchStepper
from fengwu_ghr.errors import InputError, Interrupted, UsageError
from fengwu_ghr.grid import NetworkGrid
from fengwu_ghr.initialise import build, wake
from fengwu_ghr.model_card import Statistics
from fengwu_ghr.rollout import Start, rollout
from fengwu_ghr.training import loop
from fengwu_ghr.training.adapt import adapt, check_fits, grow
from fengwu_ghr.training.dataset import FineSamples
from fengwu_ghr.training.fine import FineForecast
from fengwu_ghr.training.record import read_log
from fengwu_ghr.training.scores import Scores
from fengwu_ghr.training.stage import AdaptStage
from fengwu_ghr.training.world import World

TIME = datetime(2000, 7, 1)

QUICK: dict[str, Any] = {
    "samples": 3,
    "batch": 1,
    "learning_rate": 3e-3,
    "warmup_steps": 1,
    "precision": "float32",
    "average_decay": 0.0,
    "validate_every": 100,
    "save_every": 100,
}
RES: dict[str, Any] = {
    "kind": "res",
    "name": "res",
    "train": QUICK,
    "res": {"after": [1]},
    "validation_windows": 1,
}
SHARP = {key: value for key, value in RES.items() if key != "res"} | {
    "name": "sharp",
    "objective": "spectral",
}
LORA: dict[str, Any] = {
    "kind": "lora",
    "name": "lora",
    "train": QUICK,
    "adapters": {"rank": 2, "sets": 2, "group": 2},
    "replay": {"entries": 2, "lead_steps": 4},
    "validation_windows": 1,
}
TWO_AT_ONCE = LORA | {"train": QUICK | {"batch": 2, "samples": 6}}


class Listener:
    """Hears how training goes; with `stop_after` it asks the process to stop once so many steps are done."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.notes: list[str] = []
        self.stop_after = stop_after

    def note(self, text: str) -> None:
        self.notes.append(text)

    def begin(self, title: str, done: int, total: int) -> None: ...

    def stepped(self, done: int, facts: Mapping[str, float]) -> None:
        if done == self.stop_after:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module", autouse=True)
def _no_curves() -> Iterator[None]:
    """The loop's own tests look at its pictures; here they would take longer than the training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "draw_curves", lambda folder: None)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world(tmp_path_factory.mktemp("world") / "world", days=3)


def small(**changes: Any) -> Architecture:
    sizes = {"width": 16, "heads": 2, "decoder_width": 16, "depth": 2, "lora_steps": 0, "res_after": ()}
    return architecture("ghr-tiny", **({"scale": 20} | sizes | changes))


@pytest.fixture(scope="module")
def base(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(world, tmp_path_factory.mktemp("base") / "model", small())


@pytest.fixture(scope="module")
def res(world: World, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a RES stage."""
    return run(world, RES, base, tmp_path_factory.mktemp("res"))


def run(world: World, stage: Mapping[str, Any], base: Path, folder: Path, **listener: Any) -> Path:
    return adapt(world, AdaptStage.model_validate(stage), base, folder, Listener(**listener))


def weights(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in read_log(folder / "phase-1") if "loss" in entry]


def changed(folder: Path, base: Path) -> set[str]:
    """The parts in which a checkpoint has numbers that its base does not have."""
    ours, theirs = weights(folder), weights(base)
    names = {
        name for name, tensor in ours.items() if name in theirs and not torch.equal(tensor, theirs[name])
    }
    return {"adapters" if ".lora_" in name else name.split(".")[0] for name in names}


def states(world: World, count: int = 2) -> Tensor:
    samples = FineSamples(world, "train", in_memory=0)
    return torch.stack([torch.from_numpy(samples.state(0, index)) for index in range(count)])


def forecast_of(folder: Path, world: World) -> FineForecast:
    return FineForecast(load_model(Checkpoint.open(folder)), world)


# A fine step


def test_rows_beyond_the_poles_are_refilled_bit_for_bit(
    world: World, base: Path, rng: np.random.Generator
) -> None:
    """The grid's own rule, on numpy arrays, is the oracle; vectors have means, and change their sign."""
    given = rng.standard_normal((2, 69, *NetworkGrid(20).shape)).astype(np.float32)
    result = forecast_of(base, world).refilled(torch.from_numpy(given))
    is_vector = [channel.definition.is_vector for channel in world.channels.channels]
    sign, offset = world.statistics.normalisation.across_pole(is_vector)
    assert np.abs(offset).max() > 0.01
    expected = given.copy()
    for state in expected:
        NetworkGrid(20).refill_beyond_poles(state, sign=sign, offset=offset)
    np.testing.assert_array_equal(result.numpy(), expected)
    assert not np.array_equal(expected, given)


@pytest.mark.parametrize("split", ["pixel", "token"])
def test_steps_in_training_are_steps_of_the_rollout(world: World, tmp_path: Path, split: str) -> None:
    shape = small(split=split, res_after=(1,), lora_steps=2, lora_group=1)
    folder = save_base(world, tmp_path / "model", shape)
    stepper = TorchStepper(Checkpoint.open(folder), Compute())
    start = states(world, 1)
    expected = np.empty_like(start[0].numpy())
    for _ in rollout(stepper, Start(0, [start[0].numpy()], TIME), steps=3):
        stepper.get(expected)
    forecast, state = forecast_of(folder, world), start
    with torch.no_grad():
        for lead in range(3):
            state = forecast.step(state, lead, [TIME])
    np.testing.assert_allclose(state[0].numpy(), expected, atol=2e-5)
    assert (state - start).abs().mean() > 0.01


def test_a_gradient_flows_through_the_refilled_rows(world: World, base: Path) -> None:
    forecast = forecast_of(base, world)
    start = states(world, 1).requires_grad_()
    forecast.refilled(start)[0, world.channels.index("10u"), 0, 5].backward()
    half = start.shape[3] // 2
    assert start.grad[0, world.channels.index("10u"), 2, 5 + half] == -1
    assert start.grad.abs().sum() == 1


def test_scores_are_area_weighted_errors_in_physical_units(world: World, base: Path) -> None:
    """A model that persists: the error is the difference of two analyses, weighed row by row here."""
    forecast = forecast_of(base, world)
    torch.nn.init.zeros_(forecast.model.backbone.decoder.deconvolution.weight)
    samples = FineSamples(world, "validation", in_memory=0)
    with torch.no_grad():
        found = Scores(samples, 1, NetworkGrid(20)).of(forecast.step, forecast.device)
    assert set(found) == {f"{name} {hours} h" for name in ("z500", "t850", "2t", "u850") for hours in (6, 24)}
    channel, inner = world.channels.index("t850"), NetworkGrid(20).inner
    error = (samples.state(0, 4) - samples.state(0, 0))[channel, 1:-1].astype(np.float64)
    error *= world.statistics.normalisation.std[channel]
    expected = np.sqrt(np.sum(error**2 * inner.cell_areas()))
    assert found["t850 24 h"] == pytest.approx(expected, rel=1e-4)


# What a stage adds


def test_what_is_added_changes_nothing_at_first(world: World, base: Path) -> None:
    start, plain = states(world, 1), load_model(Checkpoint.open(base))
    with_res = grow(plain, AdaptStage.model_validate(RES).architecture(plain.architecture), seed=1)
    both = grow(with_res, AdaptStage.model_validate(LORA).architecture(with_res.architecture), seed=1)
    assert len(with_res.res) == 1
    assert with_res.res[0].phase is not None
    assert both.backbone.blocks[0].qkv.lora_a.shape == (2, 2, 16)
    with torch.no_grad():
        for step in (0, 7):
            expected = plain(start, step)
            assert torch.equal(with_res(start, step), expected)
            assert torch.equal(both(start, step), expected)
    wake(with_res, seed=5, tendency=0.05)
    again = grow(with_res, both.architecture)
    with torch.no_grad():
        assert torch.equal(again(start, 3), with_res(start, 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": 10, "res_window": (24, 48)}, "its scale is 20, not 10"),
        ({"channels": 74}, "its channels is 69, not 74"),
        ({"width": 32}, "its width is 16, not 32"),
        ({"res_after": ()}, r"its res_after is \(1,\), not \(\)"),
        ({"lora_steps": 5}, "its lora_steps is 2, not 5"),
    ],
)
def test_nothing_of_the_base_is_lost(changes: dict[str, Any], message: str) -> None:
    shape = small(res_after=(1,), lora_steps=2)
    with pytest.raises(UsageError, match=message):
        grow(build(shape), replace(shape, **changes))


@pytest.mark.parametrize(
    ("shape", "card", "message"),
    [
        ({"scale": 10}, {}, "its scale is 10, the world's 20"),
        ({"history": 2}, {}, "forecasts from 2 states"),
        ({}, {"trained": False}, "its weights are untrained"),
        ({}, {"registration": "pixel"}, "its registration is pixel"),
        ({}, {"step_hours": 12}, "its step is 12 h"),
    ],
)
def test_a_checkpoint_must_be_of_the_world(
    world: World, tmp_path: Path, shape: dict[str, Any], card: dict[str, Any], message: str
) -> None:
    folder = save_base(world, tmp_path / "model", small(**shape), **card)
    with pytest.raises(UsageError, match=message):
        check_fits(Checkpoint.open(folder), world)


def test_a_checkpoint_must_have_the_worlds_statistics(world: World, tmp_path: Path) -> None:
    statistics = Statistics.of(world.channels, world.statistics.normalisation)
    other = statistics.model_copy(update={"std": statistics.std | {"2t": 21.5}})
    folder = save_base(world, tmp_path / "model", small(), statistics=other)
    with pytest.raises(UsageError, match="statistics are not the world's; give a checkpoint pretrained on"):
        run(world, RES, folder, tmp_path / "out")


# RES


def test_res_blocks_learn_while_the_backbone_is_frozen(world: World, base: Path, tmp_path: Path) -> None:
    stage = RES | {"train": QUICK | {"samples": 14}}
    made = run(world, stage, base, tmp_path)
    assert changed(made, base) == set()
    assert any(name.startswith("res.") and tensor.abs().max() > 0 for name, tensor in weights(made).items())
    found = read_log(tmp_path / "phase-1")[-1]["validation"]
    before = {name for name in found if name.endswith(" before")}
    assert len(before) == len(found) / 2
    better = [found[name.removesuffix(" before")] < found[name] for name in before]
    assert np.mean(better) >= 0.75
    card = Checkpoint.open(made).card
    assert (card.name, card.trained, card.architecture.res_after) == ("res", True, (1,))
    assert "z500 24 h before" in card.provenance["validation RMSE"]


def test_a_frozen_backbone_has_no_gradients(
    world: World, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even intermediate ones: what enters the first RES block hangs on no graph."""
    from fengwu_ghr.training import adapt as module
    from fengwu_ghr.training.fine_tasks import task_of

    stage = AdaptStage.model_validate(RES)
    task = task_of(module._prepare(world, stage, Checkpoint.open(base)), phase=1)
    seen = []
    task.forecast.model.res[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].requires_grad))
    task.loss(range(1)).backward()
    assert seen == [False]
    with_gradient = {name.split(".")[0] for name, p in task.model.named_parameters() if p.grad is not None}
    assert with_gradient == {"res"}


def test_the_backbone_may_follow_at_a_small_rate(world: World, base: Path, tmp_path: Path) -> None:
    """AdamW's steps are as long as the rate, whatever the gradient: from zero on, no weight gets further."""
    stage = RES | {"base_rate": 0.01, "noise": 0.1, "train": QUICK | {"weight_decay": 0.0, "samples": 1}}
    made = run(world, stage, base, tmp_path)
    assert changed(made, base) == {"backbone"}
    ours, theirs = weights(made), weights(base)
    moved = max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
    assert moved == pytest.approx(0.01 * 3e-3, rel=0.02)
    assert ours["res.0.proj.weight"].abs().max() == pytest.approx(3e-3, rel=0.02)


def test_phases_follow_each_other(world: World, base: Path, tmp_path: Path) -> None:
    """The second phase starts with what the first left."""
    stage = RES | {"phases": [{}, {"rollout_steps": 2, "samples": 1, "learning_rate": 1e-9}]}
    made = run(world, stage, base, tmp_path)
    first, second = (load_file(tmp_path / f"phase-{n}" / "state.safetensors") for n in (1, 2))
    name = "average/res.0.proj.weight"
    torch.testing.assert_close(second[name], first[name], atol=1e-7, rtol=0)
    torch.testing.assert_close(weights(made)["res.0.proj.weight"], first[name], atol=1e-7, rtol=0)


def test_the_sharp_stage_goes_on_from_res_blocks(world: World, res: Path, tmp_path: Path) -> None:
    sharp = run(world, SHARP, res, tmp_path)
    assert changed(sharp, res) == {"res"}
    assert Checkpoint.open(sharp).card.name == "sharp"


def test_rollouts_must_fit_into_the_series(world: World, base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rollouts of 12 steps need series of 13 states"):
        run(world, RES | {"phases": [{"rollout_steps": 12}]}, base, tmp_path)


# Adapters


def test_adapters_learn_on_replayed_forecasts(world: World, res: Path, tmp_path: Path) -> None:
    made = run(world, LORA | {"train": QUICK | {"samples": 8}}, res, tmp_path)
    assert changed(made, res) == set()
    b = weights(made)["backbone.blocks.0.qkv.lora_b"]
    assert (b.abs().amax((1, 2)) > 0).all(), "both sets were reached"
    assert Checkpoint.open(made).architecture.lora_group == 2
    start, model = states(world, 1), load_model(Checkpoint.open(made))
    with torch.no_grad():
        results = [model(start, step) for step in range(5)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[2], results[3])
    assert torch.equal(results[3], results[4])
    assert not torch.equal(results[1], results[2])


@pytest.mark.parametrize("stage", [RES | {"noise": 0.1}, LORA], ids=["res", "lora"])
def test_a_stopped_stage_goes_on_as_if_it_had_not_been(
    world: World, base: Path, tmp_path: Path, stage: dict[str, Any]
) -> None:
    whole = run(world, stage, base, tmp_path / "whole")
    with pytest.raises(Interrupted, match=r"stopped after step \d of 3"):
        run(world, stage, base, tmp_path / "cut", stop_after=2)
    resumed = run(world, stage, base, tmp_path / "cut")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "cut")) == 3
    ours, theirs = weights(resumed), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_finished_stage_stays_and_another_is_refused(world: World, base: Path, res: Path) -> None:
    digest = Checkpoint.open(res).digest
    listener = Listener()
    assert adapt(world, AdaptStage.model_validate(RES), base, res.parent, listener) == res
    assert listener.notes == [f"{res} is trained already"]
    assert Checkpoint.open(res).digest == digest
    with pytest.raises(UsageError, match="made with other settings, of another base"):
        run(world, RES | {"seed": 1}, base, res.parent)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (RES | {"adapters": {"rank": 3}}, "kind res has no use for adapters"),
        (LORA | {"base_rate": 0.1}, "kind lora has no use for base_rate"),
        (LORA | {"phases": [{"rollout_steps": 2}]}, "a single step at a time.*got rollout_steps = 2"),
        (
            LORA | {"train": {"batch": 3, "samples": 3}},
            "replay.entries must hold a batch of 3 or more; got 2",
        ),
        (RES | {"objective": "mae"}, "objective"),
        (RES | {"rank": 3}, "Extra inputs"),
    ],
)
def test_stages_are_checked(stage: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaptStage.model_validate(stage)


def test_parts_that_do_not_fit_are_the_users_mistake(world: World, base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"stage res adds does not fit.*rising block numbers in res_after"):
        run(world, RES | {"res": {"after": [3, 1]}}, base, tmp_path)


@pytest.mark.slow
def test_two_ranks_replay_what_one_replays(world: World, base: Path, tmp_path: Path) -> None:
    run(world, TWO_AT_ONCE, base, tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meet = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(world.folder), str(base), str(tmp_path / "two")]
    ranks = [
        subprocess.Popen(command, env=os.environ | meet | {"RANK": str(rank)}, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=120)[1].decode() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


if __name__ == "__main__":
    run(World.open(Path(sys.argv[1])), TWO_AT_ONCE, Path(sys.argv[2]), Path(sys.argv[3]))
