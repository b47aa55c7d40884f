"""A verification from its settings to its report: what the verb, the pipeline and the demonstration call."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import xarray as xr

from fengwu_ghr.config import VerifySection, asked_time
from fengwu_ghr.errors import InputError
from fengwu_ghr.progress import Progress
from fengwu_ghr.variables import HEADLINE, reading_units
from fengwu_ghr.verify.comparison import Scorecard
from fengwu_ghr.verify.kept import Collected, KeptSums, Pair, collect
from fengwu_ghr.verify.pieces import verify
from fengwu_ghr.verify.report import write_report
from fengwu_ghr.verify.results import comparisons, scores_of, write_results
from fengwu_ghr.verify.verification import plan_verification

_SHOWN_HOURS = (24, 72, 120, 240)


@dataclass(frozen=True, eq=False)
class Verified:
    """What came of it: the scores, where they are written, and a table of the first of them."""

    scores: xr.Dataset
    compared: Mapping[str, Scorecard]
    files: tuple[Path, ...]
    evaluated_on: str

    @property
    def title(self) -> str:
        own, *baselines = self.scores["source"].values.tolist()
        beside = f" (in brackets {', '.join(baselines)})" if baselines else ""
        return f"RMSE of the {own}{beside} over {self.scores['region'].values[0]}, on {self.evaluated_on}"

    @property
    def columns(self) -> list[str]:
        return ["channel", *(f"{hours:g} h" for hours in self._hours)]

    @property
    def rows(self) -> list[list[str]]:
        """By channel: ours (theirs, in the order of the baselines) at a few leads, in the units people read."""
        return [
            [_labelled(name), *(self._cell(name, hours) for hours in self._hours)] for name in self._shown
        ]

    @property
    def more(self) -> str:
        """What the rows leave out, in words."""
        left = self.scores.sizes["channel"] - len(self._shown)
        return (
            f"{left} more channels, other scores, regions and leads"
            if left
            else "other scores, regions and leads"
        )

    @property
    def notes(self) -> str:
        """What was left out of the verification, and why."""
        return "" if self.scores.attrs["notes"] == "none" else str(self.scores.attrs["notes"])

    @property
    def _shown(self) -> list[str]:
        there = self.scores["channel"].values.tolist()
        return [name for name in HEADLINE if name in there] or there[:12]

    @property
    def _hours(self) -> list[float]:
        leads = self.scores["lead"].values.tolist()
        return [hours for hours in leads if hours in _SHOWN_HOURS] or leads[:4]

    def _cell(self, name: str, hours: float) -> str:
        values = self.scores["rmse"].isel(region=0).sel(channel=name, lead=hours) * reading_units(name)[1]
        ours, *theirs = (f"{float(v):.3g}" for v in values)
        return f"{ours} ({', '.join(theirs)})" if theirs else ours


def run_verification(settings: VerifySection, *, progress: Progress) -> Verified:
    """Sums, scores and the report are in the output folder. Raises the errors of `plan_verification` and `verify`."""
    with plan_verification(settings) as plan:
        return report_of(verify(plan, progress=progress), settings.output)


def run_on_sums(
    folders: Sequence[Path], output: Path, *, wanted: Callable[[Pair], bool] = lambda pair: True
) -> Verified:
    """Scores and the report of the wanted pairs among kept sums of one verification. Raises those of `collect`."""
    kept = [KeptSums.open(folder) for folder in folders]
    there = sorted({pair for folder in kept for pair in folder.pairs})
    chosen = [pair for pair in there if wanted(pair)]
    if not chosen:
        raise InputError(
            f"{', '.join(map(str, folders))} hold {len(there)} sums, none of them of the dates and leads asked for"
        )
    found = collect(kept, pairs=chosen)
    KeptSums(output).check(found.about)
    facts = {**found.about.facts, "sums": ", ".join(map(str, folders))}
    return report_of(replace(found, about=found.about.model_copy(update={"facts": facts})), output)


def report_of(found: Collected, output: Path) -> Verified:
    """Scores and the report of sums are written."""
    scores, compared = scores_of(found), comparisons(found.tables)
    files = (*write_results(scores, output), write_report(found, scores, compared, output))
    return Verified(scores, compared, files[::-1], found.about.evaluated_on)


def chosen_times(times: Sequence[datetime], first: str | None, last: str | None) -> tuple[datetime, ...]:
    """Those from `first` to `last`. Raises UsageError where a text is no time, InputError where nothing is left."""
    begin, end = asked_time(first), asked_time(last)
    kept = tuple(t for t in times if (begin is None or t >= begin) and (end is None or t <= end))
    if not kept:
        there = f"there are {times[0]} to {times[-1]}" if times else "there is none"
        raise InputError(f"no time lies from {first or 'the first'} to {last or 'the last'}; {there}")
    return kept


def _labelled(name: str) -> str:
    return f"{name} [{reading_units(name)[0]}]"
