"""Compare how sure two scores are with how often they are right."""

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.evaluation.score import Score
from convnext_deploy.metrics.calibration import Calibration, Vector, measure_calibration


def compare_calibration(score: Score, baseline: Score | None = None) -> Calibration | None:
    """Return the calibration of a score, and how that changed against a baseline's; None where it has no probabilities.

    Args:
        score: of an artifact.
        baseline: of the same images; one without probabilities counts as None, which compares nothing.
    """
    if not score.confidences:
        return None
    before = None if baseline is None or not baseline.confidences else _pair(baseline)
    return measure_calibration(*_pair(score), before)


def _pair(score: Score) -> tuple[Vector, NDArray[np.bool_]]:
    return np.array(score.confidences), np.equal(score.predictions, score.labels)
