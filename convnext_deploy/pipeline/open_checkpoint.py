"""Open a checkpoint: a header tells all about a file of this tool; of others the network is found, and how it is evaluated."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convnext_deploy.artifacts.artifact import Artifact, describe_file, parse_artifact
from convnext_deploy.artifacts.details import Format, TorchDetails
from convnext_deploy.artifacts.preprocessing import assume, describe, tell
from convnext_deploy.artifacts.spec import ModelSpec, Preprocess, default_preprocess
from convnext_deploy.data.class_names import NATURAL
from convnext_deploy.errors import ArtifactError, CheckpointError
from convnext_deploy.models.checkpoints import INDEX
from convnext_deploy.models.zoo.cost import describe_features
from convnext_deploy.pipeline.told_classes import find_class_names

if TYPE_CHECKING:
    from convnext_deploy.models.checkpoints.hub_config import HubConfig
    from convnext_deploy.models.checkpoints.state_dict import Checkpoint

WEIGHT_FILES = (
    "model.safetensors",
    f"model.safetensors{INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
    "model.pth",
)
"""The names under which other libraries keep the weights in a folder, best first."""

_UNTOLD = "because the file does not tell"
_NOT_TAKEN = "because what the file tells is not taken"


def open_checkpoint(path: Path, entry: str | None = None) -> Artifact:
    """Describe a file of weights of any library, and of several networks in it the one named `entry`; see `open_input`."""
    from convnext_deploy.models.checkpoints.hub_config import TRANSFORMERS_DEFAULT_EPS, read_hub_config
    from convnext_deploy.models.checkpoints.safe_reader import load_metadata
    from convnext_deploy.models.checkpoints.state_dict import infer_model_spec, load_checkpoint
    from convnext_deploy.models.checkpoints.weight_index import read_index

    header = load_metadata(path)
    if header:
        return open_header(path, "torch", header)
    checkpoint = load_checkpoint(path, entry)
    spec = dataclasses.replace(infer_model_spec(checkpoint.state, path), **checkpoint.changes)
    if checkpoint.dialect in ("torchvision", "huggingface"):
        spec = _as_its_library_computes(spec)
    # Another file's config may lie in the same folder; only these names are known to belong together.
    config = read_hub_config(path.parent, spec) if path.name in WEIGHT_FILES else None
    if checkpoint.dialect == "timm":
        spec = _as_timm_lays_out(path, checkpoint, spec, config)
    if config is not None:
        spec = dataclasses.replace(spec, **config.changes)
    elif checkpoint.dialect == "huggingface":
        spec = dataclasses.replace(spec, head_norm_eps=TRANSFORMERS_DEFAULT_EPS)
    preprocess, remarks = _preprocess(path, checkpoint, spec, config)
    class_names = config.class_names if config is not None else None
    if class_names is None:
        alone = path.name in WEIGHT_FILES
        class_names, told = find_class_names(path, spec, checkpoint.arguments, alone=alone)
        remarks += told
    notes = (
        *checkpoint.notes,
        f"{path.name}: a {spec.variant} with {spec.num_classes or 'no'} classes" + _gives(spec, preprocess),
        *remarks,
        evaluation_note(path, preprocess),
    )
    return Artifact(
        path.parent,
        TorchDetails(entry=entry),
        "fp32",
        spec,
        class_names,
        preprocess,
        tuple(map(describe_file, (path, *(read_index(path) if path.name.endswith(INDEX) else ())))),
        license=config.license if config is not None else None,
        notes=notes,
        class_order=_numbered_by(checkpoint) if class_names is None else None,
    )


def _gives(spec: ModelSpec, preprocess: Preprocess) -> str:
    """Say of a network without head what it gives."""
    return (
        "" if spec.num_classes else f", a feature extractor: it gives {describe_features(spec, preprocess.image_size)}"
    )


def _as_its_library_computes(spec: ModelSpec) -> ModelSpec:
    """Return the network with the norms and activations of the papers: timm alone has sizes with others."""
    from convnext_deploy.models.variants import Variant, complete_spec

    row = complete_spec(spec)
    if row.norm_eps != Variant.norm_eps:
        spec = dataclasses.replace(spec, norm_eps=Variant.norm_eps)
    return spec if row.activation == Variant.activation else dataclasses.replace(spec, activation=Variant.activation)


def _as_timm_lays_out(path: Path, checkpoint: Checkpoint, spec: ModelSpec, config: HubConfig | None) -> ModelSpec:
    """Return the network with timm's strides and dilations, which follow from the patch size and an output stride.

    Raises: CheckpointError: if the weights are of other strides.
    """
    from convnext_deploy.models.checkpoints.told_settings import read_output_stride
    from convnext_deploy.models.variants import TIMM_OUTPUT_STRIDE, timm_layout

    told = config.output_stride if config is not None else read_output_stride(checkpoint.arguments, path, spec)
    strides, dilations = timm_layout(spec.patch_size, told or TIMM_OUTPUT_STRIDE)
    if strides[0] != spec.strides[0]:
        has = "a" if spec.strides[0] > 1 else "no"
        raise CheckpointError(
            f"{path} has {has} downsampling before the first model stage behind a patch size of {spec.patch_size}; "
            "timm has one for a patch size of 2 alone."
        )
    return dataclasses.replace(spec, strides=strides, dilations=dilations)


def open_header(path: Path, format: Format, header: Mapping[str, Any]) -> Artifact:  # noqa: A002  (the manifest's key)
    """Return a file of this tool as the artifact that its header describes. Raises: ArtifactError: if the header is damaged."""
    own = {"path": path.parent, "files": (describe_file(path),), "lineage": ()}  # the lineage is for people to read
    try:
        return parse_artifact({"details": {}, **header, **own}, format, f"{path} has a damaged header")
    except ValueError as error:
        raise ArtifactError(f"{error} Make it again.") from None


def evaluation_note(path: Path, preprocess: Preprocess) -> str:
    """Say how a file is evaluated, with every value and where it came from."""
    return f"{path.name}: evaluated at {describe(preprocess)}"


def _numbered_by(checkpoint: Checkpoint) -> str | None:
    """Return the order in which the library that trained a network without names numbers folders; None: that of their characters.

    Lightning has no folders of its own, and its users take torchvision's, also for networks of timm.
    """
    from convnext_deploy.models.checkpoints.beside_weights import BESIDE

    told = checkpoint.arguments
    is_lightning = "hyper_parameters" in told or "pytorch-lightning_version" in told.get(BESIDE, {})
    return NATURAL if checkpoint.dialect == "timm" and not is_lightning else None


def _preprocess(
    path: Path, checkpoint: Checkpoint, spec: ModelSpec, config: HubConfig | None
) -> tuple[Preprocess, list[str]]:
    """Return how a foreign network is evaluated, and what of it is worth knowing: as told, otherwise as published."""
    from convnext_deploy.models.checkpoints.hub_config import CONFIG
    from convnext_deploy.models.checkpoints.told_settings import read_told_settings

    beside = f"from {CONFIG} beside it"
    remarks = [f"{path.name}: {remark}" for remark in (config.remarks if config is not None else ())]
    if config is not None and config.preprocess is not None:
        return tell(config.preprocess, config.preprocess.settings(), beside), remarks
    preprocess = _as_published(spec, checkpoint.dialect)
    if config is not None and config.told:
        preprocess = tell(preprocess, config.told, beside)
    for told in reversed(read_told_settings(checkpoint.arguments, path, spec)):
        preprocess = tell(preprocess, told.values, told.origin)
        remarks += [f"{path.name}: {reason}" for reason in told.reasons]
        # the file does tell these
        taken = {name: preprocess.origins[name].replace(_UNTOLD, _NOT_TAKEN) for name in told.refused}
        preprocess = dataclasses.replace(preprocess, origins={**preprocess.origins, **taken})
    return preprocess, remarks


def _as_published(spec: ModelSpec, dialect: str) -> Preprocess:
    """Return what to assume of a network whose file does not tell how it is evaluated."""
    from convnext_deploy.models.checkpoints.told_settings import adapt_channels
    from convnext_deploy.models.zoo.published import PUBLISHED, default_evaluation

    usual = default_evaluation(spec.variant)
    known = PUBLISHED[spec.variant] is not None
    reason = f"as published with {spec.variant}" if known else "usual, as no weights are published"
    preprocess = assume(usual, f"{reason}, {_UNTOLD}")
    if spec.in_channels == 3:
        return preprocess
    if dialect == "timm":
        averages = {name: adapt_channels(getattr(usual, name), spec.in_channels) for name in ("mean", "std")}
        reason = "average of the published ones, as timm does"
    else:
        grey = default_preprocess(usual.image_size, usual.crop_pct, spec.in_channels)
        averages, reason = {"mean": grey.mean, "std": grey.std}, f"usual for {spec.in_channels} channels"
    return tell(preprocess, averages, assume(preprocess, reason).origins["mean"])
