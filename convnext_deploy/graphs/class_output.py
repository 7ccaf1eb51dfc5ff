"""Which outputs of a graph of another origin hold the scores of the classes, by their names and by what made them."""

import re
from dataclasses import dataclass

import onnx_ir as ir

from convnext_deploy.config.choices import GraphOutput
from convnext_deploy.errors import ArtifactError
from convnext_deploy.graphs.compute_nodes import COMPUTE_OPERATORS, INTEGER_OPERATORS
from convnext_deploy.graphs.onnx_view import (
    LAYOUT,
    PAIR,
    GraphView,
    Shape,
    inputs_of,
    origin,
    shape_of,
    shape_words,
    type_name,
)

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)
_SAME_VALUES = LAYOUT | PAIR | {"Cast"}
_SUMS = ("Add", "Sub", "Mul")
_SOFTMAX, _SIGMOID = ("Softmax", "QLinearSoftmax"), ("Sigmoid", "QLinearSigmoid")
_LENGTHS = ("Sqrt", "ReduceL2", "Max", "Clip")  # what a norm in pieces divides by
_LINEAR = {*COMPUTE_OPERATORS, *INTEGER_OPERATORS, "FusedConv", "FusedGemm", "FusedMatMul", "MatMulNBits"}
# what may follow the linear layer of a classifier: a bias, a temperature, a choice of classes, the last function
_AFTER_LINEAR = {
    *_SAME_VALUES, *_SUMS, *_SOFTMAX, *_SIGMOID, "LogSoftmax", "QLinearAdd", "QLinearMul", "Clip", "Gather", "Slice", "Dropout",
}  # fmt: skip
_MAKES_FEATURES = re.compile(r"Norm|Pool|^Reduce(Mean|Max|L2)|Relu|Elu$|Gelu|Swish|^Tanh$|^Erf$")
_NAMES_FEATURES = re.compile(r"embed|feat|hidden|pool|latent|descriptor", re.IGNORECASE)
# a head beside the classifier, which helps its training alone
_NAMES_AUXILIARY = re.compile(r"aux|deep_?sup", re.IGNORECASE)
# the best first; the others tell nothing
_NAMES_SCORES = (re.compile(r"logit", re.IGNORECASE), re.compile(r"^outputs?$", re.IGNORECASE))
_MOST_LISTED = 8
FEATURES_OF_OTHERS = (
    "Features that other tools' files give are not scored: export the PyTorch checkpoint with 'convnext-deploy export FILE "
    "--output features'."
)


@dataclass(frozen=True)
class ClassOutput:
    """The outputs with the scores of the classes: one, or the best scores and whose they are.

    `output` is the form of the scores: `top-k` for the largest probabilities, `logits` also for the largest logits. `columns` is
    how many scores the graph gives for an image; one alone, with `classes` 2, is that of the second class against the first.
    """

    names: tuple[str, ...]
    output: GraphOutput
    classes: int
    columns: int

    def describe(self) -> str:
        """Say in words what the outputs are taken for."""
        names = " and ".join(f"'{name}'" for name in self.names)
        verb = "are" if len(self.names) > 1 else "is"
        if len(self.names) > 1:
            kind = "probabilities" if self.output == "top-k" else "logits"
            return f"{names} {verb} taken for the {self.columns} largest {kind} of {self.classes} classes"
        if self.columns < self.classes:
            kind = "probability" if self.output == "probabilities" else "logit"
            return f"{names} {verb} taken for the {kind} of the second of two classes"
        return f"{names} {verb} taken for the {self.output} of {self.classes} classes"


def find_class_output(view: GraphView, asked: str | None = None) -> ClassOutput:
    """Return the outputs of a graph that hold the scores of the classes.

    That is the one that was asked for; otherwise the only one that has the shape and type of scores, is not called features, and is
    not made by a norm, pooling or activation after the last linear layer; of several such the one that is called logits, or output;
    and where there is none, the values and indices of a TopK. One that is called auxiliary is never taken unasked.

    Raises: ArtifactError: if none can be told to hold them, or what was asked for cannot; without the file's name.
    """
    outputs = {str(value.name): value for value in view.model.graph.outputs}
    if asked is not None:
        if asked not in outputs:
            raise ArtifactError(f"gives no output '{asked}', only {list_outputs(view)}.")
        found = _top_k(outputs[asked], outputs) or _scores(outputs[asked])
        if found is None:
            raise ArtifactError(
                f"gives '{asked}' as {_signature(outputs[asked])}; expected scores as floats, (batch, classes)."
                + _hint(shape_of(outputs[asked]))
            )
        return found
    pairs = {pair.names: pair for value in outputs.values() if (pair := _top_k(value, outputs))}
    paired = {name for names in pairs for name in names}
    scores = [found for name, value in outputs.items() if name not in paired and (found := _scores(value))]
    likely = [found for found in scores if not _is_features(outputs[found.names[0]])]
    auxiliary = [found for found in scores if _NAMES_AUXILIARY.search(found.names[0])]
    likely = [found for found in likely if found not in auxiliary]
    for pattern in _NAMES_SCORES:
        if named := [found for found in likely if pattern.search(found.names[0])]:
            likely, auxiliary = named, []
            break
    if not likely:
        likely = [pair for pair in pairs.values() if not _NAMES_AUXILIARY.search(pair.names[0])]
    # the classifier that an auxiliary head helped tells the same classes as that head
    if len(likely) == 1 and all(head.classes == likely[0].classes for head in auxiliary):
        return likely[0]
    why = "several of which may be the scores of the classes; "
    if not likely:
        extracts = any(map(_is_features, outputs.values()))
        why = "none of which is known to be scores" + (
            f". {FEATURES_OF_OTHERS} If one is scores, " if extracts else "; "
        )
    raise ArtifactError(f"gives {list_outputs(view)}, {why}say which with --output-name.")


def _hint(shape: Shape) -> str:
    """Return what to do about an output with the shape of a map, as a sentence; nothing for other shapes."""
    if len(shape) != 4:
        return ""
    # of a classifier that is a convolution, or of a pooling
    flat = " If these are scores, export the network with a Flatten behind them." if shape[2:] == (1, 1) else ""
    return f"{flat} {FEATURES_OF_OTHERS}"


def list_outputs(view: GraphView) -> str:
    """Return the outputs of a graph with type and shape, and what made features of those that are."""
    values = view.model.graph.outputs
    makers = [feature_maker(value) for value in values[:_MOST_LISTED]]
    texts = [
        f"'{value.name}' {_signature(value)}" + (f" made by {maker}" if maker else "")
        for value, maker in zip(values, makers, strict=False)
    ]
    more = len(values) - _MOST_LISTED
    return (", ".join(texts) or "nothing") + (f" and {more} more" if more > 0 else "")


def _scores(value: ir.Value) -> ClassOutput | None:
    """Return an output as scores of all classes, or of one against the other; None if it has not their shape or type."""
    shape = shape_of(value)
    columns = shape[1] if len(shape) == 2 else 1 if len(shape) == 1 else None
    last = _last_function(value)
    if value.dtype not in _FLOATS or not isinstance(columns, int) or columns < 1 or last == "TopK":
        return None
    is_probability = last in (*_SOFTMAX, *_SIGMOID)  # of a sigmoid each class for itself
    return ClassOutput((str(value.name),), "probabilities" if is_probability else "logits", max(columns, 2), columns)


def _top_k(value: ir.Value, outputs: dict[str, ir.Value]) -> ClassOutput | None:
    """Return values and indices of the TopK that made an output, if both are outputs and the number of classes is known."""
    node = origin(value, _SAME_VALUES).producer()
    if node is None or node.op_type != "TopK":
        return None
    made = {origin(other, _SAME_VALUES): name for name, other in outputs.items()}
    names = tuple(made[place] for place in node.outputs if place in made)
    classes, columns = (_last(shape_of(place)) for place in (node.inputs[0], outputs[names[0]]))
    is_pair = len(names) == 2 and outputs[names[1]].dtype in _INTEGERS
    if not is_pair or not isinstance(classes, int) or not isinstance(columns, int):
        return None
    is_probability = _last_function(inputs_of(node)[0]) in _SOFTMAX
    return ClassOutput(names, "top-k" if is_probability else "logits", classes, columns)


def _last(shape: Shape) -> int | str | None:
    return shape[-1] if shape else None


def _last_function(value: ir.Value) -> str:
    node = origin(value, _SAME_VALUES).producer()
    return "" if node is None else node.op_type


def _is_features(value: ir.Value) -> bool:
    name = str(value.name)
    if _NAMES_FEATURES.search(name):
        return True
    return not _NAMES_SCORES[0].search(name) and feature_maker(value) is not None


def feature_maker(value: ir.Value) -> str | None:
    """Return the operator that made a value features, with no linear layer after it; None where there is one, or none is known."""
    waiting, seen, found = [value], set[ir.Value](), None
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if node is None or value in seen:
            continue
        seen.add(value)
        if node.op_type in _LINEAR:
            return None
        if node.op_type in _AFTER_LINEAR:
            waiting += inputs_of(node)[: None if node.op_type in _SUMS else 1]
        elif node.op_type == "Div":
            divisor = inputs_of(node)[1].producer()
            waiting += inputs_of(node)[:1] if divisor is None else []
            found = found or ("Div" if divisor is not None and divisor.op_type in _LENGTHS else None)
        elif _MAKES_FEATURES.search(node.op_type):
            found = found or node.op_type
    return found


def _signature(value: ir.Value) -> str:
    return f"{type_name(value)} {shape_words(shape_of(value))}"
