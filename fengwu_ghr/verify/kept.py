"""Kept sums: a folder that says what its sums are of, and holds a small file for every initial time and lead.

Results need nothing else: neither the fields nor the sources. Folders of one verification, of other dates or machines,
are collected together.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from fengwu_ghr.config import Section
from fengwu_ghr.durable import alone, make_folder, replace_file, writing
from fengwu_ghr.errors import InputError, UsageError
from fengwu_ghr.verify.archive import read_archive, read_array, write_archive
from fengwu_ghr.verify.statistics import DatedSums, Start, Sums, hours_text

Pair = tuple[datetime, timedelta]
"""Initial time and lead."""
Scores = dict[str, dict[str, Sums]]
"""By forecast and kind."""
Tables = dict[str, dict[str, DatedSums]]
"""By forecast and kind."""

FORECAST = "forecast"
"""What the forecast itself is called among its baselines."""
ABOUT = "verification.json"
_PIECE, _FINGERPRINT = "piece of a verification", "fingerprint"
_STATIONS, _REFUSED, _LACKS = ("stations", "latitude", "longitude"), "refused", "lacks"
_ALSO, _OTHERS, _MOST_TOLD = "; also ", "others", 3
_NAME = re.compile(r"(\d{8}T\d{4})\+([0-9.]+)h\.npz")
_REGIONAL = ("fields", "events", "neighbourhoods", "rain", "stations")
_AT_STATIONS = ("stations", "places")
KINDS = (*_REGIONAL, "spectra", "maps", "places")
"""Of sums."""


def is_regional(kind: str) -> bool:
    """Whether sums of this kind have a region axis; spectra and maps are of the whole grid."""
    return kind in _REGIONAL


def is_dated(kind: str) -> bool:
    """Whether sums of this kind are kept apart by date, for intervals; the others are large, and only added up."""
    return is_regional(kind)


class Description(Section):
    """What sums are of: what must be the same of all that are added, and what readers are told."""

    identity: dict[str, Any]
    title: str
    rows: dict[str, tuple[str, ...]]
    """By kind, the names of the first axis."""
    regions: tuple[str, ...]
    evaluated_on: str
    """Shown with every score."""
    extent: tuple[float, float, float, float]
    """West, south, east and north of the maps, in degrees."""
    facts: dict[str, str]
    """Truth, forecasts, climatology and settings in words."""
    notes: tuple[str, ...] = ()
    """What was left out, and why."""

    def table(self, kind: str) -> DatedSums:
        """An empty table of this kind."""
        regions = self.regions if is_regional(kind) else ()
        at_stations = "stations, observations within 30 min"
        where = at_stations if kind in _AT_STATIONS else self.evaluated_on
        return DatedSums(self.rows[kind], where, regions)

    def check_like(self, other: "Description", where: object, remedy: str) -> None:
        """Raises UsageError naming what differs, where sums of both cannot be added."""
        mine, its = self.identity, other.identity
        if differing := sorted(key for key in mine | its if mine.get(key) != its.get(key)):
            raise UsageError(f"{where} holds a verification with other {', '.join(differing)}; {remedy}")


class Piece(NamedTuple):
    """The sums of one pair, where the stations lie of which some are, and a mark of the fields they were made of."""

    scores: Scores
    stations: Mapping[str, tuple[float, float]]
    """By name, latitude and longitude, in the order of the sums."""
    fingerprint: str
    refused: Mapping[str, int]
    """By reason, how many reports of this time were left out."""
    lacks: str = ""
    """Of a pair without sums: which field has missing values."""


@dataclass(frozen=True)
class KeptSums:
    """The sums of one output folder."""

    folder: Path

    @classmethod
    def open(cls, folder: Path) -> "KeptSums":
        """Those that are there. Raises InputError where the folder holds none."""
        made = cls(folder)
        made.about  # noqa: B018 - that it can be read
        return made

    def check(self, about: Description) -> None:
        """Raises UsageError where the folder holds sums of another verification, or is none."""
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"{self.folder} is a file; give another --output")
        if self.pairs:
            self.about.check_like(about, self.folder, "give another --output")

    def claim(self, about: Description, *, adds: bool = False) -> None:
        """The folder is of this verification, or (`adds`) of this one too. Raises UsageError where it is of another."""
        path = self.folder / ABOUT
        self.check(about)
        with writing(path):
            make_folder(self.folder / "sums")
            with alone(self.folder / "sums" / ".lock"):
                is_same = adds and path.exists() and self.about.identity == about.identity
                told = _told_of_all([self.about, about]) if is_same else about
                replace_file(path, told.model_dump_json(indent=1).encode())

    @property
    def about(self) -> Description:
        """Raises InputError where the folder holds no sums."""
        path = self.folder / ABOUT
        try:
            return Description.model_validate_json(path.read_bytes())
        except OSError:
            raise InputError(
                f"{self.folder} holds no sums of a verification; give its --output folder"
            ) from None
        except ValidationError:
            raise InputError(f"{path} is damaged; remove {self.folder} and verify again") from None

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """What has been scored, in order."""
        names = (_NAME.fullmatch(path.name) for path in (self.folder / "sums").glob("*.npz"))
        return tuple(
            sorted(
                (datetime.strptime(name[1], "%Y%m%dT%H%M"), timedelta(hours=float(name[2])))
                for name in names
                if name
            )
        )

    def path(self, pair: Pair) -> Path:
        """Where the sums of a pair are kept."""
        initial_time, lead = pair
        return self.folder / "sums" / f"{initial_time:%Y%m%dT%H%M}+{lead / timedelta(hours=1):g}h.npz"

    def fingerprint(self, pair: Pair) -> str | None:
        """Of which fields the sums are; None where there are none, or damaged ones."""
        try:
            return str(read_array(self.path(pair), _PIECE, _FINGERPRINT))
        except InputError:
            return None

    def stations(self, pair: Pair) -> dict[str, tuple[float, float]]:
        """Those of a pair: by name, latitude and longitude."""
        names, *places = (read_array(self.path(pair), _PIECE, name).tolist() for name in _STATIONS)
        return dict(zip(names, zip(*places)))

    def write(self, pair: Pair, piece: Piece) -> None:
        """The piece is there, whole, or not at all."""
        places = np.array(list(piece.stations.values()), np.float64).reshape(-1, 2)
        arrays = {
            _FINGERPRINT: np.array(piece.fingerprint),
            **dict(zip(_STATIONS, (np.array(list(piece.stations), str), *places.T))),
            _REFUSED: np.array([f"{count} {reason}" for reason, count in piece.refused.items()], str),
            _LACKS: np.array(piece.lacks),
        }
        for name, kinds in piece.scores.items():
            for kind, sums in kinds.items():
                arrays[f"{name}|{kind}|weight"] = sums.weight
                for statistic, values in sums.sums.items():
                    arrays[f"{name}|{kind}|sum|{statistic}"] = values
        write_archive(self.path(pair), _PIECE, arrays)

    def read(self, pair: Pair) -> Piece:
        """What `write` wrote. Raises InputError where it is missing or damaged."""
        arrays = read_archive(self.path(pair), _PIECE)
        fingerprint = str(arrays.pop(_FINGERPRINT))
        names, *places = (arrays.pop(name).tolist() for name in _STATIONS)
        counts = (text.partition(" ") for text in arrays.pop(_REFUSED).tolist())
        refused = {reason: int(count) for count, _, reason in counts}
        lacks = str(arrays.pop(_LACKS, ""))  # sums that were kept before there was such a text have all
        scores: dict[str, dict[str, Any]] = {}
        for key, values in arrays.items():
            name, kind, *what = key.split("|")
            parts = scores.setdefault(name, {}).setdefault(kind, [None, {}])
            if what == ["weight"]:
                parts[0] = values
            else:
                parts[1][what[1]] = values
        made = {name: {kind: Sums(*parts) for kind, parts in kinds.items()} for name, kinds in scores.items()}
        return Piece(made, dict(zip(names, zip(*places))), fingerprint, refused, lacks)


@dataclass(frozen=True, eq=False)
class Collected:
    """What results are made of: the tables of all pairs, and what they are of."""

    about: Description
    pairs: tuple[Pair, ...]
    tables: Tables
    """Of maps, spectra and places the sums over all dates alone."""
    stations: Mapping[str, tuple[float, float]]
    """By name, latitude and longitude, in the order of the sums by place."""
    refused: Mapping[str, int]
    """By reason, how many reports of all valid times were left out."""


def collect(folders: Sequence[KeptSums], *, pairs: Sequence[Pair] | None = None) -> Collected:
    """The sums of these pairs (all there are) in these folders, each pair counted once.

    What is compared must be there in all: persistence of which a pair has nothing is left out, with a note; so is a
    pair of which a field has missing values. Raises UsageError where the folders are of different verifications;
    InputError where two hold a pair of different fields, one of the pairs is nowhere, or all have missing values.
    """
    first, *others = [folder.about for folder in folders]
    for folder, other in zip(folders[1:], others):
        other.check_like(first, folder.folder, f"it cannot be added to {folders[0].folder}")
    holders = _holders(folders)
    chosen = tuple(sorted(holders)) if pairs is None else tuple(pairs)
    tables: Tables = {}
    refused: dict[datetime, Mapping[str, int]] = {}
    pieces = [(pair, holders.get(pair, folders[0])) for pair in chosen]
    seen: Counter[str] = Counter()
    lacking: dict[Pair, str] = {}
    stations = _stations(pieces)
    for pair, holder in pieces:
        piece = holder.read(pair)
        if piece.lacks:
            lacking[pair] = piece.lacks
            continue
        refused[pair[0] + pair[1]] = piece.refused
        seen.update(list(piece.scores))
        for name, kinds in piece.scores.items():
            for kind, sums in kinds.items():
                table = tables.setdefault(name, {}).setdefault(kind, first.table(kind))
                own = _of_stations(sums, piece.stations, stations) if kind == "places" else sums
                _add(table, kind, pair, own, Start(0, chosen[0][0]))
    scored = tuple(pair for pair in chosen if pair not in lacking)
    partial = {name: count for name, count in seen.items() if count < len(scored)}
    notes = [f"no {name}: {count} of {len(scored)} sums have it" for name, count in partial.items()]
    notes += _told_lacking(lacking, len(chosen))
    told = _told_of_all([first, *others])
    told = told.model_copy(update={"notes": (*told.notes, *notes)})
    whole = {name: kinds for name, kinds in tables.items() if name not in partial}
    return Collected(told, scored, whole, stations, _summed(refused.values()))


def _told_lacking(lacking: Mapping[Pair, str], pairs: int) -> list[str]:
    """A note of those that have missing values. Raises InputError where all have."""
    if not lacking:
        return []
    told = [f"{time:%Y-%m-%d %H:%M} at {hours_text(lead)}, {why}" for (time, lead), why in lacking.items()]
    more = [f"{len(told) - _MOST_TOLD} more"] if len(told) > _MOST_TOLD else []
    listed = " / ".join([*told[:_MOST_TOLD], *more])
    if len(lacking) == pairs:
        raise InputError(
            f"nothing can be verified: each of {pairs} forecasts or its truth has missing values ({listed}); leave out "
            "the channel (--channels) or the source that has them"
        )
    return [
        f"{len(lacking)} of {pairs} forecasts, or their truth, have missing values and are left out ({listed})"
    ]


def _summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    whole: dict[str, int] = {}
    for one in counts:
        for reason, count in one.items():
            whole[reason] = whole.get(reason, 0) + count
    return whole


def _add(table: DatedSums, kind: str, pair: Pair, sums: Sums, whole: Start) -> None:
    if is_dated(kind):
        table.add(*pair, sums)
        return
    key = whole, pair[1]
    table.entries[key] = table.entries[key] + sums if key in table.entries else sums


def _stations(pieces: Sequence[tuple[Pair, KeptSums]]) -> dict[str, tuple[float, float]]:
    """Of all pieces, by name: other dates may have other stations."""
    found: dict[str, tuple[float, float]] = {}
    for pair, holder in pieces:
        found |= holder.stations(pair)
    return dict(sorted(found.items()))


def _holders(folders: Sequence[KeptSums]) -> dict[Pair, KeptSums]:
    """Which folder holds a pair. Raises InputError where two hold it, of different fields."""
    found: dict[Pair, KeptSums] = {}
    for folder in folders:
        for pair in folder.pairs:
            before = found.setdefault(pair, folder)
            if before is not folder and not _is_same(before, folder, pair):
                raise InputError(
                    f"each forecast counts once; {pair[0]:%Y-%m-%d %H:%M} at {hours_text(pair[1])} is in "
                    f"{before.folder} and, of other fields, in {folder.folder}: leave one out"
                )
    return found


def _is_same(one: KeptSums, other: KeptSums, pair: Pair) -> bool:
    """Whether both hold the same of a pair: made of the same fields, or equal to the last bit."""
    if one.fingerprint(pair) == other.fingerprint(pair):
        return True
    first, second = (_flat(folder.read(pair).scores) for folder in (one, other))
    return first.keys() == second.keys() and all(
        np.array_equal(values, second[key], equal_nan=True) for key, values in first.items()
    )


def _flat(scores: Scores) -> dict[tuple[str, str, str], np.ndarray]:
    return {
        (name, kind, statistic): values
        for name, kinds in scores.items()
        for kind, sums in kinds.items()
        for statistic, values in {"weight": sums.weight, **sums.sums}.items()
    }


def _of_stations(sums: Sums, own: Iterable[str], all_of_them: Iterable[str]) -> Sums:
    """In the order of all stations there are."""
    place = {name: index for index, name in enumerate(all_of_them)}
    targets = [place[name] for name in own]
    whole = Sums.zeros(sums.names, (sums.shape[0], len(place)))
    whole.weight[:, targets] = sums.weight
    for name, values in sums.sums.items():
        whole.sums[name][:, targets] = values
    return whole


def _told_of_all(descriptions: Sequence[Description]) -> Description:
    """What readers are told of the first, and of others what is different there."""
    first = descriptions[0]
    facts = {key: _either([about.facts.get(key, "none") for about in descriptions]) for key in first.facts}
    titles = _either([about.title for about in descriptions])
    notes = tuple(dict.fromkeys(note for about in descriptions for note in about.notes))
    return first.model_copy(update={"facts": facts, "title": titles, "notes": notes})


def _either(texts: Sequence[str]) -> str:
    """Each different one; of many the first few."""
    different = [part for text in texts for part in text.split(_ALSO) if part != _OTHERS]
    different = list(dict.fromkeys(different))
    return _ALSO.join(different[:_MOST_TOLD] + [_OTHERS] * (len(different) > _MOST_TOLD))
