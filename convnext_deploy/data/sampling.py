"""Which training images calibrate, which judge, and which are left to train on; none of the former two is a validation image."""

import dataclasses
import hashlib
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext_deploy.data.contents import Contents
from convnext_deploy.data.datasets import ArrayImages, Data, FolderImages, ImageSet, name_images
from convnext_deploy.data.decoding import Encoded
from convnext_deploy.data.shards import ShardImages
from convnext_deploy.data.splits import find_repeated_files, group_finder


def calibration_indices(
    train: ImageSet,
    validation: ImageSet,
    count: int,
    seed: int,
    leave_out: Collection[int] = (),
    contents: Contents | None = None,
) -> list[int]:
    """Choose `count` training images, as many of each class as of any other, none of which is also a validation image.

    Classes with too few images give all they have and the others make up for it; fewer than `count` come back when `train`
    is smaller. Equal contents are recognised whatever the files are called; what is known of these, as `contents`, is not read
    again. Those in `leave_out` are not chosen.
    """
    other = _Duplicates(train, validation, contents)
    rng = np.random.default_rng((seed, 0xCA11B))
    queues = [list(rng.permutation(rows)) for rows in rows_of_classes(train.labels)]
    left_out = set(leave_out)
    chosen: list[int] = []
    while len(chosen) < count and any(queues):
        for queue in queues:
            while queue and len(chosen) < count:
                index = int(queue.pop())
                if index in left_out or other.has(index):
                    continue
                chosen.append(index)
                left_out.add(index)  # it may have other labels too
                break
    return sorted(chosen)


def rows_of_classes(labels: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return which images have each class, `(N,)` indices, or each label, `(N, K)`, and last those that have none."""
    if labels.ndim == 1:
        return [np.flatnonzero(labels == label) for label in np.unique(labels)]
    columns = [np.flatnonzero(column == 1) for column in labels.T]
    return [rows for rows in (*columns, np.flatnonzero((labels != 1).all(axis=1))) if len(rows)]


def divide_training_images(
    train: ImageSet, validation: ImageSet, counts: tuple[int, int], seed: int, contents: Contents | None = None
) -> tuple[list[int], list[int]]:
    """Choose training images for calibration, as many of each class, and others to judge by, in the class mix of all.

    Where there are fewer images than both `counts` ask for, a third of them calibrates, and the rest judges. Of a single image
    nothing is left to judge by. None is a validation image; `contents` as in `calibration_indices`.
    """
    other = _Duplicates(train, validation, contents)

    def judging(among: NDArray[np.int64]) -> list[int]:
        most = len(among) - min(counts[0], max(1, len(among) // 3))
        return sample_in_proportion(train.labels, among, min(counts[1], max(0, most)), seed)

    chosen = judging(np.arange(len(train)))
    if any(other.has(index) for index in chosen):
        chosen = judging(np.array([index for index in range(len(train)) if not other.has(index)], np.int64))
    calibrating = calibration_indices(train, validation, counts[0], seed, chosen, contents)
    return (calibrating, chosen) if calibrating else (chosen[:1], chosen[1:])


def selection_indices(data: Data, fraction: float, most: int, seed: int) -> list[int]:
    """Choose training images to compare epochs by, in the class mix of all; none is a validation image.

    Where images were divided by groups, such as patients, whole groups are chosen, so that they tell what new ones would.

    Args:
        data: with the training images.
        fraction: of them, at least one.
        most: images that are enough.
        seed: of the choice.
    """
    train = data.train
    other = _Duplicates(train, data.validation, data.contents)
    count = min(most, max(1, round(fraction * len(train))), max(0, len(train) - 1))
    classes = rarest_labels(train.labels)
    among = np.flatnonzero(np.bincount(classes)[classes] > 1)  # the only image of a class is trained on
    chosen = sample_in_proportion(train.labels, among, count, seed)
    if any(other.has(index) for index in chosen):
        chosen = sample_in_proportion(train.labels, among[[not other.has(int(index)) for index in among]], count, seed)
    names = name_images(train, Path(data.name))
    if data.split is None or data.split.groups is None or not names:
        return chosen
    find = group_finder(data.split.groups)
    members: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        members.setdefault(find(os.fsencode(name)), []).append(index)
    whole: list[int] = []
    for index in np.random.default_rng((seed, 0x5E1EC7)).permutation(chosen).tolist():
        group = members.pop(find(os.fsencode(names[index])), [])
        if len(whole) < count and len(whole) + len(group) < len(train):
            whole += group
    return sorted(whole)


def gallery_indices(train: ImageSet, validation: ImageSet, most: int, contents: Contents | None = None) -> list[int]:
    """Choose the training images that validation images are compared with, `most` in proportion to the classes, else all.

    None of them is also a validation image, which would be its own nearest neighbour; `contents` as in
    `calibration_indices`.
    """
    other = _Duplicates(train, validation, contents)
    chosen = sample_in_proportion(train.labels, np.arange(len(train)), most, 0)
    return [index for index in chosen if not other.has(index)]


def gallery_key(data: Data) -> str:
    """Return a hash of the training images with which others are compared: by names and sizes, where they are files."""
    names = name_images(data.train, Path(data.name))
    lines = [f"{os.fsencode(name)!r} {data.train.size_hint(place)}" for place, name in enumerate(names)]
    known = "\n".join(lines) if names else data.fingerprint
    return hashlib.sha256(data.train.labels.astype("<i8").tobytes() + known.encode()).hexdigest()


def sample_in_proportion(labels: NDArray[np.int64], among: NDArray[np.int64], count: int, seed: int) -> list[int]:
    """Draw `count` of the indices `among`, or all if there are no more, each class in proportion; sorted.

    The indices are sorted by class, in random order within each, and every `len(among) / count`-th is taken. Images with several
    labels are sorted by the rarest of theirs.
    """
    count = min(count, len(among))
    if not count:
        return []
    rng = np.random.default_rng((seed, 0x5E1EC7))
    order = rng.permutation(among)
    order = order[np.argsort(rarest_labels(labels)[order], kind="stable")]
    places = ((np.arange(count) + rng.uniform()) * (len(among) / count)).astype(np.int64)
    return sorted(int(index) for index in order[np.minimum(places, len(among) - 1)])


def rarest_labels(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the class of each image, `(N,)`: of several labels, `(N, K)`, the rarest, and K for images that have none."""
    if labels.ndim == 1:
        return labels
    has = labels == 1
    return np.asarray(
        np.where(has.any(axis=1), np.where(has, has.sum(axis=0), len(labels) + 1).argmin(axis=1), labels.shape[1])
    )


def without(data: Data, indices: Iterable[int]) -> Data:
    """Return the data with those training images left out, which so changes its fingerprint."""
    left_out = frozenset(indices)
    kept = [index for index in range(len(data.train)) if index not in left_out]
    return dataclasses.replace(data, train=only(data.train, kept))


def only(images: ImageSet, kept: Sequence[int]) -> ImageSet:
    """Return some images of a set."""
    rows = np.asarray(kept, np.int64)
    if isinstance(images, ArrayImages):
        return dataclasses.replace(images, arrays=images.arrays[rows], labels=images.labels[rows])
    if isinstance(images, FolderImages):
        return dataclasses.replace(images, paths=images.files.take(rows), labels=images.labels[rows])
    if isinstance(images, ShardImages):
        return dataclasses.replace(images, rows=images.rows[rows])
    return _Part(images, rows)


def alone(images: ImageSet, kept: Sequence[int]) -> ImageSet:
    """Return some images of a set with nothing that is known of the others, to send them to another process."""
    part = only(images, kept)
    if isinstance(part, FolderImages):
        return dataclasses.replace(part, paths=part.files.alone())
    if isinstance(part, ShardImages):
        return dataclasses.replace(part, index=part.index.take(part.rows), rows=np.arange(len(part.rows)))
    return part


@dataclass(frozen=True)
class _Part:
    """Some images of a set of any kind."""

    images: ImageSet
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.images.labels[self.rows]

    def load(self, index: int) -> Image.Image:
        return self.images.load(int(self.rows[index]))

    def encoded(self, index: int) -> Encoded | None:
        return self.images.encoded(int(self.rows[index]))

    def content(self, index: int) -> bytes:
        return self.images.content(int(self.rows[index]))

    def size_hint(self, index: int) -> int:
        return self.images.size_hint(int(self.rows[index]))


class _Duplicates:
    """Which training images are validation images too.

    Of files that is known since the data was opened, or else told by sizes, then by ends. Of other images contents are read where
    what is known without them is equal: that of the image itself, and those of the validation images that may be it.
    """

    def __init__(self, train: ImageSet, validation: ImageSet, contents: Contents | None) -> None:
        self.train, self.validation = train, validation
        self.copies: frozenset[int] | None = None
        self.candidates: dict[int, list[int]] = {}
        if isinstance(train, FolderImages) and isinstance(validation, FolderImages):
            found = find_repeated_files(train.files, validation.files, contents or Contents())
            self.copies = frozenset(found.tolist())
            return
        for index in range(len(validation)):
            self.candidates.setdefault(validation.size_hint(index), []).append(index)

    def has(self, index: int) -> bool:
        if self.copies is not None:
            return index in self.copies
        candidates = self.candidates.get(self.train.size_hint(index), ())
        content = self.train.content(index) if candidates else b""
        return any(self.validation.content(other) == content for other in candidates)
