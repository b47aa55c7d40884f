"""Pieces: the sums of every pair of initial time and lead, each in a small file; computed in parallel, and collected.

What is there already is not computed again, so an added date costs only that date, and a stopped run goes on.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np

from fengwu_ghr.config import VerifySection
from fengwu_ghr.durable import make_folder, replace_file, writing
from fengwu_ghr.errors import UsageError
from fengwu_ghr.progress import Progress
from fengwu_ghr.verify.archive import read_archive, read_array, write_archive
from fengwu_ghr.verify.scoring import Scores, is_dated
from fengwu_ghr.verify.statistics import DatedSums, Start, Sums
from fengwu_ghr.verify.verification import Pair, Verification, plan_verification

Tables = dict[str, dict[str, DatedSums]]
"""By forecast and kind."""

_PIECE = "piece of a verification"
_IDENTITY = "verification.json"
_FINGERPRINT = "fingerprint"


def verify(made: Verification, *, progress: Progress) -> Tables:
    """Every pair is scored, in `output/sums`, and the tables of all of them.

    Raises UsageError where the output holds a verification of other settings; the errors of reading.
    """
    claim_output(made)
    for note in made.notes:
        progress.note(note)
    todo = [pair for pair in made.pairs if not _is_done(made, pair)]
    done = len(made.pairs) - len(todo)
    progress.begin("verification", done, len(made.pairs))
    for count, _ in enumerate(_computed(made, todo), start=done + 1):
        progress.stepped(count, {})
    return collect(made)


def collect(made: Verification) -> Tables:
    """The tables of all pairs that have been scored; of maps, spectra and stations the sums over all dates alone."""
    tables: Tables = {name: {} for name in made.forecasts}
    first = made.pairs[0][0]
    for initial_time, lead in made.pairs:
        piece = read_piece(piece_path(made.settings.output, initial_time, lead))
        for name, kinds in piece.scores.items():
            for kind, sums in kinds.items():
                table = tables[name].setdefault(kind, made.table(kind))
                own = _of_stations(sums, piece.stations, made) if kind == "places" else sums
                if is_dated(kind):
                    table.add(initial_time, lead, own)
                else:
                    key = Start(0, first), lead
                    table.entries[key] = table.entries[key] + own if key in table.entries else own
    return tables


def _of_stations(sums: Sums, stations: Sequence[str], made: Verification) -> Sums:
    """In the order of all stations there are by now."""
    assert made.places is not None
    place = {name: index for index, name in enumerate(made.places.stations)}
    known = [(place[name], index) for index, name in enumerate(stations) if name in place]
    targets, sources = (list(part) for part in zip(*known)) if known else ([], [])
    whole = Sums.zeros(sums.names, (sums.shape[0], len(place)))
    whole.weight[:, targets] = sums.weight[:, sources]
    for name, values in sums.sums.items():
        whole.sums[name][:, targets] = values[:, sources]
    return whole


def claim_output(made: Verification) -> None:
    """The output is of this verification. Raises UsageError where it is of another."""
    path, wanted = made.settings.output / _IDENTITY, made.identity()
    with suppress(FileNotFoundError):
        there = json.loads(path.read_text())
        if there != wanted:
            differing = sorted(key for key in wanted | there if wanted.get(key) != there.get(key))
            raise UsageError(
                f"{made.settings.output} holds a verification with other {', '.join(differing)}; give another --output"
            )
        return
    with writing(path):
        make_folder(made.settings.output / "sums")
        replace_file(path, json.dumps(wanted, indent=1).encode())


def piece_path(output: Path, initial_time: datetime, lead: timedelta) -> Path:
    """Where the sums of a pair are kept."""
    return output / "sums" / f"{initial_time:%Y%m%dT%H%M}+{lead / timedelta(hours=1):g}h.npz"


class Piece(NamedTuple):
    """The sums of one pair, the stations of which some are, and a mark of the fields they were made of."""

    scores: Scores
    stations: tuple[str, ...]
    fingerprint: str


def write_piece(path: Path, piece: Piece) -> None:
    """The piece is there, whole, or not at all."""
    arrays = {_FINGERPRINT: np.array(piece.fingerprint), "stations": np.array(piece.stations, str)}
    for name, kinds in piece.scores.items():
        for kind, sums in kinds.items():
            arrays[f"{name}|{kind}|weight"] = sums.weight
            for statistic, values in sums.sums.items():
                arrays[f"{name}|{kind}|sum|{statistic}"] = values
    write_archive(path, _PIECE, arrays)


def read_piece(path: Path) -> Piece:
    """What `write_piece` wrote. Raises InputError where it is damaged."""
    arrays = read_archive(path, _PIECE)
    fingerprint, stations = str(arrays.pop(_FINGERPRINT)), tuple(arrays.pop("stations").tolist())
    scores: dict[str, dict[str, Any]] = {}
    for key, values in arrays.items():
        name, kind, *what = key.split("|")
        parts = scores.setdefault(name, {}).setdefault(kind, [None, {}])
        if what == ["weight"]:
            parts[0] = values
        else:
            parts[1][what[1]] = values
    made = {name: {kind: Sums(*parts) for kind, parts in kinds.items()} for name, kinds in scores.items()}
    return Piece(made, stations, fingerprint)


def score_pair(made: Verification, pair: Pair) -> None:
    """The sums of this pair are on disk."""
    stations = () if made.places is None else made.places.stations
    piece = Piece(made.scorer.score(*pair), stations, fingerprint_of(made, pair))
    write_piece(piece_path(made.settings.output, *pair), piece)


def fingerprint_of(made: Verification, pair: Pair) -> str:
    """Changes where the fields of the pair change: of a run store its checksums, of other files size and time."""
    initial_time, lead = pair
    reports = "" if made.places is None else made.places.fingerprint(initial_time + lead)
    facts = [made.truth.fingerprint(initial_time + lead), reports]
    facts += [source.fingerprint(initial_time, lead) for source in made.forecasts.values()]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def _is_done(made: Verification, pair: Pair) -> bool:
    path = piece_path(made.settings.output, *pair)
    if not path.exists():
        return False
    return str(read_array(path, _PIECE, _FINGERPRINT)) == fingerprint_of(made, pair)


def _computed(made: Verification, pairs: Sequence[Pair]) -> Iterator[None]:
    """Pairs as they are done, by the threads of this process or by a Dask cluster."""
    if made.settings.scheduler:
        yield from _on_cluster(made.settings, pairs)
        return
    workers = made.settings.workers or os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(score_pair, made, pair) for pair in pairs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _on_cluster(settings: VerifySection, pairs: Sequence[Pair]) -> Iterator[None]:
    try:
        from dask.distributed import Client, as_completed
    except ImportError:
        raise UsageError("--scheduler needs distributed: pip install 'fengwu_ghr[cluster]'") from None
    job = _Job(settings.model_dump_json(), uuid4().hex)
    try:
        client = Client(settings.scheduler, timeout="20s")
    except (OSError, ValueError) as error:
        raise UsageError(f"no Dask scheduler answers at {settings.scheduler}: {error}") from None
    with client:
        futures = client.map(job, list(pairs), pure=False)
        for future in as_completed(futures):
            yield future.result()


@dataclass(frozen=True)
class _Job:
    """A worker's share: sources are opened once per worker and run."""

    settings: str
    run: str

    def __call__(self, pair: Pair) -> None:
        with _TURN:
            if _PLANNED.get("run") != self.run:
                if "plan" in _PLANNED:
                    _PLANNED.pop("plan").__exit__()
                _PLANNED["plan"] = plan_verification(VerifySection.model_validate_json(self.settings))
                _PLANNED["run"] = self.run
        score_pair(_PLANNED["plan"], pair)


_TURN, _PLANNED = Lock(), dict[str, Any]()
