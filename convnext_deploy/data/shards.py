"""Images in tar shards by the convention of WebDataset: any of them can be read alone, at its offset."""

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext_deploy.data.class_names import CLASS_FILES, read_class_names
from convnext_deploy.data.contents import Contents
from convnext_deploy.data.decoding import Encoded, decode_image, find_damage, printable
from convnext_deploy.data.kept_pixels import KeptPixels
from convnext_deploy.data.remote_shards import RemoteFolder
from convnext_deploy.data.shard_index import ShardIndex, read_index, read_sample
from convnext_deploy.data.shard_parts import find_index_files
from convnext_deploy.data.shard_scan import describe_shard
from convnext_deploy.data.shard_splits import (
    ShardPlaces,
    divide_samples,
    find_splits,
    hold_out_samples,
    repeated_samples,
)
from convnext_deploy.data.splits import Split
from convnext_deploy.data.unreadable import Skipping
from convnext_deploy.errors import DataError


@dataclass(frozen=True)
class ShardImages:
    """Some of the samples of an index, in its order. No file is kept open, so that processes can share it.

    `numbers`: label in the shards → class index, None where these are the same. `streamed`: training reads shard after shard, see
    `shard_streams`, because they lie elsewhere and are too many to be kept.
    """

    index: ShardIndex
    rows: NDArray[np.int64]
    numbers: NDArray[np.int64] | None = None
    streamed: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Class indices, `(N,)`."""
        labels: NDArray[np.int64] = self.index.samples["label"][self.rows]
        return labels if self.numbers is None else self.numbers[labels]

    @cached_property
    def kept(self) -> KeptPixels:
        """What evaluation keeps of them."""
        return KeptPixels()

    def load(self, index: int) -> Image.Image:
        return decode_image(self.encoded(index))

    def encoded(self, index: int) -> Encoded:
        content = self.content(index)  # read here, so that an error of the shard is told as such
        return Encoded(self.place(index), lambda: io.BytesIO(content))

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

    def identify(self, root: Path, contents: Contents) -> bytes:
        """Return a hash of the names of shards and samples, of where these lie and end, and of what the shards hold."""
        index, samples = self.index, self.index.samples[self.rows]
        digest = hashlib.sha256(b"\0".join(index.name(int(row)) for row in self.rows))
        for name in ("shard", "offset", "size", "tail"):
            digest.update(samples[name].tobytes())
        paths = [shard.path for shard in index.shards]
        digest.update(b"\0".join(os.fsencode(path.relative_to(root)) for path in paths))
        digest.update(index.digests(contents).tobytes())
        digest.update(b"streamed" if self.streamed else b"")  # another order, and so another training
        return digest.digest()


@dataclass(frozen=True)
class ShardContents:
    """The images of shards for training, validation and test, over the same classes; a test may lack some, or be empty.

    `unreadable`: samples that were left out. `held_out`: there are no shards for validation. `named`: the folder names the
    classes; otherwise their numbers are their names. `places`, `unused`, `left_out` and `reasons` as in `FolderContents`.
    """

    train: ShardImages
    validation: ShardImages
    test: ShardImages
    class_names: tuple[str, ...]
    unreadable: tuple[Path, ...]
    held_out: bool
    named: bool
    places: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    left_out: int = 0
    reasons: tuple[str, ...] = ()


def read_shards(
    root: Path,
    paths: Sequence[Path],
    split: Split,
    skipping: Skipping | None,
    cache_dir: Path | None,
    contents: Contents,
    remote: RemoteFolder | None = None,
) -> ShardContents:
    """Find the samples of shards, check that all can be used, and hold out some when there are no shards for validation.

    Args:
        root: the folder of the shards; may hold a file of class names, one of `CLASS_FILES`.
        paths: the shards, see `find_splits`; when no name has a word for a split, all are one set.
        split: how validation images are chosen where there are no shards for them, or a file says it. Samples are named as their
            image files are in the shards, so that `cat/1.jpg` falls on the same side as that file of a folder.
        skipping: leave out samples without an image, without a label, or with an image that cannot be read; None: they are an
            error, as far as the headers and ends of images tell.
        cache_dir: keeps what was found in the headers; None: a file beside the shards does, or in the folder of `contents`.
        contents: of the files; its progress is told what takes long.
        remote: where the shards are if they lie on another machine.

    Raises: DataError: if a split is missing, a shard or a sample cannot be read, a class is present in only one split or in
        none, or a label has no class name.
    """
    places = ShardPlaces(tuple(paths)) if split.file is not None else find_splits(root, paths)
    describe = describe_shard if remote is None else remote.shards.__getitem__
    kept = find_index_files(root, cache_dir, contents.folder, labelled=True)
    shards = [describe(path) for path in (*places.train, *places.validation, *places.test)]
    index = read_index(shards, root, kept, progress=contents.progress)
    if skipping is not None:
        index = _leave_out_damaged(index, skipping)
    unreadable = _check_samples(index, skip=skipping is not None)
    named, left_out = _read_class_names(root) if remote is None else remote.class_names, 0
    of_test = len(places.train) + len(places.validation)
    number = np.searchsorted([len(places.train), of_test], index.samples["shard"], "right")
    parts = [np.flatnonzero(number == part) for part in range(3)]
    if split.file is not None:
        parts, left_out = divide_samples(index, split.file)
    held_out = split.file is None and not places.validation
    names = _check_classes(root, index, named, parts[:1] if held_out else parts[:2])
    if held_out:
        chosen = hold_out_samples(index, names, split, read_sample)
        parts = [np.flatnonzero(~chosen), np.flatnonzero(chosen), parts[2]]
    return ShardContents(
        ShardImages(index, parts[0], streamed=remote is not None and remote.streamed),
        ShardImages(index, parts[1]),
        ShardImages(index, parts[2]),
        names,
        unreadable,
        held_out=held_out,
        named=named is not None,
        places=places.words,
        unused=places.unused,
        left_out=left_out,
        reasons=tuple(reason for *_, reason in index.defects),
    )


def read_unlabelled_shards(
    root: Path,
    paths: Sequence[Path],
    skipping: Skipping | None,
    cache_dir: Path | None,
    contents: Contents,
    remote: RemoteFolder | None = None,
) -> tuple[ShardImages, tuple[Path, ...], tuple[str, ...]]:
    """Return the images of shards, of which no labels are read, and those that were left out with the reasons.

    Args as `read_shards`. Raises: DataError: likewise, but for splits and classes.
    """
    describe = describe_shard if remote is None else remote.shards.__getitem__
    kept = find_index_files(root, cache_dir, contents.folder, labelled=False)
    index = read_index([*map(describe, paths)], root, kept, labelled=False, progress=contents.progress)
    if skipping is not None:
        index = _leave_out_damaged(index, skipping)
    unreadable = _check_samples(index, skip=skipping is not None)
    return ShardImages(index, np.arange(len(index.samples))), unreadable, tuple(reason for *_, reason in index.defects)


def find_repeated_samples(own: ShardImages, others: ShardImages) -> tuple[Path, ...]:
    """Return those of `own`, of the same index as `others`, whose image is also one of these."""
    rows = repeated_samples(own.index, own.rows, others.rows, read_sample)
    places = {int(row): place for place, row in enumerate(own.rows)}
    return tuple(own.place(places[row]) for row in rows)


def _leave_out_damaged(index: ShardIndex, skipping: Skipping) -> ShardIndex:
    """Return the index without the samples whose images cannot be decoded, which are defects then."""
    of_shards = index.digests(skipping.contents)
    digests = [
        hashlib.sha256(of_shards[sample["shard"]].tobytes() + sample[["offset", "size", "tail"]].tobytes()).digest()[
            :16
        ]
        for sample in index.samples
    ]

    def find(row: int) -> str | None:
        return find_damage(io.BytesIO(read_sample(index, row)))

    damaged = skipping.contents.decoded.find_damaged(
        range(len(index.samples)), digests, find, skipping.contents.progress
    )
    rows = [row for row, _ in damaged]
    defects = tuple(
        (int(index.samples["shard"][row]), os.fsdecode(index.name(row)), f"cannot be read as an image ({reason})")
        for row, reason in damaged
    )
    kept = np.delete(index.samples, rows)
    return replace(index, samples=kept, defects=(*index.defects, *defects))


def _check_samples(index: ShardIndex, *, skip: bool) -> tuple[Path, ...]:
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
