"""A simulated world on disk: 6-hourly states of several members, fine and as area means, and their statistics.

A world is a folder. `world.json` says how it was made; `member-N/SPLIT-YYYYMMDDHH.npy` holds consecutive states from
that valid time on the product grid, `.coarse.npy` beside it their area means on the backbone grid. The former may be
left away for splits of which the latter are enough.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, lru_cache, partial
from itertools import chain, pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Float32

from fengwu_ghr.durable import flush, replace_file, writing
from fengwu_ghr.errors import InputError, UsageError
from fengwu_ghr.grid import LatLonGrid, backbone_grid, product_grid
from fengwu_ghr.normalise import Normalisation, standard_statistics
from fengwu_ghr.variables import ChannelSet, channel_set

SPLITS = ("train", "validation", "test")
STEP_HOURS = 6
STEP = timedelta(hours=STEP_HOURS)
FLOOR = 0.1
"""A channel whose spread is below this part of the atmosphere's is not resolved by the simulator."""

_CHUNK = re.compile(r"(train|validation|test)-(\d{10})\.coarse\.npy")
_MEMBER = re.compile(r"member-(\d+)")


@dataclass(frozen=True, eq=False)
class WorldStatistics:
    """What normalisation and losses need of a world, from its training series alone.

    `normalisation` has every std at least a tenth of the real atmosphere's; `persisted` names the channels that
    needed it: they are not forecast but persisted, and no score counts them. `tendency_std` is that of 6-hour
    differences of normalised states.
    """

    normalisation: Normalisation
    tendency_std: Float32[np.ndarray, " channel"]
    persisted: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Series:
    """An unbroken 6-hourly run of states of one member. Fields are memory-mapped and read-only."""

    split: str
    member: int
    times: tuple[datetime, ...]
    chunks: tuple[Path, ...]
    channels: ChannelSet

    def __len__(self) -> int:
        return len(self.times)

    def fine(self, index: int) -> Float32[np.ndarray, "channel lat lon"]:
        """The state on the product grid, in registry units. Raises InputError where it was not kept."""
        if not self.has_fine:
            raise InputError(
                f"the fine {self.split} states of member {self.member} were not kept; simulate with {self.split} among "
                "simulate.keep_fine"
            )
        return self._state(index, self.chunks)

    def coarse(self, index: int) -> Float32[np.ndarray, "channel lat lon"]:
        """The area means of the state on the backbone grid."""
        return self._state(index, tuple(coarse_path(path) for path in self.chunks))

    @cached_property
    def has_fine(self) -> bool:
        """Whether the fine states of all its chunks are there."""
        return all(path.exists() for path in self.chunks)

    def _state(self, index: int, chunks: tuple[Path, ...]) -> Float32[np.ndarray, "channel lat lon"]:
        if not 0 <= index < len(self):
            raise IndexError(f"states 0 to {len(self) - 1} there are; got {index}")
        chunk, within = divmod(index, _mapped(chunks[0]).shape[0])
        return _mapped(chunks[chunk])[within]


class World:
    """A simulated world, whole or as far as it has come."""

    def __init__(self, folder: Path, *, scale: int, channels: ChannelSet, made_by: dict[str, Any]) -> None:
        self.folder, self.scale, self.channels, self.made_by = folder, scale, channels, made_by

    @classmethod
    def open(cls, folder: Path) -> "World":
        """The world in this folder. Raises InputError where there is none, or a part of it is damaged."""
        path = folder / "world.json"
        try:
            card = json.loads(path.read_text(encoding="utf-8"))
            scale, channels = int(card["scale"]), channel_set(card["channel_set"])
            product_grid(scale)
        except FileNotFoundError:
            raise InputError(
                f"{folder} holds no simulated world (no world.json); make one with fengwu-ghr train simulate"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} does not describe a world ({error!r}); simulate again") from error
        return cls(folder, scale=scale, channels=channels, made_by=card)

    @property
    def fine_grid(self) -> LatLonGrid:
        return product_grid(self.scale)

    @property
    def coarse_grid(self) -> LatLonGrid:
        return backbone_grid(self.scale)

    @cached_property
    def orography(self) -> Float32[np.ndarray, "lat lon"]:
        """Geopotential of the surface on the product grid, m2 s-2."""
        return _read_array(self.folder / "orography.npy")

    @cached_property
    def land_mask(self) -> Float32[np.ndarray, "lat lon"]:
        """The share of land on the product grid, 0 to 1."""
        return _read_array(self.folder / "land_mask.npy")

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits there are states of."""
        found = {
            m[1] for member in self._members() for p in member.iterdir() if (m := _CHUNK.fullmatch(p.name))
        }
        return tuple(split for split in SPLITS if split in found)

    def series(self, split: str) -> tuple[Series, ...]:
        """The unbroken runs of this split, by member. Raises InputError when there is none, or one has a hole."""
        if split not in SPLITS:
            raise ValueError(f"splits are {', '.join(SPLITS)}; got {split!r}")
        found = [run for member in self._members() for run in self._runs(member, split)]
        if not found:
            raise InputError(f"the world in {self.folder} has no {split} states yet; simulate on")
        return tuple(found)

    @cached_property
    def statistics(self) -> WorldStatistics:
        """Of the training series; kept in statistics.json, and measured anew where there are more states since.

        Raises InputError where they are of other channels, or were adopted and there are more states since.
        """
        path = self.folder / "statistics.json"
        content = _statistics_in(path) if path.exists() else None
        if content is None or self._has_grown_since(content, path):
            content = _measure(self)
            replace_file(path, json.dumps(content, indent=1).encode())
        return _statistics_of(content, self.channels, path)

    def _has_grown_since(self, content: Mapping[str, Any], path: Path) -> bool:
        """Whether there are more training states than these statistics are of."""
        states = sum(map(len, self.series("train"))) if "train" in self.splits else 0
        has_grown = states > content.get("states", states)
        if has_grown and "source" in content:
            raise InputError(
                f"{path} was adopted when the world had {content['states']} training states, it has {states} now; "
                "remove it, and it is adopted again"
            )
        return bool(has_grown)

    def adopt_statistics(
        self, normalisation: Normalisation, persisted: Sequence[str], *, source: str
    ) -> None:
        """The world has this normalisation, of `source`, in place of one of its own: what was trained before goes on.

        The std of tendencies stays the world's. Raises UsageError where it has other statistics already.
        """
        path = self.folder / "statistics.json"
        if path.exists():
            if _statistics_in(path).get("source") != source:
                raise UsageError(
                    f"{path} holds other statistics than those of {source}; remove it to take these"
                )
            return
        content, names = _measure(self), self.channels.names
        for name, mean, std in zip(names, normalisation.mean, normalisation.std):
            content["tendency_std"][name] *= content["std"][name] / float(std)
            content["mean"][name], content["std"][name] = float(mean), float(std)
        replace_file(
            path, json.dumps(content | {"source": source, "persisted": list(persisted)}, indent=1).encode()
        )

    def _members(self) -> list[Path]:
        found = [path for path in self.folder.iterdir() if _MEMBER.fullmatch(path.name)]
        return sorted(found, key=_number)

    def _runs(self, member: Path, split: str) -> Iterator[Series]:
        chunks = sorted(
            member / path.name.replace(".coarse", "")
            for path in member.iterdir()
            if (m := _CHUNK.fullmatch(path.name)) and m[1] == split
        )
        for path in chunks:
            self._check_shape(coarse_path(path), self.coarse_grid, states=_length(chunks[0]))
            if path.exists():
                self._check_shape(path, self.fine_grid, states=_length(chunks[0]))
        for run in _unbroken(chunks):
            states = [_length(path) for path in run]
            times = tuple(chunk_start(run[0]) + STEP * i for i in range(sum(states)))
            yield Series(split, _number(member), times, tuple(run), self.channels)

    def _check_shape(self, path: Path, grid: LatLonGrid, *, states: int) -> None:
        wanted = (states, len(self.channels), *grid.shape)
        if (shape := _shape(path)) != wanted:
            raise InputError(
                f"{path} must hold an array of shape {wanted}, it has {shape}; remove it and simulate again"
            )


def _length(chunk: Path) -> int:
    """States in a chunk."""
    return _shape(coarse_path(chunk))[0]


def _number(member: Path) -> int:
    return int(member.name.removeprefix("member-"))


def chunk_path(member: Path, split: str, first: datetime) -> Path:
    """Where consecutive states from this valid time on lie."""
    return member / f"{split}-{first:%Y%m%d%H}.npy"


def coarse_path(path: Path) -> Path:
    """Where the area means of a chunk lie."""
    return path.with_suffix(".coarse.npy")


def chunk_start(path: Path) -> datetime:
    """The first valid time of a chunk, from its name."""
    match = _CHUNK.fullmatch(coarse_path(path).name)
    if match is None:
        raise ValueError(f"{path.name} is not the name of a chunk")
    return datetime.strptime(match[2], "%Y%m%d%H")


def save_array(path: Path, values: np.ndarray) -> None:
    """The array lies in this .npy durably; nothing else is ever seen under the name."""
    with new_array(path, len(values)) as write:
        for value in values:
            write(value)


@contextmanager
def new_array(path: Path, length: int) -> Iterator[Callable[[np.ndarray], None]]:
    """Gives what takes the `length` parts of an array one by one; afterwards they lie in this .npy, as of `save_array`.

    Raises OutputError; what is half written when anything fails is removed.
    """
    unfinished = path.with_name(f".{os.getpid()}.{path.name}")
    with writing(path):
        try:
            with open(unfinished, "wb") as file:
                yield partial(_append, file, length)
            flush(unfinished)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


def _append(file: IO[bytes], length: int, part: np.ndarray) -> None:
    """One part more of an array; written, not mapped: a full disk is an error then, not a signal."""
    if file.tell() == 0:
        about = {"shape": (length, *part.shape), "fortran_order": False}
        np.lib.format.write_array_header_1_0(
            file, about | {"descr": np.lib.format.dtype_to_descr(part.dtype)}
        )
    file.write(np.ascontiguousarray(part).data)


def _unbroken(chunks: Sequence[Path]) -> Iterator[list[Path]]:
    run: list[Path] = []
    for path in chunks:
        if run and chunk_start(path) != chunk_start(run[-1]) + STEP * _length(run[-1]):
            yield run
            run = []
        run.append(path)
    if run:
        yield run


@lru_cache(maxsize=65536)
def _shape(path: Path) -> tuple[int, ...]:
    return tuple(_read_array(path, mapped=True).shape)


# Each map holds an open file, of which a process may have a thousand: years of chunks are more.
@lru_cache(maxsize=128)
def _mapped(path: Path) -> Float32[np.ndarray, "time channel lat lon"]:
    return _read_array(path, mapped=True)


def _read_array(path: Path, *, mapped: bool = False) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror or error}; simulate on, or see to it"
        ) from error
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} is no array ({error}); remove it and simulate again") from error


def _measure(world: World) -> dict[str, Any]:
    """Area-weighted mean, std and tendency std of the training states, every one; of area means without fine ones."""
    sums = np.zeros((2, len(world.channels)))
    changes = np.zeros((2, len(world.channels)))
    states = pairs = 0
    for series in world.series("train"):
        weights = (world.fine_grid if series.has_fine else world.coarse_grid).cell_areas()
        for before, state in _with_previous(series):
            states += 1
            sums += _moments(state, weights)
            if before is not None:
                pairs += 1
                changes += _moments(state - before, weights)
    mean, spread = _mean_and_std(sums / states)
    floor = FLOOR * standard_statistics(world.channels.channels).std
    _, tendency = _mean_and_std(changes / max(pairs, 1))
    std = np.maximum(spread, floor)
    persisted = [name for name, s, least in zip(world.channels.names, spread, floor) if s < least]
    named = {"mean": mean, "std": std, "tendency_std": tendency / std, "spread": spread}
    return {
        "states": states,
        "persisted": persisted,
        **{key: dict(zip(world.channels.names, map(float, values))) for key, values in named.items()},
    }


def _with_previous(series: Series) -> Iterator[tuple[np.ndarray | None, np.ndarray]]:
    read = series.fine if series.has_fine else series.coarse
    states: Iterable[np.ndarray | None] = chain([None], (read(i) for i in range(len(series))))
    for before, state in pairwise(states):
        assert state is not None
        if not np.isfinite(state).all():
            raise InputError(
                f"a state of member {series.member}, {series.split}, is not finite; simulate it again"
            )
        yield before, state


def _moments(state: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area means of the values and of their squares, (2, channel)."""
    values = state.astype(np.float64)
    return np.stack(
        [np.einsum("cij,ij->c", values, weights), np.einsum("cij,cij,ij->c", values, values, weights)]
    )


def _mean_and_std(moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, square = moments
    return mean, np.sqrt(np.maximum(square - mean**2, 0))


def _statistics_in(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return dict(content)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} does not hold statistics ({error!r}); remove it, it is made again"
        ) from error


def _statistics_of(content: Mapping[str, Any], channels: ChannelSet, path: Path) -> WorldStatistics:
    try:
        mean, std, tendency = (
            np.array([content[key][name] for name in channels.names], np.float32)
            for key in ("mean", "std", "tendency_std")
        )
        return WorldStatistics(Normalisation(mean, std), tendency, tuple(content["persisted"]))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} does not hold statistics of {channels.name} ({error!r}); remove it, it is made again"
        ) from error
