"""Results: the scores of a verification as a dataset and as a table of text, from its sums."""

import csv
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from fengwu_ghr.durable import make_folder, replace_file, writing
from fengwu_ghr.verify import metrics
from fengwu_ghr.verify.comparison import compare, intervals
from fengwu_ghr.verify.events import EVENT_SCORES
from fengwu_ghr.verify.kept import FORECAST, Collected, Tables
from fengwu_ghr.verify.neighbourhood import fss
from fengwu_ghr.verify.quantities import units_of
from fengwu_ghr.verify.rain import seeps
from fengwu_ghr.verify.spectra import coherence, effective_wavenumber, power_ratio
from fengwu_ghr.verify.statistics import ANOMALIES, DatedSums, Sums, hours_text

_IN_UNITS = ("rmse", "mae", "bias", "forecast_activity", "truth_activity", "vector_wind_rmse")
Score = Callable[[Sums], np.ndarray]
FIELD_SCORES: Mapping[str, Score] = {"rmse": metrics.rmse, "mae": metrics.mae, "bias": metrics.bias}
ANOMALY_SCORES: Mapping[str, Score] = {
    "acc": metrics.acc,
    "acc_wb2": metrics.acc_wb2,
    "forecast_activity": metrics.forecast_activity,
    "truth_activity": metrics.truth_activity,
    "rmse_of_climatology": metrics.rmse_of_climatology,
}


def scores_of(found: Collected) -> xr.Dataset:
    """Every score by source, lead, row and region; provenance in the attributes. Units are the registry's."""
    parts = [_of_source(name, kinds) for name, kinds in found.tables.items()]
    if found.stations:
        latitude, longitude = np.array(list(found.stations.values())).T
        places = {
            "station": ("station", list(found.stations)),
            "station_latitude": ("station", latitude),
            "station_longitude": ("station", longitude),
        }
        parts = [part.assign_coords(places) if "station" in part.dims else part for part in parts]
    whole = xr.concat(parts, "source", join="outer", combine_attrs="override")
    # Texts of any length: Zarr 3 has no specification of fixed ones yet.
    texts = {name: array.astype(object) for name, array in whole.variables.items() if array.dtype.kind == "U"}
    return whole.assign(texts).assign_attrs(provenance(found))


def provenance(found: Collected) -> dict[str, str]:
    """What a reader must know of these scores."""
    times, leads = sorted({time for time, _ in found.pairs}), sorted({lead for _, lead in found.pairs})
    return {
        "title": "verification of forecasts",
        **found.about.facts,
        "leads": f"{len(leads)} from {hours_text(leads[0])} to {hours_text(leads[-1])}",
        "initial_times": f"{len(times)} from {times[0]:%Y-%m-%d %H:%M} to {times[-1]:%Y-%m-%d %H:%M}",
        **_of_refused(found),
        "notes": "; ".join(found.about.notes) or "none",
    }


def _of_refused(found: Collected) -> dict[str, str]:
    """Which reports were left out: of the files, and at the verified times."""
    if "stations" not in found.about.facts:
        return {}
    of_files = found.about.facts["refused"]
    told = [] if of_files == "none" else [of_files]
    told += [f"{count} {reason}" for reason, count in found.refused.items()]
    return {"refused": "; ".join(told) or "none"}


def write_results(dataset: xr.Dataset, folder: Path) -> list[Path]:
    """The scores as Zarr and as CSV."""
    made = [folder / "scores.zarr", folder / "scores.csv"]
    with writing(folder):
        make_folder(folder)
        dataset.to_zarr(made[0], mode="w", consolidated=False)
        replace_file(made[1], _as_csv(dataset).encode())
    return made


def _of_source(name: str, kinds: Mapping[str, DatedSums]) -> xr.Dataset:
    found: dict[str, xr.DataArray] = {}
    for kind, table in kinds.items():
        found |= _READERS[kind](table)
    return xr.Dataset(found).expand_dims(source=[name])


def _of_fields(table: DatedSums) -> dict[str, xr.DataArray]:
    sums = table.stacked()
    scores = dict(FIELD_SCORES)
    if set(ANOMALIES) <= set(sums.names):
        scores |= ANOMALY_SCORES
    found = {name: _array(score(sums), table, "channel") for name, score in scores.items()}
    lower, upper = intervals(table)
    found |= {"rmse_lower": _array(lower, table, "channel"), "rmse_upper": _array(upper, table, "channel")}
    counts = (sums.weight[..., 0, 0] > 0).sum(axis=0)
    found["dates"] = xr.DataArray(counts, dims=("lead",), coords={"lead": _leads(table)})
    units = [units_of(channel) for channel in table.channels]
    found["units"] = xr.DataArray(units, dims=("channel",), coords={"channel": list(table.channels)})
    return found | _vector_winds(table, sums)


def _vector_winds(table: DatedSums, sums: Sums) -> dict[str, xr.DataArray]:
    """sqrt([<(u - u_o)² + (v - v_o)²>]) where both components are there."""
    pairs = [(u, u.replace("u", "v", 1)) for u in table.channels if "u" in u and u[-1] in "u0123456789"]
    pairs = [(u, v) for u, v in pairs if v in table.channels]
    if not pairs:
        return {}
    squares = sums.total().mean("squared_error")
    rows = [[table.channels.index(name) for name in pair] for pair in pairs]
    values = np.stack([np.sqrt(squares[:, row].sum(axis=1)) for row in rows], axis=1)
    names = [u.replace("u", "wind", 1) for u, _ in pairs]
    return {"vector_wind_rmse": _array(values, table, "wind", names)}


def _of_events(table: DatedSums) -> dict[str, xr.DataArray]:
    sums = table.stacked()
    return {
        f"event_{name.lower().replace(' ', '_')}": _array(score(sums), table, "event")
        for name, score in EVENT_SCORES.items()
    }


def _of_neighbourhoods(table: DatedSums) -> dict[str, xr.DataArray]:
    return {"fss": _array(fss(table.stacked()), table, "neighbourhood")}


def _of_rain(table: DatedSums) -> dict[str, xr.DataArray]:
    return {"seeps": _array(seeps(table.stacked()), table, "rain")}


def _of_spectra(table: DatedSums) -> dict[str, xr.DataArray]:
    sums = table.stacked().total()
    ratio, agreement = power_ratio(sums), coherence(sums)
    dims = ("shown_lead", "shown_channel", "wavenumber")
    coordinates = {
        "shown_lead": _leads(table),
        "shown_channel": list(table.channels),
        "wavenumber": np.arange(ratio.shape[-1]),
    }
    last = [
        [effective_wavenumber(r, c) for r, c in zip(ratios, agreements)]
        for ratios, agreements in zip(ratio, agreement)
    ]
    arrays = {
        "forecast_power": sums.mean("forecast_power"),
        "truth_power": sums.mean("truth_power"),
        "coherence": agreement,
    }
    found = {name: xr.DataArray(values, coordinates, dims) for name, values in arrays.items()}
    two = {key: coordinates[key] for key in dims[:2]}
    return found | {"effective_wavenumber": xr.DataArray(np.array(last), two, dims[:2])}


def _of_maps(table: DatedSums) -> dict[str, xr.DataArray]:
    """Bias and RMSE at every point, over the dates."""
    sums = table.stacked().total()
    dims = ("shown_lead", "shown_channel", "map_latitude", "map_longitude")
    coordinates = {"shown_lead": _leads(table), "shown_channel": list(table.channels)}
    arrays = {"bias_map": sums.mean("error"), "rmse_map": np.sqrt(sums.mean("squared_error"))}
    return {n: xr.DataArray(v.astype(np.float32), coordinates, dims) for n, v in arrays.items()}


def _of_stations(table: DatedSums) -> dict[str, xr.DataArray]:
    sums = table.stacked()
    found = {
        f"station_{name}": _array(score(sums), table, "measured") for name, score in FIELD_SCORES.items()
    }
    return found | {"station_reports": _array(sums.total().weight, table, "measured")}


def _of_places(table: DatedSums) -> dict[str, xr.DataArray]:
    """Bias at every station, over the dates."""
    bias = table.stacked().total().mean("error")
    coordinates = {"shown_lead": _leads(table), "measured": list(table.channels)}
    return {"station_bias_map": xr.DataArray(bias, coordinates, ("shown_lead", "measured", "station"))}


_READERS: Mapping[str, Callable[[DatedSums], dict[str, xr.DataArray]]] = {
    "fields": _of_fields,
    "events": _of_events,
    "neighbourhoods": _of_neighbourhoods,
    "rain": _of_rain,
    "spectra": _of_spectra,
    "maps": _of_maps,
    "stations": _of_stations,
    "places": _of_places,
}


def _array(values: np.ndarray, table: DatedSums, row: str, names: list[str] | None = None) -> xr.DataArray:
    lead = {"rain": "rain_lead", "measured": "station_lead"}.get(row, "lead")
    return xr.DataArray(
        values,
        {lead: _leads(table), row: names or list(table.channels), "region": list(table.regions)},
        (lead, row, "region"),
    )


def _leads(table: DatedSums) -> list[float]:
    """In hours."""
    return [lead / timedelta(hours=1) for lead in table.leads]


def _as_csv(dataset: xr.Dataset) -> str:
    """Long form: one score a line."""
    from io import StringIO

    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["source", "score", "row", "region", "lead_hours", "value", "units", "evaluated_on", "truth"]
    )
    shared = dataset.attrs["evaluation_grid"], dataset.attrs["truth"]
    for name, array in dataset.items():
        if array.ndim != 4 or "region" not in array.dims:
            continue
        _, lead, row, _ = array.dims
        where = ("stations, within 30 min", "reports of stations") if row == "measured" else shared
        for s, source in enumerate(array["source"].values):
            for i, hours in enumerate(array[lead].values):
                for r, what in enumerate(array[row].values):
                    units = _units_of_score(str(name), str(what))
                    for g, region in enumerate(array["region"].values):
                        value = array.values[s, i, r, g]
                        if np.isfinite(value):
                            writer.writerow(
                                [source, name, what, region, f"{hours:g}", f"{value:.7g}", units, *where]
                            )
    return text.getvalue()


def _units_of_score(score: str, row: str) -> str:
    """Those of the quantity, of scores that are errors or departures of it; 1 of shares and ratios."""
    if not score.removeprefix("station_").startswith(_IN_UNITS):
        return "1"
    return units_of(row.replace("wind", "u", 1) if row.startswith(("wind", "10wind")) else row)


def comparisons(tables: Tables) -> dict[str, Any]:
    """The forecast against every baseline."""
    ours = tables[FORECAST]["fields"]
    return {name: compare(ours, kinds["fields"]) for name, kinds in tables.items() if name != FORECAST}
