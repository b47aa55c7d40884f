"""What workers can be made to do with an initial time; importable by them."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from distributed import get_worker

from fengwu_ghr.errors import OutputError
from fengwu_ghr.hindcast.task import Outcome


def finish() -> None:
    return


def hang() -> None:
    time.sleep(3600)


def die() -> None:
    os._exit(9)


def outgrow() -> None:
    """Far beyond what the nanny allows."""
    kept = []
    while True:
        kept.append(np.ones(2**22))
        time.sleep(0.01)


def fill_the_disk() -> None:
    raise OutputError("cannot write season.zarr: No space left on device")


@dataclass(frozen=True)
class Works:
    """Does what is said for an initial time; others finish. Every attempt leaves a file in `folder`."""

    folder: Path
    by_time: dict[datetime, Callable[[], None]]
    only_first: bool = False

    def __call__(self, time: datetime, topic: str) -> Outcome:
        worker = get_worker()
        attempt = len(list(self.folder.glob(f"{time:%d%H}-*")))
        (self.folder / f"{time:%d%H}-{attempt}-{os.getpid()}").touch()
        worker.log_event(topic, {"time": time.isoformat(), "worker": worker.address, "stage": "computing"})
        if not (self.only_first and attempt):
            self.by_time.get(time, finish)()
        return Outcome(time, True)
