"""Window attention against dense attention with an explicit mask, written out with softmax."""

import subprocess
import sys
from math import sqrt

import pytest
import torch
from torch import Tensor

from fengwu_ghr.attention.window import from_windows, self_attention, to_windows

HEADS, DEPTH = 3, 8
WIDTH = HEADS * DEPTH
WINDOWS = [(6, 6), (3, 12), (12, 4), (12, 24)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def windowed(qkv: Tensor, window: tuple[int, int]) -> Tensor:
    _, rows, columns, _ = qkv.shape
    mixed = self_attention(to_windows(qkv, window=window), heads=HEADS)
    return from_windows(mixed, rows=rows, columns=columns, window=window)


def dense(qkv: Tensor, window: tuple[int, int]) -> Tensor:
    """Every token against every token; those in other windows masked out; zeros below and on the right."""
    rows, columns = qkv.shape[1:3]
    tall, wide = (-(-n // w) * w for n, w in zip((rows, columns), window))
    whole = torch.zeros(qkv.shape[0], tall, wide, qkv.shape[3], dtype=qkv.dtype)
    whole[:, :rows, :columns] = qkv
    place = torch.cartesian_prod(torch.arange(tall) // window[0], torch.arange(wide) // window[1])
    together = (place[:, None] == place[None]).all(-1)
    q, k, v = whole.flatten(1, 2).unflatten(-1, (3, HEADS, DEPTH)).unbind(2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / sqrt(DEPTH)
    weights = scores.masked_fill(~together, float("-inf")).softmax(-1)
    mixed = torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(-2)
    return mixed.unflatten(1, (tall, wide))[:, :rows, :columns]


@pytest.mark.parametrize("window", WINDOWS)
def test_windows_attend_within_themselves_only(window: tuple[int, int]) -> None:
    qkv = random(2, 12, 24, 3 * WIDTH)
    torch.testing.assert_close(windowed(qkv, window), dense(qkv, window), atol=1e-12, rtol=0)


@pytest.mark.parametrize("window", [(5, 7), (12, 5), (7, 24), (20, 30)])
def test_a_grid_that_does_not_divide_is_filled_up_with_unmasked_zeros(window: tuple[int, int]) -> None:
    qkv = random(2, 12, 24, 3 * WIDTH, seed=1)
    torch.testing.assert_close(windowed(qkv, window), dense(qkv, window), atol=1e-12, rtol=0)


@pytest.mark.parametrize("window", [*WINDOWS, (5, 7), (20, 30)])
def test_from_windows_inverts_to_windows(window: tuple[int, int]) -> None:
    tokens = random(3, 12, 24, 5)
    back = from_windows(to_windows(tokens, window=window), rows=12, columns=24, window=window)
    assert torch.equal(back, tokens)


def test_windows_are_cut_row_by_row() -> None:
    tokens = torch.arange(4 * 6, dtype=torch.float32).view(1, 4, 6, 1)
    first, second, third, _ = to_windows(tokens, window=(2, 3))[..., 0]
    assert first.tolist() == [0, 1, 2, 6, 7, 8]
    assert second.tolist() == [3, 4, 5, 9, 10, 11]
    assert third.tolist() == [12, 13, 14, 18, 19, 20]


def test_there_is_no_wrap_in_longitude() -> None:
    qkv = random(1, 12, 24, 3 * WIDTH)
    changed = qkv.clone()
    changed[:, :, 0] += 1
    moved = (windowed(qkv, (6, 6)) != windowed(changed, (6, 6))).any(-1)[0]
    assert moved[:, :6].all()
    assert not moved[:, 6:].any()


def test_gradients_agree_with_the_dense_form() -> None:
    gradients = []
    for attention in (windowed, dense):
        qkv = random(1, 12, 24, 3 * WIDTH).requires_grad_()
        (attention(qkv, (5, 7)) ** 2).sum().backward()
        gradients.append(qkv.grad)
    torch.testing.assert_close(*gradients, atol=1e-11, rtol=0)


def test_global_attention_over_7200_tokens_holds_no_score_matrix() -> None:
    """Two heads of scores would be 415 MB, the tokens are 2.8 MB."""
    program = """
import resource, torch
from fengwu_ghr.attention.window import self_attention
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
with torch.inference_mode():
    self_attention(torch.randn(1, 64, 96), heads=2)
    before = peak()
    self_attention(torch.randn(1, 7200, 96), heads=2)
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert float(done.stdout) < 60
