"""Open what a user points at as an artifact: a folder, a checkpoint, an ONNX file or published weights."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

from convnext_deploy.artifacts.artifact import (
    MANIFEST,
    Artifact,
    StageRecord,
    describe_file,
    quantized_type,
    read_artifact,
)
from convnext_deploy.artifacts.hashes import check_recorded
from convnext_deploy.artifacts.places import check_place, no_artifact
from convnext_deploy.artifacts.preprocessing import GEOMETRY, ask, tell
from convnext_deploy.config.choices import FeatureOutput
from convnext_deploy.config.image_size import show_size, sides_of, size_option
from convnext_deploy.config.preprocess import PreprocessSettings
from convnext_deploy.errors import ArtifactError, CheckpointError, DeployError, first_line
from convnext_deploy.models.checkpoints import INDEX
from convnext_deploy.models.checkpoints.hub import is_weights_name
from convnext_deploy.models.zoo.cost import describe_features
from convnext_deploy.pipeline.open_checkpoint import WEIGHT_FILES, evaluation_note, open_checkpoint, open_header

_EQUAL = 1e-3  # of mean and std, as people round them
EXPECTED = "an artifact folder, a checkpoint or an ONNX file"
CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")


def open_input(
    path: Path, *, model: str | None = None, asked: PreprocessSettings = PreprocessSettings(), entry: str | None = None
) -> Artifact:
    """Describe an artifact folder, a checkpoint, an ONNX file or published weights; nothing is written.

    Files of this tool carry their own preprocessing and class names. For checkpoints of others the variant, classes, channels,
    stem and head come from names and shapes; preprocessing and class names from the config file of timm or transformers in the
    same folder, or from what the training was called with; what is told nowhere is as published with the variant. `notes` of the
    result tell what was found, and where.

    Args:
        path: folder or file, or the name of published weights such as `timm/convnext_tiny.fb_in1k`.
        model: variant that the file must hold; needed for nothing, checked when given.
        asked: what the user says of the preprocessing, and of the graph of an ONNX file of another origin.
        entry: which of several networks in a checkpoint; None: the one that is taken first, see `find_networks`.

    Raises: ArtifactError, CheckpointError: if it is none of these, not what was asked for, or not what was once recorded of it.
    """
    if is_weights_name(str(path)) and not os.path.lexists(path):
        return ask_for(_of_model(_open_published(str(path)), path, model), asked, path)
    check_place(path, EXPECTED)
    if path.is_dir():
        artifact = _open_folder(path)
    elif path.suffix.lower() in CHECKPOINT_SUFFIXES or path.name.endswith(INDEX):
        artifact = open_checkpoint(path, entry)
    elif path.suffix.lower() == ".onnx":
        artifact = _open_onnx(path, asked)
    else:
        raise ArtifactError(
            f"{path} is not an artifact: expected a folder with {MANIFEST}, or a file ending in "
            f"{', '.join(CHECKPOINT_SUFFIXES)} or .onnx."
        )
    if path.suffix.lower() == ".onnx":
        artifact = _with_parts(artifact)
    for file in artifact.files:
        check_recorded(artifact.path / file.name, file.sha256)
    return ask_for(_of_model(artifact, path, model), asked, path)


def _of_model(artifact: Artifact, path: Path, model: str | None) -> Artifact:
    """Return an artifact that holds what was asked for. Raises: CheckpointError: if it holds another model."""
    if model is not None:
        from convnext_deploy.models.variants import resolve_variant

        if (known := resolve_variant(model)) != artifact.model.variant and artifact.model.variant != "unknown":
            raise CheckpointError(f"{path} holds a {artifact.model.variant}, not the {known} asked for with --model.")
    return artifact


def ask_for(artifact: Artifact, asked: PreprocessSettings, path: Path) -> Artifact:
    """Return an artifact with what the user says of its preprocessing, of which `notes` tell.

    Raises: ArtifactError: if the network cannot be given that, or images of the size that its file tells.
    """
    found = _asked(artifact, asked, path) if asked.asked() else artifact
    size, least = found.preprocess.image_size, found.model.output_stride
    if found.format == "torch" and min(sides_of(size)) < least:
        if asked.image_size is not None:
            raise ArtifactError(f"--image-size {size_option(size)} is too small for {path}; expected >= {least}.")
        origin = found.preprocess.origins.get("image_size", "told by its file")
        raise ArtifactError(
            f"{path} would see images of {show_size(size)} pixels ({origin}), which are too small for its network; give another "
            f"size, >= {least}, with --image-size."
        )
    return found


def _asked(artifact: Artifact, asked: PreprocessSettings, path: Path) -> Artifact:
    side = asked.image_size
    traced = artifact.format != "torch" and artifact.model.variant != "unknown"
    if traced and side not in (None, artifact.preprocess.image_size):
        raise ArtifactError(
            f"{path} takes images of {show_size(artifact.preprocess.image_size)} pixels alone; export its PyTorch artifact again "
            f"with --image-size {size_option(side)}."
        )
    if artifact.scheme is not None or artifact.io.white is not None:
        asked = _without_equal(artifact, asked)
        if asked.mean or asked.std:
            fixed = "it was quantized with" if artifact.scheme is not None else "the graph has inside"
            raise ArtifactError(
                f"{path} keeps the mean and std that {fixed}; leave out --mean and --std, or give them where it is made."
            )
        if not asked.asked():
            return artifact
    preprocess = ask(artifact.preprocess, asked, str(path))
    earlier = artifact.notes[:-1] if artifact.notes and ": evaluated at " in artifact.notes[-1] else artifact.notes
    notes = (*earlier, evaluation_note(artifact.main_file, preprocess))
    return dataclasses.replace(artifact, preprocess=preprocess, notes=notes)


def without_head(artifact: Artifact, output: FeatureOutput, path: Path | str) -> Artifact:
    """Return a network, a classifier or none, as the feature extractor that gives this; `notes` tell of it.

    Raises: ArtifactError: if it is a graph or an engine, of which nothing else can be had.
    """
    if artifact.model.output == output:
        return artifact
    if artifact.format != "torch":
        raise ArtifactError(
            f"{path} gives {artifact.model.output} and cannot give {output}; give the PyTorch checkpoint that it was made from."
        )
    if artifact.model.variant == "unknown":
        raise ArtifactError(f"{path} is of no known network, so that it has no {output}.")
    spec = dataclasses.replace(artifact.model, num_classes=0, feature_map=output == "feature-map")
    left = f", without its head for {artifact.model.num_classes:,} classes" if artifact.model.num_classes else ""
    shape = describe_features(spec, artifact.preprocess.image_size)
    note = f"{artifact.main_file.name}: taken as a feature extractor, which gives {output} {shape}{left}"
    notes = (*artifact.notes[:-1], note, *artifact.notes[-1:])
    return dataclasses.replace(artifact, model=spec, class_names=None, class_order=None, notes=notes)


def _without_equal(artifact: Artifact, asked: PreprocessSettings) -> PreprocessSettings:
    """Return what is asked for without the mean and std that are inside the artifact anyhow: beside it others may need them."""
    own = artifact.preprocess
    equal = [
        name
        for name, values in (("mean", own.mean), ("std", own.std))
        if (wanted := getattr(asked, name)) and len(wanted) in (1, len(values))
        if all(
            math.isclose(a, b, abs_tol=_EQUAL)
            for a, b in zip(values, wanted * (len(values) // len(wanted)), strict=True)
        )
    ]
    return dataclasses.replace(asked, **dict.fromkeys(equal))


def find_baseline(artifact: Artifact) -> Artifact | str:
    """Return the nearest FP32 PyTorch ancestor of an artifact, evaluated as the artifact is; or in words why it is not at hand.

    It must lie where the lineage says, unaltered, or beside the artifact, as in a run whose folder was moved. Stages between the
    two keep what the network is shown, its classes and what its weights belong to, so all of that is the artifact's, also where the
    user asks for something else. Mean and std may have been folded into a quantized network: those are what the lineage says the
    ancestor had.
    """
    for record in reversed(artifact.lineage):
        if "source" in record.input_paths:
            ancestor = _open_ancestor(record, artifact.path.parent)
            if isinstance(ancestor, str):
                return ancestor
            if ancestor.is_baseline:
                return _evaluated_alike(ancestor, artifact, record)
    return "the artifact does not say what it was made of"


def _open_ancestor(record: StageRecord, beside: Path) -> Artifact | str:
    """Return what a stage was made of, or in words why it is not at hand."""
    path = Path(record.input_paths["source"])
    reasons = []
    for place in dict.fromkeys((path, beside / path.name)):
        try:
            found = open_input(place)
        except DeployError as error:
            reasons.append(first_line(error))
            continue
        if found.sha256 == record.inputs["source"]:
            return found
        reasons.append(f"{place} is no longer the file that {record.name} was made of")
    return reasons[0]


def _evaluated_alike(ancestor: Artifact, artifact: Artifact, record: StageRecord) -> Artifact:
    own = artifact.preprocess
    if quantized_type(artifact.precision) is not None:
        before = record.preprocess.get("source", ancestor.preprocess)
        origins = {name: (own if name in GEOMETRY else before).origins.get(name) for name in own.settings()}
        known = {name: origin for name, origin in origins.items() if origin is not None}
        own = dataclasses.replace(own, mean=before.mean, std=before.std, origins=known)
    return dataclasses.replace(
        ancestor,
        model=artifact.model,
        class_names=artifact.class_names,
        preprocess=own,
        class_order=artifact.class_order,
    )


def _with_parts(artifact: Artifact) -> Artifact:
    """Return a bare ONNX file with the files in which it keeps tensors: what it answers depends on them too."""
    from convnext_deploy.graphs.onnx_view import external_tensors, open_view

    names = sorted({str(tensor.location) for tensor in external_tensors(open_view(artifact.main_file).model)})
    parts = (dataclasses.replace(describe_file(artifact.path / name), name=name) for name in names)
    return dataclasses.replace(artifact, files=(*artifact.files, *parts))


def _open_folder(path: Path) -> Artifact:
    if (path / MANIFEST).exists():
        return read_artifact(path)
    weights = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), None)
    if weights is not None:
        return open_checkpoint(weights)
    raise no_artifact(path)


def _open_published(name: str) -> Artifact:
    from convnext_deploy.models.checkpoints.hub import fetch_weights, license_of

    found = fetch_weights(name)
    artifact = _open_folder(found.path) if found.path.is_dir() else open_checkpoint(found.path)
    artifact = dataclasses.replace(artifact, license=artifact.license or license_of(name))
    if found.preprocess is None:
        return artifact
    preprocess = tell(found.preprocess, found.preprocess.settings(), "published with the weights")
    notes = (*artifact.notes[:-1], evaluation_note(found.path, preprocess))
    return dataclasses.replace(artifact, preprocess=preprocess, class_names=found.class_names, notes=notes)


def _open_onnx(path: Path, asked: PreprocessSettings) -> Artifact:
    from convnext_deploy.graphs.onnx_io import load_onnx, read_metadata
    from convnext_deploy.pipeline.open_onnx import open_foreign_onnx

    proto = load_onnx(path)
    try:
        header = read_metadata(proto)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None
    return open_header(path, "onnx", header) if header else open_foreign_onnx(path, asked)
