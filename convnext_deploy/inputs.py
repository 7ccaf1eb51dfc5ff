"""What the user points at, an artifact folder, a bare checkpoint or an ONNX file, as an artifact."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from convnext_deploy.artifact import (
    MANIFEST,
    Artifact,
    ModelSpec,
    Preprocess,
    default_preprocess,
    describe_file,
    read_artifact,
    read_preprocess,
)
from convnext_deploy.errors import ArtifactError, CheckpointError, DeployError

CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def open_input(
    path: Path, *, model: str | None = None, image_size: int | None = None, crop_pct: float | None = None
) -> Artifact:
    """Describe an artifact folder, a checkpoint or an ONNX file; nothing is written.

    Files of this tool carry their own preprocessing and class names. For others the variant, classes, channels and stem come
    from the shapes, and the evaluation transform from the arguments (224 pixels and the usual crop unless given).

    Args:
        path: folder or file.
        model: variant that the file must hold; needed for nothing, checked when given.
        image_size: overrides the evaluation image size.
        crop_pct: overrides the evaluation crop.

    Raises: ArtifactError, CheckpointError: if it is none of these, or not what was asked for.
    """
    if path.is_dir():
        artifact = _open_folder(path)
    elif not path.exists():
        raise ArtifactError(f"{path} does not exist; expected an artifact folder, a checkpoint or an ONNX file.")
    elif path.suffix in CHECKPOINT_SUFFIXES:
        artifact = _open_checkpoint(path)
    elif path.suffix == ".onnx":
        artifact = _open_onnx(path, image_size)
    else:
        raise ArtifactError(
            f"{path} is no artifact: expected a folder with {MANIFEST}, or a file ending in "
            f"{', '.join(CHECKPOINT_SUFFIXES)} or .onnx."
        )
    if model is not None:
        from convnext_deploy.models.variants import resolve_variant

        if (asked := resolve_variant(model)) != artifact.model.variant and artifact.model.variant != "unknown":
            raise CheckpointError(f"{path} holds a {artifact.model.variant}, not the {asked} asked for with --model.")
    if image_size is not None and artifact.format == "torch" and image_size < 8 * artifact.model.patch_size:
        raise ArtifactError(
            f"--image-size {image_size} is too small for {path}; expected >= {8 * artifact.model.patch_size}."
        )
    preprocess = artifact.preprocess
    if image_size is not None:
        crop = default_preprocess(image_size).crop_pct
        preprocess = dataclasses.replace(preprocess, image_size=image_size, crop_pct=crop)
    if crop_pct is not None:
        preprocess = dataclasses.replace(preprocess, crop_pct=crop_pct)
    return dataclasses.replace(artifact, preprocess=preprocess)


def find_baseline(artifact: Artifact) -> Artifact | None:
    """Return the nearest FP32 PyTorch ancestor of an artifact if it still lies where the lineage says, unaltered."""
    for record in reversed(artifact.lineage):
        if "source" in record.input_paths:
            try:
                ancestor = open_input(Path(record.input_paths["source"]))
            except DeployError:
                return None
            if ancestor.sha256 != record.inputs["source"]:
                return None
            if ancestor.is_baseline:
                return ancestor
    return None


def _open_folder(path: Path) -> Artifact:
    if not (path / MANIFEST).exists():
        inside = sorted(p.parent for p in path.glob(f"stages/*/{MANIFEST}"))
        hint = f" It is a run; point at one of its artifacts, such as {inside[-1]}." if inside else ""
        raise ArtifactError(f"{path} is no artifact folder: it has no {MANIFEST}.{hint}")
    return read_artifact(path)


def _open_checkpoint(path: Path) -> Artifact:
    from convnext_deploy.models.checkpoint import infer_model_spec, load_metadata, load_state

    header = load_metadata(path)
    if not header:
        spec = infer_model_spec(load_state(path), path)
        return _describe(path, "torch", "fp32", spec, default_preprocess(224, None, spec.in_channels), None, {})
    return _from_header(path, "torch", header)


def _open_onnx(path: Path, image_size: int | None) -> Artifact:
    from convnext_deploy.exporters.onnx_float import load_onnx, read_metadata, tensor_shape

    proto = load_onnx(path)
    try:
        header = read_metadata(proto)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None
    if header:
        return _from_header(path, "onnx", header)
    initializers = {initializer.name for initializer in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in initializers]
    shape = tensor_shape(inputs[0]) if inputs else ()
    logits = tensor_shape(proto.graph.output[0]) if proto.graph.output else ()
    if len(inputs) != 1 or len(shape) != 4 or len(logits) != 2 or not shape[1] or not logits[1]:
        raise ArtifactError(
            f"{path} is no image classifier: expected one input (batch, channels, height, width) and an output "
            f"(batch, classes), found {len(inputs)} input(s), {shape} and {logits}."
        )
    spec = ModelSpec("unknown", logits[1], shape[1])
    quantized = any(node.op_type == "DequantizeLinear" for node in proto.graph.node)
    preprocess = default_preprocess(image_size or shape[2] or 224, None, spec.in_channels)
    return _describe(path, "onnx", "int8" if quantized else "fp32", spec, preprocess, None, {})


def _from_header(path: Path, format: Any, header: dict[str, Any]) -> Artifact:  # noqa: A002  (the field's name)
    try:
        names = header["class_names"]
        return _describe(
            path,
            format,
            header["precision"],
            ModelSpec(**header["model"]),
            read_preprocess(header["preprocess"]),
            None if names is None else tuple(names),
            header.get("details", {}),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} has a damaged header ({error!r}); make it again.") from None


def _describe(
    path: Path,
    format: Any,  # noqa: A002  (the field's name)
    precision: str,
    model: ModelSpec,
    preprocess: Preprocess,
    class_names: tuple[str, ...] | None,
    details: dict[str, Any],
) -> Artifact:
    return Artifact(path.parent, format, precision, model, class_names, preprocess, (describe_file(path),), details)
