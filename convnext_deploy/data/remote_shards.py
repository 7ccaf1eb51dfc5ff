"""Find tar shards on other machines: in a folder that a server lists, or by addresses in WebDataset's notation."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convnext_deploy.data.class_names import CLASS_FILES, read_class_names
from convnext_deploy.data.decoding import map_files, printable
from convnext_deploy.data.remote_blocks import blocks_of
from convnext_deploy.data.remote_files import RemoteFile, describe_file, exists, is_remote, list_folder
from convnext_deploy.data.shard_scan import SHARDS, Shard, expand_urls
from convnext_deploy.data.split_words import SPLIT_NAMES
from convnext_deploy.errors import DataError
from convnext_deploy.system.cache_folder import user_cache
from convnext_deploy.system.files import write_bytes

KEPT_WHOLE = 8 << 30
"""Bytes: more than these are read shard after shard in training, see `shard_streams`; up to these in the order of any folder."""
_AS_PATH = re.compile(r"(s3|gs|gcs|https?|hf):[/\\]{1,2}(?![/\\])", re.IGNORECASE)


@dataclass(frozen=True)
class RemoteFolder:
    """Shards on another machine.

    `root`: what is common to their addresses, as a path, so that they have the names that they would have in a folder; `url`: the
    same as a URL. `class_names`: of a file beside them. `streamed`: they are too many to be kept here. `remarks`: a line each.
    """

    root: Path
    url: str
    shards: dict[Path, Shard]
    class_names: tuple[str, ...] | None
    streamed: bool
    remarks: tuple[str, ...]
    cache_dir: Path


def as_url(name: str) -> str | None:
    """Return the URL that a name is, also where it went through a path and lost a slash; None: it is none."""
    found = _AS_PATH.sub(r"\1://", name, count=1) if _AS_PATH.match(name) else name
    return found if is_remote(found) else None


def find_remote_shards(url: str, cache_dir: Path | None) -> RemoteFolder:
    """Find the shards at a URL: of a folder, of one shard, or of several as `https://host/train-{000..099}.tar::…`.

    Args:
        url: as the user gave it.
        cache_dir: keeps what is read; None: the user's cache folder.

    Raises: DataError: if there are none, a server does not answer, or a package is missing.
    """
    if re.match(r"[^/]+://[^/]*@", url):  # reports would repeat it
        raise DataError(
            "the address of the shards holds a password; give it in ~/.netrc, or as the store's library takes it."
        )
    kept = cache_dir or user_cache()
    if kept is None:
        raise DataError(
            f"{printable(url)} needs a folder for what is read of it, and the user has none; name one with --cache-dir."
        )
    if re.search(r"[{}]|::|\.(tar|mds)$", url):
        urls = expand_urls(url)
        if odd := next((each for each in urls if as_url(each) is None or not each.lower().endswith(SHARDS)), None):
            raise DataError(f"{printable(odd)} is no address of a shard; expected s3://…/train-000.tar or the like.")
        root = posixpath.commonpath([each.rpartition("/")[0] for each in urls]).replace(":/", "://", 1)
        if not re.match(r"[^/]+://[^/]", root):
            raise DataError(f"{printable(url)} has shards on several servers; expected one server or bucket.")
        beside = [f"{root}/{name}" for name in CLASS_FILES if exists(f"{root}/{name}")]
    else:
        root = url.rstrip("/")
        urls, beside = _list_shards(root)
    files = map_files(describe_file, urls, 1)
    shards = {Path(file.url): Shard(Path(file.url), file.size, 0, blocks=blocks_of(file, kept)) for file in files}
    if len(shards) < len(files):
        raise DataError(f"{printable(url)} names a shard twice; name each once.")
    names = None if not beside else _read_names(describe_file(beside[0]), kept)
    total = sum(file.size for file in files)
    remarks = _describe(root, files, kept, streamed=total > KEPT_WHOLE)
    return RemoteFolder(Path(root), root, shards, names, total > KEPT_WHOLE, tuple(remarks), kept)


def _list_shards(root: str) -> tuple[list[str], list[str]]:
    """Return the shards in a folder and in folders in it that are named like splits, and the files of class names."""
    files, folders = list_folder(root)
    inside = [folder for folder in folders if folder.rpartition("/")[2].lower() in SPLIT_NAMES]
    every = [*files, *(file for folder in inside for file in list_folder(folder)[0])]
    shards = sorted(file for file in every if file.lower().endswith(SHARDS))
    if not shards:
        some = ", ".join(printable(each.rpartition("/")[2]) for each in [*every, *folders][:3])
        raise DataError(
            f"{printable(root)} lists no .tar or .mds files ({f'found {some}' if some else 'it lists nothing'}); expected "
            "train-*.tar. Where a server lists no folders, name the shards: …/{train-{000..099},val-{000..009}}.tar."
        )
    return shards, [file for name in CLASS_FILES for file in files if file.rpartition("/")[2] == name]


def _read_names(file: RemoteFile, cache_dir: Path) -> tuple[str, ...]:
    blocks = blocks_of(file, cache_dir)
    local = blocks.folder / file.url.rpartition("/")[2]
    write_bytes(local, blocks.read(0, file.size))
    return read_class_names(local)


def _describe(root: str, files: Sequence[RemoteFile], kept: Path, *, streamed: bool) -> list[str]:
    total = sum(file.size for file in files) / 1e9
    lines = [
        f"{printable(root)}: {len(files):,} shards, {total:,.2f} GB; what was read of them is kept in {printable(kept)}"
    ]
    if streamed:
        lines.append(
            f"{printable(root)}: training reads shard after shard through a buffer, another order than that of a folder"
        )
    unknown = sum(not file.identity for file in files)
    if unknown:
        lines.append(
            f"{printable(root)}: of {unknown:,} shards the server tells neither an ETag nor a time, so that a new one of the same "
            "size is not noticed"
        )
    return lines
