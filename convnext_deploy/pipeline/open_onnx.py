"""Open an ONNX file of another origin by what its graph says; what it does not say is asked for, or said aloud as an assumption."""

import dataclasses
from pathlib import Path

from convnext_deploy.artifacts.artifact import Artifact, describe_file
from convnext_deploy.artifacts.details import ONNXDetails
from convnext_deploy.artifacts.spec import GraphHints, GraphIO, ModelSpec, Preprocess, default_preprocess
from convnext_deploy.errors import ArtifactError
from convnext_deploy.graphs.class_output import find_class_output
from convnext_deploy.graphs.image_input import ImageInput, find_image_input
from convnext_deploy.graphs.onnx_view import open_view
from convnext_deploy.graphs.precision import read_precision

_LARGEST = {"0-1": 1.0, "0-255": 255.0}


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
    preprocess = default_preprocess(taken.side or image_size or 0, None, taken.channels)
    largest = None if taken.is_uint8 else _LARGEST.get(hints.input_range or taken.range or "")
    if largest is not None:
        # normalized so, an image is its pixels again
        mean, std = (0.0,) * taken.channels, (1.0 / largest,) * taken.channels
        preprocess = dataclasses.replace(preprocess, mean=mean, std=std)
    io = GraphIO(
        "uint8" if taken.is_uint8 else "float32",
        "nhwc" if taken.channels_last else "nchw",
        given.output,
        given.columns if len(given.names) > 1 else GraphIO.top_k,
        taken.batch_size,
        given.names,
    )
    notes = (
        f"{path.name}: {given.describe()}" + (", as asked for" if hints.output_name else ""),
        f"{path.name}: {_describe_range(taken, hints, preprocess)}",
        f"{path.name}: {_describe_evaluation(preprocess, image_size)}",
    )
    spec = ModelSpec("unknown", given.classes, taken.channels)
    files = (describe_file(path),)
    return Artifact(path.parent, ONNXDetails(io=io), read_precision(view), spec, None, preprocess, files, notes=notes)


def _describe_range(taken: ImageInput, hints: GraphHints, preprocess: Preprocess) -> str:
    if taken.is_uint8:
        return "takes pixels as uint8, 0 to 255"
    asked, told = hints.input_range, taken.range
    if asked is not None or told is not None:
        values = {"0-255": "pixels from 0 to 255", "0-1": "pixels from 0 to 1"}.get(asked or told or "")
        origin = "as asked for" if asked else "because its first nodes normalize them"
        if values is not None:
            return f"takes {values}, {origin}"
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (preprocess.mean, preprocess.std))
    origin = (
        "as asked for" if asked else "an assumption, because the file does not tell; if not, say so with --input-range"
    )
    return f"takes images normalized by mean {mean} and std {std}, {origin}"


def _describe_evaluation(preprocess: Preprocess, image_size: int | None) -> str:
    how = f"crop {preprocess.crop_pct:.3g}, {preprocess.interpolation}"
    origin = "as asked for" if image_size else "as the file says"
    return f"evaluated at {preprocess.image_size} pixels, {origin}, with {how}, an assumption, because the file does not tell"
