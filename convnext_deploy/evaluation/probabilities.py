"""Class probabilities from what a runner gives."""

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.artifacts.spec import GraphIO

_SUM_ERROR = 1e-3  # of probabilities in half precision


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
