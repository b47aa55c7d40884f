"""Scores against other people's: the packages `scores` and `xskillscore`, on fields with weights."""

import warnings

import numpy as np
import pytest
import xarray as xr

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import scores
    import xskillscore
    from scores.spatial import fss_2d_single_field

from fengwu_ghr.grid import LatLonGrid, product_grid
from fengwu_ghr.verify import metrics
from fengwu_ghr.verify.events import EVENT_SCORES, event_sums, false_alarm_rate, hit_rate
from fengwu_ghr.verify.neighbourhood import fraction_sums, fss
from fengwu_ghr.verify.rain import seeps, seeps_sums
from fengwu_ghr.verify.regions import Regions
from fengwu_ghr.verify.statistics import Sums, state_sums

GRID = product_grid(40)
GLOBE = Regions.globe(GRID)
DIMS = ("date", "lat", "lon")
WEIGHTS = xr.DataArray(GRID.cell_areas(), dims=DIMS[1:])


@pytest.fixture
def pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    truth = (280 + 10 * rng.standard_normal((5, *GRID.shape))).astype(np.float32)
    return (truth + 2 * rng.standard_normal(truth.shape)).astype(np.float32) + np.float32(0.5), truth


def dated(parts: list[Sums]) -> Sums:
    names = parts[0].names
    return Sums(np.stack([p.weight for p in parts]), {n: np.stack([p.sums[n] for p in parts]) for n in names})


def labelled(values: np.ndarray) -> xr.DataArray:
    return xr.DataArray(values.astype(np.float64), dims=DIMS)


def sums_of(forecast: np.ndarray, truth: np.ndarray, climatology: np.ndarray) -> Sums:
    return dated(
        [state_sums(f[None], o[None], climatology[None], regions=GLOBE) for f, o in zip(forecast, truth)]
    )


def test_errors_are_those_of_scores(pair: tuple[np.ndarray, np.ndarray]) -> None:
    forecast, truth = pair
    ours = sums_of(forecast, truth, truth.mean(axis=0))
    f, o = labelled(forecast), labelled(truth)
    # `scores` divides weighted sums by the count, so weights are of mean one.
    weights = WEIGHTS / WEIGHTS.mean()
    for name, theirs in (
        ("rmse", scores.continuous.rmse),
        ("mae", scores.continuous.mae),
        ("bias", scores.continuous.additive_bias),
    ):
        expected = float(theirs(f, o, weights=weights))
        assert getattr(metrics, name)(ours).item() == pytest.approx(expected, rel=1e-6), name


def test_anomaly_correlation_is_that_of_xskillscore(pair: tuple[np.ndarray, np.ndarray]) -> None:
    forecast, truth = pair
    normal = np.full(GRID.shape, 279, np.float32)
    ours = sums_of(forecast, truth, normal)
    f, o = (labelled(values - normal) for values in (forecast, truth))
    expected = [
        float(xskillscore.pearson_r(f[i], o[i], dim=["lat", "lon"], weights=WEIGHTS))
        for i in range(len(forecast))
    ]
    assert metrics.acc(ours).item() == pytest.approx(np.mean(expected), rel=1e-6)


def test_contingency_scores_are_those_of_scores(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """`scores` counts points: a grid whose cells are alike is taken."""
    belt = LatLonGrid(np.array([0.5, -0.5]), GRID.longitude, "belt")
    regions = Regions.globe(belt)
    forecast, truth = (values[:, :2] >= 285 for values in pair)
    ours = dated([event_sums(f[None], o[None], regions=regions) for f, o in zip(forecast, truth)])
    manager = scores.categorical.BinaryContingencyManager(labelled(forecast), labelled(truth)).transform()
    theirs = {
        "CSI": manager.critical_success_index(),
        "HSS": manager.heidke_skill_score(),
        "ETS": manager.equitable_threat_score(),
        "SEDI": manager.symmetric_extremal_dependence_index(),
        "frequency bias": manager.frequency_bias(),
    }
    for name, expected in theirs.items():
        assert EVENT_SCORES[name](ours).item() == pytest.approx(float(expected), rel=1e-6), name
    assert hit_rate(ours).item() == pytest.approx(float(manager.probability_of_detection()), rel=1e-6)
    assert false_alarm_rate(ours).item() == pytest.approx(
        float(manager.probability_of_false_detection()), rel=1e-6
    )


def test_fss_of_whole_windows_is_that_of_scores(rng: np.random.Generator) -> None:
    """Three columns and rows of a thousandth of a degree at the equator, where cells are alike."""
    grid = LatLonGrid(1e-3 * np.arange(4.5, -5, -1), 1e-3 * np.arange(0.0, 360), "belt")
    regions = Regions.globe(grid)
    forecast, truth = (rng.random((1, *grid.shape)) < 0.3 for _ in range(2))
    # Both see the same windows where the fields are empty near the edges: at these all windows are complete.
    for events in (forecast, truth):
        events[:, :2] = events[:, -2:] = events[:, :, :2] = events[:, :, -2:] = False
    sums = fraction_sums(forecast, truth, kilometres=0.35, regions=regions)
    theirs = fss_2d_single_field(
        forecast[0].astype(float),
        truth[0].astype(float),
        event_threshold=0.5,
        window_size=(3, 3),
        zero_padding=True,
    )
    assert fss(sums[None]).item() == pytest.approx(float(theirs), rel=1e-6)


def test_seeps_is_that_of_scores(rng: np.random.Generator) -> None:
    belt = LatLonGrid(np.array([0.5, -0.5]), GRID.longitude, "belt")
    shape = belt.shape
    forecast, truth = (rng.gamma(0.4, 8, shape).astype(np.float32) for _ in range(2))
    dry = rng.uniform(0.15, 0.8, shape).astype(np.float32)
    heavy = rng.uniform(3, 12, shape).astype(np.float32)
    sums = seeps_sums(forecast, truth, dry_share=dry, heavy_limit=heavy, regions=Regions.globe(belt))
    f, o, p1, t3 = (
        xr.DataArray(v.astype(np.float64), dims=("lat", "lon")) for v in (forecast, truth, dry, heavy)
    )
    theirs = scores.categorical.seeps(
        f,
        o,
        p1,
        t3,
        dry_light_threshold=0.25,
        lower_masked_value=0.1,
        upper_masked_value=0.85,
        mask_clim_extremes=True,
    )
    assert seeps(sums[None]).item() == pytest.approx(float(theirs), rel=1e-6)
