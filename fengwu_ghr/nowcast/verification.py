"""Verifying nowcasts: models and baselines on test events, or one forecast in a store against what came."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from fengwu_ghr.errors import InputError, UsageError
from fengwu_ghr.nowcast.comparison import BASELINES, PYSTEPS_BASELINES, makers_of, score_maker, starts_of
from fengwu_ghr.nowcast.events import check_splits
from fengwu_ghr.nowcast.forecast import ECHO
from fengwu_ghr.nowcast.scores import Scored, score_frame, scored
from fengwu_ghr.nowcast.sequence import RadarSequence
from fengwu_ghr.nowcast.table import Compared, write_table
from fengwu_ghr.nowcast.train import NowcastSettings
from fengwu_ghr.nowcast.weights import NowcastModel, resolve_nowcast
from fengwu_ghr.progress import Progress
from fengwu_ghr.store import RunStore

TEST_SPACING, TUNING_SPACING = 20, 60
"""Minutes between starts."""


@dataclass(frozen=True)
class Verified:
    """The sums and cuts, and the files that tell of them."""

    compared: Compared
    files: tuple[Path, ...]


def compare(
    settings: NowcastSettings,
    models: Sequence[str],
    baselines: Sequence[str],
    output: Path,
    *,
    spacing: int = TEST_SPACING,
    progress: Progress,
) -> Verified:
    """Every method on the test events, its cuts tuned on the training events; sums are kept in `output`/sums.

    Models are NAME=FOLDER or the names of packaged ones. Raises UsageError for a method that is none, or a model that
    was trained on a test event; the errors of reading events.
    """
    check_splits(settings.events)
    opened = {name: resolve_nowcast(path) for name, path in map(_named, models)}
    known = (*BASELINES, *PYSTEPS_BASELINES)
    unknown = [name for name in baselines if name not in known]
    if unknown:
        raise UsageError(f"the baselines are {', '.join(known)}; got {', '.join(unknown)}")
    for model in opened.values():
        _check_unseen(model, settings)
    found: dict[str, dict[str, Scored]] = {"test": {}, "train": {}}
    for split, apart in (("test", spacing), ("train", TUNING_SPACING)):
        starts = list(starts_of(settings.events, split, settings.data, spacing=apart))  # type: ignore[arg-type]
        for maker in makers_of(opened, baselines):
            found[split] |= score_maker(maker, starts, output / "sums", split, progress)
    compared = Compared.of(found["test"], found["train"])
    return Verified(compared, write_table(compared, output))


def verify_store(path: Path, truth: RadarSequence, *, initial_time: datetime | None = None) -> Scored:
    """The sums of one forecast at every lead of which there is a frame. Raises InputError for none, or another grid."""
    truth = truth.at_one_kilometre()
    with RunStore.open(path) as store:
        began = initial_time or store.plan.initial_times[0]
        if store.plan.grid != truth.grid:
            raise InputError(
                f"{path} is on {store.plan.grid}, {truth.source} on {truth.grid}, or elsewhere: give the same radar"
            )
        parts = []
        for lead in store.committed(began):
            if lead and began + lead in truth.times:
                came = truth.values[truth.times.index(began + lead)]
                made = store.read(ECHO, began, lead)
                parts.append(
                    (f"{began:%Y-%m-%d %H:%M}", lead // timedelta(minutes=1), score_frame(made, came))
                )
    if not parts:
        raise InputError(
            f"{truth.source} has no frame at a valid time of {path}, which began at {began:%Y-%m-%d %H:%M}"
        )
    return scored(parts)


def _named(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    return (name, path) if equals else (Path(text).name, text)


def _check_unseen(model: NowcastModel, settings: NowcastSettings) -> None:
    learned = model.card.provenance.get("trained on", "")
    seen = [event.name for event in settings.events if event.split == "test" and event.name in learned]
    if seen:
        raise UsageError(f"{model.card.name} was trained on {', '.join(seen)}, which is for tests here")
