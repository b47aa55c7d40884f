"""Sums of nowcasts against brute force and against the `scores` package; cuts; spectra; the table."""

from pathlib import Path

import numpy as np
import pytest
import scores as others
import xarray as xr

from fengwu_ghr.nowcast.scores import (
    BANDS_KM,
    THRESHOLDS,
    Scored,
    band_powers,
    fraction_sums,
    pooled,
    score_frame,
    scored,
    tables,
    tuned_cuts,
    value_counts,
)
from fengwu_ghr.nowcast.table import Compared, by_lead, write_table
from fengwu_ghr.verify.events import csi, false_alarm_ratio, frequency_bias, hit_rate, hss
from fengwu_ghr.verify.neighbourhood import fss
from fengwu_ghr.verify.spectra import power_ratio


def a_pair(rng: np.random.Generator, shape: tuple[int, int] = (40, 50)) -> tuple[np.ndarray, np.ndarray]:
    """A forecast that knows something of what came; parts of both unknown."""
    came = rng.gamma(1.5, 12, shape).astype(np.float32).clip(0, 90)
    made = (0.6 * came + 0.4 * rng.gamma(1.5, 12, shape)).astype(np.float32)
    came[:5], made[:, :4] = np.nan, np.nan
    return made, came


def test_tables_are_those_of_the_scores_package(rng: np.random.Generator) -> None:
    """Unobserved pixels do not count; what is forecast as missing counts as dry."""
    made, came = a_pair(rng)
    counts = np.stack([value_counts(made, came, t) for t in THRESHOLDS])
    found = tables(counts, np.array(THRESHOLDS))
    known = ~np.isnan(came)
    dry = np.nan_to_num(made, nan=0.0)
    for i, threshold in enumerate(THRESHOLDS):
        said, is_so = (xr.DataArray((v >= threshold)[known].astype(float)) for v in (dry, came))
        manager = others.categorical.BinaryContingencyManager(said, is_so)
        part = found[i : i + 1][None]
        assert hss(part) == pytest.approx(float(manager.heidke_skill_score()))
        assert csi(part) == pytest.approx(float(manager.critical_success_index()))
        assert hit_rate(part) == pytest.approx(float(manager.probability_of_detection()))
        assert false_alarm_ratio(part) == pytest.approx(float(manager.false_alarm_ratio()))
        assert frequency_bias(part) == pytest.approx(float(manager.frequency_bias()))
        assert found.weight[i] == known.sum()


def test_a_cut_takes_the_place_of_the_threshold(rng: np.random.Generator) -> None:
    made, came = a_pair(rng)
    counts = value_counts(made, came, 35.0)[None]
    found = tables(counts, np.array([28.0]))
    dry, known = np.nan_to_num(made, nan=0.0), ~np.isnan(came)
    assert found.sums["hit"].item() == ((dry >= 28) & (came >= 35) & known).sum()
    assert tables(counts, np.array([200.0])).sums["hit"].item() == 0


def test_tuning_mends_a_forecast_that_is_too_weak(rng: np.random.Generator) -> None:
    """Of half the truth, the best cut for 35 dBZ is 17.5; events that never come keep the default."""
    came = rng.uniform(0, 44, (60, 60)).astype(np.float32)
    counts = np.stack([value_counts(came / 2, came, t) for t in THRESHOLDS])[None, None]
    cuts = tuned_cuts(counts, np.array(THRESHOLDS))[0]
    np.testing.assert_allclose(cuts[:4], [10, 15, 17.5, 20], atol=0.5)
    assert cuts[4] == 45.0
    assert hss(tables(counts, np.broadcast_to(cuts, (1, 1, 5))))[0, 2] > 0.98


def test_tuning_may_not_forecast_too_often(rng: np.random.Generator) -> None:
    came = rng.uniform(0, 60, (80, 80)).astype(np.float32)
    made = (came + rng.normal(0, 25, came.shape)).clip(0, 95).astype(np.float32)
    counts = np.stack([value_counts(made, came, t) for t in THRESHOLDS])[None, None]
    cuts = tuned_cuts(counts, np.array(THRESHOLDS))
    biases = frequency_bias(tables(counts, np.broadcast_to(cuts, (1, 1, 5))))
    assert ((biases >= 0.7) & (biases <= 1.5)).all()


def test_fractions_forgive_a_small_shift() -> None:
    came = np.zeros((90, 90), np.float32)
    came[40:44, 40:44] = 40
    moved = np.roll(came, 5, axis=1)
    right, shifted, far = (
        fss(fraction_sums(f, came)[None]) for f in (came, moved, np.roll(came, 45, axis=0))
    )
    np.testing.assert_allclose(right, 1)
    assert (np.diff(shifted[1]) > 0).all(), "the wider one looks, the better"
    assert shifted[1, 0] < 0.2
    assert shifted[1, 2] > 0.85
    assert far[1, 1] == 0


def test_spectra_find_a_wave_in_its_band() -> None:
    """A cosine of 16 km and amplitude 10 has the variance 50, all in one band; half of it a quarter of the power."""
    x = np.cos(2 * np.pi * np.arange(128) / 16)
    came = np.broadcast_to(20 + 10 * x, (128, 128)).astype(np.float32)
    made = np.broadcast_to(20 + 5 * x, (128, 128)).astype(np.float32)
    found = band_powers(made, came)
    np.testing.assert_allclose(found.sums["truth_power"], [0, 50, 0], atol=1e-2)
    assert power_ratio(found)[1] == pytest.approx(0.25, rel=1e-4)
    assert found.sums["cross_power"][1] ** 2 == pytest.approx(
        found.sums["truth_power"][1] * found.sums["forecast_power"][1], rel=1e-4
    )


def some(rng: np.random.Generator, *, skill: float) -> Scored:
    parts = []
    for unit in ("one 20 h", "one 21 h", "two 03 h"):
        for minutes in (10, 30, 60, 90):
            if unit == "two 03 h" and minutes == 90:
                continue
            made, came = a_pair(rng)
            mixed = np.where(np.isnan(came), made, skill * np.nan_to_num(came) + (1 - skill) * made)
            parts.append((unit, minutes, score_frame(mixed.astype(np.float32), came)))
    return scored(parts)


def test_sums_of_units_and_leads(rng: np.random.Generator) -> None:
    found = some(rng, skill=0.5)
    assert found.units == ("one 20 h", "one 21 h", "two 03 h")
    assert found.minutes == (10, 30, 60, 90)
    sums = found.at(np.array(THRESHOLDS))
    assert sums.weight[2, 3].max() == 0, "a unit without this lead"
    late = pooled(sums, np.array([False, True, True, True]))
    np.testing.assert_allclose(late.sums["hit"], sums.sums["hit"][:, 1:].sum(axis=1))


def test_a_table_says_who_is_better(rng: np.random.Generator, tmp_path: Path) -> None:
    test = {"good": some(rng, skill=0.8), "poor": some(rng, skill=0.0)}
    compared = Compared.of(test, {"good": some(rng, skill=0.8)})
    better = compared.difference("good", "poor", 35.0)
    assert better.startswith("+")
    assert "(+" in better, "the interval of a clear difference lies above zero"
    details, table = write_table(compared, tmp_path / "out")
    assert details.read_text().startswith("method,event,minutes,threshold,score,tuned,value\n")
    assert "good,two,60,35.0,HSS,False," in details.read_text()
    assert len(table.read_text().splitlines()) == 4
    columns, rows = by_lead(test["good"])
    assert len(columns) == len(rows[0]) == 1 + 2 * len(THRESHOLDS)
    assert [row[0] for row in rows] == ["10", "30", "60", "90"]
    assert len(BANDS_KM) == 3
