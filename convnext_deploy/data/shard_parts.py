"""What was found in shards, shard by shard, and the files that keep it: a shard that did not change is not read again."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from convnext_deploy.data.contents_table import DIGEST
from convnext_deploy.documents import open_file, parse_json
from convnext_deploy.errors import OutputError
from convnext_deploy.system.cache_folder import mark_used, remove_unused
from convnext_deploy.system.disk_faults import CACHE_DIR
from convnext_deploy.system.files import whole_file

# `shard`: its number. `offset`, `size`: of the image, in bytes. `tail`: a hash of the size and the last bytes of the image.
# `name`, `name_size`: where the name of the image file lies among all names.
SAMPLE = np.dtype([
    ("shard", "u4"), ("label", "i8"), ("offset", "i8"), ("size", "i8"), ("tail", "u8"), ("name", "i8"), ("name_size", "u4"),
])  # fmt: skip
Version = tuple[str | int, ...]
"""The name of a shard, its size, and what else tells one from another, as far as the system or the server says."""

_VERSION = 2  # of the files
_BESIDE = ".convnext_deploy-shards"


@dataclass(frozen=True)
class Part:
    """What was found in a shard.

    `samples`: those that can be used, `(N,)` of `SAMPLE`, in their order; `shard` is 0 and `name` a place in `names`, the names of
    their image files, joined. `defects`: keys of samples that cannot be used, and why. `digest`: of what a shard on another machine
    holds.
    """

    samples: NDArray[np.void]
    names: bytes
    defects: tuple[tuple[str, str], ...] = ()
    digest: bytes = b""


@dataclass(frozen=True)
class IndexFiles:
    """The files that may keep what was found, of which the first that can be written does.

    `asked`: the user named the folder, and it is an error that nothing can be written there.
    """

    paths: tuple[Path, ...]
    asked: bool = False


def find_index_files(root: Path, cache_dir: Path | None, fallback: Path | None, *, labelled: bool) -> IndexFiles:
    """Return where the index of the shards in a folder is kept: beside them, unless somebody says otherwise.

    Args:
        root: the folder, or the address of one.
        cache_dir: that the user named; None: beside the shards, where other users, runs and machines find it.
        fallback: where it goes if they may not be written to.
        labelled: whether labels were read.
    """
    kind = "" if labelled else "-unlabelled"
    key = hashlib.sha256(os.fsencode(os.path.realpath(root) if root.is_dir() else root)).hexdigest()[:32]
    if cache_dir is not None:
        return IndexFiles((cache_dir / f"shards{kind}-{key}.npz",), asked=True)
    beside = root / f"{_BESIDE}{kind}.npz"
    return IndexFiles((beside, *(() if fallback is None else (fallback / f"shards{kind}-{key}.npz",))))


def join(parts: Iterable[Part]) -> tuple[NDArray[np.void], bytes]:
    """Return the samples of shards as one array, with their numbers and the places of their names, and the names."""
    parts = list(parts)
    counts = [len(part.samples) for part in parts]
    samples = np.concatenate([np.empty(0, SAMPLE), *(part.samples for part in parts)])
    samples["shard"] = np.repeat(np.arange(len(parts)), counts)
    ends = np.cumsum([len(part.names) for part in parts])
    samples["name"] += np.repeat(ends - [len(part.names) for part in parts], counts).astype(np.int64)
    return samples, b"".join(part.names for part in parts)


def load_parts(files: IndexFiles) -> dict[Version, Part]:
    """Return what is kept of shards; what is damaged, or of another release, counts as nothing."""
    found: dict[Version, Part] = {}
    for path in files.paths:
        found = {**load(path), **found}
    return found


def save_parts(files: IndexFiles, parts: Mapping[Version, Part]) -> None:
    """Keep what was found in shards in the first file that can be written.

    Raises: OutputError: if the user named its folder, and it cannot be.
    """
    for path in files.paths:
        try:
            save(path, parts)
        except OutputError:
            if files.asked:
                raise
            continue
        if not path.name.startswith("."):
            remove_unused(path.parent)
        return


def save(path: Path, parts: Mapping[Version, Part]) -> None:
    """Write a file with what was found. Raises: OutputError: if it cannot be written."""
    samples, names = join(parts.values())
    described = [
        [version, len(part.samples), len(part.names), part.defects, part.digest.hex()]
        for version, part in parts.items()
    ]
    content = json.dumps({"made by": _release(), "shards": described}).encode()
    needed = samples.nbytes + len(names) + len(content)
    # processes that find nothing at the same time all write what they have read
    with (
        whole_file(path, needed=needed, what="the index of the shards", instead=CACHE_DIR, shared=True) as partial,
        partial.open("wb") as stream,
    ):
        np.savez(stream, samples=samples, names=np.frombuffer(names, np.uint8), shards=np.frombuffer(content, np.uint8))


def load(path: Path) -> dict[Version, Part]:
    """Return what a file keeps; nothing where it is missing, cut, of another kind, or not as it was written."""
    try:
        # opened here, because numpy leaves a damaged file open
        with open_file(path) as stream, np.load(stream, allow_pickle=False) as file:
            samples, names, content = file["samples"], file["names"].tobytes(), parse_json(file["shards"].tobytes())
        if content["made by"] != _release() or samples.dtype != SAMPLE:
            return {}
        return _divide(samples, names, content["shards"])
    except Exception:  # whatever is wrong with it, the shards are read again
        return {}
    finally:
        with contextlib.suppress(OSError):
            mark_used(path)


def _divide(samples: NDArray[np.void], names: bytes, described: Any) -> dict[Version, Part]:
    """Take a file apart. Raises: any error: if it does not fit together."""
    found: dict[Version, Part] = {}
    first = start = 0
    for number, (version, count, length, defects, digest) in enumerate(described):
        own = samples[first : first + int(count)].copy()
        end = own["offset"] + own["size"]
        own["name"] -= start
        ends = own["name"] + own["name_size"]
        size, digested = int(version[1]), bytes.fromhex(digest)
        if len(own) != count or len(digested) not in (0, DIGEST.itemsize):
            raise ValueError("another number of samples")
        if len(own) and not (own["shard"].min() == own["shard"].max() == number and end.max() <= size):
            raise ValueError("samples outside of their shard")
        if len(own) and (min(own["offset"].min(), own["size"].min(), own["name"].min()) < 0 or ends.max() > length):
            raise ValueError("names outside of the names")
        own["shard"] = 0
        why = tuple((str(key), str(reason)) for key, reason in defects)
        found[tuple(version)] = Part(own, names[start : start + int(length)], why, digested)
        first, start = first + len(own), start + int(length)
    if (first, start) != (len(samples), len(names)):
        raise ValueError("more samples than shards have")
    return found


def _release() -> list[int | str]:
    # another release of Pillow may open what this one refuses
    return [_VERSION, PIL.__version__]
