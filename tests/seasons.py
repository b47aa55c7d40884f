"""Small seasons for the tests: analyses of the analytic atmosphere, a configuration, and what a run of it left."""

import json
import subprocess
import sys
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from fengwu_ghr.synthetic import write_synthetic_analysis

FIRST = datetime(2024, 1, 1)
LEADS = 5
"""Of 24 hours, every six."""


def times_of(dates: int) -> list[datetime]:
    return [FIRST + timedelta(hours=12 * i) for i in range(dates)]


def write_analyses(folder: Path, dates: int) -> Path:
    folder.mkdir(exist_ok=True)
    for time in times_of(dates):
        write_synthetic_analysis(folder / f"{time:%Y%m%d%H}.grib2", initial_time=time)
    return folder


def season(analyses: Path, folder: Path, count: int, **sections: dict[str, Any]) -> dict[str, Any]:
    """A configuration as a tree; one thread a worker, so that any number of workers gives the same bytes."""
    usual: dict[str, dict[str, Any]] = {
        "model": {"name": "ghr-tiny-1p8"},
        "dates": {
            "first": f"{FIRST:%Y-%m-%dT%H:%M}",
            "last": f"{times_of(count)[-1]:%Y-%m-%dT%H:%M}",
            "every_hours": 12,
        },
        "input": {"files": [f"{analyses}/{{time:%Y%m%d%H}}.grib2"]},
        "output": {"zarr": str(folder / "season.zarr"), "grib": str(folder / "grib")},
        "forecast": {"lead_time_hours": 24, "variables": ["z", "2t"]},
        "compute": {"threads": 1, "memory_budget": "2GiB"},
        "cluster": {"workers": 2, "dashboard": ":0"},
    }
    return {name: usual.get(name, {}) | sections.get(name, {}) for name in usual | sections}


def write_toml(path: Path, tree: dict[str, Any]) -> Path:
    """Of sections of plain values: JSON spells those as TOML does."""
    lines = []
    for section, values in tree.items():
        lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def command(config: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "fengwu_ghr.cli", "hindcast", str(config), *more]


def run(config: Path, *more: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(config, *more), capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def shards(store: Path) -> dict[str, bytes]:
    """Every byte a reader of the arrays can see, and no bookkeeping."""
    files = (p for p in store.rglob("*") if p.is_file())
    return {str(f.relative_to(store)): f.read_bytes() for f in files if "c" in f.relative_to(store).parts}


def gribs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def commits(store: Path) -> dict[str, Counter[str]]:
    """By initial time, how often each lead was committed and the whole finished, from the manifest."""
    found = {}
    for manifest in (store / "_manifest").glob("*.jsonl"):
        entries = [json.loads(line) for line in manifest.read_text().splitlines()]
        found[manifest.stem] = Counter(
            f"+{entry['lead_seconds'] // 3600}h" if entry["kind"] == "lead" else entry["kind"]
            for entry in entries
        )
    return found


def check_committed_once(store: Path, dates: int) -> None:
    expected = {"run": 1, "finished": 1} | {f"+{6 * i}h": 1 for i in range(LEADS)}
    assert commits(store) == {f"{time:%Y%m%dT%H%M%S}": expected for time in times_of(dates)}
