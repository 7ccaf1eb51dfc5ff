"""Open an ONNX file of another origin by what its graph says; what it does not say is asked for, or said aloud as an assumption."""

from pathlib import Path

from convnext_deploy.artifacts.artifact import Artifact, describe_file
from convnext_deploy.artifacts.details import ONNXDetails
from convnext_deploy.artifacts.spec import GraphHints, GraphIO, ModelSpec, Preprocess, default_preprocess
from convnext_deploy.config.choices import InputType
from convnext_deploy.errors import ArtifactError
from convnext_deploy.graphs.class_output import find_class_output
from convnext_deploy.graphs.image_input import ImageInput, find_image_input
from convnext_deploy.graphs.onnx_view import open_view
from convnext_deploy.graphs.precision import read_precision

_INPUT_TYPES: dict[str | None, InputType] = {"0-1": "float32-0-1", "0-255": "float32-0-255"}


def open_foreign_onnx(path: Path, image_size: int | None, hints: GraphHints) -> Artifact:
    """Describe an ONNX file that another tool made; `notes` say what was taken for what, and why.

    Args:
        path: the file.
        image_size: height and width in pixels, for a file in which they are dynamic.
        hints: what the user says of it.

    Raises: ArtifactError: if it does not take one square image of a known size, or its scores cannot be told from its outputs.
    """
    view = open_view(path)
    try:
        taken = find_image_input(view, image_size)
        given = find_class_output(view, hints.output_name)
    except ArtifactError as error:
        raise ArtifactError(f"{path} {error}") from None
    if taken.is_uint8 and hints.input_range not in (None, "0-255"):
        raise ArtifactError(f"{path} takes pixels as uint8, 0 to 255; leave --input-range out.")
    io = GraphIO(
        "uint8" if taken.is_uint8 else _INPUT_TYPES.get(hints.input_range or taken.range, "float32"),
        "nhwc" if taken.channels_last else "nchw",
        given.output,
        given.columns if len(given.names) > 1 else GraphIO.top_k,
        taken.batch_size,
        given.names,
    )
    preprocess = default_preprocess(taken.side, None, taken.channels)
    notes = (
        f"{path.name}: {given.describe()}" + (", as asked for" if hints.output_name else ""),
        f"{path.name}: {_describe_values(taken, hints, io, preprocess)}",
        f"{path.name}: evaluated at {_describe_size(taken, preprocess)}",
    )
    spec = ModelSpec("unknown", given.classes, taken.channels)
    files = (describe_file(path),)
    return Artifact(path.parent, ONNXDetails(io=io), read_precision(view), spec, None, preprocess, files, notes=notes)


def _describe_values(taken: ImageInput, hints: GraphHints, io: GraphIO, preprocess: Preprocess) -> str:
    """Say which values the graph takes, and where that is known from."""
    if hints.input_range is not None:
        origin = "as asked for"
    elif taken.is_uint8:
        origin = "by its type"
    elif taken.range is not None:
        origin = "because its first nodes normalize them"
    else:
        origin = "an assumption, because the file does not tell; --input-range says otherwise"
    if io.white is not None:
        return f"takes pixels from 0 to {io.white:g}, {origin}"
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (preprocess.mean, preprocess.std))
    return f"takes images normalized by mean {mean} and std {std}, {origin}"


def _describe_size(taken: ImageInput, preprocess: Preprocess) -> str:
    origin = "as asked for" if taken.is_dynamic else "as the file says"
    how = f"crop {preprocess.crop_pct:.3g}, {preprocess.interpolation}"
    return f"{preprocess.image_size} pixels, {origin}, with {how}, an assumption, because the file does not tell"
