"""Look-ups in an ONNX graph of any origin, read with onnx-ir: what a value was made from, who reads it, what is constant.

The weights of a large file are never copied for it: types and shapes are inferred on a graph without them, and those in a file
beside the graph are mapped, not read.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass, ShapeInferencePass

from convnext_deploy.documents import leads_out
from convnext_deploy.errors import ArtifactError, first_line
from convnext_deploy.graphs.onnx_io import load_onnx

LAYOUT = frozenset({"Transpose", "Reshape", "Identity", "Flatten", "Squeeze", "Unsqueeze"})
PAIR = frozenset({"QuantizeLinear", "DequantizeLinear"})
_SHORT_NAMES = {"FLOAT": "FP32", "FLOAT16": "FP16", "BFLOAT16": "BF16", "DOUBLE": "FP64", "UNDEFINED": "?"}

Shape = tuple[int | str | None, ...]


@dataclass(frozen=True)
class GraphView:
    """A graph whose constants are initializers. `nodes` are in the order of the file, with those of subgraphs in place.

    `guessed`: the values whose types the inference could not tell, and which have the likeliest one.
    """

    model: ir.Model
    nodes: tuple[ir.Node, ...]
    guessed: tuple[ir.Value, ...] = ()

    @property
    def tensors(self) -> tuple[ir.Value, ...]:
        """The values that are in the file."""
        return tuple(self.model.graph.initializers.values())

    @property
    def inputs(self) -> tuple[ir.Value, ...]:
        """The inputs that a caller gives; old files list their weights among them."""
        return tuple(value for value in self.model.graph.inputs if not value.is_initializer())

    @cached_property
    def _constants(self) -> frozenset[ir.Value]:
        found = set(self.tensors)
        for node in self.nodes:
            if node.op_type == "Constant" or (inputs_of(node) and found.issuperset(inputs_of(node))):
                found.update(node.outputs)
        return frozenset(found)

    def of_type(self, *operators: str) -> Iterator[ir.Node]:
        """Yield the nodes of some operators."""
        return (node for node in self.nodes if node.op_type in operators)

    def is_constant(self, value: ir.Value | None) -> bool:
        """Whether a value is in the file, or made of such values alone."""
        return value in self._constants

    def weights_of(self, node: ir.Node) -> Iterator[ir.Value]:
        """Yield the values in the file that a node's inputs are made of."""
        for value in inputs_of(node):
            if value.is_initializer():
                yield value
            elif self.is_constant(value) and (maker := value.producer()) is not None:
                yield from self.weights_of(maker)


def inputs_of(node: ir.Node) -> list[ir.Value]:
    """Return the inputs of a node but for optional ones that are left out."""
    return [value for value in node.inputs if value is not None]


def readers(value: ir.Value, through: Iterable[str] = ()) -> Iterator[ir.Node]:
    """Yield the nodes that read a value, looking through operators that only pass it on as their first input."""
    for node in value.consumers():
        if node.op_type in through and node.inputs[0] is value:
            yield from readers(node.outputs[0], through)
        else:
            yield node


def origin(value: ir.Value, through: Iterable[str]) -> ir.Value:
    """Return the value from which this one was made by operators that only pass their first input on."""
    while (node := value.producer()) is not None and node.op_type in through and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


def array(value: ir.Value) -> NDArray[Any] | None:
    """Return a value of the file, looking through Identity; None for what a node computes."""
    tensor = origin(value, {"Identity"}).const_value
    return None if tensor is None else tensor.numpy()


def type_of(value: ir.Value) -> ir.DataType:
    """Return the type of a value, `UNDEFINED` where it is not known."""
    return value.dtype or ir.DataType.UNDEFINED


def type_name(value: ir.Value) -> str:
    """Return the type of a value as people write it, such as `FP16` or `INT8`; `?` where it is not known."""
    name = type_of(value).name
    return _SHORT_NAMES.get(name, name)


def shape_of(value: ir.Value | None) -> Shape:
    """Return the shape of a value: numbers, names of dynamic dimensions, None where nothing is said; empty if it is not known."""
    if value is None or value.shape is None:
        return ()
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)


def shape_words(shape: Shape) -> str:
    """Return a shape as people write it, `(batch, 3, ?, ?)`."""
    return f"({', '.join('?' if size is None else str(size) for size in shape)})"


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """Return the value of an attribute, or `default` where it is not given."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def open_view(path: Path) -> GraphView:
    """Read an ONNX file.

    Raises: ArtifactError: if it is not an ONNX file, is cut off or damaged, or weights beside it are missing.
    """
    proto = load_onnx(path)
    try:
        with _without_words():
            model = ir.from_proto(proto)
    except Exception as error:  # of any kind, where names are not text or nodes contradict each other
        cause = _cause(error)
        said = "places of weights that are no numbers" if "positional argument" in str(cause) else first_line(cause)
        raise ArtifactError(f"{path} is damaged ({said}); export it again.") from None
    ir.external_data.set_base_dir(model.graph, path.parent)
    check_external(model, path)
    try:
        return view_graph(model)
    except (TypeError, ValueError, LookupError) as error:  # as of functions that were written for another opset
        raise ArtifactError(f"{path} contradicts itself ({first_line(error)}); export it again.") from None


def view_graph(model: ir.Model) -> GraphView:
    """Prepare a graph, which is changed: functions become nodes, constants initializers, and types and shapes are inferred."""
    declared = [(value, value.shape) for value in model.graph.outputs]
    with _without_words():  # what a graph of another origin breaks in the inference only costs some types
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        if model.functions:
            InlinePass()(model)
        ShapeInferencePass(check_type=False, strict_mode=False)(model)
    for value, shape in declared:
        value.shape = shape
    nodes = tuple(model.graph.all_nodes())
    guessed = []
    for node in nodes:
        for value in node.outputs:
            if not value.dtype:
                value.dtype = _guess_type(node)
                guessed.append(value)
    return GraphView(model, nodes, tuple(guessed))


@contextmanager
def _without_words() -> Iterator[None]:
    """Keep onnx-ir from logging what is wrong with a graph, which rules say better."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _cause(error: BaseException) -> BaseException:
    return error if error.__cause__ is None else _cause(error.__cause__)


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Yield the tensors that are kept in files beside the model's own."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value


def check_external(model: ir.Model, path: Path) -> None:
    """Check that the files are there in which the ONNX file at `path` keeps tensors.

    Raises: ArtifactError: if one of them is missing or too short.
    """
    ends: dict[str, int] = defaultdict(int)
    for tensor in external_tensors(model):
        ends[str(tensor.location)] = max(ends[str(tensor.location)], (tensor.offset or 0) + (tensor.length or 0))
    for location, end in ends.items():
        data = path.parent / location
        if location and leads_out(path.parent, location, path):
            raise ArtifactError(
                f"{path} points to weights outside its folder, '{location}'; expected a file beside it."
            )
        found = data.stat().st_size if location and data.is_file() else None
        if found is None or found < end:
            state = "is missing" if found is None else f"has {found} bytes of the {end} expected"
            raise ArtifactError(
                f"{path} keeps its weights in '{location}' beside it, which {state}; copy both files together."
            )


def _guess_type(node: ir.Node) -> ir.DataType:
    """Return the type of a node's result where the inference gave up: by rule for what converts, else as its first input."""
    if node.op_type == "Cast":
        return ir.DataType(attribute(node, "to", ir.DataType.UNDEFINED))
    if node.op_type in ("Shape", "Size", "ArgMax", "NonZero"):
        return ir.DataType.INT64
    if node.op_type == "QuantizeLinear":
        return type_of(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else ir.DataType.UINT8
    scaled = {"DequantizeLinear": 1, "MatMulIntegerToFloat": 2}.get(node.op_type)  # what has the type of a scale
    sources = inputs_of(node) if scaled is None else node.inputs[scaled : scaled + 1]
    return next((value.dtype for value in sources if value is not None and value.dtype), ir.DataType.UNDEFINED)
