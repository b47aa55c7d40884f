"""The demonstration: the embedded world is whole, its forecast beats persistence, and embedding is repeatable."""

import shutil
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from worlds import tiny_world

from fengwu_ghr import demo
from fengwu_ghr.catalogue import resolve_model, verify_model
from fengwu_ghr.checkpoint import Checkpoint
from fengwu_ghr.config import InputSection
from fengwu_ghr.forecast import run_forecast
from fengwu_ghr.grib.decode import plan_analysis, read_analysis
from fengwu_ghr.grib.encode import index_path
from fengwu_ghr.grid import product_grid
from fengwu_ghr.progress import Silence
from fengwu_ghr.store import open_run
from fengwu_ghr.variables import HEADLINE, STANDARD_GRAVITY, channel, channel_set

SMOKE = Path(__file__).parents[1] / "configs" / "transfer_smoke.toml"


def write_nothing(path: Path) -> None:
    for made in (path, index_path(path)):
        made.write_bytes(b"")


class Silent:
    def note(self, text: str) -> None: ...
    def begin(self, done: int, total: int) -> None: ...
    def stepped(self, done: int, lead: timedelta) -> None: ...


def test_what_is_embedded_is_small_whole_and_fits_together() -> None:
    checkpoint = verify_model(demo.MODEL)
    analysis = read_analysis(plan_analysis([demo.EMBEDDED / demo.ANALYSIS], channel_set("ghr-69").channels))
    truth = plan_analysis(
        [demo.EMBEDDED / demo.TRUTH],
        [channel(n) for n in HEADLINE],
        initial_time=analysis.valid_time + timedelta(days=10),
    )
    assert checkpoint.card.trained
    assert checkpoint.grid.scale == 20
    assert len(truth.channels) == len(HEADLINE)
    embedded = [path for path in demo.EMBEDDED.rglob("*") if path.is_file()]
    nowcast = [path for path in embedded if "nowcast" in path.relative_to(demo.EMBEDDED).parts]
    world = [*(set(embedded) - set(nowcast)), *resolve_model(demo.MODEL).iterdir()]
    assert sum(path.stat().st_size for path in world) <= 30 * 2**20
    assert sum(path.stat().st_size for path in nowcast) <= 15 * 2**20


def test_the_forecast_of_a_day_beats_persistence_in_every_scored_channel(tmp_path: Path) -> None:
    run_forecast(demo.demo_config(tmp_path, lead_time_hours=24), reporter=Silent())
    verified = demo.verify_demo(tmp_path, progress=Silence())
    rmse = verified.scores["rmse"].sel(region="globe", lead=24)
    assert rmse["channel"].values.tolist() == list(HEADLINE)
    assert rmse["source"].values.tolist() == ["forecast", "numerical", "persistence"]
    assert (rmse.sel(source="forecast") < rmse.sel(source="persistence")).all()
    assert float(verified.scores["acc"].sel(source="forecast", channel="z500", region="globe", lead=24)) > 0.9
    assert (tmp_path / "verification" / "index.html").exists()


def test_embedding_writes_what_the_demonstration_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines import embed

    world = tiny_world(tmp_path / "world", days=15)
    series = world.series("train")[0]
    monkeypatch.setattr(embed, "packaged_folder", lambda: tmp_path / "models")
    for _ in range(2):
        made = embed.embed_model(resolve_model(demo.MODEL), split="test")
    embed.write_truth(world, series, 3, tmp_path / "truth.grib2")
    assert Checkpoint.open(made).architecture == Checkpoint.open(resolve_model(demo.MODEL)).architecture
    for day in (1, 10):
        valid_time = series.times[3] + timedelta(days=day)
        found = read_analysis(
            plan_analysis([tmp_path / "truth.grib2"], [channel("z500")], initial_time=valid_time)
        )
        real = series.fine(3 + 4 * day)[world.channels.names.index("z500")]
        np.testing.assert_allclose(found.fields[channel("z500")].values, real, atol=np.ptp(real) / 2**9)


def test_the_command_embeds_what_a_chain_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines import embed

    world = tiny_world(tmp_path / "world", days=3)
    shutil.copytree(resolve_model(demo.MODEL), tmp_path / "chain" / "seed-0" / "smoke" / "model")
    monkeypatch.setattr(embed, "packaged_folder", lambda: tmp_path / "models")
    monkeypatch.setattr(demo, "EMBEDDED", tmp_path / "embedded")
    # The tiny world keeps no restarts, from which the simulator could begin.
    monkeypatch.setattr(embed, "restart_indices", lambda world, series: list(range(len(series))))
    monkeypatch.setattr(embed, "write_numerical", lambda *given, **more: write_nothing(given[3]))
    monkeypatch.setattr(embed, "write_normals", lambda *given: tmp_path)
    asked = [str(SMOKE), f"folder={tmp_path / 'chain'}", f"simulate.folder={world.folder}"]
    assert embed.main(asked) == 3
    assert "no test series of" in capsys.readouterr().err
    monkeypatch.setattr(embed, "DAYS", 1)
    assert embed.main([*asked, "--split", "validation"]) == 0
    found = read_analysis(plan_analysis([demo.EMBEDDED / demo.ANALYSIS], world.channels.channels))
    assert found.valid_time == datetime(2000, 3, 2)
    assert verify_model(str(tmp_path / "models" / demo.MODEL)).card.name == demo.MODEL
    assert Checkpoint.open(tmp_path / "models" / demo.MODEL).card.provenance["analysis"] == "validation"


@pytest.mark.slow
def test_ten_days_from_a_real_analysis_stay_finite_and_on_earth(data_dir: Path, tmp_path: Path) -> None:
    """The model knows a simulated world only: nothing is said of skill."""
    real = data_dir / "gfs_2p5_26lev" / "gfs.t12z.pgrbf120.2p5deg.grib2"
    config = demo.demo_config(tmp_path).model_copy(update={"input": InputSection(files=(real,))})
    result = run_forecast(config, reporter=Silent())
    run = open_run(result.store).isel(time=0)
    assert run.sizes["prediction_timedelta"] == 41
    for name in run.data_vars:
        assert bool(np.isfinite(run[name]).all()), name
    areas = product_grid(20).cell_areas()
    height = run["z"].sel(level=500) / STANDARD_GRAVITY
    means = (height * areas).sum(("latitude", "longitude")).values
    assert np.abs(means - means[0]).max() < 100
    assert 4000 < float(height.min()) < float(height.max()) < 6400
    assert float(np.abs(run["u"]).max()) < 150
