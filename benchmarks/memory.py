"""Memory of a command: of all its processes together, sampled while it runs."""

import os
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

INTERVAL = 0.01
"""Seconds between two looks."""


def tree_rss(pid: int) -> int:
    """Resident bytes of a process and all below it; pages shared between them are counted once per process."""
    total, waiting = 0, [pid]
    while waiting:
        process = Path("/proc") / str(waiting.pop())
        try:
            total += int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            for task in (process / "task").iterdir():
                waiting += [int(child) for child in (task / "children").read_text().split()]
        except (OSError, IndexError):
            continue
    return total


def run_watched(command: Sequence[str]) -> tuple[str, int]:
    """What the command printed, and the peak of the memory of its processes in bytes; raises when it fails."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peak, done = [0], threading.Event()

        def watch() -> None:
            while not done.wait(INTERVAL):
                peak[0] = max(peak[0], tree_rss(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        printed = process.communicate()[0]
        done.set()
        watcher.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}")
    return printed, peak[0]
