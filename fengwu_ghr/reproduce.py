"""Reproduce: a committed lead derived again from its provenance, and whether it has the same bytes."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from fengwu_ghr.config import RunConfig
from fengwu_ghr.engine.engines import numerics
from fengwu_ghr.errors import InputError
from fengwu_ghr.forecast import Reporter, run_forecast
from fengwu_ghr.preflight import ForecastPlan, plan_forecast
from fengwu_ghr.resume import differing, identity
from fengwu_ghr.store import RunStore
from fengwu_ghr.variables import Channel


@dataclass(frozen=True)
class Reproduction:
    """What was compared: how many fields have the same bytes, by how much others differ, and why they may."""

    initial_time: datetime
    lead: timedelta
    fields: int
    differing: dict[Channel, float] = field(default_factory=dict)
    """By field, the largest absolute difference; infinite where nothing was computed."""
    causes: tuple[str, ...] = ()
    """What is not as the manifest has it, in words."""

    @property
    def is_equal(self) -> bool:
        """Whether every field has the bytes of the store."""
        return not self.differing


def reproduce(
    path: Path,
    initial_time: datetime | None,
    lead: timedelta,
    *,
    reporter: Reporter,
    model: str | None = None,
    files: tuple[Path, ...] = (),
) -> Reproduction:
    """The lead computed again, with the numerics that the manifest has, and compared with the store byte for byte.

    `model` and `files` are where weights and input are now, if not where they were; their hashes are compared in any
    case, and nothing is computed with others. Raises InputError for a lead that is not committed or damaged, and the
    errors of `plan_forecast`.
    """
    with RunStore.open(path) as store:
        time = initial_time or store.plan.initial_times[0]
        recorded = store.provenance(time)
        stated = store.shards(time, lead)
        for channel in store.plan.channels:
            store.read(channel, time, lead)  # it is what the manifest says
        assert recorded is not None
        with tempfile.TemporaryDirectory(prefix="reproduce-") as folder:
            first = next(lead for lead in store.plan.leads if lead)
            plan = _plan(recorded, time, lead, first, Path(folder) / "again.zarr", model, files)
            causes = _causes(plan, recorded)
            if other := _other_sources(plan, recorded["identity"]):
                unknown = dict.fromkeys(store.plan.channels, np.inf)
                return Reproduction(time, lead, len(stated), unknown, (*other, *causes))
            if store.numerics_changed(time):
                causes = (*causes, "the numerics were changed on the way (--accept-numerics)")
            run_forecast(plan.config, reporter=reporter, plan=plan)
            with RunStore.open(plan.config.output.zarr) as again:
                made = again.shards(time, lead)
                differing = {
                    channel: _difference(store, again, channel, time, lead)
                    for channel in store.plan.channels
                    if made[channel] != stated[channel]
                }
    return Reproduction(time, lead, len(stated), differing, causes)


def _plan(
    recorded: Mapping[str, Any],
    time: datetime,
    lead: timedelta,
    first: timedelta,
    output: Path,
    model: str | None,
    files: tuple[Path, ...],
) -> ForecastPlan:
    """The same forecast up to this lead, alone in a store of its own, with the recorded threads and batch."""
    tree = dict(recorded["config"])
    bits = recorded["numerics"]
    hours = lead // timedelta(hours=1)
    last = hours or first // timedelta(hours=1)  # the analysis alone is no forecast
    tree["model"] = {"name": model} if model else tree["model"]
    tree["input"] = {"files": files or tree["input"]["files"], "time": time}
    tree["output"] = {"zarr": output}
    tree["verify"] = None
    # Graphs have a precision of their own, which is not asked for.
    asked = {"threads": bits["threads"]} | (
        {"precision": bits["precision"]} if bits["engine"] == "torch" else {}
    )
    tree["compute"] = {**tree["compute"], **asked}
    whole = {**tree["forecast"], "lead_time_hours": last, "leads_hours": sorted({hours, last})}
    try:
        config = RunConfig.model_validate({**tree, "forecast": whole})
    except ValidationError as error:
        raise InputError(f"the recorded configuration is of another version of fengwu_ghr: {error}") from None
    plan = plan_forecast(config)
    return replace(plan, memory=plan.memory_with(bits["batch"]))


def _other_sources(plan: ForecastPlan, recorded: Mapping[str, Any]) -> tuple[str, ...]:
    """Weights, input and grids that are not those of the manifest: with them nothing is worth computing."""
    now = identity(plan)
    found = []
    if now["model"]["sha256"] != recorded["model"]["sha256"]:
        found.append(
            f"weights: {recorded['model']['sha256'][:12]} recorded, {now['model']['sha256'][:12]} in "
            f"{plan.checkpoint.folder}; give the ones of then with --model"
        )
    before, after = (_hashes(files) for files in (recorded["input files"], now["input files"]))
    if before != after:
        names = ", ".join(file["name"] for analysis in recorded["input files"] for file in analysis)
        found.append(f"input: {names} had other bytes; give the files of then with --input")
    parts = [part for part in ("grid", "rounding") if recorded[part] != now[part]]
    return (*found, *(f"{part}: {recorded[part]} recorded, {now[part]} now" for part in parts))


def _hashes(analyses: list[list[dict[str, Any]]]) -> list[list[str]]:
    return [sorted(file["sha256"] for file in analysis) for analysis in analyses]


def _causes(plan: ForecastPlan, recorded: Mapping[str, Any]) -> tuple[str, ...]:
    found = differing(recorded["numerics"], numerics(plan.checkpoint, plan.compute))
    return tuple(f"numerics: {name} {old} recorded, {new} now" for name, old, new in sorted(found))


def _difference(store: RunStore, again: RunStore, channel: Channel, time: datetime, lead: timedelta) -> float:
    both = (held.read(channel, time, lead).astype(np.float64) for held in (store, again))
    first, second = both
    return float(np.abs(first - second).max())
