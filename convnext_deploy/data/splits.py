"""Hold out validation images where there are none: a seeded, stratified split in which no image is on both sides."""

import hashlib
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from convnext_deploy.data.decoding import map_files, printable
from convnext_deploy.errors import DataError

ClassFiles = dict[str, list[Path]]  # the files of each class, sorted
Item = TypeVar("Item", bound=Hashable)

TAIL_BYTES = 4096  # read first to tell files of equal size apart


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
    found: Mapping[str, list[Path]], root: Path, fraction: float, seed: int, groups: str | None = None
) -> tuple[ClassFiles, ClassFiles]:
    """Hold out `fraction` of the files of each class, rounded, and at least one; at least one stays.

    Files are taken in the order of a hash of the seed and their path below `root`. So the split does not depend on the
    order on disk or on where the folder lies, and a file that is added moves at most a few others. Files with equal
    contents stay together; those found under several classes have no one right label to score against, and stay in
    training. With `groups` so do files in whose paths it finds the same, see `Split`.

    Returns: the files for training and those for validation.
    Raises: DataError: if `fraction` is not between 0 and 1, a class cannot be on both sides, or `groups` is no pattern.
    """

    def name(path: Path) -> bytes:
        return os.fsencode(path.relative_to(root).as_posix())

    return hold_out(found, name, group_equal_files, fraction, seed, groups)


def hold_out(
    found: Mapping[str, list[Item]],
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


def group_equal_files(paths: Sequence[Path]) -> list[list[Path]]:
    """Group files of equal contents. Reads only files of equal size, and in full only those that also end alike."""
    return divide(paths, content_keys())


def _size(path: Path) -> Hashable:
    return path.stat().st_size


def _tail_digest(path: Path) -> Hashable:
    with path.open("rb") as stream:
        stream.seek(-min(TAIL_BYTES, path.stat().st_size), os.SEEK_END)
        return hashlib.sha256(stream.read()).digest()


def _digest(path: Path) -> Hashable:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def content_keys() -> tuple[Callable[[Path], Hashable], ...]:
    """Return what is equal for files of equal contents, the cheapest first."""
    return _size, _tail_digest, _digest
