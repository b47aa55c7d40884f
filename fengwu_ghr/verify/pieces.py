"""Pieces: the sums of every pair of initial time and lead, each in a small file; computed in parallel, and collected.

What is there already is not computed again, so an added date costs only that date, and a stopped run goes on.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from threading import Lock
from typing import Any
from uuid import uuid4

from fengwu_ghr.config import VerifySection
from fengwu_ghr.errors import MissingValues
from fengwu_ghr.progress import Progress
from fengwu_ghr.scheduler import connect
from fengwu_ghr.verify.kept import Collected, KeptSums, Pair, Piece, collect
from fengwu_ghr.verify.scoring import Run
from fengwu_ghr.verify.verification import Verification, plan_verification


def verify(made: Verification, *, progress: Progress) -> Collected:
    """Every pair is scored, in `output/sums`, and the tables of all of them.

    Raises UsageError where the output holds a verification of other settings; the errors of reading.
    """
    kept = KeptSums(made.settings.output)
    kept.claim(made.description())
    for note in made.notes:
        progress.note(note)
    todo = missing(made)
    done = len(made.pairs) - len(todo)
    progress.begin("verification", done, len(made.pairs))
    for count, _ in enumerate(_computed(made, todo), start=done + 1):
        progress.stepped(count, {})
    return collect([kept], pairs=made.pairs)


def missing(made: Verification) -> list[Pair]:
    """The pairs that have not been scored, or whose fields have changed since."""
    kept = KeptSums(made.settings.output)
    return [pair for pair in made.pairs if kept.fingerprint(pair) != fingerprint_of(made, pair)]


def score_pair(made: Verification, pair: Pair, *, run: Run = map) -> None:
    """The sums of this pair are on disk, or why it has none: a field has missing values. `run` as of `Scorer.score`."""
    fingerprint = fingerprint_of(made, pair)
    try:
        scores = made.scorer.score(*pair, run=run)
    except MissingValues as lacking:
        piece = Piece({}, {}, fingerprint, {}, lacks=" ".join(str(lacking).split()))
    else:
        stations = {} if made.places is None else made.places.positions
        refused = {} if made.places is None else made.places.refused_at(pair[0] + pair[1])
        piece = Piece(scores, stations, fingerprint, refused)
    KeptSums(made.settings.output).write(pair, piece)


def fingerprint_of(made: Verification, pair: Pair) -> str:
    """Changes where the fields of the pair change: of a run store its checksums, of other files size and time."""
    initial_time, lead = pair
    reports = "" if made.places is None else made.places.fingerprint(initial_time + lead)
    facts = [made.truth.fingerprint(initial_time + lead), reports]
    facts += [source.fingerprint(initial_time, lead) for source in made.forecasts.values()]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def _computed(made: Verification, pairs: Sequence[Pair]) -> Iterator[None]:
    """Pairs as they are done, by the threads of this process or by a Dask cluster."""
    if made.settings.scheduler:
        yield from _on_cluster(made.settings, made.settings.scheduler, pairs)
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


def _on_cluster(settings: VerifySection, scheduler: str, pairs: Sequence[Pair]) -> Iterator[None]:
    job = _Job(settings.model_dump_json(), uuid4().hex)
    with connect(scheduler) as client:
        from dask.distributed import as_completed  # it is there: `connect` has looked

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
