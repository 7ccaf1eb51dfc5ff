"""Open labelled images for training and validation: an image folder, tar shards, or the built-in handwritten digits."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from convnext_deploy.data.both_sides import count_unread, find_repeated_images
from convnext_deploy.data.both_sides import name_images as name_images
from convnext_deploy.data.class_names import are_numbers, describe_mismatch, match_names
from convnext_deploy.data.contents import Contents
from convnext_deploy.data.decoding import printable
from convnext_deploy.data.digits import read_digits
from convnext_deploy.data.division import Division
from convnext_deploy.data.files import as_files, join
from convnext_deploy.data.find_labels import LabelFile, find_label_files, has_class_folders, with_siblings
from convnext_deploy.data.image_folder import FolderContents, list_images, read_folder
from convnext_deploy.data.image_sets import ArrayImages as ArrayImages
from convnext_deploy.data.image_sets import FolderImages as FolderImages
from convnext_deploy.data.image_sets import ImageSet as ImageSet
from convnext_deploy.data.image_sets import TaughtImages
from convnext_deploy.data.labelled_folder import LabelledContents, read_labelled_folder
from convnext_deploy.data.relabelled import one_hot, renumber
from convnext_deploy.data.remote_shards import as_url, find_remote_shards
from convnext_deploy.data.shard_splits import find_shards
from convnext_deploy.data.shards import ShardContents, ShardImages, read_shards
from convnext_deploy.data.splits import ClassFiles, Split, group_finder
from convnext_deploy.data.unlabelled import Unlabelled
from convnext_deploy.data.unreadable import Skipping, describe_left_out
from convnext_deploy.errors import DataError

BUILT_IN = "digits"
_FEW_TO_READ = 100_000  # training images, for a verb that only judges: some seconds on a disk that answers at once
VALIDATION_FRACTION = 0.1  # of each class, where nobody says it


@dataclass(frozen=True)
class Data:
    """A training and a validation set over the same classes.

    `name` is what the user gave; `ignored_files` are not images by their names; `unreadable` are images that were left out, for
    these `reasons`; `split` is how the validation set was chosen, None when it came with the data. `numbered`: the data itself
    gives the classes their numbers, as shards do, files whose labels are numbers, and folders do not; `named`: it gives them
    names, too. `test`: images scored once, at the end. `division`: where the images of each split come from, and what is on both
    sides. `contents`: of the files.
    `labels_from`: the files that tell the labels, where folders do not; `remarks`: how they were read, a line each.
    `unlabelled`: images that only teachers speak of, for the stages that ask for them.
    """

    name: str
    train: ImageSet
    validation: ImageSet
    class_names: tuple[str, ...]
    ignored_files: int = 0
    unreadable: tuple[Path, ...] = ()
    reasons: tuple[str, ...] = ()
    split: Split | None = None
    numbered: bool = False
    named: bool = True
    test: ImageSet | None = None
    division: Division = field(default_factory=Division)
    contents: Contents = field(default_factory=Contents, compare=False, repr=False)
    labels_from: tuple[Path, ...] = ()
    remarks: tuple[str, ...] = ()
    unlabelled: Unlabelled | None = None

    @property
    def multi_label(self) -> bool:
        """Whether an image may have any number of labels, each of which is a question of its own."""
        # not of the validation images where it can be helped: stages must not look at those
        return (self.train if len(self.train) else self.validation).labels.ndim > 1

    def as_multi_label(self) -> "Data":
        """Return data of one class an image as data of which each image has that label alone, for a network that answers each."""
        if self.multi_label:
            return self
        count = len(self.class_names)
        train, validation = (one_hot(images, count) for images in (self.train, self.validation))
        test = None if self.test is None else one_hot(self.test, count)
        return replace(self, train=train, validation=validation, test=test)

    def in_order(self, names: tuple[str, ...], where: str) -> "Data":
        """Return the same images with the classes numbered as in `names`, of which `where` says whose they are.

        Raises: DataError: if these are not the names of the classes.
        """
        places = match_names(names, self.class_names)
        if places is None:
            raise DataError(describe_mismatch(names, where, self.class_names, self.name))
        if places == tuple(range(len(names))):
            return self
        numbers = np.array(places, np.int64)
        ordered = tuple(self.class_names[places.index(number)] for number in range(len(names)))
        train, validation = (renumber(images, numbers) for images in (self.train, self.validation))
        test = None if self.test is None else renumber(self.test, numbers)
        return replace(self, train=train, validation=validation, test=test, class_names=ordered)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of how the data was read, a line each."""
        notes = list(self.remarks)
        name = printable(self.name)
        if self.ignored_files:
            notes.append(f"{self.ignored_files} files in {name} are not images and were left out")
        notes += describe_left_out(self.unreadable)
        counts = [len(images) for images in (self.train, self.validation, self.test) if images is not None]
        kind = "shards" if isinstance(self.validation, ShardImages) else "folder"
        notes += [*self.division.describe(name, counts, self.split, kind), *self.leaks]
        notes += () if self.unlabelled is None else self.unlabelled.notes
        return tuple(notes)

    @property
    def leaks(self) -> tuple[str, ...]:
        """What is on both sides and should not be, a line each."""
        return tuple(self.division.leaks(len(self.validation) + (0 if self.test is None else len(self.test))))

    @cached_property
    def judged_on(self) -> str | None:
        """A hash of which images validate, by their names in the folder and their sizes, wherever that lies; None without files."""
        names = name_images(self.validation, Path(self.name))
        if not names:
            return None
        lines = sorted(f"{os.fsencode(name)!r} {self.validation.size_hint(place)}" for place, name in enumerate(names))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """A hash of classes, labels, names in the folder and contents of all images but those of the test, wherever they lie."""
        return self._identify(self.train, self.validation)

    @cached_property
    def validation_fingerprint(self) -> str:
        """The same of the validation images alone, on which scores depend."""
        return self._identify(self.validation)

    @cached_property
    def unlabelled_fingerprint(self) -> str | None:
        """A hash of names and contents of the images without labels; None: there are none."""
        return None if self.unlabelled is None else self.unlabelled.identify(self.contents)

    def _identify(self, *sets: ImageSet) -> str:
        digest = hashlib.sha256("\n".join(self.class_names).encode())
        for images in sets:
            digest.update(images.labels.astype("<i8").tobytes())
            if isinstance(images, ArrayImages | FolderImages | ShardImages | TaughtImages):
                digest.update(images.identify(Path(self.name), self.contents))
        return digest.hexdigest()


def open_data(
    name: str,
    *,
    validation_fraction: float = VALIDATION_FRACTION,
    split_seed: int = 0,
    groups: str | None = None,
    split_file: Path | None = None,
    labels: Path | None = None,
    skip_unreadable: bool = False,
    cache_dir: Path | None = None,
    contents: Contents | None = None,
    judges: bool = False,
) -> Data:
    """Open `digits`, an image folder or a folder of tar shards, and check that every image can be opened.

    Args:
        name: `digits`, or a folder with `train/` and one of `val/`, `validation/`, `test/`, each with one folder per class;
            or with `train/` alone, or with the class folders alone, and then validation images are held out; or a folder
            with `train-*.tar` and one of `val-*.tar`, `validation-*.tar`, `test-*.tar`, or with the former alone, or with shards
            of any other names, in the format of WebDataset; or the URL of such a folder, see `find_remote_shards`.
        validation_fraction: share of each class to hold out where there are no validation images, between 0 and 1.
        split_seed: another seed holds out other images. Not the seed of training: every verb must see the same split, or
            a network is scored on images that it was trained on.
        groups: regular expression; images in whose names it finds the same stay on one side.
        split_file: lists of the images for training, validation and test, see `split_lists`; None: the folders tell them.
        labels: file that tells the labels of images, any number for each, see `label_files`; None: folders tell them, or
            where these do not, a file of a usual name in the data folder.
        skip_unreadable: leave out images that cannot be decoded to their last pixel, and list them in `Data.unreadable`: all are
            decoded for that, once. Otherwise damage that shows only then raises from `ImageSet.load`.
        cache_dir: where to keep what was found in shards and what files hold, so that they are not read again; None: the former
            beside the shards, see `find_index_files`, and the latter nowhere.
        contents: what is known of the files; None: what `cache_dir` tells.
        judges: the images for training are of no interest: where others have a place of their own, these are not opened.

    Raises: DataError: if the folder, a split or a class is missing or empty, a class is present in only one split or too
        small to hold out an image of it, or an image cannot be opened.
    """
    if name == BUILT_IN and not Path(name).is_dir():
        if labels is not None:
            raise DataError(f"the built-in data '{BUILT_IN}' has its labels; --labels is for image folders.")
        return _digits()
    split = Split(validation_fraction, split_seed, groups, split_file)
    if (url := as_url(name)) is not None:
        if labels is not None:
            raise DataError(f"{printable(url)} has its labels in the shards; --labels is for image folders.")
        return _open_remote(url, split, contents or Contents(Path(name), cache_dir), skip_unreadable, cache_dir)
    root = Path(name)
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise DataError(
            f"the data folder {printable(root)} {found}; expected a folder with train/ and val/, or '{BUILT_IN}'."
        )
    known = contents or Contents(root, cache_dir)
    skipping = Skipping(known) if skip_unreadable else None
    if labels is not None:
        return _open_labelled(root, [*with_siblings(labels)], split, skipping, known)
    if shards := find_shards(root):
        inside = read_shards(root, shards, split, skipping, cache_dir, known)
        own = Data(str(root), inside.train, inside.validation, inside.class_names, numbered=True, named=inside.named)
        own = replace(own, contents=known, test=inside.test if len(inside.test) else None)
        return _finish(own, inside, split)
    files = find_label_files(root)
    if files and not has_class_folders(root):
        return _open_labelled(root, files, split, skipping, known)
    try:
        folder = read_folder(root, split, skipping, known, judges=judges)
    except DataError as error:
        hint = f" The labels in {printable(files[0][0])} are used with --labels." if files else ""
        raise DataError(f"{error}{hint}") from None
    remarks = [
        f"{printable(file)} is not used, because the images lie in folders of classes; --labels takes the labels from it"
        for file, _ in files
    ]
    names = tuple(sorted(folder.train))
    train, validation, test = (_folder(files, names) for files in (folder.train, folder.validation, folder.test))
    own = Data(str(root), train, validation, names, folder.ignored, contents=known, test=test if len(test) else None)
    return _finish(replace(own, remarks=(*remarks, *folder.remarks)), folder, split, judges=judges)


def _open_remote(url: str, split: Split, contents: Contents, skip_unreadable: bool, cache_dir: Path | None) -> Data:
    """Open shards on another machine; but for where they are read, and the order of very many, as those of a folder."""
    found = find_remote_shards(url, cache_dir)
    skipping = Skipping(contents) if skip_unreadable else None
    inside = read_shards(found.root, [*found.shards], split, skipping, found.cache_dir, contents, found)
    own = Data(found.url, inside.train, inside.validation, inside.class_names, numbered=True, named=inside.named)
    test = inside.test if len(inside.test) else None
    return _finish(replace(own, contents=contents, test=test, remarks=found.remarks), inside, split)


def _open_labelled(
    root: Path, files: Sequence[LabelFile], split: Split, skipping: Skipping | None, contents: Contents
) -> Data:
    """Open images of which files tell the labels."""
    found = read_labelled_folder(root, list_images(root), files, split, skipping, contents)
    sides = (FolderImages(as_files(side.paths), side.labels) for side in (found.train, found.validation, found.test))
    train, validation, test = sides
    own = Data(str(root), train, validation, found.classes, contents=contents, test=test if len(test) else None)
    own = replace(own, labels_from=found.files, remarks=found.notes, numbered=are_numbers(found.classes))
    return _finish(own, found, split)


def _finish(
    data: Data, contents: FolderContents | ShardContents | LabelledContents, split: Split, *, judges: bool = False
) -> Data:
    """Return the data with how it was divided, and what should not be on both sides."""
    division = Division(contents.places, contents.unused, contents.left_out)
    if not contents.held_out:  # otherwise copies and groups were kept on one side
        judging = [images for images in (data.validation, data.test) if images is not None]
        root = Path(data.name)
        unread = count_unread(judging, data.train, data.contents) if judges else 0
        repeated: list[Path] = []
        if unread <= _FEW_TO_READ:
            unread = 0
            repeated = [path for images in judging for path in find_repeated_images(images, data.train, data.contents)]
        crossing: set[str] = set()
        if split.groups is not None:
            find = group_finder(split.groups)
            own = {find(os.fsencode(name)) for name in name_images(data.train, root)}
            crossing = own & {find(os.fsencode(name)) for images in judging for name in name_images(images, root)}
        division = replace(
            division,
            repeated=tuple(path.relative_to(root) for path in repeated),
            crossing=tuple(sorted(crossing)),
            unread=unread,
        )
    chosen = split if contents.held_out or split.file is not None else None
    return replace(data, unreadable=contents.unreadable, reasons=contents.reasons, split=chosen, division=division)


def _folder(found: ClassFiles, names: tuple[str, ...]) -> FolderImages:
    parts = [found.get(name, []) for name in names]
    return FolderImages(
        join([part for part in parts if len(part)]), np.repeat(np.arange(len(names)), list(map(len, parts)))
    )


def _digits() -> Data:
    found = read_digits()
    train = ArrayImages(found.train, found.train_labels)
    validation = ArrayImages(found.validation, found.validation_labels)
    return Data(BUILT_IN, train, validation, found.class_names, numbered=True)
