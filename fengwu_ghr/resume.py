"""What an earlier attempt left at the outputs: whether this run goes on from it, replaces it, or must not touch it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from fengwu_ghr.engine.engines import numerics
from fengwu_ghr.engine.torch_engine import Compute
from fengwu_ghr.errors import ResourceError, UsageError
from fengwu_ghr.memory_plan import check_device_memory
from fengwu_ghr.preflight import ForecastPlan
from fengwu_ghr.skeleton import check_resumable
from fengwu_ghr.store import RunStore
from fengwu_ghr.target import check_is_store, is_occupied

REUSED_NUMERICS = ("threads", "batch")
"""What a resumed run takes from the manifest instead of from its options; the precision too, where it was measured."""


@dataclass(frozen=True)
class Attempt:
    """An earlier attempt at this very run, or (`recorded` None) none. `replaces` says that another run must go."""

    recorded: dict[str, Any] | None
    committed: frozenset[timedelta]
    replaces: bool = False
    has_restart: bool = False

    @property
    def has_begun(self) -> bool:
        """Whether something computed is there to go on from, so that numerics must stay as they are."""
        return self.has_restart or any(lead > timedelta(0) for lead in self.committed)


def find_attempt(plan: ForecastPlan) -> Attempt:
    """What stands at the output. With `overwrite`, an unfinished attempt at this same run is still resumed.

    Raises UsageError when something else is there that must not be replaced.
    """
    path, overwrite = plan.config.output.zarr, plan.config.output.overwrite
    if not is_occupied(path):
        netcdf = plan.config.output.netcdf
        if netcdf and netcdf.exists() and not overwrite:
            raise UsageError(f"{netcdf} exists; choose another --netcdf file, or replace it with --overwrite")
        return Attempt(None, frozenset())
    check_is_store(path)
    if overwrite and not _is_this_run_unfinished(plan):
        return Attempt(None, frozenset(), replaces=True)
    check_resumable(path, plan.store)
    with RunStore.open(path) as store:
        return find_attempt_in(store, plan)


def find_attempt_in(store: RunStore, plan: ForecastPlan) -> Attempt:
    """What a store of this plan holds of this forecast. Raises UsageError where that is of another one."""
    recorded = store.provenance(plan.initial_time)
    if changed := changes(plan, recorded):
        raise UsageError(
            f"{store.path} holds a forecast with another {' and '.join(changed)}; write to another --output, or "
            "replace it with --overwrite"
        )
    committed = frozenset(store.committed(plan.initial_time))
    return Attempt(recorded, committed, has_restart=store.has_restart(plan.initial_time))


def identity(plan: ForecastPlan) -> dict[str, Any]:
    """What must be the same when a run is resumed, part by part."""
    return {
        "model": {
            "name": plan.checkpoint.card.name,
            "trained": plan.checkpoint.card.trained,
            "sha256": plan.checkpoint.digest,
        },
        "input files": [list(analysis.files) for analysis in plan.analyses],
        "grid": {"product": plan.grid.key, "network": plan.checkpoint.grid.name},
        "rounding": plan.config.forecast.keep_bits,
    }


def settle_compute(plan: ForecastPlan, attempt: Attempt) -> tuple[Compute, list[str]]:
    """How to compute, and what differs from the numerics of the attempt that is resumed (accepted, or nothing).

    Raises UsageError for other numerics, ResourceError when the recorded ones do not fit into the budget.
    """
    if attempt.recorded is None or not attempt.has_begun:
        return plan.compute, []
    before = attempt.recorded["numerics"]
    compute, is_accepted = plan.compute, plan.config.compute.accept_numerics
    if not is_accepted:
        measured = ("precision",) if plan.config.compute.precision == "auto" else ()
        compute = replace(compute, **{name: before[name] for name in (*REUSED_NUMERICS, *measured)})
        check_budget(plan, compute.batch)
    now = numerics(plan.checkpoint, compute)
    changed = [f"{name}: {old} -> {new}" for name, old, new in differing(before, now)]
    if changed and not is_accepted:
        raise UsageError(
            f"{plan.config.output.zarr} was begun with other numerics ({'; '.join(changed)}), so the rest would not "
            "be byte-equal; use the recorded ones, or --accept-numerics to go on all the same"
        )
    return compute, changed


def _is_this_run_unfinished(plan: ForecastPlan) -> bool:
    with RunStore.open(plan.config.output.zarr) as store:
        if store.plan != plan.store or changes(plan, store.provenance(plan.initial_time)):
            return False
        return store.committed(plan.initial_time) != plan.leads or store.has_restart(plan.initial_time)


def changes(plan: ForecastPlan, recorded: dict[str, Any] | None) -> list[str]:
    """The parts of its identity in which a forecast differs from what was recorded; none where nothing was."""
    now = identity(plan)
    return [part for part in now if recorded is not None and now[part] != recorded["identity"][part]]


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Name, old and new value of all that is not the same; None stands for what one of them does not have."""
    names = dict.fromkeys([*before, *now])
    return [(name, before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)]


def check_budget(plan: ForecastPlan, batch: int) -> None:
    """Raises ResourceError where so many sub-fields at a time, with which the run was begun, do not fit."""
    memory = plan.memory_with(batch)
    check_device_memory(memory, plan.checkpoint)
    if memory.peak > memory.budget:
        raise ResourceError(
            f"the run was begun with {batch} sub-fields at a time, which takes {memory.peak / 2**30:.2f} GiB "
            f"of {memory.budget / 2**30:.2f} GiB; raise --memory-budget, or --accept-numerics to go on with fewer"
        )
