"""Refuse what is no file of weights at first sight, before any library reads it."""

import os
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

from convnext_deploy.documents import open_file, reason
from convnext_deploy.errors import CheckpointError, first_line

_LARGEST_HEADER = 100_000_000  # bytes; the safetensors library refuses more too, but only after it tried to find them
_MANY_RECORDS = 0xFFFF  # what the end of an archive says when it holds this many or more
_LARGEST_EXPANSION = 1 << 20  # bytes that the records of an archive may unpack to beyond its own size


def check_file(path: Path) -> None:
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
    is_safetensors = start[8:9] == b"{" and int.from_bytes(start[:8], "little") < size
    if is_safetensors != (path.suffix.lower() == ".safetensors") and (is_safetensors or start.startswith(b"PK\3\4")):
        found, ending = ("safetensors file", ".safetensors") if is_safetensors else ("file of torch.save", ".pth")
        raise CheckpointError(f"{path} is a {found} by its content; give it a name that ends in {ending}.")
    if path.suffix.lower() == ".safetensors":
        header = int.from_bytes(start[:8], "little")
        if len(start) < 8 or header > min(size - 8, _LARGEST_HEADER):
            raise CheckpointError(
                f"{path} is not a readable safetensors file: it claims a header of {header} bytes in a file of {size}; "
                "it may be truncated or of another format."
            )


def check_archive(path: Path) -> None:
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
    check_torchscript(path, [record.filename for record in records])
    unpacked = sum(record.file_size for record in records)
    if (
        any(record.compress_type != zipfile.ZIP_STORED for record in records)
        or unpacked > path.stat().st_size + _LARGEST_EXPANSION
    ):
        raise CheckpointError(
            f"{path} is an archive whose {len(records)} records unpack to {unpacked} bytes; a checkpoint stores them "
            "uncompressed. It is not opened."
        )


def check_torchscript(path: Path, names: Iterable[str]) -> None:
    """Refuse an archive of `torch.jit.save` by the names of its records. Raises: CheckpointError."""
    if any(name.endswith("/constants.pkl") or "/code/__torch__" in name for name in names):
        raise CheckpointError(
            f"{path} is a TorchScript program, which is not run because it is code. Save the network's weights instead, "
            "torch.save(model.state_dict(), FILE), or for a teacher export it with torch.export (.pt2) or to ONNX."
        )
