"""The verdict on tables made by hand: what is won, what is lost, what does not count; and the report of it."""

import re
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from fengwu_ghr.config import read_settings
from fengwu_ghr.training import pictures
from fengwu_ghr.training.chain import ChainSettings
from fengwu_ghr.training.levels import SIGMA
from fengwu_ghr.training.report import Report
from fengwu_ghr.training.specs import SourceSpec
from fengwu_ghr.training.tables import Tables
from fengwu_ghr.training.verdict import (
    Comparison,
    against_all,
    headline_table,
    resolved_channels,
    spectra_table,
    truncated_table,
)
from fengwu_ghr.training.world import World
from fengwu_ghr.variables import HEADLINE, channel_set, reading_units
from fengwu_ghr.verify import metrics
from fengwu_ghr.verify.spectra import POWERS
from fengwu_ghr.verify.statistics import ANOMALIES, ERRORS, DatedSums, Sums

CHANNELS = channel_set("ghr-69")
DATES, LEADS = 6, 4
GROUND = ("t1000", "t850")
CLIMATE = 4.0
"""The squared error of climatology, of every target."""
CONFIGS = Path(__file__).parents[1] / "configs"


def sums_of(squared_error: np.ndarray, activity: np.ndarray | float = 1.0) -> Sums:
    """Of one forecast: this squared error, this activity ratio, of channels."""
    shape = squared_error.shape
    values = dict.fromkeys(ERRORS + ANOMALIES, np.zeros(shape)) | {
        "squared_error": squared_error,
        "squared_truth_anomaly": np.full(shape, CLIMATE),
        "squared_forecast_anomaly": np.full(shape, CLIMATE * np.square(activity)),
        "anomaly_product": np.full(shape, CLIMATE * 0.5 * activity),
    }
    return Sums(np.ones(shape), values)


def tables_of(
    rmse: float | np.ndarray,
    *,
    activity: float | np.ndarray = 1.0,
    above_ground: float | None = None,
    dates: int = DATES,
    spread: float = 0.0,
    seed: int = 0,
) -> Tables:
    """RMSE by (lead, channel), the same on every date but for `spread`; another one above ground where given."""
    errors, ratio = (np.broadcast_to(values, (LEADS, 69)) for values in (rmse, activity))
    rng = np.random.default_rng(seed)
    everywhere = DatedSums(CHANNELS.names, "1p8")
    above = DatedSums(GROUND, "1p8, above ground")
    spectra, truncated = DatedSums(HEADLINE, "by total wavenumber"), DatedSums(HEADLINE, "truncated")
    for date in range(dates):
        begun = datetime(2000, 1, 1) + timedelta(days=3 * date)
        for step in range(LEADS):
            lead = timedelta(hours=6 * (step + 1))
            factor = np.exp(spread * rng.standard_normal(69))
            everywhere.add(begun, lead, sums_of(errors[step] ** 2 * factor, ratio[step]))
            if above_ground is not None:
                above.add(begun, lead, sums_of(np.full(len(GROUND), above_ground**2)))
            if step == LEADS - 1:
                spectra.add(begun, lead, waves())
                truncated.add(begun, lead, sums_of(np.full(len(HEADLINE), 0.25)))
    return Tables(everywhere, above, spectra, truncated)


def waves() -> Sums:
    """All the power of the truth at wavenumbers up to 30, a quarter beyond, where nothing is in its place."""
    large = np.broadcast_to(np.arange(100) <= 30, (len(HEADLINE), 100))
    powers = np.where(large, 2.0, 0.5), np.full(large.shape, 2.0), np.where(large, 2.0, 0.0)
    return Sums(np.ones(large.shape), dict(zip(POWERS, powers)))


def compared(ours: Tables, theirs: Tables, *persisted: str) -> Comparison:
    counted = ~np.isin(CHANNELS.names, persisted)
    return Comparison(ours, theirs, CHANNELS, counted, counted & resolved_channels(CHANNELS, SIGMA))


def by_channel(default: float, **others: float) -> np.ndarray:
    """(lead, channel), the same at every lead; `_2t` stands for 2t."""
    values = np.full((LEADS, 69), default)
    for name, value in others.items():
        values[:, CHANNELS.index(name.removeprefix("_"))] = value
    return values


# Shares


def test_targets_are_won_by_the_smaller_error() -> None:
    """Of 69 channels at 4 leads: z500 lost at all of them, t850 at the last two, u50 a tie."""
    ours = by_channel(1.0, z500=3.0, u50=2.0)
    ours[2:, CHANNELS.index("t850")] = 3.0
    comparison = compared(tables_of(ours), tables_of(2.0))
    assert comparison.shares()["all"] == metrics.Share(276, 276 - 4 - 2 - 4, 0)
    assert comparison.lost() == ["z500 (4)", "u50 (4)", "t850 (2)"]
    assert comparison.share_from(18) == metrics.Share(138, 138 - 2 - 2 - 2, 0)


def test_persisted_channels_are_in_no_share() -> None:
    comparison = compared(tables_of(by_channel(1.0, q50=9.0, q100=9.0)), tables_of(2.0), "q50", "q100")
    assert comparison.shares()["all"] == metrics.Share(4 * 67, 4 * 67, 0)
    assert comparison.lost() == []
    assert comparison.share_from(6).targets == 4 * 67
    assert float(comparison.interval.lower) == 1


def test_wins_of_smooth_forecasts_are_starred() -> None:
    """A lost target has no star, however smooth."""
    smooth = by_channel(1.0, z500=0.79, t850=0.81, u850=0.5)
    comparison = compared(tables_of(by_channel(1.0, u850=3.0), activity=smooth), tables_of(2.0))
    assert comparison.shares()["all"] == metrics.Share(276, 272, 4)


def test_resolved_levels_are_those_next_to_the_simulators() -> None:
    """Eight levels of five variables, and four fields near the surface."""
    resolved = resolved_channels(CHANNELS, SIGMA)
    levels = {c.level for c, taken in zip(CHANNELS.channels, resolved) if taken and c.level}
    assert levels == {50, 100, 200, 300, 500, 700, 850, 925}
    assert resolved.sum() == 8 * 5 + 4
    ours = by_channel(3.0, **{f"t{level}": 1.0 for level in (1000, 600, 500)}, _2t=1.0)
    shares = compared(tables_of(ours), tables_of(2.0)).shares()
    assert (shares["all"].won, shares["resolved"].won) == (16, 8)
    assert shares["resolved"].targets == 4 * 44


def test_resolved_targets_are_compared_above_ground() -> None:
    """t850 is lost everywhere and won where there is air; t1000 is extrapolated."""
    ours = tables_of(by_channel(1.0, t850=3.0, t1000=3.0), above_ground=1.0)
    shares = compared(ours, tables_of(2.0, above_ground=2.0)).shares()
    assert shares["all"].won == 276 - 8
    assert shares["resolved"].won == shares["resolved"].targets == 4 * 44
    shares = compared(ours, tables_of(2.0, above_ground=0.5)).shares()
    assert shares["resolved"].won == 4 * 43


def test_skilful_targets_are_those_where_one_beats_climatology() -> None:
    """Climatology's RMSE is 2: both are worse in 67 channels, in t850 we alone are better, in z500 the other."""
    ours, theirs = by_channel(3.0, t850=1.0, z500=2.5), by_channel(4.0, t850=3.0, z500=1.5)
    shares = compared(tables_of(ours), tables_of(theirs)).shares()
    assert shares["skilful"] == metrics.Share(8, 4, 0)
    assert shares["all"].won == 276 - 4
    assert "skilful" not in compared(tables_of(3.0), tables_of(4.0)).shares()


def test_a_forecast_that_is_not_finite_loses() -> None:
    broken = by_channel(1.0, z500=np.nan, t850=np.inf)
    assert compared(tables_of(broken), tables_of(2.0)).shares()["all"].won == 276 - 8
    assert compared(tables_of(2.0), tables_of(broken)).shares()["all"].won == 8
    assert compared(tables_of(2.0), tables_of(broken)).lost()[0] == "z1000 (4)"


def test_a_source_of_fewer_dates_is_compared_on_these() -> None:
    """On the first three dates we are better, on the others much worse."""
    ours = tables_of(1.0, dates=6)
    for (start, lead), sums in list(ours.everywhere.entries.items()):
        if start.initial_time > datetime(2000, 1, 8):
            ours.everywhere.entries[start, lead] = sums_of(100 * sums.sums["squared_error"])
    assert compared(ours, tables_of(2.0, dates=6)).shares()["all"].won == 0
    assert compared(ours, tables_of(2.0, dates=3)).shares()["all"].won == 276


def test_the_interval_holds_the_share() -> None:
    """Of errors that vary from date to date, about as large on either side."""
    comparison = compared(tables_of(1.0, spread=1.0, seed=1), tables_of(1.05, spread=1.0, seed=2))
    share, interval = comparison.shares()["all"].share, comparison.interval
    assert 0.2 < share < 0.9
    assert 0 < interval.lower < share < interval.upper < 1
    again = compared(tables_of(1.0, spread=1.0, seed=1), tables_of(1.05, spread=1.0, seed=2)).interval
    assert (again.lower, again.upper) == (interval.lower, interval.upper)


# Tables


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_headline_shows_the_scores_of_the_metrics() -> None:
    tables = {"ours": tables_of(by_channel(1.0, z500=98.0665, q700=0.002, msl=300), activity=0.7)}
    lines = [cells(line) for line in headline_table(tables, {"ours": "Ours"}, CHANNELS)]
    assert lines[0] == ["channel, score", "source", "6 h", "24 h"]
    found = {line[0]: line[1:] for line in lines[2:]}
    assert len(found) == 3 * len(HEADLINE)
    assert found["z500 RMSE"] == ["Ours", "10", "10"]
    assert found["q700 RMSE"] == ["Ours", "2", "2"]
    assert found["msl RMSE"] == ["Ours", "3", "3"]
    assert found["10u RMSE"] == found["2t RMSE"] == ["Ours", "1", "1"]
    assert found["t850 ACC"] == ["Ours", "0.5", "0.5"]
    assert found["t850 activity"] == ["Ours", "0.7", "0.7"]
    truncated = [cells(line) for line in truncated_table(tables, {"ours": "Ours"})]
    assert truncated[0] == ["source", "lead", *HEADLINE]
    assert truncated[2][:4] == ["Ours", "24 h", f"{0.5 / 9.80665:.3g}", "0.5"]


def test_units_are_those_of_forecasters() -> None:
    assert [reading_units(name)[1] for name in ("2t", "10u", "u50", "t850")] == [1, 1, 1, 1]
    assert reading_units("z50")[1] == pytest.approx(1 / 9.80665)
    assert (reading_units("q1000"), reading_units("msl")) == (("g kg-1", 1000), ("hPa", 0.01))


def test_spectra_are_read_at_grid_lengths() -> None:
    """Of a 1.8° grid: eight lengths are wavenumber 25, four are 50."""
    lines = [cells(line) for line in spectra_table({"ours": tables_of(1.0)}, {"ours": "Ours"})]
    assert len(lines) == 2 + len(HEADLINE)
    assert lines[2] == ["z500", "Ours", "24 h", "30", "1.00", "0.25"]


# The report


@pytest.fixture(scope="module")
def report(world: World, tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("transfer")
    settings = read_settings(
        ChainSettings, CONFIGS / "transfer_smoke.toml", overrides=[f"folder={folder}", "seeds=[0, 1]"]
    )
    settings.evidence_folder.mkdir()
    tables = {
        "smoke-0": tables_of(by_channel(1.0, z500=3.0), above_ground=1.0),
        "smoke-1": tables_of(1.1, above_ground=1.0),
        "persistence": tables_of(2.0, above_ground=2.0),
        **{f"detailed-{seed}": tables_of(1.5, above_ground=2.0) for seed in (0, 1)},
        **{f"zero-shot-{seed}": tables_of(2.5, above_ground=2.0) for seed in (0, 1)},
        "smoke-sharp-0": tables_of(1.2, above_ground=1.0),
        "smoke-sharp-1": tables_of(1.2, above_ground=1.0),
        "twin": tables_of(0.1, above_ground=0.1, dates=2),
    }
    evidence = {
        name: (SourceSpec(name, name.title(), "persistence"), table) for name, table in tables.items()
    }
    return Report(settings, world, evidence, "python -m something")


def test_the_report_is_markdown_with_the_shares(report: Report, world: World) -> None:
    text = report.text()
    blocks = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(blocks) == 2 * 3 + 3
    for block in blocks:
        lines = block.splitlines()
        assert set(lines[1]) <= set("|-")
        assert {line.count("|") for line in lines} == {lines[0].count("|")}
    share = against_all(world, report.tables, "smoke-0")["persistence"].shares()["all"]
    assert share.won == share.targets - 4
    assert f"| Persistence | {share} |" in text
    assert "| z500 (4) |" in text
    assert "| none |" in text
    assert "| Twin (dates: 2) | 0.0% " in text
    assert text.index("won by Smoke-0") < text.index("won by Smoke-1") < text.index("## Scores")


def test_the_report_says_where_it_comes_from_and_what_came(report: Report, world: World) -> None:
    text = report.text()
    for words in (
        "dates: 6, ",
        "seeds: 0, 1",
        "`python -m something`",
        f"no share: {', '.join(world.statistics.persisted)}",
        "| z500 better than climatology to 24 h | to 0 h of 24 h | missed |",
        "| all steps to 24 h finite | yes | met |",
        "| global mean msl, bias | +0.00 hPa at 6 h, +0.00 hPa at 24 h |  |",
        "grid lengths at 24 h | 0 of 9 channels; z500: 0.25 ... 1.00 | missed |",
        "total wavenumber 36",
    ):
        assert words in text
    targets = 4 * (69 - len(world.statistics.persisted))
    won = targets - 4
    assert f"| (c1): 91.3% of all targets | {won / targets:.1%} ({won} of {targets}) | met |" in text
    later = f"{won / targets:.1%} ({won * 3 // 4} of {targets * 3 // 4})"
    assert f"| (a): 95% of targets from 12 h on | {later} | met |" in text


def test_the_report_lies_beside_its_pictures(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    path = report.write()
    assert path == report.settings.folder / "evidence" / "verdict.md"
    for name in ("scores.png", "spectra.png"):
        assert f"]({name})" in path.read_text()
        assert (path.parent / name).read_bytes().startswith(b"\x89PNG")
        (path.parent / name).unlink()
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    assert ".png" not in report.write().read_text()
    assert not list(path.parent.glob("*.png"))


def test_sources_do_not_look_alike() -> None:
    names = [f"source {i}" for i in range(20)]
    looks = pictures._looks(names, "source 7")
    assert len({(look["color"], look["linestyle"]) for look in looks.values()}) == 20
    assert looks["source 7"]["color"] == "black"


def test_a_model_that_was_not_scored_is_an_error(report: Report, world: World) -> None:
    with pytest.raises(ValueError, match="smoke-2 was not scored; there are smoke-0, smoke-1"):
        against_all(world, report.tables, "smoke-2")
