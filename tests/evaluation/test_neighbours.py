"""Nearest neighbours vote as DINO's evaluation says, and features are compared by their angle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from convnext_deploy.evaluation.feature_score import count_votes
from convnext_deploy.metrics.neighbours import TEMPERATURE, compare_features, neighbour_votes, unit

K, CLASSES = 20, 5


def draw(count: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    features = rng.standard_normal((count, 16)) + 1.5 * np.eye(16)[labels]
    return features.astype(np.float32), labels


def dino(
    queries: NDArray[np.float32], gallery: NDArray[np.float32], labels: NDArray[np.int64], k: int
) -> NDArray[np.float64]:
    """The votes as `eval_knn.py` of DINO counts them, with torch."""
    test, train = (torch.nn.functional.normalize(torch.from_numpy(x).double(), dim=1) for x in (queries, gallery))
    distances, indices = (test @ train.T).topk(k, largest=True, sorted=True)
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(labels)[indices], CLASSES)
    votes = (one_hot * (distances / TEMPERATURE).exp()[:, :, None]).sum(1)
    return np.asarray((votes / votes.sum(1, keepdim=True)).numpy())


def test_votes_are_those_of_dino() -> None:
    (queries, _), (gallery, labels) = draw(700, 1), draw(300, 2)
    found = neighbour_votes(queries, gallery, labels, CLASSES)
    np.testing.assert_allclose(found, dino(queries, gallery, labels, K), rtol=1e-4, atol=1e-6)


def test_none_votes_for_itself_and_of_few_all_vote() -> None:
    features, labels = draw(40, 3)
    found = neighbour_votes(features, features, labels, CLASSES, own=np.arange(40))
    for place in range(40):
        others = np.arange(40) != place
        expected = dino(features[place : place + 1], features[others], labels[others], K)[0]
        np.testing.assert_allclose(found[place], expected, rtol=1e-4, atol=1e-6)
    few = neighbour_votes(features, features[:3], labels[:3], CLASSES)
    np.testing.assert_allclose(few, dino(features, features[:3], labels[:3], 3), rtol=1e-4, atol=1e-6)
    alone = neighbour_votes(features[:1], features[:1], labels[:1], CLASSES, own=np.arange(1))
    assert not alone.any()


def test_what_has_no_vote_is_no_guess() -> None:
    votes = np.array([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5], [0.2, 0.8, 0.0]])
    score = count_votes(votes, np.array([1, 2, 2]))
    assert (score.metric, score.correct, score.correct_top5) == ("kNN top-1", 1, 2)
    assert score.predictions == (1, 0, 1)


def test_similarity_is_the_mean_cosine() -> None:
    rng = np.random.default_rng(0)
    one = rng.standard_normal((50, 4, 8))
    other = one + 0.1 * rng.standard_normal(one.shape)
    cosines = torch.nn.functional.cosine_similarity(torch.from_numpy(one), torch.from_numpy(other), dim=-1).mean(1)
    found = compare_features(unit(3 * one).astype(np.float16), unit(other).astype(np.float16))
    assert found.mean == pytest.approx(float(cosines.mean()), abs=1e-5)
    assert found.lowest == pytest.approx(float(cosines.min()), abs=1e-4)
    assert (found.images, found.places) == (50, 4)
    low, high = found.interval
    assert high - low == pytest.approx(2 * 1.96 * float(cosines.std()) / 50**0.5, rel=0.01)
    assert not unit(np.zeros((1, 3))).any()
