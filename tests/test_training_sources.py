"""The forecasts that are compared: each baseline is exactly what its letter stands for."""

from collections.abc import Iterator
from datetime import datetime, time, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import analytic
import numpy as np
import pytest
import torch
from worlds import tiny_world

from fengwu_ghr.backbone import architecture
from fengwu_ghr.catalogue import create_model
from fengwu_ghr.checkpoint import Checkpoint, load_model
from fengwu_ghr.errors import UsageError
from fengwu_ghr.grid import NetworkGrid, backbone_grid, product_grid
from fengwu_ghr.progress import Silence
from fengwu_ghr.regrid import NetworkMap, Regridder
from fengwu_ghr.remap import keep_to_bounds, remap_state
from fengwu_ghr.training import sources
from fengwu_ghr.training.downscale import WEIGHTS, Downscaling, Interpolation, Refiner, SeasonalDetail
from fengwu_ghr.training.normals import Normals
from fengwu_ghr.training.reference import ReferenceForecasts
from fengwu_ghr.training.sources import InitialDate
from fengwu_ghr.training.specs import SourceSpec
from fengwu_ghr.training.world import World, chunk_path, coarse_path
from fengwu_ghr.variables import channel_set
from fengwu_ghr.verify.climatology import Climatology

CHANNELS = channel_set("ghr-69").channels
NAMES = channel_set("ghr-69").names
DATE = InitialDate("test", 0, 3)
SMALL = {"width": 16, "heads": 2, "decoder_width": 16, "depth": 2, "lora_steps": 0, "res_after": ()}
FINER = Regridder(backbone_grid(20), product_grid(20))
HUMIDITY = [name.startswith("q") for name in NAMES]


def model(world: World, folder: Path, init: str) -> Path:
    shape = architecture("ghr-tiny", scale=20, **SMALL)
    create_model(shape, output=folder, init=init, statistics=world.statistics.normalisation)
    return folder


@pytest.fixture(scope="module")
def persisting(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose tendency is zero."""
    return model(world, tmp_path_factory.mktemp("zero") / "model", "zero")


@pytest.fixture(scope="module")
def moving(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that changes every field a little."""
    return model(world, tmp_path_factory.mktemp("random") / "model", "random")


def interpolated(coarse: np.ndarray) -> np.ndarray:
    """Field by field, as a product is; the tests of `regrid` know it."""
    fields = [
        FINER.apply(np.ascontiguousarray(field), is_vector=c.definition.is_vector)
        for field, c in zip(coarse, CHANNELS)
    ]
    return bounded(np.stack(fields))


def bounded(state: np.ndarray) -> np.ndarray:
    """Humidity alone has a bound in these channels."""
    state[HUMIDITY] = np.maximum(state[HUMIDITY], 0)
    return state


def mean_of(world: World, kind: str) -> np.ndarray:
    states = [getattr(s, kind)(i) for s in world.series("train") for i in range(len(s))]
    return np.mean(states, axis=0, dtype=np.float64).astype(np.float32)


def assert_close(found: np.ndarray, expected: np.ndarray, world: World, part: float = 1e-4) -> None:
    """Nowhere further apart than this part of the channel's standard deviation."""
    std = world.statistics.normalisation.std[:, None, None]
    np.testing.assert_array_less(np.abs(found - expected) / std, part)


# Remapping whole states


def test_a_remapped_state_is_its_fields_remapped(world: World) -> None:
    coarse = np.array(world.series("test")[0].coarse(0))
    coarse[NAMES.index("q500")] -= 1
    found = remap_state(coarse, CHANNELS, FINER.apply)
    np.testing.assert_array_equal(found, interpolated(coarse))
    assert not found[NAMES.index("q500")].any()
    assert coarse[NAMES.index("q500")].max() < 0
    with pytest.raises(ValueError, match="argument"):
        remap_state(coarse[:3], CHANNELS, FINER.apply)


def test_bounds_are_those_of_the_variables() -> None:
    channels = channel_set("ghr-74").channels
    state = np.full((74, 2, 2), -1, np.float32)
    state[:, 0] = 2
    found = keep_to_bounds(state, channels)
    assert found is state
    by_name = dict(zip(channel_set("ghr-74").names, found))
    assert by_name["tcc"].tolist() == [[1, 1], [0, 0]]
    assert by_name["tp6h"].tolist() == by_name["q850"].tolist() == [[2, 2], [0, 0]]
    assert by_name["t850"].tolist() == [[2, 2], [-1, -1]]


# Normals


def test_normals_are_kept_and_belong_to_their_training_states(world: World, tmp_path: Path) -> None:
    made = Normals.of(world, tmp_path, harmonics=0, progress=Silence())
    kept = tmp_path / "normals" / "fine.npz"
    before = kept.stat().st_mtime_ns
    again = Normals.of(world, tmp_path, harmonics=0, progress=Silence())
    np.testing.assert_array_equal(again.fine.coefficients, made.fine.coefficients)
    assert kept.stat().st_mtime_ns == before
    other = tiny_world(tmp_path / "other", days=6)
    for wrong, harmonics in ((other, 0), (world, 1)):
        with pytest.raises(
            UsageError, match=r"normals began with other settings: .*(train_states|harmonics) was"
        ):
            Normals.of(wrong, tmp_path, harmonics=harmonics, progress=Silence())


def test_training_series_a_few_days_apart_have_normals(tmp_path: Path) -> None:
    """Their climatology counts both as one period."""
    world = tiny_world(tmp_path / "world", days=6)
    member = tmp_path / "world" / "member-0"
    path = chunk_path(member, "train", datetime(2000, 1, 4, 6))
    for kept in (path, coarse_path(path)):
        kept.rename(kept.with_name(kept.name.replace("2000010406", "2000010906")))
    assert len(world.series("train")) == 3
    made = Normals.of(world, tmp_path / "normals", harmonics=0, progress=Silence())
    assert len(made.fine.covers) == 2
    Normals.of(world, tmp_path / "normals", harmonics=0, progress=Silence())


# What needs no network


def test_persistence_is_the_analysis(world: World) -> None:
    states = list(sources.Persistence(world).states(DATE, 3))
    assert len(states) == 3
    assert all(np.array_equal(state, world.series("test")[0].fine(3)) for state in states)


def test_climatology_is_that_of_the_valid_time(world: World) -> None:
    """One wave through the year, the same everywhere; 2000 has 366 days."""
    coefficients = np.zeros((3, 69, 101, 200), np.float32)
    coefficients[2] = 1
    wave = Climatology(product_grid(20), NAMES, coefficients, ())
    states = list(sources.ClimatologyForecast(world, Normals(wave, wave)).states(DATE, 2))
    begun = world.series("test")[0].times[3]
    for step, state in enumerate(states, start=1):
        days = (begun - datetime(2000, 1, 1)) / timedelta(days=1) + step / 4
        np.testing.assert_allclose(state, np.sin(2 * np.pi * days / 366), rtol=1e-5)


def test_climatology_without_harmonics_is_the_training_mean(world: World, normals: Normals) -> None:
    (state,) = sources.ClimatologyForecast(world, normals).states(DATE, 1)
    assert_close(state, mean_of(world, "fine"), world)


# The backbone on its own grid


def test_the_coarse_forecast_is_the_backbone_on_area_means(world: World, moving: Path) -> None:
    source = sources.CoarseForecast(world, moving)
    first, second = source.coarse_states(DATE, 2)
    backbone, numbers = load_model(Checkpoint.open(moving)).backbone, world.statistics.normalisation
    begun = np.ascontiguousarray(world.series("test")[0].coarse(3))
    with torch.no_grad():
        step = backbone(torch.from_numpy(numbers.normalise(begun))[None])
        assert_close(first, numbers.denormalise(step[0].numpy()), world)
        assert_close(second, numbers.denormalise(backbone(step)[0].numpy()), world)
    assert np.abs(second - first).max() > 0
    fine = list(source.states(DATE, 2))
    assert_close(fine[1], interpolated(second), world)


def test_a_backbone_that_persists_gives_the_interpolated_area_means(world: World, persisting: Path) -> None:
    expected = interpolated(world.series("test")[0].coarse(3))
    for state in sources.CoarseForecast(world, persisting).states(DATE, 2):
        assert_close(state, expected, world)


def test_c1_adds_the_detail_of_the_training_means(world: World, persisting: Path, normals: Normals) -> None:
    detail = mean_of(world, "fine") - interpolated(mean_of(world, "coarse"))
    plain = interpolated(world.series("test")[0].coarse(3))
    (state,) = sources.DetailedForecast(world, persisting, normals).states(DATE, 1)
    assert_close(state, bounded(plain + detail), world, 2e-4)
    assert state[HUMIDITY].min() >= 0
    truth = world.series("test")[0].fine(3)
    t850 = NAMES.index("t850")
    assert np.std((state - truth)[t850]) < np.std((plain - truth)[t850]), "detail makes it better here"


def test_c_cnn_is_the_downscaled_coarse_forecast(world: World, persisting: Path) -> None:
    """A refiner that adds nothing, and no detail: what is left is the way over the network grid."""
    refiner = Refiner(69, (37, 72), width=4, blocks=0)

    class NoDetail(SeasonalDetail):
        def __init__(self) -> None:
            return

        def at(self, valid_time: datetime) -> np.ndarray:
            return np.zeros((69, 111, 216), np.float32)

    interpolation = Interpolation(20, world.channels)
    downscaling = Downscaling(refiner, NoDetail(), interpolation, world.statistics.normalisation)
    (state,) = sources.DownscaledForecast(world, persisting, downscaling).states(DATE, 1)
    coarse = world.series("test")[0].coarse(3)
    assert_close(state, downscaling.apply(np.ascontiguousarray(coarse), datetime(2000, 9, 2)), world)
    assert_close(state, interpolated(coarse), world, 0.1)


# On the network grid


def test_a_split_that_persists_gives_the_analysis_up_to_regridding(world: World, persisting: Path) -> None:
    """White noise of 2 % of the spread is what regridding cannot keep."""
    first, second = sources.TransferredForecast(world, persisting).states(DATE, 2)
    analysis = world.series("test")[0].fine(3)
    spread = analysis.std(axis=(1, 2))
    assert (np.std(first - analysis, axis=(1, 2)) < 0.02 * spread).all()
    assert_close(second, first, world, 1e-5)
    to_network = partial(NetworkMap(NetworkGrid(20)).from_source, source=product_grid(20))
    there_and_back = remap_state(
        remap_state(analysis, CHANNELS, to_network), CHANNELS, NetworkMap(NetworkGrid(20)).to_product
    )
    assert_close(first, there_and_back, world)


def on_more_rows(channel: Any) -> np.ndarray:
    """An analytic field on the network grid and nine rows and columns more on every side, rows -9 to 119."""
    fields = {
        "u": analytic.eastward,
        "10u": analytic.eastward,
        "v": analytic.northward,
        "10v": analytic.northward,
    }
    rows, columns = np.arange(-9, 120), np.arange(-9, 225)
    latitude, longitude = 90 + 20 / 12 * (1 - rows), 20 / 12 * (columns - 1)
    field = fields.get(channel.variable, analytic.scalar)
    return field(latitude[:, None], longitude[None]).astype(np.float32)


def cubic(values: np.ndarray, points: np.ndarray, count: int) -> np.ndarray:
    """Lagrange's polynomial through the two points on either side, at 0, 1 ... count - 1 of the last axis."""
    result = np.empty((*values.shape[:-1], count))
    for x in range(count):
        first = np.searchsorted(points, x, side="right") - 2
        four = points[first : first + 4]
        weights = [np.prod([(x - b) / (a - b) for b in four if b != a]) for a in four]
        result[..., x] = values[..., first : first + 4] @ weights
    return result


def nine_interpolated(field: np.ndarray) -> np.ndarray:
    """Each of the nine sub-fields interpolated to all points of the network grid; their mean."""
    rows, columns = np.arange(-9, 120), np.arange(-9, 225)
    results = []
    for a in range(3):
        for b in range(3):
            along = cubic(field[a::3, b::3].astype(float), columns[b::3], 216)
            results.append(cubic(along.T, rows[a::3], 111).T)
    return np.mean(results, axis=0)


def test_c9_is_the_mean_of_nine_interpolated_sub_fields(
    world: World, persisting: Path, normals: Normals
) -> None:
    """Over the poles, where components of the wind turn, and across the dateline."""
    source = sources.MeanOfNine(world, persisting, normals)
    wider = np.stack([on_more_rows(c) for c in CHANNELS])
    found = source.smoothed(np.ascontiguousarray(wider[:, 9:-9, 9:-9]))
    for name in ("t850", "u850", "10v", "msl"):
        channel = NAMES.index(name)
        np.testing.assert_allclose(found[channel], nine_interpolated(wider[channel]), atol=2e-6)


def test_c9_of_sub_fields_that_differ_by_their_offsets_is_their_mean(
    world: World, persisting: Path, normals: Normals
) -> None:
    """Away from the poles: nine constants, one per sub-field, have the mean of the nine everywhere."""
    constants = np.arange(9, dtype=np.float32).reshape(3, 3)
    state = np.broadcast_to(np.tile(constants, (37, 72)), (69, 111, 216)).astype(np.float32)
    found = sources.MeanOfNine(world, persisting, normals).smoothed(state)
    np.testing.assert_allclose(found[:, 5:-5], 4, atol=1e-5)


def test_c9_adds_what_smoothing_takes_from_the_normals(
    world: World, persisting: Path, normals: Normals
) -> None:
    """A forecast that is the climatology comes out as the climatology."""

    class Climatological(sources.MeanOfNine):
        def network_states(self, date: InitialDate, steps: int) -> Iterator[np.ndarray]:
            valid = datetime.combine(self.valid_time(date, 1).date(), time(12))
            to_network = partial(NetworkMap(NetworkGrid(20)).from_source, source=product_grid(20))
            yield remap_state(normals.fine.at(valid), CHANNELS, to_network)

    (state,) = Climatological(world, persisting, normals).states(DATE, 1)
    assert_close(state, normals.fine.at(datetime(2000, 9, 2, 12)), world)


# The simulator


class Reference(ReferenceForecasts):
    """The truth, by one standard deviation too high."""

    def __init__(self, world: World) -> None:
        self._world = world

    def forecast(self, member: int, initial_time: datetime, *, hours: int) -> Iterator[np.ndarray]:
        series = next(s for s in self._world.series("test") if s.member == member)
        begun = series.times.index(initial_time)
        for step in range(1, hours // 6 + 1):
            yield series.fine(begun + step) + too_high(self._world)


def too_high(world: World) -> np.ndarray:
    return world.statistics.normalisation.std[:, None, None]


def test_the_numerical_baseline_is_the_simulator_less_its_bias(world: World, tmp_path: Path) -> None:
    truth = [np.array(world.series("test")[0].fine(3 + step)) for step in (1, 2)]
    raw = sources.NumericalForecast(world, Reference(world)).states(DATE, 2)
    for state, real in zip(raw, truth):
        np.testing.assert_array_equal(state, real + too_high(world))
    bias = np.empty((2, 69, 101, 200), np.float32)
    bias[0], bias[1] = too_high(world), 2 * too_high(world)
    np.save(tmp_path / "bias.npy", bias)
    corrected = sources.NumericalForecast(world, Reference(world), bias=tmp_path / "bias.npy")
    first, second = corrected.states(DATE, 2)
    assert_close(first, bounded(truth[0].copy()), world)
    assert_close(second, bounded(truth[1] - too_high(world)), world)
    assert second[HUMIDITY].min() == 0


# Specifications


def test_a_specification_makes_its_source(
    world: World, persisting: Path, normals: Normals, tmp_path: Path
) -> None:
    kinds = {
        "persistence": sources.Persistence,
        "climatology": sources.ClimatologyForecast,
        "coarse": sources.CoarseForecast,
        "detailed": sources.DetailedForecast,
        "mean-of-nine": sources.MeanOfNine,
        "transferred": sources.TransferredForecast,
    }
    for kind, source in kinds.items():
        spec = SourceSpec(kind, kind, kind, persisting)  # type: ignore[arg-type]
        assert type(spec.make(world, normals)) is source
    for spec in (
        SourceSpec("a", "a", "coarse"),
        SourceSpec("b", "b", "downscaled", persisting),
        SourceSpec("c", "c", "transferred"),
    ):
        with pytest.raises(ValueError, match="lacks a checkpoint or climatology"):
            spec.make(world, normals)
    with pytest.raises(ValueError, match="lacks a checkpoint or climatology"):
        SourceSpec("d", "d", "detailed", persisting).make(world, None)


def test_a_specification_says_what_decides_its_forecasts(
    persisting: Path, moving: Path, tmp_path: Path
) -> None:
    """Not its name, its title, how many dates; but its models, whole."""
    spec = SourceSpec("a", "A", "coarse", persisting)
    assert spec.describe() == SourceSpec("b", "B", "coarse", persisting, dates=3).describe()
    assert spec.describe() != SourceSpec("a", "A", "coarse", moving).describe()
    (tmp_path / WEIGHTS).write_bytes(b"one")
    downscaled = SourceSpec("c", "C", "downscaled", persisting, tmp_path)
    before = downscaled.describe()
    (tmp_path / WEIGHTS).write_bytes(b"two")
    assert downscaled.describe() != before
