"""Open what a user points at as an artifact: a folder, a checkpoint, an ONNX file or published weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from convnext_deploy.artifacts.artifact import MANIFEST, Artifact, describe_file, parse_artifact, read_artifact
from convnext_deploy.artifacts.details import Format, TorchDetails
from convnext_deploy.artifacts.spec import GraphHints, Preprocess, default_preprocess
from convnext_deploy.config.recipe import WEIGHTS_PREFIX, Recipe
from convnext_deploy.errors import ArtifactError, CheckpointError, DeployError

CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
# the names under which other libraries keep the weights in a folder, best first
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "model.pth")


def open_input(
    path: Path,
    *,
    model: str | None = None,
    image_size: int | None = None,
    crop_pct: float | None = None,
    hints: GraphHints = GraphHints(),
) -> Artifact:
    """Describe an artifact folder, a checkpoint, an ONNX file or published weights; nothing is written.

    Files of this tool carry their own preprocessing and class names. For checkpoints of others the variant, classes, channels,
    stem and head come from names and shapes; evaluation transform and class names from the config file of timm or transformers
    in the same folder, or else the transform that is published with the variant. `notes` of the result tell what was found.

    Args:
        path: folder or file, or the name of published weights such as `timm/convnext_tiny.fb_in1k`.
        model: variant that the file must hold; needed for nothing, checked when given.
        image_size: overrides the evaluation image size.
        crop_pct: overrides the evaluation crop.
        hints: what the user says of an ONNX file of another origin; they change nothing else.

    Raises: ArtifactError, CheckpointError: if it is none of these, or not what was asked for.
    """
    if path.is_dir():
        artifact = _open_folder(path)
    elif path.is_symlink() and not path.exists():
        raise ArtifactError(f"{path} is a symbolic link that leads nowhere; expected a folder or file.")
    elif not path.exists():
        artifact = _open_published(str(path))
    elif path.suffix in CHECKPOINT_SUFFIXES:
        artifact = _open_checkpoint(path)
    elif path.suffix == ".onnx":
        artifact = _open_onnx(path, image_size, hints)
    else:
        raise ArtifactError(
            f"{path} is not an artifact: expected a folder with {MANIFEST}, or a file ending in "
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
    notes = artifact.notes
    if notes and preprocess != artifact.preprocess:
        notes = (*notes[:-1], _describe_evaluation(artifact.main_file, preprocess, "as asked for"))
    return dataclasses.replace(artifact, preprocess=preprocess, notes=notes)


def open_weights(recipe: Recipe) -> dict[str, Artifact]:
    """Open the initial weights of all stages, by the names under which `StageEntry.inputs` refers to them.

    Raises: DeployError: if any of them cannot be opened.
    """
    places = {stage.weights for stage in recipe.stages if stage.weights is not None}
    return {place: open_input(Path(place.removeprefix(WEIGHTS_PREFIX))) for place in sorted(places)}


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
    if (path / MANIFEST).exists():
        return read_artifact(path)
    weights = next((path / name for name in _WEIGHT_FILES if (path / name).is_file()), None)
    if weights is not None:
        return _open_checkpoint(weights)
    inside = sorted(p.parent for p in path.glob(f"stages/*/{MANIFEST}"))
    hint = f" It is a run; point at one of its artifacts, such as {inside[-1]}." if inside else ""
    raise ArtifactError(f"{path} is not an artifact folder: it has no {MANIFEST} and no {_WEIGHT_FILES[0]}.{hint}")


def _open_published(name: str) -> Artifact:
    from convnext_deploy.models.checkpoints.hub import fetch_weights, is_weights_name, license_of

    if not is_weights_name(name):
        raise ArtifactError(f"{name} does not exist; expected an artifact folder, a checkpoint or an ONNX file.")
    found = fetch_weights(name)
    artifact = _open_folder(found.path) if found.path.is_dir() else _open_checkpoint(found.path)
    artifact = dataclasses.replace(artifact, license=artifact.license or license_of(name))
    if found.preprocess is None:
        return artifact
    notes = (*artifact.notes[:-1], f"{name}: evaluation and class names as published with the weights")
    return dataclasses.replace(artifact, preprocess=found.preprocess, class_names=found.class_names, notes=notes)


def _open_checkpoint(path: Path) -> Artifact:
    from convnext_deploy.models.checkpoints.hub_config import CONFIG, TRANSFORMERS_DEFAULT_EPS, read_hub_config
    from convnext_deploy.models.checkpoints.safe_reader import load_metadata
    from convnext_deploy.models.checkpoints.state_dict import infer_model_spec, load_checkpoint
    from convnext_deploy.models.zoo.published import default_evaluation

    header = load_metadata(path)
    if header:
        return open_header(path, "torch", header)
    checkpoint = load_checkpoint(path)
    spec = infer_model_spec(checkpoint.state, path)
    if checkpoint.dialect == "timm" and spec.patch_size >= 8:
        raise CheckpointError(
            f"{path} has a patch size of {spec.patch_size}, with which timm dilates the last model stage; no variant does here."
        )
    # Another file's config may lie in the same folder; only these names are known to belong together.
    config = read_hub_config(path.parent, spec) if path.name in _WEIGHT_FILES else None
    if config is not None:
        spec = dataclasses.replace(spec, **config.changes)
    elif checkpoint.dialect == "huggingface":
        spec = dataclasses.replace(spec, head_norm_eps=TRANSFORMERS_DEFAULT_EPS)
    preprocess = config.preprocess if config is not None else None
    if preprocess is not None:
        origin = f"from {CONFIG} beside it"
    else:
        origin = "as published with the variant, because the file does not tell"
        preprocess = default_evaluation(spec.variant)
        if spec.in_channels != 3:
            usual = default_preprocess(preprocess.image_size, preprocess.crop_pct, spec.in_channels)
            preprocess = dataclasses.replace(preprocess, mean=usual.mean, std=usual.std)
    notes = (
        *checkpoint.notes,
        f"{path.name}: a {spec.variant} with {spec.num_classes or 'no'} classes",
        _describe_evaluation(path, preprocess, origin),
    )
    class_names = config.class_names if config is not None else None
    license_ = config.license if config is not None else None
    files = (describe_file(path),)
    return Artifact(
        path.parent, TorchDetails(), "fp32", spec, class_names, preprocess, files, license=license_, notes=notes
    )


def _describe_evaluation(path: Path, preprocess: Preprocess, origin: str) -> str:
    how = f"{preprocess.image_size} pixels, crop {preprocess.crop_pct:.3g}, {preprocess.interpolation}"
    return f"{path.name}: evaluated at {how}, {origin}"


def _open_onnx(path: Path, image_size: int | None, hints: GraphHints) -> Artifact:
    from convnext_deploy.graphs.onnx_io import load_onnx, read_metadata
    from convnext_deploy.pipeline.open_onnx import open_foreign_onnx

    proto = load_onnx(path)
    try:
        header = read_metadata(proto)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None
    return open_header(path, "onnx", header) if header else open_foreign_onnx(path, image_size, hints)


def open_header(path: Path, format: Format, header: dict[str, Any]) -> Artifact:  # noqa: A002  (the manifest's key)
    """Return a file of this tool as the artifact that its header describes. Raises: ArtifactError: if the header is damaged."""
    own = {"path": path.parent, "files": (describe_file(path),), "lineage": ()}  # the lineage is for people to read
    try:
        return parse_artifact({"details": {}, **header, **own}, format, f"{path} has a damaged header")
    except ValueError as error:
        raise ArtifactError(f"{error} Make it again.") from None
