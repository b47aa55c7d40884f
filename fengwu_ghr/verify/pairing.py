"""Pairing: which initial times and leads can be verified, of those that are asked for."""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta

from fengwu_ghr.config import VerifySection
from fengwu_ghr.errors import InputError
from fengwu_ghr.variables import Channel
from fengwu_ghr.verify.fields import Analyses, Forecasts
from fengwu_ghr.verify.kept import Pair
from fengwu_ghr.verify.statistics import hours_text


class NothingToVerify(InputError):
    """No forecast has its truth, yet."""


def find_pairs(
    settings: VerifySection, truth: Analyses, forecasts: Mapping[str, Forecasts]
) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
    """What all sources have, and in words what was left out. Raises NothingToVerify."""
    forecast, *baselines = forecasts.values()
    starts = [t for t in forecast.initial_times if is_wanted(settings, t)]
    leads = {timedelta(hours=hours) for hours in settings.leads_hours}
    wanted = [
        (start, lead)
        for start in starts
        for lead in forecast.leads(start)
        if lead > timedelta(0) and (not leads or lead in leads)
    ]
    absent = ", ".join(hours_text(lead) for lead in sorted(leads - {lead for _, lead in wanted}))
    notes, kept = [f"the forecast has no lead of {absent}"] if absent else [], wanted
    valid = set(truth.valid_times)
    checks: list[tuple[str, Callable[[Pair], bool]]] = [
        (f"have no truth in {truth.name} ({_span(valid)})", lambda pair: pair[0] + pair[1] in valid),
        *((f"are not in {b.name} (initial times {_span(b.initial_times)})", _is_in(b)) for b in baselines),
    ]
    for what, check in checks:
        passing = [pair for pair in kept if check(pair)]
        if len(passing) < len(kept):
            notes.append(f"{len(kept) - len(passing)} of {len(wanted)} forecasts {what} and are left out")
        kept = passing
    if not kept:
        told = "; ".join(notes) or (
            f"the forecast holds initial times {_span(forecast.initial_times)}, none that is asked for with a lead "
            "after 0"
        )
        raise NothingToVerify(f"nothing can be verified: {told}")
    return tuple(kept), tuple(notes)


def _is_in(forecasts: Forecasts) -> Callable[[Pair], bool]:
    there = {time: set(forecasts.leads(time)) for time in forecasts.initial_times}
    return lambda pair: pair[1] in there.get(pair[0], ())


def _span(times: Collection[datetime]) -> str:
    """From when to when, and how many."""
    if not times:
        return "none"
    return f"{len(times)}, {min(times):%Y-%m-%d %H:%M} to {max(times):%Y-%m-%d %H:%M}"


def who_lacks(names: Sequence[str], held: Mapping[str, Sequence[Channel | str]]) -> str:
    """By source, which of these channels it lacks, the first few of them."""
    told = []
    for who, own in held.items():
        if lacks := [name for name in names if name not in set(map(str, own))]:
            more = f" and {len(lacks) - 6} more" if len(lacks) > 6 else ""
            told.append(f"{who} lacks {', '.join(lacks[:6])}{more}")
    return "; ".join(told)


def is_wanted(settings: VerifySection, time: datetime) -> bool:
    """Whether the settings ask for this initial time."""
    after = settings.first is None or time >= settings.first
    before = settings.last is None or time <= settings.last
    return after and before and (not settings.hours or time.hour in settings.hours)
