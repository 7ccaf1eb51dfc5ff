"""Images without labels, of which teachers alone speak: found, and freed of those that judge or are labelled already."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.data.contents import Contents
from convnext_deploy.data.decoding import map_files, printable
from convnext_deploy.data.files import as_files
from convnext_deploy.data.image_folder import list_files
from convnext_deploy.data.image_sets import FolderImages, ImageSet, TaughtImages
from convnext_deploy.data.remote_shards import as_url, find_remote_shards
from convnext_deploy.data.shard_splits import find_shards
from convnext_deploy.data.shards import ShardImages, read_unlabelled_shards
from convnext_deploy.data.unreadable import Skipping, find_unusable
from convnext_deploy.data.useless_folder import advise, describe_useless
from convnext_deploy.errors import DataError
from convnext_deploy.metrics.multi_label import UNKNOWN

MOST_SHARE = 7 / 8
"""Of a training batch, that has no labels where nobody says it: 7 unlabelled images to a labelled one, as FixMatch has (Sohn et al.
2020, arXiv 2001.07685, section 4: mu = 7, and its ablation finds large ratios better)."""
_NAMED = 3  # images in a line


@dataclass(frozen=True)
class Unlabelled:
    """The images of a folder that has no labels, or whose labels nobody asked for.

    `name` is what the user gave. `ignored_files` are not images by their names; `unreadable` were left out for these `reasons`.
    `judging` were left out because they are among the images that judge, byte for byte, and `training` of them because they are
    among the labelled training images. `remarks`: on files that are no images here, and hold some.
    """

    name: str
    images: FolderImages | ShardImages
    ignored_files: int = 0
    unreadable: tuple[Path, ...] = ()
    reasons: tuple[str, ...] = ()
    judging: tuple[Path, ...] = ()
    training: int = 0
    remarks: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of how they were read, a line each."""
        name = printable(self.name)
        notes = [f"{name}: {len(self.images):,} images without labels, which the teacher labels"]
        if self.ignored_files:
            notes.append(f"{self.ignored_files} files in {name} are not images and were left out")
        notes += self.remarks
        if self.judging:
            named = ", ".join(printable(path.as_posix()) for path in self.judging[:_NAMED])
            more = f" and {len(self.judging) - _NAMED:,} more" if len(self.judging) > _NAMED else ""
            notes.append(
                f"{name}: left out as copies of images that judge, which must not be trained on: {len(self.judging):,} "
                f"({named}{more})"
            )
        if self.training:
            notes.append(f"{name}: left out as copies of labelled training images: {self.training:,}")
        return tuple(notes)

    def identify(self, contents: Contents) -> str:
        """Return a hash of the names below the folder and of what the files hold."""
        return self.images.identify(Path(self.name), contents).hex()


def open_unlabelled(
    name: str,
    train: ImageSet,
    judging: Sequence[ImageSet],
    contents: Contents,
    skipping: Skipping | None = None,
    cache_dir: Path | None = None,
) -> Unlabelled:
    """Open a folder of images, or of tar shards, without looking for labels; copies of images that judge are left out.

    Args:
        name: folder with images at any depth, or else with shards in the format of WebDataset; or the URL of such shards.
        train: the labelled images.
        judging: those that validate and test.
        contents: of files.
        skipping: leave out images that cannot be read; None: they are an error, as far as their headers and ends tell.
        cache_dir: keeps what was found in shards; None: a file beside them does, or in the folder of `contents`.

    Raises: DataError: if there is no such folder, no image is left of it, or one cannot be read.
    """
    if (url := as_url(name)) is not None:
        far = find_remote_shards(url, cache_dir)
        images, unreadable, reasons = read_unlabelled_shards(
            far.root, [*far.shards], skipping, far.cache_dir, contents, far
        )
        found_there = Unlabelled(far.url, images, 0, unreadable, reasons, remarks=far.remarks)
        return _leave_out_copies(found_there, train, judging, contents)
    root = Path(name)
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise DataError(
            f"the folder of unlabelled images {printable(root)} {found}; expected a folder of images or shards."
        )
    try:
        paths, others = list_files(root)
    except OSError as error:
        where = printable(error.filename or root)
        raise DataError(
            f"the folder of unlabelled images {printable(root)} cannot be read ({where}: {error.strerror})."
        ) from None
    if not paths and (shards := find_shards(root)):
        images, unreadable, reasons = read_unlabelled_shards(root, shards, skipping, cache_dir, contents)
        found_there = Unlabelled(name, images, 0, unreadable, reasons)
    else:
        found_there = _open_files(name, root, paths, others, skipping, contents)
    return _leave_out_copies(found_there, train, judging, contents)


def _open_files(
    name: str, root: Path, paths: Sequence[Path], others: list[Path], skipping: Skipping | None, contents: Contents
) -> Unlabelled:
    if not paths and others:
        raise DataError(describe_useless(root, others, "folder of unlabelled images"))
    if not paths:
        raise DataError(
            f"the folder of unlabelled images {printable(root)} is empty; put images into it, or leave it out."
        )
    useless = dict(find_unusable(paths, skipping, contents))
    kept = as_files([path for path in paths if path not in useless])
    images = FolderImages(kept, np.full(len(kept), UNKNOWN, np.int64))
    reasons, remarks = tuple(useless.values()), tuple(advise(others))
    return Unlabelled(name, images, len(others), tuple(useless), reasons, remarks=remarks)


def _leave_out_copies(
    found: Unlabelled, train: ImageSet, judging: Sequence[ImageSet], contents: Contents
) -> Unlabelled:
    judges = _find_copies(found.images, judging, contents)
    trains = _find_copies(found.images, [train], contents) & ~judges
    kept = np.flatnonzero(~judges & ~trains)
    if not len(kept):
        why = (
            "can be read"
            if not (judges.any() or trains.any())
            else "is new: all are among the images of the data folder"
        )
        raise DataError(
            f"no image of the folder of unlabelled images {printable(found.name)} {why}; add others, or leave it out."
        )
    copies = tuple(_place(found.images, int(row)).relative_to(found.name) for row in np.flatnonzero(judges))
    return replace(found, images=_take(found.images, kept), judging=copies, training=int(trains.sum()))


def _place(images: FolderImages | ShardImages, row: int) -> Path:
    return images.paths[row] if isinstance(images, FolderImages) else images.place(row)


def _take(images: FolderImages | ShardImages, rows: NDArray[np.int64]) -> FolderImages | ShardImages:
    if isinstance(images, FolderImages):
        return FolderImages(images.files.take(rows), images.labels[rows])
    return replace(images, rows=images.rows[rows])


def _find_copies(own: FolderImages | ShardImages, others: Sequence[ImageSet], contents: Contents) -> NDArray[np.bool_]:
    """Return which images are among others, byte for byte, `(N,)`; read are those of a size that is on both sides."""
    files = [
        images for images in others if isinstance(images, FolderImages | ShardImages)
    ]  # pixels in memory are no files
    sizes = [_sizes(images) for images in files]
    copies = np.isin(_sizes(own), np.concatenate(sizes)) if sizes else np.zeros(len(own), np.bool_)
    rows = np.flatnonzero(copies)
    wanted = np.unique(_sizes(own)[rows])
    known: set[bytes] = set()
    for images, each in zip(files, sizes, strict=True):
        known.update(_digests(images, np.flatnonzero(np.isin(each, wanted)), contents))
    copies[rows] = [digest in known for digest in _digests(own, rows, contents)]
    return copies


def _sizes(images: FolderImages | ShardImages) -> NDArray[np.int64]:
    """Return the sizes of the encoded images in bytes, `(N,)`."""
    if isinstance(images, ShardImages):
        return np.asarray(images.index.samples["size"][images.rows], np.int64)
    return np.asarray(images.files.status["size"], np.int64)


def _digests(images: FolderImages | ShardImages, rows: NDArray[np.int64], contents: Contents) -> list[bytes]:
    """Return digests of what the encoded images hold, as `Contents` makes them."""
    if isinstance(images, FolderImages):
        return [digest.tobytes() for digest in contents.read(images.files.take(rows))]

    def digest_sample(row: int) -> bytes:
        content = images.content(row)
        return hashlib.sha256(len(content).to_bytes(8, "little") + content).digest()[:16]

    return map_files(digest_sample, [int(row) for row in rows])


def usual_share(labelled: int, unlabelled: int) -> float:
    """Return which share of a batch has no labels where nobody says it: that of all images, so that each comes as often."""
    return min(unlabelled / (labelled + unlabelled), MOST_SHARE)


def mix_in(train: ImageSet, unlabelled: Unlabelled, share: float | None) -> TaughtImages:
    """Return the training images with those that have no labels; `share` of a batch: None: `usual_share`; 1: no others."""
    if share == 1:
        train = FolderImages((), train.labels[:0])
    wanted = usual_share(len(train), len(unlabelled.images)) if share is None else share
    return TaughtImages(train, unlabelled.images, wanted, Path(unlabelled.name))
