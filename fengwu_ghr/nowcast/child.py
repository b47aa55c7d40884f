"""Work that needs pysteps, in a process of its own: pysteps loads PROJ, and a process that uses ecCodes must not."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from fengwu_ghr.errors import InputError, ResourceError, UsageError

MODULE = "fengwu_ghr.nowcast.pysteps_child"
REQUEST, ARRAYS, RESULT, FACTS, REFUSAL = (
    "request.json",
    "arrays.npz",
    "result.npz",
    "facts.json",
    "refused.txt",
)
SECONDS = 1800
"""After which a child is given up."""


def has_pysteps() -> bool:
    """Whether the extra `nowcast` is installed; nothing of it is loaded."""
    return find_spec("pysteps") is not None


def run_child(
    task: str,
    settings: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray] | None = None,
    *,
    seconds: float = SECONDS,
) -> tuple[dict[str, np.ndarray], Any]:
    """The arrays that a task of `pysteps_child` made, and its facts; they come and go as files, without pickles.

    Raises UsageError where pysteps is not installed, InputError with what the child says of its input, ResourceError
    where it dies or takes too long.
    """
    if not has_pysteps():
        raise UsageError("this needs pysteps: install the extra, pip install 'fengwu_ghr[nowcast]'")
    with tempfile.TemporaryDirectory(prefix="fengwu-ghr-nowcast-") as name:
        folder = Path(name)
        (folder / REQUEST).write_text(json.dumps({"task": task, **settings}), encoding="utf-8")
        np.savez(folder / ARRAYS, allow_pickle=False, **(arrays or {}))
        _run(folder, task, seconds)
        if (folder / REFUSAL).exists():
            raise InputError((folder / REFUSAL).read_text(encoding="utf-8"))
        with open(folder / RESULT, "rb") as file, np.load(file, allow_pickle=False) as found:
            made = dict(found)
        return made, json.loads((folder / FACTS).read_text(encoding="utf-8"))


def _run(folder: Path, task: str, seconds: float) -> None:
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-W", "ignore", "-m", MODULE, str(folder)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise ResourceError(
            f"pysteps took more than {seconds:g} s for {task}; give it less at once"
        ) from None
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"signal {-done.returncode}"]
        raise ResourceError(f"pysteps failed at {task}: {last[0]}")
