"""ONNX files as they are published -> a checkpoint: what they hold is looked at, what does not fit is said.

FengWu: one graph, `input` (1, 2 x 69, 721, 1440), two states, the oldest first, `output` with the next state in its
first 69 channels; statistics in two .npy files. The GHR package: encoder, block_0 ..., decoder, each fed by position
what the one before gave, with the lead step; statistics in two .json files. Both predict states.
"""

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from pydantic import ValidationError

from fengwu_ghr.checkpoint import Checkpoint, hash_of, put_folder
from fengwu_ghr.errors import UsageError
from fengwu_ghr.grid import SCALES, NetworkGrid
from fengwu_ghr.model_card import CARD, Graph, ModelCard, OnnxPackage, Statistics, explain, write_card
from fengwu_ghr.normalise import Normalisation
from fengwu_ghr.onnx_files import OnnxFile, Shape, Value, check_chain
from fengwu_ghr.variables import ChannelSet, channel_set

GHR_LEVELS = (
    1000, 975, 950, 925, 900, 875, 850, 825, 800, 775, 750, 700, 650, 600, 550, 500, 450, 400, 350, 300, 250, 225,
    200, 175, 150, 125, 100, 70, 50, 30, 20, 10, 7, 5, 3, 2, 1,
)  # fmt: skip
"""Pressure in hPa of the 37 values by variable in GHR's statistics."""

_GHR_NAMES = {"2t": "t2m", "10u": "u10", "10v": "v10", "100u": "u100", "100v": "v100"}
_FENGWU_SETS = {69: "fengwu-69"}
_GHR_SETS = {69: "ghr-69", 74: "ghr-74", 88: "ghr-88"}
_BLOCK = re.compile(r"block_(\d+)\.onnx")
_LICENCE = (
    "not stated in the files; published FengWu and GHR weights are CC BY-NC-SA 4.0, not for commercial use"
)


@dataclass(frozen=True)
class About:
    """What files do not say, or what the user knows better. None: as published."""

    channels: str | None = None
    registration: str | None = None
    scale: int | None = None
    predicts: Literal["state", "tendency"] = "state"
    statistics: tuple[Path, ...] = ()
    name: str | None = None
    licence: str = _LICENCE
    step_hours: int = 6


def convert(path: Path, output: Path, about: About = About()) -> Checkpoint:
    """A checkpoint in a new folder, of the graphs at `path`: a file, or the folder of a package.

    The files are linked where the file system allows, else copied; the originals stay. Raises UsageError naming the
    file, and the tensor, that does not fit; OutputError where the folder cannot be made.
    """
    files = [OnnxFile(file) for file in graphs_at(path)]
    check_chain(files)
    whole = path.resolve()
    named = replace(about, name=about.name or (whole.name if path.is_dir() else whole.stem))
    card = describe(files, named, beside=path if path.is_dir() else path.parent)
    return save_package(files, card, output)


def graphs_at(path: Path) -> list[Path]:
    """The graphs in the order in which they run. Raises UsageError where some are missing or too many are there."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UsageError(f"{path} is not there; give an .onnx file, or the folder of a package")
    found = sorted(path.glob("*.onnx"))
    names = {file.name for file in found}
    numbers = sorted(int(match[1]) for name in names if (match := _BLOCK.fullmatch(name)))
    if not numbers:
        if len(found) == 1:
            return found
        raise UsageError(
            f"{path} holds {', '.join(sorted(names)) or 'no .onnx file'}; a package has encoder.onnx, block_0.onnx ... "
            "and decoder.onnx; give the file itself where a model is one graph"
        )
    chain = ["encoder.onnx", *(f"block_{number}.onnx" for number in range(numbers[-1] + 1)), "decoder.onnx"]
    if absent := [name for name in chain if name not in names]:
        raise UsageError(f"{path} is a package without {', '.join(absent)}; fetch what is missing")
    if extra := sorted(names - set(chain)):
        raise UsageError(f"{path} holds {', '.join(extra)} beside a package; keep them apart")
    return [path / name for name in chain]


def describe(files: Sequence[OnnxFile], about: About, *, beside: Path) -> ModelCard:
    """The card of graphs that follow one another. Raises UsageError where they are not a model that we know to run."""
    given, gives = files[0].inputs, files[-1].outputs
    _check_ends(files)
    channels, history = _channels(files, about)
    grid = _grid(files[0].path, given[0], about)
    _check_output(files[-1].path, gives[0], channels, grid, history)
    try:
        return ModelCard(
            name=about.name or files[0].path.stem,
            description=f"ONNX graphs, {'a chain of ' if len(files) > 1 else ''}{len(files)}, of {channels.name}.",
            trained=True,
            licence=about.licence,
            channel_set=channels.name,
            registration=cast(Literal["nested", "pixel", "backbone"], grid.registration),
            step_hours=about.step_hours,
            statistics=Statistics.of(channels, _statistics(about.statistics, beside, channels)),
            onnx=OnnxPackage(
                graphs=costs(files, history * len(channels), grid),
                scale=grid.scale,
                precision=cast(Literal["float16", "float32"], given[0].type),
                history=cast(Literal[1, 2], history),
                predicts=about.predicts,
            ),
            provenance={
                "converted from": ", ".join(file.path.name for file in files[:3]) + " ..." * (len(files) > 3)
            },
        )
    except ValidationError as error:
        raise UsageError(f"{beside} cannot be a model: {explain(error)}") from error


def save_package(files: Sequence[OnnxFile], card: ModelCard, output: Path) -> Checkpoint:
    """The card and the files in a new folder, whole or not at all. Raises OutputError."""
    sources = list(dict.fromkeys(path for file in files for path in (file.path, *file.external)))
    if clash := [source for source in sources if source.name == CARD]:
        raise UsageError(
            f"{clash[0]} has the name of a checkpoint's card; rename it, and save the model again"
        )

    def write(made: Path) -> None:
        for source in sources:
            _link(source, made / source.name)
        write_card(made, _with_files(card, {source.name: hash_of(source) for source in sources}))

    put_folder(output, write)
    return Checkpoint.open(output)


def _with_files(card: ModelCard, sums: dict[str, str]) -> ModelCard:
    try:
        return ModelCard.model_validate(card.model_dump() | {"files": sums})
    except ValidationError as error:
        raise UsageError(f"{card.name} cannot be a model: {explain(error)}") from error


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def _check_ends(files: Sequence[OnnxFile]) -> None:
    """What goes in is a state and at most the lead step; what comes out a state."""
    first, last = files[0], files[-1]
    state, *rest = first.inputs or (Value("nothing", "none", ()),)
    if not _is_state(state) or state.type not in ("float32", "float16"):
        raise UsageError(
            f"{first.path} wants {', '.join(map(str, first.inputs)) or 'nothing'}: a model is first given a state "
            "(1 x channels x rows x columns) of float32 or float16"
        )
    if len(rest) > 1 or any(value.type != "int64" or value.shape != () for value in rest):
        raise UsageError(
            f"{first.path} wants {', '.join(map(str, rest))} beside a state: only the lead step, a whole number "
            "(int64), is known here"
        )
    if not last.outputs or not _is_state(last.outputs[0]) or last.outputs[0].type != state.type:
        raise UsageError(
            f"{last.path} gives {', '.join(map(str, last.outputs)) or 'nothing'}: the last graph gives a state first "
            f"(1 x channels x rows x columns), of {state.type} as the one it is fed"
        )


def _is_state(value: Value) -> bool:
    return value.shape is not None and len(value.shape) == 4 and value.shape[0] in (1, None)


def _channels(files: Sequence[OnnxFile], about: About) -> tuple[ChannelSet, int]:
    """The channel set that is meant, and of how many states the input consists."""
    path, value = files[0].path, files[0].inputs[0]
    count = value.sizes[1]
    sets = _FENGWU_SETS if len(files) == 1 and about.channels is None else _GHR_SETS
    known = {c * h: (name, h) for c, name in sets.items() for h in (1, 2)}
    if about.channels:
        try:
            asked = channel_set(about.channels)
        except ValueError as error:
            raise UsageError(str(error)) from None
        known = {len(asked) * h: (asked.name, h) for h in (1, 2)}
    if count not in known:
        raise UsageError(
            f"{path}: the input {value} has {count or 'an open number of'} channels; known are "
            f"{', '.join(f'{n} ({name}, {h} state(s))' for n, (name, h) in known.items())}"
        )
    name, history = known[count]
    return channel_set(name), history


def _grid(path: Path, value: Value, about: About) -> NetworkGrid:
    """The grid of the input: the network's or the backbone's, at the scale that has its size."""
    size = value.sizes[2:]
    scales = SCALES if about.scale is None else (about.scale,)
    wanted = (about.registration,) if about.registration else ("pixel", "backbone")
    try:
        grids = [NetworkGrid(scale, registration) for scale in scales for registration in wanted]
    except ValueError as error:
        raise UsageError(str(error)) from None
    fitting = [grid for grid in grids if all(told in (None, n) for told, n in zip(size, grid.shape))]
    if len(fitting) > 1 and about.scale is not None:
        raise UsageError(
            f"{path}: the input {value} may be on the grid of the network or of the backbone; say which with "
            "--registration pixel (or nested), or backbone"
        )
    if len(fitting) == 1:
        return fitting[0]
    raise UsageError(
        f"{path}: the input {value} is not on a grid that is known here: 721 x 1440 (backbone), 2163 x 4320 (network), "
        "or these at a coarser --scale; an open size needs --scale"
    )


def _check_output(path: Path, value: Value, channels: ChannelSet, grid: NetworkGrid, history: int) -> None:
    _, count, *size = value.sizes
    if count is None and history > 1:
        raise UsageError(
            f"{path}: the output {value} does not say how many channels it has: with two states in it may be one or "
            "two; save the model again with that size fixed"
        )
    if count is not None and count < len(channels):
        raise UsageError(
            f"{path}: the output {value} has {count} channels, {channels.name} has {len(channels)}"
        )
    if any(told not in (None, n) for told, n in zip(size, grid.shape)):
        raise UsageError(
            f"{path}: the output {value} is not on {grid.name}, {grid.shape[0]} x {grid.shape[1]}"
        )


def costs(files: Sequence[OnnxFile], inputs: int, grid: NetworkGrid) -> tuple[Graph, ...]:
    """The graphs with what each costs; the first is fed `inputs` channels on this grid, others what they say."""
    graphs = []
    given: tuple[Shape | None, ...] = ((1, inputs, *grid.shape), ())
    for file in files:
        cost = file.cost({value.name: shape for value, shape in zip(file.inputs, given) if shape is not None})
        graphs.append(
            Graph(file=file.path.name, bytes=file.bytes, working_bytes=cost.working_bytes, flops=cost.flops)
        )
        given = cost.outputs
    return tuple(graphs)


def _statistics(paths: Sequence[Path], beside: Path, channels: ChannelSet) -> Normalisation:
    """As FengWu or GHR keep them, in two .npy or two .json files; looked for beside the graphs where none is given."""
    found = list(paths) or _statistics_beside(beside)
    kinds = {path.suffix for path in found}
    if kinds == {".npy"} and len(found) == 2:
        return _checked([_array(path) for path in found], channels, found)
    if kinds == {".json"}:
        tables = _tables(found)
        values = [
            [_from_tables(tables[kind], name, channels) for name in channels.names]
            for kind in ("mean", "std")
        ]
        return _checked([np.array(one) for one in values], channels, found)
    raise UsageError(
        "a model needs the mean and std it was trained with: --statistics mean.npy --statistics std.npy, or "
        f"--statistics mean_std.json --statistics mean_std_single.json; got {', '.join(map(str, found)) or 'none'}, "
        f"and {beside} holds none of these names"
    )


def _statistics_beside(folder: Path) -> list[Path]:
    pairs = (
        ("data_mean.npy", "data_std.npy"),
        ("global_means.npy", "global_stds.npy"),
        ("mean_std.json", "mean_std_single.json"),
    )
    for pair in pairs:
        if all((folder / name).is_file() for name in pair):
            return [folder / name for name in pair]
    return []


def _checked(values: Sequence[np.ndarray], channels: ChannelSet, paths: Sequence[Path]) -> Normalisation:
    mean, std = (np.asarray(one, np.float32).reshape(-1) for one in values)
    if len(mean) != len(channels):
        raise UsageError(
            f"{', '.join(map(str, paths))} hold {len(mean)} values, {channels.name} has {len(channels)} channels"
        )
    try:
        return Normalisation(mean, std)
    except ValueError as error:
        raise UsageError(f"{', '.join(map(str, paths))}: {error}") from None


def _array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{path} is not an array as numpy saves it: {error}") from error


def _tables(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Mean and std by variable, of all these files together."""
    together: dict[str, dict[str, Any]] = {"mean": {}, "std": {}}
    for path in paths:
        try:
            content = json.loads(path.read_text())
            for kind, values in together.items():
                values |= dict(content[kind])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f'{path} is not JSON of "mean" and "std" by variable: {error!r}') from error
    return together


def _from_tables(table: dict[str, Any], name: str, channels: ChannelSet) -> float:
    channel = channels.channels[channels.names.index(name)]
    key = _GHR_NAMES.get(channel.variable, channel.variable)
    if key not in table:
        raise UsageError(f"the statistics have no {key}, which {channels.name} needs for {name}")
    values = table[key]
    try:
        if channel.level is None:
            return float(values)
        if len(values) == len(GHR_LEVELS):
            return float(values[GHR_LEVELS.index(channel.level)])
    except (TypeError, ValueError):
        wanted = "a number" if channel.level is None else f"{len(GHR_LEVELS)} numbers"
        raise UsageError(f"the statistics of {key} are {values!r}; they are {wanted}") from None
    raise UsageError(
        f"the statistics have {len(values)} values of {key}; GHR's have {len(GHR_LEVELS)} levels"
    )
