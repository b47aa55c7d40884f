"""What pysteps does for us. Runs as a process of its own, `python -m fengwu_ghr.nowcast.pysteps_child FOLDER`.

FOLDER holds request.json and arrays.npz; result.npz and facts.json, or refused.txt, stand there afterwards.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from fengwu_ghr.nowcast.child import ARRAYS, FACTS, REFUSAL, REQUEST, RESULT

Arrays = dict[str, np.ndarray]
Imported = tuple[np.ndarray, dict[str, Any], datetime]

DRY_BELOW, FLOOR = 10.0, 5.0
"""dBZ: below the first nothing counts as rain, and pysteps sees the second there."""
_PLAIN = (
    "projection",
    "x1",
    "y1",
    "x2",
    "y2",
    "yorigin",
    "unit",
    "accutime",
    "zr_a",
    "zr_b",
    "cartesian_unit",
)


class Refused(Exception):
    """The input is at fault, in words for users."""


# Reading


def read_files(request: Mapping[str, Any], arrays: Arrays) -> tuple[Arrays, Any]:
    """One array per file, and what is known of each."""
    importer = _IMPORTERS[request["format"]]
    found, facts = {}, []
    for number, name in enumerate(request["paths"]):
        try:
            values, about, time = importer(Path(name), request)
        except Refused:
            raise
        except Exception as error:
            raise Refused(f"{name} cannot be read as {request['format']}: {error!r}") from error
        found[f"frame_{number}"] = np.asarray(np.ma.filled(values, np.nan), np.float32)
        facts.append({key: _plain(about.get(key)) for key in _PLAIN} | {"time": time.isoformat()})
    return found, facts


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _odim(path: Path, request: Mapping[str, Any]) -> Imported:
    import h5py
    from pysteps.io.importers import import_odim_hdf5

    with h5py.File(path) as file:
        what = file["what"].attrs
        time = datetime.strptime(_text(what["date"]) + _text(what["time"]), "%Y%m%d%H%M%S")
        quantities = {
            _text(node.attrs["quantity"])
            for name in _groups(file)
            if isinstance(node := file.get(f"{name}/what"), h5py.Group) and "quantity" in node.attrs
        }
    wanted = next((q for q in ("DBZH", "TH", "RATE", "ACRR") if q in quantities), None)
    if wanted is None:
        raise Refused(
            f"{path} holds {', '.join(sorted(quantities)) or 'no quantity'}, not DBZH, TH, RATE or ACRR"
        )
    values, _, about = import_odim_hdf5(str(path), qty=wanted)
    return values, about, time


def _groups(file: Any) -> list[str]:
    names: list[str] = []
    file.visit(names.append)
    return names


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _knmi(path: Path, request: Mapping[str, Any]) -> Imported:
    import h5py
    from pysteps.io.importers import import_knmi_hdf5

    with h5py.File(path) as file:
        end = _text(file["overview"].attrs["product_datetime_end"][0])
        missing = int(file["image1/calibration"].attrs["calibration_out_of_image"][0])
        outside = file["image1/image_data"][...] == missing
    values, _, about = import_knmi_hdf5(str(path), qty="ACRR", accutime=5.0, pixelsize=1.0)
    values = np.array(values, np.float32)
    values[outside] = np.nan
    return values, about, datetime.strptime(end[:20], "%d-%b-%Y;%H:%M:%S")


def _mch(path: Path, request: Mapping[str, Any]) -> Imported:
    from pysteps.io.importers import import_mch_gif

    found = re.match(r"([A-Z]{3})(\d{9})", path.name)
    if found is None:
        raise Refused(f"{path}: MeteoSwiss files are named as AQC161932045V_00005.801.gif, with the time")
    values, _, about = import_mch_gif(str(path), product=found[1], unit="mm", accutime=5.0)
    return values, about, datetime.strptime(found[2], "%y%j%H%M")


def _mrms(path: Path, request: Mapping[str, Any]) -> Imported:
    import pygrib
    from pysteps.io.importers import import_mrms_grib

    extent = request.get("extent")
    values, _, about = import_mrms_grib(str(path), extent=extent, window_size=1)
    with suppress(OSError, RuntimeError), pygrib.open(str(path)) as messages:
        return values, about, messages[1].validDate
    stamp = re.search(r"(\d{8})-(\d{6})", path.name)
    if stamp is None:
        raise Refused(f"{path} has no time in its name, as PrecipRate_00.00_20190610-000000.grib2.gz")
    return values, about, datetime.strptime("".join(stamp.groups()), "%Y%m%d%H%M%S")


def _geotiff(path: Path, request: Mapping[str, Any]) -> Imported:
    import rasterio

    stamp = re.search(r"(\d{12})", path.name)
    if stamp is None:
        raise Refused(f"{path}: a GeoTIFF needs its time in its name, as 201609281600")
    with rasterio.open(path) as file:
        values = file.read(1, masked=True).filled(np.nan).astype(np.float64)
        values = values * file.scales[0] + file.offsets[0]
        box, unit = file.bounds, file.units[0] or request.get("unit") or "dBZ"
        if file.crs is None:
            raise Refused(f"{path} has no coordinate reference system")
        about = {"projection": file.crs.to_proj4(), "yorigin": "upper", "unit": unit, "accutime": 5.0}
        about |= {"x1": box.left, "y1": box.bottom, "x2": box.right, "y2": box.top, "cartesian_unit": "m"}
    return values, about, datetime.strptime(stamp[1], "%Y%m%d%H%M")


_IMPORTERS: dict[str, Callable[[Path, Mapping[str, Any]], Imported]] = {
    "odim": _odim,
    "knmi": _knmi,
    "mch": _mch,
    "mrms": _mrms,
    "geotiff": _geotiff,
}


# Forecasts of pysteps


def forecast(request: Mapping[str, Any], arrays: Arrays) -> tuple[Arrays, Any]:
    """Forecasts by method, (method, lead, row, column) in dBZ, NaN where from outside; seconds of each."""
    from time import perf_counter

    from pysteps import motion

    frames, count = _rain(arrays["frames"]), int(request["leads"])
    started = perf_counter()
    velocity = motion.get_method("LK")(frames[-3:])
    seconds, found = {"motion": perf_counter() - started}, {}
    for name in request["methods"]:
        started = perf_counter()
        found[name] = np.asarray(_METHODS[name](frames, velocity, count, request), np.float32)
        seconds[name] = perf_counter() - started
    return found | {"velocity": np.asarray(velocity, np.float32)}, seconds


def _rain(frames: np.ndarray) -> np.ndarray:
    values = np.nan_to_num(frames.astype(np.float64), nan=0.0)
    return np.where(values < DRY_BELOW, FLOOR, values)


def _extrapolation(frames: np.ndarray, velocity: np.ndarray, count: int, request: Any) -> np.ndarray:
    from pysteps import nowcasts

    return np.asarray(nowcasts.get_method("extrapolation")(frames[-1], velocity, count))


def _sprog(frames: np.ndarray, velocity: np.ndarray, count: int, request: Any) -> np.ndarray:
    from pysteps import nowcasts

    made = nowcasts.get_method("sprog")(
        frames[-3:], velocity, count, precip_thr=DRY_BELOW, n_cascade_levels=6, ar_order=2,
        probmatching_method="cdf",
    )  # fmt: skip
    return np.asarray(made)


def _anvil(frames: np.ndarray, velocity: np.ndarray, count: int, request: Any) -> np.ndarray:
    from pysteps import nowcasts

    return np.asarray(nowcasts.get_method("anvil")(frames[-4:], velocity, count))


def _steps_mean(frames: np.ndarray, velocity: np.ndarray, count: int, request: Any) -> np.ndarray:
    from pysteps import nowcasts

    members = nowcasts.get_method("steps")(
        frames[-3:], velocity, count, n_ens_members=int(request["members"]), n_cascade_levels=6,
        precip_thr=DRY_BELOW, kmperpixel=1.0, timestep=float(request["minutes"]), noise_method="nonparametric",
        mask_method="incremental", vel_pert_method="bps", seed=int(request["seed"]), num_workers=1,
    )  # fmt: skip
    known = np.isfinite(members).sum(axis=0)
    return np.where(known > 0, np.nansum(members, axis=0) / np.maximum(known, 1), np.nan)


_METHODS: dict[str, Callable[..., np.ndarray]] = {
    "extrapolation": _extrapolation,
    "S-PROG": _sprog,
    "ANVIL": _anvil,
    "STEPS mean": _steps_mean,
}


def places(request: Mapping[str, Any], arrays: Arrays) -> tuple[Arrays, Any]:
    """Plane coordinates of places as PROJ has them: what our own formulae are held against."""
    import pyproj

    x, y = pyproj.Proj(request["projection"])(arrays["longitude"], arrays["latitude"])
    return {"x": np.asarray(x), "y": np.asarray(y)}, {}


_TASKS: dict[str, Callable[[Mapping[str, Any], Arrays], tuple[Arrays, Any]]] = {
    "read": read_files,
    "forecast": forecast,
    "places": places,
}


def main(folder: Path) -> None:
    """Does what the request asks."""
    request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    with open(folder / ARRAYS, "rb") as file, np.load(file, allow_pickle=False) as content:
        arrays = dict(content)
    try:
        made, facts = _TASKS[request["task"]](request, arrays)
    except Refused as refusal:
        (folder / REFUSAL).write_text(str(refusal), encoding="utf-8")
        return
    np.savez(folder / RESULT, allow_pickle=False, **made)
    (folder / FACTS).write_text(json.dumps(facts, default=_seconds), encoding="utf-8")


def _seconds(value: object) -> object:
    return value.total_seconds() if isinstance(value, timedelta) else str(value)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
