"""ONNX packages step as the torch models they were made of; memory, step and precision are what they are said to be."""

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from packages import made, states_of
from seasons import shards

from fengwu_ghr.checkpoint import Checkpoint, load_model
from fengwu_ghr.config import RunConfig
from fengwu_ghr.engine import engines, onnx_engine
from fengwu_ghr.engine.engines import stepper_for
from fengwu_ghr.engine.onnx_engine import OnnxStepper, loaded_bytes
from fengwu_ghr.engine.stepper import Stepper
from fengwu_ghr.engine.torch_engine import Compute
from fengwu_ghr.errors import ConformanceError, ResourceError, UsageError
from fengwu_ghr.forecast import run_forecast
from fengwu_ghr.grib.encode import GribEncoder, write_messages
from fengwu_ghr.grid import regular_grid
from fengwu_ghr.onnx_export import export_onnx
from fengwu_ghr.preflight import plan_forecast
from fengwu_ghr.progress import Silence
from fengwu_ghr.reproduce import reproduce
from fengwu_ghr.store import RunStore
from fengwu_ghr.synthetic import INITIAL_TIME, synthetic_state
from fengwu_ghr.variables import channel_set

TIME = datetime(2024, 1, 1)
COMPUTE = Compute(threads=1, batch=9)
EVERYTHING = 2**40


@pytest.fixture(scope="module")
def ghr(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Checkpoint]:
    """As the GHR package: a chain, 74 channels, pixel registration, an adapter for every step, states come out."""
    folder = tmp_path_factory.mktemp("ghr")
    model = made(folder / "torch", "ghr-74", predicts="state")
    return model, export_onnx(model, folder / "onnx", packaging="chain", progress=Silence())


@pytest.fixture(scope="module")
def fengwu(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Checkpoint]:
    """As FengWu: one graph on the backbone grid, two states in, 138 channels in and out."""
    folder = tmp_path_factory.mktemp("fengwu")
    shape = {"history": 2, "predicts": "state", "lora_steps": 0, "res_after": ()}
    model = made(folder / "torch", "fengwu-69", **shape)
    return model, export_onnx(
        model, folder / "onnx", packaging="single", where="backbone", progress=Silence()
    )


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Checkpoint]:
    """As our own: nested, tendencies, sharing and diffusion, in half precision."""
    folder = tmp_path_factory.mktemp("ours")
    shape = {"depth": 1, "res_after": (0,), "sharing": 1, "diffusion": True}
    model = made(folder / "torch", "ghr-69", registration="nested", **shape)
    made_of = export_onnx(model, folder / "onnx", packaging="chain", precision="float16", progress=Silence())
    return model, made_of


def forecast(
    model: Checkpoint, states: list[np.ndarray], *, steps: int = 4, bytes_: int = EVERYTHING
) -> list[np.ndarray]:
    stepper = stepper_for(model, COMPUTE, weight_bytes=bytes_)
    assert isinstance(stepper, Stepper)
    stepper.put(states, TIME)
    found = []
    for index in range(steps):
        stepper.step(index)
        found.append(np.empty_like(states[0]))
        stepper.get(found[-1])
    return found


def test_a_chain_steps_as_the_model_it_was_made_of(
    ghr: tuple[Checkpoint, Checkpoint], rng: np.random.Generator
) -> None:
    states = states_of(ghr[0], rng)
    wanted, found = (forecast(model, states) for model in ghr)
    for one, other in zip(wanted, found):
        np.testing.assert_allclose(other, one, atol=1e-4)
    assert np.abs(wanted[3] - wanted[0]).max() > 0.01  # adapters and states both move


def test_names_and_shapes_are_those_of_the_published_package(ghr: tuple[Checkpoint, Checkpoint]) -> None:
    from fengwu_ghr.onnx_files import OnnxFile

    package = ghr[1].onnx
    assert package is not None
    names = [graph.file for graph in package.graphs]
    assert names == ["encoder.onnx", "block_0.onnx", "block_1.onnx", "block_2.onnx", "decoder.onnx"]
    first, block, last = (OnnxFile(ghr[1].folder / names[i]) for i in (0, 1, -1))
    rows, columns = ghr[1].grid.shape
    assert [v.shape for v in first.inputs] == [(1, 74, rows, columns), ()]
    assert [v.type for v in block.inputs] == ["float32", "int64"]
    assert block.inputs[0].shape == (9, 6 * 12, 16) == block.outputs[0].shape
    assert [(v.name, v.shape) for v in last.outputs] == [("output", (1, 74, rows, columns))]


def test_the_lead_step_reaches_the_adapters(
    ghr: tuple[Checkpoint, Checkpoint], rng: np.random.Generator
) -> None:
    states, out = states_of(ghr[1], rng), []
    for index in (0, 2):
        stepper = stepper_for(ghr[1], COMPUTE, weight_bytes=EVERYTHING)
        stepper.put(states, TIME)
        stepper.step(index)
        out.append(np.empty_like(states[0]))
        stepper.get(out[-1])
    assert np.abs(out[0] - out[1]).max() > 1e-3


def test_a_small_pool_gives_the_same_bits(
    ghr: tuple[Checkpoint, Checkpoint], rng: np.random.Generator
) -> None:
    package = ghr[1].onnx
    assert package is not None
    states, tight = states_of(ghr[1], rng), max(loaded_bytes(package, "cpu"))
    for one, other in zip(forecast(ghr[1], states), forecast(ghr[1], states, bytes_=tight)):
        np.testing.assert_array_equal(one, other)


def test_two_states_go_in_and_the_first_half_comes_out(
    fengwu: tuple[Checkpoint, Checkpoint], rng: np.random.Generator
) -> None:
    model, package = fengwu
    assert package.grid.shape == package.grid.product.shape == (19, 36)
    assert package.history == 2
    states = states_of(package, rng)
    found = forecast(package, states)
    backbone, pair = load_model(model).backbone, [torch.from_numpy(state)[None] for state in states]
    for one in found:
        with torch.inference_mode():
            pair = [pair[1], backbone(torch.cat(pair, dim=1))]
        np.testing.assert_allclose(one, pair[1][0].numpy(), atol=1e-4)


def test_half_precision_differs_by_its_rounding(
    ours: tuple[Checkpoint, Checkpoint], rng: np.random.Generator
) -> None:
    model, package = ours
    states = states_of(model, rng)
    wanted, found = (forecast(one, states) for one in ours)
    scale = max(float(np.abs(a - states[0]).max()) for a in wanted)
    for one, other in zip(wanted, found):
        assert 0 < np.abs(one - other).max() < 0.02 * scale
    temperature = found[-1][package.channels.names.index("t500")]
    half = temperature.shape[1] // 2
    np.testing.assert_array_equal(temperature[0, half:], temperature[2, :half])


def test_numerics_tell_the_engine_and_its_version(ghr: tuple[Checkpoint, Checkpoint]) -> None:
    found = engines.numerics(ghr[1], COMPUTE)
    assert found["engine"] == "onnxruntime"
    assert found["precision"] == "float32"
    assert found == stepper_for(ghr[1], COMPUTE, weight_bytes=EVERYTHING).numerics


def test_another_precision_is_refused(ghr: tuple[Checkpoint, Checkpoint]) -> None:
    with pytest.raises(UsageError, match="compute in float32; leave --precision bfloat16 out"):
        engines.check(ghr[1], Compute(precision="bfloat16"))


@pytest.mark.parametrize(
    ("there", "device", "message"),
    [
        ((), "cpu", r"need onnxruntime here: pip install 'fengwu_ghr\[onnx\]'"),
        (
            ("onnxruntime",),
            "cuda",
            r"need onnxruntime-gpu here: .*\[onnx-gpu\].* pip uninstall onnxruntime before",
        ),
        (
            ("onnxruntime", "onnxruntime-gpu"),
            "cpu",
            "both installed and lie in one folder: pip uninstall both",
        ),
    ],
)
def test_the_runtime_must_be_the_one_for_the_device(
    there: tuple[str, ...], device: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_engine, "_is_installed", lambda name: name in there)
    with pytest.raises(UsageError, match=message):
        onnx_engine.runtime(device)


def test_the_build_for_gpus_serves_a_cpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_engine, "_is_installed", lambda name: name == "onnxruntime-gpu")
    assert onnx_engine.runtime("cpu") == onnx_engine.runtime("cuda") == "onnxruntime-gpu"


def test_a_state_beyond_half_precision_is_named(
    ours: tuple[Checkpoint, Checkpoint], rng: np.random.Generator
) -> None:
    states = states_of(ours[1], rng)
    states[0][3, 4, 5] = 1e5
    stepper = stepper_for(ours[1], COMPUTE, weight_bytes=EVERYTHING)
    stepper.put(states, TIME)
    with pytest.raises(
        ConformanceError, match=r"before lead step 0 is beyond what float16 holds .* worst in z700"
    ):
        stepper.step(0)


def test_numbers_that_are_not_finite_are_named_by_the_graph_they_come_from(
    ghr: tuple[Checkpoint, Checkpoint], tmp_path: Path, rng: np.random.Generator
) -> None:
    import onnx
    from onnx import numpy_helper

    from fengwu_ghr.convert import About, convert

    folder = tmp_path / "broken"
    folder.mkdir()
    for path in ghr[1].folder.glob("*.onnx"):
        (folder / path.name).write_bytes(path.read_bytes())
    block = onnx.load(folder / "block_1.onnx")
    weight = next(w for w in block.graph.initializer if w.dims == [48, 16] or w.dims == [16, 48])
    values = numpy_helper.to_array(weight).copy()
    values[0, 0] = np.nan
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(block, folder / "block_1.onnx")
    statistics = _saved(ghr[1], tmp_path)
    broken = convert(folder, tmp_path / "model", About(scale=40, statistics=statistics))
    stepper = OnnxStepper(broken, COMPUTE, weight_bytes=EVERYTHING)
    stepper.put(states_of(broken, rng), TIME)
    with pytest.raises(
        ConformanceError, match=r"step 1 \(\+6 h\): the output of block_1\.onnx is not finite, while all"
    ):
        stepper.step(0)


def _saved(model: Checkpoint, folder: Path) -> tuple[Path, Path]:
    paths = folder / "mean.npy", folder / "std.npy"
    for path, values in zip(paths, (model.normalisation.mean, model.normalisation.std)):
        np.save(path, values)
    return paths


def analysis_of(path: Path, channels: str, *, hours: tuple[int, ...] = (0,)) -> Path:
    """The synthetic atmosphere at these hours, as six-hour forecasts, whose accumulations are those wanted."""
    chosen, encoder = channel_set(channels).channels, GribEncoder(regular_grid(5))
    messages = []
    for hour in hours:
        time = INITIAL_TIME + timedelta(hours=hour)
        state = synthetic_state(regular_grid(5), chosen, initial_time=time)
        lead = timedelta(hours=6)
        messages += [(c, encoder.encode(c, state[c], initial_time=time - lead, lead=lead)) for c in chosen]
    write_messages(path, messages)
    return path


class Quiet:
    """A reporter; stops the run after so many steps."""

    def __init__(self, stop_after: int = 99) -> None:
        self.stop_after = stop_after

    def note(self, text: str) -> None: ...

    def begin(self, done: int, total: int) -> None: ...

    def stepped(self, done: int, lead: timedelta) -> None:
        if done >= self.stop_after:
            raise KeyboardInterrupt


def run(
    model: Checkpoint, analysis: Path, store: Path, *, reporter: Quiet | None = None, **compute: object
) -> Path:
    tree = {
        "model": {"name": str(model.folder)},
        "input": {"files": (analysis,)},
        "forecast": {"lead_time_hours": 24},
        "output": {"zarr": store, "grib": store.with_suffix(".grib")},
        "compute": {"threads": 1} | compute,
    }
    return run_forecast(RunConfig.model_validate(tree), reporter=reporter or Quiet()).store


def test_the_ghr_package_from_grib_to_products_within_a_budget(
    ghr: tuple[Checkpoint, Checkpoint], tmp_path: Path
) -> None:
    from fengwu_ghr.convert import About, convert

    published = tmp_path / "published"
    published.mkdir()
    for path in ghr[1].folder.glob("*.onnx"):
        (published / path.name).write_bytes(path.read_bytes())
    model = convert(published, tmp_path / "model", About(scale=40, statistics=_saved(ghr[1], tmp_path)))
    analysis = analysis_of(tmp_path / "analysis.grib2", "ghr-74")
    wanted, found = (run(one, analysis, tmp_path / f"{one.folder.name}.zarr") for one in (ghr[0], model))
    with xr.open_zarr(wanted) as one, xr.open_zarr(found) as other:
        assert other.sizes["prediction_timedelta"] == 5
        assert {"tp6h", "tcc", "100u"} <= set(map(str, other.data_vars))
        for name in ("z", "t", "tp6h", "10v"):
            spread = float(one[name].std())
            np.testing.assert_allclose(other[name].values, one[name].values, atol=1e-4 * spread)
            assert float(np.abs(one[name][0, -1] - one[name][0, 0]).max()) > 0.01 * spread
    assert len(list(found.with_suffix(".grib").glob("*.grib2"))) == 5
    with RunStore.open(found) as store:
        recorded = store.provenance(INITIAL_TIME)
    assert recorded is not None
    assert recorded["numerics"]["engine"] == "onnxruntime"
    assert reproduce(found, INITIAL_TIME, timedelta(hours=12), reporter=Quiet()).is_equal


def test_a_forecast_in_half_precision_is_made_again(
    ghr: tuple[Checkpoint, Checkpoint], tmp_path: Path
) -> None:
    model = export_onnx(
        ghr[0], tmp_path / "half", packaging="single", precision="float16", progress=Silence()
    )
    store = run(model, analysis_of(tmp_path / "analysis.grib2", "ghr-74"), tmp_path / "run.zarr")
    assert reproduce(store, INITIAL_TIME, timedelta(hours=24), reporter=Quiet()).is_equal


def test_memory_that_runs_out_is_said_and_other_errors_are_not_taken_for_it(
    ghr: tuple[Checkpoint, Checkpoint], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepper = OnnxStepper(ghr[1], COMPUTE, weight_bytes=EVERYTHING)
    stepper.put(states_of(ghr[1], rng), TIME)
    for words, kind in (
        ("Failed to allocate memory for requested buffer of size 7", ResourceError),
        ("CUDA failure 2: out of memory", ResourceError),
        ("Non-zero status code returned", UsageError),
    ):

        def fail(*args: object, words: str = words, **kwargs: object) -> None:
            raise RuntimeError(words)

        monkeypatch.setattr(stepper, "_run_graph", fail)
        with pytest.raises(kind, match=words):
            stepper.step(0)


def test_the_graph_of_fengwu_resumes_to_the_same_bytes(
    fengwu: tuple[Checkpoint, Checkpoint], tmp_path: Path
) -> None:
    analysis = analysis_of(tmp_path / "both.grib2", "fengwu-69", hours=(-6, 0))
    whole = run(fengwu[1], analysis, tmp_path / "whole.zarr")
    with pytest.raises(KeyboardInterrupt):
        run(fengwu[1], analysis, tmp_path / "stopped.zarr", reporter=Quiet(stop_after=2))
    stopped = run(fengwu[1], analysis, tmp_path / "stopped.zarr")
    assert shards(stopped) == shards(whole)
    with xr.open_zarr(whole) as found:
        assert found["t"].shape == (1, 5, 13, 19, 36)
        assert np.isfinite(found["t"]).all()


def test_a_budget_below_the_largest_graph_is_refused_before_anything_runs(
    ghr: tuple[Checkpoint, Checkpoint], tmp_path: Path
) -> None:
    analysis = analysis_of(tmp_path / "analysis.grib2", "ghr-74")
    with pytest.raises(ResourceError, match=r"this forecast needs .*weights .*raise --memory-budget"):
        run(ghr[1], analysis, tmp_path / "run.zarr", memory_budget=2**20)


def test_the_plan_says_which_graphs_stay(ghr: tuple[Checkpoint, Checkpoint], tmp_path: Path) -> None:
    analysis = analysis_of(tmp_path / "analysis.grib2", "ghr-74")
    tree = {
        "model": {"name": str(ghr[1].folder)},
        "input": {"files": (analysis,)},
        "forecast": {"lead_time_hours": 24},
        "output": {"zarr": tmp_path / "run.zarr"},
    }
    plan = plan_forecast(RunConfig.model_validate(tree))
    assert dict(plan.facts())["compute"].startswith("5 of 5 graphs stay loaded, ")
    assert plan.seconds_per_step > 0


@pytest.mark.parametrize("option", [{"paging": True}, {"compile": True}, {"ranks": 3}])
def test_options_of_the_torch_engine_are_refused(option: dict, ghr: tuple[Checkpoint, Checkpoint]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(option))} are for weights of ours; .* leave them out"):
        engines.check(ghr[1], Compute(**option))
