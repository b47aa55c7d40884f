"""Downscaling: it starts at interpolation and climatological detail, learns what they lack, and knows the sphere."""

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from worlds import tiny_world

from fengwu_ghr.backbone import architecture
from fengwu_ghr.errors import UsageError
from fengwu_ghr.grid import NetworkGrid, backbone_grid, product_grid
from fengwu_ghr.initialise import build
from fengwu_ghr.progress import Silence
from fengwu_ghr.regrid import Regridder
from fengwu_ghr.training.dataset import FineSamples, draw
from fengwu_ghr.training.downscale import (
    DownscaleSettings,
    DownscaleTask,
    Downscaling,
    Interpolation,
    Pairs,
    Refiner,
    SeasonalDetail,
    around_the_sphere,
    train_downscaling,
)
from fengwu_ghr.training.losses import LossSettings, LossWeights
from fengwu_ghr.training.normals import Normals
from fengwu_ghr.training.record import read_log
from fengwu_ghr.training.world import World

TRAIN: dict[str, Any] = {
    "samples": 6,
    "batch": 2,
    "learning_rate": 3e-3,
    "warmup_steps": 1,
    "precision": "float32",
    "average_decay": 0.0,
}
DAY = datetime(2000, 3, 1)
SETTINGS = DownscaleSettings(width=8, blocks=1, validation_states=3, train=TRAIN)


@pytest.fixture(scope="module")
def trained(
    world: World, normals: Normals, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Downscaling, Path]:
    folder = tmp_path_factory.mktemp("downscaling")
    train_downscaling(world, normals, SETTINGS, folder, Silence())
    return Downscaling.load(folder, world, normals), folder


def noisy(refiner: Refiner) -> Refiner:
    torch.nn.init.normal_(refiner.last.weight, generator=torch.Generator().manual_seed(1))
    return refiner


def test_a_field_goes_on_beyond_the_edges_of_its_grid() -> None:
    """An analytic field beyond the poles: latitude 90 + x at longitude y is 90 - x at y + 180."""

    def field(latitude: np.ndarray, longitude: np.ndarray) -> torch.Tensor:
        y, x = np.deg2rad(latitude)[:, None], np.deg2rad(longitude)[None]
        return torch.from_numpy(
            np.sin(y) + np.cos(y) * np.sin(y) * np.cos(x) + np.cos(y) ** 2 * np.sin(2 * x)
        )

    grid = backbone_grid(20)
    wider = around_the_sphere(field(grid.latitude, grid.longitude)[None, None])[0, 0]
    beyond = np.linspace(95, -95, 39), np.linspace(-5, 360, 74)
    torch.testing.assert_close(wider, field(*beyond), atol=1e-12, rtol=0)


def test_nothing_is_added_at_first() -> None:
    added = Refiner(3, (37, 72), width=4, blocks=2)(torch.randn(2, 3, 37, 72))
    assert added.shape == (2, 3, 111, 216)
    assert not added.any()


def test_weather_is_refined_alike_at_all_longitudes() -> None:
    """Until places have learned features of their own: a state turned by 7 columns gives one turned by 21."""
    refiner, coarse = noisy(Refiner(2, (37, 72), width=4, blocks=1)), torch.randn(1, 2, 37, 72)
    turned = refiner(coarse.roll(7, dims=3))
    torch.testing.assert_close(turned, refiner(coarse).roll(21, dims=3), atol=1e-5, rtol=1e-5)


def test_a_coarse_point_changes_only_what_is_near() -> None:
    """Four layers of 3 x 3: nothing further than four coarse rows away, and the nine around the point itself do."""
    refiner, coarse = noisy(Refiner(1, (37, 72), width=4, blocks=1)), torch.zeros(1, 1, 37, 72)
    touched = coarse.clone()
    touched[0, 0, 18, 30] = 1
    rows, columns = (refiner(touched) != refiner(coarse))[0, 0].nonzero().T
    assert (rows.min(), rows.max()) == (3 * 14, 3 * 22 + 2)
    assert (columns.min(), columns.max()) == (3 * 26, 3 * 34 + 2)


def test_by_default_it_is_as_large_as_the_res_blocks_it_is_compared_with() -> None:
    shape = architecture("ghr-small", scale=20, width=256, depth=8, lora_steps=0)
    res = sum(parameter.numel() for parameter in build(shape).res.parameters())
    settings = DownscaleSettings()
    refiner = Refiner(69, (37, 72), width=settings.width, blocks=settings.blocks)
    assert sum(parameter.numel() for parameter in refiner.parameters()) == pytest.approx(res, rel=0.1)


def detail_on_the_fine_grid(world: World, channel: int) -> np.ndarray:
    """What interpolation to the product grid at once lacks, the mean of all training states."""
    regridder = Regridder(backbone_grid(20), product_grid(20))
    details: list[np.ndarray] = []
    for part in world.series("train"):
        coarse = (regridder.apply(part.coarse(index)[channel]) for index in range(len(part)))
        details += [part.fine(index)[channel] - field for index, field in enumerate(coarse)]
    return np.mean(details, axis=0)


def test_without_the_network_it_is_interpolation_and_mean_detail(
    world: World, trained: tuple[Downscaling, Path]
) -> None:
    """The detour over the network grid smooths the detail, white noise here, and changes nothing else."""
    coarse, channel = world.series("train")[0].coarse(5), world.channels.index("t850")
    detail = detail_on_the_fine_grid(world, channel)
    plain = Regridder(backbone_grid(20), product_grid(20)).apply(coarse[channel])
    added = trained[0].apply(coarse, DAY, refined=False)[channel] - plain
    assert np.corrcoef(added.ravel(), detail.ravel())[0, 1] > 0.9
    assert np.std(added - detail) < 0.5 * np.std(detail)
    assert abs(np.mean(added - detail)) < 0.02 * np.std(detail)


def test_a_refiner_learns_detail_that_the_weather_makes() -> None:
    """Detail that is the coarse value times a pattern of the ground: not in interpolation, not in a mean."""
    generator = torch.Generator().manual_seed(0)
    refiner = Refiner(1, (37, 72), width=8, blocks=1)
    pattern = torch.randn(3, 3, generator=generator).repeat(37, 72)
    optimiser = torch.optim.Adam(refiner.parameters(), 0.01)
    shares = []
    for _ in range(60):
        coarse = torch.randn(2, 1, 37, 72, generator=generator)
        detail = pattern * coarse.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)
        loss = (refiner(coarse) - detail).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        shares.append(float(loss.detach() / detail.square().mean()))
    assert shares[0] == pytest.approx(1)
    assert shares[-1] < 0.1


def test_the_task_is_what_interpolation_and_detail_lack(world: World, normals: Normals) -> None:
    """Before the first step nothing is added: the loss is that of interpolation and detail, area by area."""
    task, detail = DownscaleTask(world, normals, SETTINGS), SeasonalDetail(world, normals)
    pairs = Pairs(world, "train", detail)
    wanted = pairs.windows[draw(5, count=24, stream=(0,))]
    fine = FineSamples(world, "train", in_memory=0).state(*wanted)
    coarse = Interpolation(20, world.channels)(world.series("train")[wanted.series].coarse(wanted.start))
    lacking = fine - world.statistics.normalisation.normalise(coarse) - detail.at(DAY)
    weights = LossWeights.of(world.channels, world.statistics, NetworkGrid(20), LossSettings())
    areas = NetworkGrid(20).inner.cell_areas()
    expected = weights.channels.numpy() @ np.sum(
        lacking[:, 1:-1].astype(np.float64) ** 2 * areas, axis=(1, 2)
    )
    assert float(task.loss(range(5, 6)).detach()) == pytest.approx(expected, rel=1e-4)
    with torch.no_grad():
        found = task.validate()
    assert {name for name in found if not name.endswith(" detail alone")} == {"z500", "t850", "2t", "u850"}
    assert all(found[name] == found[f"{name} detail alone"] > 0 for name in ("z500", "t850", "2t", "u850"))


def test_training_is_of_these_settings_once(
    world: World, normals: Normals, trained: tuple[Downscaling, Path]
) -> None:
    folder = trained[1]
    entries = read_log(folder / "phase-1")
    assert sum("loss" in entry for entry in entries) == SETTINGS.train.steps
    assert entries[-1]["validation"]["t850"] != entries[-1]["validation"]["t850 detail alone"]
    before = (folder / "downscaling.safetensors").stat().st_mtime_ns
    train_downscaling(world, normals, SETTINGS, folder, Silence())
    assert (folder / "downscaling.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="made with other settings, of another base or on another world"):
        train_downscaling(world, normals, SETTINGS.model_copy(update={"width": 4}), folder, Silence())


def test_what_was_kept_does_the_same(
    world: World, normals: Normals, trained: tuple[Downscaling, Path]
) -> None:
    downscaling, folder = trained
    coarse = world.series("validation")[0].coarse(3)
    result = Downscaling.load(folder, world, normals).apply(coarse, DAY)
    np.testing.assert_array_equal(result, downscaling.apply(coarse, DAY))
    assert not np.array_equal(result, downscaling.apply(coarse, DAY, refined=False))
    assert result[[name.startswith("q") for name in world.channels.names]].min() >= 0


def test_persisted_channels_are_left_alone(world: World, trained: tuple[Downscaling, Path]) -> None:
    downscaling, folder = trained
    coarse = world.series("validation")[0].coarse(3)
    assert world.statistics.persisted
    last = load_file(folder / "downscaling.safetensors")["last.weight"].reshape(9, 69, -1)
    for name in world.statistics.persisted:
        channel = world.channels.index(name)
        assert not last[:, channel].any()
        plain, refined = (downscaling.apply(coarse, DAY, refined=flag)[channel] for flag in (False, True))
        np.testing.assert_array_equal(refined, plain)


def test_a_downscaling_is_of_one_world(
    normals: Normals, trained: tuple[Downscaling, Path], tmp_path: Path
) -> None:
    _, folder = trained
    with pytest.raises(UsageError, match="trained on another world"):
        Downscaling.load(folder, tiny_world(tmp_path / "other", days=3, seed=1), normals)


def test_an_empty_folder_holds_no_downscaling(world: World, normals: Normals, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no trained downscaling.*; train it first"):
        Downscaling.load(tmp_path, world, normals)
