"""Forcings: the sun against closed formulas, the split, and the way from training to the engine."""

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from worlds import tiny_world

from fengwu_ghr.backbone import Architecture, architecture
from fengwu_ghr.checkpoint import Checkpoint, load_model
from fengwu_ghr.console import StepProgress
from fengwu_ghr.engine.torch_engine import Compute, TorchStepper, flops_per_step
from fengwu_ghr.forcing import FORCINGS, ForcingFields, mean_cosine_of_zenith
from fengwu_ghr.grid import NetworkGrid, backbone_grid
from fengwu_ghr.initialise import build, wake
from fengwu_ghr.training.adapt import adapt
from fengwu_ghr.training.forcings import coarse_forcings, network_static
from fengwu_ghr.training.pretrain import PretrainSettings, pretrain
from fengwu_ghr.training.sources import CoarseForecast, InitialDate, TransferredForecast
from fengwu_ghr.training.stage import AdaptStage
from fengwu_ghr.training.world import World
from fengwu_ghr.transfer import TransferModel

LATITUDE, LONGITUDE = np.linspace(90, -90, 37), np.arange(72) * 5.0
TRAIN = {"samples": 4, "batch": 2, "warmup_steps": 1, "precision": "float32", "threads": 1}
BACKBONE = {
    "size": "ghr-tiny",
    "width": 16,
    "depth": 4,
    "heads": 2,
    "decoder_width": 16,
    "forcings": FORCINGS,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = tiny_world(tmp_path_factory.mktemp("told") / "world", days=3)
    np.save(world.folder / "land_mask.npy", (world.orography > 0).astype(np.float32))
    return world


@pytest.fixture(scope="module")
def backbone(world: World) -> Path:
    settings = PretrainSettings.model_validate(
        {"backbone": BACKBONE, "train": TRAIN, "validation_windows": 1}
    )
    return pretrain(world, settings, world.folder.parent / "backbone", StepProgress(quiet=True))


def small(**changes: object) -> Architecture:
    sizes = {"width": 16, "heads": 2, "decoder_width": 16, "depth": 2, "lora_steps": 0, "res_after": ()}
    return architecture("ghr-tiny", **({"scale": 20, "forcings": FORCINGS} | sizes | changes))


def awake(**changes: object) -> TransferModel:
    model = build(small(**changes), seed=1)
    wake(model, seed=1, tendency=0.1)
    torch.nn.init.uniform_(model.static, generator=torch.Generator().manual_seed(2))
    return model


@pytest.mark.parametrize(
    ("day", "declination"), [("2001-03-20", 0), ("2001-06-21", 23.44), ("2001-11-02", -14.7)]
)
def test_the_daily_mean_is_that_of_the_textbook(day: str, declination: float) -> None:
    """(h0 sin φ sin δ + cos φ cos δ sin h0) / π, with the declination of the almanac."""
    begin = datetime.fromisoformat(day)
    quarters = [
        mean_cosine_of_zenith(LATITUDE, LONGITUDE, begin=begin + timedelta(hours=6 * i), hours=6)
        for i in range(4)
    ]
    phi, delta = np.deg2rad(LATITUDE), np.deg2rad(declination)
    sunset = np.arccos(np.clip(-np.tan(phi) * np.tan(delta), -1, 1))
    expected = sunset * np.sin(phi) * np.sin(delta) + np.cos(phi) * np.cos(delta) * np.sin(sunset)
    found = np.mean(quarters, axis=0)
    np.testing.assert_allclose(found, np.repeat(expected[:, None] / np.pi, 72, axis=1), atol=0.006)


def test_noon_is_where_the_sun_is() -> None:
    sun = mean_cosine_of_zenith(LATITUDE, LONGITUDE, begin=datetime(2001, 3, 20, 3), hours=6)
    assert LONGITUDE[sun[18].argmax()] == pytest.approx(90, abs=2.5)  # 06 UTC in the middle of the step
    assert sun[18, LONGITUDE == 270] == 0
    assert sun.min() == 0
    assert sun.max() < 1


def test_rows_beyond_the_poles_lie_behind_the_poles() -> None:
    fields = ForcingFields(("insolation",), torch.empty(0, 111, 216), NetworkGrid(20), 6)
    (sun,) = fields.at([datetime(2001, 1, 5, 6)])[0]
    for outer, inner in ((0, 2), (-1, -3)):
        np.testing.assert_allclose(sun[outer], np.roll(sun[inner], 108), atol=1e-6)
    coarse = ForcingFields(("insolation",), torch.empty(0, 37, 72), backbone_grid(20), 6)
    assert torch.allclose(coarse.at([datetime(2001, 1, 5, 6)])[0, 0], sun[1::3, 1::3], atol=1e-6)


def test_forcings_come_once_and_in_order() -> None:
    with pytest.raises(ValueError, match="forcings once each, in the order orography, land_mask, insolation"):
        small(forcings=("insolation", "orography"))


def test_a_model_is_told_what_it_asks_for_and_nothing_else() -> None:
    states = torch.zeros(1, 69, 37, 72)
    with pytest.raises(ValueError, match="the network needs the forcings"):
        awake().backbone(states, 0)
    with pytest.raises(ValueError, match="the network needs the forcings"):
        build(small(forcings=())).backbone(states, 0, torch.zeros(1, 3, 37, 72))


def test_forcings_are_split_like_the_state() -> None:
    model, rng = awake(), torch.Generator().manual_seed(3)
    states, told = torch.randn(1, 69, 111, 216, generator=rng), torch.rand(1, 3, 111, 216, generator=rng)
    with torch.no_grad():
        whole = model(states, 0, told)
        for a in range(3):
            for b in range(3):
                alone = model.backbone(states[:, :, a::3, b::3], 0, told[:, :, a::3, b::3])
                np.testing.assert_allclose(whole[:, :, a::3, b::3], alone, atol=2e-5)
        changed = model(states, 0, 1 - told)
    assert (changed - whole).abs().mean() > 1e-3


@pytest.mark.parametrize("split", ["pixel", "token"])
@pytest.mark.parametrize("batch", [9, 1])
def test_stages_are_told_what_the_whole_is_told(split: str, batch: int) -> None:
    model, rng = awake(split=split), torch.Generator().manual_seed(3)
    state = torch.randn(69, 111, 216, generator=rng)
    told = model.forcing_fields(NetworkGrid(20), step_hours=6).at([datetime(2001, 7, 1)])
    found = torch.empty_like(state)
    with torch.no_grad():
        expected = model(state[None], 0, told)[0]
        tokens = model.tokens_of([state], forcing=told[0], batch=batch)
        model.write_next(found, state, tokens=model.advance(tokens, step=0, batch=batch), batch=batch)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_operations_are_counted_with_forcings() -> None:
    assert flops_per_step(small()) > flops_per_step(small(forcings=()))


def test_static_forcings_are_those_of_the_world(world: World) -> None:
    fields = coarse_forcings(world, FORCINGS).at([datetime(2000, 1, 1)])[0]
    assert fields.shape == (3, 37, 72)
    mean = np.sum(world.orography * world.fine_grid.cell_areas()) / 9806.65
    assert float((fields[0].numpy() * world.coarse_grid.cell_areas()).sum()) == pytest.approx(mean, rel=1e-3)
    assert set(np.unique(world.land_mask)) == {0, 1}
    static = network_static(world, ("land_mask", "insolation"))
    assert static.shape == (1, 111, 216)
    assert coarse_forcings(world, ()) is None


def test_a_checkpoint_carries_its_static_forcings(world: World, backbone: Path) -> None:
    checkpoint = Checkpoint.open(backbone)
    assert checkpoint.architecture.forcings == FORCINGS
    assert "static.safetensors" in checkpoint.card.files
    assert torch.equal(load_model(checkpoint).static, network_static(world, FORCINGS))


def test_the_engine_knows_the_valid_time(world: World, backbone: Path) -> None:
    """Two steps from one time are a step from it and a step from six hours later; another season is another sun."""
    model, rng = load_model(Checkpoint.open(backbone)), np.random.default_rng(0)
    state, begun = rng.standard_normal((69, 111, 216), np.float32), datetime(2001, 7, 1)

    def run(time: datetime, steps: int) -> np.ndarray:
        stepper, out = TorchStepper(Checkpoint.open(backbone), Compute(batch=9)), np.empty_like(state)
        stepper.put([state], time)
        for step in range(steps):
            stepper.step(step)
        stepper.get(out)
        return out

    fields = model.forcing_fields(NetworkGrid(20), step_hours=6)
    with torch.no_grad():
        expected = model(torch.from_numpy(state)[None], 0, fields.at([begun]))[0].numpy()
    inner = slice(1, -1)
    np.testing.assert_allclose(run(begun, 1)[:, inner], expected[:, inner], atol=2e-5)
    assert np.abs(run(begun, 2) - run(begun + timedelta(days=180), 2)).max() > 1e-6


def test_transfer_and_evidence_are_told_too(world: World, backbone: Path, tmp_path: Path) -> None:
    stage = AdaptStage.model_validate(
        {"kind": "res", "name": "told", "train": TRAIN, "validation_windows": 1}
    )
    adapted = adapt(world, stage, backbone, tmp_path / "res", StepProgress(quiet=True))
    date = InitialDate("test", 0, 0)
    for source in (CoarseForecast(world, backbone), TransferredForecast(world, adapted)):
        (state,) = source.states(date, 1)
        assert np.isfinite(state).all()


def test_strided_samples_have_no_forcings() -> None:
    with pytest.raises(ValueError, match="with coarsening = strided give none"):
        PretrainSettings.model_validate({"backbone": BACKBONE, "coarsening": "strided"})
