"""Statistics: values per grid point as area-weighted sums that merge exactly; every score is a function of them.

Forecast, truth and climatology become, per channel, a dozen numbers. They are kept for each initial time and lead, so
that saved sums merge across dates and machines, an added date costs only that date, and intervals can be made.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Shaped

from fengwu_ghr.errors import InputError
from fengwu_ghr.verify.archive import read_archive, write_archive
from fengwu_ghr.verify.regions import Regions

ERRORS = ("error", "squared_error", "absolute_error")
ANOMALIES = (
    "forecast_anomaly",
    "truth_anomaly",
    "squared_forecast_anomaly",
    "squared_truth_anomaly",
    "anomaly_product",
)
"""Departures from climatology. The squared truth anomaly is also the squared error of climatology as a forecast."""

_BLOCK_POINTS = 2**15  # so many points of a few fields stay in the cache of a core
_KIND = "table of verification sums"


@dataclass(frozen=True, eq=False)
class Sums:
    """Area-weighted sums of statistics, and the area they stand for; all arrays have the same axes.

    From one state the axes are (channel, region), or (channel, total wavenumber) of spectra; stacked over dates and
    leads they are (date, lead, ...). `weight` is a share of the sphere, times the number of dates; 0 means no data.
    """

    weight: Float64[np.ndarray, "*axes"]
    sums: Mapping[str, Float64[np.ndarray, "*axes"]]

    def __post_init__(self) -> None:
        for name, values in self.sums.items():
            if values.shape != self.weight.shape:
                raise ValueError(f"the sums of {name} have shape {values.shape}, weights {self.weight.shape}")

    @classmethod
    def zeros(cls, names: Sequence[str], shape: tuple[int, ...]) -> "Sums":
        """Sums of nothing: adding them changes nothing."""
        return cls(np.zeros(shape), {name: np.zeros(shape) for name in names})

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.sums)

    def __add__(self, other: "Sums") -> "Sums":
        if self.names != other.names or self.shape != other.shape:
            raise ValueError(
                f"only like sums can be added; got {self.names} {self.shape} and {other.names} {other.shape}"
            )
        return Sums(self.weight + other.weight, {n: v + other.sums[n] for n, v in self.sums.items()})

    def __getitem__(self, index: Any) -> "Sums":
        """The same index taken of every array: `sums[dates]`, `sums[:, lead]`, `sums[..., channels]`."""
        return Sums(np.asarray(self.weight[index]), {n: np.asarray(v[index]) for n, v in self.sums.items()})

    def only(self, *names: str) -> "Sums":
        return Sums(self.weight, {name: self.sums[name] for name in names})

    def total(self) -> "Sums":
        """The first axis summed up."""
        return Sums(self.weight.sum(axis=0), {n: v.sum(axis=0) for n, v in self.sums.items()})

    def mean(self, name: str) -> Float64[np.ndarray, "*axes"]:
        """The area mean of a statistic; NaN where there are no data."""
        if name not in self.sums:
            raise ValueError(f"these sums hold {', '.join(self.names)}, not {name}; was climatology given?")
        empty = np.full(self.shape, np.nan)
        return np.divide(self.sums[name], self.weight, out=empty, where=self.weight > 0)


def state_sums(
    forecast: Float32[np.ndarray, "channel lat lon"],
    truth: Float32[np.ndarray, "channel lat lon"],
    climatology: Float32[np.ndarray, "channel lat lon"] | None = None,
    *,
    regions: Regions,
    points: Bool[np.ndarray, "channel lat lon"] | None = None,
) -> Sums:
    """Sums by channel and region for one initial time and lead: ERRORS, and ANOMALIES where a climatology is given.

    All fields are in physical units at the same valid time, on the grid of the regions. Values where `points` is
    False (below ground, say) are never read; a NaN elsewhere makes its channel's sums NaN. Arithmetic in
    float64, some rows at a time. Raises ValueError where shapes differ.
    """
    fields = [forecast, truth] if climatology is None else [forecast, truth, climatology]
    _check_shapes(*fields, *(() if points is None else (points,)), shape=regions.grid.shape)
    count, names = forecast.shape[0], ERRORS if climatology is None else ERRORS + ANOMALIES
    result = Sums.zeros(names, (count, len(regions.names)))
    for channel, rows in product(range(count), _row_blocks(*regions.grid.shape)):
        inside = None if points is None else points[channel, rows]
        block = [values[channel, rows].astype(np.float64) for values in fields]
        weight, sums = _block_sums(block, inside, regions, rows)
        result.weight[channel] += weight
        for name in names:
            result.sums[name][channel] += sums[name]
    return result


def field_sums(
    fields: Mapping[str, Shaped[np.ndarray, "channel lat lon"]],
    *,
    regions: Regions,
    known: Bool[np.ndarray, "channel lat lon"] | None = None,
) -> Sums:
    """Sums by channel and region of statistics that are there as fields, of numbers or of truths.

    Points that are not `known` do not count, whatever they hold.
    """
    first = next(iter(fields.values()))
    _check_shapes(*fields.values(), *(() if known is None else (known,)), shape=regions.grid.shape)
    result = Sums.zeros(tuple(fields), (first.shape[0], len(regions.names)))
    for channel, rows in product(range(first.shape[0]), _row_blocks(*regions.grid.shape)):
        inside = None if known is None else known[channel, rows]
        block = [_inside(values[channel, rows].astype(np.float64), inside) for values in fields.values()]
        counted = np.ones_like(block[0]) if inside is None else inside.astype(np.float64)
        weight, *sums = regions.sums(np.stack([counted, *block]), rows)
        result.weight[channel] += weight
        for name, value in zip(fields, sums):
            result.sums[name][channel] += value
    return result


class Start(NamedTuple):
    """What a forecast started from: a member of a simulated world (0 where there is one world), an initial time."""

    member: int
    initial_time: datetime

    def __str__(self) -> str:
        member = f" of member {self.member}" if self.member else ""
        return f"{self.initial_time:%Y-%m-%d %H:%M}{member}"


@dataclass(eq=False)
class DatedSums:
    """The sums of many forecasts by start and lead, each counted once.

    `channels` names the first axis of every entry, `regions` the second where there is one. `evaluated_on` says which
    points count ("1p8, above ground"): it is shown with every score, and sums of other points do not mix in.
    """

    channels: tuple[str, ...]
    evaluated_on: str
    regions: tuple[str, ...] = ()
    entries: dict[tuple[Start, timedelta], Sums] = field(default_factory=dict)

    @property
    def starts(self) -> tuple[Start, ...]:
        """The first axis of `stacked`: members one after the other, initial times ascending."""
        return tuple(sorted({start for start, _ in self.entries}))

    @property
    def leads(self) -> tuple[timedelta, ...]:
        return tuple(sorted({lead for _, lead in self.entries}))

    def add(self, initial_time: datetime, lead: timedelta, sums: Sums, *, member: int = 0) -> None:
        """The sums of one forecast at one lead are held. Raises InputError where they already are."""
        named = tuple(len(names) for names in (self.channels, self.regions) if names)
        if sums.shape[: len(named)] != named:
            raise ValueError(f"a table of {named} channels and regions got sums of shape {sums.shape}")
        first = next(iter(self.entries.values()), sums)
        if (first.names, first.shape) != (sums.names, sums.shape):
            raise ValueError(f"a table of {first.names} {first.shape} got {sums.names} {sums.shape}")
        start = Start(member, initial_time)
        if (start, lead) in self.entries:
            raise InputError(
                f"each forecast counts once; the one of {start} at {hours_text(lead)} came twice: leave one out"
            )
        self.entries[start, lead] = sums

    def only(self, starts: Collection[Start]) -> "DatedSums":
        """The forecasts of these starts."""
        kept = {key: sums for key, sums in self.entries.items() if key[0] in starts}
        return DatedSums(self.channels, self.evaluated_on, self.regions, kept)

    def merge(self, other: "DatedSums") -> None:
        """The other table's forecasts are held too. Raises InputError where the tables are not alike or overlap."""
        for what in ("channels", "regions", "evaluated_on"):
            mine, its = getattr(self, what), getattr(other, what)
            if mine != its:
                raise InputError(f"tables to be merged must agree on {what}; got {mine!r} and {its!r}")
        for (start, lead), sums in other.entries.items():
            self.add(start.initial_time, lead, sums, member=start.member)

    def stacked(self) -> Sums:
        """The sums with axes (date, lead, channel, ...), dates and leads ascending; weight 0 where there is none.

        The order in which entries came leaves no trace, not even in the last bit. Raises InputError when empty.
        """
        if not self.entries:
            raise InputError("no forecast was verified: give initial times whose valid times have a truth")
        starts, leads = self.starts, self.leads
        first = next(iter(self.entries.values()))
        result = Sums.zeros(first.names, (len(starts), len(leads), *first.shape))
        for (start, lead), sums in self.entries.items():
            place = starts.index(start), leads.index(lead)
            result.weight[place] = sums.weight
            for name, values in sums.sums.items():
                result.sums[name][place] = values
        return result

    def save(self, path: Path) -> None:
        """One .npz file holds the table; raises OutputError where it cannot be written."""
        keys = sorted(self.entries)
        arrays = {
            "initial_time": np.array([start.initial_time for start, _ in keys], "M8[s]"),
            "member": np.array([start.member for start, _ in keys], np.int64),
            "lead": np.array([lead for _, lead in keys], "m8[s]"),
            "channels": np.array(self.channels, str),
            "regions": np.array(self.regions, str),
            "evaluated_on": np.array(self.evaluated_on),
        }
        if keys:
            arrays["weight"] = np.stack([self.entries[key].weight for key in keys])
            for name in self.entries[keys[0]].names:
                arrays[f"sum_{name}"] = np.stack([self.entries[key].sums[name] for key in keys])
        write_archive(path, _KIND, arrays)

    @classmethod
    def load(cls, path: Path) -> "DatedSums":
        """The table of a file that `save` wrote. Raises InputError where it is none."""
        arrays = read_archive(path, _KIND)
        # Tables were written before there were regions: they are of the whole grid.
        regions = tuple(arrays["regions"].tolist()) if "regions" in arrays else ()
        table = cls(tuple(arrays["channels"].tolist()), str(arrays["evaluated_on"]), regions)
        sums = {name[4:]: values for name, values in arrays.items() if name.startswith("sum_")}
        keys = zip(*(arrays[name].tolist() for name in ("initial_time", "lead", "member")))
        for i, (initial_time, lead, member) in enumerate(keys):
            table.add(initial_time, lead, Sums(arrays["weight"], sums)[i], member=member)
        return table


def paired(first: DatedSums, second: DatedSums) -> tuple[Sums, Sums]:
    """Both stacked, date by date and lead by lead of the same forecasts.

    Raises InputError where one lacks what the other has: a comparison over different dates compares the dates.
    """
    mine, its = ((table.channels, table.regions, table.evaluated_on) for table in (first, second))
    if mine != its:
        raise InputError(
            f"compared forecasts need the same channels, regions and points; got {len(first.channels)} channels on "
            f"{first.evaluated_on!r} and {len(second.channels)} on {second.evaluated_on!r}"
        )
    alone = sorted(first.entries.keys() ^ second.entries.keys())
    if alone:
        start, lead = alone[0]
        raise InputError(
            f"compared forecasts need the same initial times and leads; {len(alone)} are in one only, the first "
            f"{start} at {hours_text(lead)}: verify both over the same dates"
        )
    return first.stacked(), second.stacked()


def _block_sums(
    fields: Sequence[Float64[np.ndarray, "row lon"]],
    inside: Bool[np.ndarray, "row lon"] | None,
    regions: Regions,
    rows: slice,
) -> tuple[Float64[np.ndarray, " region"], dict[str, Float64[np.ndarray, " region"]]]:
    """The weight of these rows, and the sum of every statistic.

    The anomaly of the truth o' is f' - e, e being the error: its sums need no pass of their own.
    """
    forecast, truth, *climatology = fields
    # A forecast that blew up gives NaN scores; the metrics show them, so numpy need not speak here.
    with np.errstate(invalid="ignore", over="ignore"):
        statistics = np.empty((6 if climatology else 3, *forecast.shape))
        error = _difference(forecast, truth, inside, out=statistics[0])
        np.multiply(error, error, out=statistics[1])
        np.abs(error, out=statistics[2])
        if climatology:
            anomaly = _difference(forecast, climatology[0], inside, out=statistics[3])
            np.multiply(anomaly, anomaly, out=statistics[4])
            np.multiply(anomaly, error, out=statistics[5])
        e, ee, absolute, *rest = regions.sums(statistics, rows)
        weight = regions.areas_of(rows) if inside is None else _weight(inside, regions, rows)
        found = dict(zip(ERRORS, (e, ee, absolute)))
        if climatology:
            a, aa, ae = rest
            found |= dict(zip(ANOMALIES, (a, a - e, aa, aa - 2 * ae + ee, aa - ae)))
    return weight, found


def _difference(
    one: Float64[np.ndarray, "row lon"],
    other: Float64[np.ndarray, "row lon"],
    inside: Bool[np.ndarray, "row lon"] | None,
    *,
    out: Float64[np.ndarray, "row lon"],
) -> Float64[np.ndarray, "row lon"]:
    """one - other, and zero where no point counts; in memory that is there already, which half of the time goes to."""
    np.subtract(one, other, out=out)
    if inside is not None:
        np.copyto(out, 0.0, where=~inside)
    return out


def _inside(
    values: Float64[np.ndarray, "row lon"], inside: Bool[np.ndarray, "row lon"] | None
) -> Float64[np.ndarray, "row lon"]:
    return values if inside is None else np.where(inside, values, 0.0)


def _weight(
    inside: Bool[np.ndarray, "row lon"], regions: Regions, rows: slice
) -> Float64[np.ndarray, " region"]:
    return regions.sums(inside[None].astype(np.float64), rows)[0]


def _row_blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _BLOCK_POINTS // columns)
    return (slice(start, start + step) for start in range(0, rows, step))


def _check_shapes(*fields: np.ndarray, shape: tuple[int, int]) -> None:
    wanted = (fields[0].shape[0], *shape)
    for values in fields:
        if values.shape != wanted:
            raise ValueError(f"fields must fit each other and the regions, here {wanted}; got {values.shape}")


def hours_text(lead: timedelta) -> str:
    """A lead as it is read: `24 h`."""
    return f"{lead / timedelta(hours=1):g} h"
