"""How much top-1 a quantized network loses at most on new images, from the answers that it changes on a few known ones.

Three things stand between the images that judge and new ones, and each is bounded at its own number of images:

- Few images show few changed answers. Each changed answer costs what the float network's own probabilities expect of it, and the
  mean cost has an upper confidence bound that assumes nothing of what was not seen (`stringer_bound`).
- The probabilities may be too timid, as after label smoothing, or too sure, as of a network that knows its images by heart. Its
  logits are multiplied by the largest factor that the labels of the validation images do not contradict.
- The float network may know the images by heart, and then its answers hardly change. What quantization did to the logits of an
  image that it knows is therefore done to those of validation images too, which it does not know; what that costs more there is
  added. Of validation images only the float network's answers are used: no quantized network sees them before the verdict.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnext_deploy.metrics.bounds import stringer_bound

CONFIDENCE = 0.95
_PAIRS = 16  # changes of logits that are tried on each image
_COMPETING = 32  # classes that may win then
_SHARPEST = 1e4  # what one changed answer costs is then 1, but for ties
_HALVINGS = 7  # of the logarithm of a factor of 2
_TANGENTS = 5
_LIKELIHOOD_RATIO = 1.92  # in nats: half the 95 % quantile of chi-square with one degree of freedom


@dataclass(frozen=True)
class UnseenImages:
    """The float network's logits `(M, classes)` of validation images, on the CPU, and their labels, `(M,)`."""

    logits: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Risk:
    """The expected drop of top-1, and its upper confidence bound; fractions in [0, 1]."""

    expected: float
    bound: float


def bound_drop(
    reference: Tensor, logits: Tensor, unseen: UnseenImages | None = None, sharpness: float = 1.0, level: float = 0.05
) -> Risk:
    """Return how much top-1 a network loses on new images.

    Args:
        reference: the float network's logits `(N, classes)`, finite.
        logits: those of the quantized one for the same images, finite.
        unseen: images that the float network does not know; None: it does not know any.
        sharpness: from `sharpest_scale`.
        level: how often the bound may be too low.
    """
    own = answer_costs(reference, logits, sharpness)
    if unseen is None:
        return Risk(float(own.mean()), stringer_bound(own, level))
    changes = logits - reference
    known = _costs_of_changes(reference, changes, sharpness)
    new = _costs_of_changes(unseen.logits, changes, sharpness)
    expected = float(own.mean() + max(0.0, new.mean() - known.mean()))
    # each half of the bound may be wrong half as often
    largest = float(max(new.max(), known.max(), np.finfo(np.float64).tiny))
    surcharge = max(0.0, largest * stringer_bound(new / largest, level / 2) - float(known.mean()))
    return Risk(expected, min(1.0, stringer_bound(own, level / 2) + surcharge))


def answer_costs(reference: Tensor, logits: Tensor, sharpness: float = 1.0) -> NDArray[np.float64]:
    """Return what top-1 loses by each answer, `(N,)` in [0, 1], if the float network's sharpened probabilities are right.

    Where the answer changes from class a to class b, it is `p_a - p_b`, and 0 where it does not; both `(N, classes)`.
    """
    return _costs(_probabilities(reference, sharpness), reference.argmax(1), logits.argmax(1))


def sharpest_scale(unseen: UnseenImages) -> float:
    """Return the largest factor of the logits that the labels do not contradict: below 1 for a network that is too sure.

    It is the upper end of the 95 % likelihood interval of the factor; where every answer is right no factor is too large.
    """
    logits, rows = unseen.logits, torch.arange(len(unseen.labels))
    below = logits - logits[rows, unseen.labels][:, None]  # of every class, over that of the label

    def loss(scale: float) -> float:
        return (scale * below).logsumexp(1).double().sum().item()

    def slope(scale: float) -> float:
        return ((scale * below).softmax(1) * below).double().sum().item()

    # the loss is convex in the factor, and least where its slope is 0
    low = high = 1.0
    while high < _SHARPEST and slope(high) < 0:
        low, high = high, 2 * high
    while low > 1 / _SHARPEST and slope(low) >= 0:
        low, high = low / 2, low
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    allowed = loss(high) + _LIKELIHOOD_RATIO
    while high < _SHARPEST and loss(high) < allowed:
        high *= 2
    for _ in range(_TANGENTS):  # from above, where the tangent of a convex function never leads too low
        over, steepness = loss(high) - allowed, slope(high)
        if over > 0 and steepness > 0:
            high -= over / steepness
    return min(high, _SHARPEST)


def _probabilities(reference: Tensor, sharpness: float) -> Tensor:
    return (sharpness * reference.double()).softmax(1)


def _costs(probabilities: Tensor, before: Tensor, now: Tensor) -> NDArray[np.float64]:
    lost = probabilities.gather(1, before[:, None]) - probabilities.gather(1, now[:, None])
    found: NDArray[np.float64] = lost.squeeze(1).clamp(0.0, 1.0).numpy()
    return found


def _costs_of_changes(reference: Tensor, changes: Tensor, sharpness: float) -> NDArray[np.float64]:
    """Return the mean cost of each image's answer if its logits `(M, classes)` changed as those of other images, `(N, classes)`.

    Only the likeliest classes of an image compete; the others are too far off to win by what quantization does to the logits.
    """
    largest, classes = reference.topk(min(_COMPETING, reference.shape[1]))
    normalizer = (sharpness * reference).logsumexp(1, keepdim=True)
    probabilities, before = (
        (sharpness * largest - normalizer).exp().double(),
        torch.zeros(len(reference), dtype=torch.int64),
    )
    rng = np.random.default_rng(len(changes))
    costs = np.zeros(len(reference))
    for _ in range(_PAIRS):
        others = torch.from_numpy(rng.integers(0, len(changes), len(reference)))
        costs += _costs(probabilities, before, (largest + changes[others[:, None], classes]).argmax(1))
    return costs / _PAIRS
