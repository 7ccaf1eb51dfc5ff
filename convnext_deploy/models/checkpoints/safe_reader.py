"""Read and write weight files safely: nothing in them is executed, and what they claim is checked before it is believed."""

import argparse
import json
import os
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from convnext_deploy.config.records import name_shown
from convnext_deploy.documents import open_file, parse_json, read_json, reason
from convnext_deploy.errors import CheckpointError, first_line
from convnext_deploy.models.checkpoints import INDEX
from convnext_deploy.models.checkpoints.beside_weights import Beside, read_arguments, read_properties
from convnext_deploy.models.checkpoints.stand_ins import load_with_stand_ins
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
_LARGEST_HEADER = 100_000_000  # bytes; the safetensors library refuses more too, but only after it tried to find them
_LONGEST_NAME = 200  # characters
_MANY_RECORDS = 0xFFFF  # what the end of an archive says when it holds this many or more
_LARGEST_EXPANSION = 1 << 20  # bytes that the records of an archive may unpack to beyond its own size


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
    if path.suffix != ".safetensors":
        return {}
    _check_file(path)
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
        tensors: dict[str, Any] = {}
        for part in read_index(path):
            held, _ = read_content(part)
            if not isinstance(held, dict):
                raise CheckpointError(f"{part} holds no state dict; expected a mapping from names to tensors.")
            tensors |= held
        return tensors, Beside()
    _check_file(path)
    not_made: tuple[str, ...] = ()
    properties: dict[str, str] = {}
    damaged: CheckpointError | None = None  # raised where the error that it was made of is no longer at hand
    try:
        if path.suffix == ".safetensors":
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


def _claims_too_much(path: Path, error: Exception) -> bool:
    """Whether memory ran out for a tensor that is larger than its file."""
    asked = [int(digits) for digits in re.findall(r"(\d+) bytes", str(error))]
    return any(count > _LARGEST_GROWTH * path.stat().st_size for count in asked)


def read_index(path: Path) -> list[Path]:
    """Return the files among which an index says that the weights are divided, as transformers writes it.

    Raises: CheckpointError: if it is damaged, a file is missing, or a name is that of no file beside it.
    """
    _check_file(path)
    try:
        found = read_json(path)["weight_map"]
        names = sorted(set(found.values()))
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        raise CheckpointError(
            f"{path} is not an index of files of weights; expected JSON with a 'weight_map'."
        ) from None
    for name in names:
        if not isinstance(name, str) or name != Path(name).name or name.endswith(INDEX) or "\0" in name:
            raise CheckpointError(f"{path} names {str(name)[:80]!r}; expected the name of a file beside it.")
        if not os.path.isfile(path.parent / name):  # noqa: PTH113  (false for names that no file can have)
            raise CheckpointError(
                f"{path} names {name_shown(name)}, which is not there; the weights are in {len(names)} files."
            )
    return [path.parent / name for name in names]


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
        _check_archive(path)
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


def _check_file(path: Path) -> None:
    """Refuse what is not a file of weights at first sight, before any library reads it."""
    try:
        with open_file(path) as file:
            size, start = os.fstat(file.fileno()).st_size, file.read(256)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({reason(error)}); expected a file of weights.") from None
    if size == 0:
        raise CheckpointError(f"{path} is empty; was it copied completely?")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path} is a Git LFS pointer and not the weights; run 'git lfs pull' where it came from."
        )
    if start.lstrip()[:9].lower() in (b"<!doctype", b"<html") or start.lstrip()[:5].lower() == b"<html":
        raise CheckpointError(f"{path} is a web page and not a checkpoint; download the file itself.")
    if path.suffix == ".safetensors":
        header = int.from_bytes(start[:8], "little")
        if len(start) < 8 or header > min(size - 8, _LARGEST_HEADER):
            raise CheckpointError(
                f"{path} is not a readable safetensors file: it claims a header of {header} bytes in a file of {size}; "
                "it may be truncated or of another format."
            )


def _check_archive(path: Path) -> None:
    """Refuse archives that `torch.save` would not write: compressed, unpacking to more than their size, or with code inside."""
    try:
        with path.open("rb") as file:
            # the last record of an archive, which says how many there are, before a list of them is made
            file.seek(-min(path.stat().st_size, 22 + 0xFFFF), 2)
            _, found, end = file.read().rpartition(b"PK\x05\x06")
        if found and len(end) >= 8 and struct.unpack_from("<H", end, 6)[0] == _MANY_RECORDS:
            raise CheckpointError(
                f"{path} is an archive of {_MANY_RECORDS} records or more; no checkpoint has so many."
            )
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path} is not a readable checkpoint ({first_line(error)}).") from None
    unpacked = sum(record.file_size for record in records)
    if (
        any(record.compress_type != zipfile.ZIP_STORED for record in records)
        or unpacked > path.stat().st_size + _LARGEST_EXPANSION
    ):
        raise CheckpointError(
            f"{path} is an archive whose {len(records)} records unpack to {unpacked} bytes; a checkpoint stores them "
            "uncompressed. It is not opened."
        )
    if any(record.filename.endswith("/constants.pkl") for record in records):
        raise CheckpointError(
            f"{path} is a TorchScript program, which is code. Save its weights instead: torch.save(model.state_dict(), FILE)."
        )


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
