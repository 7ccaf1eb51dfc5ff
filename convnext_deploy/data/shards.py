"""Images in tar shards by the convention of WebDataset: any of them can be read alone, at its offset."""

import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext_deploy.data.class_names import CLASS_FILES, read_class_names
from convnext_deploy.data.decoding import decode_image, printable
from convnext_deploy.data.image_folder import SPLIT_NAMES, VALIDATION_FOLDERS, has_images
from convnext_deploy.data.shard_index import ShardIndex, read_index
from convnext_deploy.data.splits import divide, hold_out
from convnext_deploy.errors import DataError

_COMPRESSED = re.compile(r".*\.(tar\.(gz|bz2|xz|zst|lz4|lzma|z)|tgz|tbz2?|txz|tzst)", re.IGNORECASE)
_EXPECTED = "Expected train-*.tar and val-*.tar, or shards without such words in their names"


@dataclass(frozen=True)
class ShardImages:
    """Some of the samples of an index, in its order. No file is kept open, so that processes can share it.

    `numbers`: label in the shards → class index, None where these are the same.
    """

    index: ShardIndex
    rows: NDArray[np.int64]
    numbers: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Class indices, `(N,)`."""
        labels: NDArray[np.int64] = self.index.samples["label"][self.rows]
        return labels if self.numbers is None else self.numbers[labels]

    def load(self, index: int) -> Image.Image:
        content = self.content(index)
        return decode_image(self.place(index), lambda: io.BytesIO(content))

    def content(self, index: int) -> bytes:
        """Return the encoded bytes. Raises: DataError: if the shard has changed since it was indexed, or cannot be read."""
        return read_sample(self.index, int(self.rows[index]))

    def size_hint(self, index: int) -> int:
        """Hash of the size and the last bytes."""
        return int(self.index.samples["tail"][self.rows[index]])

    def place(self, index: int) -> Path:
        """Return the shard and the name of the image in it, as if it were a folder."""
        row = int(self.rows[index])
        return _place(self.index, int(self.index.samples["shard"][row]), os.fsdecode(self.index.name(row)))

    @property
    def fingerprint(self) -> bytes:
        """A hash that changes when a shard is renamed or rewritten, and with the samples and their labels."""
        digest = hashlib.sha256(self.index.samples[self.rows].tobytes())
        for shard in self.index.shards:
            digest.update(os.fsencode(shard.path) + f"\0{shard.size}\0{shard.modified_ns}\n".encode())
        return digest.digest()


@dataclass(frozen=True)
class ShardContents:
    """The images of shards for training and for validation, over the same classes.

    `unreadable`: samples that were left out. `held_out`: there are no shards for validation. `named`: the folder names the
    classes; otherwise their numbers are their names.
    """

    train: ShardImages
    validation: ShardImages
    class_names: tuple[str, ...]
    unreadable: tuple[Path, ...]
    held_out: bool
    named: bool


def read_sample(index: ShardIndex, row: int) -> bytes:
    """Read the encoded image of a sample.

    Opens the shard anew: that takes some 10 µs, a hundredth of the decoding of a photograph, and leaves nothing that forked
    or threaded readers could disturb.

    Raises: DataError: if the shard has changed since it was indexed, or cannot be read.
    """
    sample = index.samples[row]
    shard = index.shards[sample["shard"]]
    try:
        with shard.path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            if (status.st_size, status.st_mtime_ns) != (shard.size, shard.modified_ns):
                raise DataError(f"{printable(shard.path)} has changed since the data was opened; start again.")
            stream.seek(int(sample["offset"]))
            content: bytes = stream.read(int(sample["size"]))
            return content
    except OSError as error:
        raise DataError(f"{printable(shard.path)} cannot be read ({error.strerror}).") from None


def find_shards(root: Path) -> list[Path]:
    """Return the tar files in `root` and in folders in it that are named like splits, in the order of their names.

    An empty list if there are images in folders: then these are the data, whatever archives lie beside them.

    Raises: DataError: if there are compressed shards, or a folder cannot be listed.
    """
    try:
        folders = [root, *(path for path in root.iterdir() if path.is_dir() and path.name.lower() in SPLIT_NAMES)]
        paths = [path for folder in folders for path in folder.iterdir() if not path.name.startswith(".")]
        shards = sorted(path for path in paths if path.suffix.lower() == ".tar" and not path.is_dir())
        compressed = sorted(path for path in paths if _COMPRESSED.fullmatch(path.name) and not path.is_dir())
        if not (shards or compressed) or has_images(root):
            return []
    except OSError as error:
        where = printable(error.filename or root)
        raise DataError(f"the data folder {printable(root)} cannot be read ({where}: {error.strerror}).") from None
    if compressed:
        raise DataError(
            f"{printable(compressed[0])} is compressed, so that no sample can be read alone; unpack it to a plain .tar file, "
            "or move it away."
        )
    return shards


def read_shards(
    root: Path,
    paths: Sequence[Path],
    validation_fraction: float,
    split_seed: int,
    skip_unreadable: bool,
    cache_dir: Path | None,
) -> ShardContents:
    """Find the samples of shards, check that all can be used, and hold out some when there are no shards for validation.

    Args:
        root: the folder of the shards; may hold `classes.txt` or `classnames.txt` with a class name per line.
        paths: the shards. Which are for training and which for validation is told by the first word in their names, from
            `root` on, that names a split; when there is no such word in any name, all are one set.
        validation_fraction: of each class to hold out where there are no shards for validation. Samples are named as their image
            files are in the shards, so that `cat/1.jpg` falls on the same side as that file of a folder.
        split_seed: another one holds out other images.
        skip_unreadable: leave out samples without an image, without a label, or with an image that cannot be read.
        cache_dir: keeps what was found in the headers; None: nowhere.

    Raises: DataError: if a split is missing, a shard or a sample cannot be read, a class is present in only one split or in
        none, or a label has no class name.
    """
    train, validation = _find_splits(root, paths)
    index = read_index((*train, *validation), cache_dir)
    unreadable = _check_samples(index, skip_unreadable)
    names = _read_class_names(root)
    of_training = index.samples["shard"] < len(train)
    parts = [np.flatnonzero(of_training)]
    if validation:
        parts.append(np.flatnonzero(~of_training))
    named, names = names is not None, _check_classes(root, index, names, parts)
    if not validation:
        held_out = _hold_out(index, names, validation_fraction, split_seed)
        parts = [np.flatnonzero(~held_out), np.flatnonzero(held_out)]
    return ShardContents(
        ShardImages(index, parts[0]),
        ShardImages(index, parts[1]),
        names,
        unreadable,
        held_out=not validation,
        named=named,
    )


def _find_splits(root: Path, paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the shards for training and those for validation; none of the latter when some samples are to be held out."""
    splits: dict[str | None, list[Path]] = {}
    for path in paths:
        words = re.split(r"[^a-z]+", path.relative_to(root).with_suffix("").as_posix().lower())
        splits.setdefault(next((word for word in words if word in SPLIT_NAMES), None), []).append(path)
    if set(splits) == {None}:
        return list(paths), []
    first = {name: printable(shards[0].relative_to(root)) for name, shards in splits.items()}
    found = ", ".join(sorted(first.values()))
    if "train" not in splits:
        raise DataError(f"the data folder {printable(root)} has no train-*.tar; found {found}. {_EXPECTED}.")
    validation = next((name for name in VALIDATION_FOLDERS if name in splits), None)
    unknown = next((name for name in splits if name not in ("train", *VALIDATION_FOLDERS)), "train")
    if None in splits or (validation is None and unknown != "train"):
        raise DataError(
            f"the data folder {printable(root)} has shards that are for neither training nor validation, such as "
            f"{first[unknown]}. {_EXPECTED}; rename or move them."
        )
    return splits["train"], [] if validation is None else splits[validation]


def _check_samples(index: ShardIndex, skip: bool) -> tuple[Path, ...]:
    """Return the samples that cannot be used. Raises: DataError: naming the first, if there are any and not to be skipped."""
    places = tuple(_place(index, shard, key) for shard, key, _ in index.defects)
    if places and not skip:
        others = len(places) - 1
        more = "" if not others else f", and {others} other{'s' if others > 1 else ''} cannot be used either"
        which = "them" if others else "it"
        raise DataError(
            f"{printable(places[0])} {printable(index.defects[0][2])}{more}; repair or remove {which}, or leave {which} out "
            "with --skip-unreadable."
        )
    return places


def _place(index: ShardIndex, shard: int, name: str) -> Path:
    return Path(f"{index.shards[shard].path}/{name}")  # joined as text: what a shard holds is not a path


def _read_class_names(root: Path) -> tuple[str, ...] | None:
    """Return the lines of the file of class names, or None without one."""
    path = next((root / name for name in CLASS_FILES if (root / name).is_file()), None)
    return None if path is None else read_class_names(path)


def _check_classes(
    root: Path, index: ShardIndex, names: tuple[str, ...] | None, parts: Sequence[NDArray[np.int64]]
) -> tuple[str, ...]:
    """Return the names of the classes. Raises: DataError: if a class has no images in a part, or a label has no name."""
    labels: NDArray[np.int64] = index.samples["label"]
    top = int(labels.max(initial=0))
    if names is not None and top >= len(names):
        row = int(labels.argmax())
        where = _place(index, int(index.samples["shard"][row]), os.fsdecode(index.name(row)))
        raise DataError(
            f"{printable(where)} has the label {top}, counted from 0, but {printable(root)} names only {len(names)} classes."
        )
    count = top + 1 if names is None else len(names)
    for part, which in zip(parts, ("train", "validation"), strict=False):
        present = np.unique(labels[part])
        if len(present) < count:
            gaps = np.flatnonzero(present != np.arange(len(present)))
            missing = int(gaps[0]) if len(gaps) else len(present)
            raise DataError(
                f"class '{missing if names is None else names[missing]}' has no images in the {which} shards of "
                f"{printable(root)}, where labels run to {top}; every class needs images in both splits."
            )
    if count < 2:
        raise DataError(f"the shards of {printable(root)} have only one class; at least 2 are needed.")
    return tuple(map(str, range(count))) if names is None else names


def _hold_out(index: ShardIndex, class_names: Sequence[str], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Return for each sample whether it is held out, `(N,)`."""
    labels: NDArray[np.int64] = index.samples["label"]
    files = [index.name(row) for row in range(len(labels))]
    # Shards that each count from 0 would otherwise all hold out the same places.
    repeated = {name for name, times in Counter(files).items() if times > 1}

    def name(row: int) -> bytes:
        shard = index.shards[index.samples["shard"][row]].path.name
        return os.fsencode(f"{shard}/") + files[row] if files[row] in repeated else files[row]

    def tail(row: int) -> int:
        return int(index.samples["tail"][row])

    def digest(row: int) -> bytes:
        return hashlib.sha256(read_sample(index, row)).digest()

    order = np.argsort(labels)
    rows = np.split(order, np.searchsorted(labels[order], np.arange(1, len(class_names))))
    # ImageNet has two classes called 'crane'.
    unique = len(set(class_names)) == len(class_names)
    keys = class_names if unique else [f"{label} ({name})" for label, name in enumerate(class_names)]
    found = {key: part.tolist() for key, part in zip(keys, rows, strict=True)}
    _, validation = hold_out(found, name, lambda rows: divide(rows, (tail, digest)), fraction, seed)
    held_out = np.zeros(len(labels), np.bool_)
    held_out[[row for rows in validation.values() for row in rows]] = True
    return held_out
