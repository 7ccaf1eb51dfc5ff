"""How much mAP a quantized network loses at most on new images: `drop_bound` for multi-label data.

What the float network's own probabilities expect of a ranking is its average precision with each image counting as `p` images that
have the label and `1 - p` that have it not. The float network's ranking is the best by that, and what another ranking has less is
the expected drop; no label is looked at. The bound adds what few images leave open: the spread over draws of the images, and what a
change that was seen on none of them may cost, as where all of a proportion's trials are without an event (Clopper, Pearson 1934).
As in `drop_bound`, the probabilities are sharpened as far as the labels of unseen images allow, and what quantization did to the
logits of images that the network knows is also done to those of images that it does not know.
"""

from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnext_deploy.metrics.bounds import clopper_pearson_upper
from convnext_deploy.metrics.multi_label import UNKNOWN, effective_number, measure_multi_label
from convnext_deploy.stages.drop_bound import Risk, UnseenImages, sharpest_scale

_DRAWS = 100
_AT_ONCE = 8_000_000  # weights
_SEED = 0x1AB
Array = NDArray[np.float64]


def images_that_count(labels: Tensor) -> int:
    """Return how many images say as much of a proportion as the mean over the labels does, of `(N, K)`; see `effective_number`."""
    known = labels.numpy().astype(np.int8)
    return max(1, int(effective_number((known == 1).sum(axis=0), known)))


def measure_drop_of_map(labels: Tensor, before: Tensor, now: Tensor) -> tuple[float, float, tuple[float, float], float]:
    """Return mAP, what it is below that of `before` in pp, the 95 % interval of that, and the share of equal answers.

    All are `(N, K)`; without an image that has a label, mAP is 0, and nothing is known of the drop.
    """
    truth = labels.numpy().astype(np.int8)
    if not (truth == 1).any():
        return 0.0, 0.0, (-100.0, 100.0), float(((before > 0) == (now > 0)).double().mean())
    found = measure_multi_label(truth, now.double().numpy(), before.double().numpy())
    assert found.drop_pp is not None and found.drop_interval_pp is not None and found.agreement is not None  # noqa: PT018
    return found.map, found.drop_pp, found.drop_interval_pp, found.agreement


def bound_drop_of_map(
    reference: Tensor,
    logits: Tensor,
    counted: int,
    unseen: UnseenImages | None = None,
    sharpness: float = 1.0,
    level: float = 0.05,
) -> Risk:
    """Return how much mAP a network loses on new images; arguments as `drop_bound.bound_drop`.

    `counted`: of how many images the labels judge, see `images_that_count`.
    """
    own, spread = _expected_drop(reference, logits, sharpness)
    part = level if unseen is None else level / 2
    nothing_seen = float(clopper_pearson_upper(0, counted, part)[0])
    bound = own + NormalDist().inv_cdf(1 - part) * spread + nothing_seen
    if unseen is None:
        return Risk(own, min(1.0, bound))
    rng = np.random.default_rng(len(logits))
    places = torch.from_numpy(rng.integers(0, len(logits), len(unseen.logits)))
    changed = unseen.logits + (logits - reference)[places]
    new, new_spread = _expected_drop(unseen.logits, changed, sharpness)
    surcharge = max(0.0, new - own)
    spread = NormalDist().inv_cdf(1 - part) * float(np.hypot(spread, new_spread)) if surcharge else 0.0
    return Risk(min(1.0, own + surcharge), min(1.0, bound + surcharge + spread))


def sharpest_label_scale(unseen: UnseenImages) -> float:
    """Return `sharpest_scale` of the answers to single labels, each of which is a choice between yes and no."""
    known = unseen.labels != UNKNOWN
    answers = unseen.logits[known]
    if not len(answers):
        return 1.0
    return sharpest_scale(UnseenImages(torch.stack([torch.zeros_like(answers), answers], dim=1), unseen.labels[known]))


def _expected_drop(reference: Tensor, logits: Tensor, sharpness: float) -> tuple[float, float]:
    """Return the expected drop of mAP, a fraction, and its standard error over draws of the images."""
    probabilities = (sharpness * reference.double()).sigmoid().numpy()
    rows, count = np.random.default_rng(_SEED), len(probabilities)
    once = np.ones((1, count))
    pairs = [
        (
            probabilities[:, k],
            np.argsort(-reference[:, k].numpy(), kind="stable"),
            np.argsort(-logits[:, k].numpy(), kind="stable"),
        )
        for k in range(probabilities.shape[1])
    ]

    def drop(weights: Array) -> Array:
        lost = [_soft_precision(p, before, weights) - _soft_precision(p, now, weights) for p, before, now in pairs]
        return np.asarray(np.mean(lost, axis=0))

    measured = float(drop(once)[0])
    if all((before == now).all() for _, before, now in pairs):
        return 0.0, 0.0
    drawn, left = [], _DRAWS
    while left:
        draws = min(left, max(1, _AT_ONCE // count))
        places = rows.integers(0, count, (draws, count)) + count * np.arange(draws)[:, None]
        drawn.append(drop(np.bincount(places.ravel(), minlength=draws * count).reshape(draws, count).astype(float)))
        left -= draws
    return max(0.0, measured), float(np.concatenate(drawn).std())


def _soft_precision(probabilities: Array, order: NDArray[np.int64], weights: Array) -> Array:
    """Return the average precision of an order of images, `(draws,)`, each with the label as often as its probability says."""
    ordered = weights[:, order]
    hits = ordered * probabilities[order]
    precision = np.cumsum(hits, axis=1) / np.maximum(np.cumsum(ordered, axis=1), 1e-12)
    return np.asarray((hits * precision).sum(axis=1) / np.maximum(hits.sum(axis=1), 1e-12))
