"""Numbers that are no longer finite: found before a lead is written, and traced to the part they came from.

After every part of a step its output is summed: a sum over anything that is not finite is not finite either. Sums are
looked at once a step, so that a GPU is not waited for in between.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fengwu_ghr.errors import ConformanceError
from fengwu_ghr.transfer import TransferModel


@dataclass(frozen=True)
class Seen:
    """The sums of one step, part by part in the order of computing, perhaps still on their way."""

    index: int
    step_hours: int
    parts: tuple[str, ...]
    sums: Float[Tensor, " part"]

    def check(self) -> None:
        """Raises ConformanceError naming the first part whose output was not finite."""
        check_sums(self.parts, self.sums.tolist(), index=self.index, step_hours=self.step_hours)


LAST = "the end of the step"
"""What comes after the network: rows beyond the poles, sharing, diffusion."""


class Watch:
    """Hears the output of every part of a model, in whatever pieces it comes."""

    def __init__(self, step_hours: int) -> None:
        self.step_hours = step_hours
        self.parts: tuple[str, ...] = (LAST,)
        self.found: dict[str, Tensor] = {}

    def see(self, part: str, values: Float[Tensor, "..."]) -> None:
        """One part is done; the device is not waited for."""
        # Half precision would overflow in a sum of what is finite; bfloat16 has the range of float32.
        wide = values.sum(dtype=torch.float32) if values.dtype == torch.float16 else values.sum()
        before = self.found.get(part)
        self.found[part] = wide.float() if before is None else before + wide.float()

    def close(self, index: int) -> Seen:
        """What was seen of this step; the next one begins."""
        found, self.found = self.found, {}
        zero = torch.zeros((), device=found[LAST].device)
        sums = torch.stack([found.get(part, zero) for part in self.parts])
        return Seen(index, self.step_hours, self.parts, sums)

    def over(self, model: TransferModel) -> None:
        """From now on every part of this model is seen."""
        named = _parts(model)
        self.parts = (*named, LAST)
        for part, module in named.items():
            module.register_forward_hook(lambda _, __, output, part=part: self.see(part, output))


def res_name(index: int) -> str:
    """What a RES block is called, counted from 0."""
    return f"RES block {index}"


def _parts(model: TransferModel) -> dict[str, nn.Module]:
    """In the order of computing."""
    named: dict[str, nn.Module] = {"the encoder": model.backbone.patch}
    after = list(model.architecture.res_after)
    for index, block in enumerate(model.backbone.blocks):
        named[f"block {index} of the trunk"] = block
        if index in after:
            named[res_name(after.index(index))] = model.res[after.index(index)]
    return named | {"the decoder": model.backbone.decoder.deconvolution}


REMEDY = "See whether the weights are whole with fengwu-ghr models verify, and whether --precision float32 gets further"


def check_sums(
    parts: Sequence[str], sums: Sequence[float], *, index: int, step_hours: int, remedy: str = REMEDY
) -> None:
    """Raises ConformanceError naming the first part whose sum is not finite; `index` 0 is the first step."""
    for part, value in zip(parts, sums, strict=True):
        if not isfinite(value):
            raise ConformanceError(
                f"step {index + 1} (+{(index + 1) * step_hours} h): the output of {part} is not finite, while all "
                f"before it is; nothing of this lead is written. {remedy}"
            )
