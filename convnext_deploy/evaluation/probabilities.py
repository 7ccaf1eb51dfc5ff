"""Class probabilities from what a runner gives."""

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.artifacts.spec import GraphIO

_SUM_ERROR = 1e-3  # of probabilities in half precision

_SMALLEST = 1e-12  # of a probability, and of what it lacks to 1


def to_label_logits(values: NDArray[np.float32], io: GraphIO) -> NDArray[np.float64]:
    """Return the logits `(N, K)` of what a runner gives of a multi-label network: of probabilities, their logarithms."""
    logits = values.astype(np.float64)
    if io.output == "logits":
        return logits
    yes = np.clip(np.exp(logits), _SMALLEST, 1 - _SMALLEST)
    return np.asarray(np.log(yes) - np.log1p(-yes))


def to_label_probabilities(values: NDArray[np.float32], io: GraphIO) -> NDArray[np.float64]:
    """Return the probability of each label, `(N, K)`: the sigmoid of the logits."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -to_label_logits(values, io))))


def to_probabilities(logits: NDArray[np.float32], io: GraphIO, foreign: bool) -> NDArray[np.float64]:
    """Return the probabilities `(N, classes)` of what a runner gives, `(N, classes)` float32.

    That is the softmax, but for graphs that give probabilities, whose logarithms runners return. A graph of another origin may end
    in a softmax and not say so; what is positive there and sums to one is taken for probabilities.
    """
    values = logits.astype(np.float64)
    if io.output != "logits":
        return np.exp(values)
    if foreign and (values >= 0).all() and (np.abs(values.sum(axis=1) - 1) < _SUM_ERROR).all():
        return values
    exponentials = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))
