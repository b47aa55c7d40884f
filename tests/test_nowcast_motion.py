"""Motion: what is carried along is found, paths lead there and back, sampling never invents rain."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, shift

from fengwu_ghr.nowcast.motion import Motion, estimate_motion, pixels, places_along, sample

SHAPE = (160, 200)


def echoes(velocity: tuple[float, float], frames: int = 3) -> np.ndarray:
    """A smooth field carried along, exact by periodic shifting of noise."""
    noise = gaussian_filter(np.random.default_rng(3).standard_normal(SHAPE), 6, mode="wrap")
    field = 20 * np.maximum(noise / noise.std(), 0)
    moved = [shift(field, np.multiply(velocity, n), order=3, mode="grid-wrap") for n in range(frames)]
    return np.stack(moved).astype(np.float32)


@pytest.mark.parametrize("velocity", [(0.0, 0.0), (1.5, -2.25), (-6.0, 9.0)])
def test_a_steady_motion_is_found(velocity: tuple[float, float]) -> None:
    found = estimate_motion(echoes(velocity), minutes=10)
    assert found.shape == SHAPE
    middle = found.velocity[:, 5:-5, 5:-5]
    np.testing.assert_allclose(middle.mean(axis=(1, 2)), velocity, atol=0.15)
    assert np.abs(middle - np.array(velocity)[:, None, None]).max() < 1.0


def test_nothing_moves_where_nothing_is() -> None:
    dry = estimate_motion(np.zeros((3, *SHAPE), np.float32), minutes=5)
    assert np.abs(dry.velocity).max() < 1e-6
    unknown = estimate_motion(np.full((3, 40, 50), np.nan, np.float32), minutes=5)
    assert np.isfinite(unknown.velocity).all()


def test_motion_is_no_faster_than_weather() -> None:
    found = estimate_motion(
        np.random.default_rng(0).uniform(0, 60, (3, 64, 64)).astype(np.float32), minutes=5
    )
    assert np.abs(found.velocity).max() <= 2.4 * 5 + 1e-4


def rotation() -> Motion:
    """Solid rotation by 3 degrees a step about the middle."""
    still = Motion.still(SHAPE)
    rows, columns = (np.arange(size) * 4 + 1.5 for size in still.velocity.shape[1:])
    y, x = np.meshgrid(rows - SHAPE[0] / 2, columns - SHAPE[1] / 2, indexing="ij")
    return Motion((np.deg2rad(3) * np.stack([x, -y])).astype(np.float32), SHAPE)


def test_paths_follow_a_rotation_and_come_back() -> None:
    start = torch.tensor([[[80.0]], [[130.0]]])
    there = rotation().paths(start, 30)[-1]
    np.testing.assert_allclose(there.flatten(), [80 + 30, 100], atol=0.2)  # a quarter of a turn
    back = rotation().paths(there, -30)[-1]
    np.testing.assert_allclose(back.flatten(), start.flatten(), atol=0.05)


def test_paths_on_cells_are_those_of_pixels() -> None:
    spread = places_along(rotation(), -5, range(40, 120), range(60, 140))[-1]
    exact = rotation().paths(pixels(range(40, 120), range(60, 140)), -5)[-1]
    assert float((spread - exact).abs().max()) < 0.02


def test_sampling_is_exact_on_pixels_and_unknown_beyond() -> None:
    values = torch.from_numpy(echoes((0, 0), 1)[0])
    known = torch.ones(SHAPE, dtype=torch.bool)
    known[50:60, 50:60] = False
    here = pixels(range(SHAPE[0]), range(SHAPE[1]))
    same, sure = sample(values, known, here)
    assert torch.equal(sure, known)
    torch.testing.assert_close(same[known], values[known], atol=1e-3, rtol=1e-4)
    assert float(same[~known].abs().max()) == 0
    _, sure = sample(values, known, here + 0.5)
    assert not bool(sure[49:60, 49:60].any()), "a pixel between known and unknown is unknown"
    _, sure = sample(values, known, here + torch.tensor([10.0, 0.0])[:, None, None])
    assert not bool(sure[-10:].any())
    nearest, _ = sample(values, known, here + 0.4, nearest=True)
    torch.testing.assert_close(nearest[known], values[known])
