"""Tell from a score whether the classes are right but for their numbers: from a confusion matrix that is a permutation."""

import math

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.data.agreement import outputs_of_classes
from convnext_deploy.data.class_names import NATURAL, ORDER_WORDS, SORTED, in_order
from convnext_deploy.data.datasets import Data
from convnext_deploy.evaluation.score import Score

_HIGH = 0.6  # share of the images of renumbered classes whose answers agree with the new numbers
_LOG_CHANCE = math.log(1e-3)  # of what is found, after the choice among all permutations
_MOST_NAMED = 10


def find_permutation(score: Score, classes: int) -> dict[int, int]:
    """Return class → answer for the classes that a network answers under another class's number; empty where there are none.

    A class and an answer belong together where each is the other's most frequent one. That must make a permutation of at least two
    classes, hold for most of their images, and be beyond what a choice among at most K^m permutations of m of K classes finds in
    answers that are chance, by Chernoff's bound on the binomial tail.
    """
    labels, answers = np.array(score.labels), np.array(score.predictions)
    pairs, counts = np.unique(labels * classes + answers, return_counts=True)
    rows, columns = pairs // classes, pairs % classes
    best_answer, best_label = _most_frequent(rows, columns, counts), _most_frequent(columns, rows, counts)
    moved = {row: column for row, column in best_answer.items() if row != column and best_label[column] == row}
    while odd := set(moved) ^ set(moved.values()):  # what does not come back to itself is no permutation
        moved = {row: column for row, column in moved.items() if row not in odd and column not in odd}
    if len(moved) < 2:
        return {}
    of_moved = np.isin(labels, list(moved))
    images = int(of_moved.sum())
    hits = sum(int(count) for row, column, count in zip(rows, columns, counts, strict=True) if moved.get(row) == column)
    if hits < _HIGH * images or len(moved) * math.log(classes) + _log_tail(hits, images, 1 / classes) > _LOG_CHANCE:
        return {}
    return moved


def _most_frequent(keys: NDArray[np.int64], values: NDArray[np.int64], counts: NDArray[np.int64]) -> dict[int, int]:
    """Return the value with the largest count for each key."""
    order = np.argsort(counts, kind="stable")  # of equal keys the last one stays
    return {int(keys[place]): int(values[place]) for place in order}


def _log_tail(hits: int, images: int, chance: float) -> float:
    """Return the logarithm of Chernoff's bound on the probability of so many hits or more, for hits above their mean."""
    share = hits / images
    if share <= chance:
        return 0.0
    rest = 0.0 if share == 1 else (1 - share) * math.log((1 - share) / (1 - chance))
    return -images * (share * math.log(share / chance) + rest)


def describe_permutation(score: Score, artifact: Artifact, data: Data) -> str | None:
    """Say which classes are answered under another's number, what top-1 would be, and what to do; None where none are."""
    if not artifact.model.num_classes:
        return None
    names, found = data.class_names, outputs_of_classes(artifact, data)
    moved = find_permutation(score, len(names))
    if not moved:
        return None
    outputs = np.arange(len(names)) if found is None else found
    right = sum(
        moved.get(label, label) == answer for label, answer in zip(score.labels, score.predictions, strict=True)
    )
    ordered = {int(outputs[moved.get(label, label)]): name for label, name in enumerate(names)}
    proposed = tuple(ordered[output] for output in range(len(names)))
    order = next((order for order in (NATURAL, SORTED) if in_order(names, order) == proposed), None)
    shown = [(int(outputs[answer]), names[label]) for label, answer in moved.items()]
    some = ", ".join(f"output {output} is '{name}'" for output, name in sorted(shown)[:_MOST_NAMED])
    more = f" and {len(moved) - _MOST_NAMED} more" if len(moved) > _MOST_NAMED else ""
    return (
        f"WRONG NUMBERS: top-1 is {100 * score.top1:.2f} %, and {100 * right / score.total:.2f} % if the classes are numbered "
        f"anew: {some}{more}" + (f", which is {ORDER_WORDS[order]}" if order else "") + "; check it on a few images "
        "('convnext-deploy predict') and give a file with the names in that order with --classes FILE"
    )
