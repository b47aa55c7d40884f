"""Configuration: one TOML file is one run. Unknown keys are errors, keys carry their units, nothing is inherited.

Flags of the command line and `key=value` overrides end in the same models, and the resolved configuration is
saved in every output.
"""

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from fengwu_ghr.errors import UsageError

_PLAIN = {
    "missing": "is needed; give it in the configuration or by its flag",
    "extra_forbidden": "no such key; the files in configs/ show every key there is",
}

_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix, base in (("iB", 1024), ("B", 1000), ("", 1024))
}
_TIMES = tuple(
    re.compile(form, re.ASCII)
    for form in (
        r"(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d)(?::(\d\d)(?::(\d\d))?)?)?Z?",
        r"(\d{4})(\d\d)(\d\d)(?: (\d\d))?Z?",
        r"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)?Z?",
    )
)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def _as_time(value: Any) -> Any:
    """TOML has times of its own; a bare number is none, though pydantic would count seconds from 1970."""
    match value:
        case None | datetime():
            return value
        case date():
            return datetime(value.year, value.month, value.day)
    return parse_time(str(value))


def _in_utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        return value
    try:
        return value.astimezone(UTC).replace(tzinfo=None)
    except OverflowError:
        raise ValueError("in UTC this time lies outside the calendar") from None


Instant = Annotated[datetime, BeforeValidator(_as_time), AfterValidator(_in_utc)]
"""A time in UTC, naive; what has an offset is brought there."""


class ModelSection(Section):
    """`name`: a checkpoint folder, a name under $FENGWU_GHR_MODELS, or an untrained architecture."""

    name: str


class InputSection(Section):
    """`files` are GRIB files; `time` (UTC, unless it has an offset) picks the initial time when they hold several."""

    files: tuple[Path, ...] = Field(min_length=1)
    time: Instant | None = None


class ForecastSection(Section):
    """What is computed and what of it is kept; the restart state is always whole."""

    lead_time_hours: int = Field(240, gt=0)
    variables: tuple[str, ...] = ()
    levels: tuple[int, ...] = ()
    leads_hours: tuple[int, ...] = ()
    area: tuple[float, float, float, float] | None = None
    keep_bits: int | None = Field(None, ge=1, le=23)

    @model_validator(mode="after")
    def _area_is_a_box(self) -> "ForecastSection":
        if self.area is not None and not -90 <= self.area[2] < self.area[0] <= 90:
            raise ValueError(f"area is north, west, south, east with south < north; got {self.area}")
        return self


class OutputSection(Section):
    """`zarr` is the run store; GRIB files and a NetCDF file are written beside it when asked for."""

    zarr: Path
    grib: Path | None = None
    netcdf: Path | None = None
    overwrite: bool = False


class ComputeSection(Section):
    """`threads` 0 means one per core, `output_threads` 0 as many, but 8 at most; without `memory_budget` 80 % of the
    memory that is free is taken. `precision` auto is the faster of float32 and bfloat16, as measured before the run.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["float32", "bfloat16", "float8", "auto"] = "float32"
    threads: int = Field(0, ge=0)
    output_threads: int = Field(0, ge=0)
    memory_budget: int | None = Field(None, gt=0)
    compile: bool = False
    cuda_graphs: bool = False
    paging: bool = False
    ranks: int = Field(1, ge=1)
    accept_numerics: bool = False

    @field_validator("memory_budget", mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        return parse_bytes(value) if isinstance(value, str) else value


_THRESHOLD = re.compile(r"\s*(\w+?)\s*(>=|<=)\s*(p)?(-?[0-9.]+)\s*")


class VerifySection(Section):
    """What is verified, against what, and how it is told. Empty lists mean all there is.

    `online`: a forecast is scored lead by lead while it is computed, whatever is kept of it.
    `thresholds` are written `2t>=303.15`, in units of the registry, or `2t>=p95` for a percentile of the climatology.
    `boxes` are north, west, south, east, as `area` of a forecast; `masks` name files with a share of each cell.
    """

    forecast: tuple[Path, ...] = Field(min_length=1)
    truth: tuple[Path, ...] = Field(min_length=1)
    output: Path
    online: bool = False
    baselines: dict[str, tuple[Path, ...]] = {}
    persistence: bool = True
    climatology: Path | None = None
    stations: tuple[Path, ...] = ()
    orography: Path | None = None
    land_mask: Path | None = None
    channels: tuple[str, ...] = ()
    leads_hours: tuple[int, ...] = ()
    first: Instant | None = None
    last: Instant | None = None
    hours: tuple[int, ...] = ()
    grid: str = "native"
    regions: tuple[str, ...] = ()
    boxes: dict[str, tuple[float, float, float, float]] = {}
    masks: dict[str, Path] = {}
    thresholds: tuple[str, ...] = ()
    neighbourhoods_km: tuple[Annotated[float, Field(gt=0)], ...] = (100.0, 250.0, 500.0, 1000.0)
    shown_hours: tuple[int, ...] = (24, 72, 120, 240)
    workers: int = Field(0, ge=0)
    scheduler: str | None = None

    @field_validator("forecast", "truth", "stations", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (str, Path)) else value

    @field_validator("baselines", mode="before")
    @classmethod
    def _one_is_a_list_there_too(cls, value: Any) -> Any:
        one = (str, Path)
        return (
            {k: (v,) if isinstance(v, one) else v for k, v in value.items()}
            if isinstance(value, dict)
            else value
        )

    @field_validator("thresholds")
    @classmethod
    def _thresholds_are_written_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        parsed = [parse_threshold(text) for text in value]
        if len(set(parsed)) < len(parsed):
            raise ValueError("every threshold is given once")
        return value


class VerifyConfig(Section):
    """One verification."""

    verify: VerifySection


class RunConfig(Section):
    """One forecast from one initial time, and how it is verified; [verify] needs no forecast: it is of this one."""

    model: ModelSection
    input: InputSection
    output: OutputSection
    forecast: ForecastSection = ForecastSection()
    compute: ComputeSection = ComputeSection()
    verify: VerifySection | None = None

    @model_validator(mode="before")
    @classmethod
    def _verifies_itself(cls, tree: Any) -> Any:
        tree = with_own_forecast(tree)
        match tree:
            case {"verify": {"online": True, **verify}} if "forecast" not in verify:  # told of [output] alone
                return {**tree, "verify": {**verify, "online": True, "forecast": ""}}
        return tree

    @model_validator(mode="after")
    def _online_is_of_this_forecast(self) -> "RunConfig":
        if self.is_verified_online and self.verify.forecast != (self.output.zarr,):  # type: ignore[union-attr]
            raise ValueError("verify.online is of this forecast alone; leave verify.forecast out")
        return self

    @property
    def is_verified_online(self) -> bool:
        return self.verify is not None and self.verify.online

    @property
    def lead_time(self) -> timedelta:
        return timedelta(hours=self.forecast.lead_time_hours)


Settings = TypeVar("Settings", bound=Section)


def load_config(
    path: Path | None,
    *,
    flags: Mapping[str, Any],
    overrides: Sequence[str] = (),
    fallback: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The configuration of a file, overlaid by flags (`section.key`, None = not given), then by `key=value`.

    `fallback` holds keys that may be left out here although a run needs them.
    Raises UsageError naming every key that is unknown, missing or out of range.
    """
    tree = _read_toml(path) if path else {}
    for key, value in flags.items():
        if value not in (None, (), []):
            _set(tree, key, value)
    _override(tree, overrides)
    for key, value in (fallback or {}).items():
        section, _, name = key.partition(".")
        given_there = tree.get(section, {})
        if not (isinstance(given_there, dict) and name in given_there):
            _set(tree, key, value)
    return _validated(RunConfig, tree)


def load_verification(
    path: Path | None, *, flags: Mapping[str, Any], overrides: Sequence[str] = ()
) -> VerifySection:
    """The [verify] of a file, overlaid by flags, then by `key=value`; raises UsageError as `load_config` does.

    Other sections of the file are not looked at: it may be that of a forecast.
    """
    tree = _read_toml(path) if path else {}
    for key, value in flags.items():
        if value not in (None, (), [], {}):
            _set(tree, f"verify.{key}", value)
    if stray := [text for text in overrides if not text.startswith("verify.")]:
        raise UsageError(
            f"overrides of a verification begin with verify., as verify.grid=1p5; got {stray[0]!r}"
        )
    _override(tree, overrides)
    return _validated(VerifyConfig, {"verify": with_own_forecast(tree).get("verify", {})}).verify


def read_settings(kind: type[Settings], path: Path, *, overrides: Sequence[str] = ()) -> Settings:
    """Settings of this kind from a file, overlaid by `key=value`; raises UsageError as `load_config` does."""
    tree = _read_toml(path)
    _override(tree, overrides)
    return _validated(kind, tree)


def with_own_forecast(tree: Any) -> Any:
    """A [verify] beside an [output] is of the forecast that is written there, unless it names another."""
    match tree:
        case {"verify": {**verify}, "output": {"zarr": store}} if "forecast" not in verify:
            return {**tree, "verify": {**verify, "forecast": store}}
    return tree


def _override(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    for key, value in map(_split_override, overrides):
        _set(tree, key, value)


def _validated(kind: type[Settings], tree: dict[str, Any]) -> Settings:
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise UsageError(f"the configuration is not valid:\n{_explain(error)}") from None


def cache_folder(kind: str) -> Path:
    """Where files that can be made again are kept: $FENGWU_GHR_CACHE, else the user's cache; it may not exist."""
    if folder := os.environ.get("FENGWU_GHR_CACHE"):
        return Path(folder) / kind
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fengwu_ghr" / kind


def parse_threshold(text: str) -> tuple[str, bool, bool, float]:
    """Channel, whether above, whether a percentile, value: of `2t>=303.15` or `10ws>=p98`."""
    found = _THRESHOLD.fullmatch(text)
    if not found:
        raise ValueError(f"a threshold is written 2t>=303.15, msl<=97000 or 10ws>=p98; got {text!r}")
    return found[1], found[2] == ">=", found[3] is not None, float(found[4])


def parse_bytes(text: str) -> int:
    """`20GiB`, `500 MB`, `12G` or a plain number of bytes."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]*)\s*", text)
    if not match or match[2] not in _UNITS:
        raise ValueError(
            f"a size is a number with B, KB, KiB, MB, MiB, GB or GiB, such as 20GiB; got {text!r}"
        )
    return int(float(match[1]) * _UNITS[match[2]])


def parse_time(text: str) -> datetime:
    """`2024-01-31`, `2024-01-31T12`, `2024-01-31 12:00:00Z`, `20240131 12`, `202401311200`: naive UTC.

    Raises ValueError for anything else: a time that is guessed starts a forecast from another analysis.
    """
    found = next(filter(None, (form.fullmatch(text) for form in _TIMES)), None)
    try:
        if found:
            digits = "".join(part or "00" for part in found.groups())
            return datetime.strptime(digits.ljust(14, "0"), "%Y%m%d%H%M%S")
        reason = ""
    except ValueError as error:
        reason = f" ({error})"
    raise ValueError(f"a time is written as 2024-01-31T12:00 or 2024013112, in UTC; got {text!r}{reason}")


def asked_time(text: str | None) -> datetime | None:
    """The time that an option gives, None where it is not given. Raises UsageError."""
    try:
        return parse_time(text) if text else None
    except ValueError as error:
        raise UsageError(str(error)) from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"the configuration {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from None


def _split_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"\s*\w+(\.\w+)*\s*", key):
        raise UsageError(
            f"an override is written section.key=value, as forecast.lead_time_hours=48; got {text!r}"
        )
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    inside = tree
    for depth, section in enumerate(sections, start=1):
        inside = inside.setdefault(section, {})
        if not isinstance(inside, dict):
            where = ".".join(sections[:depth])
            raise UsageError(f"[{where}] must be a section of the configuration; got {inside!r}")
    inside[name] = value


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        said = _PLAIN.get(item["type"], item["msg"].removeprefix("Value error, "))
        value = "" if "got" in said or item["type"] == "missing" or not where else f"; got {item['input']!r}"
        lines.append(f"  {where}: {said}{value}" if where else f"  {said}")
    return "\n".join(lines)
