"""Worker processes with deadlines: what one of them dies of becomes an error that names file and offset."""

import json
import mmap
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float32

from fengwu_ghr.errors import FengwuError, InputError

START_DEADLINE = 120.0
"""Seconds in which a worker must have imported its libraries."""

Task = Mapping[str, Any]
Reply = dict[str, Any]


class SharedArray:
    """Float32 values that workers fill: consecutive regions, each of which starts on a page."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.starts, end = [], 0
        for size in sizes:
            self.starts.append(end)
            end += -(-4 * size // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        self.descriptor = _anonymous_file(max(end, 1))
        self._memory = mmap.mmap(self.descriptor, max(end, 1))
        self.regions: list[Float32[np.ndarray, " point"]] = [
            np.frombuffer(self._memory, np.float32, size, start) for start, size in zip(self.starts, sizes)
        ]

    def close(self) -> None:
        """Give the descriptor back; the memory stays while an array looks at it."""
        os.close(self.descriptor)


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    channel: socket.socket
    late_at: float
    is_ready: bool = False
    number: int | None = None
    text: bytes = b""

    def receive(self) -> Reply | None:
        """The reply, once it is complete; an EOFError when the process has died."""
        part = self.channel.recv(1 << 20)
        if not part:
            raise EOFError
        self.text += part
        if not self.text.endswith(b"\n"):
            return None
        reply, self.text = json.loads(self.text), b""
        return reply

    def bury(self) -> int:
        """End the process; returns its exit status."""
        self.channel.close()
        if self.process.poll() is None:
            self.process.kill()
        return self.process.wait()


class WorkerPool:
    """A few worker processes that outlive the tasks, and are replaced when one dies of them.

    A context manager, for one thread. Leaving it ends the workers; they also end when this process does.
    """

    def __init__(self, workers: int = 2) -> None:
        if workers < 1:
            raise ValueError(f"a pool needs at least one worker; got {workers}")
        self.size = workers
        self._workers: list[_Worker] = []

    def __enter__(self) -> "WorkerPool":
        self._fill(self.size)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every worker."""
        while self._workers:
            self._workers.pop().bury()

    def run(
        self, tasks: Sequence[Task], *, deadline: float, shared: SharedArray | None = None
    ) -> list[Reply]:
        """The replies to the tasks, in their order; workers write fields into `shared`.

        Raises InputError naming file and offset of the first message that cannot be read, that kills its worker or
        that takes more than `deadline` seconds.
        """
        try:
            return _Run(self, tasks, deadline, shared).replies()
        except BaseException:
            # Whatever is still under way belongs to a run that nobody waits for any more.
            for worker in [w for w in self._workers if w.number is not None]:
                self._drop(worker)
            raise

    def _fill(self, wanted: int) -> None:
        while len(self._workers) < min(wanted, self.size):
            self._workers.append(_start_worker())

    def _drop(self, worker: _Worker) -> int:
        self._workers.remove(worker)
        return worker.bury()


class _Run:
    """One pass over a list of tasks."""

    def __init__(
        self, pool: WorkerPool, tasks: Sequence[Task], deadline: float, shared: SharedArray | None
    ) -> None:
        self.pool, self.tasks, self.deadline, self.shared = pool, tasks, deadline, shared
        self.waiting = deque(range(len(tasks)))
        self.found: dict[int, Reply] = {}
        self.failures: dict[int, str] = {}

    def replies(self) -> list[Reply]:
        while self.waiting or self._busy():
            self._assign()
            self._listen()
        if self.failures:
            first = min(self.failures)
            raise InputError(f"{_where(self.tasks[first])}: {self.failures[first]}")
        return [self.found[number] for number in range(len(self.tasks))]

    def _busy(self) -> list[_Worker]:
        return [w for w in self.pool._workers if w.number is not None]

    def _assign(self) -> None:
        self.pool._fill(len(self._busy()) + len(self.waiting))
        for worker in list(self.pool._workers):
            if worker.is_ready and worker.number is None and self.waiting:
                self._send(worker, self.waiting.popleft())

    def _send(self, worker: _Worker, number: int) -> None:
        line = json.dumps({**self.tasks[number], "deadline": self.deadline}).encode() + b"\n"
        try:
            sent = socket.send_fds(worker.channel, [line], [self.shared.descriptor] if self.shared else [])
            worker.channel.sendall(line[sent:])
        except OSError:
            # It died while it had nothing to do: not this message's fault.
            self.pool._drop(worker)
            self.waiting.appendleft(number)
            return
        worker.number, worker.late_at = number, time.monotonic() + self.deadline

    def _listen(self) -> None:
        """Wait for the next reply, death or deadline, and book it."""
        workers = [w for w in self.pool._workers if w.number is not None or not w.is_ready]
        with selectors.DefaultSelector() as selector:
            for worker in workers:
                selector.register(worker.channel, selectors.EVENT_READ, worker)
            patience = min((w.late_at for w in workers), default=0.0) - time.monotonic()
            heard = [key.data for key, _ in selector.select(max(patience, 0.0))]
        for worker in heard:
            self._hear(worker)
        for worker in workers:
            if worker not in heard and time.monotonic() >= worker.late_at:
                self._fail(
                    worker, f"ecCodes did not finish it within {self.deadline:g} s; it is taken as corrupt"
                )

    def _hear(self, worker: _Worker) -> None:
        try:
            reply = worker.receive()
        except (EOFError, OSError):
            self._fail(worker, "ecCodes crashed on it; the message is corrupt")
            return
        if reply is None:
            return
        number, worker.number, worker.is_ready = worker.number, None, True
        if number is None:
            return
        if "error" in reply:
            self._give_up(number, f"ecCodes cannot read it: {reply['error']}")
        self.found[number] = reply

    def _fail(self, worker: _Worker, reason: str) -> None:
        number, status = worker.number, self.pool._drop(worker)
        if number is None:
            raise FengwuError(
                f"a GRIB worker process did not start (exit status {status}); its own message stands above"
            )
        self._give_up(number, reason)

    def _give_up(self, number: int, reason: str) -> None:
        self.failures[number] = reason
        self.waiting.clear()


def _start_worker() -> _Worker:
    ours, theirs = socket.socketpair()
    try:
        # -S and the path: no site hooks, which cost time, and the same modules as here, however they were found.
        command = [sys.executable, "-S", "-P", "-m", "fengwu_ghr.grib.worker", str(theirs.fileno())]
        process = subprocess.Popen(
            command,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return _Worker(process, ours, late_at=time.monotonic() + START_DEADLINE)


def _environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, *(entry for entry in sys.path if entry and entry != root)])
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **threads, "PYTHONPATH": path}


def _where(task: Task) -> str:
    part = f", field {task['part'] + 1}" if task.get("part") else ""
    return f"{task['path']}: the message at byte {task['offset']}{part}"


def _anonymous_file(size: int) -> int:
    """A descriptor of memory, or of an unlinked temporary file where there is no such thing."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("fengwu-ghr-fields", os.MFD_CLOEXEC)
    else:
        descriptor, name = tempfile.mkstemp(prefix="fengwu-ghr-")
        os.unlink(name)
    os.ftruncate(descriptor, size)
    return descriptor
