"""Top-1 and top-5 as counts, with the prediction for every image and how sure it is."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.artifacts.spec import GraphIO
from convnext_deploy.config.choices import MetricName
from convnext_deploy.evaluation.label_score import LabelAnswers, compare_labels
from convnext_deploy.evaluation.probabilities import to_probabilities
from convnext_deploy.evaluation.run_images import in_order


@dataclass(frozen=True)
class Score:
    """Counts over the validation images.

    `predictions` and `labels` are `(total,)` class indices in the order of the images, so that two artifacts are compared image
    by image. `confidences` are the probabilities of the predictions, 0 to 1; empty where they are not known, as of a graph that
    gives the largest logits alone. `metric` says what the counts are of.
    Of multi-label data there are `answers`, and nothing else.
    """

    correct: int
    correct_top5: int
    predictions: tuple[int, ...]
    labels: tuple[int, ...]
    confidences: tuple[float, ...] = ()
    metric: MetricName = "top-1"
    answers: LabelAnswers | None = None

    @property
    def total(self) -> int:
        """Number of images."""
        return len(self.labels) if self.answers is None else self.answers.images

    @property
    def value(self) -> float:
        """What is scored, a fraction, see `metric`."""
        return self.top1 if self.answers is None else compare_labels(self.answers).map

    @property
    def top1(self) -> float:
        """Fraction of images whose first guess is right."""
        self._check_counted()
        return self.correct / self.total

    @property
    def top5(self) -> float:
        """Fraction of images whose label is among the first five guesses (all guesses, with fewer than five classes)."""
        self._check_counted()
        return self.correct_top5 / self.total

    def _check_counted(self) -> None:
        if self.answers is not None:
            raise TypeError("multi-label data has no first guess that is right or wrong")


@dataclass(frozen=True)
class Guesses:
    """The first guesses for a batch, `(N,)`, how many labels are among the first five, probabilities `(N,)`, and the labels."""

    predictions: NDArray[np.int64]
    in_five: int
    confidences: NDArray[np.float64]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Guessing:
    """Keeps of logits what top-1 and top-5 need.

    `outputs`: the output of the artifact that stands for each class of the labels, `(classes,)`; None: they are in order. `io`:
    what its graph gives. `foreign`: that is of another origin, and may give probabilities without saying so.
    """

    outputs: NDArray[np.int64] | None = None
    io: GraphIO = GraphIO()
    foreign: bool = False
    gives: str = "logits"

    def convert(self, given: NDArray[Any]) -> NDArray[Any]:
        """Return the logits in the order of the classes."""
        return in_order(given, self.outputs)

    def keep(self, found: NDArray[Any], labels: NDArray[Any], number: int) -> Guesses:
        """Return the guesses for a batch."""
        # Stable sort on the negated logits: among equal logits the lower class wins, in every backend alike.
        order = np.argsort(-found, axis=1, kind="stable")[:, :5]
        is_known = not self.io.gives_best_logits
        sure = to_probabilities(found, self.io, self.foreign).max(axis=1) if is_known else np.zeros(0)
        return Guesses(order[:, 0], int((order == labels[:, None]).any(axis=1).sum()), sure, labels)


def count_guesses(parts: Iterable[Guesses]) -> Score:
    """Return the score of the guesses for all batches, in their order."""
    found = list(parts)
    guessed, sure, truth = (
        np.concatenate([getattr(part, name) for part in found]) for name in ("predictions", "confidences", "labels")
    )
    correct, in_five = int((guessed == truth).sum()), sum(part.in_five for part in found)
    return Score(correct, in_five, tuple(guessed.tolist()), tuple(truth.tolist()), tuple(sure.tolist()))
