"""Safe reading and writing of weights, and what their shapes tell about the network."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from convnext_deploy.artifact import ModelSpec
from convnext_deploy.errors import CheckpointError, first_line
from convnext_deploy.models.variants import VARIANTS

METADATA_KEY = "convnext_deploy"
_WRAPPERS = ("model", "state_dict")
# what PyTorch's restricted unpickler says of a name or call that it does not know to be harmless
_CODE_SIGNS = ("Unsupported global", "Unsupported class", "Trying to", "unrecognized function")


def save_state(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a safetensors file whose header carries `metadata` (JSON) under one key, so that its bytes are reproducible."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, path, metadata={METADATA_KEY: json.dumps(metadata, sort_keys=True)})


def load_metadata(path: Path) -> dict[str, Any]:
    """Return what `save_state` wrote into the header; empty for a file of another origin."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no readable safetensors file ({error}).") from None
    return found if isinstance(found, dict) else {}


def load_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a `.safetensors`, `.pth`, `.pt` or `.bin` file; no code in it is executed.

    Raises: CheckpointError: if the file is missing, damaged, or holds anything but tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, which the user did not choose
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}.") from None
    except pickle.UnpicklingError as error:
        if not any(sign in str(error) for sign in _CODE_SIGNS):
            raise CheckpointError(
                f"{path} is no readable checkpoint; it may be damaged or of another format."
            ) from None
        raise CheckpointError(
            f"{path} is no plain weights file: reading it would execute code, which is refused. "
            "Save it again as a state dict: torch.save(model.state_dict(), FILE)."
        ) from None
    except Exception as error:
        # The unpickler raises almost anything on bytes that are no pickle; all of it means the same to a user.
        raise CheckpointError(f"{path} is no readable checkpoint ({first_line(error)}).") from None
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"{path} holds no state dict; expected a mapping from names to tensors.")
    return content


def infer_model_spec(state: Mapping[str, Tensor], path: Path) -> ModelSpec:
    """Find the variant, classes, channels and stem from the shapes of a state dict with the official key names.

    Raises: CheckpointError: if the keys are not those of a ConvNeXt, or no variant has these depths and widths.
    """
    try:
        stem = state["downsample_layers.0.0.weight"]
        head = state["head.weight"]
        depthwise = [state[f"stages.{i}.0.dwconv.weight"] for i in range(4)]
    except KeyError as error:
        some = ", ".join(list(state)[:3])
        raise CheckpointError(
            f"{path} is no ConvNeXt checkpoint with the official key names: it has no {error}; its first keys are {some}."
        ) from None
    if stem.ndim != 4 or head.ndim != 2 or any(weight.ndim != 4 for weight in depthwise):
        found = [tuple(weight.shape) for weight in (stem, head, *depthwise)]
        raise CheckpointError(
            f"{path} is no ConvNeXt checkpoint: the shapes of stem, head and convolutions are {found}."
        )
    dims = tuple(weight.shape[0] for weight in depthwise)
    depths = tuple(len({k.split(".")[2] for k in state if k.startswith(f"stages.{i}.")}) for i in range(4))
    version = 2 if any(".grn." in key for key in state) else 1
    for name, variant in VARIANTS.items():
        if (variant.version, variant.depths, variant.dims) == (version, depths, dims):
            return ModelSpec(name, int(head.shape[0]), int(stem.shape[1]), int(stem.shape[2]))
    raise CheckpointError(f"{path} is a ConvNeXt v{version} of unknown size: depths {depths}, widths {dims}.")


def load_into(model: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Copy a state dict into a model; every key must fit.

    Raises: CheckpointError: naming the first key that is missing, unexpected, of another shape or not finite.
    """
    expected = model.state_dict()
    for key, tensor in expected.items():
        if key not in state:
            raise CheckpointError(
                f"{what} lacks '{key}', which the network needs; is it a checkpoint of another model?"
            )
        if state[key].shape != tensor.shape:
            found, wanted = tuple(state[key].shape), tuple(tensor.shape)
            raise CheckpointError(f"{what}: '{key}' has shape {found}, the network needs {wanted}.")
        if not torch.isfinite(state[key]).all():
            raise CheckpointError(
                f"{what}: '{key}' holds values that are not finite; the training that made it diverged."
            )
    unexpected = next((key for key in state if key not in expected), None)
    if unexpected is not None:
        raise CheckpointError(
            f"{what} has '{unexpected}', which the network does not; is it a checkpoint of another model?"
        )
    model.load_state_dict(dict(state))
