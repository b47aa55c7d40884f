"""What a radar sequence accepts: steps, gaps, values; rain and reflectivity; averaging."""

from datetime import datetime, timedelta

import numpy as np
import pytest

from fengwu_ghr.errors import InputError
from fengwu_ghr.nowcast.sequence import ZR, RadarSequence
from fengwu_ghr.nowcast.storms import PROJECTION
from fengwu_ghr.projected_grid import ProjectedGrid

START = datetime(2020, 6, 1, 12)


def a_sequence(
    values: np.ndarray, *, minutes: int = 5, skipped: tuple[int, ...] = (), pixel: float = 1000.0
) -> RadarSequence:
    """Frames of these dBZ; `skipped` of the regular times are left out."""
    grid = ProjectedGrid.of_corners(PROJECTION, (0.0, 0.0), (pixel, pixel), values.shape[1:])
    times = [
        START + timedelta(minutes=minutes) * n for n in range(len(values) + len(skipped)) if n not in skipped
    ]
    return RadarSequence.of(values.astype(np.float32), times, grid, source="test")


def ramp(frames: int) -> np.ndarray:
    return np.full((frames, 6, 8), 10.0) + np.arange(frames)[:, None, None]


def test_marshall_palmer() -> None:
    """Z = 200 R^1.6: 1 mm/h is 23.0 dBZ, 10 mm/h is 39.0 dBZ; MeteoSwiss' 316 R^1.5 has 40 dBZ at 10 mm/h."""
    np.testing.assert_allclose(ZR().reflectivity(np.array([1.0, 10.0])), [23.01, 39.01], atol=0.01)
    assert ZR(316, 1.5).reflectivity(np.array([10.0]))[0] == pytest.approx(40.0, abs=0.01)


def test_rain_and_back() -> None:
    rain = np.array([0.0, 0.5, 3.0, 80.0, np.nan], np.float32)
    found = ZR().rain_rate(ZR().reflectivity(rain))
    np.testing.assert_allclose(found, rain, rtol=1e-4)
    with pytest.raises(InputError, match="a > 0"):
        ZR(0, 1.6)


def test_no_data_stays_no_data() -> None:
    values = ramp(3)
    values[1, 2, 3] = np.nan
    values[0, 0, 0] = -20.0
    found = a_sequence(values)
    assert np.isnan(found.values[1, 2, 3])
    assert found.known.sum() == values.size - 1
    assert found.values[0, 0, 0] == 0, "below the dry threshold is dry"


@pytest.mark.parametrize("value", [-60.0, 130.0, np.inf])
def test_what_no_radar_measures_is_refused(value: float) -> None:
    values = ramp(3)
    values[2, 1, 1] = value
    with pytest.raises(InputError, match=r"-35 \.\.\. 95 dBZ; at 2020-06-01 12:10"):
        a_sequence(values)


def test_gaps_are_refused_and_name_their_times() -> None:
    with pytest.raises(InputError, match=r"by one step, 5 minutes here; .*2020-06-01 12:10 to 12:20"):
        _ = a_sequence(ramp(5), skipped=(3,)).step


def test_short_gaps_are_bridged_on_request() -> None:
    values = ramp(5)
    values[3] += 2
    bridged = a_sequence(values, skipped=(3, 4)).bridged()
    assert len(bridged) == 7
    assert bridged.minutes == 5
    np.testing.assert_allclose(bridged.values[2:6, 0, 0], [12, 13, 14, 15], rtol=1e-6)
    with pytest.raises(InputError, match="bridged up to 0:15:00"):
        a_sequence(ramp(4), skipped=(2, 3, 4, 5)).bridged()


def test_times_ascend_once_each() -> None:
    good = a_sequence(ramp(3))
    with pytest.raises(InputError, match="must ascend"):
        RadarSequence(good.values, (START, START, START + timedelta(minutes=5)), good.grid)
    with pytest.raises(InputError, match="need"):
        RadarSequence(good.values[:2], good.times, good.grid)
    with pytest.raises(InputError, match="two frames or more"):
        _ = good[slice(0, 1)].step


def test_strides_and_cuts() -> None:
    whole = a_sequence(ramp(7))
    assert whole.every(2).minutes == 10
    assert whole.every(3, first=1).times[0] == START + timedelta(minutes=5)


def test_averages_are_of_rain_and_ignore_what_is_unknown() -> None:
    rain = np.zeros((2, 4, 4), np.float32)
    rain[:, 0, 0] = 40.0
    rain[:, 2:, 2:] = np.nan
    rain[:, 3, 3] = 8.0
    rain[:, 0, 2] = np.nan
    fine = a_sequence(ZR().reflectivity(rain), pixel=500.0)
    found = fine.at_one_kilometre()
    assert found.grid.shape == (2, 2)
    back = found.zr.rain_rate(found.values[0])
    assert back[0, 0] == pytest.approx(10.0, rel=1e-4)
    assert back[0, 1] == 0, "three of four pixels are known, and dry"
    assert np.isnan(back[1, 1]), "one of four is not enough"
    assert fine.coarsened(1) is fine


def test_odd_pixels_are_refused() -> None:
    with pytest.raises(InputError, match=r"2\.5 x 2\.5 km"):
        a_sequence(ramp(2), pixel=2500.0).at_one_kilometre()
