"""The optimiser loop, the only one there is: AdamW on a task, resumable to the bit, on one device or several.

A task says what is learned and what an error costs; the loop draws the numbers of samples, steps, averages over
ranks, follows the weights with their running mean, logs, saves, and stops cleanly.
"""

import atexit
import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from math import cos, isfinite, pi
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from fengwu_ghr.config import Section
from fengwu_ghr.durable import lock, make_folder, writing
from fengwu_ghr.engine.torch_engine import check_device
from fengwu_ghr.errors import Interrupted, UsageError
from fengwu_ghr.progress import Progress
from fengwu_ghr.training.record import Log, SavedState, draw_curves, load_state, save_state

FINAL_RATE = 0.02
"""The learning rate ends at this part of its peak."""

_LONGEST_WAIT = timedelta(hours=6)
_FREE_TO_CHANGE = {"validate_every", "save_every", "threads"}
"""Settings that a resumed run may change: they leave the losses as they are, but for the rounding of threads."""


class TrainSettings(Section):
    """How to optimise, whatever is learned."""

    samples: int = Field(100_000, gt=0)
    """Samples to learn from in all, repetitions counted; a whole number of batches of them is."""
    batch: int = Field(16, gt=0)
    """Samples in a step, over all ranks together."""
    learning_rate: float = Field(1e-3, gt=0)
    """The peak, after the warm-up; from there it falls along a cosine to a fiftieth."""
    warmup_steps: int = Field(200, ge=0)
    """Steps over which the learning rate rises from zero."""
    weight_decay: float = Field(0.05, ge=0)
    """AdamW's, for parameters of two and more dimensions."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's."""
    clip: float = Field(1.0, gt=0)
    """The norm to which a longer gradient is cut."""
    average_decay: float = Field(0.999, ge=0, lt=1)
    """Decay per step of the running mean of the weights, which is what is validated and kept; lower at first."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Of products of matrices; weights, states, norms and losses are float32 always."""
    device: Literal["cpu", "cuda"] = "cpu"
    validate_every: int = Field(500, gt=0)
    """Steps from one validation to the next; the last step is followed by one too."""
    save_every: int = Field(500, gt=0)
    """Steps from one save to the next."""
    threads: int = Field(0, ge=0)
    """0: as many as torch takes by itself."""

    @model_validator(mode="after")
    def _is_a_step(self) -> "TrainSettings":
        if self.samples < self.batch:
            raise ValueError(f"samples must fill one batch of {self.batch} or more; got {self.samples}")
        return self

    @property
    def steps(self) -> int:
        return self.samples // self.batch

    def rate_at(self, step: int) -> float:
        """The learning rate of this step, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        passed = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * (FINAL_RATE + (1 - FINAL_RATE) * (1 + cos(pi * passed)) / 2)

    def average_decay_at(self, step: int) -> float:
        """Short at first, so that the running mean does not remember the weights before training."""
        return min(self.average_decay, (1 + step) / (10 + step))


class Task(ABC):
    """What is learned: a model, what it costs, how good it is. Parameters that need a gradient are trained."""

    model: nn.Module

    @abstractmethod
    def loss(self, numbers: range) -> Float[Tensor, ""]:
        """The mean loss over the samples of these numbers of the run, in training precision, with its graph.

        A number stands for the same sample and the same noise at every call: that is what makes a run resumable.
        The data go to the device on which the model is.
        """

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """How good the model is on data held out, by name, finite; called with the running mean of the weights."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """All that fixes the losses beside the settings of the loop, as JSON values; a resumed run has the same."""

    def rate_factor(self, name: str) -> float:
        """What the learning rate of this parameter is multiplied with."""
        return 1.0

    def memory(self) -> dict[str, Float[Tensor, "..."]]:
        """What the task itself carries from step to step; saved with the weights."""
        return {}

    def recall(self, memory: Mapping[str, Float[Tensor, "..."]]) -> None:
        """Go on from what `memory` gave."""
        return


@dataclass(frozen=True)
class Ranks:
    """The processes that train together, started by torchrun, and this one among them."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls, device: str) -> "Ranks":
        """This process has met the others: gloo on CPUs, nccl on GPUs. Alone where torchrun did not start it."""
        check_device(device)
        rank, size, local = (
            int(os.environ.get(key, default))
            for key, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
        )
        if size > 1 and not dist.is_initialized():
            # Imported later, by an optimiser, it would keep the group as a default argument: the group's threads would
            # outlive `destroy_process_group` and now and then abort the process as Python ends (torch 2.13).
            import_module("torch.distributed.nn.functional")

            # The first rank validates while the others wait.
            dist.init_process_group("gloo" if device == "cpu" else "nccl", timeout=_LONGEST_WAIT)
            atexit.register(dist.destroy_process_group)
        return cls(rank, size, torch.device("cuda", local) if device == "cuda" else torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes, validates and reports."""
        return self.rank == 0

    def wait(self) -> None:
        """Every rank has come here."""
        if self.size > 1:
            dist.barrier()

    def share(self, numbers: range) -> range:
        """Every size-th of the numbers of a batch."""
        return numbers[self.rank :: self.size]

    def average_(self, values: list[Float[Tensor, "..."]]) -> None:
        """Each becomes its mean over all ranks, in place, in one exchange."""
        if self.size == 1:
            return
        flat = torch.cat([value.reshape(-1) for value in values])
        dist.all_reduce(flat)
        flat /= self.size
        for value, mean in zip(values, flat.split([value.numel() for value in values])):
            value.copy_(mean.view_as(value))

    def any(self, is_so: bool) -> bool:
        """Whether it is so on any rank: all go the same way."""
        said = torch.tensor([float(is_so)], device=self.device)
        self.average_([said])
        return float(said) > 0


def run_loop(task: Task, settings: TrainSettings, folder: Path, progress: Progress) -> None:
    """The model holds the running mean of its trained weights when this returns; a stopped run is gone on with.

    Raises Interrupted after SIGINT or SIGTERM, with everything saved; UsageError where the folder holds a run of
    other settings, the ranks do not divide the batch, or the loss is no longer finite; OutputError.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    ranks = Ranks.join(settings.device)
    if settings.batch % ranks.size:
        raise UsageError(f"{ranks.size} ranks must divide the batch of {settings.batch}; change one of them")
    task.model.to(ranks.device)
    with writing(folder):
        make_folder(folder)
    with _alone(ranks, folder), _stop_signals() as stop:
        run = _Run(task, settings, folder, progress, ranks)
        run.resume()
        run.train(stop)


def _alone(ranks: Ranks, folder: Path) -> AbstractContextManager[object]:
    """No other run is in the folder; the first rank sees to it. Raises OutputError."""
    if not ranks.leads:
        return nullcontext()
    return lock(folder / ".lock", holder=f"another process trains in {folder}")


class _Run:
    """The working parts of one run: weights, their running mean, optimiser, log."""

    def __init__(
        self, task: Task, settings: TrainSettings, folder: Path, progress: Progress, ranks: Ranks
    ) -> None:
        self.task, self.settings, self.folder, self.progress, self.ranks = (
            task, settings, folder, progress, ranks,
        )  # fmt: skip
        self.weights = {name: p for name, p in task.model.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.weights.items()}
        self.optimiser = _optimiser(task, self.weights, settings)
        self.step = 0
        optimising = settings.model_dump(mode="json", exclude=_FREE_TO_CHANGE)
        self.description = {"train": optimising, "task": task.describe()}

    def resume(self) -> None:
        """Everything is as it was at the last save, if there was one."""
        saved = load_state(self.folder, self.description)
        if saved is not None:
            self._restore(saved)
        if self.ranks.leads:
            self.log = Log(self.folder, step=self.step)

    def train(self, stop: "_Stop") -> None:
        """All steps lie behind, and the model holds the running mean."""
        settings, started = self.settings, (self.step, perf_counter())
        if self.ranks.leads:
            self.progress.begin(self.folder.name, self.step, settings.steps)
        self.task.model.train()
        while self.step < settings.steps:
            self._report(self._advance(), started)
            is_last = self.step == settings.steps
            if is_last or self.step % settings.validate_every == 0:
                self._validate()
            stops = self.ranks.any(stop.is_asked)
            if is_last or stops or self.step % settings.save_every == 0:
                self._save()
            if stops:
                raise Interrupted(
                    f"stopped after step {self.step} of {settings.steps}; everything is saved in {self.folder}, "
                    "run the same command again to resume"
                )
        self._swap()
        self.task.model.eval()

    def _advance(self) -> dict[str, float]:
        """One step of the optimiser; its loss over all ranks, its rate, the norm of its gradient."""
        settings, first = self.settings, self.step * self.settings.batch
        numbers = self.ranks.share(range(first, first + settings.batch))
        is_bfloat16 = settings.precision == "bfloat16"
        with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=is_bfloat16):
            loss = self.task.loss(numbers)
        loss.backward()
        gradients = [_gradient(weight) for weight in self.weights.values()]
        mean = loss.detach().clone()
        self.ranks.average_([*gradients, mean])
        norm = float(nn.utils.clip_grad_norm_(self.weights.values(), settings.clip))
        self._check_finite(float(mean), norm)
        rate = settings.rate_at(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimiser.step()
        self.optimiser.zero_grad()
        self._follow()
        self.step += 1
        return {"loss": float(mean), "rate": rate, "gradient": norm}

    @torch.no_grad()
    def _follow(self) -> None:
        share = 1 - self.settings.average_decay_at(self.step)
        torch._foreach_lerp_(list(self.average.values()), list(self.weights.values()), share)

    def _check_finite(self, loss: float, norm: float) -> None:
        if not (isfinite(loss) and isfinite(norm)):
            raise UsageError(
                f"training has diverged: at step {self.step + 1} the loss is {loss} and its gradient {norm}; lower "
                f"learning_rate (now {self.settings.learning_rate}) and train anew in another folder"
            )

    def _report(self, facts: dict[str, float], started: tuple[int, float]) -> None:
        if not self.ranks.leads:
            return
        self.log.write({"step": self.step, **facts})
        pace = (self.step - started[0]) * self.settings.batch / (perf_counter() - started[1])
        self.progress.stepped(self.step, facts | {"samples/s": pace})

    def _validate(self) -> None:
        """The first rank validates; the others wait for it at the next exchange."""
        if not self.ranks.leads:
            return
        is_bfloat16 = self.settings.precision == "bfloat16"
        self._swap()
        self.task.model.eval()
        with torch.no_grad(), torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=is_bfloat16):
            found = self.task.validate()
        self.task.model.train()
        self._swap()
        self.log.write({"step": self.step, "validation": found})
        draw_curves(self.folder)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        self.progress.note(f"validation after step {self.step}: {shown}")

    @torch.no_grad()
    def _swap(self) -> None:
        """The model's weights and their running mean change places."""
        for name, weight in self.weights.items():
            mean = self.average[name].clone()
            self.average[name].copy_(weight)
            weight.copy_(mean)

    def _save(self) -> None:
        if not self.ranks.leads:
            return
        tensors: dict[str, Tensor] = {f"weight/{name}": weight for name, weight in self.weights.items()}
        tensors |= {f"average/{name}": mean for name, mean in self.average.items()}
        for name, weight in self.weights.items():
            kept = self.optimiser.state[weight]
            tensors |= {f"optimiser/{name}/{key}": value for key, value in kept.items()}
        tensors |= {f"memory/{name}": value for name, value in self.task.memory().items()}
        self.log.flush()
        save_state(self.folder, SavedState(self.step, tensors), self.description)

    @torch.no_grad()
    def _restore(self, saved: SavedState) -> None:
        self.step = saved.step
        memory = {}
        for path, value in saved.tensors.items():
            kind, _, name = path.partition("/")
            if kind == "weight":
                self.weights[name].copy_(value)
            elif kind == "average":
                self.average[name].copy_(value)
            elif kind == "memory":
                memory[name] = value
            else:
                name, _, key = name.rpartition("/")
                weight = self.weights[name]
                self.optimiser.state[weight][key] = value.to(weight.device)
        self.task.recall(memory)


def _optimiser(task: Task, weights: Mapping[str, nn.Parameter], settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW with a group for every rate factor, and for what decays and what does not: vectors do not."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, weight in weights.items():
        decay = settings.weight_decay if weight.ndim > 1 else 0.0
        groups.setdefault((task.rate_factor(name), decay), []).append(weight)
    described = [{"params": p, "factor": f, "weight_decay": d} for (f, d), p in groups.items()]
    return torch.optim.AdamW(described, lr=settings.learning_rate, betas=settings.betas, fused=True)


def _gradient(weight: nn.Parameter) -> Float[Tensor, "..."]:
    """Zeros where this rank's samples did not touch the weight: the others wait for its part."""
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


@dataclass
class _Stop:
    is_asked: bool = False


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """The first SIGINT or SIGTERM is noted, for the loop to stop between two steps; a second one breaks in.

    Signals reach the main thread alone: a loop in another one is stopped with its process.
    """
    stop, before = _Stop(), {}

    def note(number: int, frame: FrameType | None) -> None:
        if stop.is_asked:
            raise KeyboardInterrupt
        stop.is_asked = True

    is_main = threading.current_thread() is threading.main_thread()
    for number in (signal.SIGINT, signal.SIGTERM) if is_main else ():
        before[number] = signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
