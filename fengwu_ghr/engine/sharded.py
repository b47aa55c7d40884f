"""The nine sub-fields over several processes of one machine, each on a GPU of its own.

Every rank holds the whole state and all weights, and computes its share: of the sub-fields in encoder, trunk and
decoder, of the windows and of the rows of tokens in a RES block. With the token-level split the decoder's norms span
the globe, so that every rank decodes everything. The forecasting process is rank 0 and owns the others: they are told
by lines on their standard input, and end when it ends.
"""

import json
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from queue import Queue
from threading import Event, Thread
from time import monotonic, sleep
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fengwu_ghr.attention.window import from_windows, to_windows
from fengwu_ghr.checkpoint import Checkpoint
from fengwu_ghr.engine.finite import Seen, res_name
from fengwu_ghr.engine.stepper import MasterState, Stepper
from fengwu_ghr.engine.torch_engine import Compute, TorchStepper
from fengwu_ghr.errors import FengwuError, ResourceError
from fengwu_ghr.res import RES, SUBFIELDS, fold, unfold
from fengwu_ghr.transfer import Place, subfields

PATIENCE = timedelta(minutes=30)
"""How long a rank waits for the slowest before it gives up."""
LAST_WORDS = 10.0
"""Seconds in which a rank that failed must have ended."""

_READY = "ready"


def open_stepper(checkpoint: Checkpoint, compute: Compute) -> Stepper:
    """The torch stepper that these settings ask for, alone or over ranks. Raises the errors of both."""
    return TorchStepper(checkpoint, compute) if compute.ranks == 1 else ShardedStepper(checkpoint, compute)


class RankStepper(TorchStepper):
    """One rank's part of every step; all ranks of the process group must take every step."""

    def __init__(self, checkpoint: Checkpoint, compute: Compute, *, rank: int) -> None:
        super().__init__(checkpoint, compute)
        self._rank, self._ranks = rank, compute.ranks
        self._mine = self._share(SUBFIELDS)

    def put(self, states: Sequence[MasterState], valid_time: datetime) -> None:
        """As `Stepper.put`; what counts is what rank 0 puts."""
        super().put(states, valid_time)
        for state in self._states:
            dist.broadcast(state, 0)

    def put_none(self, valid_time: datetime) -> None:
        """The part of another rank in `put`."""
        shape = (len(self.channel_set), *self.network.shape)
        self.put([np.zeros(shape, np.float32) for _ in range(self.history)], valid_time)

    def _share(self, count: int, rank: int | None = None) -> range:
        rank = self._rank if rank is None else rank
        return range(count * rank // self._ranks, count * (rank + 1) // self._ranks)

    def _tokens(self, forcing: Tensor | None) -> Tensor:
        batch = self._compute.batch
        return self._model.tokens_of(self._states, forcing=forcing, batch=batch, some=self._mine)

    def _trunk(self, tokens: Tensor, index: int = 0) -> Tensor:
        batch = self._compute.batch
        return self._model.advance(tokens, step=index, batch=batch, exchange=self._exchange)

    def _write(self, target: Tensor, newest: Tensor, tokens: Tensor) -> None:
        if self._model.architecture.split == "pixel":
            self._model.write_decoded(target, newest, self._decoded(tokens))
        else:
            super()._write(target, newest, self._gather(tokens, SUBFIELDS))

    def _saw(self, index: int) -> Seen:
        """Of all ranks together, so that all stop at the same step and name the same part."""
        seen = super()._saw(index)
        dist.all_reduce(seen.sums)
        return seen

    def _exchange(self, block: nn.Module, mine: Tensor, batch: int) -> Tensor:
        """A RES block: the windows are shared out, then rows of tokens with what their neighbours must tell."""
        assert isinstance(block, RES)
        folded = fold(self._gather(mine, SUBFIELDS))
        _, tall, wide, _ = folded.shape
        groups = to_windows(block.norm1(block.with_phase(folded)), window=block.window)
        some = groups[_slice(self._share(len(groups)))]
        mixed = self._gather(block.mix(some, batch) if len(some) else some, len(groups))
        folded = folded + from_windows(mixed, rows=tall, columns=wide, window=block.window)
        told = block.norm2(block.with_phase(folded))
        parts = -(-len(self._mine) // batch)
        change = block.change(told, _slice(self._share(tall)), parts=parts)[0]
        tokens = unfold(folded + self._gather(change, tall))[_slice(self._mine)]
        self._watch.see(res_name(list(self._model.res).index(block)), tokens)
        return tokens

    def _decoded(self, tokens: Tensor) -> Iterator[tuple[list[Place], Tensor]]:
        """What all ranks decode, a batch of each in turn."""
        batch = self._compute.batch
        shares = [self._share(SUBFIELDS, rank) for rank in range(self._ranks)]
        for first in range(0, max(map(len, shares)), batch):
            now = [share[first : first + batch] for share in shares]
            few = tokens[first : first + batch]
            rows, columns = self._model.architecture.grid_shape
            shape = (0, self._model.architecture.channels, rows, columns)
            fields = self._model.backbone.decoder(few) if len(few) else tokens.new_empty(shape)
            whole = self._gather(fields, 0, counts=[len(some) for some in now])
            yield subfields([k for some in now for k in some]), whole

    def _gather(self, part: Tensor, count: int, counts: Sequence[int] = ()) -> Tensor:
        """The parts of all ranks in a row: their shares of `count`, or as many as `counts` says."""
        counts = counts or [len(self._share(count, rank)) for rank in range(self._ranks)]
        padded = part.new_zeros(max(counts), *part.shape[1:])  # all must send alike
        padded[: len(part)] = part
        octets = padded.view(torch.uint8)  # whatever the type
        found = [torch.empty_like(octets) for _ in counts]
        dist.all_gather(found, octets)
        return torch.cat([every.view(part.dtype)[:size] for every, size in zip(found, counts)])


class ShardedStepper:
    """Rank 0, and the other ranks in processes of its own, behind the protocol of a stepper.

    Where one fails or dies all end, and the call under way raises ResourceError with its last words.
    """

    def __init__(self, checkpoint: Checkpoint, compute: Compute) -> None:
        folder = tempfile.TemporaryDirectory(prefix="ranks-")
        meeting = Path(folder.name, "meeting")
        self._others = [_Other(checkpoint, compute, rank, meeting) for rank in range(1, compute.ranks)]
        self.close = weakref.finalize(self, _end, self._others, folder)
        with self._explained():
            self._first = RankStepper(checkpoint, compute, rank=0)
            for other in self._others:
                other.wait_until_ready()
            _meet(compute, 0, meeting)
        self.network, self.channel_set = self._first.network, self._first.channel_set
        self.history, self.step_hours = self._first.history, self._first.step_hours
        self.numerics, self.sends = self._first.numerics, self._first.sends

    def put(self, states: Sequence[MasterState], valid_time: datetime) -> None:
        """As `Stepper.put`, on every rank."""
        with self._explained():
            self._tell("put", valid_time.isoformat())
            self._first.put(states, valid_time)

    def step(self, index: int) -> None:
        """As `Stepper.step`; all ranks take it together."""
        with self._explained():
            self._tell("step", str(index))
            self._first.step(index)

    def get(self, out: MasterState, *, age: int = 0) -> None:
        """As `Stepper.get`, from rank 0."""
        with self._explained():
            self._first.get(out, age=age)

    def allocate(self) -> list[MasterState]:
        """As `Sender.allocate`."""
        return self._first.allocate()

    def send(self, out: Sequence[MasterState]) -> Callable[[], None]:
        """As `Sender.send`, from rank 0."""
        return self._first.send(out)

    def _tell(self, verb: str, value: str) -> None:
        for other in self._others:
            other.tell(f"{verb} {value}")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What goes wrong because another rank has ended is told as that; after any error none is left."""
        try:
            yield
        except (RuntimeError, OSError) as error:
            explanation = _last_words(self._others)
            self.close()
            if explanation is None:
                raise
            raise explanation from error
        except BaseException:
            self.close()
            raise


class _Other:
    """Another rank: told by lines on its standard input, heard by lines on its standard output."""

    def __init__(self, checkpoint: Checkpoint, compute: Compute, rank: int, meeting: Path) -> None:
        self.rank, self.said, self.is_dismissed = rank, "", False
        self._is_ready, self._aborts = Event(), compute.device == "cuda"
        order = {"model": str(checkpoint.folder.absolute()), "rank": rank, "meeting": str(meeting)}
        # A session of its own: Ctrl-C is for rank 0, which ends the others.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fengwu_ghr.engine.sharded", json.dumps(order | {"compute": asdict(compute)})],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        Thread(target=self._listen, daemon=True).start()

    def tell(self, line: str) -> None:
        """Raises OSError where it has ended."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def wait_until_ready(self) -> None:
        """Raises RuntimeError where it ends before it is."""
        while not self._is_ready.wait(0.05):
            if self.process.poll() is not None:
                raise RuntimeError(f"rank {self.rank} did not start")

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip() == _READY:
                self._is_ready.set()
            else:
                self.said += line
        if self._aborts and not self.is_dismissed:  # NCCL would wait for it
            dist.distributed_c10d._abort_process_group()


def _last_words(others: Sequence[_Other]) -> ResourceError | None:
    """Which rank has ended, and how; None where none has."""
    end = monotonic() + LAST_WORDS
    while not any(other.process.poll() for other in others) and monotonic() < end:
        sleep(0.05)
    sleep(0.2)  # for what it said
    ended = [(other.process.poll(), other) for other in others if other.process.poll() is not None]
    if not ended:
        return None
    # Who was left alone ends with status 1; who began it with another.
    status, first = min(ended, key=lambda pair: pair[0] == 1)
    said = f": {first.said.strip()}" if first.said.strip() else ""
    return ResourceError(
        f"rank {first.rank} of {len(others) + 1} ended with status {status}{said}; run the same command again to "
        "resume, or ask for fewer ranks"
    )


def _end(others: Sequence[_Other], folder: tempfile.TemporaryDirectory[str]) -> None:
    """No other rank is left."""
    for other in others:
        other.is_dismissed = True
        other.process.kill()  # it has nothing to save, and may be waiting for one that is gone
        other.process.wait()
        for pipe in (other.process.stdin, other.process.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
    if dist.is_initialized():
        dist.destroy_process_group()
    folder.cleanup()


def _meet(compute: Compute, rank: int, meeting: Path) -> None:
    """Returns when all ranks are there."""
    dist.init_process_group(
        "nccl" if compute.device == "cuda" else "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=compute.ranks,
        timeout=PATIENCE,
    )
    dist.barrier()


def _serve(order: Mapping[str, Any]) -> None:
    """The life of another rank: does what it is told until rank 0 is gone."""
    told: Queue[str] = Queue()
    Thread(target=_read_lines, args=(told,), daemon=True).start()
    compute, rank = Compute(**order["compute"]), order["rank"]
    if compute.device == "cuda":
        torch.cuda.set_device(rank)
    stepper = RankStepper(Checkpoint.open(Path(order["model"])), compute, rank=rank)
    print(_READY, flush=True)
    _meet(compute, rank, Path(order["meeting"]))
    while True:
        verb, value = told.get().split()
        if verb == "put":
            stepper.put_none(datetime.fromisoformat(value))
        else:
            stepper.step(int(value))


def _read_lines(told: "Queue[str]") -> None:
    for line in sys.stdin:
        told.put(line)
    os._exit(0)  # rank 0 is gone, whatever this one waits for


def _slice(some: range) -> slice:
    return slice(some.start, some.stop)


if __name__ == "__main__":
    try:
        _serve(json.loads(sys.argv[1]))
    except FengwuError as error:
        print(error, flush=True)
        os._exit(error.exit_code)
    except RuntimeError as error:  # another rank is gone, most likely
        print(error, flush=True)
        os._exit(1)
