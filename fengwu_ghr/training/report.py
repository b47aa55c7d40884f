"""The report of the evidence: aims and what came, headline scores, spectra, provenance; Markdown and a picture."""

import platform
from collections.abc import Iterator, Mapping
from datetime import date

import numpy as np

from fengwu_ghr.training.chain import ChainSettings
from fengwu_ghr.training.specs import SourceSpec
from fengwu_ghr.training.tables import HEADLINE, Tables
from fengwu_ghr.training.verdict import (
    Comparison,
    headline_table,
    resolved_channels,
    spectra_table,
)
from fengwu_ghr.training.world import World
from fengwu_ghr.verify import metrics

Evidence = Mapping[str, tuple[SourceSpec, Tables]]

_KINDS = {
    "all": "(i) all targets",
    "resolved": "(ii) resolved levels above ground, surface",
    "skilful": "(iii) where one of the two beats climatology",
}
_SIGMA = (0.025, 0.095, 0.2, 0.34, 0.51, 0.685, 0.835, 0.95)
"""The levels of the simulator."""


def report(settings: ChainSettings, world: World, evidence: Evidence, *, command: str) -> str:
    """The whole report as Markdown. Raises ValueError where the headline model was not scored."""
    return "\n".join(_lines(settings, world, evidence, command)) + "\n"


def _lines(settings: ChainSettings, world: World, evidence: Evidence, command: str) -> Iterator[str]:
    tables = {name: table for name, (_, table) in evidence.items()}
    titles = {name: spec.title for name, (spec, _) in evidence.items()}
    yield f"# Evidence for {settings.headline}"
    yield ""
    yield from _passport(settings, world, tables, command)
    for seed in settings.seeds:
        ours = f"{settings.headline}-{seed}"
        yield ""
        yield f"## Shares of targets won by {titles[ours]}"
        yield ""
        yield from _shares(world, tables, titles, ours)
        yield ""
        yield from _aims(world, tables, ours)
    yield ""
    yield "## Scores"
    yield ""
    yield "RMSE in m (z), K, m/s, g/kg (q), hPa (msl); ACC centred; activity: of the forecast over that of the truth."
    yield ""
    yield from headline_table(tables, titles, world.channels)
    yield ""
    yield f"## The same channels truncated to total wavenumber {settings.evidence.truncation}: RMSE"
    yield ""
    yield from _truncated(tables, titles)
    yield ""
    yield "## Spectra"
    yield ""
    yield from spectra_table(tables, titles)


def _passport(
    settings: ChainSettings, world: World, tables: Mapping[str, Tables], command: str
) -> Iterator[str]:
    train = sum(len(series) for series in world.series("train")) / 4
    dates = max(len(table.everywhere.starts) for table in tables.values())
    made_by = world.made_by
    facts = {
        "world": f"jcm {made_by.get('jcm')} T{made_by.get('truncation')}L8, {train:g} days of training",
        "dates": f"{dates}, {settings.evidence.spacing_days} or more days apart; "
        f"{settings.evidence.lead_steps} steps of 6 h; grid {world.fine_grid}; area weights",
        "seeds": ", ".join(map(str, settings.seeds)),
        "persisted, in no share": ", ".join(world.statistics.persisted) or "none",
        "machine": f"{platform.processor() or platform.machine()}, {platform.system()}",
        "command": f"`{command}`",
        "date": f"{date.today():%Y-%m-%d}",
    }
    for name, value in facts.items():
        yield f"- {name}: {value}"


def _comparison(world: World, tables: Mapping[str, Tables], ours: str, theirs: str) -> Comparison:
    names = world.channels.names
    counted = np.array([name not in world.statistics.persisted for name in names])
    resolved = counted & resolved_channels(world.channels, _SIGMA)
    return Comparison(tables[ours], tables[theirs], world.channels, counted, resolved)


def _shares(
    world: World, tables: Mapping[str, Tables], titles: Mapping[str, str], ours: str
) -> Iterator[str]:
    yield f"| against | {' | '.join(_KINDS.values())} | 95 % of (i) over dates | lost: channel (leads) |"
    yield f"|---|{'---|' * (len(_KINDS) + 2)}"
    for name in tables:
        if name == ours:
            continue
        comparison = _comparison(world, tables, ours, name)
        shares = comparison.shares()
        interval, lost = comparison.interval(), comparison.lost()
        more = f" and {len(lost) - 8} more" if len(lost) > 8 else ""
        yield f"| {titles[name]} | {' | '.join(str(shares[kind]) for kind in _KINDS)} | " + (
            f"{float(interval.lower):.1%} ... {float(interval.upper):.1%} | {', '.join(lost[:8])}{more} |"
        )


def _aims(world: World, tables: Mapping[str, Tables], ours: str) -> Iterator[str]:
    """What was aimed at, and what came."""
    leads = len(tables[ours].everywhere.leads)
    yield "| aim | came |"
    yield "|---|---|"
    yield f"| (c1): 91.3 % of all targets | {_comparison(world, tables, ours, 'detailed').shares()['all']} |"
    if leads > 2:
        yield (
            f"| (a): 95 % from 12 h on | {_comparison(world, tables, ours, 'persistence').share_from(12)} |"
        )
    if leads > 4:
        yield f"| (d): 90 % from 24 h on | {_comparison(world, tables, ours, 'zero-shot').share_from(24)} |"
    sums, row = tables[ours].everywhere.stacked(), world.channels.names.index("z500")
    ahead = metrics.rmse(sums)[:, row] < metrics.rmse_of_climatology(sums)[:, row]
    last = leads if ahead.all() else int(np.argmin(ahead))
    yield f"| z500 better than climatology to day 5 | to {6 * last} h of {6 * leads} h |"
    drift = metrics.bias(sums)[:, world.channels.names.index("msl")] / 100
    yield f"| global mean msl: no drift | bias {drift[0]:+.2f} hPa at 6 h, {drift[-1]:+.2f} hPa at {6 * leads} h |"
    finite = np.isfinite(metrics.rmse(sums)).all()
    yield f"| {leads} steps finite | {'yes' if finite else 'no'} |"


def _truncated(tables: Mapping[str, Tables], titles: Mapping[str, str]) -> Iterator[str]:
    first = next(iter(tables.values())).truncated
    hours = [f"{lead.total_seconds() / 3600:g} h" for lead in first.leads]
    yield f"| source | lead | {' | '.join(HEADLINE)} |"
    yield f"|---|---|{'---|' * len(HEADLINE)}"
    for name, table in tables.items():
        for label, scores in zip(hours, metrics.rmse(table.truncated.stacked())):
            yield f"| {titles[name]} | {label} | {' | '.join(f'{value:.3g}' for value in scores)} |"
