"""Is a score more than guessing gives, and what is known of the network? If not, what to check, in words."""

from collections.abc import Sequence

import numpy as np

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.spec import Preprocess
from convnext_deploy.config.image_size import show_size
from convnext_deploy.data.datasets import Data
from convnext_deploy.evaluation.references import Reference, find_reference
from convnext_deploy.evaluation.score import Score
from convnext_deploy.metrics.intervals import wilson_interval

_NEAR = 0.1  # of the way from guessing to 100 %, below which a network is little better than guessing
_CHECK = "check what it was trained with"
_FAR_PP = 3.0  # further below a known figure than other releases, another crop or chance bring


def doubt_score(score: Score, artifact: Artifact, data: Data | None) -> str | None:
    """Say why a network seems not to work as it was evaluated, and what to check; None if it seems to.

    Args:
        score: of the artifact.
        artifact: as it was evaluated.
        data: what was scored; None: classes go by the names of the artifact, and nothing is known of the images.
    """
    names = artifact.class_names if data is None else data.class_names
    found = find_guessing(score, artifact.model.num_classes or len(names or ()) or 1, names)
    if found is None and data is not None and (reference := find_reference(artifact, data)) is not None:
        found = find_shortfall(score, reference)
    return None if found is None else f"{found}; {_what_to_check(artifact, artifact.class_names or names)}"


def find_guessing(score: Score, num_classes: int, class_names: Sequence[str] | None = None) -> str | None:
    """Say in what way a score is no better than guessing, or too little to mean that anything works; None if it is better.

    Guessing is right for one image in `num_classes`, and always naming the most frequent class as often as that class has images.
    A score is chance level where the 95 % interval of its top-1 (Wilson 1927) reaches down to that share, and little better below
    twice that share, or a tenth of the way from there to 100 % (whichever is lower).

    Args:
        score: of one image or more.
        num_classes: of the network, at least 1.
        class_names: by class index; None: the indices are the names.
    """
    top1, guessed, total = score.top1, 1 / num_classes, score.total
    low, high = wilson_interval(score.correct, total)
    counts = np.bincount(score.labels)
    most, share = int(counts.argmax()), float(counts.max() / total)
    measured = f"{score.metric} {100 * top1:.2f} % on {total:,} image{'' if total == 1 else 's'}"

    def name(label: int) -> str:
        return str(label) if class_names is None else f"'{class_names[label]}'"

    if len(set(score.predictions)) == 1 and share < 1:
        return f"{measured}: it answers {name(score.predictions[0])} to every image"
    gives = f"gives {100 * guessed:.3g} % with {num_classes:,} class{'' if num_classes == 1 else 'es'}"
    by_chance, is_near = f"guessing {gives}", top1 < min(2 * guessed, guessed + _NEAR * (1 - guessed))
    if high < guessed:
        return f"{measured} is worse than guessing: {by_chance}"
    if low <= guessed and is_near:
        return f"{measured} is chance level: {by_chance}"
    if low <= guessed:
        return f"{measured} cannot be told from chance level (95 % interval from {100 * low:.1f} %): {by_chance}"
    if is_near:
        return f"{measured} is little better than guessing, which {gives}"
    if top1 <= share:
        return f"{measured} is no better than always answering {name(most)}, which gives {100 * share:.2f} %"
    return None


def find_shortfall(score: Score, reference: Reference) -> str | None:
    """Say that a score is far below what is known of the network: by more than 3 pp, beyond its 95 % interval; None if not."""
    if wilson_interval(score.correct, score.total)[1] >= reference.top1 - _FAR_PP / 100:
        return None
    return (
        f"top-1 {100 * score.top1:.2f} % on {score.total:,} images is far below the {100 * reference.top1:.2f} % "
        f"{reference.source}"
    )


def _what_to_check(artifact: Artifact, class_names: Sequence[str] | None) -> str:
    """Return what a network that does not work may have been given wrongly, each with the value it was given.

    Args:
        artifact: as it was evaluated.
        class_names: by class index; None: they go by number.
    """
    own = artifact.preprocess
    if not artifact.model.num_classes:
        return f"{_CHECK}: {_shown(own)}"
    order = _order(class_names) if class_names else "by number"
    if artifact.class_names is None or artifact.class_order is not None:
        order += ", the data's, because the file names none"
    trained_here = any(record.kind in ("train", "distill", "qat") for record in artifact.lineage)
    other = (
        "it may also have learned too little: train for more epochs"
        if trained_here
        else "say what differs with --image-size, --crop-pct, --mean, --std, --classes FILE"
    )
    return f"{_CHECK}: {_shown(own)}, order of the classes (here {order}); {other}"


def _shown(own: Preprocess) -> str:
    return (
        f"image size (here {show_size(own.image_size)}), crop (here {_crop(own)}), normalization (here mean {_numbers(own.mean)}, "
        f"std {_numbers(own.std)})"
    )


def _crop(own: Preprocess) -> str:
    is_square = isinstance(own.image_size, int)
    resized = (
        "both sides" if own.crop_mode == "squash" else "the shorter side" if is_square else "with its aspect kept,"
    )
    return f"{own.crop_pct:.3g}, {resized} resized to {show_size(own.resize_size)}, {own.interpolation}"


def _numbers(values: Sequence[float]) -> str:
    return "/".join(f"{value:.4g}" for value in values)


def _order(names: Sequence[str]) -> str:
    shown = [f"{label} = {names[label]}" for label in range(min(3, len(names)))]
    if len(names) > 3:
        shown += [*(["…"] if len(names) > 4 else []), f"{len(names) - 1} = {names[-1]}"]
    return ", ".join(shown)
