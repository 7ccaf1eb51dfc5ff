"""Average precision and AUC of labels: against scikit-learn, with unknown labels, and whether their intervals hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from convnext_deploy.config.recipe import Gate
from convnext_deploy.errors import DataError, RecipeError
from convnext_deploy.evaluation.gate import judge
from convnext_deploy.evaluation.label_score import LabelAnswers, doubt_labels
from convnext_deploy.evaluation.limits import check_gate
from convnext_deploy.evaluation.score import Score
from convnext_deploy.metrics.multi_label import (
    UNKNOWN,
    average_precision,
    effective_number,
    mean_average_precision,
    measure_multi_label,
    unseen,
)
from convnext_deploy.reports.label_rows import label_accuracy, remarks_on_labels


def draw(
    images: int, shares: list[float], seed: int, signal: float = 1.5
) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Return labels of these shares, and scores that tell them more or less."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((images, len(shares))) < shares).astype(np.int8)
    return labels, rng.normal(size=labels.shape) + signal * labels


def answers_of(labels: NDArray[np.int8], scores: NDArray[np.float64]) -> Score:
    import base64

    truth, logits = (base64.b64encode(part.tobytes()).decode() for part in (labels, scores.astype("<f4")))
    return Score(0, 0, (), (), metric="mAP", answers=LabelAnswers(len(labels), labels.shape[1], truth, logits))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=2, max_size=25))
def test_figures_of_a_class_are_those_of_scikit_learn_with_equal_scores_too(images: list[tuple[bool, int]]) -> None:
    labels, scores = np.array([has for has, _ in images], np.int8), np.array([float(score) for _, score in images])
    if not labels.any():
        assert average_precision(labels, scores) is None
        return
    assert average_precision(labels, scores) == pytest.approx(average_precision_score(labels, scores))
    expected = None if labels.all() else pytest.approx(roc_auc_score(labels, scores))
    assert measure_multi_label(labels[:, None], scores[:, None]).auc == expected


def test_average_precision_by_hand() -> None:
    # the first of two ranks is right, then the third: 1/1 and 2/3
    assert average_precision(np.array([1, 0, 1, 0], np.int8), np.array([9.0, 8, 7, 6])) == pytest.approx(
        (1 + 2 / 3) / 2
    )


def test_what_is_unknown_counts_for_no_figure_of_its_label() -> None:
    labels, scores = draw(200, [0.3, 0.1], 1)
    masked = labels.copy()
    masked[:50, 0] = UNKNOWN
    assert average_precision(masked[:, 0], scores[:, 0]) == average_precision(labels[50:, 0], scores[50:, 0])
    assert average_precision(masked[:, 1], scores[:, 1]) == average_precision(labels[:, 1], scores[:, 1])
    found = measure_multi_label(masked, scores)
    assert (found.classes[0].known, found.classes[1].known) == (150, 200)


def test_a_label_that_no_image_has_is_left_out_of_the_mean_and_said() -> None:
    labels, scores = draw(120, [0.3, 0.4, 0.5], 2)
    labels[:, 1] = 0
    found = measure_multi_label(labels, scores)
    assert (found.classes[1].ap, found.classes[1].auc) == (None, None)
    first, last = (average_precision_score(labels[:, k], scores[:, k]) for k in (0, 2))
    assert found.map == pytest.approx((first + last) / 2) == mean_average_precision(labels, scores)
    accuracy = label_accuracy(answers_of(labels, scores), "torch", "cpu")
    (remark,) = remarks_on_labels(accuracy, ("cat", "dog", "owl"))
    assert remark == (
        "no validation image has 'dog': the average precision is undefined, and mAP is the mean over the other 2 labels"
    )
    labels[:, 1] = 1
    (remark,) = remarks_on_labels(label_accuracy(answers_of(labels, scores), "torch", "cpu"), ("cat", "dog", "owl"))
    assert remark == (
        "every validation image has 'dog': no AUC is defined, and an average precision of 100 %, whatever is "
        "answered, counts in mAP"
    )
    labels[:] = 0
    with pytest.raises(DataError, match="mAP is not defined: no image has a label"):
        label_accuracy(answers_of(labels, scores), "torch", "cpu")


def test_an_interval_of_no_change_is_not_a_point() -> None:
    """Where no answer changes, few images still leave a change open: as many as of a proportion, for the rarer labels."""
    labels, scores = draw(300, [0.5, 0.05], 3)
    found = measure_multi_label(labels, scores, scores)
    counts = labels.sum(axis=0)
    number = effective_number(counts, labels)
    assert number == pytest.approx(min(4 / (1 / counts).sum(), (labels.any(axis=1)).sum()))
    assert (found.drop_pp, found.agreement) == (0.0, 1.0)
    assert found.drop_interval_pp == pytest.approx((-100 * unseen(number), 100 * unseen(number)))
    assert unseen(number) > 1.9 / 300


@pytest.mark.parametrize("noise", [0.3, pytest.param(1.0, marks=pytest.mark.heavy)])
def test_intervals_hold_the_true_figures(noise: float) -> None:
    shares, trials, held, held_drop = [0.4, 0.2, 0.1], 40, 0, 0
    labels, scores = draw(40_000, shares, 4)
    changed = scores + np.random.default_rng(5).normal(0, noise, scores.shape)
    truth, after = (mean_average_precision(labels, each) or 0.0 for each in (scores, changed))
    for trial in range(trials):
        rows = np.random.default_rng((6, trial)).integers(0, len(labels), 150)
        found = measure_multi_label(labels[rows], changed[rows], scores[rows])
        assert found.drop_interval_pp is not None
        held += found.map_interval[0] <= after <= found.map_interval[1]
        held_drop += found.drop_interval_pp[0] <= 100 * (truth - after) <= found.drop_interval_pp[1]
    assert held >= 35  # 95 % of 40 are 38; fewer than 35 have a chance of 1 %
    assert held_drop >= 35


def test_gate_is_on_map_and_on_each_label_and_needs_images() -> None:
    labels, scores = draw(400, [0.4, 0.2], 7, signal=2.5)
    worse = scores.copy()
    worse[:, 1] += np.random.default_rng(8).normal(0, 3.0, 400)
    score, baseline = answers_of(labels, worse), answers_of(labels, scores)
    found = label_accuracy(score, "onnxruntime", "cpu", baseline)
    assert found.change is not None
    assert found.multi_label is not None
    assert found.value == pytest.approx(
        np.mean([average_precision_score(labels[:, k], worse[:, k]) for k in (0, 1)]), abs=1e-5
    )
    assert found.change.drop_pp > 5
    verdict = judge(score, None, Gate(max_top1_drop_pp=1.0), labels=found.multi_label)
    assert verdict.passed is False
    assert verdict.reasons[0].startswith(f"mAP drops by {found.change.drop_pp:.2f} pp, more than the 1.00 pp allowed")
    verdict = judge(score, None, Gate(max_class_drop_pp=5.0), class_names=("cat", "dog"), labels=found.multi_label)
    assert "the average precision of a label drops by" in verdict.reasons[0]
    assert "(label 'dog', which" in verdict.reasons[0]
    same = label_accuracy(baseline, "onnxruntime", "cpu", baseline).multi_label
    assert same is not None
    verdict = judge(baseline, None, Gate(max_top1_drop_pp=0.5), labels=same)
    assert (verdict.passed, verdict.proven) == (True, False)
    assert verdict.images_needed is not None
    # with so many of the same kind, nothing unseen may cost more than what is allowed
    assert unseen(same.counted * verdict.images_needed / 400) == pytest.approx(0.005, rel=0.01)
    assert judge(score, None, Gate(min_top1=0.99), labels=found.multi_label).reasons[0].startswith("mAP ")
    with pytest.raises(TypeError, match="no first guess"):
        _ = score.top1


def test_scores_of_other_images_and_gates_on_what_is_not_measured_are_refused() -> None:
    (labels, scores), (others, _) = draw(60, [0.5, 0.5], 9), draw(60, [0.5, 0.5], 10)
    with pytest.raises(DataError, match="not of the same images"):
        label_accuracy(answers_of(labels, scores), "torch", "cpu", answers_of(others, scores))
    with pytest.raises(RecipeError, match=r"max_ece_increase_pp is about .* and the data is multi-label"):
        check_gate(Gate(max_ece_increase_pp=1.0), "stage 'ptq'", multi_label=True)
    check_gate(Gate(max_ece_increase_pp=1.0), "stage 'ptq'", multi_label=False)


def test_scores_that_know_nothing_are_told_from_those_that_do() -> None:
    labels, scores = draw(300, [0.3, 0.2], 11, signal=0.0)
    doubt = doubt_labels(measure_multi_label(labels, scores))
    assert doubt is not None
    assert "cannot be told from chance" in doubt
    assert doubt_labels(measure_multi_label(labels, scores + labels)) is None
