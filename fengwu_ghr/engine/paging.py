"""Paging: blocks wait in host memory, and two at most are on the device: one computes while the next one comes.

The tensors of a block lie in one run of bytes, so that one copy moves them all. Results are those without paging, bit
by bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from fengwu_ghr.transfer import TransferModel

ALIGNMENT = 256
"""Bytes: as allocators of GPUs align what they give."""


def paged_parts(model: TransferModel) -> list[nn.Module]:
    """Blocks of the trunk and RES blocks, in the order in which a step passes them."""
    parts: list[nn.Module] = []
    after = dict(zip(model.architecture.res_after, model.res))
    for index, block in enumerate(model.backbone.blocks):
        parts += [block, after[index]] if index in after else [block]
    return parts


def part_bytes(part: nn.Module) -> int:
    """What all tensors of a part take in a row."""
    return _Layout.of(part).bytes


class Pager:
    """Brings the tensors of each part to the device before it computes.

    Parts must be passed in order, over and over: the next one is fetched while one computes. After construction the
    host holds all of them, pinned where the device is a GPU.
    """

    def __init__(self, parts: Sequence[nn.Module], device: torch.device) -> None:
        self._layouts = [_Layout.of(part) for part in parts]
        is_cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if is_cuda else None
        self._ready: torch.cuda.Event | None = None
        self._host = [_packed(layout, pinned=is_cuda) for layout in self._layouts]
        largest = max(layout.bytes for layout in self._layouts)
        self._slots = [torch.empty(largest, dtype=torch.uint8, device=device) for _ in range(2)]
        # Made once, and outside inference mode, where parameters may be pointed at them.
        self._at_home = [layout.views(host) for layout, host in zip(self._layouts, self._host)]
        self._on_device = [[layout.views(slot) for slot in self._slots] for layout in self._layouts]
        for layout, views in zip(self._layouts, self._at_home):
            layout.point_to(views)
        self._current, self._slot, self._coming = -1, 0, -1
        for index, part in enumerate(parts):
            part.register_forward_pre_hook(lambda _, __, index=index: self.enter(index))

    @property
    def resident(self) -> int:
        """Bytes on the device."""
        return sum(slot.numel() for slot in self._slots)

    def enter(self, index: int) -> None:
        """The tensors of this part are on the device for what is enqueued next; those of the next one are coming."""
        if index == self._current:
            return
        if self._coming != index:
            self._fetch(index)
        if self._ready is not None:
            torch.cuda.current_stream().wait_event(self._ready)
        if self._current >= 0:
            self._layouts[self._current].point_to(self._at_home[self._current])
        self._slot = 1 - self._slot
        self._layouts[index].point_to(self._on_device[index][self._slot])
        self._current = index
        self._fetch((index + 1) % len(self._layouts))

    def _fetch(self, index: int) -> None:
        """Into the slot that the current part does not use."""
        self._coming, slot = index, self._slots[1 - self._slot]
        target, source = slot[: self._layouts[index].bytes], self._host[index]
        if self._stream is None:
            target.copy_(source)
            return
        free = torch.cuda.current_stream().record_event()  # whoever used the slot before has computed by then
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(free)
            target.copy_(source, non_blocking=True)
            self._ready = self._stream.record_event()


@dataclass(frozen=True, eq=False)
class _Layout:
    """Where in a run of bytes each tensor of a part lies."""

    tensors: tuple[Tensor, ...]
    starts: tuple[int, ...]
    bytes: int

    @classmethod
    def of(cls, part: nn.Module) -> "_Layout":
        tensors, starts, end = (*part.parameters(), *part.buffers()), [], 0
        for tensor in tensors:
            starts.append(end)
            end += -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT
        return cls(tensors, tuple(starts), end)

    def views(self, run: Tensor) -> list[Tensor]:
        """The tensors as they lie in this run of bytes."""
        return [
            run[start : start + prod(t.shape) * t.element_size()].view(t.dtype).view(t.shape)
            for t, start in zip(self.tensors, self.starts)
        ]

    def point_to(self, views: Sequence[Tensor]) -> None:
        for tensor, view in zip(self.tensors, views):
            tensor.data = view


def _packed(layout: _Layout, *, pinned: bool) -> Tensor:
    run = torch.empty(layout.bytes, dtype=torch.uint8, pin_memory=pinned)
    for view, tensor in zip(layout.views(run), layout.tensors):
        view.copy_(tensor.detach())
    return run
