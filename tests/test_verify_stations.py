"""Stations: places, doubles, wrong values, interpolation and heights, by hand."""

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fengwu_ghr.errors import InputError
from fengwu_ghr.grid import LatLonGrid, product_grid
from fengwu_ghr.verify.reports import read_reports
from fengwu_ghr.verify.stations import (
    Observations,
    at_places,
    checked,
    to_station_height,
    without_gross_errors,
)

NOON = np.datetime64("2020-01-01T12:00:00", "s")
GRID = product_grid(20)


def reports(**columns: Any) -> Observations:
    count = len(columns["station"])
    base = {
        "latitude": np.full(count, 50.0),
        "longitude": np.full(count, 10.0),
        "elevation": np.full(count, 100.0),
        "time": np.full(count, NOON),
        "values": {"2t": np.full(count, 280, np.float32)},
    }
    given = {k: np.asarray(v) if k != "values" else v for k, v in columns.items()}
    return Observations(**(base | given))


def test_of_two_reports_the_first_value_stays_and_the_second_fills() -> None:
    nan = np.nan
    both = reports(
        station=["b", "a", "b"],
        values={
            "2t": np.array([280, 281, 290], np.float32),
            "10ws": np.array([nan, 3, 5], np.float32),
        },
    )
    found = checked(both)
    assert found.station.tolist() == ["b", "a"]
    assert found.values["2t"].tolist() == [280, 281]
    assert found.values["10ws"].tolist() == [5, 3]


def test_another_place_under_the_same_name_does_not_fill() -> None:
    both = reports(
        station=["a", "a"],
        longitude=[179.99, -175.0],
        values={"2t": np.array([280, 290], np.float32), "msl": np.array([np.nan, 1e5], np.float32)},
    )
    found = checked(both)
    assert np.isnan(found.values["msl"]).all()
    assert found.refused == {"another place under the same name and time": 1}
    near = reports(station=["a", "a"], longitude=[179.99, -179.99])
    assert not checked(near).refused


def test_values_that_cannot_be_are_refused_and_counted() -> None:
    found = checked(
        reports(
            station=["a", "b", "c", "d"],
            latitude=[50.0, 50, 99, 50],
            values={"2t": np.array([280, 12.0, 280, np.nan], np.float32)},
        )
    )
    assert found.station.tolist() == ["a", "b", "d"]
    np.testing.assert_array_equal(found.values["2t"], np.array([280, np.nan, np.nan], np.float32))
    assert found.refused == {"place or time is not on Earth": 1, "2t outside 180 ... 340": 1}
    with pytest.raises(InputError, match="no value that can be right"):
        checked(reports(station=["a"], values={"2t": np.array([12.0], np.float32)}))


def test_the_nearest_report_within_half_an_hour_counts() -> None:
    minutes = np.array([-40, -20, 10, 25], "m8[m]").astype("m8[s]")
    found = reports(
        station=["a"] * 4, time=NOON + minutes, values={"2t": np.arange(280, 284, dtype=np.float32)}
    ).at(datetime(2020, 1, 1, 12))
    assert found.values["2t"].tolist() == [282]


def test_interpolation_is_bilinear_everywhere_on_the_globe() -> None:
    """A field linear in latitude and a wave in longitude: exact along rows, second order along columns."""
    field = (GRID.latitude[:, None] + np.cos(np.deg2rad(GRID.longitude))[None]).astype(np.float32)
    latitude = np.array([90.0, 89.5, 0.3, -45.0, -90.0, 10.0])
    longitude = np.array([0.0, 77.0, 359.9, -179.95, 180.0, -0.1])
    found = at_places(field, GRID, latitude, longitude)
    np.testing.assert_allclose(found, latitude + np.cos(np.deg2rad(longitude)), atol=2e-4)


def test_places_outside_a_limited_grid_have_no_value() -> None:
    grid = LatLonGrid(np.arange(55.0, 44, -1), np.arange(0.0, 21), "area")
    field = np.broadcast_to(grid.longitude, grid.shape).astype(np.float32)
    found = at_places(field, grid, np.array([50.0, 50, 50, 60, 50]), np.array([0.0, 20, 21, 10, -1]))
    np.testing.assert_allclose(found, [0, 20, np.nan, np.nan, np.nan])


def test_temperature_is_brought_to_the_stations_height() -> None:
    """A model surface 200 m above the station is 1.3 K too cold for it."""
    found = to_station_height(
        np.full(4, 280.0), np.array([300.0, 100, 700, 300]), np.array([100.0, 300, 100, np.nan])
    )
    np.testing.assert_allclose(found, [281.3, 278.7, np.nan, 280.0])


def test_values_far_from_the_analysis_are_gross_errors() -> None:
    found = without_gross_errors(
        reports(station=["a", "b"], values={"2t": np.array([280, 297], np.float32)}),
        {"2t": np.array([281.0, 281.0])},
    )
    assert np.isnan(found.values["2t"]).tolist() == [False, True]
    assert found.refused == {"2t more than 15 from the analysis": 1}


def table(tmp_path: Path, header: str, row: str) -> Path:
    path = tmp_path / "reports.csv"
    path.write_text(f"{header}\n{row}\n")
    return path


def test_units_are_those_of_the_quantity(tmp_path: Path) -> None:
    """Metres of height are not metres of rain."""
    path = table(
        tmp_path,
        "station,latitude,longitude,elevation[unit=m],time,temperature[unit=degF],windspeed[unit=km/h],precip6hour[m]",
        "A,50,10,440,2020-01-01T12:00,50,36,0.002",
    )
    found = read_reports([path])
    assert found.elevation.tolist() == [440]
    assert found.values["2t"][0] == pytest.approx(283.15)
    assert found.values["10ws"][0] == pytest.approx(10)
    assert found.values["tp6h"][0] == pytest.approx(2)
    strange = table(
        tmp_path, "station,latitude,longitude,time,temperature[unit=hot]", "A,50,10,2020-01-01T12:00,5"
    )
    with pytest.raises(InputError, match="'hot' cannot be made 'K'; known are k, kelvin"):
        read_reports([strange])


@pytest.mark.parametrize(
    ("text", "is_time"), [("2020010112", True), ("2020-01-01 12:00:00Z", True), ("1577880000", False)]
)
def test_times_are_times_and_no_epochs(tmp_path: Path, text: str, is_time: bool) -> None:
    path = table(tmp_path, "station,latitude,longitude,time,temperature", f"A,50,10,{text},280")
    if not is_time:
        with pytest.raises(InputError, match="a time is written as"):
            read_reports([path])
        return
    assert read_reports([path]).time.tolist() == [datetime(2020, 1, 1, 12)]
