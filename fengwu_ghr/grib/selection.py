"""Which message makes which channel at which time; everything that is missing, in one error."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from fengwu_ghr.errors import InputError
from fengwu_ghr.grib.keys import later
from fengwu_ghr.grib.messages import FieldInfo, accumulation, channel_of, hours, match, near_variables
from fengwu_ghr.variables import Channel

DIFFERENCE = "difference of two accumulations from one start"
SHOWN = 4
"""So many times, levels or messages are written out in an error."""

Pick = Callable[[Sequence[FieldInfo]], FieldInfo]


@dataclass(frozen=True)
class Reading:
    """A field, the channel it is read as, and what its values are multiplied by to be in the registry's units."""

    field: FieldInfo
    channel: Channel
    factor: float


@dataclass(frozen=True)
class Recipe:
    """How a channel is made: read as it is (`rule` empty), or computed from several readings."""

    channel: Channel
    rule: str
    readings: tuple[Reading, ...]


@dataclass(frozen=True)
class _Interval:
    """An accumulation, with its valid time."""

    field: FieldInfo
    start: timedelta
    end: timedelta

    @property
    def length(self) -> timedelta:
        return self.end - self.start


class Holdings:
    """The fields that are there, by channel and valid time."""

    def __init__(self, fields: Iterable[FieldInfo]) -> None:
        self.instant: dict[Channel, dict[datetime, list[FieldInfo]]] = {}
        self.intervals: dict[Channel, dict[datetime, list[_Interval]]] = {}
        self.near: dict[str, list[tuple[FieldInfo, str]]] = {}
        self._times: dict[Channel, set[datetime]] = {}
        for field in fields:
            self._add(field)

    def _add(self, field: FieldInfo) -> None:
        for name, reason in near_variables(field).items():
            self.near.setdefault(name, []).append((field, reason))
        channel, time = channel_of(field), field.valid_time
        if channel is None or time is None:
            return
        steps = accumulation(field) if channel.definition.is_accumulated else None
        if steps:
            at = self.intervals.setdefault(channel, {}).setdefault(time, [])
            at.append(_Interval(field, *steps))
        else:
            self.instant.setdefault(channel, {}).setdefault(time, []).append(field)

    def times(self, channel: Channel) -> set[datetime]:
        """When the channel can be had, one way or another; not to be written to."""
        if channel not in self._times:
            self._times[channel] = self._times_of(channel)
        return self._times[channel]

    def _times_of(self, channel: Channel) -> set[datetime]:
        if channel.definition.is_accumulated:
            return {time for time in self.intervals.get(channel, {}) if self._ways(channel, time)}
        found = set(self.instant.get(channel, {}))
        for derivation in channel.definition.derivations:
            inputs = [Channel(name, channel.level) for name in derivation.inputs]
            found |= set.intersection(*(set(self.instant.get(c, {})) for c in inputs))
        return found

    def recipe(self, channel: Channel, time: datetime, pick: Pick) -> Recipe | None:
        """How to make the channel at this time; None when it cannot be had."""
        if channel.definition.is_accumulated:
            return self._accumulation(channel, time, pick)
        if direct := self.instant.get(channel, {}).get(time):
            return Recipe(channel, "", (_reading(pick(direct), channel),))
        for derivation in channel.definition.derivations:
            inputs = [Channel(name, channel.level) for name in derivation.inputs]
            held = [self.instant.get(c, {}).get(time) for c in inputs]
            if all(held):
                readings = tuple(_reading(pick(fields or []), c) for fields, c in zip(held, inputs))
                return Recipe(channel, derivation.rule, readings)
        return None

    def _accumulation(self, channel: Channel, time: datetime, pick: Pick) -> Recipe | None:
        ways = self._ways(channel, time)
        if not ways:
            return None
        fewest = min(len(way) for way in ways)
        shortest = [way for way in ways if len(way) == fewest]
        chosen = tuple(pick(_distinct(fields)) for fields in zip(*shortest))
        return Recipe(channel, DIFFERENCE if fewest > 1 else "", tuple(_reading(f, channel) for f in chosen))

    def _ways(self, channel: Channel, time: datetime) -> list[tuple[FieldInfo, ...]]:
        """The accumulation over just the period; or a longer one, and the shorter one to take from it."""
        period = timedelta(hours=channel.definition.period_hours)
        by_time = self.intervals.get(channel, {})
        before = later(time, -period)  # none at the beginning of the calendar
        parts = by_time.get(before, []) if before else []
        ways: list[tuple[FieldInfo, ...]] = []
        for whole in by_time.get(time, []):
            if whole.length == period:
                ways.append((whole.field,))
            ways += [
                (whole.field, part.field)
                for part in parts
                if whole.length > period and _same_run(whole, part)
            ]
        return ways

    def busiest(self) -> datetime | None:
        """The time of most fields, wanted or not."""
        return _best_time(set(at) for at in self.instant.values())

    def hint(self, channel: Channel, time: datetime) -> str:
        """What there is instead of a channel that is missing."""
        found = [*self._other_times(channel), *self._other_kinds(channel), *self._inputs(channel, time)]
        return "; ".join(found or self._other_levels(channel, time)) or "not in the input"

    def _other_times(self, channel: Channel) -> list[str]:
        times = sorted(self.times(channel))
        return [f"there at {_listed(map(clock, times))} instead"] if times else []

    def _other_kinds(self, channel: Channel) -> list[str]:
        by_time = self.intervals.get(channel, {})
        kinds = [
            f"accumulated over steps {hours(i.start)}-{hours(i.end)} h up to {clock(time)}"
            for time in sorted(by_time)
            for i in by_time[time]
        ]
        kinds += [
            reason
            for field, reason in self.near.get(channel.variable, [])
            if channel.level is None or channel.level == field.level
        ]
        return [f"there as {_listed(dict.fromkeys(kinds))}"] if kinds else []

    def _inputs(self, channel: Channel, time: datetime) -> list[str]:
        lines = []
        for derivation in channel.definition.derivations:
            held = {n: time in self.instant.get(Channel(n, channel.level), {}) for n in derivation.inputs}
            if any(held.values()):
                has, lacks = ([n for n in held if held[n] == wanted] for wanted in (True, False))
                lines.append(f"{', '.join(has)} is there, but not {', '.join(lacks)} to compute it with")
        return lines

    def _other_levels(self, channel: Channel, time: datetime) -> list[str]:
        levels = sorted(
            c.level
            for c, at in self.instant.items()
            if c.variable == channel.variable and c.level is not None and time in at
        )
        return [f"there at {_listed(levels)} hPa"] if levels else []


def select(
    fields: Sequence[FieldInfo],
    channels: Sequence[Channel],
    *,
    initial_time: datetime | None,
    pick: Pick,
    earlier: Sequence[timedelta] = (),
) -> tuple[datetime, list[Recipe]]:
    """The initial time and a recipe for every channel. `pick` settles which of several messages of a field is taken.

    The input must be complete at that time, and `earlier` by each of these spans as well. Raises InputError that
    lists every missing field, or the times to choose from, or messages that contradict.
    """
    holdings = Holdings(fields)
    time = _choose_time(holdings, channels, initial_time, earlier)
    recipes, conflicts = [], []
    for channel in channels:
        try:
            recipes.append(holdings.recipe(channel, time, pick))
        except InputError as conflict:
            conflicts.append(f"  {channel.description}: {conflict}")
    if conflicts:
        raise InputError("fields are there more than once, with different values:\n" + "\n".join(conflicts))
    return time, [recipe for recipe in recipes if recipe]


def clock(time: datetime) -> str:
    """A time in UTC as messages show it."""
    return f"{time:%Y-%m-%d %H:%M}"


def _choose_time(
    holdings: Holdings, channels: Sequence[Channel], wanted: datetime | None, earlier: Sequence[timedelta]
) -> datetime:
    """The time at which every channel can be had."""
    held = {channel: holdings.times(channel) for channel in channels}
    times = {c: {t for t in at if all(later(t, -lag) in at for lag in earlier)} for c, at in held.items()}
    complete = set.intersection(*times.values()) if times else set()
    if wanted in complete:
        return wanted
    if wanted is None and len(complete) == 1:
        return complete.pop()
    if wanted is None and complete:
        raise InputError(
            f"the input holds several initial times: {_listed(map(clock, sorted(complete)), 24)}; "
            "choose one with --date and --time"
        )
    time = wanted or _best_time(times.values()) or holdings.busiest()
    raise _incomplete(holdings, times, time, complete, earlier)


def _best_time(times: Iterable[set[datetime]]) -> datetime | None:
    """The time at which most channels can be had."""
    counts = Counter(time for at in times for time in sorted(at))
    return max(sorted(counts), key=counts.__getitem__, default=None)


def _incomplete(
    holdings: Holdings,
    times: dict[Channel, set[datetime]],
    time: datetime | None,
    complete: set[datetime],
    earlier: Sequence[timedelta],
) -> InputError:
    missing = [channel for channel, at in times.items() if time not in at]
    at = f" at {clock(time)} UTC" if time else ""
    at += "".join(f" and {hours(lag)} h before" for lag in earlier)
    lines = [
        f"  {channel.description}{at}: {holdings.hint(channel, time or datetime.min)}" for channel in missing
    ]
    head = f"{len(missing)} of the {len(times)} fields needed{at} are missing from the input"
    if complete:
        head += f" (it is complete at {_listed(map(clock, sorted(complete)))})"
    return InputError(f"{head}:\n" + "\n".join(lines))


def _reading(field: FieldInfo, channel: Channel) -> Reading:
    found = match(field)
    assert found is not None
    return Reading(field, channel, found[1].factor)


def _same_run(whole: _Interval, part: _Interval) -> bool:
    a, b = whole.field, part.field
    return (a.initial_time, whole.start, a.member) == (b.initial_time, part.start, b.member)


def _distinct(fields: Sequence[FieldInfo]) -> list[FieldInfo]:
    return list(dict.fromkeys(fields))


def _listed(items: Iterable[object], shown: int = SHOWN) -> str:
    texts = [str(item) for item in items]
    more = f" and {len(texts) - shown} more" if len(texts) > shown else ""
    return ", ".join(texts[:shown]) + more
