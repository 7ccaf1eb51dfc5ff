"""Score artifacts on multi-label data: mAP, AUC and what each label lost, from the logits of every image."""

import base64
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.artifacts.spec import GraphIO
from convnext_deploy.errors import ArtifactError, DataError
from convnext_deploy.evaluation.probabilities import to_label_logits
from convnext_deploy.evaluation.run_images import in_order
from convnext_deploy.metrics.multi_label import MultiLabel, measure_multi_label


@dataclass(frozen=True)
class LabelAnswers:
    """What a network answers to each image and label, `(images, labels)`, in the order of the images.

    Kept as text, because there may be millions: base64 of little-endian `logits`, float32, and of `truth`, int8: 1, 0 or -1.
    """

    images: int
    labels: int
    truth: str
    logits: str

    def truth_array(self) -> NDArray[np.int8]:
        """Return the labels, `(images, labels)`."""
        return np.frombuffer(base64.b64decode(self.truth), np.int8).reshape(self.images, self.labels)

    def logits_array(self) -> NDArray[np.float32]:
        """Return the logits, `(images, labels)`."""
        return np.frombuffer(base64.b64decode(self.logits), "<f4").reshape(self.images, self.labels)


@dataclass(frozen=True)
class KeepingLabels:
    """Keeps the logits and the labels of multi-label data, `(N, K)`, whose labels are `(N, K)`; fields as of `Guessing`."""

    outputs: NDArray[np.int64] | None = None
    io: GraphIO = GraphIO()
    gives: str = "logits"

    def convert(self, given: NDArray[Any]) -> NDArray[Any]:
        """Return the logits in the order of the labels."""
        return in_order(to_label_logits(given, self.io), self.outputs)

    def keep(
        self, found: NDArray[Any], labels: NDArray[Any], number: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
        """Return logits and labels as they are kept."""
        return found.astype("<f4"), labels.astype(np.int8)


def keep_labels(outputs: NDArray[np.int64] | None, io: GraphIO, description: str) -> KeepingLabels:
    """Return what keeps logits and labels. Raises: ArtifactError: if the graph gives the best classes alone."""
    if io.gives_best_only:
        raise ArtifactError(f"{description}: the graph gives its best classes alone, and mAP needs the scores of all.")
    return KeepingLabels(outputs, io)


def join_labels(parts: Iterable[tuple[NDArray[np.float32], NDArray[np.int8]]]) -> LabelAnswers:
    """Return the answers to all batches, in their order."""
    found, truth = zip(*parts, strict=True)
    return label_answers(np.concatenate(found), np.concatenate(truth))


def label_answers(logits: NDArray[Any], labels: NDArray[Any]) -> LabelAnswers:
    """Return logits and labels, both `(images, labels)`, as they are kept."""
    parts = labels.astype(np.int8), logits.astype("<f4")
    return LabelAnswers(*labels.shape, *(base64.b64encode(part.tobytes()).decode() for part in parts))


@functools.lru_cache(maxsize=8)
def compare_labels(answers: LabelAnswers, baseline: LabelAnswers | None = None) -> MultiLabel:
    """Measure answers, and compare them with those of a baseline to the same images.

    Raises: DataError: if they are to other images, or no image has any label.
    """
    if baseline is not None and baseline.truth != answers.truth:
        raise DataError(
            f"the two scores are not of the same images ({answers.images} and {baseline.images}); validate both on the same data."
        )
    before = None if baseline is None else baseline.logits_array()
    try:
        return measure_multi_label(answers.truth_array(), answers.logits_array(), before)
    except ValueError as error:
        raise DataError(f"mAP is not defined: {error}; give validation images with labels.") from None


def doubt_labels(found: MultiLabel) -> str | None:
    """Say that scores are no better than chance, which has an AUC of one half; None if they are better."""
    if found.auc is None or found.auc_interval is None or found.auc_interval[0] > _CHANCE:
        return None
    low, high = found.auc_interval
    return (
        f"mAP {100 * found.map:.2f} % with a mean AUC of {found.auc:.3f} [{low:.3f}, {high:.3f}], which cannot be told from chance "
        "(0.5); check what it was trained with: image size, normalization, and which output is which label"
    )


_CHANCE = 0.5
