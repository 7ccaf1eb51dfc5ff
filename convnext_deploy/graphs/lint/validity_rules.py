"""Rules for what every runtime asks of a file: that it is valid ONNX, and takes what images come as."""

import functools
from collections.abc import Iterator, Sequence

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import CheckerPass

from convnext_deploy.graphs.compute_nodes import AnalyzedGraph, node_label
from convnext_deploy.graphs.lint.rule import EXPORT, Place, Rule, error, invalid
from convnext_deploy.graphs.onnx_view import inputs_of, type_name

IMAGE_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.UINT8)
_STANDARD = ("", "ai.onnx")
_SHAPES = ("Shape", "Size")  # read no pixels
_CHECKER_ERRORS = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, TypeError, ValueError)
_MOST_TO_CHECK = 1 << 30  # bytes of weights beside a file that are taken into memory for the checker


@invalid(
    "by the ONNX standard the file has no meaning: runtimes refuse it, or guess one",
    "declare the opset that the operator came with, convert with onnx.version_converter, or " + EXPORT,
)
def operator_not_in_opset(graph: AnalyzedGraph) -> Iterator[Place]:
    """Standard operators that the declared opset does not have, not yet or no longer."""
    declared = graph.view.model.opset_imports.get("", 0)
    if declared > onnx.defs.onnx_opset_version():
        return  # newer than the standard that is installed here
    for node in graph.view.nodes:
        if node.domain in _STANDARD and declared not in (opsets := _opsets_of(node.op_type)):
            yield f"{node_label(node)} ({node.op_type} is {_place_in_time(opsets, declared)})"


def _place_in_time(opsets: Sequence[int], declared: int) -> str:
    if not opsets:
        return "in no opset"
    known = f"from opset {opsets[0]} on" if declared < opsets[0] else f"up to opset {opsets[-1]}"
    return f"in the standard {known}, not in {declared}"


@functools.cache
def _opsets_of(operator: str) -> tuple[int, ...]:
    """Return the versions of the standard that have an operator."""
    return tuple(
        version
        for version in range(1, onnx.defs.onnx_opset_version() + 1)
        if onnx.defs.has(operator, version, "") and not onnx.defs.get_schema(operator, version, "").deprecated
    )


@invalid(
    "no runtime can compute what is not there, and all refuse the file",
    "export the model again; a tool cut too much out of it",
)
def value_nothing_makes(graph: AnalyzedGraph) -> Iterator[Place]:
    """Values that a node reads or the graph gives, and that are no input, not in the file, and made by no node."""
    for node in graph.view.nodes:
        yield from (f"{value.name} of {node_label(node)}" for value in inputs_of(node) if _is_missing(value))
    yield from (f"output {value.name}" for value in graph.view.model.graph.outputs if _is_missing(value))


def _is_missing(value: ir.Value) -> bool:
    return value.producer() is None and not value.is_graph_input() and not value.is_initializer()


@invalid(
    "the ONNX checker and several runtimes refuse nodes that read what comes later",
    "sort the nodes: onnx_ir.passes.common.TopologicalSortPass() on onnx_ir.load(path)",
)
def not_sorted(graph: AnalyzedGraph) -> Iterator[Place]:
    """Nodes that read what a later node makes."""
    made: set[ir.Node] = set()
    has_subgraphs = len(graph.view.model.graph) < len(graph.view.nodes)
    for node in () if has_subgraphs or any(True for _ in made_of_itself.find(graph)) else graph.view.nodes:
        if not made.issuperset(node.predecessors()):
            yield node
        made.add(node)


@invalid(
    "no runtime can begin to compute what needs its own result, and all refuse the file",
    "export the model again; no order of the nodes would do",
)
def made_of_itself(graph: AnalyzedGraph) -> Iterator[Place]:
    """Nodes of a circle: each needs what another of them makes."""
    waiting = {node: len(set(node.predecessors())) for node in graph.view.nodes}
    ready = [node for node, count in waiting.items() if not count]
    while ready:
        node = ready.pop()
        for reader in set(node.successors()):
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    # what only comes after a circle is not named
    yield from (node for node, count in waiting.items() if count and _leads_back(node))


def _leads_back(node: ir.Node) -> bool:
    """Whether a node's own result is made of it."""
    seen, after = set[ir.Node](), list(node.successors())
    while after:
        reader = after.pop()
        if reader is node:
            return True
        if reader not in seen:
            seen.add(reader)
            after += reader.successors()
    return False


@invalid(
    "nodes contradict the ONNX standard, or each other: ONNX Runtime refuses the file",
    "see what onnx.checker.check_model(path, full_check=True) says, and " + EXPORT,
)
def against_the_standard(graph: AnalyzedGraph) -> Iterator[Place]:
    """What the ONNX checker says of a graph in which no other rule finds what makes it invalid."""
    if any(
        True
        for rule in (operator_not_in_opset, value_nothing_makes, not_sorted, made_of_itself)
        for _ in rule.find(graph)
    ):
        return
    beside = [
        (value, value.const_value)
        for inner in graph.view.model.graphs()
        for value in inner.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    ]
    if sum(tensor.nbytes for _, tensor in beside if tensor is not None) > _MOST_TO_CHECK:
        return
    guesses = [(value, value.type) for value in graph.view.guessed]
    for value, _ in guesses:
        value.type = None  # the file does not say it, so it cannot be wrong
    for value, tensor in beside:  # the checker does not know the folder in which they lie
        value.const_value = None if tensor is None else ir.Tensor(tensor.numpy(), name=tensor.name)
    try:
        CheckerPass(full_check=True, skip_opset_compatibility_check=True)(graph.view.model)
    except _CHECKER_ERRORS as refusal:
        yield " ".join(str(refusal).replace("==> Context: ", "").split())
    finally:
        for value, type_ in guesses:
            value.type = type_
        for value, tensor in beside:
            value.const_value = tensor


@invalid(
    "images come as FP32, FP16 or uint8; no runner here and no server feeds anything else, and TensorRT knows no 16-bit integers "
    "and no text",
    EXPORT,
)
def input_type(graph: AnalyzedGraph) -> Iterator[Place]:
    """Inputs of another type than images have."""
    for value in graph.view.inputs:
        if value.type is not None and not isinstance(value.type, ir.TensorType):
            yield f"{value.name}, no tensor but a {type(value.type).__name__.removesuffix('Type').lower()}"
        elif value.dtype not in IMAGE_TYPES:
            yield f"{value.name} {type_name(value)}"


@error(
    "TensorRT casts a uint8 input and does nothing else with it: it refuses the file",
    "let Cast read the input, and everything else what Cast makes; 'convnext-deploy export --input-type uint8' does",
)
def uint8_input_not_cast(graph: AnalyzedGraph) -> Iterator[Place]:
    """Nodes other than Cast that read a uint8 input, but for those that read its shape."""
    for value in graph.view.inputs:
        if value.dtype == ir.DataType.UINT8:
            yield from (node for node in value.consumers() if node.op_type not in ("Cast", *_SHAPES))


VALIDITY_RULES: tuple[Rule, ...] = (
    operator_not_in_opset, value_nothing_makes, not_sorted, made_of_itself, against_the_standard, input_type,
    uint8_input_not_cast,
)  # fmt: skip
