"""Hold out validation images where there are none: a seeded, stratified split in which no image is on both sides."""

import hashlib
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.data.contents import Contents
from convnext_deploy.data.decoding import map_files, printable
from convnext_deploy.data.files import Files, as_files, join, pick
from convnext_deploy.errors import DataError

ClassFiles = dict[str, Sequence[Path]]  # the files of each class, sorted
Item = TypeVar("Item", bound=Hashable)


@dataclass(frozen=True)
class Split:
    """How validation images are chosen where the data has none of its own.

    `fraction` of each class; another `seed` takes others. `groups`: a regular expression, images in whose names it finds the same
    stay together. `file`: lists of the images instead, see `split_lists`.
    """

    fraction: float
    seed: int
    groups: str | None = None
    file: Path | None = None

    @property
    def options(self) -> str | None:
        """What was said of it beyond the fraction, as options; None: nothing."""
        named = {"--groups": self.groups, "--split": None if self.file is None else str(self.file)}
        return " ".join(f"{flag} {shlex.quote(value)}" for flag, value in named.items() if value is not None) or None


def split_validation(
    found: Mapping[str, Sequence[Path]], root: Path, split: Split, contents: Contents
) -> tuple[ClassFiles, ClassFiles]:
    """Hold out a fraction of the files of each class, rounded, and at least one; at least one stays.

    Files are taken in the order of a hash of the seed and their path below `root`. So the split does not depend on the
    order on disk or on where the folder lies, and a file that is added moves at most a few others. Files with equal
    contents stay together; those found under several classes have no one right label to score against, and stay in
    training. With groups so do files in whose paths these find the same, see `Split`.

    Returns: the files for training and those for validation.
    Raises: DataError: if the fraction is not between 0 and 1, a class cannot be on both sides, or `groups` is no pattern.
    """
    files = join(list(found.values()))
    names = list(files.names_below(root))
    first = np.cumsum([0, *map(len, found.values())]).tolist()
    places = {
        label: range(start, start + len(paths)) for start, (label, paths) in zip(first, found.items(), strict=False)
    }
    sides = hold_out(
        places,
        names.__getitem__,
        lambda _: group_equal_files(files, contents),
        split.fraction,
        split.seed,
        split.groups,
    )
    train, validation = (
        {label: pick(paths, np.asarray(side[label], np.int64) - places[label].start) for label, paths in found.items()}
        for side in sides
    )
    return train, validation


def hold_out(
    found: Mapping[str, Sequence[Item]],
    name: Callable[[Item], bytes],
    group_equal: Callable[[Sequence[Item]], Iterable[list[Item]]],
    fraction: float,
    seed: int,
    groups: str | None = None,
) -> tuple[dict[str, list[Item]], dict[str, list[Item]]]:
    """Hold out images of any kind, by the rules of `split_validation`.

    Args:
        found: what stands for the images, under the names of their classes.
        name: of an image; with the seed, all that its place in the order depends on.
        group_equal: divides images into groups of equal contents.
        fraction: of each class, between 0 and 1.
        seed: another one holds out other images.
        groups: pattern of what stays together, see `Split`.

    Returns: the images for training and those for validation.
    Raises: DataError: if `fraction` is not between 0 and 1, or a class has no two different images.
    """
    if not 0 < fraction < 1:
        raise DataError(f"validation_fraction = {fraction} is out of range; expected more than 0 and less than 1.")

    def rank(item: Item) -> bytes:
        return hashlib.sha256(f"{seed}\0".encode() + name(item)).digest()

    label_of = {item: label for label, items in found.items() for item in items}
    if groups is not None:
        key = group_finder(groups)
        equal = list(group_equal(list(label_of)))
        unclear = {item for group in equal if len({label_of[item] for item in group}) > 1 for item in group}
        together = join_groups([*equal, *_divide(list(label_of), {item: key(name(item)) for item in label_of})])
        eligible = [group for group in together if unclear.isdisjoint(group)]
        held_out = _hold_out_groups(eligible, label_of, fraction, rank)
        sides = [
            {label: [i for i in items if (i in held_out) == side] for label, items in found.items()} for side in (0, 1)
        ]
        return sides[0], sides[1]
    alike: dict[str, list[list[Item]]] = {label: [] for label in found}
    shared: set[str] = set()  # classes that keep an image for training in any case
    for group in group_equal(list(label_of)):
        labels = {label_of[item] for item in group}
        if len(labels) == 1:
            alike[labels.pop()].append(group)
        else:
            shared |= labels
    train: dict[str, list[Item]] = {}
    validation: dict[str, list[Item]] = {}
    for label, items in found.items():
        ordered = sorted(alike[label], key=lambda group: min(map(rank, group)))
        taken = set(_take(label, ordered, len(items), fraction, spare=label in shared))
        validation[label] = [item for item in items if item in taken]
        train[label] = [item for item in items if item not in taken]
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


def group_finder(pattern: str) -> Callable[[bytes], str]:
    """Return the function that finds in the name of an image to which group it belongs: its first part in brackets, or all of it.

    Raises: DataError: if it is no regular expression; from the function, if it finds nothing in a name.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DataError(f"--groups '{pattern}' is not a regular expression ({error}).") from None

    def find(name: bytes) -> str:
        text = os.fsdecode(name)
        match = compiled.search(text)
        found = "" if match is None else next((part for part in match.groups() if part is not None), match[0])
        if not found:
            raise DataError(f"--groups '{pattern}' finds nothing in {printable(text)}; every image needs a group.")
        return found

    return find


def join_groups(groups: Iterable[list[Item]]) -> list[list[Item]]:
    """Join groups that share an item, and those that share one with these, and so on."""
    parent: dict[Item, Item] = {}

    def root(item: Item) -> Item:
        while (above := parent.setdefault(item, item)) != item:
            parent[item] = parent[above]
            item = above
        return item

    for group in groups:
        for item in group:
            parent[root(item)] = root(group[0])
    return list(_divide(list(parent), {item: root(item) for item in parent}))


def _hold_out_groups(
    groups: Sequence[list[Item]], label_of: Mapping[Item, str], fraction: float, rank: Callable[[Item], bytes]
) -> set[Item]:
    """Choose whole groups, which may have images of several classes, in the order of their hashes while no class gets too many.

    Then classes without any take the smallest group that leaves every class an image to train on.

    Raises: DataError: if there is none.
    """
    counts = Counter(label_of.values())
    wanted = {label: min(max(1, round(count * fraction)), count - 1) for label, count in counts.items()}
    taken: Counter[str] = Counter()
    held_out: set[Item] = set()
    ordered = sorted(groups, key=lambda group: min(map(rank, group)))
    sizes = [Counter(label_of[item] for item in group) for group in ordered]

    def take(place: int, most: Mapping[str, int]) -> bool:
        fits = all(taken[label] + count <= most[label] for label, count in sizes[place].items())
        if fits:
            taken.update(sizes[place])
            held_out.update(ordered[place])
        return fits

    for place in range(len(ordered)):
        take(place, wanted)
    most = {label: count - 1 for label, count in counts.items()}
    for label in counts:
        places = sorted((p for p in range(len(ordered)) if sizes[p][label]), key=lambda p: sizes[p].total())
        if not taken[label] and not any(take(place, most) for place in places):
            raise DataError(
                f"class '{label}' has no group of images that can be held out: each is all of some class, or would leave one "
                "without images to train on."
            )
    return held_out


def find_repeated(
    own: Sequence[Item], others: Sequence[Item], keys: Iterable[Callable[[Item], Hashable]]
) -> list[Item]:
    """Return those of `own` that are also in `others`: all `keys` are equal. A key is computed only where those before it are."""
    left: dict[Item, tuple[Hashable, ...]] = dict.fromkeys(own, ())
    right: dict[Item, tuple[Hashable, ...]] = dict.fromkeys(others, ())
    for key in keys:
        left, right = (
            {
                item: (*known, value)
                for (item, known), value in zip(side.items(), map_files(key, list(side)), strict=True)
            }
            for side in (left, right)
        )
        common = set(left.values()) & set(right.values())
        left, right = ({item: known for item, known in side.items() if known in common} for side in (left, right))
    return list(left)


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


def group_equal_files(paths: Sequence[Path], contents: Contents) -> list[list[int]]:
    """Group the places of files of equal contents. Reads only files of equal size, and in full only those that also end alike."""
    files = as_files(paths)
    return divide_rows(files.status["size"], [contents.read_ends, contents.read], files)


def divide_rows(
    sizes: NDArray[np.int64], readers: Sequence[Callable[[Files], NDArray[Any]]], files: Files
) -> list[list[int]]:
    """Divide files into groups of equal sizes in which all that is read is equal; of a file alone in its group no more is read."""
    group = np.unique(sizes, return_inverse=True)[1]
    for read in readers:
        several = np.flatnonzero(np.bincount(group)[group] > 1)
        values = np.zeros(len(files), np.int64)
        values[several] = 1 + np.unique(as_keys(read(files.take(several))), return_inverse=True)[1]
        group = np.unique(group * (int(values.max(initial=0)) + 1) + values, return_inverse=True)[1]
    order = np.argsort(group, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    return sorted(part.tolist() for part in groups)


def find_repeated_files(own: Files, others: Files, contents: Contents) -> NDArray[np.int64]:
    """Return the places of those of `own` whose contents are also in `others`. Reads no more than `group_equal_files`."""
    left, right, places = own, others, np.arange(len(own))
    for read in (lambda files: files.status["size"], contents.read_ends, contents.read):
        keys, known = as_keys(read(left)), as_keys(read(right))
        common = np.flatnonzero(np.isin(keys, known))
        left, right, places = left.take(common), right.take(np.flatnonzero(np.isin(known, keys))), places[common]
    return places


def as_keys(values: NDArray[Any]) -> NDArray[Any]:
    """Return digests as something that NumPy sorts; all have the same number of bytes, so that zeros at the end do no harm."""
    return values.view(f"S{values.itemsize}") if values.dtype.kind == "V" else values
