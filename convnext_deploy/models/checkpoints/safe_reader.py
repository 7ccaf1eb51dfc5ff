"""Read and write weight files safely: nothing in them is executed, and what they claim is checked before it is believed."""

import argparse
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from convnext_deploy.documents import parse_json
from convnext_deploy.errors import CheckpointError, first_line
from convnext_deploy.models.checkpoints import INDEX
from convnext_deploy.models.checkpoints.beside_weights import Beside, read_arguments, read_properties
from convnext_deploy.models.checkpoints.file_checks import check_archive, check_file
from convnext_deploy.models.checkpoints.stand_ins import load_with_stand_ins
from convnext_deploy.models.checkpoints.weight_index import read_index, read_weight_map
from convnext_deploy.system.files import whole_file
from convnext_deploy.system.memory_faults import out_of_memory

METADATA_KEY = "convnext_deploy"

# Where training scripts put the weights, best first: an exponential moving average is what their authors publish.
_WRAPPERS = ("model_ema", "state_dict_ema", "model", "state_dict")
# The training scripts of timm and of the official repositories save their arguments beside the weights. A Namespace is a plain
# holder of attributes; building one runs nothing.
_SAFE = (argparse.Namespace,)
# Prefixes that wrappers of the network leave in every key: DataParallel, torch.compile, Lightning modules.
_PREFIXES = ("module.", "_orig_mod.", "model.")
# what PyTorch's restricted unpickler says of a name or call that it does not know to be harmless
_CODE_SIGNS = ("Unsupported global", "Unsupported class", "Trying to", "unrecognized function")
_LARGEST_GROWTH = 4  # from the bytes of a file to those of its tensors
_LONGEST_NAME = 200  # characters


def save_state(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a safetensors file whose header carries `metadata` (JSON) under one key, so that its bytes are reproducible."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    header = {METADATA_KEY: json.dumps(metadata, sort_keys=True)}
    with whole_file(path, needed=sum(tensor.nbytes for tensor in tensors.values())) as partial:
        save_file(tensors, partial, metadata=header)


def load_metadata(path: Path) -> dict[str, Any]:
    """Return what `save_state` wrote into the header; empty for a file of another origin.

    Raises: CheckpointError: if the file is missing or damaged.
    """
    if path.suffix.lower() != ".safetensors":
        return {}
    check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            found = parse_json((file.metadata() or {}).get(METADATA_KEY, "{}"))
    except (SafetensorError, OSError, ValueError, MemoryError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({first_line(error)}).") from None
    return found if isinstance(found, dict) else {}


def read_content(path: Path) -> tuple[Any, Beside]:
    """Read a `.safetensors` file, a `.pth`, `.pt`, `.bin`, `.ckpt` or `.tar` file of `torch.save`, or the index of several of them.

    Files of today's formats are mapped into memory, so nothing is read before it is used.

    Returns: what the file holds, and what lies beside the weights.
    Raises: CheckpointError: if the file is missing, damaged, or holds what would have to be executed.
    """
    if path.name.endswith(INDEX):
        return _read_parts(path), Beside()
    check_file(path)
    not_made: tuple[str, ...] = ()
    properties: dict[str, str] = {}
    damaged: CheckpointError | None = None  # raised where the error that it was made of is no longer at hand
    try:
        if path.suffix.lower() == ".safetensors":
            with safe_open(path, framework="pt") as file:
                content: Any = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
                properties = file.metadata() or {}
        else:
            content, not_made = _unpickle(path)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(_describe_refusal(path, str(error))) from None
    except Exception as error:
        # The unpickler raises almost anything on bytes that are not a pickle; all of it means the same to a user.
        if out_of_memory(error) is not None and not _claims_too_much(path, error):
            raise
        damaged = CheckpointError(f"{path} is not a readable checkpoint ({first_line(error)}).")
    if damaged is not None:
        raise damaged
    arguments = read_arguments(content, _WRAPPERS)
    if told := read_properties({name: text for name, text in properties.items() if name != METADATA_KEY}):
        arguments["the metadata"] = told
    return content, Beside(arguments, not_made)


def _read_parts(index: Path) -> dict[Any, Any]:
    """Return the tensors of all files that an index names: each from where it says, and those that it does not list too.

    Raises: CheckpointError: as `read_content`; if one is not where the index says, or which of several is meant is not said.
    """
    places = read_weight_map(index)
    tensors: dict[Any, Any] = {}
    for part in read_index(index):
        held, _ = read_content(part)
        if not isinstance(held, dict):
            raise CheckpointError(f"{part} holds no state dict; expected a mapping from names to tensors.")
        absent = next((key for key, name in places.items() if name == part.name and key not in held), None)
        if absent is not None:
            raise CheckpointError(
                f"{part} lacks '{absent[:80]}', which {index.name} says is in it; they are not of one save."
            )
        own = {key: value for key, value in held.items() if places.get(key, part.name) == part.name}
        if twice := own.keys() & tensors.keys():
            raise CheckpointError(
                f"{part} has '{min(map(str, twice))[:80]}', as another file has, and {index.name} does not list it; they are "
                "not of one save."
            )
        tensors |= own
    return tensors


def _claims_too_much(path: Path, error: Exception) -> bool:
    """Whether memory ran out for a tensor that is larger than its file."""
    asked = [int(digits) for digits in re.findall(r"(\d+) bytes", str(error))]
    return any(count > _LARGEST_GROWTH * path.stat().st_size for count in asked)


def take_tensors(content: Any, path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Return the tensors in what `read_content` gave.

    A training checkpoint's weights are found under `model_ema`, `state_dict_ema`, `model` or `state_dict`, and prefixes that all
    keys share are cut off.

    Returns: the tensors, and the entry of a training checkpoint that they came from (None for a flat file).
    Raises: CheckpointError: if there is anything but tensors.
    """
    entry = None
    while isinstance(content, dict) and (
        name := next((w for w in _WRAPPERS if isinstance(content.get(w), dict)), None)
    ):
        entry, content = entry or name, content.pop(name)  # taken out, so that a dict that holds itself comes to an end
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path} holds no state dict; expected a mapping from names to tensors.")
    for key, value in content.items():
        check_name(path, key)
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path} holds no state dict: '{key}' is a {type(value).__name__}; "
                "expected a mapping from names to tensors."
            )
        check_tensor(path, key, value)
    return _strip_prefixes(content), entry


def check_name(path: Path, key: object) -> None:
    """Raises: CheckpointError: if a weight cannot be called that."""
    if not isinstance(key, str):
        raise CheckpointError(f"{path} holds no state dict: one of its names is a {type(key).__name__} and not a text.")
    if not 0 < len(key) <= _LONGEST_NAME or not key.isprintable():
        raise CheckpointError(
            f"{path} holds no state dict: {key[:80]!r} ({len(key)} characters) is not the name of a weight."
        )


def _unpickle(path: Path) -> tuple[Any, tuple[str, ...]]:
    """Return what a file holds, and the names of the classes that were stood in for."""
    is_archive = zipfile.is_zipfile(path)
    if is_archive:
        check_archive(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols, which the user did not choose
        try:
            with torch.serialization.safe_globals(list[Any](_SAFE)):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive), ()
        except pickle.UnpicklingError:
            found = _read_with_stand_ins(path) if is_archive else None
            if found is None:
                raise
            return found


def _read_with_stand_ins(path: Path) -> tuple[Any, tuple[str, ...]] | None:
    try:
        return load_with_stand_ins(path, _SAFE)
    except Exception:  # of every kind, as in `read_content`; what was refused first is said
        return None


def _describe_refusal(path: Path, message: str) -> str:
    if not any(sign in message for sign in _CODE_SIGNS):
        return f"{path} is not a readable checkpoint; it may be damaged or of another format."
    needed = re.search(r"GLOBAL ([\w.]+)", message)
    return (
        f"{path} is not a plain weights file: reading it would execute code{f' ({needed[1]})' if needed else ''}, "
        "which is refused. Save it again as a state dict: torch.save(model.state_dict(), FILE)."
    )


def check_tensor(path: Path, key: str, tensor: Tensor) -> None:
    """Raises: CheckpointError: if it is no plain tensor, or claims to be larger than the file can hold."""
    kinds = {
        "nested": tensor.is_nested,
        str(tensor.layout): tensor.layout != torch.strided,
        "quantized": tensor.is_quantized,
        "complex": tensor.is_complex(),
        "meta": tensor.is_meta,  # a shape without numbers
        "packed 4-bit": tensor.dtype == torch.float4_e2m1fn_x2,
    }
    kind = next((name for name, holds in kinds.items() if holds), None)
    if kind is not None:
        raise CheckpointError(f"{path}: '{key}' is a {kind} tensor; expected plain floating-point weights.")
    claimed, held = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if claimed > held:
        # a shape with strides of 0: a few bytes that claim to be any amount of memory
        raise CheckpointError(f"{path}: '{key}' claims shape {tuple(tensor.shape)}, {claimed} bytes, but holds {held}.")


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state
