"""Splits that leak are refused; windows stay inside their block; samples are cut where the air goes."""

import json
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fengwu_ghr.errors import InputError, UsageError
from fengwu_ghr.nowcast.events import Block, EventSettings, check_splits, read_blocks
from fengwu_ghr.nowcast.model import RAIN_SCALE, SCALE, NowcastArchitecture
from fengwu_ghr.nowcast.motion import Motion
from fengwu_ghr.nowcast.samples import Batch, Cutter, StormCutter
from fengwu_ghr.nowcast.sequence import RadarSequence
from fengwu_ghr.nowcast.storms import PROJECTION, generate_storms
from fengwu_ghr.projected_grid import ProjectedGrid

START = datetime(2020, 6, 1)


def event(
    split: str, first: int | None = None, last: int | None = None, *, name: str = "", file: str = "a.npz"
) -> EventSettings:
    """A block from `first` to `last` hours."""
    ends = {key: START + timedelta(hours=h) for key, h in (("first", first), ("last", last)) if h is not None}
    return EventSettings(name=name or f"{split} {first}", files=(Path(file),), split=split, **ends)  # type: ignore[arg-type]


def test_blocks_of_one_file_lie_two_hours_apart() -> None:
    check_splits([event("train", 0, 5), event("validation", 7, 9), event("test", 11), event("train", 0, 3)])
    for other in (event("test", 6), event("test"), event("test", 0, 2)):
        with pytest.raises(UsageError, match="must lie 2:00:00 apart"):
            check_splits([event("train", 0, 5), other])


def test_one_event_has_one_split() -> None:
    """Crops of the same hour are the same storms."""
    with pytest.raises(UsageError, match="one event: it cannot be train and test"):
        check_splits([event("train", name="mrms", file="a.npz"), event("test", name="mrms", file="b.npz")])


@pytest.mark.parametrize("wrong", [{"strides": (0,)}, {"first": START, "last": START}, {"split": "tests"}])
def test_senseless_blocks(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        EventSettings.model_validate({"name": "x", "files": ["a.npz"], "split": "train", **wrong})


def archive(path: Path, frames: int = 40, minutes: int = 5) -> None:
    """A file as the archive has them."""
    grid = {"projection": PROJECTION.text, "x1": 0, "y1": 0, "x2": 12e3, "y2": 10e3, "yorigin": "upper"}
    times = np.array([START + timedelta(minutes=minutes) * n for n in range(frames)], "M8[m]").astype(str)
    code = np.full((frames, 10, 12), 40, np.uint8)
    np.savez(path, code=code, time=times, meta=np.array(json.dumps(grid)))


def test_a_block_is_cut_from_its_file(tmp_path: Path) -> None:
    archive(tmp_path / "a.npz")
    ((_, block),) = read_blocks([event("train", 1, 2), event("test")], "train", tmp_path)
    assert block.frames.times[0] == START + timedelta(hours=1)
    assert len(block.frames) == 13
    with pytest.raises(InputError, match="no frame of"):
        read_blocks([event("train", 20, 22)], "train", tmp_path)
    with pytest.raises(InputError, match='split = "validation"'):
        read_blocks([event("train")], "validation", tmp_path)


@pytest.mark.parametrize("stride", [1, 2])
def test_windows_stay_inside_their_block(stride: int, tmp_path: Path) -> None:
    archive(tmp_path / "a.npz")
    ((_, block),) = read_blocks([event("train", 0, 2)], "train", tmp_path)
    windows = list(block.windows(0, strides=(stride,), inputs=4, leads=8, least=3))
    assert windows
    for window in windows:
        assert window.now - 3 * stride >= 0
        assert window.now + window.leads * stride < len(block.frames)
        assert 3 <= window.leads <= 8
    assert max(window.leads for window in windows) == min(8, (24 - 3 * stride) // stride)


def carried(velocity: tuple[int, int], frames: int = 10, size: int = 96) -> RadarSequence:
    """Blocky echoes carried by whole pixels, so that following them is exact."""
    rng = np.random.default_rng(5)
    field = np.kron(rng.choice([0.0, 15.0, 30.0, 45.0], (size // 4, size // 4)), np.ones((4, 4)))
    values = np.stack([np.roll(field, np.multiply(velocity, n), axis=(0, 1)) for n in range(frames)])
    grid = ProjectedGrid.of_corners(PROJECTION, (0.0, 0.0), (1000.0, 1000.0), (size, size))
    return RadarSequence.of(
        values.astype(np.float32), [START + timedelta(minutes=5) * n for n in range(frames)], grid
    )


@pytest.mark.parametrize("advection", [False, True])
def test_a_sample_is_what_was_and_what_came(advection: bool) -> None:
    """Seen from the moving air everything stands still; seen from the ground it moves."""
    velocity, frames = (2, -3), carried((2, -3))
    a = NowcastArchitecture("x", leads=6, advection=advection)
    cutter = Cutter([Block("b", frames)], a, size=32)
    (window,) = [
        w for w in cutter.blocks[0].windows(0, strides=(1,), inputs=4, leads=6, least=6) if w.now == 3
    ]
    cutter.motions[window] = Motion.steady((96, 96), velocity)
    made = cutter.cut(window, (32, 40), torch.arange(6))
    here = frames.values[3, 32:64, 40:72] / SCALE
    np.testing.assert_allclose(made.fields[-1, 0], here, atol=1e-5)
    np.testing.assert_allclose(
        made.fields[-1, 1], frames.zr.rain_rate(frames.values[3, 32:64, 40:72]) / RAIN_SCALE, atol=1e-4
    )
    assert float(made.fields[:, 2:].abs().max()) == 0
    for lead in range(6):
        came = here if advection else frames.values[4 + lead, 32:64, 40:72] / SCALE
        np.testing.assert_allclose(made.truth[lead], came, atol=1e-5)
    before = here if advection else frames.values[2, 32:64, 40:72] / SCALE
    np.testing.assert_allclose(made.fields[2, 0], before, atol=1e-3)
    assert bool(made.known.all())
    assert made.places.tolist() == pytest.approx([5 / 120 * n for n in range(1, 7)])


def test_what_lies_beyond_the_grid_is_unknown() -> None:
    frames = carried((0, 0))
    cutter = Cutter([Block("b", frames)], NowcastArchitecture("x", leads=6), size=64)
    window = next(cutter.blocks[0].windows(0, strides=(1,), inputs=4, leads=6, least=6))
    made = cutter.cut(window, (48, 48), torch.arange(2))
    assert bool(made.known[:, :48, :48].all())
    assert not bool(made.known[:, 48:].any() or made.known[:, :, 48:].any())


def test_crops_repeat_and_differ() -> None:
    cutter = StormCutter(NowcastArchitecture("x"), size=32, seed=1)
    one, same, other = (cutter.crop(n, np.random.default_rng(n), leads=3) for n in (5, 5, 6))
    assert torch.equal(one.fields, same.fields)
    assert torch.equal(one.truth, same.truth)
    assert not torch.equal(one.fields, other.fields)
    batch = Batch.of([one, other])
    assert batch.fields.shape == (2, 4, 4, 32, 32)
    assert batch.leads.shape == batch.places.shape == (2, 3)


def test_storms_move_and_stay_in_range() -> None:
    storms = generate_storms(seed=7, frames=6, size=64, minutes=5)
    again = generate_storms(seed=7, frames=6, size=64, minutes=5)
    assert np.array_equal(storms.frames.values, again.frames.values)
    assert storms.velocity == again.velocity
    assert storms.frames.values.min() >= 0
    assert 20 < storms.frames.values.max() < 75
