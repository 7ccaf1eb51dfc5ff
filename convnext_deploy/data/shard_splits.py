"""Which tar shards, and which of their samples, are for training, for validation and for the test."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.data.decoding import printable
from convnext_deploy.data.image_folder import has_images
from convnext_deploy.data.shard_index import ShardIndex
from convnext_deploy.data.shard_scan import MDS, SHARDS, TAR
from convnext_deploy.data.split_lists import divide_by_lists
from convnext_deploy.data.split_words import SPLIT_NAMES, TEST_FOLDER, VALIDATION_FOLDERS
from convnext_deploy.data.splits import Split, divide, find_repeated, hold_out
from convnext_deploy.errors import DataError

_EXPECTED = (
    "Expected train-*.tar and val-*.tar (or train/*.mds and val/*.mds), or shards without such words in their names"
)
_COMPRESSED = re.compile(
    r".*\.((tar|mds)\.(gz|bz2|xz|zst|zstd|lz4|lzma|z|br|snappy)|tgz|tbz2?|txz|tzst)", re.IGNORECASE
)
ReadSample = Callable[[ShardIndex, int], bytes]


@dataclass(frozen=True)
class ShardPlaces:
    """The shards of each split. Without `validation` some samples of `train` are for that; `unused`: words of the others' names."""

    train: tuple[Path, ...]
    validation: tuple[Path, ...] = ()
    test: tuple[Path, ...] = ()
    words: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def find_shards(root: Path) -> list[Path]:
    """Return the tar files in `root` and in folders in it that are named like splits, in the order of their names.

    An empty list if there are images in folders: then these are the data, whatever archives lie beside them.

    Raises: DataError: if there are compressed shards, or a folder cannot be listed.
    """
    try:
        folders = [root, *(path for path in root.iterdir() if path.is_dir() and path.name.lower() in SPLIT_NAMES)]
        paths = [path for folder in folders for path in folder.iterdir() if not path.name.startswith(".")]
        shards = sorted(path for path in paths if path.suffix.lower() in SHARDS and not path.is_dir())
        compressed = sorted(path for path in paths if _COMPRESSED.fullmatch(path.name) and not path.is_dir())
        if not (shards or compressed) or has_images(root):
            return []
    except OSError as error:
        where = printable(error.filename or root)
        raise DataError(f"the data folder {printable(root)} cannot be read ({where}: {error.strerror}).") from None
    if compressed:
        instead = "file, or write it with compression=None" if MDS in compressed[0].name.lower() else ".tar file"
        raise DataError(
            f"{printable(compressed[0])} is compressed, so that no sample can be read alone; unpack it to a plain {instead}, or "
            "move it away."
        )
    return shards


def find_splits(root: Path, paths: Sequence[Path]) -> ShardPlaces:
    """Return the shards of each split, told by the first word in their names, from `root` on, that names one.

    Raises: DataError: if there are none for training, or some are for neither training nor validation.
    """
    splits: dict[str | None, list[Path]] = {}
    for path in paths:
        words = re.split(r"[^a-z]+", path.relative_to(root).with_suffix("").as_posix().lower())
        splits.setdefault(next((word for word in words if word in SPLIT_NAMES), None), []).append(path)
    if set(splits) == {None}:
        return ShardPlaces(tuple(paths))
    first = {name: printable(shards[0].relative_to(root)) for name, shards in splits.items()}
    found = ", ".join(sorted(first.values()))
    if "train" not in splits:
        raise DataError(f"the data folder {printable(root)} has no train-*.tar; found {found}. {_EXPECTED}.")
    named = [name for name in VALIDATION_FOLDERS if name in splits]
    if len(named) > 1:
        raise DataError(
            f"the data folder {printable(root)} has both {first[named[0]]} and {first[named[1]]}; one can be for validation: move "
            "the other away."
        )
    validation = named[0] if named else TEST_FOLDER if TEST_FOLDER in splits else None
    unknown = next((name for name in splits if name not in ("train", TEST_FOLDER, *VALIDATION_FOLDERS)), "train")
    if None in splits or (validation is None and unknown != "train"):
        raise DataError(
            f"the data folder {printable(root)} has shards that are for neither training nor validation, such as "
            f"{first[unknown]}. {_EXPECTED}; rename or move them."
        )
    test = TEST_FOLDER if named and TEST_FOLDER in splits else None
    used = [name for name in ("train", validation, test) if name is not None]
    pattern = "-*.tar" if splits["train"][0].suffix.lower() == TAR else "/*.mds"
    return ShardPlaces(
        tuple(splits["train"]),
        tuple(splits[validation]) if validation else (),
        tuple(splits[test]) if test else (),
        tuple(f"{name}{pattern}" for name in used),
        tuple(f"{name}{pattern}" for name in splits if name not in used),
    )


def hold_out_samples(
    index: ShardIndex, class_names: Sequence[str], split: Split, read: ReadSample
) -> NDArray[np.bool_]:
    """Return for each sample whether it is held out, `(N,)`; `read` returns the content of one."""
    labels: NDArray[np.int64] = index.samples["label"]
    files = [index.name(row) for row in range(len(labels))]
    # Shards that each count from 0 would otherwise all hold out the same places.
    repeated = {name for name, times in Counter(files).items() if times > 1}

    def name(row: int) -> bytes:
        shard = index.shards[index.samples["shard"][row]].path.name
        return os.fsencode(f"{shard}/") + files[row] if files[row] in repeated else files[row]

    order = np.argsort(labels)
    rows = np.split(order, np.searchsorted(labels[order], np.arange(1, len(class_names))))
    # ImageNet has two classes called 'crane'.
    unique = len(set(class_names)) == len(class_names)
    keys = class_names if unique else [f"{label} ({name})" for label, name in enumerate(class_names)]
    found = {key: part.tolist() for key, part in zip(keys, rows, strict=True)}
    tail, digest = _content(index, read)
    _, validation = hold_out(
        found, name, lambda rows: divide(rows, (tail, digest)), split.fraction, split.seed, split.groups
    )
    held_out = np.zeros(len(labels), np.bool_)
    held_out[[row for rows in validation.values() for row in rows]] = True
    return held_out


def divide_samples(index: ShardIndex, file: Path) -> tuple[list[NDArray[np.int64]], int]:
    """Return the samples for training, validation and test by the lists in a file, and how many are in none of them."""
    names = {}
    for row in range(len(index.samples)):
        name = os.fsdecode(index.name(row))
        names[row] = (f"{index.shards[index.samples['shard'][row]].path.name}/{name}", name, name.rpartition("/")[2])
    divided = divide_by_lists(names, file)
    parts = [np.array(sorted(divided[role]), np.int64) for role in ("train", "validation", "test")]
    if not len(parts[0]):
        raise DataError(f"{printable(file)} leaves no image to train on.")
    return parts, len(divided["none"])


def repeated_samples(
    index: ShardIndex, own: NDArray[np.int64], others: NDArray[np.int64], read: ReadSample
) -> list[int]:
    """Return those of `own` whose image is also one of `others`."""
    return find_repeated(own.tolist(), others.tolist(), _content(index, read))


def _content(index: ShardIndex, read: ReadSample) -> tuple[Callable[[int], int], Callable[[int], bytes]]:
    """Return what is equal for samples of equal images, the cheaper first."""

    def tail(row: int) -> int:
        return int(index.samples["tail"][row])

    def digest(row: int) -> bytes:
        return hashlib.sha256(read(index, row)).digest()

    return tail, digest
