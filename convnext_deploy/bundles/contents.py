"""Choose and name the artifacts of a bundle, and describe what their graphs take and give."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import EngineDetails
from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.bundles.naming import bundle_name, distinct, model_names
from convnext_deploy.errors import ArtifactError
from convnext_deploy.graphs.compute_nodes import find_compute_nodes
from convnext_deploy.graphs.lint.onnx_summary import apply_rules
from convnext_deploy.graphs.lint.rule import Finding
from convnext_deploy.graphs.onnx_view import external_tensors, open_view, shape_of

_LATE = ("opset-after-20", "ir-after-10")
_INPUT_TYPES = ("float32", "float16", "uint8")
_OUTPUT_TYPES = ("float32", "float16", "int32", "int64")


@dataclass(frozen=True)
class Tensor:
    """An input or output of a graph; a None in `shape` is the batch, where it may vary. `dtype` is NumPy's name."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Model:
    """An ONNX file. `obstacle`: why TensorRT refuses it, or would compute something else; None: it does neither.

    `late`: versions in it that older runtimes on devices do not read. `fixes_size`: the graph takes images of any size, and its
    copy in the bundle those of the evaluation alone. `joins_weights`: it keeps tensors in files beside it, and its copy inside.
    """

    name: str
    artifact: Artifact
    input: Tensor
    outputs: tuple[Tensor, ...]
    obstacle: str | None
    late: tuple[str, ...] = ()
    fixes_size: bool = False
    joins_weights: bool = False

    @property
    def layout(self) -> str:
        """`NCHW` or `NHWC`."""
        return "NCHW" if self.input.shape[1] == self.artifact.model.in_channels else "NHWC"

    @property
    def white(self) -> float | None:
        """The value of white in the pixels that it takes; None: it takes normalized images."""
        return 255.0 if self.input.dtype == "uint8" else self.artifact.io.white

    @property
    def frozen_batch(self) -> int | None:
        """The only batch size that the graph takes; None: any."""
        return self.input.shape[0]

    @property
    def file(self) -> str:
        """Its place in the bundle."""
        return f"onnx/{self.name}.onnx"


@dataclass(frozen=True)
class Engine:
    """A plan that was built before. `model` is whose golden outputs it must give; `is_exact`: it was built from that very file.

    `gpus` are the compute capabilities it runs on, none for an engine of the GPU that built it.
    """

    file: str
    artifact: Artifact
    details: EngineDetails
    path: Path
    gpus: tuple[str, ...]
    model: Model
    is_exact: bool


@dataclass(frozen=True)
class Contents:
    """What a bundle holds; `models` are the smallest first."""

    name: str
    models: tuple[Model, ...]
    engines: tuple[Engine, ...]

    @property
    def first(self) -> Artifact:
        """An artifact that tells model, classes and preprocessing; they are the same for all."""
        return self.models[0].artifact

    @property
    def license(self) -> str | None:
        """What is known of it, from any of the artifacts."""
        found = [model.artifact.license for model in self.models] + [engine.artifact.license for engine in self.engines]
        return " and ".join(sorted({text for text in found if text})) or None


def collect(given: Sequence[tuple[Path, Artifact]]) -> Contents:
    """Check that the artifacts of a bundle belong together, and name them.

    Args:
        given: opened artifacts in the formats onnx and tensorrt, each with where the user found it, for messages.

    Raises: ArtifactError: naming the artifact that does not belong in it, and what to do.
    """
    opened: dict[str, tuple[Path, Artifact]] = {}
    for path, artifact in given:
        if artifact.format == "torch":
            raise ArtifactError(
                f"{path} is in the format torch, which no device runs; export it first: convnext-deploy export '{path}'."
            )
        if artifact.format not in ("onnx", "tensorrt"):
            raise ArtifactError(f"{path} is in the format {artifact.format}; a bundle takes onnx and tensorrt.")
        opened.setdefault(f"{artifact.format} {artifact.sha256}", (path, artifact))  # the same one twice is one
    artifacts = list(opened.values())
    for path, artifact in artifacts[1:]:
        _check_same(artifacts[0], (path, artifact))
    graphs = sorted((entry for entry in artifacts if entry[1].format == "onnx"), key=lambda entry: entry[1].size_bytes)
    if not graphs:
        raise ArtifactError(
            f"{artifacts[0][0]} alone is not a bundle: its golden outputs come from the ONNX artifact that it was built from; "
            "name that one too."
        )
    name = bundle_name(graphs[0][1])
    labels = model_names(name, [artifact for _, artifact in graphs])
    models = tuple(_describe_model(label, *entry) for label, entry in zip(labels, graphs, strict=True))
    engines: list[Engine] = []
    for path, artifact in artifacts:
        if artifact.format == "tensorrt":
            engines += _describe_engines(path, artifact, models, [engine.file for engine in engines])
    return Contents(name, models, tuple(engines))


def _check_same(one: tuple[Path, Artifact], other: tuple[Path, Artifact]) -> None:
    def identity(spec: ModelSpec) -> tuple[str, int, int]:
        return spec.variant, spec.in_channels, spec.num_classes

    def gives(artifact: Artifact) -> str:
        return artifact.model.output if not artifact.model.num_classes else "scores of classes"

    pairs = (
        ("a {}", one[1].model.variant, other[1].model.variant),
        ("of {0[1]} channels and {0[2]} classes", identity(one[1].model), identity(other[1].model)),
        ("one that gives {}", gives(one[1]), gives(other[1])),
        ("of the classes {}", one[1].class_names, other[1].class_names),
        ("preprocessed by {}", one[1].preprocess, other[1].preprocess),
    )
    for text, first, second in pairs:
        if first != second:
            found, expected = (str(text.format(value))[:200] for value in (second, first))
            raise ArtifactError(
                f"{other[0]} is {found}, {one[0]} is {expected}; a bundle holds one model, so make two."
            )


def _describe_model(name: str, path: Path, artifact: Artifact) -> Model:
    view = open_view(artifact.main_file)
    joins_weights = any(True for _ in external_tensors(view.model))
    findings = apply_rules(find_compute_nodes(view))
    _refuse_invalid(path, findings)
    inputs = [_tensor(path, value, _INPUT_TYPES) for value in view.inputs]
    outputs = tuple(_tensor(path, value, _OUTPUT_TYPES) for value in view.model.graph.outputs)
    sides = artifact.preprocess.sides
    items = [(artifact.model.in_channels, *sides), (*sides, artifact.model.in_channels)]
    fixes_size = len(inputs) == 1 and None in inputs[0].shape[1:]
    if fixes_size:
        inputs = [dataclasses.replace(inputs[0], shape=_fixed(inputs[0].shape, items))]
    if len(inputs) != 1 or inputs[0].shape[1:] not in items:
        found = ", ".join(f"{tensor.name} {tensor.shape}" for tensor in inputs)
        raise ArtifactError(f"{path} takes {found}; expected one input of images, (batch, {items[0]}).")
    if not _is_known(artifact, outputs):
        found = ", ".join(f"{tensor.name} {tensor.dtype} {tensor.shape}" for tensor in outputs)
        raise ArtifactError(
            f"{path} gives {found}; expected scores (batch, classes) first, and nothing that is not (batch, k)."
        )
    scores = artifact.io.output_names
    if scores and scores != tuple(output.name for output in outputs[: len(scores)]):
        raise ArtifactError(
            f"{path} gives '{outputs[0].name}' before its scores, {' and '.join(scores)}, and who reads the first output takes it "
            "for them; write the file with these first."
        )
    obstacle = next((finding.cost for finding in findings if finding.severity == "error"), None)
    late = tuple(f"{found.places[0]}: {found.cost}" for found in findings if found.name in _LATE)
    return Model(name, artifact, inputs[0], outputs, obstacle, late, fixes_size, joins_weights)


def _fixed(shape: Sequence[int | None], items: Sequence[tuple[int, ...]]) -> tuple[int | None, ...]:
    """Return the shape of an input with the size of the images, if that is one of what it takes."""
    fitting = (
        item
        for item in items
        if len(item) == len(shape) - 1 and all(own in (None, size) for own, size in zip(shape[1:], item, strict=True))
    )
    return (shape[0], *next(fitting, tuple(shape[1:])))


def _is_known(artifact: Artifact, outputs: Sequence[Tensor]) -> bool:
    """Whether a graph gives scores first and nothing that is not `(batch, k)`, or the features of a network without head."""
    if not outputs or outputs[0].dtype not in _INPUT_TYPES or any(None in output.shape[1:] for output in outputs):
        return False
    if artifact.io.output == "feature-map":
        return len(outputs) == 1 and len(outputs[0].shape) == 4
    return all(len(output.shape) == 2 for output in outputs)


def _refuse_invalid(path: Path, findings: Sequence[Finding]) -> None:
    """Raises: ArtifactError: if a rule is broken that every runtime asks for, with its cost and fix."""
    for found in findings:
        if found.everywhere:
            raise ArtifactError(
                f"{path} breaks the rule {found.name} ({found.places[0]}): {found.cost}. To mend it: {found.fix}."
            )


def _tensor(path: Path, value: ir.Value, types: Sequence[str]) -> Tensor:
    dtype = value.dtype.numpy().name if value.dtype else "unknown"
    if dtype not in types:
        raise ArtifactError(f"{path}: '{value.name}' is of the type {dtype}; expected one of {', '.join(types)}.")
    return Tensor(str(value.name), dtype, tuple(size if isinstance(size, int) else None for size in shape_of(value)))


def _describe_engines(path: Path, artifact: Artifact, models: Sequence[Model], taken: Sequence[str]) -> list[Engine]:
    details = artifact.details_as(EngineDetails)
    if details.stripped:
        raise ArtifactError(f"{path} was stripped of its weights and cannot run as it is; build it with them.")
    source = artifact.lineage[-1].inputs.get("source") if artifact.lineage else None
    exact = next((model for model in models if model.artifact.sha256 == source), None)
    model = exact or next((model for model in models if model.artifact.precision == artifact.precision), None)
    if model is None:
        raise ArtifactError(
            f"{path} was built from an ONNX artifact that is not given, and its golden outputs come from there; name it too, or "
            f"any of the precision {artifact.precision}."
        )
    engines: list[Engine] = []
    for file in artifact.files:
        if not file.name.endswith(".plan"):
            continue
        gpu = re.search(r"\.(sm\d+)\.plan$", file.name)
        gpus = (gpu[1].upper(),) if gpu else details.gpus
        place = f"engines/{model.name}" + (f".{gpu[1]}" if gpu else "")
        used = [name.removesuffix(".plan") for name in (*taken, *(engine.file for engine in engines))]
        name = f"{distinct(place, used)}.plan"
        engines.append(Engine(name, artifact, details, artifact.path / file.name, gpus, model, exact is not None))
    return engines
