"""Gates on calibration and on the worst class: what passes, what is proven, and what is said."""

from __future__ import annotations

from typing import Any

import pytest

from convnext_deploy.config.recipe import Gate
from convnext_deploy.errors import RecipeError
from convnext_deploy.evaluation.gate import Verdict, judge
from convnext_deploy.evaluation.score import Score
from convnext_deploy.metrics.calibration import Calibration
from convnext_deploy.metrics.paired import Drop, images_needed
from convnext_deploy.metrics.worst_class import WorstClass, simultaneous_z

TOTAL = 540
SCORE = Score(486, TOTAL, (0,) * 486 + (1,) * 54, (0,) * TOTAL)
SAME = Drop(486, 0, 0, 54, 1.0, 0.0, (-0.4, 0.4), 1.0)
WORST = WorstClass(2, 54, 4, 10, 40, 100 * 4 / 54, (-1.5, 24.0))
NAMES = ("cat", "dog", "eel")


def calibration(increase: float, low: float, high: float, ece: float = 0.0234) -> Calibration:
    return Calibration(ece, (0.0, 1.0), increase, (low, high))


def verdict(gate: Gate, found: Calibration | None = None, worst: WorstClass | None = WORST) -> Verdict:
    return judge(SCORE, SAME, gate, found, worst, NAMES)


@pytest.mark.parametrize(
    ("interval", "allowed", "on", "passed", "proven"),
    [
        ((0.4, 0.1, 0.7), 1.0, "point", True, True),
        ((0.4, 0.1, 0.7), 0.5, "point", True, False),
        ((0.4, 0.1, 0.7), 0.5, "upper", False, False),
        ((0.4, 0.1, 0.7), 0.7, "upper", True, True),
        ((1.3, 0.1, 2.7), 0.5, "point", False, False),
        ((-0.3, -0.6, -0.1), 0.0, "upper", True, True),
    ],
)
def test_gate_on_calibration(
    interval: tuple[float, float, float], allowed: float, on: Any, passed: bool, proven: bool
) -> None:
    found = verdict(Gate(max_ece_increase_pp=allowed, on=on), calibration(*interval))
    assert (found.passed, found.proven) == (passed, proven)
    assert bool(found.reasons) is not passed


def test_gate_on_calibration_says_from_where_to_where() -> None:
    gate = Gate(max_ece_increase_pp=0.5)
    assert verdict(gate, calibration(1.32, 0.6, 2.1)).reasons == (
        "the expected calibration error rises by 1.32 pp (from 1.02 to 2.34 %), more than the 0.50 pp allowed",
    )
    upper = Gate(max_ece_increase_pp=0.5, on="upper")
    assert verdict(upper, calibration(0.1, -0.5, 0.9)).reasons == (
        "the 95 % interval of the rise of the expected calibration error ends at +0.90 pp, above the 0.50 pp allowed "
        "(measured: +0.10 pp)",
    )
    # 0.8 pp shrink to 0.4 with four times as many
    assert verdict(gate, calibration(0.1, -0.5, 0.9)).notes == (
        "540 images cannot tell whether the expected calibration error rises by more than 0.50 pp (95 % interval -0.50 to +0.90 "
        "pp); about 2,200 would do if it stays as measured",
    )
    assert verdict(gate, calibration(0.4999, -0.5, 1.5)).notes == (
        "passed by what was measured; the rise of the expected calibration error may be more than 0.50 pp (95 % interval -0.50 "
        "to +1.50 pp)",
    )


def test_gate_on_the_worst_class_names_it_and_the_images_that_would_do() -> None:
    failed = verdict(Gate(max_class_drop_pp=5.0))
    assert (failed.passed, failed.proven) == (False, False)
    assert failed.reasons == (
        "top-1 of a class drops by 7.41 pp (class 'eel', 54 images), more than the 5.00 pp allowed",
    )
    passed = verdict(Gate(max_class_drop_pp=10.0))
    assert (passed.passed, passed.proven, passed.images_needed) == (True, False, None)
    needed = images_needed(0.10, 4 / 54, simultaneous_z(10))
    assert 100 < needed <= 130
    assert passed.notes == (
        "540 images of 10 classes cannot tell whether top-1 of a class drops by more than 10.00 pp (95 % interval -1.50 to "
        "+24.00 pp); about 130 a class would do if nothing was lost",
    )
    assert verdict(Gate(max_class_drop_pp=24.0)) == Verdict(True, proven=True)
    assert verdict(Gate(max_class_drop_pp=23.0, on="upper")).passed is False
    unnamed = judge(SCORE, SAME, Gate(max_class_drop_pp=5.0), None, WORST)
    assert "class '2'" in unnamed.reasons[0]


def test_all_gates_are_judged_together() -> None:
    gate = Gate(max_top1_drop_pp=0.5, max_ece_increase_pp=1.0, max_class_drop_pp=24.0)
    good = calibration(0.1, 0.0, 0.2)
    assert verdict(gate, good) == Verdict(True, proven=True)
    unsure = verdict(gate, calibration(0.1, 0.0, 1.2))
    assert (unsure.passed, unsure.proven, len(unsure.notes)) == (True, False, 1)
    failed = verdict(gate, calibration(1.1, 0.9, 1.2), None)
    assert (failed.passed, failed.proven, len(failed.reasons)) == (False, False, 1)
    proven_first = Gate(max_top1_drop_pp=0.5, max_class_drop_pp=5.0)
    assert verdict(proven_first).proven is False


def test_what_was_not_compared_is_not_judged() -> None:
    gate = Gate(max_ece_increase_pp=0.0, max_class_drop_pp=0.0)
    assert judge(SCORE, None, gate, Calibration(0.5, (0.0, 1.0)), None) == Verdict()
    assert gate.judges_change
    assert not Gate(min_top1=0.5, min_speedup=1.0).judges_change


@pytest.mark.parametrize("name", ["max_ece_increase_pp", "max_class_drop_pp"])
def test_gate_checks_its_limits(name: str) -> None:
    asked: dict[str, Any] = {name: 3.0, "on": "upper"}
    assert Gate(**asked).judges_change
    for value in (-0.1, 100.1):
        with pytest.raises(RecipeError, match=f"{name} = .* is out of range; expected 0 to 100"):
            Gate(**(asked | {name: value}))


def test_gate_on_calibration_that_is_not_known_proves_nothing() -> None:
    note = "the expected calibration error is not judged: not both artifacts tell how probable their answers are"
    for found in (None, Calibration(0.1, (0.0, 0.2))):
        assert judge(SCORE, SAME, Gate(max_ece_increase_pp=1.0), found) == Verdict(True, proven=False, notes=(note,))
    failed = judge(SCORE, SAME, Gate(max_ece_increase_pp=1.0, min_top1=1.0), None)
    assert (failed.passed, failed.notes) == (False, (note,))
