"""Read an image folder: its classes, its splits, and the files that cannot be used."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from convnext_deploy.data.class_names import same_name
from convnext_deploy.data.decoding import find_unreadable, printable
from convnext_deploy.data.splits import ClassFiles, split_validation
from convnext_deploy.errors import DataError

IMAGE_EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".tif", ".tiff", ".webp", ".gif", ".jfif", ".pgm",
)  # fmt: skip
VALIDATION_FOLDERS = ("val", "validation", "test")
# Names of splits that are not read, but must not be taken for classes or passed over either.
SPLIT_NAMES = {"train", "training", *VALIDATION_FOLDERS, "valid", "dev", "eval", "evaluation", "testing"}
_EXPECTED = "Expected train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg alone"


@dataclass(frozen=True)
class FolderContents:
    """The image files of each class for training and for validation, over the same classes.

    `ignored`: number of files that are not images by their name. `held_out`: the folder has no validation images of its own.
    """

    train: ClassFiles
    validation: ClassFiles
    ignored: int
    unreadable: tuple[Path, ...]
    held_out: bool


def read_folder(root: Path, validation_fraction: float, split_seed: int, skip_unreadable: bool) -> FolderContents:
    """Find the images of `root`, check that all can be read, and hold out some when there is no validation folder.

    Args:
        root: has `train/` and one of `val/`, `validation/`, `test/`; or `train/` alone; or the class folders themselves.
        validation_fraction: of each class to hold out where there is no validation folder.
        split_seed: another one holds out other images.
        skip_unreadable: leave out images that cannot be read.

    Raises: DataError: if the folder, a split or a class is missing or empty, or an image cannot be read.
    """
    try:
        train, validation = _find_splits(root)
        splits = {split: _scan(split) for split in (train, validation) if split is not None}
    except OSError as error:
        where = printable(error.filename or root)
        raise DataError(f"the data folder {printable(root)} cannot be read ({where}: {error.strerror}).") from None
    found = {split: files for split, (files, _) in splits.items()}
    _spell_alike(found)
    _check_classes(found)
    unreadable = _take_out_unreadable(found, skip_unreadable)
    if validation is None:
        held = split_validation(found[train], train, validation_fraction, split_seed)
    else:
        held = found[train], found[validation]
    return FolderContents(*held, sum(ignored for _, ignored in splits.values()), unreadable, validation is None)


def _find_splits(root: Path) -> tuple[Path, Path | None]:
    """Return the folders of the classes for training and for validation, the latter None when some are to be held out."""
    folders = sorted(path.name for path in root.iterdir() if path.is_dir())
    inside = ", ".join(map(printable, sorted(path.name for path in root.iterdir())[:6])) or "nothing"
    splits = [name for name in folders if name.lower() in SPLIT_NAMES]
    if "train" not in folders:
        # A folder of classes, unless it has nothing of the sort or is a folder of splits by other names.
        if splits or not has_images(root):
            raise DataError(f"the data folder {printable(root)} has no train/; found {inside}. {_EXPECTED}.")
        return root, None
    validation = next((root / name for name in VALIDATION_FOLDERS if name in folders), None)
    if validation is None and len(splits) > 1:
        other = next(name for name in splits if name != "train")
        raise DataError(
            f"the data folder {printable(root)} has no val/ (or validation/, test/); found {inside}. Rename {other}/ to val/, "
            "or move it away to have a part of train/ held out."
        )
    return root / "train", validation


def has_images(root: Path) -> bool:
    """Whether a folder in `root` has an image, however deep. Raises: OSError: if a folder cannot be listed."""
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return any(next(_image_files(folder), None) for folder in folders)


def list_images(folder: Path) -> list[Path]:
    """Return the files below a folder that are images by their names, in sorted order; nothing is opened.

    Raises: OSError: if a folder cannot be listed.
    """
    return sorted(_image_files(folder))


def _scan(split: Path) -> tuple[ClassFiles, int]:
    """Return the images of each class folder in sorted order, and how many files are not images."""
    found: ClassFiles = {}
    ignored = sum(path.is_file() for path in split.iterdir())  # images outside of class folders have no label
    for folder in sorted(path for path in split.iterdir() if path.is_dir() and not path.name.startswith(".")):
        paths = list(_files(folder))
        images = [path for path in paths if _is_image(path)]
        ignored += len(paths) - len(images)
        if images:
            if not folder.name.isprintable():  # class names are written into files and printed
                raise DataError(f"the name of the class folder {printable(folder)} is not plain text; rename it.")
            found[folder.name] = sorted(images)
    if not found:
        extensions = ", ".join(IMAGE_EXTENSIONS[:3])
        loose = f", found {ignored} files outside of such folders" if ignored else ""
        raise DataError(
            f"{printable(split)} has no images; expected one folder per class with {extensions} files{loose}."
        )
    return found, ignored


def _image_files(folder: Path) -> Iterator[Path]:
    return filter(_is_image, _files(folder))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_EXTENSIONS and not path.name.startswith(".")


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, through links as well, but never twice through the same folder."""
    seen = {_identity(folder)}
    for base, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        kept = []
        for path in sorted(Path(base) / name for name in folders if not name.startswith(".")):  # such as .thumbnails
            if (identity := _identity(path)) not in seen:
                seen.add(identity)
                kept.append(path.name)
        folders[:] = kept
        yield from (Path(base) / name for name in files)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _raise(error: OSError) -> None:
    raise error


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


def _check_classes(found: Mapping[Path, ClassFiles]) -> None:
    """Raise if a class has images in one split only, or there is one class only."""
    for split, files in found.items():
        missing = sorted({name for others in found.values() for name in others} - set(files))
        if missing:
            raise DataError(
                f"class '{missing[0]}' has no images in {printable(split)}; every class needs images in both splits."
            )
    split, files = next(iter(found.items()))
    if len(files) < 2:
        raise DataError(f"{printable(split)} has only the class '{next(iter(files))}'; at least 2 are needed.")


def _take_out_unreadable(found: Mapping[Path, ClassFiles], skip: bool) -> tuple[Path, ...]:
    """Take the images that cannot be read out of `found`, and return them.

    Raises: DataError: naming the first and counting the others, unless they are to be skipped; if a class has no others.
    """
    unreadable = find_unreadable([path for files in found.values() for paths in files.values() for path in paths])
    if unreadable and not skip:
        (path, reason), others = unreadable[0], len(unreadable) - 1
        more = "" if not others else f", and neither can {others} other{'s' if others > 1 else ''}"
        which = "them" if others else "it"
        raise DataError(
            f"{printable(path)} cannot be read as an image ({reason}){more}; repair or remove {which}, or leave {which} out "
            "with --skip-unreadable."
        )
    left_out = {path for path, _ in unreadable}
    for split, files in found.items():
        for name, paths in files.items():
            files[name] = [path for path in paths if path not in left_out]
            if not files[name]:
                raise DataError(f"no image of class '{name}' in {printable(split)} can be read; repair them.")
    return tuple(path for path, _ in unreadable)
