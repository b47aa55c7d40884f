"""Verification from files to scores: forecasts of known error, gaps, other grids and units, what is done stays done."""

import os
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from verified import CHANNELS, GRID, HOUR, START, error_of, truth_at, write_analyses, write_run

from fengwu_ghr.config import VerifySection
from fengwu_ghr.errors import InputError, UsageError
from fengwu_ghr.grib.encode import GribEncoder, write_messages
from fengwu_ghr.grid import product_grid
from fengwu_ghr.layout import StorePlan
from fengwu_ghr.progress import Silence
from fengwu_ghr.store import RunStore
from fengwu_ghr.variables import channel
from fengwu_ghr.verify import pieces
from fengwu_ghr.verify.job import Verified, run_verification
from fengwu_ghr.verify.verification import plan_verification

DAY = timedelta(days=1)
DATES = [START, START + DAY, START + 2 * DAY]
LEADS = [timedelta(0), 6 * HOUR, 24 * HOUR, 48 * HOUR]
TIMES = [START + 6 * HOUR * i for i in range(4 * 5)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Analyses of five days, forecasts from three, and a baseline twice as wrong."""
    folder = tmp_path_factory.mktemp("verified")
    write_analyses(folder / "analyses.zarr", TIMES)
    write_run(folder / "run.zarr", DATES, LEADS)
    write_run(folder / "worse.zarr", DATES, LEADS, scale=2)
    return folder


def settings(world: Path, output: Path, **changes: Any) -> VerifySection:
    given = {
        "forecast": world / "run.zarr",
        "truth": world / "analyses.zarr",
        "baselines": {"worse": world / "worse.zarr"},
        "output": output,
    }
    return VerifySection.model_validate(given | changes)


def verified(world: Path, output: Path, **changes: Any) -> Verified:
    return run_verification(settings(world, output, **changes), progress=Silence())


def test_scores_are_those_of_the_known_error(world: Path, tmp_path: Path) -> None:
    scores = verified(world, tmp_path).scores
    assert scores["source"].values.tolist() == ["forecast", "worse", "persistence"]
    assert scores["lead"].values.tolist() == [6, 24, 48]
    for source, scale in (("forecast", 1), ("worse", 2)):
        for lead in LEADS[1:]:
            one = scores.sel(source=source, lead=lead / HOUR)
            for name in ("rmse", "mae", "bias"):
                # Values of geopotential are 5e4: float32 keeps three digits of an error of one.
                np.testing.assert_allclose(one[name].sel(channel="t850"), error_of(lead, scale), rtol=1e-4)
    vector = scores["vector_wind_rmse"].sel(source="forecast", lead=24, wind="wind850", region="globe")
    assert float(vector) == pytest.approx(np.sqrt(2), rel=1e-4)


def test_persistence_is_the_analysis_of_the_initial_time(world: Path, tmp_path: Path) -> None:
    scores = verified(world, tmp_path, channels=("z500",), regions=("globe",)).scores
    moved = [truth_at(d + DAY)[0].astype(float) - truth_at(d)[0] for d in DATES]
    expected = np.sqrt(np.mean([np.sum(m**2 * GRID.cell_areas()) for m in moved]))
    found = scores["rmse"].sel(source="persistence", lead=24, channel="z500", region="globe")
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_all_regions_are_there_and_a_box_of_ones_own(world: Path, tmp_path: Path) -> None:
    made = verified(world, tmp_path, boxes={"Alps": (50, 0, 40, 20)})
    regions = made.scores["region"].values.tolist()
    assert {"globe", "tropics", "Europe", "land", "sea", "Alps"} <= set(regions)
    np.testing.assert_allclose(
        made.scores["rmse"].sel(source="forecast", lead=24, channel="2t"), 1, rtol=1e-4
    )


def test_the_baseline_is_beaten_everywhere(world: Path, tmp_path: Path) -> None:
    made = verified(world, tmp_path, channels=("t850", "2t"))
    found = made.compared["worse"]
    assert found.share_better("globe") == 1
    np.testing.assert_allclose(found.relative[..., 0], -50, atol=0.1)
    assert found.count("globe") == (0, 0, 6), "three dates decide nothing"
    assert found.method == "too few dates"


def test_what_is_done_is_not_done_again(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = verified(world, tmp_path, last=DATES[1])
    done: list[pieces.Pair] = []
    monkeypatch.setattr(
        pieces, "score_pair", lambda made, pair, real=pieces.score_pair: (done.append(pair), real(made, pair))
    )
    second = verified(world, tmp_path)
    assert {time for time, _ in done} == {DATES[2]}
    assert first.scores["dates"].values.max() == 2
    assert second.scores["dates"].values.max() == 3
    done.clear()
    whole = verified(world, tmp_path / "whole")
    xr.testing.assert_identical(whole.scores.drop_attrs(), second.scores.drop_attrs())


def test_another_run_store_may_be_added(world: Path, tmp_path: Path) -> None:
    more = write_run(tmp_path / "more.zarr", [START + 3 * DAY], LEADS)
    given = {"baselines": {}, "channels": ("2t",)}
    verified(world, tmp_path / "out", **given)
    both = verified(world, tmp_path / "out", forecast=[world / "run.zarr", more], **given)
    assert both.scores["dates"].sel(source="forecast", lead=24) == 4


def test_a_forecast_that_changed_is_verified_again(world: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.zarr", DATES[:1], LEADS)
    changes = {"forecast": run, "baselines": {}, "channels": ("2t",)}
    before = verified(world, tmp_path / "out", **changes).scores["rmse"].sel(source="forecast", lead=24)
    os.rename(run, tmp_path / "old.zarr")
    write_run(run, DATES[:1], LEADS, scale=3)
    after = verified(world, tmp_path / "out", **changes).scores["rmse"].sel(source="forecast", lead=24)
    np.testing.assert_allclose(after, 3 * before, rtol=1e-4)


def test_an_output_of_another_verification_is_left_alone(world: Path, tmp_path: Path) -> None:
    verified(world, tmp_path, channels=("2t",))
    with pytest.raises(UsageError, match="holds a verification with other channels; give another --output"):
        verified(world, tmp_path, channels=("2t", "z500"))


def test_a_truth_with_gaps_leaves_those_forecasts_out(world: Path, tmp_path: Path) -> None:
    gaps = [time for time in TIMES if time != DATES[0] + DAY]
    truth = write_analyses(tmp_path / "gaps.zarr", gaps)
    plan = plan_verification(settings(world, tmp_path / "out", truth=truth))
    assert (DATES[0], DAY) not in plan.pairs
    assert (DATES[1], DAY) in plan.pairs
    # Valid at the gap: +24 h of the first date; the second begins there, and keeps its own forecasts.
    assert any("1 of 9 forecasts have no truth in gaps" in note for note in plan.notes)
    assert not any("persistence" in note for note in plan.notes), "forecasts hold their own analysis"


def test_a_coarser_truth_asks_for_its_grid(world: Path, tmp_path: Path) -> None:
    fine = product_grid(40)
    run = write_run(tmp_path / "fine.zarr", DATES[:1], LEADS, grid=fine)
    given = {"forecast": run, "baselines": {}}
    with pytest.raises(InputError, match="cannot be evaluated on the finer 3p6"):
        verified(world, tmp_path / "a", **given)
    made = verified(world, tmp_path / "b", **given, grid="7p2")
    assert "area means of 3p6" in made.scores.attrs["evaluation_grid"]
    assert float(made.scores["rmse"].sel(source="forecast", lead=24, channel="2t", region="globe")) < 2


def test_units_are_made_ours_or_refused(world: Path, tmp_path: Path) -> None:
    wrong = write_analyses(tmp_path / "wrong.zarr", TIMES, units={"2t": "degrees Ré"})
    with pytest.raises(
        InputError, match="units of 2m_temperature: 'degrees Ré' cannot be made 'K'; known are k, kelvin"
    ):
        verified(world, tmp_path / "a", truth=wrong)
    lying = write_analyses(tmp_path / "lying.zarr", TIMES, units={"2t": "degC"})
    with pytest.raises(InputError, match=r"2t .* plausible is 170 to 345; are its units as stated"):
        verified(world, tmp_path / "b", truth=lying)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"truth": "absent.zarr"}, InputError, "absent.zarr is not there"),
        ({"first": datetime(2021, 1, 1)}, InputError, "nothing can be verified"),
        (
            {"channels": ("q700",)},
            InputError,
            "forecast lacks q700; worse lacks q700; the truth analyses lacks q700",
        ),
        ({"regions": ("Atlantis",)}, UsageError, "no region is named 'Atlantis'"),
        ({"grid": "0p17"}, UsageError, "no grid is named '0p17'"),
        ({"thresholds": ("2t>=p95",)}, InputError, "needs a climatology that has this percentile"),
        ({"thresholds": ("tcc>=0.5",)}, InputError, "do not all hold tcc"),
        ({"baselines": {"persistence": "worse.zarr"}}, UsageError, "cannot be named 'persistence'"),
    ],
)
def test_mistakes_are_told(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: Any, error: type, words: str
) -> None:
    monkeypatch.chdir(world)
    with pytest.raises(error, match=words):
        verified(world, tmp_path, **changes)


def test_leads_that_are_not_committed_do_not_exist(world: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.zarr", DATES[:1], LEADS)
    manifest = next((run / "_manifest").glob("*.jsonl"))
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join(lines[:-1]) + "\n")
    with RunStore.open(run) as store:
        assert len(store.committed(DATES[0])) == 3
    plan = plan_verification(settings(world, tmp_path / "out", forecast=run, baselines={}))
    assert [lead for _, lead in plan.pairs] == LEADS[1:3]


def test_events_neighbourhoods_and_spectra_are_scored(world: Path, tmp_path: Path) -> None:
    made = verified(
        world,
        tmp_path,
        thresholds=("10ws>=8", "2t>=290"),
        neighbourhoods_km=(800.0, 3000.0),
        shown_hours=(24,),
    )
    s = made.scores
    assert s["event"].values.tolist() == ["10ws >= 8", "2t >= 290"]
    warm = s["event_frequency_bias"].sel(source="forecast", event="2t >= 290", region="globe")
    assert (warm.diff("lead") >= 0).all(), "the warmer, the more often"
    fss = s["fss"].sel(
        source="forecast", lead=48, region="globe", neighbourhood=["2t >= 290, 800 km", "2t >= 290, 3000 km"]
    )
    assert float(fss[0]) <= float(fss[1]) <= 1
    waves = s["coherence"].sel(source="forecast", shown_channel="t850", wavenumber=slice(1, 10))
    assert waves.min() > 0.99, "a constant error leaves the waves as they are"
    assert s["bias_map"].sel(source="forecast", shown_channel="t850").mean() == pytest.approx(1, rel=1e-3)
    assert set(s["shown_channel"].values) <= set(map(str, CHANNELS))


def test_stations_may_come_to_the_same_file(world: Path, tmp_path: Path) -> None:
    """As they do every day: what was scored stays, what is new is scored."""
    path = tmp_path / "stations.csv"
    head = "station,latitude,longitude,elevation,time,temperature\n"
    row = "{},{},20,5,{:%Y-%m-%dT%H:%M},290\n"
    path.write_text(head + row.format("Here", 10, DATES[0] + DAY))
    given = {"stations": path, "baselines": {}, "channels": ("2t",), "shown_hours": (24,)}
    first = verified(world, tmp_path / "out", last=DATES[0], **given).scores
    assert (
        first["station_reports"].sel(source="forecast", station_lead=24, measured="2t", region="globe") == 1
    )
    path.write_text(
        path.read_text() + row.format("Afar", -40, DATES[1] + DAY) + row.format("Here", 10, DATES[1] + DAY)
    )
    both = verified(world, tmp_path / "out", **given).scores
    assert both["station"].values.tolist() == ["Afar", "Here"]
    assert both["station_reports"].sel(source="forecast", station_lead=24, measured="2t", region="globe") == 3


def write_holes(path: Path, leads: Sequence[timedelta]) -> Path:
    """A run store of z500 from the first date, in which the last row of the first lead is missing."""
    with RunStore.create(path, StorePlan(CHANNELS[:1], GRID, (DATES[0],), tuple(leads)), {}) as store:
        store.begin_run(DATES[0], {})
        for lead in leads:
            writer = store.begin_lead(DATES[0], lead)
            values = truth_at(DATES[0] + lead)[0] + error_of(lead)
            values[-1] = np.nan if lead == leads[0] else values[-1]
            writer.write(CHANNELS[0], values)
            writer.commit()
    return path


def test_missing_values_are_left_out_and_counted(world: Path, tmp_path: Path) -> None:
    holes = write_holes(tmp_path / "holes.zarr", [24 * HOUR, 48 * HOUR])
    for _ in range(2):  # the second time from what was kept
        made = verified(world, tmp_path / "out", forecast=holes, baselines={})
        assert made.scores["lead"].values.tolist() == [48]
        assert "1 of 2 forecasts, or their truth, have missing values and are left out" in made.notes
        assert "forecast from 2020-06-01 00:00: z500 valid 2020-06-02 00:00 has 50 values" in made.notes
        np.testing.assert_allclose(
            made.scores["rmse"].sel(source="forecast", channel="z500"), error_of(48 * HOUR), rtol=1e-3
        )
    assert "50 values that are not finite" in (tmp_path / "out" / "index.html").read_text()


def test_nothing_but_missing_values_is_an_error(world: Path, tmp_path: Path) -> None:
    holes = write_holes(tmp_path / "holes.zarr", [24 * HOUR])
    with pytest.raises(InputError, match=r"z500 valid 2020-06-02 00:00 has 50 values .*--channels"):
        verified(world, tmp_path / "out", forecast=holes, baselines={})


def test_a_truth_with_missing_values_leaves_those_forecasts_out(world: Path, tmp_path: Path) -> None:
    truth = write_analyses(tmp_path / "truth.zarr", TIMES)
    with xr.open_zarr(truth, consolidated=False) as dataset:
        holes = dataset.load()
    holes["2m_temperature"].loc[{"time": np.datetime64(DATES[0] + DAY)}] = np.nan
    holes.to_zarr(truth, mode="w", consolidated=False)
    made = verified(world, tmp_path / "out", truth=truth, baselines={}, persistence=False)
    # Valid then: the first date at 24 h; no other pair.
    assert "1 of 9 forecasts, or their truth" in made.notes
    assert "truth.zarr: 2t of 2020-06-02 00:00 has 1300 values missing" in made.notes
    assert made.scores["dates"].sel(source="forecast").values.tolist() == [3, 2, 3]


def test_a_cluster_scores_the_same(world: Path, tmp_path: Path) -> None:
    from dask.distributed import LocalCluster

    alone = verified(world, tmp_path / "alone", channels=("2t",)).scores
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster:
        spread = verified(
            world, tmp_path / "spread", channels=("2t",), scheduler=cluster.scheduler_address
        ).scores
    xr.testing.assert_identical(alone.drop_attrs(), spread.drop_attrs())


def test_what_failed_at_first_is_not_in_the_way(world: Path, tmp_path: Path) -> None:
    """Neither settings that came to nothing, nor a file that a full disk cut short."""
    output = tmp_path / "out"
    with plan_verification(settings(world, output, channels=("2t",))) as plan:
        pieces.KeptSums(output).claim(plan.description())
    made = verified(world, output, channels=("t850",))
    assert made.scores["channel"].values.tolist() == ["t850"]
    [path, *_] = sorted((output / "sums").glob("*.npz"))
    path.write_bytes(path.read_bytes()[:100])
    again = verified(world, output, channels=("t850",))
    np.testing.assert_array_equal(again.scores["rmse"], made.scores["rmse"])


def test_reports_that_are_left_out_are_counted(world: Path, tmp_path: Path) -> None:
    """Beside those that no time and place can be found for, those far from the analysis; or that none can be used."""
    path = tmp_path / "stations.csv"
    rows = [f"S{i},10,{i},5,{DATES[0] + DAY:%Y-%m-%dT%H:%M},{t}" for i, t in enumerate((200, 210, 290, 299))]
    path.write_text("\n".join(["station,latitude,longitude,elevation,time,temperature", *rows]))
    scores = verified(world, tmp_path / "out", stations=path, channels=("2t",)).scores
    assert "2 2t more than 15 from the analysis" in scores.attrs["refused"]
    path.write_text(path.read_text().replace("2020", "2019"))
    made = verified(world, tmp_path / "other", stations=path, channels=("2t",))
    assert "no station reports within 30 min of a verified time; reports are from 2019" in made.notes


def test_a_forecast_is_not_its_own_truth(tmp_path: Path) -> None:
    encoder, z500 = GribEncoder(GRID), channel("z500")
    for lead in (timedelta(0), 6 * HOUR):
        message = encoder.encode(z500, truth_at(START + lead)[0], initial_time=START, lead=lead)
        write_messages(tmp_path / f"{lead / HOUR:g}.grib2", [(z500, message)])
    same = VerifySection(forecast=(tmp_path,), truth=(tmp_path,), output=tmp_path / "out")
    with pytest.raises(InputError, match="the forecast would be its own truth; give analyses with --truth"):
        plan_verification(same)


def test_the_table_shows_what_people_look_at(world: Path, tmp_path: Path) -> None:
    made = verified(world, tmp_path)
    shown = [row[0].split()[0] for row in made.rows]
    assert shown == ["z500", "t850", "u850", "v850", "2t", "10u", "10v"]
    assert made.more == "other scores, regions and leads"
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert lines[0].split(",")[5:7] == ["value", "units"]
    units = {tuple(line.split(",")[i] for i in (1, 2)): line.split(",")[6] for line in lines[1:]}
    assert units["rmse", "z500"] == "m2 s-2"
    assert units["vector_wind_rmse", "wind850"] == "m s-1"
