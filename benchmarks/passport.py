"""What a number is worth nothing without: machine, versions, grid, date and the command that made it."""

import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from fengwu_ghr.machine import describe_machine

LIBRARIES = ("fengwu_ghr", "numpy", "torch", "eccodes", "zarr", "tensorstore", "xarray")


def passport(*, grid: str = "") -> str:
    """Markdown lines that say on what, with what, when and how the table above them was measured."""
    lines = {
        "Machine": describe_machine(),
        "Versions": f"Python {platform.python_version()}, {', '.join(_versions())}",
        "Grid": grid,
        "Date": f"{datetime.now(UTC):%Y-%m-%d}",
        "Command": f"`{_command()}`",
    }
    return "\n".join(f"- {name}: {text}" for name, text in lines.items() if text)


def best_of(function: Callable[[], object], repeat: int = 3) -> float:
    """Seconds of the fastest of `repeat` calls: the one that other work on the machine disturbed least."""
    if repeat < 1:
        raise ValueError(f"a measurement takes at least one call; got repeat={repeat}")
    return min(_seconds(function) for _ in range(repeat))


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _command() -> str:
    """As it was typed: under `python -m`, sys.argv holds the module's path instead of its name."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"-m {spec.name.removesuffix('.__main__')}" if spec else sys.argv[0]
    return " ".join(["python", program, *sys.argv[1:]])


def _versions() -> list[str]:
    found = []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found
