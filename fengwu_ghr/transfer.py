"""Transfer: the backbone's weights at 0.09 degrees. Split into nine, run the backbone, let the nine exchange, join.

Numbers and tokens of the nine are those of `res`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fengwu_ghr.backbone import DECONVOLUTION, Architecture, Backbone, Linear, LinearFactory, Step
from fengwu_ghr.diffusion import Diffusion, set_for
from fengwu_ghr.forcing import STATIC, ForcingFields
from fengwu_ghr.grid import NetworkGrid
from fengwu_ghr.joint import Joint
from fengwu_ghr.res import RES, SUBFIELDS, N, fold, unfold
from fengwu_ghr.sharing import Sharing

Place = tuple[slice, ...]
"""Where in a state (channel, row, column) some fields lie."""

Exchange = Callable[[nn.Module, Tensor, int], Tensor]
"""From a RES block, tokens and how many windows are worked on at a time to the tokens after it."""

Decoded = Iterable[tuple[Sequence[Place], Tensor]]
"""Fields as they are decoded, a few places at a time."""


def split(
    fine: Float[Tensor, "batch channel row column"],
) -> Float[Tensor, "nine_batch channel lat lon"]:
    """The nine strided sub-fields of each fine field, in the order k = 3 a + b."""
    batch, channels, rows, columns = fine.shape
    grid = fine.reshape(batch, channels, rows // N, N, columns // N, N)
    return grid.permute(0, 3, 5, 1, 2, 4).reshape(-1, channels, rows // N, columns // N)


def recombine(
    nine: Float[Tensor, "nine_batch channel lat lon"],
) -> Float[Tensor, "batch channel row column"]:
    """The inverse of `split`: sub-fields interleaved."""
    _, channels, rows, columns = nine.shape
    grid = nine.reshape(-1, N, N, channels, rows, columns)
    return grid.permute(0, 3, 4, 1, 5, 2).reshape(-1, channels, N * rows, N * columns)


class AdaptedLinear(Linear):
    """W0 x + (alpha / rank) B_s A_s x: a frozen or trained base and one low-rank correction per set s of adapters.

    Each set serves `group` lead steps in a row. Steps beyond the last set use the last set: a forecast may run
    longer than any that was trained. Without a step it is the base alone.
    """

    held: tuple[Tensor, Tensor] | None = None
    """The set that serves whatever step is named, in tensors that stay where they are; see `hold`."""

    def __init__(
        self, inputs: int, outputs: int, *, rank: int, steps: int, alpha: float, group: int = 1
    ) -> None:
        super().__init__(inputs, outputs)
        self.gain, self.group = alpha / rank, group
        self.lora_a = nn.Parameter(torch.empty(steps, rank, inputs))
        self.lora_b = nn.Parameter(torch.empty(steps, outputs, rank))

    def forward(
        self, tokens: Float[Tensor, "*place inputs"], step: Step | None = None
    ) -> Float[Tensor, "*place outputs"]:
        base = super().forward(tokens)
        return base if step is None else self.correct(base, tokens, step)

    def correct(
        self, base: Float[Tensor, "*place outputs"], tokens: Float[Tensor, "*place inputs"], step: Step
    ) -> Float[Tensor, "*place outputs"]:
        """What the base made of the tokens, with the correction of this lead step."""
        down, up = self.adapter(step)
        narrow = F.linear(tokens, down).flatten(0, -2)
        return torch.addmm(base.flatten(0, -2), narrow, up.T, alpha=self.gain).view_as(base)

    def adapter(self, step: Step) -> tuple[Float[Tensor, "rank inputs"], Float[Tensor, "outputs rank"]]:
        """(A_s, B_s) of the set that serves this lead step; lead steps count from 0."""
        return self._of(step) if self.held is None else self.held

    def hold(self, step: int) -> None:
        """From now on the set of this step serves, in the same two tensors every time, which a graph may record."""
        if self.held is None:
            self.held = tuple(part.clone() for part in self._of(step))  # type: ignore[assignment]
        else:
            for kept, part in zip(self.held, self._of(step)):
                kept.copy_(part)

    def _of(self, step: Step) -> tuple[Tensor, Tensor]:
        if isinstance(step, int) and step < 0:
            raise ValueError(f"lead steps count from 0; got {step}")
        index = set_for(step, group=self.group, sets=self.lora_a.shape[0])
        return self.lora_a[index], self.lora_b[index]


class TransferModel(nn.Module):
    """A forecast step on the network grid, whole (`forward`) or in stages that bound the memory.

    The stages are `tokens_of` (all nine), `advance`, `write_next`. `batch` (9, 3 or 1) is how many of the nine are
    worked on at a time; results agree to rounding. Without RES blocks, sharing and adapters it is the plain split. Lead
    steps count from 0. Rows beyond the poles are the caller's to refill (`NetworkGrid.refill_beyond_poles`), and
    `diffusion` is the caller's to apply to what is refilled; with the token-level split those rows are not predicted
    and come back as in the newest state.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.backbone = Backbone(architecture, linear=_linear_factory(architecture))
        self.res = nn.ModuleList(RES(architecture) for _ in architecture.res_after)
        globals_ = [index for index, block in enumerate(self.backbone.blocks) if block.window is None]
        self.joint = nn.ModuleDict(
            {str(index): Joint(architecture) for index in globals_ if architecture.joint != "none"}
        )
        self.sharing: Sharing | None = None
        if architecture.sharing:
            rows = N * architecture.grid_shape[0]
            self.sharing = Sharing(architecture.channels, rows, radius=architecture.sharing)
        self.diffusion: Diffusion | None = None
        if architecture.diffusion:
            rows, columns = (N * points for points in architecture.grid_shape)
            sets, group = architecture.lora_steps, architecture.lora_group
            self.diffusion = Diffusion(architecture.channels, (rows, columns), sets=sets, group=group)
        fixed = sum(forcing in STATIC for forcing in architecture.forcings)
        if fixed:
            rows, columns = architecture.grid_shape
            self.register_buffer("static", torch.empty(fixed, N * rows, N * columns))

    def forward(
        self,
        states: Float[Tensor, "batch inputs row column"],
        step: int,
        forcing: Float[Tensor, "batch forcing row column"] | None = None,
    ) -> Float[Tensor, "batch channel row column"]:
        """The next states, differentiable; `inputs` are the channels of `history` states, the oldest first."""
        newest = states[:, -self.architecture.channels :]
        if self.architecture.split == "pixel":
            nine, told = split(states), None if forcing is None else split(forcing)
            tokens = self.advance(self.backbone.embed(nine, told), step=step, batch=nine.shape[0])
            if self.sharing is not None:
                return newest + self.sharing(recombine(self.backbone.decoder(tokens).to(newest)))
            return recombine(self.backbone.finish(self.backbone.decoder(tokens), split(newest)))
        told = None if forcing is None else forcing[:, :, 1:-1]
        tokens = unfold(self.backbone.to_tokens(states[:, :, 1:-1], told)) + self.backbone.position
        decoded = self.backbone.decoder(fold(self.advance(tokens, step=step, batch=tokens.shape[0])))
        inner = self.backbone.finish(decoded, newest[:, :, 1:-1])
        return torch.cat([newest[:, :, :1], inner, newest[:, :, -1:]], dim=2)

    def forcing_fields(self, grid: NetworkGrid, *, step_hours: int) -> ForcingFields | None:
        """What the model is told beside the states, from its own static fields; None where that is nothing."""
        if not self.architecture.forcings:
            return None
        static = getattr(self, "static", self.backbone.position.new_empty(0, *grid.shape))
        return ForcingFields(self.architecture.forcings, static, grid, step_hours)

    def tokens_of(
        self,
        states: Sequence[Float[Tensor, "channel row column"]],
        *,
        forcing: Float[Tensor, "forcing row column"] | None = None,
        batch: int = SUBFIELDS,
        some: range = range(SUBFIELDS),
    ) -> Float[Tensor, "some down across width"]:
        """The tokens of some of the nine sub-fields of `history` states, the oldest first, on the weights' device."""
        if len(states) != self.architecture.history:
            raise ValueError(
                f"{self.architecture.history} states are needed, oldest first; got {len(states)}"
            )
        # No stage keeps what it gathered or decoded while it makes the next: one batch of fields at a time.
        if self.architecture.split == "pixel":
            groups = _grouped(batch, some)
            return _join(
                [self.backbone.embed(self._gather(states, few), _at(forcing, few)) for few in groups]
            )
        bands = [[band] for band in self._token_bands(batch)]
        rows = [self.backbone.to_tokens(self._gather(states, band), _at(forcing, band)) for band in bands]
        tokens = unfold(_join(rows, dim=1)) + self.backbone.position
        return tokens[some.start : some.stop]

    def advance(
        self,
        tokens: Float[Tensor, "nine_batch down across width"],
        *,
        step: int,
        batch: int = SUBFIELDS,
        together: int | None = None,
        exchange: Exchange | None = None,
    ) -> Float[Tensor, "nine_batch down across width"]:
        """The tokens after the trunk and the RES blocks, with the adapters of this lead step.

        A batch of sub-fields passes `together` blocks before the next batch has its turn (None: all up to the next
        RES block), to the same bits; `exchange` does what a RES block does where the nine are not all here.
        """
        exchange = exchange or _exchanged
        start = 0
        for last, res in zip(self.architecture.res_after, self.res):
            tokens = self._run(tokens, range(start, last + 1), step, batch, together)
            tokens = exchange(res, tokens, batch)
            start = last + 1
        return self._run(tokens, range(start, self.architecture.depth), step, batch, together)

    def write_next(
        self,
        target: Float[Tensor, "channel row column"],
        newest: Float[Tensor, "channel row column"],
        *,
        tokens: Float[Tensor, "9 down across width"],
        batch: int = SUBFIELDS,
    ) -> None:
        """Fills `target`, which may be `newest` itself or an older state, with the next state.

        With the token-level split the decoder's norms span the globe: its features are held for all nine at once,
        and only the deconvolution is done in parts.
        """
        if self.architecture.split == "pixel":
            self.write_decoded(target, newest, self.decoded(tokens, batch))
            return
        features = self.backbone.decoder.features(fold(tokens))
        for rows in _parts(features.shape[2], batch):
            fields = self._deconvolve(features, rows)
            first = 1 + DECONVOLUTION * rows.start  # row 0 lies beyond the pole
            place = (slice(None), slice(first, first + fields.shape[2]))
            self._write(target, newest, [place], fields)
        target[:, 0], target[:, -1] = newest[:, 0], newest[:, -1]

    def decoded(
        self, tokens: Float[Tensor, "some down across width"], batch: int, some: range = range(SUBFIELDS)
    ) -> Iterator[tuple[list[Place], Tensor]]:
        """What the decoder makes of the tokens of some sub-fields, `batch` at a time (pixel-level split)."""
        for first, places in zip(range(0, len(some), batch), _grouped(batch, some)):
            yield places, self.backbone.decoder(tokens[first : first + batch])

    def write_decoded(
        self,
        target: Float[Tensor, "channel row column"],
        newest: Float[Tensor, "channel row column"],
        decoded: Decoded,
    ) -> None:
        """As `write_next`, from what all nine were decoded to."""
        if self.sharing is not None:
            self._write_shared(self.sharing, target, newest, decoded)
            return
        for places, fields in decoded:
            self._write(target, newest, places, fields)

    def _write_shared(self, sharing: Sharing, target: Tensor, newest: Tensor, decoded: Decoded) -> None:
        """Tendencies need a state of their own until all nine are there; they are shared channel by channel."""
        tendency, weights = torch.zeros_like(newest), sharing.weights()
        for places, fields in decoded:
            self._write(tendency, tendency, places, fields)
        for channel in range(len(newest)):
            own = slice(channel, channel + 1)
            shared = sharing.of_channels(tendency[None, own], weights[own])[0]
            torch.add(newest[own], shared, out=target[own])

    def _run(self, tokens: Tensor, blocks: range, step: int, batch: int, together: int | None) -> Tensor:
        start = blocks.start
        for index in (index for index in blocks if str(index) in self.joint):
            tokens = self._run_each(tokens, range(start, index), step, batch, together)
            tokens = self.joint[str(index)](tokens, self.backbone.blocks[index], step)
            start = index + 1
        return self._run_each(tokens, range(start, blocks.stop), step, batch, together)

    def _run_each(self, tokens: Tensor, blocks: range, step: int, batch: int, together: int | None) -> Tensor:
        for first in range(0, len(blocks), together or len(blocks) or 1):
            row = blocks[first : first + (together or len(blocks))]
            tokens = _join([self.backbone.run(some, row, step) for some in tokens.split(batch)])
        return tokens

    def _token_bands(self, batch: int) -> list[Place]:
        """Bands of the pole-to-pole rows that hold whole token rows, neighbours sharing one grid row."""
        kernel, stride = self.architecture.patch
        parts = _parts(N * self.architecture.token_shape[0], batch)
        return [
            (slice(None), slice(1 + stride * rows.start, 1 + stride * (rows.stop - 1) + kernel))
            for rows in parts
        ]

    def _gather(self, states: Sequence[Tensor], places: Sequence[Place]) -> Float[Tensor, "batch inputs _ _"]:
        """The states at these places, copied once, into the memory order the patch convolution reads fastest."""
        rows, columns = states[0][places[0]].shape[1:]
        shape = (len(places), self.architecture.history * self.architecture.channels, rows, columns)
        weight = self.backbone.patch.weight
        fields = torch.empty(
            shape, dtype=weight.dtype, device=weight.device, memory_format=torch.channels_last
        )
        for place, target in zip(places, fields):
            for state, part in zip(states, target.split(self.architecture.channels)):
                part.copy_(state[place])
        return fields

    def _write(self, target: Tensor, newest: Tensor, places: Sequence[Place], decoded: Tensor) -> None:
        for place, fields in zip(places, decoded):
            if self.architecture.predicts == "tendency":
                torch.add(newest[place], fields.to(newest), out=target[place])
            else:
                target[place].copy_(fields)

    def _deconvolve(
        self, features: Float[Tensor, "1 feature down across"], rows: slice
    ) -> Float[Tensor, "1 channel _ _"]:
        """The grid rows that begin with these feature rows, the last grid row with the last."""
        # The kernel is one row taller than its stride: each feature row reaches into the first row of the next.
        halo = min(rows.start, 1)
        decoded = self.backbone.decoder.deconvolution(features[:, :, rows.start - halo : rows.stop])
        is_last = rows.stop == features.shape[2]
        return decoded[:, :, halo * DECONVOLUTION : decoded.shape[2] - (not is_last)]


def _linear_factory(architecture: Architecture) -> LinearFactory:
    if architecture.lora_steps == 0:
        return Linear
    return partial(
        AdaptedLinear,
        rank=architecture.lora_rank,
        steps=architecture.lora_steps,
        alpha=architecture.lora_alpha,
        group=architecture.lora_group,
    )


def _exchanged(res: nn.Module, tokens: Tensor, batch: int) -> Tensor:
    return res(tokens, batch=batch)


def subfields(some: Iterable[int]) -> list[Place]:
    """Where these of the nine lie in a state."""
    return [(slice(None), slice(k // N, None, N), slice(k % N, None, N)) for k in some]


def _grouped(batch: int, some: range) -> list[list[Place]]:
    places = subfields(some)
    return [places[first : first + batch] for first in range(0, len(places), batch)]


def _at(forcing: Tensor | None, places: Sequence[Place]) -> Tensor | None:
    """The forcing at these places."""
    return None if forcing is None else torch.stack([forcing[place] for place in places])


def _parts(rows: int, batch: int) -> list[slice]:
    """All rows in as many consecutive parts as there are batches of the nine."""
    parts = -(-SUBFIELDS // batch)
    edges = [rows * part // parts for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges) if stop > start]


def _join(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=dim)
