"""The report: one HTML page that holds all it shows, for people to read; it needs no network.

Scores stand in the page as numbers, which a small script (`page/page.js`) draws as they are asked for; maps are small
pictures under shores. Nothing is told by colour alone, and a phone can show it.
"""

import html
import json
from collections.abc import Mapping
from datetime import timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from fengwu_ghr.durable import make_folder, replace_file, writing
from fengwu_ghr.variables import reading_units
from fengwu_ghr.verify.comparison import Scorecard
from fengwu_ghr.verify.drawing import DIVERGING, SEQUENTIAL, bar, picture, shades, shore_path
from fengwu_ghr.verify.kept import FORECAST, Collected
from fengwu_ghr.verify.quantities import units_of

_NAMES = {
    "rmse": "RMSE",
    "bias": "Bias",
    "acc": "Anomaly correlation",
    "activity": "Activity ratio",
    "mae": "MAE",
}
_EVENTS = {
    "event_csi": "CSI",
    "event_hss": "HSS",
    "event_ets": "ETS",
    "event_sedi": "SEDI",
    "event_frequency_bias": "frequency bias",
}


def write_report(
    found: Collected, scores: xr.Dataset, comparisons: Mapping[str, Scorecard], folder: Path
) -> Path:
    """The page is at `folder/index.html`."""
    path = folder / "index.html"
    with writing(path):
        make_folder(folder)
        replace_file(path, page_of(found, scores, comparisons).encode())
    return path


def page_of(found: Collected, scores: xr.Dataset, comparisons: Mapping[str, Scorecard]) -> str:
    """The whole page as text."""
    data = _data(found, scores, comparisons)
    own = files("fengwu_ghr.verify") / "page"
    style, script = ((own / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    # A text in the data must not end its element.
    numbers = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    body = "\n".join(_sections(found, scores, comparisons, data))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Verification of {html.escape(found.about.title)}</title>\n<style>{style}</style></head>\n"
        f"<body>\n{body}\n"
        f'<script type="application/json" id="data">{numbers}</script>\n<script>{script}</script>\n</body></html>\n'
    )


def _sections(
    found: Collected, scores: xr.Dataset, comparisons: Mapping[str, Scorecard], data: Mapping[str, Any]
) -> list[str]:
    there = [("curves", "Scores by lead")]
    there += [("scorecard", "Scorecard")] if comparisons else []
    there += [("error-maps", "Maps of bias and error")] if data["maps"] else []
    there += [("spectra", "Spectra")] if data["spectra"] else []
    there += [("extremes", "Extremes")] if data["event_names"] else []
    there += [("stations", "Stations")] if data["stations"] else []
    there += [("provenance", "Provenance")]
    links = " ".join(f'<a href="#{key}">{text}</a>' for key, text in there)
    parts = [
        f"<h1>Verification of {html.escape(found.about.title)}</h1>",
        f'<p class="quiet">{html.escape(_subtitle(scores))}</p><nav>{links}</nav>',
        f'<h2>Headline</h2><div class="tiles">{"".join(_tiles(scores, comparisons))}</div>',
    ]
    bodies = {
        "curves": _CURVES,
        "scorecard": _CARD,
        "error-maps": _MAPS,
        "spectra": _spectra_text(scores),
        "extremes": _EXTREMES,
        "stations": _STATIONS,
        "provenance": _provenance(scores),
    }
    return parts + [f'<h2 id="{key}">{text}</h2>\n{bodies[key]}' for key, text in there]


def _subtitle(scores: xr.Dataset) -> str:
    a = scores.attrs
    return f"Evaluated on {a['evaluation_grid']} against {a['truth']}; initial times: {a['initial_times']}."


def _tiles(scores: xr.Dataset, comparisons: Mapping[str, Scorecard]) -> list[str]:
    tiles = []
    for name, found in comparisons.items():
        region = "globe" if "globe" in found.regions else found.regions[0]
        (won, lost, undecided), share = found.count(region), found.share_better(region)
        tiles.append(
            f'<div class="tile"><b>{100 * share:.1f} %</b>of targets better than {html.escape(name)}<br>'
            f'<span class="quiet">{won} won, {lost} lost, {undecided} undecided at 95 %</span></div>'
        )
    for name in [c for c in ("z500", "t850", "2t") if c in scores["channel"].values]:
        units, factor = reading_units(name)
        lead = min((h for h in scores["lead"].values if h >= 120), default=scores["lead"].values[-1])
        value = float(scores["rmse"].sel(source=FORECAST, channel=name, lead=lead).isel(region=0)) * factor
        tiles.append(
            f'<div class="tile"><b>{value:.3g} {units}</b>RMSE of {name} at {lead:g} h<br>'
            f'<span class="quiet">{html.escape(str(scores["region"].values[0]))}</span></div>'
        )
    return tiles


_CURVES = """<div class="controls"><label>score <select id="curve-score"></select></label>
<label>channel <select id="curve-channel"></select></label>
<label>region <select id="curve-region"></select></label></div>
<figure><figcaption id="curve-title"></figcaption><div id="curve" class="chart"></div></figure>
<p class="quiet">Bands of the RMSE: 95 % over initial times, where there are several.</p>"""
_CARD = """<div class="controls"><label>against <select id="card-baseline"></select></label>
<label>region <select id="card-region"></select></label></div><p id="card-title"></p>
<div class="wide" id="card"></div>
<p class="quiet"><span class="better">▲ better</span>, <span class="worse">▼ worse</span> (small: by less than 5 %),
· undecided; RMSE, paired over initial times, corrected for the number of targets (Šidák).</p>
<p>All regions, targets of all channels and leads</p><div class="wide" id="card-regions"></div>"""
_MAPS = """<div class="controls"><label>forecast <select id="map-source"></select></label>
<label>channel <select id="map-channel"></select></label><label>lead [h] <select id="map-lead"></select></label></div>
<div class="maps" id="maps"></div>"""
_EXTREMES = """<div class="controls"><label>event <select id="event-name"></select></label>
<label>score <select id="event-score"></select></label><label>region <select id="event-region"></select></label></div>
<div id="event" class="chart"></div>"""
_STATIONS = """<div class="controls"><label>quantity <select id="station-channel"></select></label>
<label>lead [h] <select id="station-lead"></select></label></div>
<figure><div id="station-map"></div><figcaption id="station-title"></figcaption></figure>
<p id="station-curve-title"></p><div id="station-curve" class="chart"></div>"""


def _spectra_text(scores: xr.Dataset) -> str:
    if "effective_wavenumber" not in scores:
        return ""
    found = scores["effective_wavenumber"].sel(source=FORECAST)
    lead, name = found["shown_lead"].values[0], found["shown_channel"].values[0]
    n = int(found.isel(shown_lead=0, shown_channel=0))
    resolved = f"{360 / n:.3g}° (total wavenumber {n})" if n else "no wave"
    return (
        '<div class="controls"><label>channel <select id="spectra-channel"></select></label>'
        '<label>lead [h] <select id="spectra-lead"></select></label></div>'
        '<p>Power by total wavenumber</p><div id="spectra-power" class="chart"></div>'
        '<p>Coherence with the truth</p><div id="spectra-coherence" class="chart"></div>'
        f'<p class="quiet">Effective resolution of {name} at {lead:g} h: {resolved}: down to there the '
        "power stays within 0.5 and 2 of the truth's and the coherence is at least 0.5.</p>"
    )


def _provenance(scores: xr.Dataset) -> str:
    from importlib.metadata import version

    facts = {key.replace("_", " "): value for key, value in scores.attrs.items()} | {
        "made by": f"fengwu_ghr {version('fengwu_ghr')}"
    }
    rows = (f"<dt>{html.escape(key)}</dt><dd>{html.escape(str(value))}</dd>" for key, value in facts.items())
    return f"<dl>{''.join(rows)}</dl>"


def _data(found: Collected, scores: xr.Dataset, comparisons: Mapping[str, Scorecard]) -> dict[str, Any]:
    """The numbers of the page."""
    return {
        "sources": scores["source"].values.tolist(),
        "leads": scores["lead"].values.tolist(),
        "channels": scores["channel"].values.tolist(),
        "regions": scores["region"].values.tolist(),
        "units": {name: reading_units(name) for name in scores["channel"].values.tolist()},
        "names": _NAMES,
        "scores": _curves(scores),
        "cards": {name: _card(found) for name, found in comparisons.items()},
        "shown_channels": list(found.about.rows["maps"]),
        "shown_leads": [f"{hours:g}" for hours in scores["shown_lead"].values]
        if "shown_lead" in scores.dims
        else [],
        "maps": _maps(scores),
        "extent": found.about.extent,
        "bars": {"bias": bar(DIVERGING), "rmse": bar(SEQUENTIAL)},
        "shores": shore_path(centre=180),
        "shores180": shore_path(centre=0),
        "spectra": _spectra(scores),
        "event_names": scores["event"].values.tolist() if "event" in scores.dims else [],
        "event_scores": [*_EVENTS.values(), *_widths(scores)],
        "events": _events(scores),
        "stations": _stations(scores),
    }


def _curves(scores: xr.Dataset) -> dict[str, Any]:
    """By score and source: channel, region, lead."""
    arrays = {
        name: scores[name]
        for name in ("rmse", "rmse_lower", "rmse_upper", "bias", "mae", "acc")
        if name in scores
    }
    if "truth_activity" in scores:
        arrays["activity"] = scores["forecast_activity"] / scores["truth_activity"]
    return {
        name: {
            str(source): _numbers(array.sel(source=source).transpose("channel", "region", "lead").values)
            for source in array["source"].values
        }
        for name, array in arrays.items()
    }


def _card(found: Scorecard) -> dict[str, Any]:
    decided = (found.upper < 0) | (found.lower > 0)
    cells = [
        [
            [[_number(found.relative[i, c, r]), bool(decided[i, c, r])] for i in range(len(found.leads))]
            for r in range(len(found.regions))
        ]
        for c in range(len(found.channels))
    ]
    return {
        "leads": [lead / timedelta(hours=1) for lead in found.leads],
        "cells": cells,
        "counts": [found.count(region) for region in found.regions],
        "better": [found.share_better(region) for region in found.regions],
        "method": found.method,
        "dates": found.dates,
    }


def _maps(scores: xr.Dataset) -> dict[str, Any]:
    if "bias_map" not in scores:
        return {}
    made = {}
    for kind, palette in (("bias", DIVERGING), ("rmse", SEQUENTIAL)):
        array = scores[f"{kind}_map"]
        for name in array["shown_channel"].values.tolist():
            units, factor = reading_units(name)
            for hours in array["shown_lead"].values.tolist():
                fields = array.sel(shown_channel=name, shown_lead=hours).values * factor
                # One scale for all forecasts, so that they can be compared by eye.
                limit = float(np.nanquantile(np.abs(fields), 0.99)) or 1.0
                low = -limit if kind == "bias" else 0.0
                for source, field in zip(array["source"].values.tolist(), fields):
                    made[f"{kind}|{source}|{name}|{hours:g}"] = {
                        "image": picture(shades(field, low, limit), palette),
                        "low": low,
                        "high": limit,
                        "units": units,
                    }
    return made


def _spectra(scores: xr.Dataset) -> dict[str, Any]:
    if "coherence" not in scores:
        return {}
    made = {}
    n = scores["wavenumber"].values[1:].tolist()
    for source in scores["source"].values.tolist():
        for name in scores["shown_channel"].values.tolist():
            for hours in scores["shown_lead"].values.tolist():
                one = scores.sel(source=source, shown_channel=name, shown_lead=hours)
                made[f"{source}|{name}|{hours:g}"] = {
                    "n": n,
                    "truth": _numbers(one["truth_power"].values[1:]),
                    "forecast": _numbers(one["forecast_power"].values[1:]),
                    "coherence": _numbers(one["coherence"].values[1:]),
                }
    return made


def _events(scores: xr.Dataset) -> dict[str, Any]:
    """By score, source and event: region, lead."""
    made = {}
    for source in scores["source"].values.tolist() if "event" in scores.dims else []:
        for event in scores["event"].values.tolist():
            of_event = {name: scores[key].sel(event=event) for key, name in _EVENTS.items()}
            for width in _widths(scores):
                of_event[width] = scores["fss"].sel(neighbourhood=f"{event}, {width.removeprefix('FSS ')}")
            for name, array in of_event.items():
                values = array.sel(source=source).transpose("region", "lead").values
                made[f"{name}|{source}|{event}"] = _numbers(values)
    return made


def _widths(scores: xr.Dataset) -> list[str]:
    """`FSS 100 km`, for every width of a neighbourhood."""
    if "fss" not in scores:
        return []
    rows = scores["neighbourhood"].values.tolist()
    return [f"FSS {width}" for width in dict.fromkeys(row.rpartition(", ")[2] for row in rows)]


def _stations(scores: xr.Dataset) -> dict[str, Any] | None:
    if "station_rmse" not in scores:
        return None
    names = scores["measured"].values.tolist()
    region = scores["region"].values.tolist()[0]
    rmse = scores["station_rmse"].sel(region=region)
    maps, limits = {}, {}
    for name in names if "station_bias_map" in scores else []:
        bias = scores["station_bias_map"].sel(source=FORECAST, measured=name)
        limits[name] = (
            float(np.nanquantile(np.abs(bias.values), 0.95)) if np.isfinite(bias.values).any() else 1.0
        )
        for hours in bias["shown_lead"].values.tolist():
            one = bias.sel(shown_lead=hours)
            known = np.isfinite(one.values)
            columns = (scores[c].values[known] for c in ("station", "station_longitude", "station_latitude"))
            maps[f"{name}|{hours:g}"] = [
                [str(s), round(float(x), 2), round(float(y), 2), _number(v)]
                for s, x, y, v in zip(*columns, one.values[known])
            ]
    return {
        "channels": names,
        "region": region,
        "map_leads": [f"{hours:g}" for hours in scores["shown_lead"].values] if maps else [],
        "leads": scores["station_lead"].values.tolist(),
        "maps": maps,
        "limits": limits,
        "units": {name: units_of(name) for name in names},
        "scores": {
            f"{source}|{name}": _numbers(rmse.sel(source=source, measured=name).values)
            for source in scores["source"].values.tolist()
            for name in names
        },
    }


def _number(value: float) -> float | None:
    return float(f"{value:.4g}") if np.isfinite(value) else None


def _numbers(values: np.ndarray) -> list[Any]:
    """Nested lists of four digits; null where there is no number."""
    if values.ndim > 1:
        return [_numbers(row) for row in values]
    return [_number(value) for value in values.tolist()]
