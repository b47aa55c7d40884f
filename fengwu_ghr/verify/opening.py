"""Opening: what stands at a path, a run store, another's Zarr or NetCDF, GRIB files, as forecasts or as analyses."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fengwu_ghr.errors import InputError
from fengwu_ghr.grib.decode import decode
from fengwu_ghr.grib.messages import scan
from fengwu_ghr.grid import LatLonGrid, known_grid
from fengwu_ghr.target import is_store
from fengwu_ghr.variables import STANDARD_GRAVITY, SURFACE
from fengwu_ghr.verify.datasets import DatasetAnalyses, DatasetForecasts, Gridded, open_dataset
from fengwu_ghr.verify.fields import Analyses, Field, Forecasts, RunForecasts, StepZero, ToGrid
from fengwu_ghr.verify.gribs import GribAnalyses, GribFiles, GribForecasts

_DATASETS = (".nc", ".nc4", ".cdf", ".h5")
_OROGRAPHY = {(0, 3, 4): 1 / STANDARD_GRAVITY, (0, 3, 5): 1.0, (128, 129): 1 / STANDARD_GRAVITY}
_LAND = {(2, 0, 0): 1.0, (128, 172): 1.0}
_OROGRAPHY_NAMES = ("orography", "surface_altitude", "hgt", "z_sfc", "z", "geopotential_at_surface")
_LAND_NAMES = ("lsm", "land_sea_mask", "land_binary_mask", "land", "land_area_fraction")


def open_forecasts(paths: Sequence[Path]) -> Forecasts:
    """The forecasts at these paths: run stores, or datasets with leads, or GRIB files; of one grid.

    Raises InputError where there are none.
    """
    stores, datasets, gribs = _sorted(paths)
    if stores:
        return RunForecasts.open(stores)
    if datasets:
        parts = tuple(map(Gridded.open, datasets))
        if without := [part.name for part in parts if not part.leads]:
            raise InputError(
                f"{without[0]} has no leads (a dimension prediction_timedelta): it holds analyses, not forecasts"
            )
        return DatasetForecasts(parts)
    return GribForecasts(GribFiles.open(gribs))


def open_analyses(paths: Sequence[Path]) -> Analyses:
    """What these paths hold for the truth: analyses, or of forecasts their step 0; `kind` says which.

    Raises InputError where there is none.
    """
    stores, datasets, gribs = _sorted(paths)
    if stores:
        return StepZero(RunForecasts.open(stores))
    if datasets:
        parts = tuple(map(Gridded.open, datasets))
        forecasts = [part.name for part in parts if part.leads]
        if forecasts and len(forecasts) < len(parts):
            raise InputError(f"{forecasts[0]} holds forecasts, others hold analyses; give files of one kind")
        return StepZero(DatasetForecasts(parts)) if forecasts else DatasetAnalyses(parts)
    return GribAnalyses(GribFiles.open(gribs))


def read_orography(path: Path) -> tuple[Field, LatLonGrid]:
    """Heights of a model's surface in m, on their own grid. Raises InputError where the file has none."""
    values, grid = _surface(path, _OROGRAPHY, _OROGRAPHY_NAMES, "the height of the surface")
    if not np.isfinite(values).all() or values.min() < -1000 or values.max() > 9000:
        raise InputError(f"{path}: heights of the surface run from {values.min():g} to {values.max():g} m")
    return values, grid


def read_land(path: Path, grid: LatLonGrid) -> Field:
    """The share of land, or of another mask, of each cell of this grid. Raises InputError where the file has none."""
    values, source = _surface(path, _LAND, _LAND_NAMES, "a mask of 0 to 1 (land_sea_mask)")
    share = np.nan_to_num(values, nan=0.0)  # masks are often written as 1 inside and missing outside
    if share.min() < -1e-3 or share.max() > 1 + 1e-3:
        raise InputError(f"{path}: a mask holds shares from 0 to 1; got {share.min():g} to {share.max():g}")
    return np.clip(ToGrid(source, grid).apply(share, "2t"), 0, 1)


def _sorted(paths: Sequence[Path]) -> tuple[list[Path], list[Path], list[Path]]:
    """Run stores, datasets or GRIB files; folders that are none of it stand for the files in them."""
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} is not there")
    whole = [path for path in paths if is_store(path) or _is_dataset(path)]
    files = [file for path in paths if path not in whole for file in _files(path)]
    stores = [path for path in whole if is_store(path)]
    datasets = [path for path in (*whole, *files) if path not in stores and _is_dataset(path)]
    gribs = [file for file in files if file not in datasets]
    if sum(map(bool, (stores, datasets, gribs))) > 1:
        raise InputError(
            f"give run stores, or Zarr and NetCDF, or GRIB files; got {', '.join(map(str, paths))}"
        )
    if not (stores or datasets or gribs):
        raise InputError(f"{', '.join(map(str, paths)) or 'no path'} hold no file")
    return stores, datasets, gribs


def _is_dataset(path: Path) -> bool:
    markers = ("zarr.json", ".zgroup", ".zmetadata")
    return path.suffix in _DATASETS if path.is_file() else any((path / name).exists() for name in markers)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(file for file in path.iterdir() if file.is_file() and not _is_beside(file))


def _is_beside(file: Path) -> bool:
    """Whether it lies beside GRIB files and is none: an index, or what a forecast notes of itself."""
    return file.name.startswith(".") or file.suffix in (".index", ".idx")


def _surface(
    path: Path, codes: dict[tuple[int, ...], float], names: Sequence[str], what: str
) -> tuple[Field, LatLonGrid]:
    if not path.exists():
        raise InputError(f"{path} is not there")
    return (
        _surface_of_dataset(path, names, what) if _is_dataset(path) else _surface_of_grib(path, codes, what)
    )


def _surface_of_dataset(path: Path, names: Sequence[str], what: str) -> tuple[Field, LatLonGrid]:
    with open_dataset(path) as dataset:
        only = list(map(str, dataset)) if len(dataset) == 1 else []
        name = next((name for name in (*names, *only) if name in dataset), None)
        if name is None:
            raise InputError(f"{path} does not hold {what} under any of {', '.join(names)}")
        array = dataset[name].squeeze(drop=True)
        axes = [n for pair in (("latitude", "lat"), ("longitude", "lon")) for n in pair if n in array.dims]
        if len(axes) != 2 or array.ndim != 2:
            raise InputError(
                f"{path}: {name} has the dimensions {', '.join(map(str, array.dims))}; a surface has latitude and "
                "longitude"
            )
        array = array.transpose(*axes).sortby(axes[0], ascending=False)
        array = array.assign_coords({axes[1]: array[axes[1]] % 360}).sortby(axes[1])
        factor = 1 / STANDARD_GRAVITY if "m2" in str(array.attrs.get("units", "")).replace("**", "") else 1.0
        latitude, longitude = (array[axis].values.astype(np.float64) for axis in axes)
        grid = known_grid(LatLonGrid(latitude, longitude, path.stem))
        return (array.values * factor).astype(np.float32), grid


def _surface_of_grib(path: Path, codes: dict[tuple[int, ...], float], what: str) -> tuple[Field, LatLonGrid]:
    found = [one for one in scan([path]) if one.parameter in codes and one.surface == SURFACE]
    if not found:
        raise InputError(f"{path} does not hold {what} at the surface")
    [field] = decode(found[:1])
    if not isinstance(field.grid, LatLonGrid):
        raise InputError(f"{path} holds {what} on {field.grid}; give one on rows and columns")
    return field.values * np.float32(codes[found[0].parameter]), field.grid
