"""Options of the torch engine: none changes a forecast by more than it says, and each says where it cannot work."""

import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from typer.testing import CliRunner

from fengwu_ghr.backbone import architecture
from fengwu_ghr.catalogue import create_model, resolve_model
from fengwu_ghr.checkpoint import Checkpoint
from fengwu_ghr.cli import app
from fengwu_ghr.config import ComputeSection, RunConfig
from fengwu_ghr.engine import graphs, precision
from fengwu_ghr.engine.device_memory import LIBRARIES, device_parts
from fengwu_ghr.engine.finite import Watch
from fengwu_ghr.engine.float8 import LARGEST, Float8Linear, quantise
from fengwu_ghr.engine.outgoing import Handover
from fengwu_ghr.engine.paging import Pager, paged_parts, part_bytes
from fengwu_ghr.engine.torch_engine import Compute, TorchStepper, check_compute, check_machine, numerics
from fengwu_ghr.errors import ConformanceError, ResourceError, UsageError
from fengwu_ghr.hindcast.settings import HindcastConfig
from fengwu_ghr.memory_plan import MemoryPlan, compute_of, output_threads
from fengwu_ghr.preflight import plan_forecast
from fengwu_ghr.resume import Attempt, settle_compute
from fengwu_ghr.transfer import AdaptedLinear

TIME = datetime(2000, 1, 1)
SMALL = {"width": 32, "heads": 2, "decoder_width": 16, "lora_rank": 2, "lora_steps": 3}
HAS_FLOAT8 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
GIB = 2**30


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("models") / "small"
    return create_model(architecture("ghr-tiny", scale=20, **SMALL), output=folder)


@pytest.fixture(scope="module")
def state(checkpoint: Checkpoint) -> np.ndarray:
    shape = (len(checkpoint.channels), *checkpoint.grid.shape)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _forecast(stepper: TorchStepper, state: np.ndarray, *, steps: int = 2) -> np.ndarray:
    stepper.put([state], TIME)
    for index in range(steps):
        stepper.step(index)
    out = np.empty_like(state)
    stepper.get(out)
    return out


# What is not finite


def _spoil_encoder(stepper: TorchStepper) -> None:
    stepper._model.backbone.patch.bias.data[3] = torch.nan


def _spoil_block(stepper: TorchStepper) -> None:
    stepper._model.backbone.blocks[2].fc1.weight.data[5, 5] = torch.inf


def _spoil_res(stepper: TorchStepper) -> None:
    stepper._model.res[0].proj.bias.data[0] = torch.nan


def _spoil_decoder(stepper: TorchStepper) -> None:
    stepper._model.backbone.decoder.narrow.weight.data[:] = torch.nan


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (_spoil_encoder, "the encoder"),
        (_spoil_block, "block 2 of the trunk"),
        (_spoil_res, "RES block 0"),
        (_spoil_decoder, "the decoder"),
    ],
)
def test_the_first_part_that_is_not_finite_is_named_with_its_step(
    spoil: Callable[[TorchStepper], None], part: str, checkpoint: Checkpoint, state: np.ndarray
) -> None:
    stepper = TorchStepper(checkpoint, Compute(batch=3))
    stepper.put([state], TIME)
    stepper.step(0)
    spoil(stepper)
    with pytest.raises(ConformanceError, match=rf"step 2 \(\+12 h\): the output of {part} is not finite"):
        stepper.step(1)


def test_half_precision_does_not_overflow_while_it_is_watched() -> None:
    watch = Watch(6)
    watch.see("the end of the step", torch.full((3, 4), 60000.0, dtype=torch.float16))
    watch.close(0).check()


# Paging


def test_paged_weights_give_the_same_bytes_and_two_blocks_are_there(
    checkpoint: Checkpoint, state: np.ndarray
) -> None:
    expected = _forecast(TorchStepper(checkpoint, Compute(batch=3)), state)
    paged = TorchStepper(checkpoint, Compute(batch=3, paging=True))
    np.testing.assert_array_equal(_forecast(paged, state), expected)


def test_two_parts_are_on_the_device_and_the_next_is_fetched_while_one_computes(
    checkpoint: Checkpoint,
) -> None:
    parts = paged_parts(TorchStepper(checkpoint, Compute())._model)
    assert [type(part).__name__ for part in parts] == ["Block"] * 4 + ["RES"]
    weights = [next(part.parameters()).detach().clone() for part in parts]
    pager = Pager(parts, torch.device("cpu"))
    assert pager.resident == 2 * max(map(part_bytes, parts))
    for index in (0, 1, 1, 2, 3, 4, 0, 3):  # the last is out of order, as after an error
        pager.enter(index)
        slots = {slot.untyped_storage().data_ptr() for slot in pager._slots}
        there = [next(part.parameters()).untyped_storage().data_ptr() in slots for part in parts]
        assert there == [number == index for number in range(len(parts))]
        for part, weight in zip(parts, weights):
            torch.testing.assert_close(next(part.parameters()).detach(), weight, rtol=0, atol=0)


# Compiled blocks


COMPILED = """
import sys
from datetime import datetime
from pathlib import Path
import numpy as np
from fengwu_ghr.checkpoint import Checkpoint
from fengwu_ghr.engine import graphs
from fengwu_ghr.engine.torch_engine import Compute, TorchStepper
graphs.BACKEND = "eager"
checkpoint, found = Checkpoint.open(Path(sys.argv[1])), []
state = np.load(sys.argv[2])
for compute in (Compute(batch=9), Compute(batch=9, compile=True)):
    stepper, out = TorchStepper(checkpoint, compute), np.empty_like(state)
    stepper.put([state], datetime(2000, 1, 1))
    for index in range(3):
        stepper.step(index)
    stepper.get(out)
    found.append(out)
assert stepper.numerics["compile"] is True
np.testing.assert_array_equal(*found)
"""


@pytest.mark.slow
def test_compiled_blocks_follow_the_lead_step(
    checkpoint: Checkpoint, state: np.ndarray, tmp_path: Path
) -> None:
    """Traced as for a compiler, but run as it is: nothing of a lead step is baked in.

    In a process of its own, since the checks of shapes in tests cannot be traced.
    """
    np.save(tmp_path / "state.npy", state)
    command = [sys.executable, "-c", COMPILED, checkpoint.folder, tmp_path / "state.npy"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr


def test_held_adapters_stay_in_place_and_change_with_the_step(checkpoint: Checkpoint) -> None:
    model = TorchStepper(checkpoint, Compute())._model
    layer = model.backbone.blocks[0].qkv
    assert isinstance(layer, AdaptedLinear)
    expected = [layer.adapter(step) for step in (0, 2)]
    graphs.hold_adapters(model, 0)
    place = layer.adapter(0)[0].data_ptr()
    graphs.hold_adapters(model, 2)
    assert layer.adapter(0)[0].data_ptr() == place
    for found, wanted in zip(layer.adapter(0), expected[1]):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert not torch.equal(expected[0][0], expected[1][0])


# 8-bit numbers


def test_every_row_fills_the_range_and_is_rounded_to_three_bits(rng: np.random.Generator) -> None:
    values = torch.from_numpy(rng.standard_normal((20, 64)) * 10.0 ** rng.integers(-6, 6, (20, 1)))
    quantised, scale = quantise(values.float())
    assert quantised.float().abs().amax(dim=1).tolist() == [LARGEST] * 20
    back = quantised.double() * scale.double()
    error = (back - values).abs() / torch.maximum(values.abs(), scale.double() * 2.0**-6)
    assert error.max() <= 2.0**-4 + 1e-6
    assert quantise(torch.zeros(1, 16))[0].float().abs().sum() == 0
    assert quantise(torch.tensor([[torch.nan] + 15 * [1.0]]))[0].float().isnan().any()


def test_a_layer_in_8_bits_is_near_the_layer_adapters_included(rng: np.random.Generator) -> None:
    layer = AdaptedLinear(64, 48, rank=2, steps=3, alpha=1.0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    tokens = torch.from_numpy(rng.standard_normal((2, 5, 64), np.float32)).bfloat16()
    with torch.no_grad():
        layer = layer.bfloat16()
        expected = layer(tokens, 1).float()
        found = Float8Linear(layer)(tokens, 1).float()
    assert (found - expected).std() < 0.05 * expected.std()


@pytest.mark.skipif(not HAS_FLOAT8, reason="no GPU with e4m3 units")
def test_float8_on_a_gpu_changes_the_forecast_little(checkpoint: Checkpoint, state: np.ndarray) -> None:
    one, other = (
        _forecast(TorchStepper(checkpoint, Compute("cuda", name, batch=9)), state, steps=4)
        for name in ("bfloat16", "float8")
    )
    assert np.abs(one - other).std() < 0.05 * np.abs(one - state).std()


def test_float8_by_emulation_changes_the_forecast_little(
    checkpoint: Checkpoint, state: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fengwu_ghr.engine.torch_engine.check_machine", lambda compute: None)
    plain = _forecast(TorchStepper(checkpoint, Compute(batch=9)), state)
    narrow = _forecast(TorchStepper(checkpoint, Compute(precision="float8", batch=9)), state)
    change = (plain - state).std()
    assert 0 < (narrow - plain).std() < 0.1 * change


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("option", ["paging", "cuda_graphs"])
def test_a_gpu_forecasts_the_same_with_its_options_and_sends_what_can_be_fetched(
    option: str, checkpoint: Checkpoint, state: np.ndarray
) -> None:
    plain = _forecast(TorchStepper(checkpoint, Compute("cuda", batch=3)), state, steps=3)
    stepper = TorchStepper(checkpoint, Compute("cuda", batch=3, **{option: True}))
    stepper.put([state], TIME)
    for index in range(3):
        stepper.step(index)
    sent = stepper.allocate()
    arrive = stepper.send(sent)
    stepper.step(3)
    arrive()
    np.testing.assert_array_equal(sent[0], plain)


# What cannot work


@pytest.mark.parametrize(
    ("compute", "rule"),
    [
        (Compute(cuda_graphs=True), "cuda_graphs needs the device cuda; got cpu"),
        (Compute(paging=True, compile=True), "paging moves weights"),
        (Compute("cuda", paging=True, cuda_graphs=True), "paging moves weights"),
        (Compute(paging=True, ranks=2), "ranks share the work"),
        (Compute("cuda", cuda_graphs=True, ranks=2), "cuda_graphs record one GPU"),
        (Compute(ranks=10), "1 to 9 ranks; got 10"),
    ],
)
def test_options_that_exclude_each_other_are_refused(compute: Compute, rule: str) -> None:
    with pytest.raises(UsageError, match=rule):
        check_compute(compute)


@pytest.mark.skipif(HAS_FLOAT8, reason="this machine has what is missed")
def test_what_this_machine_lacks_is_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"float8 needs a GPU.*ask for bfloat16"):
        check_machine(Compute(precision="float8"))
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UsageError, match=r"needs a C\+\+ compiler.*CXX"):
        check_machine(Compute(compile=True))


def test_the_command_line_refuses_before_it_reads_the_input(analysis: Path, tmp_path: Path) -> None:
    flags = ["--model", "ghr-tiny-1p8", "--input", str(analysis), "--output", str(tmp_path / "run.zarr")]
    done = CliRunner().invoke(app, ["forecast", *flags, "--paging", "--ranks", "2", "--output-threads", "1"])
    assert done.exit_code == 2
    assert not (tmp_path / "run.zarr").exists()


def test_hindcasts_name_their_precision() -> None:
    dates = {"first": "2024-01-01", "last": "2024-01-02"}
    tree = {"model": {"name": "m"}, "dates": dates, "compute": {"precision": "auto"}}
    with pytest.raises(ValidationError, match=r"names its compute\.precision.*got auto"):
        HindcastConfig.model_validate(
            {**tree, "input": {"files": ("a.grib2",)}, "output": {"zarr": "run.zarr"}}
        )


def test_only_what_is_not_left_as_it_is_stands_in_the_numerics() -> None:
    assert not {"compile", "cuda_graphs", "ranks", "paging"} & set(numerics(Compute()))
    assert numerics(Compute(paging=True)) == numerics(Compute())
    assert numerics(Compute(ranks=3))["ranks"] == 3


# States on their way to the writers


class _Counter:
    """Counts its steps; a sender where it is told to be."""

    history = 1

    def __init__(self, *, sends: bool) -> None:
        self.sends, self.value, self.arrived = sends, 0.0, 0

    def get(self, out: np.ndarray, *, age: int = 0) -> None:
        out[:] = self.value

    def allocate(self) -> list[np.ndarray]:
        return [np.zeros((1, 1, 1), np.float32)]

    def send(self, out: list[np.ndarray]) -> Callable[[], None]:
        out[0][:] = self.value

        def arrive() -> None:
            self.arrived += 1

        return arrive

    network = channel_set = step_hours = numerics = None

    def put(self, states: list[np.ndarray], valid_time: datetime) -> None:
        return

    def step(self, index: int) -> None:
        self.value += 1


def test_a_sender_fills_two_sets_in_turn_without_waiting_for_the_writers() -> None:
    stepper, waited = _Counter(sends=True), []
    handover, taken = Handover(stepper, [np.zeros((1, 1, 1), np.float32)]), []
    for index in range(3):
        stepper.step(index)
        (states, arrive), before = handover.take(lambda: waited.append(1)), stepper.arrived
        arrive()
        assert stepper.arrived == before + 1
        taken.append((id(states[0]), float(states[0][0, 0, 0])))
    assert [value for _, value in taken] == [1, 2, 3]
    assert taken[0][0] == taken[2][0] != taken[1][0]
    assert not waited


def test_a_plain_stepper_fills_one_set_once_the_writers_have_done_with_it() -> None:
    stepper, waited, first = _Counter(sends=False), [], np.zeros((1, 1, 1), np.float32)
    handover = Handover(stepper, [first])
    for index in range(2):
        stepper.step(index)
        states, arrive = handover.take(lambda: waited.append(float(first[0, 0, 0])))
        arrive()
        assert states[0] is first
    assert waited == [0, 1], "what was there is read before it is overwritten"


# The GPU's memory


@pytest.mark.parametrize("batch", [1, 3])
def test_the_largest_model_takes_twelve_gibibytes_beside_its_weights(batch: int) -> None:
    parts = device_parts(architecture("ghr-4b", scale=1), Compute("cuda", "bfloat16", batch=batch))
    assert 6 * GIB < parts["weights"] < 9 * GIB
    assert sum(parts.values()) <= parts["weights"] + 12 * GIB


def test_paging_and_narrow_numbers_make_it_less() -> None:
    large = architecture("ghr-4b", scale=1)
    whole, paged, narrow, wide = (
        device_parts(large, compute)
        for compute in (
            Compute("cuda", "bfloat16"),
            Compute("cuda", "bfloat16", paging=True),
            Compute("cuda", "float8"),
            Compute("cuda", "float32"),
        )
    )
    assert sum(paged.values()) <= 16 * GIB
    assert paged["two blocks"] + paged["other weights"] < 0.2 * whole["weights"]
    assert narrow["weights"] < 0.65 * whole["weights"]
    assert wide["weights"] == 2 * whole["weights"]
    assert whole["libraries"] == LIBRARIES


def _on_cuda(analysis: Path, folder: Path, **compute: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": {"name": "ghr-tiny-1p8"},
            "input": {"files": (analysis,)},
            "output": {"zarr": folder / "run.zarr"},
            "compute": compute,
        }
    )


def test_a_gpu_that_is_too_small_is_found_before_work_starts(
    analysis: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _on_cuda(analysis, tmp_path, device="cuda", precision="bfloat16")
    monkeypatch.setattr("fengwu_ghr.memory_plan.free_device_bytes", lambda device: 2 * GIB)
    plan = plan_forecast(config, is_here=False)
    assert plan.memory.batch == 9
    assert plan.memory.fits_device
    assert "activations" not in plan.memory.parts
    monkeypatch.setattr("fengwu_ghr.memory_plan.free_device_bytes", lambda device: GIB)
    with pytest.raises(ResourceError, match=r"the GPU has 1\.00 GiB free.*--paging"):
        plan_forecast(config, is_here=False)


def test_a_gpu_that_cannot_be_asked_is_no_obstacle() -> None:
    assert MemoryPlan({}, 1, 1, {"weights": 10}, None).fits_device


def test_every_rank_takes_memory(analysis: Path, tmp_path: Path) -> None:
    parts = plan_forecast(_on_cuda(analysis, tmp_path, ranks=3)).memory.parts
    assert parts["other ranks"] > 2 * (parts["weights"] + parts["master states"] + parts["activations"])


# The precision that is faster here


@pytest.mark.parametrize(("narrow", "chosen"), [(1.0, "bfloat16"), (1.7, "bfloat16"), (1.8, "float32")])
def test_bfloat16_must_be_worth_its_rounding(
    narrow: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"bfloat16": narrow, "float32": 2.1}
    monkeypatch.setattr(precision, "seconds_of_product", lambda device, name, **shape: seconds[name])
    precision.fastest_precision.cache_clear()
    assert precision.fastest_precision("cpu", 2, width=64, tokens=288) == chosen
    precision.fastest_precision.cache_clear()


def test_the_precision_is_measured_quickly_and_leaves_the_threads_alone() -> None:
    before = torch.get_num_threads()
    assert precision.fastest_precision("cpu", 1, width=64, tokens=64) in ("float32", "bfloat16")
    assert torch.get_num_threads() == before


def test_what_was_measured_is_recorded_and_taken_again(
    analysis: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fengwu_ghr.memory_plan.fastest_precision", lambda *_, **__: "bfloat16")
    plan = plan_forecast(_on_cuda(analysis, tmp_path, precision="auto"))
    assert numerics(plan.compute)["precision"] == "bfloat16"
    recorded = {"numerics": numerics(Compute(precision="float32", threads=1, batch=3))}
    compute, changed = settle_compute(plan, Attempt(recorded, frozenset(), has_restart=True))
    assert (compute.precision, compute.threads, compute.batch, changed) == ("float32", 1, 3, [])


def test_a_precision_that_is_named_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fengwu_ghr.memory_plan.fastest_precision", lambda *_, **__: 1 / 0)
    model = Checkpoint.open(resolve_model("ghr-tiny-1p8"))
    assert compute_of(ComputeSection(precision="bfloat16"), model, 2, 1).precision == "bfloat16"


def test_threads_that_write_are_those_that_compute_unless_named() -> None:
    assert output_threads(ComputeSection(), 4) == 4
    assert output_threads(ComputeSection(), 64) == 8
    assert output_threads(ComputeSection(output_threads=3), 64) == 3
