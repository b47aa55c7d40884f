"""The settings of a hindcast: which initial times, from which input, into which store, computed by whom."""

import hashlib
import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from string import Formatter
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from fengwu_ghr.config import (
    ComputeSection,
    ForecastSection,
    Instant,
    ModelSection,
    Section,
    VerifySection,
    with_own_forecast,
)

FIELDS = ("time", "before")
"""What a template may name: the initial time, and the time a step before it."""
MOST_DATES = 100_000


class DatesSection(Section):
    """Initial times: from `first` to `last` every so many hours, and those listed in `times`."""

    first: Instant | None = None
    last: Instant | None = None
    every_hours: int = Field(24, gt=0)
    times: tuple[Instant, ...] = ()

    @model_validator(mode="after")
    def _names_dates(self) -> "DatesSection":
        if (self.first is None) != (self.last is None):
            raise ValueError("first and last are given together")
        if self.first and self.last and self.last < self.first:
            raise ValueError(f"last lies before first; got {self.first} and {self.last}")
        if not self.first and not self.times:
            raise ValueError("name initial times: first and last, or times")
        if self.first and self.last and (self.last - self.first) / self._every > MOST_DATES:
            raise ValueError(f"a season has at most {MOST_DATES} initial times")
        return self

    @property
    def all(self) -> tuple[datetime, ...]:
        """Ascending, each once."""
        return tuple(sorted({*self._range(), *self.times}))

    @property
    def _every(self) -> timedelta:
        return timedelta(hours=self.every_hours)

    def _range(self) -> Iterator[datetime]:
        if self.first and self.last:
            for i in range((self.last - self.first) // self._every + 1):
                yield self.first + i * self._every


class SeasonInput(Section):
    """`files` are templates, as `analyses/{time:%Y%m%d%H}.grib2`; a template may have `*`.

    For files that come late, `wait_minutes` is how long to wait once there is nothing else to do.
    """

    files: tuple[str, ...] = Field(min_length=1)
    wait_minutes: float = Field(0, ge=0)

    @field_validator("files")
    @classmethod
    def _can_be_filled_in(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for template in value:
            _check_template(template)
        return value

    @property
    def names_times(self) -> bool:
        """Whether other initial times have other files."""
        return any(name for template in self.files for _, name, _, _ in Formatter().parse(template))

    def names(self, time: datetime, *, before: datetime) -> list[str]:
        """Files and patterns of this initial time; `before` lies a step before it."""
        return [template.format(time=time, before=before) for template in self.files]


class SeasonOutput(Section):
    """One run store holds all initial times; GRIB files are written beside it when asked for."""

    zarr: Path
    grib: Path | None = None


class ClusterSection(Section):
    """Who computes. `workers` 0 means as many as this machine's cores and memory carry, or one a GPU.

    `scheduler` is the address of a Dask cluster that is there; `job` are options of dask-jobqueue (queue, walltime,
    cores, memory ...). A worker from which nothing is heard for `stall_minutes` is started again.
    """

    kind: Literal["local", "slurm", "pbs"] = "local"
    workers: int = Field(0, ge=0)
    scheduler: str | None = None
    stall_minutes: float = Field(30, gt=0)
    dashboard: str = ":8787"
    job: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_one_kind(self) -> "ClusterSection":
        if self.scheduler and self.kind != "local":
            raise ValueError("scheduler names a cluster that is there; leave kind out")
        if self.job and self.kind == "local":
            raise ValueError("job has options of slurm and pbs; name the kind")
        if self.scheduler and self.workers:
            raise ValueError("the workers of a scheduler are its own; leave workers out")
        if self.kind != "local" and not self.workers:
            raise ValueError(f"say how many workers {self.kind} is to start")
        return self


class HindcastConfig(Section):
    """Forecasts from many initial times, and how they are verified; [verify] needs no forecast: it is of these."""

    model: ModelSection
    dates: DatesSection
    input: SeasonInput
    output: SeasonOutput
    forecast: ForecastSection = ForecastSection()
    compute: ComputeSection = ComputeSection()
    cluster: ClusterSection = ClusterSection()
    verify: VerifySection | None = None

    @model_validator(mode="before")
    @classmethod
    def _verifies_itself(cls, tree: Any) -> Any:
        return with_own_forecast(tree)

    @model_validator(mode="after")
    def _verifies_nothing_else(self) -> "HindcastConfig":
        if self.verify is not None and self.verify.forecast != (self.output.zarr,):
            raise ValueError("verify is of these forecasts alone; leave verify.forecast out")
        return self

    @model_validator(mode="after")
    def _precision_is_known(self) -> "HindcastConfig":
        if self.compute.precision == "auto":
            raise ValueError(
                "a hindcast names its compute.precision, since workers might measure otherwise; got auto"
            )
        return self

    @property
    def is_computed_here(self) -> bool:
        """Whether the workers are this machine's."""
        return self.cluster.kind == "local" and not self.cluster.scheduler

    @property
    def online(self) -> VerifySection | None:
        """What scores the leads while they are computed; None where nothing does."""
        return self.verify if self.verify is not None and self.verify.online else None

    @property
    def wanted(self) -> str:
        """What must be there beside the leads for an initial time to be finished, as a short text.

        Names alone: the same season may be looked at from another machine, where paths begin otherwise.
        """
        grib, online = self.output.grib, self.online
        parts = {"grib": grib.name if grib else None, "scores": online.output.name if online else None}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def absolute(config: HindcastConfig) -> HindcastConfig:
    """The same with paths that mean the same in any folder: workers may be started elsewhere."""
    files = tuple(str(Path(template).absolute()) for template in config.input.files)
    output = {name: path and path.absolute() for name, path in config.output}
    parts: dict[str, Any] = {
        "input": config.input.model_copy(update={"files": files}),
        "output": config.output.model_copy(update=output),
    }
    if config.verify is not None:
        parts["verify"] = config.verify.model_copy(update=_absolute_paths(config.verify))
    name = Path(config.model.name)
    if name.is_dir():
        parts["model"] = ModelSection(name=str(name.absolute()))
    return config.model_copy(update=parts)


def _absolute_paths(section: Section) -> dict[str, Any]:
    return {name: _absolute(value) for name, value in section}


def _absolute(value: Any) -> Any:
    match value:
        case Path():
            return value.absolute()
        case tuple():
            return tuple(map(_absolute, value))
        case dict():
            return {key: _absolute(part) for key, part in value.items()}
    return value


def _check_template(template: str) -> None:
    """Raises ValueError unless it names times alone; a format string could reach into objects otherwise."""
    try:
        fields = [
            (name, form, kind) for _, name, form, kind in Formatter().parse(template) if name is not None
        ]
    except ValueError as error:
        raise ValueError(f"{template!r} cannot be filled in: {error}") from None
    for name, form, conversion in fields:
        if name not in FIELDS or conversion or "{" in (form or ""):
            raise ValueError(
                f"input.files name times alone, as analyses/{{time:%Y%m%d%H}}.grib2 or {{before:...}} for the time a "
                f"step before; got {template!r}"
            )


def matching(name: str) -> list[Path]:
    """The files of this name or pattern, in order; none where there are none."""
    path = Path(name)
    if not any(sign in name for sign in "*?["):
        return [path] if path.exists() else []
    return sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
