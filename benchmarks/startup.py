"""The time until `fengwu-ghr --help` has answered, in a fresh process, beside what its users also start.

    python -m benchmarks.startup [--repeat 7]

`pass` is the interpreter alone, the floor; `import torch` is what a command pays that loads its network first. The
commands take turns, after one start of each that is not measured: modules are compiled and in the page cache.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.passport import passport

AIM = 0.3
"""Seconds, of the median."""
OURS = "fengwu-ghr --help"


def commands() -> dict[str, list[str]]:
    """By what they are called in the table; the scripts are those beside this interpreter, as far as there."""
    scripts = Path(sys.executable).parent
    found = {
        OURS: [str(scripts / "fengwu-ghr"), "--help"],
        "python -c pass": [sys.executable, "-c", "pass"],
        'python -c "import torch"': [sys.executable, "-c", "import torch"],
        "cfgrib --help": [str(scripts / "cfgrib"), "--help"],
        "earth2studio --help": [str(scripts / "earth2studio"), "--help"],
    }
    return {name: command for name, command in found.items() if name == OURS or Path(command[0]).exists()}


def measure(programs: dict[str, list[str]], repeat: int) -> dict[str, list[float]]:
    """Seconds of every start of each."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for is_measured in [False] + [True] * repeat:
        for name, command in programs.items():
            taken = _start(command)
            if is_measured:
                seconds[name].append(taken)
    return seconds


def _start(command: Sequence[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin


def table(seconds: dict[str, list[float]]) -> str:
    """Best and median of each, the medians over ours, and whether ours meets the aim."""
    ours = median(seconds[OURS])
    lines = ["| command | best, s | median, s | over ours | aim |", "|---|---|---|---|---|"]
    for name, taken in seconds.items():
        aim = f"<= {AIM} s: {'met' if ours <= AIM else 'missed'}" if name == OURS else ""
        lines.append(
            f"| `{name}` | {min(taken):.3f} | {median(taken):.3f} | {median(taken) / ours:.2f} x | {aim} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=7)
    print(table(measure(commands(), parser.parse_args().repeat)))
    print()
    print(passport())


if __name__ == "__main__":
    main()
