"""The verbs of `fengwu-ghr attention`."""

import json
import tempfile
from dataclasses import asdict
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fengwu_ghr.errors import UsageError
from fengwu_ghr.options import Quiet, Verbose, list_of, verb

if TYPE_CHECKING:
    from fengwu_ghr.attention.bench import Build, Row

app = typer.Typer(
    no_args_is_help=True, help="Attention over contexts that do not fit: measured against others."
)


@app.callback()
def top() -> None:
    """Attention over contexts that do not fit."""


@app.command(epilog="Example: fengwu-ghr attention bench --tokens 16384,131072 --heads 8")
@verb
def bench(
    tokens: Annotated[str, typer.Option(help="Lengths of the context, as 16384,131072.")] = "16384,65536",
    heads: Annotated[int, typer.Option(min=1, help="Heads of keys and values.")] = 2,
    width: Annotated[int, typer.Option(min=8, help="Width of a head.")] = 128,
    share: Annotated[int, typer.Option(min=1, help="Query heads that share one of keys and values.")] = 4,
    keys: Annotated[
        Literal["topics", "iid", "field"],
        typer.Option(help="What keys are like: topics cluster, a field somewhat, iid not at all."),
    ] = "topics",
    where: Annotated[
        Literal["memory", "file"],
        typer.Option(help="Keep keys and values in memory, or in a file read cold."),
    ] = "memory",
    max_error: Annotated[float, typer.Option(help="Mean relative error that budgets are chosen for.")] = 0.01,
    threads: Annotated[int, typer.Option(min=1, help="Threads to compute with.")] = 1,
    folder: Annotated[
        Path | None, typer.Option(help="Where the file goes; default: a temporary folder.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Decode over long contexts: wave attention against full attention, page retrieval and an oracle, in one run."""
    from fengwu_ghr import console

    lengths = list_of(tokens, int)
    if not lengths or min(lengths) < 2048:
        raise UsageError(f"--tokens are lengths of 2048 or more; got {tokens!r}")
    if not 0 < max_error < 1:
        raise UsageError(f"--max-error is a share between 0 and 1; got {max_error}")
    found = []
    with tempfile.TemporaryDirectory(dir=folder) as made, console.StepProgress(quiet=quiet) as progress:
        for length in lengths:
            settings = {
                "tokens": length, "heads": heads, "dim": width, "share": share, "kind": keys, "max_error": max_error,
            }  # fmt: skip
            rows, build = _measure(settings, where, Path(made), threads, progress.note)
            found.append({"tokens": length, "rows": [asdict(row) for row in rows], "build": asdict(build)})
            if not as_json:
                _show(length, rows, build)
    if as_json:
        typer.echo(json.dumps(found, indent=2))


def _measure(
    settings: dict[str, Any], where: Literal["memory", "file"], folder: Path, threads: int, note: Any
) -> "tuple[list[Row], Build]":
    from fengwu_ghr.attention.bench import DecodeBench, bench_decode

    try:
        return bench_decode(DecodeBench(**settings), where=where, folder=folder, note=note, threads=threads)
    except ValueError as error:  # such as a field of a length that is no square
        raise UsageError(str(error)) from error


def _show(length: int, rows: "list[Row]", build: "Build") -> None:
    from fengwu_ghr import console

    slowest = next(row for row in rows if row.budget == 1.0)
    shown = [
        (
            row.name,
            f"{100 * row.budget:.3g} %",
            f"{100 * row.error:.2g} %",
            *_figures(1000 * row.seconds, slowest.seconds / row.seconds, row.megabytes),
        )
        for row in rows
    ]
    columns = ("attention", "tokens read", "mean error", "ms a decode", f"x {slowest.name}", "MB a decode")
    console.show_table(f"{length} tokens", columns, shown)
    of_prefill = f"{100 * build.share:.2g} % of the causal prefill at the rate measured here"
    console.show_facts("Index", [("built in", f"{console.human_duration(build.seconds)}, {of_prefill}")])


def _figures(*values: float) -> list[str]:
    """To one decimal; what was not measured is a dash."""
    return ["-" if isnan(value) else f"{value:.1f}" for value in values]
