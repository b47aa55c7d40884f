"""Checkpoints: what is saved comes back, and nothing else is accepted; names; untrained models."""

import hashlib
import logging
import math
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fengwu_ghr import catalogue, checkpoint
from fengwu_ghr.backbone import Architecture, architecture
from fengwu_ghr.catalogue import create_model, list_models, resolve_model, verify_model
from fengwu_ghr.checkpoint import Checkpoint, load_model
from fengwu_ghr.errors import OutputError, UsageError
from fengwu_ghr.grid import NetworkGrid
from fengwu_ghr.initialise import build, wake
from fengwu_ghr.model_card import ModelCard, Statistics, read_card, to_toml, write_card
from fengwu_ghr.normalise import Normalisation, standard_statistics
from fengwu_ghr.variables import channel_set

GHR = channel_set("ghr-69")


def small(**changes: object) -> Architecture:
    sizes = {"channels": 69, "width": 24, "heads": 3, "decoder_width": 16, "lora_steps": 3, "lora_rank": 2}
    return architecture("ghr-tiny", **({"scale": 20} | sizes | changes))


def small_card(arch: Architecture, **changes: object) -> ModelCard:
    contents = {
        "name": "a test",
        "description": 'quotes " and \\ and\nlines, °C and \x7f',
        "trained": True,
        "licence": "CC-BY-4.0",
        "channel_set": "ghr-69",
        "architecture": arch,
        "statistics": Statistics.of(GHR, standard_statistics(GHR.channels)),
        "provenance": {"training data": "none", "run-1": "x"},
    }
    return ModelCard(**(contents | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create_model(small(), output=tmp_path / "model", seed=1)
    return tmp_path / "model"


def rewrite(folder: Path, change: Callable[[str], str]) -> None:
    path = folder / "model.toml"
    before = path.read_text()
    after = change(before)
    assert after != before
    path.write_text(after)


def rehash(folder: Path) -> None:
    """Enter the present sums of the weight files in the card."""
    card = read_card(folder)
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in card.files}
    write_card(folder, card.model_copy(update={"files": files}))


# The round trip


def test_a_saved_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = build(small(), seed=2)
    wake(model, seed=2, tendency=0.02)
    saved = checkpoint.save(tmp_path / "deep" / "model", model, card=small_card(model.architecture))
    opened = Checkpoint.open(tmp_path / "deep" / "model")
    assert opened == saved
    assert opened.card.model_copy(update={"files": {}}) == small_card(model.architecture)
    loaded = load_model(opened)
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    state = torch.randn(1, 69, *opened.grid.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded(state, 1), model(state, 1))


def test_a_checkpoint_says_what_its_numbers_mean(folder: Path) -> None:
    opened = Checkpoint.open(folder)
    assert opened.channels is GHR
    assert opened.grid == NetworkGrid(20, "nested")
    assert (opened.history, opened.step) == (1, timedelta(hours=6))
    np.testing.assert_array_equal(opened.normalisation.mean, standard_statistics(GHR.channels).mean)
    np.testing.assert_array_equal(opened.normalisation.std, standard_statistics(GHR.channels).std)
    assert opened.digest == hashlib.sha256((folder / "model.toml").read_bytes()).hexdigest()
    assert opened.facts()["parameters"] == sum(p.numel() for p in load_model(opened).parameters())


def test_parts_have_files_of_their_own(folder: Path) -> None:
    names = {path.name: set(load_file(path)) for path in folder.glob("*.safetensors")}
    assert set(names) == {"backbone.safetensors", "res.safetensors", "adapters.safetensors"}
    assert all(".lora_" in name for name in names["adapters.safetensors"])
    assert all(name.startswith("res.") for name in names["res.safetensors"])
    assert {oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == {"0o644"}


def test_weights_load_in_the_precision_asked_for(folder: Path) -> None:
    opened = Checkpoint.open(folder)
    full, half = load_model(opened), load_model(opened, dtype=torch.bfloat16)
    for name, tensor in half.state_dict().items():
        assert torch.equal(tensor, full.state_dict()[name].bfloat16())


def test_half_precision_files_load(folder: Path) -> None:
    tensors = {name: t.bfloat16() for name, t in load_file(folder / "backbone.safetensors").items()}
    save_file(tensors, folder / "backbone.safetensors")
    rehash(folder)
    assert load_model(Checkpoint.open(folder)).backbone.position.dtype == torch.float32


def test_nothing_is_left_of_a_model_that_could_not_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OutputError, match=r"could not be written: .*No space left"):
        create_model(small(), output=tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_not_written_over(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OutputError, match="exists already"):
        create_model(small(), output=folder, init="zero")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_card_of_another_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give its own"):
        checkpoint.save(tmp_path / "m", build(small()), card=small_card(small(depth=5)))


# Weights


def test_wrong_tensors_are_named(folder: Path) -> None:
    file = folder / "res.safetensors"
    tensors = load_file(file)
    tensors["res.0.extra.weight"] = torch.zeros(2)
    tensors["res.0.norm1.weight"] = torch.zeros(7)
    del tensors["res.0.phase"]
    save_file(tensors, file)
    rehash(folder)
    opened = Checkpoint.open(folder)
    with pytest.raises(UsageError) as caught:
        load_model(opened)
    assert "res.0.phase missing" in str(caught.value)
    assert "res.0.extra.weight extra" in str(caught.value)
    assert "res.0.norm1.weight of shape (7,), not (24,)" in str(caught.value)


def test_tensors_of_other_types_or_twice_are_named(folder: Path) -> None:
    tensors = load_file(folder / "res.safetensors")
    tensors["res.0.norm1.bias"] = tensors["res.0.norm1.bias"].long()
    tensors["backbone.position"] = torch.zeros(12, 24, 24)
    save_file(tensors, folder / "res.safetensors")
    rehash(folder)
    opened = Checkpoint.open(folder)
    with pytest.raises(
        UsageError, match=r"backbone.position twice(.|\n)*norm1.bias of type I64, not one of F32"
    ):
        load_model(opened)


def test_long_lists_of_tensors_are_cut(folder: Path) -> None:
    save_file({"other": torch.zeros(1)}, folder / "backbone.safetensors")
    rehash(folder)
    opened = Checkpoint.open(folder)
    with pytest.raises(UsageError, match=r"backbone\.position missing.*; and \d+ more$"):
        load_model(opened)


def test_a_flipped_bit_is_found(folder: Path) -> None:
    path = folder / "adapters.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"adapters.safetensors is not the file that was saved: sha256"):
        Checkpoint.open(folder)


def test_a_file_that_is_no_safetensors_file_is_named(folder: Path) -> None:
    (folder / "res.safetensors").write_bytes(b"\x80\x04pickle")
    rehash(folder)
    opened = Checkpoint.open(folder)
    with pytest.raises(UsageError, match=r"res.safetensors is not a safetensors file"):
        load_model(opened)


def test_missing_and_unlisted_files_are_named(folder: Path) -> None:
    (folder / "more.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match=r"weight files that model.toml does not list: more.safetensors"):
        Checkpoint.open(folder)
    (folder / "more.safetensors").unlink()
    (folder / "res.safetensors").unlink()
    with pytest.raises(UsageError, match=r"lacks res.safetensors, which model.toml lists"):
        Checkpoint.open(folder)


def test_a_file_must_lie_in_its_folder(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "res.safetensors"
    (folder / "res.safetensors").rename(outside)
    (folder / "res.safetensors").symlink_to(outside)
    with pytest.raises(UsageError, match="leads out of its folder"):
        Checkpoint.open(folder)


def test_verification_finds_numbers_that_are_not_finite(folder: Path) -> None:
    assert verify_model(str(folder)).folder == folder
    tensors = load_file(folder / "res.safetensors")
    tensors["res.0.norm2.weight"][3] = math.nan
    save_file(tensors, folder / "res.safetensors")
    rehash(folder)
    with pytest.raises(UsageError, match=r"not finite: res\.0\.norm2\.weight"):
        verify_model(str(folder))


# The card


@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        (r"format = 1", "format = 2", "format: Input should be 1"),
        (r"trained = false", "trained = 0", "trained: Input should be a valid boolean"),
        (r"trained = false", "trained = false\ncolour = 'red'", "colour: Extra inputs are not permitted"),
        (r"width = 24", "width = 24\nwings = 2", "architecture.wings: Unexpected keyword argument"),
        (r"width = 24", "width = 24.5", "architecture.width: Input should be a valid integer"),
        (r"width = 24", "width = '24'", "architecture.width: Input should be a valid integer"),
        (r"width = 24\n", "", "architecture.width: Field required"),
        (r"width = 24", "width = 25", "a width that 3 heads and 4 divide"),
        (r"scale = 20", "scale = 19", "the scale must divide 80"),
        (r'predicts = "tendency"', 'predicts = "noise"', "architecture.predicts: Input should be 'state' or"),
        (r'"ghr-69"', '"ghr-99"', "no channel set is named 'ghr-99'"),
        (r'"ghr-69"', '"ghr-74"', "statistics.mean must name the channels of ghr-74; differing: 100u, 100v"),
        (r"z1000 = .*\n", "", "statistics.mean must name the channels of ghr-69; differing: z1000"),
        (r"z1000 = .*\n", "z1000 = nan\n", "statistics must be finite"),
        (r"(\[statistics.std\]\n)z1000 = .*\n", r"\1z1000 = 0.0\n", "with a positive std"),
        (
            r'registration = "nested"',
            'registration = "square"',
            "registration: Input should be 'nested', 'pixel' or",
        ),
        (r"step_hours = 6", "step_hours = 0", "step_hours: Input should be greater than 0"),
        (r'"res.safetensors" =', '"../res.safetensors" =', "plain [*].safetensors names"),
        (r'"res.safetensors" =', '"/tmp/res.safetensors" =', "plain [*].safetensors names"),
        (r'"res.safetensors" =', '"res.pt" =', "plain [*].safetensors names"),
        (r"(?s)\[files\].*", "", "lists no weight files"),
        (r"format = 1", "format = [", "is not TOML"),
    ],
)
def test_a_card_is_read_strictly(folder: Path, pattern: str, replacement: str, message: str) -> None:
    rewrite(folder, lambda text: re.sub(pattern, replacement, text, count=1))
    with pytest.raises(UsageError, match=message):
        Checkpoint.open(folder)


def test_a_card_from_before_adapters_were_grouped_means_one_lead_step_a_set(folder: Path) -> None:
    rewrite(folder, lambda text: text.replace("lora_group = 1\n", ""))
    assert load_model(Checkpoint.open(folder)).architecture.lora_group == 1


def test_a_folder_without_a_card_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a model is a folder with a model\.toml"):
        Checkpoint.open(tmp_path)


def test_the_token_level_split_needs_pole_to_pole_rows() -> None:
    with pytest.raises(ValueError, match="its registration must be nested"):
        small_card(small(split="token"), registration="pixel")


@pytest.mark.parametrize("step", [3, 9])
def test_accumulations_end_with_the_step(step: int) -> None:
    channels = channel_set("ghr-74")
    contents: dict[str, object] = {
        "channel_set": "ghr-74",
        "statistics": Statistics.of(channels, standard_statistics(channels.channels)),
    }
    with pytest.raises(
        ValueError, match=f"step_hours must be a multiple of the 6 hours .* tp6h .* got {step}"
    ):
        small_card(small(channels=74), step_hours=step, **contents)
    assert small_card(small(channels=74), step_hours=12, **contents).step_hours == 12
    assert small_card(small(), step_hours=step).step_hours == step


def test_toml_reads_back_the_same() -> None:
    content = {
        "text": 'a "b" \\ \n\t \x00\x1f\x7f é 🌍 \u2028',
        "odd key.": [1, -2, 3],
        "number": 0.1 + 0.2,
        "big": 1e300,
        "flags": [True, False],
        "nested": [[1, 2], []],
        "infinite": [math.inf, -math.inf],
        "table": {"a": 1, "deep": {"x": "y", '"': 2}, "b": False},
        "rows": [{"a": 1, "b": [2]}, {"a": 3, "inner": {"c": 4}}],
        "empty": {},
    }
    assert tomllib.loads(to_toml(content)) == content
    assert to_toml(content | {"nothing": None}) == to_toml(content)
    with pytest.raises(ValueError, match="TOML cannot hold None"):
        to_toml({"nothing": [None]})


# Untrained models


def master_state(opened: Checkpoint, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 69, *opened.grid.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("split", ["pixel", "token"])
def test_zero_is_persistence_exactly(tmp_path: Path, split: str) -> None:
    opened = create_model("ghr-tiny-1p8", init="zero", output=tmp_path / "m", split=split)
    assert opened.card.description.startswith("Persistence")
    assert not opened.card.trained
    model, state = load_model(opened), master_state(opened)
    with torch.inference_mode():
        for step in (0, 7, 80):
            assert torch.equal(model(state, step), state)


@pytest.mark.parametrize("split", ["pixel", "token"])
def test_random_leads_differ_and_stay_bounded(tmp_path: Path, split: str) -> None:
    opened = create_model("ghr-tiny-1p8", output=tmp_path / "m", split=split)
    model, state = load_model(opened), master_state(opened)
    with torch.inference_mode():
        steps = [model(state, step) - state for step in range(4)]
        for one in range(4):
            assert 0.01 < steps[one].std() < 0.05
            assert steps[one].abs().max() < 0.4
            for other in range(one):
                assert (steps[one] - steps[other]).std() > 0.01 * steps[one].std()
        late = state
        for step in range(8):
            late = model(late, step)
        assert 0.02 < (late - state).std() < 0.4


def test_the_same_seed_gives_the_same_model_in_another_process(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from fengwu_ghr.catalogue import create_model
print(create_model("ghr-tiny-1p8", output=Path(sys.argv[1]), seed=3).digest)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a")],
        capture_output=True, text=True, check=True, timeout=60, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    here = create_model("ghr-tiny-1p8", output=tmp_path / "b", seed=3)
    other = create_model("ghr-tiny-1p8", output=tmp_path / "c", seed=4)
    assert done.stdout.strip() == here.digest != other.digest


def test_statistics_and_channels_can_be_given(tmp_path: Path) -> None:
    statistics = Normalisation(np.arange(88, dtype=np.float32), np.full(88, 0.1, np.float32))
    opened = create_model(
        "ghr-tiny-1p8",
        output=tmp_path / "m",
        channel_set="ghr-88",
        statistics=statistics,
        registration="pixel",
    )
    np.testing.assert_array_equal(opened.normalisation.mean, statistics.mean)
    np.testing.assert_array_equal(opened.normalisation.std, statistics.std)
    assert opened.grid.registration == "pixel"
    assert opened.architecture.channels == len(opened.channels) == 88


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "ghr-huge-1p8"}, "no architecture is named 'ghr-huge-1p8'; there are ghr-4b-0p09"),
        ({"init": "ones"}, "init is zero or random; got 'ones'"),
        ({"channel_set": "ghr-1"}, "no channel set is named 'ghr-1'"),
        ({"registration": "square"}, "registration: Input should be 'nested', 'pixel' or 'backbone'"),
        (
            {"registration": "backbone"},
            "weights of ours work on nine sub-fields: registration is nested or pixel",
        ),
        ({"split": "block"}, "the split is made at pixel or token level; got 'block'"),
        ({"split": "token", "registration": "pixel"}, "its registration must be nested"),
        ({"model": small(predicts="state")}, "untrained models predict a tendency"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        create_model(**({"model": "ghr-tiny-1p8", "output": tmp_path / "m"} | options))
    assert list(tmp_path.iterdir()) == []


# Names


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FENGWU_GHR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def test_a_folder_is_itself(folder: Path) -> None:
    assert resolve_model(str(folder)) == folder


def test_a_name_is_found_under_the_users_models_first(
    cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FENGWU_GHR_MODELS", str(folder.parent))
    assert resolve_model("model") == folder
    folder.rename(folder.parent / "ghr-tiny-1p8")
    assert resolve_model("ghr-tiny-1p8") == folder.parent / "ghr-tiny-1p8"
    assert not cache.exists()


def test_an_untrained_architecture_is_made_once_with_a_notice(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "fengwu_ghr"):
        path = resolve_model("ghr-tiny-1p8")
        assert path.parent == cache
        assert "ghr-tiny-1p8 is an untrained architecture" in caplog.text
        caplog.clear()
        written = (path / "model.toml").stat().st_mtime_ns
        assert resolve_model("ghr-tiny-1p8") == path
    assert caplog.text == ""
    assert (path / "model.toml").stat().st_mtime_ns == written
    assert [p.name for p in cache.iterdir()] == [path.name]
    assert verify_model("ghr-tiny-1p8").card.name == "ghr-tiny-1p8"


def test_another_recipe_is_made_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = resolve_model("ghr-tiny-1p8")
    monkeypatch.setattr(catalogue, "_RECIPE", 99)
    assert resolve_model("ghr-tiny-1p8") != first


def test_losing_the_race_to_the_cache_is_no_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raced(name: str, *, output: Path) -> None:
        create_model(name, output=output)
        raise OutputError(f"{output} exists already")

    monkeypatch.setattr(catalogue, "create_model", raced)
    Checkpoint.open(resolve_model("ghr-tiny-1p8"))


@pytest.mark.parametrize("name", ["nonsense", "ghr-tiny", "../model", "ghr-tiny-0p25"])
def test_an_unknown_name_lists_what_there_is(cache: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"no model is named '{re.escape(name)}'; there are .*ghr-tiny-0p09"):
        resolve_model(name)


def test_a_users_folder_that_is_not_there_is_an_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FENGWU_GHR_MODELS", "/nowhere")
    with pytest.raises(
        UsageError, match="FENGWU_GHR_MODELS must name a folder of models; /nowhere does not exist"
    ):
        resolve_model("ghr-tiny-1p8")


def test_the_list_shows_states_and_places(cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "broken").mkdir()
    (folder.parent / "broken" / "model.toml").write_text("format = 7")
    monkeypatch.setenv("FENGWU_GHR_MODELS", str(folder.parent))
    made = resolve_model("ghr-tiny-1p8")
    listed = {model.name: model for model in list_models()}
    assert (listed["model"].state, listed["model"].path) == ("untrained", folder)
    assert listed["broken"].state == "unreadable"
    assert listed["ghr-tiny-1p8"].path == made
    assert listed["ghr-4b-0p09"].path is None
