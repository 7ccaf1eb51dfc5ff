"""Load the network of a PyTorch artifact: float, or with the quantizers that its scheme asks for."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import TorchDetails
from convnext_deploy.config.choices import NetworkOutput
from convnext_deploy.errors import ArtifactError, CheckpointError
from convnext_deploy.models.channel_scaling import add_gains
from convnext_deploy.models.checkpoints.state_dict import load_checkpoint, load_into
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.models.variants import build_model
from convnext_deploy.quantization.prepare import prepare

WEIGHTS = "model.safetensors"
_PIXEL_STEM = "downsample_layers.0.std"


def load_network(artifact: Artifact, **training: Any) -> ConvNeXt:
    """Build the network of an artifact and load its weights and quantizers, in evaluation mode on the CPU.

    A feature extractor takes those of a classifier too, without its head.

    `training` are arguments of `build_model` that count in training only.

    The network is built without memory and takes the tensors of the file as they are mapped, so there is one copy of them.

    Raises:
        ArtifactError: if the artifact is not in PyTorch's format.
        CheckpointError: if the weights cannot be read or do not fit.
    """
    if artifact.format != "torch":
        raise ArtifactError(f"{artifact.place} is in the format {artifact.format}; this step needs a PyTorch artifact.")
    scheme = artifact.scheme
    # before the next block, in which releases of safetensors until 0.5 give tensors without numbers
    state = load_checkpoint(artifact.main_file, artifact.details_as(TorchDetails).entry).state
    with torch.device("meta"):
        model = build_model(artifact.model, **training)
        if scheme is not None:
            prepare(model, scheme)
        _check_last_norm(artifact, model, state)
        if unused := _behind_features(artifact.model.output):
            state = {key: tensor for key, tensor in state.items() if not key.startswith(unused)}
        add_gains(model, state)
        if _PIXEL_STEM in state:  # what its buffers are is in the file
            model.stem.undo_normalization(*[[0.0] * artifact.model.in_channels] * 2)
    load_into(model, state, str(artifact.main_file))
    return model.eval()


def _check_last_norm(artifact: Artifact, model: ConvNeXt, state: Mapping[str, Tensor]) -> None:
    """Check that what gives the features is all there. Raises: CheckpointError: if not."""
    last = "norm_pre" if model.norm is None else "norm"
    if not artifact.model.num_classes and f"{last}.weight" not in state:
        raise CheckpointError(
            f"{artifact.main_file} has neither a head nor the norm before it, so it gives no features; train both with "
            "'convnext-deploy train --checkpoint FILE --data DIR'."
        )


def _behind_features(output: NetworkOutput) -> tuple[str, ...]:
    """Return how the names of the weights begin that a network with this output does without: those of a classifier's head."""
    return {"logits": (), "features": ("head.",), "feature-map": ("head.", "pre_logits.", "head_norm.")}[output]
