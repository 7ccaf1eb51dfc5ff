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
from convnext_deploy.evaluation.run_images import in_order, run_images
from convnext_deploy.runners import Runner
from convnext_deploy.system.progress import Progress


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


def score_runner(
    runner: Runner,
    batches: Iterable[tuple[Any, Any]],
    total: int,
    progress: Progress,
    description: str,
    outputs: NDArray[np.int64] | None = None,
    io: GraphIO | None = None,
    *,
    foreign: bool = False,
) -> Score:
    """Run every validation image through an opened artifact.

    Args:
        runner: opened.
        batches: pairs of images and labels `(N,)`, as tensors; the images are pixels `(N, S, S, C)` uint8, or normalized
            `(N, C, S, S)` float32.
        total: number of images, for the progress display.
        progress: where to report.
        description: what the progress display shows.
        outputs: the output of the runner that stands for each class of the labels, `(classes,)`; None: they are in order.
        io: what the runner's graph gives; None: logits.
        foreign: whether the graph is of another origin, and may give probabilities without saying so.

    Where the memory is too small for a batch, it goes on with smaller ones and says so.

    Raises:
        ArtifactError: if a logit is not finite.
        TooLittleMemoryError: if it is too small for a single image.
    """
    predictions: list[NDArray[np.int64]] = []
    labels: list[NDArray[np.int64]] = []
    confidences: list[NDArray[np.float64]] = []
    correct_top5 = 0
    io = io or GraphIO()
    knows = not io.gives_best_logits
    for found, target in run_images(runner, batches, total, progress, description, in_order(outputs)):
        # Stable sort on the negated logits: among equal logits the lower class wins, in every backend alike.
        order = np.argsort(-found, axis=1, kind="stable")[:, :5]
        correct_top5 += int((order == target[:, None]).any(axis=1).sum())
        predictions.append(order[:, 0])
        if knows:
            confidences.append(to_probabilities(found, io, foreign).max(axis=1))
        labels.append(target)
    guessed, truth = np.concatenate(predictions), np.concatenate(labels)
    sure = np.concatenate(confidences) if knows else np.zeros(0)
    correct = int((guessed == truth).sum())
    return Score(correct, correct_top5, tuple(guessed.tolist()), tuple(truth.tolist()), tuple(sure.tolist()))
