"""What the command line shows: tables, progress with rate and time to go, errors with their exit codes."""

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from fengwu_ghr.errors import FengwuError

if TYPE_CHECKING:
    from fengwu_ghr.verify.job import Verified

OUT = Console(highlight=False, soft_wrap=True)
ERR = Console(stderr=True, highlight=False, soft_wrap=True)
LOG = logging.getLogger("fengwu_ghr")


def set_verbosity(*, quiet: bool, verbose: bool) -> None:
    """Log lines go to the standard error: warnings when quiet, everything when verbose. Quiet shows no tables."""
    OUT.quiet = quiet
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    LOG.setLevel(level)


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    # Text, not markup: names of files and models are shown as they are.
    table = Table(title=Text(title), title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    if not OUT.is_terminal:
        OUT.width = 160  # a pipe has no width; do not fold what a program reads
    OUT.print(table)


def show_facts(title: str, facts: Iterable[tuple[str, object]]) -> None:
    """A titled list of names and values."""
    OUT.print(Text(title, style="bold"))
    for name, value in facts:
        OUT.print(f"  {name:<18} {value}", markup=False)


def show_verified(verified: "Verified") -> None:
    """A table of the first scores, and where all of them are."""
    show_table(verified.title, verified.columns, verified.rows)
    facts: list[tuple[str, object]] = [(path.name, path) for path in verified.files]
    facts.append(("there too", verified.more))
    if verified.notes:
        facts.append(("notes", verified.notes))
    show_facts("Verification", facts)


def report_error(error: BaseException) -> int:
    """Print what went wrong; returns the exit code."""
    code = error.exit_code if isinstance(error, FengwuError) else 1
    ERR.print("error:", style="bold red", end=" ")
    ERR.print(str(error), markup=False)
    return code


def human_bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def human_duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return str(timedelta(seconds=round(seconds)))


class StepProgress(AbstractContextManager["StepProgress"]):
    """Progress over steps of any work: a bar on a terminal, elsewhere a log line every `log_seconds` at most."""

    def __init__(self, *, quiet: bool, log_seconds: float = 20) -> None:
        self._bar: Progress | None = None
        self._bar_wanted = ERR.is_terminal and not quiet
        self._log_seconds = log_seconds
        self._start = self._logged = perf_counter()
        self._first, self._total, self._title = 0, 0, ""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def note(self, text: str) -> None:
        """One line worth knowing, above the bar where there is one."""
        if self._bar:
            self._bar.console.print(text, markup=False)
        else:
            LOG.info(text)

    def begin(self, title: str, done: int, total: int) -> None:
        """Start counting steps of this work; `done` of them lie behind from an earlier run."""
        self._start, self._logged = perf_counter(), 0.0
        self._title, self._first, self._total = title, done, total
        if self._bar:
            self._bar.stop()
        if self._bar_wanted:
            columns = (
                TextColumn("[bold]{task.description}[/bold]"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[pace]}"),
            )
            self._bar = Progress(*columns, TimeElapsedColumn(), console=ERR)
            self._bar.add_task(title, total=total, completed=done, pace="")
            self._bar.start()

    def stepped(self, done: int, facts: Mapping[str, float]) -> None:
        """One more step is done, `done` in all; `facts` are shown beside the pace."""
        self.show(done, *(f"{name} {value:.4g}" for name, value in facts.items()))

    def show(self, done: int, *details: str) -> None:
        """`done` steps are done in all; the details stand before the pace."""
        pace = ", ".join([*details, self._pace(done)])
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=done, pace=pace)
        elif perf_counter() - self._logged > self._log_seconds or done == self._total:
            self._logged = perf_counter()
            LOG.info("%s: %d of %d (%s)", self._title, done, self._total, pace)

    def _pace(self, done: int) -> str:
        each = (perf_counter() - self._start) / max(1, done - self._first)
        return f"{human_duration(each)} each, {human_duration(each * (self._total - done))} to go"


class LeadProgress(AbstractContextManager["LeadProgress"]):
    """Progress over the leads of a forecast: a bar on a terminal, a log line per lead elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        self._steps = StepProgress(quiet=quiet, log_seconds=0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._steps.__exit__(kind, error, trace)

    def note(self, text: str) -> None:
        self._steps.note(text)

    def begin(self, done: int, total: int) -> None:
        """Start counting steps; `done` of them lie behind from an earlier run."""
        self._steps.begin("forecast", done, total)

    def stepped(self, done: int, lead: timedelta) -> None:
        """One more step has been computed; `done` in all."""
        self._steps.show(done, f"+{lead / timedelta(hours=1):g} h")
