"""What a stage of transfer is: what it adds to a checkpoint, what it trains, on what, how long."""

from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator

from fengwu_ghr.backbone import Architecture, JointKind
from fengwu_ghr.config import Section
from fengwu_ghr.training.loop import TrainSettings
from fengwu_ghr.training.losses import LossSettings
from fengwu_ghr.training.pretrain import Phase
from fengwu_ghr.training.replay import ReplaySettings

_NOT_OF = {"res": {"adapters", "replay"}, "lora": {"res", "base_rate", "noise"}}
"""Settings by the kind of stage that has no use for them."""


class RESSettings(Section):
    """The blocks in which the nine sub-fields exchange what they do not share."""

    after: tuple[int, ...] | None = None
    """Blocks of the trunk that a RES block follows; every global one where this is not given."""
    mlp: Literal["convolution", "plain"] = "convolution"
    """3 x 3 convolutions over the folded tokens, or the perceptron of the trunk, which cannot tell the nine apart."""
    phase_embedding: bool = True
    """Whether the blocks are told which of the nine a token comes from."""
    # Left out where it is not used, so that what was trained before it was there stays what it is.
    sharing: int = Field(0, ge=0, le=4, exclude_if=lambda radius: radius == 0)
    """Over so many points to every side the nine share their tendencies; at 0 they do not."""
    joint: JointKind = Field("none", exclude_if=lambda kind: kind == "none")
    """Whether the trunk's global blocks see all nine sub-fields, and how: wave, dense, means."""
    joint_phase: bool = Field(False, exclude_if=lambda told: not told)
    """Whether those are told which of the nine a token comes from."""
    joint_retrieval: float = Field(0.05, ge=0, le=1, exclude_if=lambda share: share == 0.05)
    """The share of clusters that wave attention attends to exactly."""


class AdapterSettings(Section):
    """Low-rank corrections that follow the lead step."""

    rank: int = Field(4, gt=0)
    """Of each correction."""
    sets: int = Field(10, gt=0)
    """Sets of adapters; steps beyond the last set use the last."""
    group: int = Field(4, gt=0)
    """Lead steps in a row that share a set."""
    alpha: float = Field(1.0, gt=0)
    """The correction is multiplied by alpha / rank."""
    diffusion: bool = Field(False, exclude_if=lambda wanted: not wanted)
    """Whether departures from the mean of the training years are smoothed after every step, by set and channel."""


class AdaptStage(Section):
    """One stage of transfer: all that decides what it makes of the checkpoint it starts from."""

    kind: Literal["res", "lora"]
    """`res` trains RES blocks, which are added where there are none; `lora` adapters, from replayed forecasts."""
    name: str = Field(min_length=1)
    """The name in the model card."""
    description: str = (
        "Transferred to a fine grid on a simulated world: for experiments, not for the weather."
    )
    """The sentence in the model card."""
    licence: str = "CC-BY-4.0"
    """Of the weights."""
    seed: int = Field(0, ge=0)
    """Fixes what is added, the order of the samples and the noise."""
    objective: Literal["mse", "spectral"] = "mse"
    """`mse` makes errors small, and long forecasts smooth; `spectral` also asks for the amplitude of the truth."""
    base_rate: float = Field(0.0, ge=0, le=1)
    """Learning rate of the backbone over that of the RES blocks; at 0 it is frozen and needs no gradients."""
    noise: float = Field(0.0, ge=0)
    """Std of white noise on the analysis a sample starts from, over that of the tendency."""
    res: RESSettings = RESSettings()
    """The RES blocks that are added."""
    adapters: AdapterSettings = AdapterSettings()
    """The adapters that are added."""
    replay: ReplaySettings = ReplaySettings()
    """The forecasts that adapters are trained on."""
    loss: LossSettings = LossSettings()
    """The weights of channels."""
    train: TrainSettings = TrainSettings()
    """How to optimise."""
    phases: tuple[Phase, ...] = Field((Phase(),), min_length=1)
    """Runs of the optimiser, one after the other: one step first, then rollouts of a few."""
    validation_windows: int = Field(4, gt=0)
    """Validation states, evenly spread, from which forecasts are scored."""

    @model_validator(mode="after")
    def _fits_together(self) -> "AdaptStage":
        if unused := sorted(_NOT_OF[self.kind] & self.model_fields_set):
            raise ValueError(f"a stage of kind {self.kind} has no use for {', '.join(unused)}: leave it out")
        for phase in self.phases:
            batch = phase.settings(self.train).batch
            if self.kind == "lora" and phase.rollout_steps != 1:
                raise ValueError(
                    "adapters are trained a single step at a time, on replayed forecasts; "
                    f"got rollout_steps = {phase.rollout_steps}"
                )
            if self.kind == "lora" and batch > self.replay.entries:
                raise ValueError(
                    f"replay.entries must hold a batch of {batch} or more; got {self.replay.entries}"
                )
        return self

    def architecture(self, base: Architecture) -> Architecture:
        """That of the base with what this stage adds; as it is where the base has such parts and none are described.

        Raises ValueError where the parts do not fit.
        """
        described = {"res": "res", "lora": "adapters"}[self.kind] in self.model_fields_set
        has_parts = base.res_after if self.kind == "res" else base.lora_steps
        if has_parts and not described:
            return base
        return self._with_res(base) if self.kind == "res" else self._with_adapters(base)

    def _with_res(self, base: Architecture) -> Architecture:
        period, res = len(base.windows) + 1, self.res
        after = tuple(range(period - 1, base.depth, period)) if res.after is None else res.after
        return replace(
            base,
            res_after=after,
            res_mlp=res.mlp,
            phase_embedding=res.phase_embedding,
            sharing=res.sharing,
            joint=res.joint,
            joint_phase=res.joint_phase,
            joint_retrieval=res.joint_retrieval,
        )

    def _with_adapters(self, base: Architecture) -> Architecture:
        a = self.adapters
        return replace(
            base,
            lora_rank=a.rank,
            lora_steps=a.sets,
            lora_alpha=a.alpha,
            lora_group=a.group,
            diffusion=a.diffusion,
        )
