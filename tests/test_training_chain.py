"""The chain's settings fit together or are refused; its verbs find what earlier ones left, or say what to run."""

from pathlib import Path
from typing import Any

import pytest

from fengwu_ghr.config import read_settings
from fengwu_ghr.errors import InputError, UsageError
from fengwu_ghr.progress import Silence
from fengwu_ghr.training import chain
from fengwu_ghr.training.chain import ChainSettings, run_adapt, run_pretrain, sources_of
from fengwu_ghr.training.evidence import EvidenceSettings
from fengwu_ghr.training.specs import SourceSpec
from fengwu_ghr.training.world import World

CONFIGS = Path(__file__).parents[1] / "configs"
SMOKE = CONFIGS / "transfer_smoke.toml"


def smoke(*overrides: str) -> ChainSettings:
    return read_settings(ChainSettings, SMOKE, overrides=overrides)


def stage(after: str, name: str) -> dict[str, Any]:
    return {"after": after, "stage": {"kind": "res", "name": name}}


def chained(*stages: dict[str, Any], headline: str = "one") -> ChainSettings:
    base = smoke().model_dump(include={"folder", "simulate", "pretrain"}, exclude_unset=True)
    return ChainSettings.model_validate(base | {"transfer": stages, "headline": headline})


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("transfer*.toml")), ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(path: Path) -> None:
    settings = read_settings(ChainSettings, path)
    assert settings.headline in {"zero-shot", *settings.names}
    reached = [step for step in settings.evidence.spectra_steps if step <= settings.evidence.lead_steps]
    assert reached


def test_overrides_reach_nested_settings() -> None:
    settings = smoke(
        "pretrain.train.batch=4", "simulate.folder=elsewhere", "evidence.spectra_steps=[1, 2]", "seeds=[3]"
    )
    assert settings.pretrain.train.batch == 4
    assert settings.pretrain.train.samples == 64
    assert settings.simulate.folder == Path("elsewhere")
    assert settings.evidence.spectra_steps == (1, 2)
    assert settings.seeds == (3,)
    for wrong, words in (
        ("pretrain.train.bach=4", r"pretrain\.train\.bach"),
        ("evidence.dates=0", r"evidence\.dates"),
        ("seeds=[]", "seeds"),
        ("evidence.lead_steps=3", "spectra_steps must hold a step from 1 to lead_steps = 3"),
    ):
        with pytest.raises(UsageError, match=words):
            smoke(wrong)


def test_stages_follow_each_other() -> None:
    settings = chained(stage("backbone", "one"), stage("one", "two"), stage("one", "three"), headline="three")
    assert [transfer.after for transfer in settings.transfer] == ["backbone", "one", "one"]
    assert settings.model(2, "three") == settings.folder / "seed-2" / "three" / "model"
    assert settings.evidence_folder == settings.folder / "evidence"
    for stages, headline, words in (
        ([stage("two", "one"), stage("backbone", "two")], "one", "begins after one of backbone; got 'two'"),
        ([stage("backbone", "one"), stage("one", "one")], "one", "'one' came twice"),
        ([stage("backbone", "backbone")], "backbone", "'backbone' came twice"),
        ([stage("backbone", "one")], "two", "headline must be one of one, zero-shot; got 'two'"),
        ([stage("backbone", "one")], "backbone", "headline must be one of one, zero-shot; got 'backbone'"),
    ):
        with pytest.raises(ValueError, match=words):
            chained(*stages, headline=headline)


@pytest.fixture(autouse=True)
def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small world is none that the configuration describes."""
    monkeypatch.setattr(chain, "complete_world", lambda settings, *splits: World.open(settings.folder))


def test_verbs_say_what_must_come_before_them(world: World, tmp_path: Path) -> None:
    absent = smoke(f"folder={tmp_path}", f"simulate.folder={tmp_path / 'none'}")
    for verb in (run_pretrain, run_adapt, chain.run_evidence):
        with pytest.raises(InputError, match=r"holds no simulated world .*train simulate"):
            verb(absent, Silence())
    untrained = smoke(f"folder={tmp_path}", f"simulate.folder={world.folder}")
    for verb in (run_adapt, chain.run_evidence):
        with pytest.raises(UsageError, match="seed-0/backbone/model is not there; run train pretrain"):
            verb(untrained, Silence())


def test_seeds_are_given_once(tmp_path: Path) -> None:
    for section in ("pretrain.seed=3", "sharp=none"):
        with pytest.raises(UsageError, match=r"give none of their own|sharp must be one of"):
            smoke(section)


def test_every_seed_is_pretrained_and_transferred(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each stage begins with the model of its own seed."""
    made: list[tuple[Any, ...]] = []

    def pretrained(world: World, settings: Any, folder: Path, progress: object) -> Path:
        (folder / "model").mkdir(parents=True)
        made.append(("backbone", settings.seed, folder))
        return folder / "model"

    def adapted(world: World, stage: Any, base: Path, folder: Path, progress: object, **more: object) -> Path:
        (folder / "model").mkdir(parents=True)
        made.append((stage.name, stage.seed, base, folder))
        return folder / "model"

    monkeypatch.setattr(chain, "pretrain", pretrained)
    monkeypatch.setattr(chain, "adapt", adapted)
    settings = smoke(f"folder={tmp_path}", f"simulate.folder={world.folder}", "seeds=[4, 5]")
    assert run_pretrain(settings, Silence()) == [
        tmp_path / f"seed-{n}" / "backbone" / "model" for n in (4, 5)
    ]
    models = run_adapt(settings, Silence())
    assert models == [
        settings.model(n, name) for n in (4, 5) for name in ("smoke-res", "smoke", "smoke-sharp")
    ]
    assert made[:2] == [("backbone", n, tmp_path / f"seed-{n}" / "backbone") for n in (4, 5)]
    five = tmp_path / "seed-5"
    assert made[5:] == [
        ("smoke-res", 5, five / "backbone" / "model", five / "smoke-res"),
        ("smoke", 5, five / "smoke-res" / "model", five / "smoke"),
        ("smoke-sharp", 5, five / "smoke-res" / "model", five / "smoke-sharp"),
    ]


def test_sources_are_every_baseline_and_every_model(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bias(world: World, spec: SourceSpec, *rest: object) -> Path:
        assert (spec.name, spec.bias) == ("numerical-t21", None)
        return tmp_path / "bias.npy"

    monkeypatch.setattr(chain, "baseline_bias", bias)
    settings = smoke(f"folder={tmp_path}", "seeds=[0, 1]", "evidence.twin_dates=7")
    specs = {spec.name: spec for spec in sources_of(settings, world, tmp_path, Silence())}
    baselines = [
        "coarse",
        "detailed",
        "mean-of-nine",
        "downscaled",
        "zero-shot",
    ]
    trained = [
        f"{name}-{seed}" for seed in (0, 1) for name in (*baselines, "smoke-res", "smoke", "smoke-sharp")
    ]
    simulated = ["numerical-t21", "numerical-t21-corrected", "twin"]
    assert list(specs) == ["persistence", "climatology", *trained, *simulated]
    assert specs["smoke-1"].checkpoint == settings.model(1, "smoke")
    assert specs["smoke-1"].title == "smoke, seed 1"
    for seed in (0, 1):
        backbone = settings.model(seed, "backbone")
        assert specs[f"zero-shot-{seed}"].checkpoint == specs[f"detailed-{seed}"].checkpoint == backbone
    assert specs["numerical-t21-corrected"].bias == tmp_path / "bias.npy"
    assert (specs["twin"].dates, specs["persistence"].dates) == (7, None)
    few = settings.model_copy(
        update={"downscale": None, "evidence": EvidenceSettings(baseline_truncation=None, twin_dates=0)}
    )
    assert [spec.name for spec in sources_of(few, world, tmp_path, Silence())] == [
        "persistence", "climatology", *(name for name in trained if not name.startswith("downscaled")),
    ]  # fmt: skip
