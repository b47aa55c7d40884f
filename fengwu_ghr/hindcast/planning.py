"""What a season takes: what of it is there, a sample of its forecasts, and how all of them are computed."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from fengwu_ghr.engine.torch_engine import chosen_options
from fengwu_ghr.errors import InputError, UsageError
from fengwu_ghr.forecast import online_verification
from fengwu_ghr.hindcast.arrival import LOOK_SECONDS, Arrivals
from fengwu_ghr.hindcast.cluster import Host, this_machine
from fengwu_ghr.hindcast.ledger import DateState, Ledger
from fengwu_ghr.hindcast.season import Season, check_recorded
from fengwu_ghr.hindcast.settings import HindcastConfig, absolute
from fengwu_ghr.preflight import ForecastPlan
from fengwu_ghr.resume import Attempt, check_budget, differing
from fengwu_ghr.skeleton import check_resumable, read_attribute
from fengwu_ghr.store import RunStore
from fengwu_ghr.target import is_occupied, is_store
from fengwu_ghr.verify.pairing import NothingToVerify

RECORD = "hindcast"
"""The attribute of the store that says how all initial times are computed."""


class NoSample(InputError):
    """Of no initial time is the input there and sound; `problems` are of those that are there."""

    def __init__(self, message: str, problems: Mapping[datetime, InputError]) -> None:
        super().__init__(message)
        self.problems = problems


def states(season: Season) -> list[DateState]:
    """Of every initial time, also where there is no store yet. Raises UsageError where it is of something else."""
    path = season.config.output.zarr
    if not is_occupied(path):
        return [DateState(time, "waiting") for time in season.times]
    _check_season(season, path)
    with RunStore.open(path) as store:
        return Ledger(store, season.config.wanted).states()


def _check_season(season: Season, path: Path) -> None:
    """Raises UsageError unless the store is of this season."""
    check_resumable(path, season.store_plan)
    recorded = read_attribute(path, RECORD)
    if recorded is None:
        raise UsageError(f"{path} is the run store of a single forecast; write to another output.zarr")
    check_recorded(season, recorded, path)


def plan_hindcast(config: HindcastConfig) -> list[tuple[str, object]]:
    """What the season would take, in words. Raises the errors that it would begin with."""
    season = Season.of(absolute(config))
    found = states(season)
    stages = Counter(state.stage for state in found)
    due = [state.time for state in found if state.stage not in ("finished", "failed")]
    times, plan = season.times, season.store_plan
    facts: list[tuple[str, object]] = [
        ("initial times", f"{len(times)}, {times[0]:%Y-%m-%d %H} ... {times[-1]:%Y-%m-%d %H} UTC"),
        ("there already", f"{stages['finished']} finished, {stages['failed']} failed"),
        ("products", f"{len(plan.channels)} channels, {len(plan.leads)} leads on {plan.grid}"),
        ("store", f"about {plan.predicted_bytes / 1e9:.3g} GB in all"),
    ]
    if not due:
        return [*facts, ("to do", "nothing")]
    arrivals = Arrivals()
    absent = sum(bool(arrivals.lacking(season.input_names(time))) for time in due)
    there = ("input", f"there for {len(due) - absent} of {len(due)}")
    return [*facts, there, *_cost(season, due, sample_plan(season, due, arrivals, waits=False))]


def _cost(season: Season, due: Sequence[datetime], sample: ForecastPlan) -> list[tuple[str, object]]:
    notes = verification_notes(sample)
    machine = this_machine(season.config, sample)
    plan = settle(season, sample, [machine]).plan
    seconds = plan.seconds_per_step * season.steps
    hours = len(due) * seconds / machine.workers / 3600
    return [
        ("workers", f"{machine.workers} like this machine's, {plan.threads} threads each"),
        ("memory", f"{plan.memory.peak / 2**30:.2f} of {plan.memory.budget / 2**30:.2f} GiB a worker"),
        ("disk", f"about {plan.disk_bytes / 1e9:.3g} GB in all, with GRIB and a restart state"),
        ("time", f"about {seconds:.3g} s an initial time, {hours:.3g} h for the {len(due)} to do"),
        *(("verification", note) for note in notes),
    ]


def verification_notes(sample: ForecastPlan) -> list[str]:
    """What will be left out of the scores. Raises what would fail for all initial times."""
    try:
        with online_verification(sample, Attempt(None, frozenset())) as watch:
            return list(watch.notes) if watch else []
    except NothingToVerify as nothing:
        return [
            f"{nothing} (from {sample.initial_time:%Y-%m-%d %H}; such initial times are forecast without scores)"
        ]


def sample_plan(
    season: Season, times: Sequence[datetime], arrivals: Arrivals, *, waits: bool
) -> ForecastPlan:
    """The plan of one of these forecasts; once the input of any is there, where one `waits` for it.

    Raises NoSample with the error of the first where none can be planned.
    """
    patience = monotonic() + 60 * season.config.input.wait_minutes * waits
    names = {time: season.input_names(time) for time in times}
    while all(map(arrivals.lacking, names.values())):
        if monotonic() >= patience and not any(map(arrivals.is_unsure, names.values())):
            break
        sleep(LOOK_SECONDS)
    problems: dict[datetime, InputError] = {}
    for time in times:
        if arrivals.lacking(names[time]):
            continue
        try:
            return season.plan(time, is_here=season.config.is_computed_here)
        except InputError as error:
            problems[time] = error
    first = next(iter(problems.values()), None)
    lacking = ", ".join(arrivals.lacking(names[times[0]]))
    told = f"no initial time has its input: of {times[0]:%Y-%m-%d %H:%M} is not there {lacking}"
    raise NoSample(str(first or told), problems)


@dataclass(frozen=True)
class Settled:
    """How every initial time is computed, whoever computes it."""

    season: Season
    plan: ForecastPlan
    """Of one of them."""


def settle(season: Season, sample: ForecastPlan, machines: Sequence[Host]) -> Settled:
    """What the store has recorded; where it is new, what suits the smallest of these machines.

    Raises UsageError where other numerics are asked for than were recorded, ResourceError where those do not fit.
    """
    compute, recorded = season.config.compute, recorded_compute(season)
    budget = compute.memory_budget or min(machine.memory_budget for machine in machines)
    threads = compute.threads or min(machine.threads for machine in machines)
    if recorded is not None:
        threads = compute.threads or recorded["threads"]
    fixed = season.with_compute(threads=threads, memory_budget=budget)
    plan = sample.computed_by(fixed.config.compute)
    if recorded is None:
        return Settled(fixed, plan)
    check_budget(plan, recorded["batch"])
    return Settled(fixed, replace(plan, memory=plan.memory_with(recorded["batch"])))


def recorded_compute(season: Season) -> Mapping[str, Any] | None:
    """What the store says of how all are computed; None where there is none. Raises UsageError as `settle` does."""
    compute, path = season.config.compute, season.config.output.zarr
    if not is_store(path):
        return None
    recorded: Mapping[str, Any] = read_attribute(path, RECORD)["compute"]
    asked = {
        "batch": recorded["batch"],
        "threads": compute.threads or recorded["threads"],
        "device": compute.device,
        "precision": compute.precision,
        **chosen_options(compute),
    }
    changed = [f"{name}: {old} -> {new}" for name, old, new in differing(recorded, asked)]
    if changed and not compute.accept_numerics:
        raise UsageError(
            f"{path} was planned with other numerics ({'; '.join(changed)}), so that its forecasts would differ; take "
            "those, set compute.accept_numerics, or write to another output.zarr"
        )
    return recorded
