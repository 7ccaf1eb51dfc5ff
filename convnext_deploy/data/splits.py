"""Validation images for folders that have none: a seeded, stratified split in which no file is on both sides."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path

from convnext_deploy.data.decoding import map_files
from convnext_deploy.errors import DataError

ClassFiles = dict[str, list[Path]]  # the files of each class, sorted

_TAIL_BYTES = 4096


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
    if not 0 < fraction < 1:
        raise DataError(f"validation_fraction = {fraction} is out of range; expected more than 0 and less than 1.")

    def rank(path: Path) -> bytes:
        name = os.fsencode(path.relative_to(root).as_posix())
        return hashlib.sha256(f"{seed}\0".encode() + name).digest()

    label_of = {path: name for name, paths in found.items() for path in paths}
    groups: dict[str, list[list[Path]]] = {name: [] for name in found}
    shared: set[str] = set()  # classes that keep a file for training in any case
    for group in _group_equal(list(label_of)):
        names = {label_of[path] for path in group}
        if len(names) == 1:
            groups[names.pop()].append(group)
        else:
            shared |= names
    train: ClassFiles = {}
    validation: ClassFiles = {}
    for name, paths in found.items():
        ordered = sorted(groups[name], key=lambda group: min(map(rank, group)))
        held_out = set(_take(name, ordered, len(paths), fraction, spare=name in shared))
        validation[name] = [path for path in paths if path in held_out]
        train[name] = [path for path in paths if path not in held_out]
    return train, validation


def _take(name: str, groups: Sequence[list[Path]], count: int, fraction: float, *, spare: bool) -> list[Path]:
    """Choose what to hold out of a class of `count` files, `groups` in order; all of them only if there are files to spare."""
    if len(groups) < (1 if spare else 2):
        has = "no image that is not in another class too" if spare else "no two different images"
        raise DataError(
            f"class '{name}' has {'only 1 image' if count == 1 else has}; at least 2 are needed, one to train on and one to "
            "hold out for validation."
        )
    wanted = min(max(1, round(count * fraction)), count - 1)
    taken: list[Path] = []
    for group in groups:
        if len(taken) + len(group) <= wanted:
            taken += group
    return taken or min(groups, key=len)


def _group_equal(paths: Sequence[Path]) -> list[list[Path]]:
    """Group files of equal contents. Reads only files of equal size, and in full only those that also end alike."""
    groups = [list(paths)]
    for key in (_size, _tail_digest, _digest):
        unclear = [path for group in groups if len(group) > 1 for path in group]
        keys: dict[Path, Hashable] = dict(zip(unclear, map_files(key, unclear), strict=True))
        groups = [part for group in groups for part in _divide(group, keys)]
    return groups


def _divide(group: list[Path], keys: Mapping[Path, Hashable]) -> Iterable[list[Path]]:
    parts: dict[Hashable, list[Path]] = {}
    for path in group:
        parts.setdefault(keys.get(path), []).append(path)
    return parts.values()


def _size(path: Path) -> Hashable:
    return path.stat().st_size


def _tail_digest(path: Path) -> Hashable:
    with path.open("rb") as stream:
        stream.seek(-min(_TAIL_BYTES, path.stat().st_size), os.SEEK_END)
        return hashlib.sha256(stream.read()).digest()


def _digest(path: Path) -> Hashable:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
