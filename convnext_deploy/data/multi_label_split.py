"""Hold out validation images of data with any number of labels an image, so that each label has its share on both sides."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.data.contents import Contents
from convnext_deploy.data.splits import Split, group_equal_files, group_finder, join_groups
from convnext_deploy.errors import DataError


def hold_out_labels(
    paths: Sequence[Path], labels: NDArray[np.int8], root: Path, split: Split, contents: Contents
) -> tuple[list[Path], list[Path]]:
    """Hold out `split.fraction` of the images of each label, as nearly as its images allow, and of those without any.

    Images of equal contents stay together, and so do those of a group. They are taken in the order of a hash of the seed and their
    names, so that the result depends neither on the order on disk nor on where the folder lies. The label with the fewest images
    left comes first, as in iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011, "On the stratification of multi-label
    data"): its next image goes to the side that lacks it most.

    Args:
        paths: of the images.
        labels: `(N, K)`, 1 where an image has a label.
        root: the data folder.
        split: how many, the seed and the groups.
        contents: of the files.

    Returns: the images for training and those for validation.
    Raises: DataError: if the fraction is out of range, or one side has no image.
    """
    if not 0 < split.fraction < 1:
        raise DataError(
            f"validation_fraction = {split.fraction} is out of range; expected more than 0 and less than 1."
        )
    place = {path: row for row, path in enumerate(paths)}
    groups = [[paths[place] for place in group] for group in group_equal_files(paths, contents)]
    if split.groups is not None:
        find = group_finder(split.groups)
        by_name: dict[str, list[Path]] = {}
        for path in paths:
            by_name.setdefault(find(os.fsencode(path.relative_to(root).as_posix())), []).append(path)
        groups = join_groups([*groups, *by_name.values()])

    def rank(path: Path) -> bytes:
        name = os.fsencode(path.relative_to(root).as_posix())
        return hashlib.sha256(f"{split.seed}\0".encode() + name).digest()

    ordered = sorted(groups, key=lambda group: min(map(rank, group)))
    counts = np.array(
        [np.append((labels[[place[p] for p in group]] == 1).sum(axis=0), len(group)) for group in ordered]
    )
    held = _stratify(counts, split.fraction)
    chosen = {path for group, is_held in zip(ordered, held, strict=True) if is_held for path in group}
    train, validation = [p for p in paths if p not in chosen], [p for p in paths if p in chosen]
    if not train or not validation:
        raise DataError(
            f"{len(paths)} images in {len(groups)} groups of equal or related ones are too few to hold out some."
        )
    return train, validation


def _stratify(counts: NDArray[np.int64], fraction: float) -> NDArray[np.bool_]:
    """Return which groups are held out, of `counts (groups, labels + 1)`: images with each label, and all, in each group."""
    shares = np.array([1.0 - fraction, fraction])
    wanted = counts.sum(axis=0) * shares[:, None]  # (2, labels + 1)
    # of two images of a label one is on each side, whatever the fraction
    several = (counts > 0).sum(axis=0) > 1
    wanted[1] = np.where(several, np.maximum(wanted[1], 1.0), wanted[1])
    wanted[0] = counts.sum(axis=0) - wanted[1]
    held = np.zeros(len(counts), np.bool_)
    free = np.ones(len(counts), np.bool_)
    left = (counts > 0).sum(axis=0)
    queues = [list(np.flatnonzero(column)[::-1]) for column in counts.T]
    total = np.maximum(counts.sum(axis=0) * shares[:, None], 1e-9)
    for _ in range(len(counts)):
        column = int(np.where(left[:-1] > 0, left[:-1], len(counts) + 1).argmin())
        if not left[column]:
            column = counts.shape[1] - 1  # those without a label
        while not free[group := int(queues[column].pop())]:
            pass
        need = wanted[:, column] / total[:, column]
        side = int(need[1] > need[0] or (need[1] == need[0] and wanted[1, -1] > wanted[0, -1]))
        held[group], free[group] = bool(side), False
        wanted[side] -= counts[group]
        left = left - (counts[group] > 0)
    return held
