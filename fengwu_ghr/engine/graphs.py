"""Fewer launches: blocks compiled by torch.compile, the whole trunk recorded as a CUDA graph.

Both need adapters that stay where they are while lead steps go by (`AdaptedLinear.hold`).
"""

import os
import shutil
from collections.abc import Callable

import torch
from torch import Tensor

from fengwu_ghr.engine.finite import Watch
from fengwu_ghr.errors import UsageError
from fengwu_ghr.transfer import AdaptedLinear, TransferModel

BACKEND = "inductor"
"""What torch.compile compiles with."""
WARM_UP = 3
"""Runs before recording, in which libraries choose their kernels."""


def hold_adapters(model: TransferModel, step: int) -> None:
    """The adapters of this lead step serve, in the tensors that compiled code and graphs have seen."""
    for module in model.modules():
        if isinstance(module, AdaptedLinear):
            module.hold(step)


def check_compiler() -> None:
    """Raises UsageError where torch.compile has no C++ compiler to call."""
    names = [os.environ.get("CXX", "g++"), "clang++"]
    if not any(shutil.which(name) for name in names):
        raise UsageError(
            f"compile needs a C++ compiler, and none of {', '.join(names)} is there; install one, set CXX, or leave "
            "compile out"
        )


def compile_blocks(model: TransferModel) -> None:
    """Every block is compiled when it first computes; blocks of one kind share what was compiled."""
    for part in (*model.backbone.blocks, *model.res):
        # The method, not the module: hooks stay outside.
        part.forward = torch.compile(part.forward, dynamic=False, backend=BACKEND)


class GraphedTrunk:
    """Records what `advance` enqueues for tokens of one shape, and replays it for other numbers."""

    def __init__(self, advance: Callable[[Tensor], Tensor], watch: Watch) -> None:
        self._advance, self._watch = advance, watch
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, tokens: Tensor) -> Tensor:
        """The tokens after the trunk, in memory that the next call overwrites."""
        if self._graph is None:
            self._record(tokens)
        assert self._graph is not None
        self._input.copy_(tokens)
        self._graph.replay()
        self._watch.found |= self._seen
        return self._output

    def _record(self, tokens: Tensor) -> None:
        self._input, before = tokens.clone(), dict(self._watch.found)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._advance(self._input)
        torch.cuda.current_stream().wait_stream(stream)
        self._watch.found = {}
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = self._advance(self._input)
        self._seen, self._watch.found = self._watch.found, before
