"""Read an image folder: its classes, its splits, and the files that cannot be used."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convnext_deploy.data.class_names import same_name
from convnext_deploy.data.contents import Contents
from convnext_deploy.data.decoding import printable
from convnext_deploy.data.files import Files, Listing, identity, join, pick
from convnext_deploy.data.pixels import IMAGE_EXTENSIONS
from convnext_deploy.data.split_lists import divide_by_lists
from convnext_deploy.data.split_words import SPLIT_NAMES, TEST_FOLDER, VALIDATION_FOLDERS
from convnext_deploy.data.splits import ClassFiles, Split, split_validation
from convnext_deploy.data.unreadable import Skipping, take_out_unreadable
from convnext_deploy.data.useless_folder import advise, describe_useless
from convnext_deploy.errors import DataError

_EXTENSIONS = frozenset(IMAGE_EXTENSIONS)
_EXPECTED = "Expected train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg alone"


@dataclass(frozen=True)
class FolderContents:
    """The image files of each class for training, validation and test, over the same classes; a test may lack some.

    `ignored`: number of files that are not images by their name. `held_out`: some were taken from the training images, because the
    folder has no validation images of its own. `places`: the names of the splits that were read, train, validation, test;
    `unused`: of those that were not. `left_out`: images that the file of the split names for nothing. `reasons`: why each of the
    `unreadable` cannot be read. `remarks`: on files that are not images by their names, and could be made into some.
    """

    train: ClassFiles
    validation: ClassFiles
    test: ClassFiles
    ignored: int
    unreadable: tuple[Path, ...]
    held_out: bool
    places: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    left_out: int = 0
    reasons: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Places:
    """Where the images of each split lie; `validation` None: nowhere of their own. `unused`: splits that are not read."""

    train: Path
    validation: Path | None = None
    test: Path | None = None
    unused: tuple[str, ...] = ()


def read_folder(
    root: Path, split: Split, skipping: Skipping | None, contents: Contents, *, judges: bool = False
) -> FolderContents:
    """Find the images of `root`, check that all can be opened, and hold out some when there is no validation folder.

    Args:
        root: has `train/` and one of `val/`, `validation/`, `valid/`, or `test/` for it; or `train/` alone; or the class folders
            themselves. `test/` beside a validation folder is the test.
        split: how validation images are chosen where there is no validation folder, or a file says it.
        skipping: leave out images that cannot be read; None: they are an error, as far as their headers and ends tell.
        contents: of the files.
        judges: training images are not opened where validation images have a place of their own, unless some are to be left out.

    Raises: DataError: if the folder, a split or a class is missing or empty, or an image cannot be read.
    """
    try:
        places = _without_unlabelled_test(_find_splits(root))
        folders = [place for place in (places.train, places.validation, places.test) if place is not None]
        listing = Listing(root)
        splits = {folder: _scan(folder, listing) for folder in folders}
    except OSError as error:
        where = printable(error.filename or root)
        raise DataError(f"the data folder {printable(root)} cannot be read ({where}: {error.strerror}).") from None
    columns = listing.finish(contents.folder)
    found: dict[Path, ClassFiles] = {
        folder: {name: Files(columns, rows) for name, rows in classes.items()}
        for folder, (classes, _) in splits.items()
    }
    others = [path for _, paths in splits.values() for path in paths]
    told: dict[str, Any] = {"ignored": len(others), "remarks": tuple(advise(others))}
    _spell_alike(found)
    if split.file is not None:
        unreadable = take_out_unreadable(found, skipping, contents)
        return replace(_divide_by_file(root, found, split.file), **told, **unreadable)
    _check_classes(found, places.test)
    looked_at = dict(found)
    if judges and places.validation is not None and skipping is None:
        del looked_at[places.train]
    unreadable = take_out_unreadable(looked_at, skipping, contents)
    found |= looked_at
    test = {} if places.test is None else found[places.test]
    if places.validation is not None:
        held = found[places.train], found[places.validation]
    else:
        held = split_validation(found[places.train], places.train, split, contents)
    names = tuple(f"{folder.name}/" for folder in folders)
    whole = FolderContents(*held, test, 0, (), places.validation is None, names, places.unused)
    return replace(whole, **told, **unreadable)


def _divide_by_file(root: Path, found: Mapping[Path, ClassFiles], file: Path) -> FolderContents:
    """Divide all images of a folder, in whichever split they lie, as the lists in a file say."""
    every = [(folder, name, join([files])) for folder, classes in found.items() for name, files in classes.items()]
    names: dict[tuple[int, int], tuple[str, ...]] = {}  # by the number of the class folder, and the place in it
    for number, (folder, _, files) in enumerate(every):
        pairs = zip(files.names_below(root), files.names_below(folder), strict=True)
        for place, ends in enumerate(pairs):
            texts = tuple(map(os.fsdecode, ends))
            names[number, place] = (*texts, texts[0].rpartition("/")[2])
    divided = divide_by_lists(names, file)
    sides: dict[str, ClassFiles] = {role: {} for role in divided}
    for role, chosen in divided.items():
        for number, (_, name, files) in enumerate(every):
            if inside := [place for place in range(len(files)) if (number, place) in chosen]:
                before = [sides[role][name]] if name in sides[role] else []
                sides[role][name] = join([*before, pick(files, inside)])
    parts = {Path(f"the {role} list of {file}"): sides[role] for role in ("train", "validation", "test")}
    *_, test = parts
    if not sides["train"]:
        raise DataError(f"{printable(file)} leaves no image to train on.")
    _check_classes({part: files for part, files in parts.items() if files or part != test}, test)
    return FolderContents(
        sides["train"],
        sides["validation"],
        sides["test"],
        ignored=0,
        unreadable=(),
        held_out=False,
        left_out=len(divided["none"]),
    )


def _find_splits(root: Path) -> Places:
    """Return the folders of the classes for each split."""
    folders = sorted(path.name for path in root.iterdir() if path.is_dir())
    inside = ", ".join(map(printable, sorted(path.name for path in root.iterdir())[:6])) or "nothing"
    splits = [name for name in folders if name.lower() in SPLIT_NAMES]
    if "train" not in folders:
        # A folder of classes, unless it has nothing of the sort or is a folder of splits by other names.
        if splits or not has_images(root):
            if loose := [] if splits else [path for path in root.iterdir() if path.is_file() and is_image(path.name)]:
                raise DataError(
                    f"the data folder {printable(root)} has {len(loose):,} images in no folder of a class, such as "
                    f"{printable(min(loose).name)}, so that nothing tells their classes; expected CLASS/*.jpg, or a file of labels "
                    "with --labels. Without either, 'convnext-deploy predict' takes them."
                )
            raise DataError(f"the data folder {printable(root)} has no train/; found {inside}. {_EXPECTED}.")
        return Places(root)
    named = [name for name in VALIDATION_FOLDERS if name in folders]
    if len(named) > 1:
        raise DataError(
            f"the data folder {printable(root)} has both {named[0]}/ and {named[1]}/; move one of them away."
        )
    test = root / TEST_FOLDER if TEST_FOLDER in folders else None
    validation = root / named[0] if named else test
    if validation is None and len(splits) > 1:
        other = next(name for name in splits if name != "train")
        raise DataError(
            f"the data folder {printable(root)} has no val/ (or validation/, valid/, test/); found {inside}. Rename {other}/ to "
            "val/, or move it away to have a part of train/ held out."
        )
    test = test if named else None
    used = {"train", *(place.name for place in (validation, test) if place is not None)}
    return Places(root / "train", validation, test, tuple(f"{name}/" for name in splits if name not in used))


def _without_unlabelled_test(places: Places) -> Places:
    """Return the places without a test whose images lie in no folders of classes, as those of competitions: it is not read."""
    test = places.test
    if test is None or has_images(test):
        return places
    return replace(places, test=None, unused=(*places.unused, f"{test.name}/, which has no folders of classes,"))


def has_images(root: Path) -> bool:
    """Whether a folder in `root` has an image, however deep. Raises: OSError: if a folder cannot be listed."""
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return any(next(filter(is_image, _files(folder)), None) for folder in folders)


def list_images(folder: Path) -> Files:
    """Return the files below a folder that are images by their names, in sorted order; nothing is opened.

    Raises: OSError: if a folder cannot be listed.
    """
    return list_files(folder)[0]


def list_files(folder: Path) -> tuple[Files, list[Path]]:
    """Return the files below a folder, sorted: images by their names, and all others. Raises: OSError: as `list_images`."""
    listing = Listing(folder)
    _, others = listing.add_below(folder, is_image)
    return Files(listing.finish()), sorted(others)


def is_image(name: str) -> bool:
    """Whether a file is an image by its name."""
    stem, dot, ending = name.rpartition(".")
    return bool(stem) and f"{dot}{ending.lower()}" in _EXTENSIONS and not stem.startswith(".")


def _files(folder: Path) -> Iterator[str]:
    """Yield the names of the files below a folder, through links as well, but never twice through the same folder."""
    seen = {identity(folder)}
    for base, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        kept = []
        for name in sorted(name for name in folders if not name.startswith(".")):
            if (found := identity(Path(base) / name)) not in seen:
                seen.add(found)
                kept.append(name)
        folders[:] = kept
        yield from files


def _raise(error: OSError) -> None:
    raise error


def _scan(split: Path, listing: Listing) -> tuple[dict[str, range], list[Path]]:
    """Return the rows of the images of each class folder, sorted, and the files that are none."""
    found: dict[str, range] = {}
    empty: list[Path] = []
    others = [path for path in split.iterdir() if path.is_file()]  # images outside of class folders have no label
    for folder in sorted(path for path in split.iterdir() if path.is_dir() and not path.name.startswith(".")):
        images, useless = listing.add_below(folder, is_image)
        others += useless
        if not images and useless:
            raise DataError(describe_useless(folder, useless))
        if images:
            if not folder.name.isprintable():  # class names are written into files and printed
                raise DataError(f"the name of the class folder {printable(folder)} is not plain text; rename it.")
            found[folder.name] = images
        else:
            empty.append(folder)
    if found and empty:
        raise DataError(
            f"the class folder {printable(empty[0])} is empty; put images into it, or remove it if there is no such class."
        )
    if not found:
        extensions = ", ".join(IMAGE_EXTENSIONS[:3])
        loose = f", found {len(others)} files outside of such folders" if others else ""
        raise DataError(
            f"{printable(split)} has no images; expected one folder per class with {extensions} files{loose}."
        )
    return found, others


def _spell_alike(found: dict[Path, ClassFiles]) -> None:
    """Give the classes of all splits the names that they have in the first one, whatever the Unicode form of the others.

    Raises: DataError: if two folders of a split have names that look alike.
    """
    names: dict[str, str] = {}
    for split, files in found.items():
        seen: dict[str, str] = {}
        for name in files:
            if (other := seen.setdefault(same_name(name), name)) != name:
                raise DataError(
                    f"{printable(split)} has two folders '{name}' and '{other}' that differ only in their Unicode form; "
                    "join them."
                )
            names.setdefault(same_name(name), name)
        found[split] = {names[same_name(name)]: paths for name, paths in files.items()}


def _check_classes(found: Mapping[Path, ClassFiles], test: Path | None) -> None:
    """Raise if a class has images in one split only, or there is one class only. The test may lack classes, and not add any."""
    own = {split: files for split, files in found.items() if split != test}
    known = {name for files in own.values() for name in files}
    for split, files in own.items():
        if missing := sorted(known - set(files)):
            raise DataError(
                f"class '{missing[0]}' has no images in {printable(split)}; every class needs images in both splits."
            )
    split, files = next(iter(found.items()))
    if test is not None and (added := sorted(set(found.get(test, {})) - known)):
        raise DataError(
            f"class '{added[0]}' of {printable(test)} has no images in {printable(split)}; name its folder as there, or move "
            "what is no test of these classes away."
        )
    if len(files) < 2:
        raise DataError(f"{printable(split)} has only the class '{next(iter(files))}'; at least 2 are needed.")
