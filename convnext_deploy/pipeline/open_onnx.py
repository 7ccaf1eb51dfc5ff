"""Open an ONNX file of another origin by what its graph says; what it does not say is asked for, or said aloud as an assumption."""

from pathlib import Path
from typing import Any

from convnext_deploy.artifacts.artifact import Artifact, describe_file
from convnext_deploy.artifacts.details import ONNXDetails
from convnext_deploy.artifacts.preprocessing import assume, tell
from convnext_deploy.artifacts.spec import GraphIO, ModelSpec, Preprocess, default_preprocess
from convnext_deploy.config.choices import InputType
from convnext_deploy.config.image_size import show_size
from convnext_deploy.config.preprocess import PreprocessSettings
from convnext_deploy.errors import ArtifactError
from convnext_deploy.graphs.class_output import find_class_output
from convnext_deploy.graphs.image_input import ImageInput, Normalization, count_channels, find_image_input
from convnext_deploy.graphs.onnx_view import open_view
from convnext_deploy.graphs.precision import read_precision
from convnext_deploy.pipeline.open_checkpoint import evaluation_note
from convnext_deploy.pipeline.told_onnx import ToldOfFile, read_told

_INPUT_TYPES: dict[str, InputType] = {"normalized": "float32", "0-1": "float32-0-1", "0-255": "float32-0-255"}


def open_foreign_onnx(path: Path, asked: PreprocessSettings) -> Artifact:
    """Describe an ONNX file that another tool made; `notes` say what was taken for what, and why.

    Args:
        path: the file.
        asked: what the user says of it; `image_size`, `input_range` and `output_name` count here.

    Raises: ArtifactError: if it does not take one image of a known size, or its scores cannot be told from its outputs.
    """
    view = open_view(path)
    properties = view.model.metadata_props
    try:
        given = find_class_output(view, asked.output_name)
        channels = count_channels(view)
        of_file = read_told(path, properties, channels, given.classes)
        taken = find_image_input(view, asked.image_size, of_file.image_size)
    except ArtifactError as error:
        raise type(error)(f"{path} {error}") from None
    if taken.is_uint8 and asked.input_range not in (None, "0-255"):
        raise ArtifactError(f"{path} takes pixels as uint8, 0 to 255; leave --input-range out.")
    told = taken.normalization
    if told is not None and asked.input_range not in (None, told.range):
        told = None  # the user knows better
    kind: InputType = (
        "uint8" if taken.is_uint8 else _INPUT_TYPES[asked.input_range or (told.range if told else "normalized")]
    )
    io = GraphIO(
        kind,
        "nhwc" if taken.channels_last else "nchw",
        given.output,
        given.columns if len(given.names) > 1 else GraphIO.top_k,
        taken.batch_size,
        given.names,
    )
    preprocess, remarks = _preprocess(path, taken, told, of_file)
    notes = (
        f"{path.name}: {given.describe()}" + (", as asked for" if asked.output_name else "") + _only_these(io),
        f"{path.name}: {_describe_values(taken, asked, io)}",
        *remarks,
        evaluation_note(path, preprocess),
    )
    spec = ModelSpec("unknown", given.classes, taken.channels, multi_label=of_file.multi_label)
    files = (describe_file(path),)
    return Artifact(
        path.parent, ONNXDetails(io=io), read_precision(view), spec, of_file.class_names, preprocess, files, notes=notes
    )


def _preprocess(
    path: Path, taken: ImageInput, told: Normalization | None, of_file: ToldOfFile
) -> tuple[Preprocess, tuple[str, ...]]:
    """Return how a file is evaluated, and what is worth knowing: the graph tells most surely, then what is told of the file."""
    found = assume(default_preprocess(taken.size, None, taken.channels), "usual, because an ONNX file does not tell")
    values: dict[str, Any] = {} if taken.is_dynamic else {"image_size": taken.size}
    if told is not None:
        values |= {"mean": told.mean, "std": told.std}
    remarks = of_file.remarks
    for each in reversed(of_file.settings):
        size = each.values.get("image_size")
        if size not in (None, taken.size) and not taken.is_dynamic:
            remarks += (
                f"{path.name}: image_size {show_size(size)} {each.origin} is not what the graph takes, {show_size(taken.size)}, "
                "and is not taken",
            )
        found = tell(found, {name: value for name, value in each.values.items() if name not in values}, each.origin)
    return tell(found, values, "from the graph"), remarks


def _only_these(io: GraphIO) -> str:
    """Say what is not known where the largest logits alone are given."""
    if not io.gives_best_logits:
        return ""
    return "; how probable they are among all classes is not known: percentages are shares of them, without a calibration error"


def _describe_values(taken: ImageInput, asked: PreprocessSettings, io: GraphIO) -> str:
    """Say which values the graph takes, and where that is known from."""
    if asked.input_range is not None:
        origin = "as asked for"
    elif taken.is_uint8:
        origin = "by its type"
    elif taken.normalization is not None:
        origin = "because its first nodes normalize them"
    else:
        origin = "an assumption, because the file does not tell; --input-range says otherwise"
    values = "normalized images" if io.white is None else f"pixels from 0 to {io.white:g}"
    return f"takes {values}, {origin}"
