"""Which precision is faster here: measured in a few tenths of a second, on products of the model's shapes."""

from functools import lru_cache
from time import perf_counter

import torch

from fengwu_ghr.engine.torch_engine import PRECISIONS

GAIN = 1.2
"""How many times as fast bfloat16 must be, to be worth its rounding."""
SECONDS = 0.1
"""Of measuring each."""
MOST_ROWS = 2048


@lru_cache
def fastest_precision(device: str, threads: int, *, width: int, tokens: int) -> str:
    """bfloat16 where its products are `GAIN` times as fast as those of float32, else float32.

    Measured once in a process; another process may find otherwise, so that what was found is recorded.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        narrow, wide = (
            seconds_of_product(device, name, width=width, rows=min(tokens, MOST_ROWS))
            for name in ("bfloat16", "float32")
        )
    finally:
        torch.set_num_threads(before)
    return "bfloat16" if GAIN * narrow <= wide else "float32"


def seconds_of_product(device: str, precision: str, *, width: int, rows: int) -> float:
    """Of the widest product of a block, the fastest of as many as fit into `SECONDS`."""
    dtype = PRECISIONS[precision]
    tokens = torch.ones(rows, width, dtype=dtype, device=device)
    weight = torch.ones(4 * width, width, dtype=dtype, device=device)
    times: list[float] = []
    end = perf_counter() + SECONDS
    while len(times) < 2 or perf_counter() < end:
        start = perf_counter()
        torch.nn.functional.linear(tokens, weight)[0, 0].item()  # fetching a value waits for the device
        times.append(perf_counter() - start)
    return min(times)
