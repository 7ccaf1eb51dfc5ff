"""Find and check the samples of a tar shard by reading its headers once.

The grouping of files into samples is webdataset's own; the offsets are found by tarfile, because webdataset 1.0 reads shards
from front to back only (its `wids`, which indexed them, has left the package) and so could not repeat a seeded order.
"""

import hashlib
import io
import os
import re
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np

from convnext_deploy.data.contents import TAIL_BYTES
from convnext_deploy.data.decoding import find_defect, printable
from convnext_deploy.data.pixels import IMAGE_EXTENSIONS
from convnext_deploy.data.remote_blocks import RemoteBlocks
from convnext_deploy.data.shard_parts import SAMPLE, Part, Version
from convnext_deploy.documents import parse_json
from convnext_deploy.errors import DataError, RemoteError, first_line
from convnext_deploy.metrics.multi_label import UNKNOWN

Group = Callable[[Iterable[dict[str, Any]]], Iterator[dict[str, Any]]]

TAR, MDS = ".tar", ".mds"
SHARDS = (TAR, MDS)
_META = re.compile(r"__[^/]*__(?:$|/)")  # what webdataset keeps for itself
_LABEL = re.compile(rb"\s*(\d{1,9})\s*")
_LABEL_BYTES, _JSON_BYTES = 64, 1 << 24
_PAGE = (b"<!doctype html", b"<html", b"<?xml")
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd


@dataclass(frozen=True)
class Shard:
    """A tar file as it was when it was read. `changed_ns` is set by the system alone, also where somebody sets the other time.

    `blocks`: of a file on another machine, whose URL `path` is; and its `digest`, as `contents.digest_file` makes it, once it was
    read.
    """

    path: Path
    size: int
    modified_ns: int
    changed_ns: int = 0
    blocks: RemoteBlocks | None = None
    digest: bytes = b""

    def open(self) -> BinaryIO:
        """Open the file. Raises: OSError, RemoteError."""
        return self.path.open("rb") if self.blocks is None else self.blocks.open()

    def version(self, root: Path) -> Version:
        """Return its name from a folder on, and what else tells it from another file, as far as the system or the server says."""
        if self.blocks is not None:
            file = self.blocks.file
            return file.url, file.size, file.identity
        return self.path.relative_to(root).as_posix(), self.size, self.modified_ns, self.changed_ns


def describe_shard(path: Path) -> Shard:
    """Return the size and the time of a tar file. Raises: DataError: if it is not a regular file."""
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{printable(path)} cannot be read ({error.strerror}).") from None
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{printable(path)} is not a regular file; expected a tar file.")
    return Shard(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def expand_urls(name: str) -> list[str]:
    """Return the addresses that one of WebDataset's stands for: `{000..099}`, `{a,b}`, and several joined by `::`.

    Raises: DataError: if webdataset is missing, or braces are not closed.
    """
    try:
        from webdataset.shardlists import expand_urls as expand
    except ImportError as error:
        raise DataError(_without_webdataset(name, error)) from None
    try:
        return [str(url) for url in expand(name)]
    except ValueError as error:
        raise DataError(f"{printable(name)} cannot be expanded ({printable(first_line(error))}).") from None


def _without_webdataset(name: object, error: ImportError) -> str:
    return (
        f"{printable(name)} is a shard, and webdataset cannot be loaded ({printable(first_line(error))}); "
        "pip install 'convnext_deploy[webdataset]'."
    )


def load_grouping(shard: Shard) -> Group:
    """Return webdataset's grouping of files into samples. Raises: DataError: if webdataset is missing."""
    try:
        from webdataset.tariterators import group_by_keys
    except ImportError as error:
        raise DataError(_without_webdataset(shard.path, error)) from None
    group: Group = group_by_keys
    return group


def scan_shard(shard: Shard, group: Group, seen: Callable[[int], None], *, labelled: bool = True) -> Part:
    """Read all headers of a shard and check every sample. To be called within `quiet`.

    Args:
        shard: is read from front to back, without the contents of images but for their first and last bytes.
        group: webdataset's grouping of files into samples.
        seen: is told now and then how many bytes more were read.
        labelled: samples need a class index; otherwise none is looked for, and theirs is `UNKNOWN`.

    Raises: DataError: if the shard cannot be read to its end, has no samples or has a key twice.
    """
    rows, names, defects = [], [], []
    keys, start = set[str](), 0
    try:
        with shard.open() as stream, _open_tar(stream) as tar:
            for sample in group(_files(tar, stream, seen)):
                key = sample["__key__"]
                if key in keys:
                    raise DataError(f"has the key '{key}' twice; the files of a sample must follow each other")
                keys.add(key)
                try:
                    image, label = _find_image(sample), _read_label(stream, sample) if labelled else UNKNOWN
                    tail = check_image(stream, image.offset_data, image.size)
                except UnusableError as error:
                    defects.append((key, str(error)))
                    continue
                names.append(os.fsencode(image.name.removeprefix("./")))
                rows.append((0, label, image.offset_data, image.size, tail, start, len(names[-1])))
                start += len(names[-1])
        if not keys:
            raise DataError("has no samples; remove it, or make it again")
    except RemoteError:
        raise
    except DataError as error:
        raise DataError(f"{printable(shard.path)} {printable(error)}.") from None
    except Exception as error:  # damaged tar files make tarfile raise errors of many kinds
        reason = getattr(error, "strerror", None) or next(iter(error.args), type(error).__name__)
        raise DataError(
            f"{printable(shard.path)} cannot be read as a tar file ({printable(reason)}); copy or make it again."
        ) from None
    return Part(np.array(rows, SAMPLE), b"".join(names), tuple(defects))


class UnusableError(Exception):
    """What is wrong with a sample."""


def _open_tar(stream: BinaryIO) -> tarfile.TarFile:
    start = stream.read(max(map(len, (*_COMPRESSED, *_PAGE))))
    stream.seek(0)
    if start.lower().startswith(_PAGE):
        raise DataError("is a page (HTML), such as a server shows for a login or an error; expected a tar file")
    if start.startswith(_COMPRESSED):
        raise DataError("is compressed, so that no sample can be read alone; unpack it to a plain .tar file")
    return tarfile.open(fileobj=stream, mode="r:")


def _files(tar: tarfile.TarFile, stream: BinaryIO, seen: Callable[[int], None]) -> Iterator[dict[str, Any]]:
    """Yield the files of a shard in the form that webdataset groups, with headers in the place of contents."""
    end = 0
    while (info := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # where the headers would pile up
        if tar.offset <= end:  # by a negative size, and without end
            raise DataError("is not a sound tar file: its headers lead backwards; copy or make it again")
        seen(tar.offset - end)
        end = tar.offset
        if info.isreg() and not info.issparse() and not _META.match(info.name):
            yield {"fname": info.name, "data": info, "__url__": ""}
    # tarfile takes a damaged header, and a file that has been cut between two headers, for the end.
    stream.seek(tar.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise DataError(f"is cut or damaged at byte {tar.offset}; copy or make it again")
    while rest := stream.read(1 << 20):
        seen(len(rest))
        if rest.strip(b"\0"):
            raise DataError("goes on after the end of an archive, as when several are joined; join their files instead")


def _find_image(sample: dict[str, Any]) -> tarfile.TarInfo:
    suffixes = [f".{suffix}" for suffix, info in sample.items() if isinstance(info, tarfile.TarInfo)]
    images = [suffix for suffix in suffixes if suffix in IMAGE_EXTENSIONS]
    if len(images) != 1:
        found = ", ".join(images or suffixes)
        raise UnusableError(f"has {len(images)} images ({found})" if images else f"has no image (only {found})")
    image: tarfile.TarInfo = sample[images[0][1:]]
    return image


def _read_label(stream: BinaryIO, sample: dict[str, Any]) -> int:
    if "cls" in sample:
        content = _read(stream, sample["cls"], _LABEL_BYTES)
        if len(content) > _LABEL_BYTES or (match := _LABEL.fullmatch(content)) is None:
            raise UnusableError(f"has no class index in its .cls file, but {content[:20]!r}")
        return int(match[1])
    if "json" not in sample:
        raise UnusableError("has no label: neither a .cls nor a .json file")
    try:
        label = parse_json(_read(stream, sample["json"], _JSON_BYTES))["label"]
    except (ValueError, LookupError, TypeError):
        raise UnusableError("has no label: no .cls file, and no 'label' in its .json file") from None
    if type(label) is not int or not 0 <= label < 10**9:
        raise UnusableError(f"has no class index as 'label' in its .json file, but {str(label)[:20]!r}")
    return label


def check_image(stream: BinaryIO, offset: int, size: int) -> int:
    """Return the `tail` of an image that is a part of a file. Raises: UnusableError: if it cannot be opened."""
    with _FileInShard(stream, offset, size) as image:
        image.seek(max(0, size - TAIL_BYTES))
        tail = tail_of(size, image.read())
        image.seek(0)
        if (reason := find_defect(image)) is not None:
            raise UnusableError(f"cannot be read as an image ({reason})")
    return tail


def tail_of(size: int, end: bytes) -> int:
    """Return a hash of the size and the last bytes of an image."""
    return int.from_bytes(hashlib.sha256(size.to_bytes(8) + end[-TAIL_BYTES:]).digest()[:8])


def _read(stream: BinaryIO, info: tarfile.TarInfo, limit: int) -> bytes:
    with _FileInShard(stream, info.offset_data, info.size) as file:
        return file.read(limit + 1)  # one more than that is not a label


class _FileInShard(tarfile.ExFileObject):
    def __init__(self, stream: BinaryIO, offset: int, size: int) -> None:
        part = tarfile.TarInfo()
        part.offset_data, part.size = offset, size
        super().__init__(SimpleNamespace(fileobj=stream), part)  # type: ignore[arg-type]  # the archive is asked for that alone

    def fileno(self) -> int:
        # Pillow's TIFF reader asks for it, and knows this answer.
        raise io.UnsupportedOperation("a part of a file has no number of its own")
