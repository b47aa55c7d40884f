"""The same model in torch and in onnxruntime on the CPU: seconds a step, memory, how far the forecasts differ.

`python -m benchmarks.onnx [--model ghr-small-1p8] [--steps 3] [--threads 2] [--folder DIR]`. The model is exported
once in both packagings; every engine runs in a process of its own, from the same state.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import numpy as np

from benchmarks.passport import passport
from fengwu_ghr.catalogue import resolve_model
from fengwu_ghr.checkpoint import Checkpoint
from fengwu_ghr.engine.engines import package_sizes, stepper_for
from fengwu_ghr.engine.torch_engine import Compute
from fengwu_ghr.onnx_export import export_onnx
from fengwu_ghr.progress import Silence


def measure(
    model: Checkpoint, *, steps: int, threads: int, batch: int, weight_bytes: int, out: Path
) -> dict[str, float]:
    """Seconds of a step, the first left out, and the peak of this process; the last state lies in `out`."""
    state = np.random.default_rng(0).standard_normal((len(model.channels), *model.grid.shape), np.float32)
    stepper = stepper_for(model, Compute(threads=threads, batch=batch), weight_bytes=weight_bytes)
    stepper.put([state] * model.history, datetime(2024, 1, 1))
    took = []
    for index in range(steps + 1):
        start = time.perf_counter()
        stepper.step(index)
        took.append(time.perf_counter() - start)
    stepper.get(state)
    np.save(out, state)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": min(took[1:]), "first": took[0], "peak": peak}


def in_a_process_of_its_own(arguments: list[str]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.onnx", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="ghr-small-1p8")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=9, help="sub-fields at a time in torch")
    parser.add_argument("--weight-bytes", type=int, default=2**40)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--one", type=Path, help="measure this checkpoint here and print JSON")
    asked = parser.parse_args()
    if asked.one:
        out = asked.folder / "state.npy"
        model, how = Checkpoint.open(asked.one), {"threads": asked.threads, "batch": asked.batch}
        print(json.dumps(measure(model, steps=asked.steps, weight_bytes=asked.weight_bytes, out=out, **how)))
        return
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        report(Path(folder), asked)


def report(folder: Path, asked: argparse.Namespace) -> None:
    model = Checkpoint.open(resolve_model(asked.model))
    made = {
        packaging: export_onnx(model, folder / packaging, packaging=packaging, progress=Silence())
        for packaging in ("single", "chain")
    }
    tight = 2 * max(package_sizes(made["chain"], "cpu"))
    runs: list[tuple[str, Path, list[str]]] = [
        ("torch, 9 sub-fields at a time", model.folder, []),
        ("torch, 1 sub-field at a time", model.folder, ["--batch", "1"]),
        ("onnxruntime, one graph", made["single"].folder, []),
        ("onnxruntime, a chain", made["chain"].folder, []),
        (
            "onnxruntime, a chain, two graphs loaded at a time",
            made["chain"].folder,
            ["--weight-bytes", str(tight)],
        ),
    ]
    print("| engine | a step | over torch | peak of the process | largest difference |")
    print("|---|---|---|---|---|")
    usual = ["--steps", str(asked.steps), "--threads", str(asked.threads), "--folder", str(folder)]
    first: tuple[float, np.ndarray] | None = None
    for name, path, options in runs:
        found = in_a_process_of_its_own([*usual, "--one", str(path), *options])
        state = np.load(folder / "state.npy")
        first = first or (found["seconds"], state)
        ratio, difference = found["seconds"] / first[0], float(np.abs(state - first[1]).max())
        peak = found["peak"] / 2**30
        print(
            f"| {name} | {found['seconds']:.2f} s | {ratio:.2f} | {peak:.2f} GiB | {difference:.1e} |",
            flush=True,
        )
    print()
    print(passport(grid=f"{asked.model}, float32, {asked.threads} threads, best of {asked.steps} steps"))


if __name__ == "__main__":
    main()
