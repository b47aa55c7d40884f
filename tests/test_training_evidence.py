"""Evidence: every date is scored once, on the same points, and what is kept is kept for these very forecasts."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from worlds import tiny_world

from fengwu_ghr.backbone import architecture
from fengwu_ghr.catalogue import create_model
from fengwu_ghr.errors import InputError, UsageError
from fengwu_ghr.grid import product_grid
from fengwu_ghr.progress import Silence
from fengwu_ghr.training import sources
from fengwu_ghr.training.evidence import EvidenceSettings, baseline_bias, initial_dates, score
from fengwu_ghr.training.members import restart_path
from fengwu_ghr.training.reference import ReferenceForecasts
from fengwu_ghr.training.sources import InitialDate
from fengwu_ghr.training.specs import SourceSpec
from fengwu_ghr.training.tables import Tables
from fengwu_ghr.training.world import STEP, World, chunk_path, coarse_path
from fengwu_ghr.variables import HEADLINE
from fengwu_ghr.verify import metrics
from fengwu_ghr.verify.statistics import DatedSums

SETTINGS = EvidenceSettings(
    dates=9,
    spacing_days=1,
    lead_steps=2,
    spectra_steps=(2,),
    truncation=20,
    harmonics=0,
    workers=1,
    bias_dates=2,
)
PERSISTENCE = SourceSpec("persistence", "(a) persistence", "persistence")
CLIMATOLOGY = SourceSpec("climatology", "(b) climatology", "climatology")
AREAS = product_grid(20).cell_areas()


def with_restarts(world: World) -> World:
    """Restarts at 00 UTC, as far as evidence looks at them: it asks where they are."""
    for split in ("train", "test"):
        for series in world.series(split):
            for valid_time in series.times:
                if valid_time.hour == 0:
                    restart_path(world.folder / f"member-{series.member}", valid_time).touch()
    return world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return with_restarts(tiny_world(tmp_path_factory.mktemp("world") / "world", days=3))


@pytest.fixture(scope="module")
def scored(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tables]]:
    folder = tmp_path_factory.mktemp("evidence")
    return folder, score(world, [PERSISTENCE, CLIMATOLOGY], SETTINGS, folder, Silence())


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.npz"))}


class StopAfter(Silence):
    """Ctrl-C once so many dates of a source are done."""

    def __init__(self, title: str, dates: int) -> None:
        self.wanted, self.title = (title, dates), ""

    def begin(self, title: str, done: int, total: int) -> None:
        self.title = title

    def stepped(self, done: int, facts: Mapping[str, float]) -> None:
        if (self.title, done) == self.wanted:
            raise KeyboardInterrupt


# Which dates


def test_dates_have_restarts_and_truth_at_every_lead(world: World) -> None:
    """The test series has states of 12 times, the restarts at 00 UTC are its 4th, 8th and 12th."""
    dates = initial_dates(world, SETTINGS)
    assert dates == [InitialDate("test", 0, 3), InitialDate("test", 0, 7)]
    assert initial_dates(world, SETTINGS.model_copy(update={"lead_steps": 8})) == dates[:1]
    assert initial_dates(world, SETTINGS.model_copy(update={"spacing_days": 2})) == dates[:1]
    assert initial_dates(world, SETTINGS, count=1) == dates[:1]
    train = initial_dates(world, SETTINGS, split="train")
    assert [(date.series, date.index) for date in train] == [(0, 3), (0, 7), (1, 3), (1, 7)]
    assert initial_dates(world, SETTINGS, split="train", count=2) == [train[0], train[2]]


def test_without_any_date_it_says_so(world: World, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no test series .* has a restart with 9 steps of truth behind it"):
        initial_dates(world, SETTINGS.model_copy(update={"lead_steps": 9}))


# What the tables hold


def test_tables_are_complete(world: World, scored: tuple[Path, dict[str, Tables]]) -> None:
    for name, tables in scored[1].items():
        starts = [(1, datetime(2000, 9, 2)), (1, datetime(2000, 9, 3))]
        assert list(tables.everywhere.starts) == list(tables.above_ground.starts) == starts, name
        assert tables.everywhere.leads == tables.above_ground.leads == (STEP, 2 * STEP)
        assert tables.spectra.leads == tables.truncated.leads == (2 * STEP,)
        assert tables.everywhere.stacked().shape == (2, 2, 69)
        assert tables.truncated.channels == tables.spectra.channels == HEADLINE
        assert tables.spectra.stacked().shape == (2, 1, 9, 100)
        loaded = Tables.load(scored[0] / name, tables.above_ground.channels, world)
        assert loaded.everywhere.entries.keys() == tables.everywhere.entries.keys()


def test_scores_are_those_of_the_fields(world: World, scored: tuple[Path, dict[str, Tables]]) -> None:
    """Persistence of z500 over 12 hours, and climatology, summed up here."""
    series, channel = world.series("test")[0], world.channels.index("z500")
    persistence, climatology = (
        scored[1][name].everywhere.stacked() for name in ("persistence", "climatology")
    )
    pairs = [(series.fine(start)[channel], series.fine(start + 2)[channel]) for start in (3, 7)]
    errors = [np.sum((begun.astype(float) - real) ** 2 * AREAS) for begun, real in pairs]
    assert metrics.rmse(persistence)[1, channel] == pytest.approx(np.sqrt(np.mean(errors)), rel=1e-6)
    train = [s.fine(i)[channel].astype(float) for s in world.series("train") for i in range(len(s))]
    errors = [np.sum((np.mean(train, axis=0) - real) ** 2 * AREAS) for _, real in pairs]
    assert metrics.rmse(climatology)[1, channel] == pytest.approx(np.sqrt(np.mean(errors)), rel=1e-4)
    np.testing.assert_allclose(
        metrics.rmse(climatology), metrics.rmse_of_climatology(persistence), rtol=1e-12
    )


def test_points_below_ground_are_left_out(world: World, scored: tuple[Path, dict[str, Tables]]) -> None:
    """The mountain is 3 km high; heights of levels are those of the training mean."""
    train = [s.fine(i).astype(float) for s in world.series("train") for i in range(len(s))]
    heights = np.mean(train, axis=0)[: len(world.channels.names)]
    table = scored[1]["persistence"].above_ground
    shares = dict(zip(table.channels, table.stacked().weight[0, 0]))
    for level in (1000, 850, 700, 500):
        above = heights[world.channels.index(f"z{level}")] > world.orography
        for variable in "zquvt":
            expected = np.sum(AREAS[above])
            assert shares.get(f"{variable}{level}", 1.0) == pytest.approx(expected, abs=1e-6)
    assert {"z1000", "t850", "q850"} <= set(shares)
    assert not {"z500", "t50", "2t", "msl"} & set(shares)
    series, row = world.series("test")[0], world.channels.index("t850")
    above = heights[world.channels.index("z850")] > world.orography
    error = (series.fine(3)[row].astype(float) - series.fine(4)[row]) ** 2 * AREAS
    found = table.entries[table.starts[0], STEP][table.channels.index("t850")].mean("squared_error")
    assert found == pytest.approx(error[above].sum() / AREAS[above].sum(), rel=1e-6)


def test_truncated_scores_are_those_of_large_scales(scored: tuple[Path, dict[str, Tables]]) -> None:
    """By Parseval: the power of the error at total wavenumbers up to 20."""
    tables = scored[1]["persistence"]
    spectra = tables.spectra.stacked().sums
    errors = spectra["forecast_power"] + spectra["truth_power"] - 2 * spectra["cross_power"]
    for name in ("z500", "t850", "msl"):
        row = HEADLINE.index(name)
        expected = np.sqrt(errors[:, :, row, :21].sum(axis=-1).mean(axis=0))
        np.testing.assert_allclose(metrics.rmse(tables.truncated.stacked())[:, row], expected, rtol=1e-3)


def test_a_source_may_have_fewer_dates(world: World, scored: tuple[Path, dict[str, Tables]]) -> None:
    folder, _ = scored
    few = replace(PERSISTENCE, name="few", dates=1)
    tables = score(world, [few], SETTINGS, folder, Silence())["few"]
    assert tables.everywhere.starts == ((1, datetime(2000, 9, 2)),)


# Nothing is computed twice


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The dates that persistence is asked for."""
    dates: list[int] = []
    states = sources.Persistence.states

    def counted(self: sources.Persistence, date: InitialDate, steps: int) -> Iterator[np.ndarray]:
        dates.append(date.index)
        return states(self, date, steps)

    monkeypatch.setattr(sources.Persistence, "states", counted)
    return dates


def test_a_stopped_evaluation_goes_on(
    world: World, scored: tuple[Path, dict[str, Tables]], asked: list[int], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        score(world, [PERSISTENCE], SETTINGS, tmp_path, StopAfter("persistence", 1))
    assert asked == [3]
    score(world, [PERSISTENCE], SETTINGS, tmp_path, Silence())
    assert asked == [3, 7]
    score(world, [PERSISTENCE], SETTINGS, tmp_path, Silence())
    assert asked == [3, 7]
    assert bytes_of(tmp_path / "persistence") == bytes_of(scored[0] / "persistence")


def test_a_date_that_was_being_written_is_written_again(
    world: World,
    scored: tuple[Path, dict[str, Tables]],
    asked: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process dies when three of the four tables hold the second date."""
    save, saved = DatedSums.save, []

    def dying(table: DatedSums, path: Path) -> None:
        saved.append(path.name)
        if saved.count("everywhere.npz") == 2:
            raise KeyboardInterrupt
        save(table, path)

    with monkeypatch.context() as patch:
        patch.setattr(DatedSums, "save", dying)
        with pytest.raises(KeyboardInterrupt):
            score(world, [PERSISTENCE], SETTINGS, tmp_path, Silence())
    assert len(DatedSums.load(tmp_path / "persistence" / "spectra.npz").starts) == 2
    score(world, [PERSISTENCE], SETTINGS, tmp_path, Silence())
    assert asked == [3, 7, 7]
    assert bytes_of(tmp_path / "persistence") == bytes_of(scored[0] / "persistence")


def test_two_workers_find_what_one_finds(
    world: World, scored: tuple[Path, dict[str, Tables]], tmp_path: Path
) -> None:
    score(world, [PERSISTENCE], SETTINGS.model_copy(update={"workers": 2}), tmp_path, Silence())
    assert bytes_of(tmp_path / "persistence") == bytes_of(scored[0] / "persistence")


def test_tables_of_other_settings_are_not_taken_for_these(
    world: World, scored: tuple[Path, dict[str, Tables]]
) -> None:
    longer = SETTINGS.model_copy(update={"lead_steps": 3})
    with pytest.raises(
        UsageError, match=r"persistence began with other settings: scores\.lead_steps was 2, is 3"
    ):
        score(world, [PERSISTENCE], longer, scored[0], Silence())
    # How many dates, and how many at once, may change.
    fewer = SETTINGS.model_copy(update={"dates": 1, "workers": 2})
    tables = score(world, [PERSISTENCE], fewer, scored[0], Silence())["persistence"]
    assert tables.everywhere.starts == tables.truncated.starts == ((1, datetime(2000, 9, 2)),)
    again = score(world, [PERSISTENCE], SETTINGS, scored[0], Silence())["persistence"]
    assert len(again.everywhere.starts) == 2, "what was scored is not lost"
    cut = SETTINGS.model_copy(update={"truncation": 10})
    with pytest.raises(UsageError, match=r"scores\.truncation was 20, is 10"):
        score(world, [PERSISTENCE], cut, scored[0], Silence())


def test_tables_of_another_model_are_not_taken_for_those_of_this(world: World, tmp_path: Path) -> None:
    """The checkpoint was trained anew in the same folder."""
    sizes: dict[str, Any] = {"width": 16, "heads": 2, "decoder_width": 16, "depth": 2}
    shape = architecture("ghr-tiny", scale=20, lora_steps=0, res_after=(), **sizes)
    spec = SourceSpec("coarse", "(c)", "coarse", tmp_path / "model", dates=1)
    create_model(shape, output=tmp_path / "model", init="zero")
    score(world, [spec], SETTINGS, tmp_path / "evidence", Silence())
    (tmp_path / "model").rename(tmp_path / "old")
    create_model(shape, output=tmp_path / "model", init="random")
    with pytest.raises(
        UsageError, match=r"coarse began with other settings: source\.checkpoint was .*, is .*remove it"
    ):
        score(world, [spec], SETTINGS, tmp_path / "evidence", Silence())


# What is refused


def test_a_climatology_that_saw_the_test_dates_is_refused(tmp_path: Path) -> None:
    """The test series of member 0 is a training series too."""
    world = tiny_world(tmp_path / "world", days=3)
    train = chunk_path(tmp_path / "world" / "member-0", "train", datetime(2000, 1, 1, 6))
    test = chunk_path(tmp_path / "world" / "member-0", "test", datetime(2000, 1, 1, 6))
    for path, seen in ((train, test), (coarse_path(train), coarse_path(test))):
        seen.symlink_to(path)
    with_restarts(world)
    with pytest.raises(InputError, match=r"climatology overlaps the verified dates: .* 2000-01-02 00:00"):
        score(world, [PERSISTENCE], SETTINGS, tmp_path / "evidence", Silence())
    assert not (tmp_path / "evidence" / "persistence").exists()


def test_settings_that_cannot_be_are_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="spectra_steps must hold a step from 1 to lead_steps = 8"):
        EvidenceSettings(lead_steps=8, spectra_steps=(20, 40))
    with pytest.raises(UsageError, match=r"truncation must lie below the 100 total wavenumbers .* got 100"):
        score(world, [PERSISTENCE], SETTINGS.model_copy(update={"truncation": 100}), tmp_path, Silence())


# The numerical baseline


@pytest.fixture
def high_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the simulator: the truth, one standard deviation too high and one more with every step."""

    def forecast(
        self: ReferenceForecasts, member: int, initial_time: datetime, *, hours: int
    ) -> Iterator[np.ndarray]:
        world = self._world
        series = next(
            s
            for split in ("train", "test")
            for s in world.series(split)
            if s.member == member and initial_time in s.times
        )
        begun = series.times.index(initial_time)
        for step in range(1, hours // 6 + 1):
            yield series.fine(begun + step) + step * world.statistics.normalisation.std[:, None, None]

    monkeypatch.setattr(ReferenceForecasts, "forecast", forecast)


def test_the_bias_of_the_baseline_is_its_mean_error_on_training_dates(
    world: World, high_reference: None, tmp_path: Path
) -> None:
    raw = SourceSpec("numerical", "(e)", "numerical", truncation=21)
    path = baseline_bias(world, raw, SETTINGS, tmp_path, Silence())
    bias = np.load(path)
    assert bias.shape == (2, 69, 101, 200)
    std = world.statistics.normalisation.std[:, None, None]
    for step in (1, 2):
        np.testing.assert_allclose(bias[step - 1] / std, step, atol=0.05)
    before = path.stat().st_mtime_ns
    assert baseline_bias(world, raw, SETTINGS, tmp_path, Silence()) == path
    assert path.stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="bias_dates was 2, is 3"):
        baseline_bias(world, raw, SETTINGS.model_copy(update={"bias_dates": 3}), tmp_path, Silence())
    corrected = replace(raw, name="corrected", bias=path)
    tables = score(world, [raw, corrected], SETTINGS, tmp_path, Silence())
    rmse = {name: metrics.rmse(table.everywhere.stacked()) / std[:, 0, 0] for name, table in tables.items()}
    np.testing.assert_allclose(rmse["numerical"], [[1] * 69, [2] * 69], rtol=0.01)
    dry = [not name.startswith("q") for name in world.channels.names]
    assert rmse["corrected"][:, dry].max() < 0.02
