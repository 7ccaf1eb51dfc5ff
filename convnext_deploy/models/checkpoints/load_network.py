"""Load the network of a PyTorch artifact: float, or with the quantizers that its scheme asks for."""

from typing import Any

import torch

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import TorchDetails
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

    `training` are arguments of `build_model` that count in training only.

    The network is built without memory and takes the tensors of the file as they are mapped, so there is one copy of them.

    Raises:
        ArtifactError: if the artifact is not in PyTorch's format.
        CheckpointError: if the weights cannot be read or do not fit, or have no head.
    """
    if artifact.format != "torch":
        raise ArtifactError(f"{artifact.place} is in the format {artifact.format}; this step needs a PyTorch artifact.")
    if artifact.model.num_classes < 1:
        raise CheckpointError(
            f"{artifact.main_file} has no classification head; give it one with "
            "'convnext-deploy train --weights FILE --data DIR'."
        )
    scheme = artifact.scheme
    # before the next block, in which releases of safetensors until 0.5 give tensors without numbers
    state = load_checkpoint(artifact.main_file, artifact.details_as(TorchDetails).entry).state
    with torch.device("meta"):
        model = build_model(artifact.model, **training)
        if scheme is not None:
            prepare(model, scheme)
        add_gains(model, state)
        if _PIXEL_STEM in state:  # what its buffers are is in the file
            model.stem.undo_normalization(*[[0.0] * artifact.model.in_channels] * 2)
    load_into(model, state, str(artifact.main_file))
    return model.eval()
