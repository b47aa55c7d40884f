"""A season: its model, the plan of its store, and the forecast from each of its initial times."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from fengwu_ghr.catalogue import resolve_model
from fengwu_ghr.checkpoint import Checkpoint
from fengwu_ghr.config import RunConfig
from fengwu_ghr.errors import InputError, UsageError
from fengwu_ghr.hindcast.settings import HindcastConfig, matching
from fengwu_ghr.layout import StorePlan
from fengwu_ghr.preflight import (
    ForecastPlan,
    plan_forecast,
    select_area,
    select_channels,
    select_leads,
)


@dataclass(frozen=True, eq=False)
class Season:
    """A season whose model is there, and whose store is planned."""

    config: HindcastConfig
    checkpoint: Checkpoint

    @classmethod
    def of(cls, config: HindcastConfig) -> "Season":
        """Raises UsageError for a model, products or leads that there cannot be."""
        season = cls(config, Checkpoint.open(resolve_model(config.model.name)))
        _ = season.store_plan
        return season

    @cached_property
    def times(self) -> tuple[datetime, ...]:
        """The initial times, ascending."""
        return self.config.dates.all

    @cached_property
    def store_plan(self) -> StorePlan:
        """Of one store for all initial times."""
        checkpoint, wanted = self.checkpoint, self.config.forecast
        grid, _, _ = select_area(checkpoint.grid.product, wanted.area)
        return StorePlan(
            channels=select_channels(checkpoint.channels.channels, wanted),
            grid=grid,
            initial_times=self.times,
            leads=select_leads(wanted, step_hours=checkpoint.card.step_hours),
            keep_bits=wanted.keep_bits,
        )

    @property
    def steps(self) -> int:
        """Of every forecast."""
        whole = timedelta(hours=self.config.forecast.lead_time_hours)
        last = whole if self.config.online else self.store_plan.leads[-1]
        return last // self.checkpoint.step

    def input_names(self, time: datetime) -> list[str]:
        """The files and patterns of this initial time."""
        return self.config.input.names(time, before=time - self.checkpoint.step)

    def forecast_config(self, time: datetime) -> RunConfig:
        """The forecast from this initial time. Raises InputError for input that is not there."""
        config, found = self.config, {name: matching(name) for name in self.input_names(time)}
        if missing := [name for name, paths in found.items() if not paths]:
            raise InputError(f"the input of {time:%Y-%m-%d %H:%M} is not there: {', '.join(missing)}")
        files = dict.fromkeys(path for paths in found.values() for path in paths)
        sections = {name: getattr(config, name).model_dump() for name in ("model", "forecast", "compute")}
        return RunConfig.model_validate(
            {
                **sections,
                "input": {"files": tuple(files), "time": time},
                "output": config.output.model_dump(),
                "verify": config.online.model_dump() if config.online else None,
            }
        )

    def plan(self, time: datetime, *, batch: int | None = None, is_here: bool = True) -> ForecastPlan:
        """What is computed from this initial time, with so many sub-fields at a time; here, or on another machine.

        Raises the errors of `plan_forecast`.
        """
        config = self.forecast_config(time)
        found = plan_forecast(config, checkpoint=self.checkpoint, season=self.times, is_here=is_here)
        return found if batch is None else replace(found, memory=found.memory_with(batch))

    def with_compute(self, **changes: Any) -> "Season":
        """The same season, computed otherwise."""
        compute = self.config.compute.model_copy(update=changes)
        return replace(self, config=self.config.model_copy(update={"compute": compute}))


def check_recorded(season: Season, recorded: dict[str, Any], store: Path) -> None:
    """Raises UsageError where the store was planned for another model."""
    model = recorded["model"]
    if model["sha256"] != season.checkpoint.digest:
        raise UsageError(
            f"{store} holds forecasts of another model ({model['name']}, {model['sha256'][:12]}); write to another "
            "output.zarr, or take that model"
        )
