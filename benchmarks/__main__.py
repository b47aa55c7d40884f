"""Runs the benchmarks named, or all of them, each in a process of its own: `python -m benchmarks [NAME...]`."""

import pkgutil
import subprocess
import sys
from pathlib import Path

NOT_BENCHMARKS = ("__main__", "memory", "passport")


def names() -> list[str]:
    """Every module of this folder that measures something, in alphabetical order."""
    modules = pkgutil.iter_modules([str(Path(__file__).parent)])
    return sorted(module.name for module in modules if module.name not in NOT_BENCHMARKS)


def main(wanted: list[str]) -> int:
    """Runs them in turn; returns the exit status: 0, 1 when one failed, 2 for an unknown name."""
    unknown = sorted(set(wanted) - set(names()))
    if unknown:
        print(f"no benchmark is named {', '.join(unknown)}; there are {', '.join(names())}", file=sys.stderr)
        return 2
    failed = []
    for name in wanted or names():
        print(f"\n## {name}\n", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
