"""What changed between two artifacts on the same images: class by class, and image by image."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from convnext_deploy.data.datasets import Data, FolderImages
from convnext_deploy.evaluation.score import Score
from convnext_deploy.metrics.paired import LEAST_DISCORDANT, holm_p_values, mcnemar_p_value
from convnext_deploy.system.files import write_text


@dataclass(frozen=True)
class ClassChange:
    """What became of the validation images of one class. Counts of images; the drop in percentage points, positive: worse.

    `lost` were classified correctly by the baseline only, `gained` by the artifact only. `p_value` is that of the exact McNemar
    test on these images, adjusted by `compare_classes` for the number of classes.
    """

    label: int
    name: str
    total: int
    baseline_correct: int
    correct: int
    lost: int
    gained: int
    top1_drop_pp: float
    p_value: float


@dataclass(frozen=True)
class Flip:
    """An image whose first guess changed. Labels and predictions are class indices.

    `index` counts the validation images from 0; `image` is its path in the data folder, None for images without a file. `lost`:
    only the baseline is right; `gained`: only the artifact is; `other`: both are wrong, each in its way.
    """

    index: int
    image: str | None
    label: int
    baseline_prediction: int
    prediction: int
    change: Literal["lost", "gained", "other"]


def compare_classes(score: Score, baseline: Score, class_names: Sequence[str] | None = None) -> tuple[ClassChange, ...]:
    """Return the change of each class that has validation images, in the order of the classes.

    Classes with fewer than 6 images lost or gained cannot reach the 5 % level whatever the direction, so they are not counted
    as tests and have the p-value 1; the others are adjusted after Holm. Given how many images changed in each class, that
    choice is fixed, and the chance that any class is named falsely stays below 5 %.

    Args:
        score: of the artifact.
        baseline: of the same images.
        class_names: by class index; None: the indices are the names.

    Source: leaving out tests that cannot be significant: Tarone 1990, "A modified Bonferroni method for discrete data",
        Biometrics 46:515.
    """
    labels = np.array(score.labels)
    right, right_before = np.array(score.predictions) == labels, np.array(baseline.predictions) == labels
    size = int(labels.max()) + 1
    total, before, now, lost, gained = (
        np.bincount(labels[chosen], minlength=size).tolist()
        for chosen in (..., right_before, right, right_before & ~right, ~right_before & right)
    )
    tested = [label for label in range(size) if lost[label] + gained[label] >= LEAST_DISCORDANT]
    adjusted = holm_p_values([mcnemar_p_value(lost[label], gained[label]) for label in tested])
    p_values = dict(zip(tested, adjusted, strict=True))
    return tuple(
        ClassChange(
            label=label,
            name=str(label) if class_names is None else class_names[label],
            total=total[label],
            baseline_correct=before[label],
            correct=now[label],
            lost=lost[label],
            gained=gained[label],
            top1_drop_pp=100.0 * (before[label] - now[label]) / total[label],
            p_value=p_values.get(label, 1.0),
        )
        for label in range(size)
        if total[label]
    )


def find_flips(score: Score, baseline: Score, name_image: Callable[[int], str | None]) -> tuple[Flip, ...]:
    """Return the images whose first guess changed: those lost, those gained, then the others, each in order.

    Args:
        score: of the artifact.
        baseline: of the same images.
        name_image: returns the path of an image by its index, as the function from `image_namer` does.
    """
    found: dict[str, list[Flip]] = {"lost": [], "gained": [], "other": []}
    pairs = zip(score.labels, baseline.predictions, score.predictions, strict=True)
    for index, (label, before, now) in enumerate(pairs):
        if before != now:
            change: Literal["lost", "gained", "other"] = (
                "lost" if before == label else "gained" if now == label else "other"
            )
            found[change].append(Flip(index, name_image(index), label, before, now, change))
    return tuple(flip for flips in found.values() for flip in flips)


def image_namer(data: Data | None) -> Callable[[int], str | None]:
    """Return the function that names a validation image: by its path in the data folder, None for images without files."""
    if data is None:
        return lambda index: None
    root, images = Path(data.name), data.validation
    place = getattr(images, "place", None)  # in a shard

    def name(index: int) -> str | None:
        if isinstance(images, FolderImages):
            path = images.paths[index]
        elif place is not None:
            path = place(index)
        else:
            return None
        return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()

    return name


def write_flips(path: Path, name: str, baseline: str, total: int, flips: Sequence[Flip], data: Data | None) -> None:
    """Write all flips of an artifact as JSON, one image per line, completely or not at all.

    Args:
        path: of the file; its folder is made.
        name: of the artifact.
        baseline: name of the artifact that it is compared with.
        total: number of validation images.
        flips: what `find_flips` returned.
        data: whose class names are written beside them, by class index.
    """
    counts = {change: sum(flip.change == change for flip in flips) for change in ("lost", "gained", "other")}
    head = {"artifact": name, "baseline": baseline, "total": total, "flipped": len(flips), **counts}
    names = None if data is None else data.class_names
    lines = ",\n".join(json.dumps(dataclasses.asdict(flip)) for flip in flips)
    write_text(path, f'{json.dumps(head | {"class_names": names})[:-1]}, "images": [\n{lines}\n]}}\n')
