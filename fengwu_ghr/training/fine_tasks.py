"""The tasks of transfer: rollouts from fine analyses for RES blocks, replayed forecasts for adapters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Float32
from torch import Tensor

from fengwu_ghr.checkpoint import part_of
from fengwu_ghr.errors import InputError
from fengwu_ghr.training.dataset import FineSamples, draw, noise_generator
from fengwu_ghr.training.fine import FineForecast
from fengwu_ghr.training.loop import Task
from fengwu_ghr.training.losses import LossWeights, spectral_loss, weighted_mse
from fengwu_ghr.training.pretrain import output_scale
from fengwu_ghr.training.replay import Leg, ReplayBuffer
from fengwu_ghr.training.scores import Scores
from fengwu_ghr.training.stage import AdaptStage

OBJECTIVES: dict[str, Callable[[Tensor, Tensor, LossWeights], Tensor]] = {
    "mse": weighted_mse,
    "spectral": spectral_loss,
}


@dataclass(frozen=True, eq=False)
class Prepared:
    """A stage ready to be trained; `before` are the scores of the checkpoint it begins with."""

    stage: AdaptStage
    forecast: FineForecast
    train: FineSamples
    scores: Scores
    weights: LossWeights
    before: dict[str, float]
    about: dict[str, Any]


class AdaptTask(Task):
    """What the tasks of both kinds share: the model, which part is trained, what errors cost, scores."""

    def __init__(self, prepared: Prepared, phase: int) -> None:
        self.model = prepared.forecast.model
        self.forecast, self.prepared, self.stage = prepared.forecast, prepared, prepared.stage
        self.phase = self.stage.phases[phase - 1]
        self.stream = (self.stage.seed, phase)

    def rate_factor(self, name: str) -> float:
        return self.stage.base_rate if part_of(name) == "backbone" else 1.0

    def cost(
        self,
        state: Float32[Tensor, "batch channel row column"],
        truth: Float32[Tensor, "batch channel row column"],
    ) -> Float[Tensor, ""]:
        return OBJECTIVES[self.stage.objective](state, truth, self.prepared.weights.to(state.device))

    def validate(self) -> dict[str, float]:
        """Scores of the model, and beside them those of the checkpoint the stage began with."""
        before = {f"{name} before": value for name, value in self.prepared.before.items()}
        return self.prepared.scores.of(self.forecast.step, self.forecast.device) | before

    def describe(self) -> dict[str, Any]:
        words = {"name", "description", "licence"}
        about = self.stage.model_dump(mode="json", exclude={*words, "train", "phases"})
        return about | {"rollout_steps": self.phase.rollout_steps} | self.prepared.about


class RolloutTask(AdaptTask):
    """Forecasts of a few steps from fine analyses, differentiated whole; the loss is the mean over the steps."""

    def __init__(self, prepared: Prepared, phase: int) -> None:
        super().__init__(prepared, phase)
        self._train = prepared.train
        self._length = self.phase.rollout_steps + 1
        if self._train.count(self._length) == 0:
            raise InputError(
                f"rollouts of {self._length - 1} steps need series of {self._length} states; the longest training "
                f"series in {self._train.world.folder} has {max(map(len, self._train.series))}"
            )
        std = output_scale(self._train.world.statistics, self._train.world.channels.names)
        self._noise_std = self.stage.noise * std

    def loss(self, numbers: range) -> Float[Tensor, ""]:
        device = self.forecast.device
        indices = [self._index(number) for number in numbers]
        states = torch.stack([self._train.sample(index, self._length) for index in indices]).to(device)
        state, losses = self._start(numbers, states[:, 0]), []
        for lead, truth in enumerate(states.unbind(dim=1)[1:]):
            times = [self._train.frame_time(index, self._length, lead) for index in indices]
            state = self.forecast.step(state, lead, times)
            losses.append(self.cost(state, truth))
        return torch.stack(losses).mean()

    def _index(self, number: int) -> int:
        return draw(number, count=self._train.count(self._length), stream=self.stream)

    def _start(
        self, numbers: range, states: Float32[Tensor, "batch channel row column"]
    ) -> Float32[Tensor, "batch channel row column"]:
        """The analyses with their noise, which has no say beyond the poles."""
        if not self.stage.noise:
            return states
        like = states[0]
        generators = (noise_generator(n, stream=self.stream, device=like.device) for n in numbers)
        noise = torch.stack([torch.randn(like.shape, generator=g, device=like.device) for g in generators])
        return self.forecast.refilled(states + self._noise_std.to(like.device) * noise)


class ReplayTask(AdaptTask):
    """Single steps from replayed forecasts, at all lead steps, against the analyses of their valid times."""

    def __init__(self, prepared: Prepared, phase: int) -> None:
        super().__init__(prepared, phase)
        self._batch = self.phase.settings(self.stage.train).batch
        self._buffer = ReplayBuffer(prepared.train, self.stage.replay, stream=self.stream)

    def loss(self, numbers: range) -> Float[Tensor, ""]:
        step, batch = numbers.start // self._batch, self._batch
        legs = self._buffer.draw(step, batch)
        flown = [self._fly(legs[number - step * batch]) for number in numbers]
        results = every_ranks([state for state, _ in flown])
        self._buffer.put(step, legs, [state.cpu() for state in results])
        return torch.stack([cost for _, cost in flown]).mean()

    def _fly(self, leg: Leg) -> tuple[Float32[Tensor, "channel row column"], Float[Tensor, ""]]:
        """Where the forecast is after one more step, and what its error there costs."""
        device = self.forecast.device
        truth = torch.from_numpy(self.prepared.train.state(*leg.target))[None].to(device)
        time = self.prepared.train.valid_time(*leg.valid)
        state = self.forecast.step(self._buffer[leg.entry][None].to(device), leg.lead, [time])
        return state[0].detach(), self.cost(state, truth)

    def memory(self) -> dict[str, Float[Tensor, "..."]]:
        return self._buffer.tensors()

    def recall(self, memory: Mapping[str, Float[Tensor, "..."]]) -> None:
        self._buffer.restore(memory)


def every_ranks(mine: Sequence[Float[Tensor, "*shape"]]) -> list[Float[Tensor, "*shape"]]:
    """The tensors of a batch of which rank r of R has every R-th from r on, in order and the same on every rank."""
    if not dist.is_initialized():
        return list(mine)
    stacked = torch.stack(list(mine))
    parts = [torch.empty_like(stacked) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, stacked)
    return [tensor for group in zip(*parts) for tensor in group]


def task_of(prepared: Prepared, *, phase: int) -> AdaptTask:
    """The task of this phase of the stage, counted from 1."""
    return (RolloutTask if prepared.stage.kind == "res" else ReplayTask)(prepared, phase)
