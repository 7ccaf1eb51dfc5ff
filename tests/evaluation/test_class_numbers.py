"""A confusion matrix that is a permutation is told from a bad network, from chance and from classes that look alike."""

from __future__ import annotations

import numpy as np
import pytest

from convnext_deploy.evaluation.class_numbers import find_permutation
from convnext_deploy.evaluation.score import Score


def score(labels: np.ndarray, answers: np.ndarray) -> Score:
    right = int((labels == answers).sum())
    return Score(right, right, tuple(answers.tolist()), tuple(labels.tolist()))


def answers_of(labels: np.ndarray, permutation: np.ndarray, accuracy: float, seed: int) -> Score:
    """Answer right, under other numbers, with a probability, and else at random."""
    rng = np.random.default_rng(seed)
    chance = rng.integers(0, len(permutation), len(labels))
    return score(labels, np.where(rng.random(len(labels)) < accuracy, permutation[labels], chance))


@pytest.mark.parametrize(("classes", "images", "accuracy"), [(2, 40, 0.9), (10, 80, 0.9), (1000, 20_000, 0.75)])
def test_a_permutation_is_found(classes: int, images: int, accuracy: float) -> None:
    labels = np.arange(images) % classes
    permutation = np.roll(np.arange(classes), 1)
    moved = find_permutation(answers_of(labels, permutation, accuracy, 0), classes)
    assert moved == dict(enumerate(permutation.tolist()))


def test_two_classes_of_many_that_changed_places_are_found() -> None:
    labels = np.arange(500) % 20
    permutation = np.arange(20)
    permutation[[3, 7]] = 7, 3
    assert find_permutation(answers_of(labels, permutation, 0.9, 0), 20) == {3: 7, 7: 3}


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
@pytest.mark.parametrize("accuracy", [0.0, 0.4, 0.9])
def test_networks_with_the_right_numbers_are_left_alone(classes: int, accuracy: float) -> None:
    labels = np.arange(max(20, 3 * classes)) % classes
    for seed in range(100):
        assert not find_permutation(answers_of(labels, np.arange(classes), accuracy, seed), classes)


def test_few_images_tell_nothing() -> None:
    assert not find_permutation(score(np.arange(10), np.roll(np.arange(10), 1)), 10)
    assert not find_permutation(score(np.arange(4) % 2, 1 - np.arange(4) % 2), 2)
    assert not find_permutation(score(np.arange(60) % 3, np.full(60, 1)), 3)  # always the same answer
