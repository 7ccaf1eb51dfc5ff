"""Look-ups in an ONNX graph: the producer and the readers of every value, types, shapes and constants.

The weights of a large file are never copied for it: types and shapes are inferred on a graph without them.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner
from numpy.typing import NDArray
from onnx import TensorProto, helper

from convnext_deploy.errors import ArtifactError, first_line
from convnext_deploy.graphs.onnx_io import check_external, read_tensor

LAYOUT = frozenset({"Transpose", "Reshape", "Identity", "Flatten", "Squeeze", "Unsqueeze"})
PAIR = frozenset({"QuantizeLinear", "DequantizeLinear"})
INTEGERS = frozenset({TensorProto.INT8, TensorProto.UINT8})
_LARGE = 1024  # elements; shapes, axes and exponents, whose values shape inference needs, have fewer

Shape = tuple[int | str | None, ...]


@dataclass(frozen=True)
class GraphView:
    """Look-ups in a graph. `nodes` are in the order of the file, with those of local functions and subgraphs in place."""

    model: onnx.ModelProto
    folder: Path
    nodes: tuple[onnx.NodeProto, ...]
    tensors: Mapping[str, TensorProto]
    types: Mapping[str, int]
    shapes: Mapping[str, Shape]
    top_level: int

    @cached_property
    def producers(self) -> Mapping[str, onnx.NodeProto]:
        """Value → the node that makes it."""
        return {name: node for node in self.nodes for name in node.output if name}

    @cached_property
    def _consumers(self) -> Mapping[str, tuple[onnx.NodeProto, ...]]:
        found: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                found[name].append(node)
        return {name: tuple(nodes) for name, nodes in found.items()}

    @cached_property
    def _constants(self) -> frozenset[str]:
        found = set(self.tensors)
        for node in self.nodes:
            if node.op_type == "Constant" or (any(node.input) and all(name in found for name in node.input if name)):
                found.update(node.output)
        return frozenset(found)

    @cached_property
    def opsets(self) -> Mapping[str, int]:
        """Domain → version; the standard operators under `ai.onnx`."""
        return {entry.domain or "ai.onnx": entry.version for entry in self.model.opset_import}

    @cached_property
    def inputs(self) -> tuple[onnx.ValueInfoProto, ...]:
        """The inputs that a caller gives; old files list their weights among them."""
        return tuple(value for value in self.model.graph.input if value.name not in self.tensors)

    def of_type(self, *operators: str) -> Iterator[onnx.NodeProto]:
        """Yield the nodes of some operators."""
        return (node for node in self.nodes if node.op_type in operators)

    def readers(self, name: str, through: Iterable[str] = ()) -> Iterator[onnx.NodeProto]:
        """Yield the nodes that read a value, looking through operators that only pass it on as their first input."""
        for node in self._consumers.get(name, ()):
            if node.op_type in through and node.input[0] == name:
                yield from self.readers(node.output[0], through)
            else:
                yield node

    def origin(self, name: str, through: Iterable[str]) -> str:
        """Return the value from which this one was made by operators that only pass their first input on."""
        while (node := self.producers.get(name)) is not None and node.op_type in through:
            name = node.input[0]
        return name

    def is_constant(self, name: str) -> bool:
        """Whether a value is in the file, or made of such values alone."""
        return name in self._constants

    def array(self, name: str) -> NDArray[Any] | None:
        """Return a value of the file, looking through Identity; None for what a node computes."""
        tensor = self.tensors.get(self.origin(name, {"Identity"}))
        return None if tensor is None else read_tensor(tensor, self.folder)

    def type_of(self, name: str) -> int:
        """Return the `TensorProto` type of a value; 0 where it is not known."""
        return self.types.get(name, TensorProto.UNDEFINED)

    def weights_of(self, node: onnx.NodeProto) -> Iterator[TensorProto]:
        """Yield the tensors in the file that a node's inputs are made of."""
        for name in node.input:
            if name in self.tensors:
                yield self.tensors[name]
            elif self.is_constant(name) and name in self.producers:
                yield from self.weights_of(self.producers[name])


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Return the value of an attribute, or `default` where it is not given."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def open_view(path: Path) -> GraphView:
    """Read an ONNX file, its weights with it where they lie inside, mapped where they lie beside it.

    Raises: ArtifactError: if it is not an ONNX file, is cut off, or weights beside it are missing.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}).") from None
    except Exception as error:
        # protobuf's DecodeError has no public home that is the same in all its implementations
        raise ArtifactError(
            f"{path} is not an ONNX file or is cut off ({first_line(error)}); expected a file that an ONNX exporter wrote."
        ) from None
    if not model.graph.node or not model.opset_import:
        missing = "operators" if not model.graph.node else "operator set"
        raise ArtifactError(f"{path} is not an ONNX file or is cut off: it has no {missing}.")
    if any(isinstance(text, bytes) for text in _texts(model)):
        raise ArtifactError(f"{path} is damaged: it has names that are not text; export it again.")
    return view_graph(model, path)


def view_graph(model: onnx.ModelProto, path: Path) -> GraphView:
    """Prepare a graph that was read from `path`, beside which the weights may lie. The model is not changed.

    Raises: ArtifactError: if weights beside it are missing.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and isinstance(value := attribute(node, "value"), TensorProto):
            tensors[node.output[0]] = value
    check_external(tensors.values(), path)
    light = _without_weights(model, tensors)
    if light.functions:
        light = onnx.inliner.inline_local_functions(light)
    try:
        inferred = onnx.shape_inference.infer_shapes(light, check_type=False, strict_mode=False, data_prop=True).graph
    except Exception:  # what a graph of another origin breaks in the inference only costs some types
        inferred = light.graph
    types = {name: tensor.data_type for name, tensor in tensors.items()}
    shapes: dict[str, Shape] = {name: tuple(tensor.dims) for name, tensor in tensors.items()}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        types.setdefault(value.name, value.type.tensor_type.elem_type)
        if value.type.tensor_type.HasField("shape"):
            shapes.setdefault(value.name, value_shape(value))
    nodes = tuple(_with_subgraphs(light.graph.node))
    for node in nodes:
        for name in node.output:
            if not types.get(name):
                types[name] = _guess_type(node, types)
    return GraphView(model, path.parent, nodes, tensors, types, shapes, len(light.graph.node))


def value_shape(value: onnx.ValueInfoProto) -> Shape:
    """Return the shape of a value: numbers, names of dynamic dimensions, None where nothing is said."""
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
        for dim in value.type.tensor_type.shape.dim
    )


def _texts(model: onnx.ModelProto) -> Iterator[str | bytes]:
    # protobuf gives bytes where a text is not UTF-8
    yield from (model.producer_name, model.producer_version, *(entry.domain for entry in model.opset_import))
    yield from (tensor.name for tensor in model.graph.initializer)
    for value in (*model.graph.input, *model.graph.output):
        yield from (value.name, *(dim.dim_param for dim in value.type.tensor_type.shape.dim))
    for node in model.graph.node:
        yield from (node.op_type, node.name, node.domain, *node.input, *node.output)


def _without_weights(model: onnx.ModelProto, tensors: Mapping[str, TensorProto]) -> onnx.ModelProto:
    # large tensors become inputs of the same type and shape
    large = {
        name: tensor
        for name, tensor in tensors.items()
        if math.prod(tensor.dims) > _LARGE or tensor.data_location == TensorProto.EXTERNAL
    }
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph = light.graph
    graph.name = model.graph.name or "graph"
    graph.node.extend(node for node in model.graph.node if not (node.op_type == "Constant" and node.output[0] in large))
    graph.input.extend(value for value in model.graph.input if value.name not in large)
    graph.input.extend(helper.make_tensor_value_info(n, t.data_type, t.dims) for n, t in large.items())
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name not in large)
    return light


def _with_subgraphs(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    inner = []
    for node in nodes:
        yield node
        inner += [a.g.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    for graph in inner:
        yield from _with_subgraphs(graph)


def _guess_type(node: onnx.NodeProto, types: Mapping[str, int]) -> int:
    """Return the type of a node's result where the inference gave up: by rule for what converts, else as its first input."""
    if node.op_type == "Cast":
        return int(attribute(node, "to", TensorProto.UNDEFINED))
    if node.op_type in ("Shape", "Size", "ArgMax", "NonZero"):
        return TensorProto.INT64
    if node.op_type == "QuantizeLinear":
        return types.get(node.input[2], TensorProto.UINT8) if len(node.input) > 2 else TensorProto.UINT8
    sources = node.input[1:2] if node.op_type == "DequantizeLinear" else node.input
    return next((types[name] for name in sources if types.get(name)), TensorProto.UNDEFINED)
