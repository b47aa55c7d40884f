"""The report of the evidence: provenance, shares, aims and what came, scores, spectra; Markdown and pictures."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path

from fengwu_ghr.durable import replace_file, writing
from fengwu_ghr.machine import describe_machine
from fengwu_ghr.training.aims import Aim, headline_aims, sharp_aims
from fengwu_ghr.training.chain import ChainSettings
from fengwu_ghr.training.pictures import draw_pictures
from fengwu_ghr.training.specs import SourceSpec
from fengwu_ghr.training.tables import Tables
from fengwu_ghr.training.verdict import (
    Comparison,
    against_all,
    headline_table,
    spectra_table,
    truncated_table,
)
from fengwu_ghr.training.world import World

Evidence = Mapping[str, tuple[SourceSpec, Tables]]

_KINDS = {
    "all": "(i) all targets",
    "resolved": "(ii) resolved levels above ground, surface",
    "skilful": "(iii) where one of the two beats climatology",
}
_UNITS = "RMSE in m (z), K, m/s, g/kg (q), hPa (msl); ACC centred; activity: of the forecast over that of the truth."
_LOST = 8  # channels that are named


@dataclass(frozen=True, eq=False)
class Report:
    """All that the report is made of; `command` is the one that made the evidence."""

    settings: ChainSettings
    world: World
    evidence: Evidence
    command: str

    def write(self) -> Path:
        """verdict.md lies in the folder of the evidence, its pictures beside it.

        Raises OutputError; ValueError where the model that the verdict is about was not scored.
        """
        folder, seed = self.settings.evidence_folder, self.settings.seeds[0]
        pictures = draw_pictures(folder, self.tables, self.titles, self.ours(seed), self.against[seed])
        shown = (f"\n![{picture.stem}]({picture.name})\n" for picture in pictures)
        with writing(folder / "verdict.md"):
            replace_file(folder / "verdict.md", "".join([self.text(), *shown]).encode())
        return folder / "verdict.md"

    def text(self) -> str:
        """The whole report as Markdown."""
        return "\n".join(self._lines()) + "\n"

    @cached_property
    def tables(self) -> dict[str, Tables]:
        return {name: table for name, (_, table) in self.evidence.items()}

    @cached_property
    def titles(self) -> dict[str, str]:
        """Of every source, with the number of its dates where others have more."""
        dates = {name: len(table.everywhere.starts) for name, table in self.tables.items()}
        fewer = {name: count for name, count in dates.items() if count < max(dates.values())}
        return {
            name: f"{spec.title} (dates: {fewer[name]})" if name in fewer else spec.title
            for name, (spec, _) in self.evidence.items()
        }

    @cached_property
    def against(self) -> dict[int, dict[str, Comparison]]:
        """By seed, our model against every other source."""
        return {seed: against_all(self.world, self.tables, self.ours(seed)) for seed in self.settings.seeds}

    def ours(self, seed: int) -> str:
        """The name of the model that the verdict is about."""
        return f"{self.settings.headline}-{seed}"

    def _lines(self) -> Iterator[str]:
        yield f"# Evidence for {self.settings.headline}"
        yield ""
        yield from self._passport()
        for seed, comparisons in self.against.items():
            title = f"Shares of targets won by {self.titles[self.ours(seed)]}"
            yield from _section(title, _shares(self.titles, comparisons))
            yield ""
            yield from _aims(headline_aims(self.tables[self.ours(seed)], comparisons, seed=seed))
            if self.settings.sharp:
                yield from ("", f"`{self.settings.sharp}` is to have the amplitude of the truth:", "")
                yield from _aims(sharp_aims(self.tables[f"{self.settings.sharp}-{seed}"]))
        yield from _section("Scores", headline_table(self.tables, self.titles, self.world.channels), _UNITS)
        cut = f"The same channels truncated to total wavenumber {self.settings.evidence.truncation}: RMSE"
        yield from _section(cut, truncated_table(self.tables, self.titles))
        yield from _section("Spectra", spectra_table(self.tables, self.titles))

    def _passport(self) -> Iterator[str]:
        made_by, evidence = self.world.made_by, self.settings.evidence
        days = sum(map(len, self.world.series("train"))) / 4
        dates = max(len(table.everywhere.starts) for table in self.tables.values())
        facts = {
            "world": f"jcm {made_by.get('jcm')} T{made_by.get('truncation')}L8, {days:g} days of training",
            "dates": f"{dates}, {evidence.spacing_days} or more days apart; {evidence.lead_steps} steps of 6 h; "
            f"grid {self.world.fine_grid}; area weights",
            "precision": f"training {self.settings.pretrain.train.precision}, steps on the network grid "
            f"{evidence.precision}, all else float32",
            "seeds": ", ".join(map(str, self.settings.seeds)),
            "persisted, in no share": ", ".join(self.world.statistics.persisted) or "none",
            "machine": describe_machine(),
            "command": f"`{self.command}`",
            "date": f"{date.today():%Y-%m-%d}",
        }
        for name, value in facts.items():
            yield f"- {name}: {value}"


def _section(title: str, table: Iterator[str], remark: str = "") -> Iterator[str]:
    yield from ("", f"## {title}", "")
    if remark:
        yield from (remark, "")
    yield from table


def _shares(titles: Mapping[str, str], comparisons: Mapping[str, Comparison]) -> Iterator[str]:
    yield f"| against | {' | '.join(_KINDS.values())} | 95 % of (i) over dates | lost: channel (leads) |"
    yield f"|---|{'---|' * (len(_KINDS) + 2)}"
    for name, comparison in comparisons.items():
        shares, interval, lost = comparison.shares(), comparison.interval, comparison.lost()
        more = f" and {len(lost) - _LOST} more" if len(lost) > _LOST else ""
        if name == "climatology":  # where one of the two beats climatology, it is not climatology
            shares.pop("skilful", None)
        won = " | ".join(str(shares.get(kind, "no target")) for kind in _KINDS)
        span = f"{float(interval.lower):.1%} ... {float(interval.upper):.1%}"
        yield f"| {titles[name]} | {won} | {span} | {', '.join(lost[:_LOST]) or 'none'}{more} |"


def _aims(aims: Iterator[Aim]) -> Iterator[str]:
    yield "| aim | came | |"
    yield "|---|---|---|"
    yield from (aim.row() for aim in aims)
