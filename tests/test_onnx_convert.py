"""ONNX files become a checkpoint, or it is said which file and tensor do not fit. Files as published, but empty."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from fengwu_ghr.checkpoint import Checkpoint
from fengwu_ghr.cli import app
from fengwu_ghr.convert import GHR_LEVELS, About, convert, graphs_at
from fengwu_ghr.errors import OutputError, UsageError
from fengwu_ghr.onnx_files import Cost, OnnxFile
from fengwu_ghr.variables import channel_set

KINDS = {"float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
Ports = dict[str, tuple[str, tuple[int | str, ...]]]


def write(path: Path, inputs: Ports, outputs: Ports, weights: dict[str, np.ndarray] | None = None) -> Path:
    """A graph with these inputs and outputs that passes its inputs on."""
    infos = [
        [helper.make_tensor_value_info(name, KINDS[kind], shape) for name, (kind, shape) in ports.items()]
        for ports in (inputs, outputs)
    ]
    nodes = [helper.make_node("Identity", [a], [b]) for a, b in zip(inputs, outputs)]
    tensors = [numpy_helper.from_array(values, name) for name, values in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", *infos, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


def fengwu(folder: Path, *, channels: int = 138, rows: int = 721) -> Path:
    """The one graph of FengWu, with statistics beside it."""
    folder.mkdir(exist_ok=True)
    shape = ("float32", (1, channels, rows, 2 * (rows - 1)))
    np.save(folder / "data_mean.npy", np.arange(69.0))
    np.save(folder / "data_std.npy", np.arange(1.0, 70.0))
    return write(folder / "fengwu_v2.onnx", {"input": shape}, {"output": shape})


def ghr(
    folder: Path, *, blocks: int = 3, channels: int = 74, width: int = 8, last: int | None = None
) -> Path:
    """The package of GHR at 0.09 degrees, in half precision; the last block of another `width` where given."""
    folder.mkdir(exist_ok=True)
    state, step = ("float16", (1, channels, 2163, 4320)), ("int64", ())
    tokens, odd = (("float16", (9, 7200, w)) for w in (width, last or width))
    write(folder / "encoder.onnx", {"state": state, "step": step}, {"tokens": tokens, "step_out": step})
    for number in range(blocks):
        one = odd if number == blocks - 1 else tokens
        write(folder / f"block_{number}.onnx", {"x": one, "s": step}, {"y": one, "t": step})
    write(folder / "decoder.onnx", {"tokens": odd, "step": step}, {"output": state})
    levels = {name: [float(level) for level in GHR_LEVELS] for name in "zquvt"}
    single = {
        "v10": 1.0,
        "u10": 2.0,
        "v100": 3.0,
        "u100": 4.0,
        "t2m": 5.0,
        "tcc": 6.0,
        "sp": 7.0,
        "tp6h": 8.0,
        "msl": 9.0,
    }
    (folder / "mean_std.json").write_text(json.dumps({"mean": levels, "std": levels}))
    (folder / "mean_std_single.json").write_text(json.dumps({"mean": single, "std": single}))
    return folder


def test_the_graph_of_fengwu(tmp_path: Path) -> None:
    made = convert(fengwu(tmp_path / "published"), tmp_path / "model")
    assert (made.channels.name, made.history, made.grid.registration) == ("fengwu-69", 2, "backbone")
    assert made.grid.shape == (721, 1440)
    assert made.grid.product.name == "0p25"
    assert made.normalisation.mean.tolist() == list(range(69))
    assert made.channels.names[:5] == ("10u", "10v", "2t", "msl", "z50")
    assert Checkpoint.open(tmp_path / "model").digest == made.digest
    assert (tmp_path / "published" / "fengwu_v2.onnx").exists()


def test_the_package_of_ghr(tmp_path: Path) -> None:
    made = convert(ghr(tmp_path / "ghr_0.09"), tmp_path / "model")
    package = made.onnx
    assert package is not None
    assert (made.channels.name, made.history, made.grid.registration) == ("ghr-74", 1, "pixel")
    assert package.precision == "float16"
    assert [graph.file for graph in package.graphs] == [
        "encoder.onnx", "block_0.onnx", "block_1.onnx", "block_2.onnx", "decoder.onnx",
    ]  # fmt: skip
    mean = dict(zip(made.channels.names, made.normalisation.mean.tolist()))
    assert (mean["z500"], mean["t850"], mean["10v"], mean["2t"], mean["tp6h"]) == (500, 850, 1, 5, 8)


def test_blocks_run_by_their_number_not_by_their_letters(tmp_path: Path) -> None:
    names = [path.name for path in graphs_at(ghr(tmp_path / "package", blocks=12))]
    assert names[:4] == ["encoder.onnx", "block_0.onnx", "block_1.onnx", "block_2.onnx"]
    assert names[-2:] == ["block_11.onnx", "decoder.onnx"]


def test_published_statistics_are_read_as_they_are(tmp_path: Path, data_dir: Path) -> None:
    folder = data_dir / "fengwu_stats"
    told = About(statistics=(folder / "data_mean.npy", folder / "data_std.npy"))
    made = convert(fengwu(tmp_path / "fengwu"), tmp_path / "one", told)
    z500 = made.channels.names.index("z500")
    assert made.normalisation.mean[z500] == pytest.approx(53826.5, abs=0.1)
    tables = data_dir / "ghr_stats"
    told = About(statistics=(tables / "ghr_mean_std.json", tables / "ghr_mean_std_single.json"))
    made = convert(ghr(tmp_path / "ghr"), tmp_path / "two", told)
    found = dict(zip(made.channels.names, zip(made.normalisation.mean, made.normalisation.std)))
    assert found["z500"] == pytest.approx((54117.0499, 3360.47198))
    assert found["t850"] == pytest.approx((274.5680654, 15.6181403))
    assert found["tp6h"] == pytest.approx((0.59389654, 1.57318021))


def test_an_open_size_needs_a_scale(tmp_path: Path) -> None:
    shape = ("float32", ("batch", 138, "rows", "columns"))
    path = write(tmp_path / "open.onnx", {"input": shape}, {"output": shape})
    fengwu(tmp_path)
    with pytest.raises(UsageError, match="an open size needs --scale"):
        convert(path, tmp_path / "model")
    with pytest.raises(UsageError, match="say which with --registration pixel"):
        convert(path, tmp_path / "model", About(scale=20))
    with pytest.raises(UsageError, match="0"):
        convert(path, tmp_path / "model", About(scale=0))
    told = About(scale=20, registration="backbone")
    assert convert(path, tmp_path / "model", told).grid.shape == (37, 72)
    write(path, {"input": shape}, {"output": ("float32", (1, "channels", "rows", "columns"))})
    with pytest.raises(UsageError, match="does not say how many channels it has"):
        convert(path, tmp_path / "other", told)


def test_a_file_in_the_working_folder_gives_the_model_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fengwu(tmp_path)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["models", "convert", "fengwu_v2.onnx", "--output", "made"])
    assert result.exit_code == 0, result.output
    assert Checkpoint.open(Path("made")).card.name == "fengwu_v2"
    ghr(tmp_path / "package")
    monkeypatch.chdir(tmp_path / "package")
    assert convert(Path("."), tmp_path / "other").card.name == "package"


def test_weights_that_are_links_to_elsewhere_come_along(tmp_path: Path) -> None:
    path = fengwu(tmp_path / "blobs")
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(5000, np.float32), "heavy"))
    onnx.save(model, path, save_as_external_data=True, location="fengwu.data", size_threshold=0)
    shown = tmp_path / "shown"
    shown.mkdir()
    for one in (tmp_path / "blobs").iterdir():
        (shown / one.name).symlink_to(one)
    made = convert(shown / "fengwu_v2.onnx", tmp_path / "model")
    assert (made.folder / "fengwu.data").stat().st_size == 20000
    assert not (made.folder / "fengwu.data").is_symlink()


@pytest.mark.parametrize("place", ["node", "branch"])
def test_weights_within_a_graph_within_a_node_are_looked_for_too(place: str, tmp_path: Path) -> None:
    path = fengwu(tmp_path / "published")
    model = onnx.load(path)
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "deep")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="deep.data")
    node = model.graph.node[0].attribute.add(name="deep")
    holder = node.tensors.add() if place == "node" else node.g.initializer.add()
    holder.CopyFrom(tensor)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UsageError, match=r"the tensor deep lies in .*deep\.data, which is missing"):
        OnnxFile(path)
    (path.parent / "deep.data").write_bytes(bytes(15))
    with pytest.raises(UsageError, match=r"holds 15 bytes, the tensor deep of .* ends at 16"):
        OnnxFile(path)
    holder.external_data.add(key="offset", value="a lot")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UsageError, match="is not said in numbers"):
        OnnxFile(path)


def test_weights_named_as_the_card_are_refused(tmp_path: Path) -> None:
    path = fengwu(tmp_path / "published")
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(5000, np.float32), "heavy"))
    onnx.save(model, path, save_as_external_data=True, location="model.toml", size_threshold=0)
    with pytest.raises(UsageError, match="has the name of a checkpoint's card"):
        convert(path, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_weights_in_a_file_beside_come_along_and_are_counted(tmp_path: Path) -> None:
    path = fengwu(tmp_path / "published")
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(5000, np.float32), "heavy"))
    onnx.save(model, path, save_as_external_data=True, location="fengwu.data", size_threshold=0)
    assert OnnxFile(path).bytes > 20000
    made = convert(path, tmp_path / "model")
    assert set(made.card.files) == {"fengwu_v2.onnx", "fengwu.data"}
    (tmp_path / "published" / "fengwu.data").unlink()
    with pytest.raises(
        UsageError, match=r"fengwu_v2\.onnx: the tensor heavy lies in .*fengwu\.data, which is missing"
    ):
        OnnxFile(path)
    (tmp_path / "published" / "fengwu.data").write_bytes(bytes(100))
    with pytest.raises(
        UsageError, match=r"holds 100 bytes, the tensor heavy of fengwu_v2\.onnx ends at 20000"
    ):
        OnnxFile(path)


def test_weights_outside_the_folder_are_refused(tmp_path: Path) -> None:
    path = fengwu(tmp_path / "published")
    model = onnx.load(path)
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "far")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    model.graph.initializer.append(tensor)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(
        UsageError, match=r"the tensor far lies in '\.\./\.\./etc/passwd', outside its folder"
    ):
        convert(path, tmp_path / "model")


def test_what_is_missing_or_too_much_in_a_package_is_named(tmp_path: Path) -> None:
    package = ghr(tmp_path / "package", blocks=4)
    (package / "block_2.onnx").rename(package / "other.onnx")
    with pytest.raises(UsageError, match=r"is a package without block_2\.onnx; fetch what is missing"):
        convert(package, tmp_path / "model")
    (package / "other.onnx").rename(package / "block_2.onnx")
    fengwu(tmp_path / "fengwu").rename(package / "fengwu_v2.onnx")
    with pytest.raises(UsageError, match=r"holds fengwu_v2\.onnx beside a package"):
        convert(package, tmp_path / "model")
    with pytest.raises(UsageError, match=r"holds no \.onnx file; a package has encoder\.onnx"):
        graphs_at(tmp_path)


def test_a_graph_of_another_model_in_the_chain_is_named(tmp_path: Path) -> None:
    package = ghr(tmp_path / "package", blocks=3, last=16)
    message = (
        r"block_1\.onnx gives y \(float16, 9 x 7200 x 8\), block_2\.onnx wants x \(float16, 9 x 7200 x 16\)"
    )
    with pytest.raises(UsageError, match=message):
        convert(package, tmp_path / "model")


@pytest.mark.parametrize(
    ("channels", "rows", "message"),
    [
        (
            140,
            721,
            r"has 140 channels; known are 69 \(fengwu-69, 1 state\(s\)\), 138 \(fengwu-69, 2 state\(s\)\)",
        ),
        (138, 720, "is not on a grid that is known here: 721 x 1440"),
    ],
)
def test_another_input_is_refused(channels: int, rows: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        convert(fengwu(tmp_path / "published", channels=channels, rows=rows), tmp_path / "model")


def test_graphs_that_are_no_forecast_models_are_refused(tmp_path: Path) -> None:
    flat, state = ("float32", (1, 10)), ("float32", (1, 69, 721, 1440))
    no_state = write(tmp_path / "classes.onnx", {"x": flat}, {"y": flat})
    with pytest.raises(
        UsageError, match=r"classes\.onnx wants x \(float32, 1 x 10\): a model is first given a state"
    ):
        convert(no_state, tmp_path / "model")
    several = ("float32", (2, 138, 721, 1440))
    batched = write(tmp_path / "batched.onnx", {"x": several}, {"y": several})
    with pytest.raises(
        UsageError, match=r"wants x \(float32, 2 x 138 x 721 x 1440\): a model is first given"
    ):
        convert(batched, tmp_path / "model")
    half = ("float16", (1, 69, 721, 1440))
    mixed = write(tmp_path / "mixed.onnx", {"x": state}, {"y": half})
    with pytest.raises(UsageError, match=r"gives y .* of float32 as the one it is fed"):
        convert(mixed, tmp_path / "model")
    silent = onnx.load(write(tmp_path / "silent.onnx", {"x": state}, {"y": state}))
    silent.graph.output[0].type.tensor_type.ClearField("shape")
    (tmp_path / "silent.onnx").write_bytes(silent.SerializeToString())
    with pytest.raises(UsageError, match=r"gives y \(float32, of any shape\): the last graph gives a state"):
        convert(tmp_path / "silent.onnx", tmp_path / "model")
    masked = write(tmp_path / "masked.onnx", {"x": state, "mask": flat}, {"y": state, "z": flat})
    with pytest.raises(
        UsageError, match=r"wants mask \(float32, 1 x 10\) beside a state: only the lead step"
    ):
        convert(masked, tmp_path / "model")
    scored = write(tmp_path / "scored.onnx", {"x": state}, {"y": flat})
    with pytest.raises(
        UsageError, match=r"scored\.onnx gives y \(float32, 1 x 10\): the last graph gives a state"
    ):
        convert(scored, tmp_path / "model")


def test_a_file_that_was_cut_off_or_is_something_else_is_named(tmp_path: Path) -> None:
    whole = fengwu(tmp_path / "published").read_bytes()
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"cut\.onnx is not an ONNX file, or was cut off|holds no graph"):
        convert(cut, tmp_path / "model")
    cut.write_bytes(b"")
    with pytest.raises(UsageError, match=r"cut\.onnx holds no graph; fetch it again"):
        convert(cut, tmp_path / "model")
    with pytest.raises(UsageError, match=r"nowhere\.onnx is not there"):
        convert(tmp_path / "nowhere.onnx", tmp_path / "model")


def test_statistics_must_be_there_and_fit(tmp_path: Path) -> None:
    path = fengwu(tmp_path / "published")
    np.save(tmp_path / "short.npy", np.ones(5))
    short = (tmp_path / "short.npy", tmp_path / "short.npy")
    with pytest.raises(UsageError, match=r"short\.npy hold 5 values, fengwu-69 has 69 channels"):
        convert(path, tmp_path / "model", About(statistics=short))
    (tmp_path / "published" / "data_std.npy").unlink()
    with pytest.raises(
        UsageError, match=r"needs the mean and std it was trained with: --statistics mean\.npy"
    ):
        convert(path, tmp_path / "model")
    package = ghr(tmp_path / "package")
    (package / "mean_std_single.json").write_text('{"mean": {}, "std": {}}')
    with pytest.raises(UsageError, match="the statistics have no v10, which ghr-74 needs for 10v"):
        convert(package, tmp_path / "other")
    (package / "mean_std_single.json").write_text('{"mean": {"v10": "strong"}, "std": {}}')
    with pytest.raises(UsageError, match="the statistics of v10 are 'strong'; they are a number"):
        convert(package, tmp_path / "other")
    (package / "mean_std_single.json").write_text('{"mean": [1], "std": {}}')
    with pytest.raises(UsageError, match='is not JSON of "mean" and "std" by variable'):
        convert(package, tmp_path / "other")


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        convert(fengwu(tmp_path / "published"), tmp_path / "model")


def test_operations_and_memory_are_counted(tmp_path: Path) -> None:
    a = helper.make_tensor_value_info("a", TensorProto.FLOAT, (4, "n", 8))
    c = helper.make_tensor_value_info("c", TensorProto.FLOAT, (4, "n", 16))
    weight = numpy_helper.from_array(np.zeros((8, 16), np.float32), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "w"], ["c"])], "g", [a], [c], [weight])
    path = tmp_path / "product.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    cost = OnnxFile(path).cost({"a": (4, 10, 8)})
    assert cost.flops == 2 * 4 * 10 * 8 * 16
    assert cost.working_bytes == 4 * (4 * 10 * 8 + 4 * 10 * 16)
    assert cost.outputs == ((4, 10, 16),)
    # With a size left open nothing is guessed.
    assert OnnxFile(path).cost({}) == Cost(0, 0, (None,))


def test_an_untrained_forecast_is_no_longer_told_of_a_converted_model(tmp_path: Path) -> None:
    made = convert(fengwu(tmp_path / "published"), tmp_path / "model", About(name="fengwu-v2"))
    facts = made.facts()
    assert (facts["name"], facts["trained"], facts["channels"]) == ("fengwu-v2", True, "fengwu-69 (69)")
    assert "not for commercial use" in str(facts["licence"])
    with pytest.raises(
        UsageError, match="is an ONNX package: it makes forecasts, but cannot be trained or exported"
    ):
        _ = made.architecture
    assert channel_set("fengwu-69").names == made.channels.names
