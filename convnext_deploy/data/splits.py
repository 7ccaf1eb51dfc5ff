"""Hold out validation images where there are none: a seeded, stratified split in which no image is on both sides."""

import hashlib
import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from convnext_deploy.data.decoding import map_files
from convnext_deploy.errors import DataError

ClassFiles = dict[str, list[Path]]  # the files of each class, sorted
Item = TypeVar("Item", bound=Hashable)

TAIL_BYTES = 4096  # read first to tell files of equal size apart


def split_validation(
    found: Mapping[str, list[Path]], root: Path, fraction: float, seed: int
) -> tuple[ClassFiles, ClassFiles]:
    """Hold out `fraction` of the files of each class, rounded, and at least one; at least one stays.

    Files are taken in the order of a hash of the seed and their path below `root`. So the split does not depend on the
    order on disk or on where the folder lies, and a file that is added moves at most a few others. Files with equal
    contents stay together; those found under several classes have no one right label to score against, and stay in
    training.

    Returns: the files for training and those for validation.
    Raises: DataError: if `fraction` is not between 0 and 1, or a class has no two different files.
    """

    def name(path: Path) -> bytes:
        return os.fsencode(path.relative_to(root).as_posix())

    return hold_out(found, name, _group_equal, fraction, seed)


def hold_out(
    found: Mapping[str, list[Item]],
    name: Callable[[Item], bytes],
    group_equal: Callable[[Sequence[Item]], Iterable[list[Item]]],
    fraction: float,
    seed: int,
) -> tuple[dict[str, list[Item]], dict[str, list[Item]]]:
    """Hold out images of any kind, by the rules of `split_validation`.

    Args:
        found: what stands for the images, under the names of their classes.
        name: of an image; with the seed, all that its place in the order depends on.
        group_equal: divides images into groups of equal contents.
        fraction: of each class, between 0 and 1.
        seed: another one holds out other images.

    Returns: the images for training and those for validation.
    Raises: DataError: if `fraction` is not between 0 and 1, or a class has no two different images.
    """
    if not 0 < fraction < 1:
        raise DataError(f"validation_fraction = {fraction} is out of range; expected more than 0 and less than 1.")

    def rank(item: Item) -> bytes:
        return hashlib.sha256(f"{seed}\0".encode() + name(item)).digest()

    label_of = {item: label for label, items in found.items() for item in items}
    groups: dict[str, list[list[Item]]] = {label: [] for label in found}
    shared: set[str] = set()  # classes that keep an image for training in any case
    for group in group_equal(list(label_of)):
        labels = {label_of[item] for item in group}
        if len(labels) == 1:
            groups[labels.pop()].append(group)
        else:
            shared |= labels
    train: dict[str, list[Item]] = {}
    validation: dict[str, list[Item]] = {}
    for label, items in found.items():
        ordered = sorted(groups[label], key=lambda group: min(map(rank, group)))
        held_out = set(_take(label, ordered, len(items), fraction, spare=label in shared))
        validation[label] = [item for item in items if item in held_out]
        train[label] = [item for item in items if item not in held_out]
    return train, validation


def _take(label: str, groups: Sequence[list[Item]], count: int, fraction: float, *, spare: bool) -> list[Item]:
    """Choose what to hold out of a class of `count` images, `groups` in order; all of them only if there are some to spare."""
    if len(groups) < (1 if spare else 2):
        has = "no image that is not in another class too" if spare else "no two different images"
        raise DataError(
            f"class '{label}' has {'only 1 image' if count == 1 else has}; at least 2 are needed, one to train on and one to "
            "hold out for validation."
        )
    wanted = min(max(1, round(count * fraction)), count - 1)
    taken: list[Item] = []
    for group in groups:
        if len(taken) + len(group) <= wanted:
            taken += group
    return taken or min(groups, key=len)


def divide(items: Sequence[Item], keys: Iterable[Callable[[Item], Hashable]]) -> list[list[Item]]:
    """Divide `items` into groups in which all `keys` are equal. A key is computed only where those before it are equal."""
    groups = [list(items)]
    for key in keys:
        unclear = [item for group in groups if len(group) > 1 for item in group]
        values: dict[Item, Hashable] = dict(zip(unclear, map_files(key, unclear), strict=True))
        groups = [part for group in groups for part in _divide(group, values)]
    return groups


def _divide(group: list[Item], values: Mapping[Item, Hashable]) -> Iterable[list[Item]]:
    parts: dict[Hashable, list[Item]] = {}
    for item in group:
        parts.setdefault(values.get(item), []).append(item)
    return parts.values()


def _group_equal(paths: Sequence[Path]) -> list[list[Path]]:
    """Group files of equal contents. Reads only files of equal size, and in full only those that also end alike."""
    return divide(paths, (_size, _tail_digest, _digest))


def _size(path: Path) -> Hashable:
    return path.stat().st_size


def _tail_digest(path: Path) -> Hashable:
    with path.open("rb") as stream:
        stream.seek(-min(TAIL_BYTES, path.stat().st_size), os.SEEK_END)
        return hashlib.sha256(stream.read()).digest()


def _digest(path: Path) -> Hashable:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
