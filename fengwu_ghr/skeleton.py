"""A run store without a field: its plan as metadata and coordinates, written once and read back."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from fengwu_ghr import layout
from fengwu_ghr.durable import replace_file, writing
from fengwu_ghr.errors import InputError, UsageError
from fengwu_ghr.grid import LatLonGrid
from fengwu_ghr.layout import ArrayLayout, StorePlan
from fengwu_ghr.manifest import MANIFEST
from fengwu_ghr.projected_grid import ProjectedGrid
from fengwu_ghr.projection import Projection
from fengwu_ghr.target import LOCK, MARK, check_is_store, is_store

FORMAT = 1
"""Of manifest, restart slots and attributes; a store of a later format is refused."""


def write_plan(folder: Path, plan: StorePlan, attributes: Mapping[str, Any]) -> None:
    """The folder is the store of this plan without a field; `attributes` stand beside those of the plan."""
    own = {MARK: FORMAT, **layout.global_attributes(plan)}
    group = zarr.create_group(folder, zarr_format=3, attributes={**attributes, **own})
    for array in layout.arrays(plan):
        _write_array(group, array)
    with warnings.catch_warnings():  # that consolidated metadata is not in the Zarr 3 specification yet
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(folder)
    (folder / MANIFEST).mkdir()
    (folder / LOCK).touch()


def _write_array(group: zarr.Group, array: ArrayLayout) -> None:
    is_field = array.values is None
    compression = BloscCodec(cname="lz4", clevel=5, shuffle=array.shuffle, typesize=4)
    made = group.create_array(
        array.name,
        shape=array.shape,
        dtype=np.float32 if array.values is None else array.values.dtype,
        chunks=array.chunks,
        shards=array.shards,
        compressors=compression if is_field else "auto",
        fill_value=np.nan if is_field else 0,
        dimension_names=array.dims,
        attributes=array.attributes,
    )
    if array.values is not None:
        made[...] = array.values


def add_attribute(path: Path, name: str, value: str) -> None:
    """The store's root has this attribute; raises OutputError."""
    with writing(path):
        metadata = json.loads((path / "zarr.json").read_text())
        metadata["attributes"][name] = value
        replace_file(path / "zarr.json", json.dumps(metadata, indent=2).encode())


def read_attribute(path: Path, name: str) -> Any:
    """An attribute of the store's root; None where it has none of this name."""
    return json.loads((path / "zarr.json").read_text())["attributes"].get(name)


def read_plan(path: Path) -> StorePlan:
    """The plan that the store was made with. Raises InputError when it is no run store, or damaged."""
    if not is_store(path):
        raise InputError(f"{path} is not a run store; give the NAME.zarr that a forecast wrote")
    try:
        group = zarr.open_group(path, mode="r", zarr_format=3)
        return _plan_of(group)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} is a damaged run store: {error}; write it again with --overwrite"
        ) from error


def _plan_of(group: zarr.Group) -> StorePlan:
    attributes: Any = group.attrs
    if attributes[MARK] != FORMAT:
        raise ValueError(f"it has format {attributes[MARK]}, this version reads format {FORMAT}")
    projection = attributes.get("projection")
    rows, columns = ("y", "x") if projection else ("latitude", "longitude")
    coordinates: dict[str, Any] = {
        name: group[name][...] for name in ("time", "prediction_timedelta", rows, columns)
    }
    axes, name = (coordinates[rows], coordinates[columns]), attributes["grid"]
    return StorePlan(
        channels=tuple(map(layout.channel_of, attributes["channels"])),
        grid=(
            ProjectedGrid(Projection(projection), *axes[::-1], name)
            if projection
            else LatLonGrid(*axes, name)
        ),
        initial_times=tuple(coordinates["time"].astype("datetime64[s]").tolist()),
        leads=tuple(coordinates["prediction_timedelta"].astype("timedelta64[s]").tolist()),
        keep_bits=attributes.get("keep_bits"),
    )


def check_resumable(path: Path, plan: StorePlan) -> None:
    """Raises UsageError unless the target is a run store of this plan."""
    check_is_store(path)
    differences = read_plan(path).differences(plan)
    if differences:
        raise UsageError(
            f"{path} holds another run, with other {'; '.join(differences)}; write to another --output, or replace "
            "it with --overwrite"
        )
