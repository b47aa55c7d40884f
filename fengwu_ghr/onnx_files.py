"""What an ONNX file holds, read without running it: inputs and outputs, weights in files beside it, what it costs.

Every defect is a UsageError that names the file and, where it has one, the tensor.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

from fengwu_ghr.errors import UsageError

Shape = tuple[int | None, ...]
"""Sizes by dimension; None where the graph leaves one open."""

_LARGE = 2**16
"""Bytes of a tensor that is a weight, and not a shape that others are worked out from."""

INSTALL = "pip install 'fengwu_ghr[onnx]', or [onnx-gpu] where there is a GPU"


@dataclass(frozen=True)
class Value:
    """An input or output of a graph."""

    name: str
    type: str
    """Of its elements, as numpy spells it."""
    shape: Shape | None
    """None where not even the number of dimensions is said."""

    @property
    def sizes(self) -> Shape:
        """The shape where there is one; raises ValueError where there is none."""
        if self.shape is None:
            raise ValueError(f"{self} has no shape")
        return self.shape

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.name} ({self.type}, of any shape)"
        sizes = " x ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name} ({self.type}, {sizes or 'a number'})"


@dataclass(frozen=True)
class Cost:
    """What a run takes; zeros where shapes cannot be followed through the graph."""

    flops: int
    working_bytes: int
    """Held at the peak beside weights."""
    outputs: tuple[Shape | None, ...]
    """Shapes of what comes out, None where one is not known whole."""


class OnnxFile:
    """A graph on disk that is whole: it parses, and all its weights are there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._onnx = _onnx()
        self._model = self._read()
        self.external = self._check_external()

    @cached_property
    def inputs(self) -> tuple[Value, ...]:
        """What it must be fed, in its order; weights that are listed as inputs are not among them."""
        weights = {tensor.name for tensor in self._model.graph.initializer}
        return tuple(self._value(one) for one in self._model.graph.input if one.name not in weights)

    @cached_property
    def outputs(self) -> tuple[Value, ...]:
        return tuple(map(self._value, self._model.graph.output))

    @property
    def bytes(self) -> int:
        """Of the file and of all that it keeps beside it."""
        return self.path.stat().st_size + sum(path.stat().st_size for path in self.external)

    def cost(self, shapes: Mapping[str, Shape]) -> Cost:
        """Of a run with inputs of these shapes; inputs that are not among them are as the graph says."""
        model = self._onnx.ModelProto()
        model.CopyFrom(self._model)
        for value in model.graph.input:
            for size, dimension in zip(shapes.get(value.name, ()), value.type.tensor_type.shape.dim):
                dimension.Clear()
                if size is not None:
                    dimension.dim_value = size
        try:
            graph = self._onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        except self._onnx.shape_inference.InferenceError:
            return Cost(0, 0, ())
        known = self._sizes(graph)
        outputs = tuple(known[value.name][0] if value.name in known else None for value in graph.output)
        if any(name not in known for node in graph.node for name in node.output if name):
            return Cost(0, 0, outputs)
        return Cost(sum(_operations(node, known) for node in graph.node), self._peak(graph, known), outputs)

    def _read(self) -> Any:
        try:
            model = self._onnx.load(str(self.path), load_external_data=False)
        except FileNotFoundError:
            raise UsageError(f"{self.path} is not there") from None
        except OSError as error:
            raise UsageError(f"{self.path} cannot be read: {error.strerror}") from error
        except Exception as error:  # protobuf's own error has no public home
            if type(error).__name__ != "DecodeError":
                raise
            raise UsageError(
                f"{self.path} is not an ONNX file, or was cut off ({error}); fetch it again"
            ) from None
        if not model.graph.node:
            raise UsageError(f"{self.path} holds no graph; fetch it again")
        # What weights say is onnxruntime's to read: gigabytes of them are not kept, nor copied for every question.
        for tensor in model.graph.initializer:
            if len(tensor.raw_data) > _LARGE:
                tensor.ClearField("raw_data")
        return model

    def _check_external(self) -> tuple[Path, ...]:
        """The files in which tensors lie; each is there, in the folder of the graph, and long enough."""
        found: dict[Path, None] = {}
        for tensor in self._tensors():
            if tensor.data_location != self._onnx.TensorProto.EXTERNAL:
                continue
            about = {entry.key: entry.value for entry in tensor.external_data}
            name = about.get("location", "")
            path = self.path.parent / name
            # By its name alone: where files are kept by their hash, both are links to elsewhere.
            if not name or Path(name).name != name:
                raise UsageError(
                    f"{self.path}: the tensor {tensor.name} lies in {name!r}, outside its folder; "
                    "save the model again with its data beside it"
                )
            if not path.is_file():
                raise UsageError(f"{self.path}: the tensor {tensor.name} lies in {path}, which is missing")
            needed = self._end(tensor, about)
            if (size := path.stat().st_size) < needed:
                raise UsageError(
                    f"{path} holds {size} bytes, the tensor {tensor.name} of {self.path.name} ends at {needed}; "
                    "fetch it again"
                )
            found[path] = None
        return tuple(found)

    def _end(self, tensor: Any, about: Mapping[str, str]) -> int:
        """Where a tensor ends in the file that holds it."""
        try:
            offset = int(about.get("offset", 0))
            itemsize = self._onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            return offset + int(about.get("length", prod(tensor.dims) * itemsize))
        except (KeyError, ValueError):
            raise UsageError(
                f"{self.path}: where the tensor {tensor.name} lies in its file is not said in numbers ({dict(about)}); "
                "save the model again"
            ) from None

    def _tensors(self) -> Iterator[Any]:
        yield from _tensors_of(self._model.graph)

    def _value(self, value: Any) -> Value:
        kind = value.type.tensor_type
        sizes = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
        shape = sizes if kind.HasField("shape") else None
        return Value(value.name, self._type_name(kind.elem_type), shape)

    def _type_name(self, element: int) -> str:
        try:
            return str(self._onnx.helper.tensor_dtype_to_np_dtype(element))
        except KeyError:
            return "unknown"

    def _sizes(self, graph: Any) -> dict[str, tuple[Shape, int]]:
        """Shape and bytes of an element of every tensor whose shape is known whole."""
        known: dict[str, tuple[Shape, int]] = {}
        for value in (*graph.input, *graph.value_info, *graph.output):
            one = self._value(value)
            if one.shape is not None and None not in one.shape and one.type != "unknown":
                dtype = self._onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
                known[one.name] = one.shape, dtype.itemsize
        for tensor in graph.initializer:
            known[tensor.name] = tuple(tensor.dims), 0  # weights are counted by themselves
        return known

    def _peak(self, graph: Any, known: Mapping[str, tuple[Shape, int]]) -> int:
        """The most that tensors hold together, each from the node that makes it to the last that reads it."""
        kept = {value.name for value in graph.output}
        last = {name: index for index, node in enumerate(graph.node) for name in node.input}
        held = peak = sum(_bytes(known, value.name) for value in graph.input)
        for index, node in enumerate(graph.node):
            held += sum(_bytes(known, name) for name in node.output)
            peak = max(peak, held)
            done = {name for name in node.input if last[name] == index and name not in kept}
            held -= sum(_bytes(known, name) for name in done)
        return peak


def check_chain(files: Sequence[OnnxFile]) -> None:
    """Raises UsageError unless every graph can be fed, by position, what the one before it gives."""
    for before, after in zip(files, islice(files, 1, None)):
        if len(after.inputs) > len(before.outputs):
            raise UsageError(
                f"{after.path.name} wants {_names(after.inputs)}, {before.path.name} gives {_names(before.outputs)}: "
                "these graphs do not follow one another"
            )
        for given, wanted in zip(before.outputs, after.inputs):
            if given.type != wanted.type or not _fits(given.shape, wanted.shape):
                raise UsageError(
                    f"{before.path.name} gives {given}, {after.path.name} wants {wanted}: they are not of one package"
                )


def _fits(given: Shape | None, wanted: Shape | None) -> bool:
    """Whether the two may be one shape, as far as they are said."""
    if given is None or wanted is None:
        return True
    return len(given) == len(wanted) and all(a == b for a, b in zip(given, wanted) if None not in (a, b))


def _tensors_of(graph: Any) -> Iterator[Any]:
    """Every tensor of a graph, those of graphs within its nodes too."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors_of(inner)


def _names(values: Sequence[Value]) -> str:
    return ", ".join(map(str, values)) or "nothing"


def _bytes(known: Mapping[str, tuple[Shape, int]], name: str) -> int:
    shape, size = known.get(name, ((), 0))
    return prod(filter(None, shape)) * size


def _operations(node: Any, known: Mapping[str, tuple[Shape, int]]) -> int:
    """Multiplications and additions of the nodes that take the time: products of matrices and convolutions."""
    names = (*node.input[:2], node.output[0])
    if len(names) < 3 or any(name not in known for name in names):
        return 0
    first, second, result = (known[name][0] for name in names)
    match node.op_type:
        case "MatMul":
            return 2 * _product(result) * (first[-1] or 0)
        case "Gemm":
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            return 2 * _product(result) * (first[0 if transposed else 1] or 0)
        case "Conv":
            return 2 * _product(result) * _product(second[1:])
        case "ConvTranspose":
            return 2 * _product(first) * _product(second[1:])
        case "Attention":
            return 4 * _product(first) * (second[-2] or 0)
    return 0


def _product(shape: Sequence[int | None]) -> int:
    return prod(size or 0 for size in shape)


def _onnx() -> Any:
    try:
        import onnx
        import onnx.shape_inference
    except ImportError as error:
        raise UsageError(f"reading ONNX files needs onnx: {INSTALL}") from error
    return onnx
