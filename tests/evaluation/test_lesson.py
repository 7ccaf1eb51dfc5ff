"""The signs of a bad lesson, and what teachers gained, from scores of which every answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from convnext_deploy.evaluation.label_score import label_answers
from convnext_deploy.evaluation.lesson import Taught, TeacherOutlook, create_lesson, early_remarks, early_signs
from convnext_deploy.evaluation.score import Score
from convnext_deploy.metrics.paired import compare_predictions

CLASSES = tuple("abcdefghij")
LABELS = np.arange(1000) % 10


def score_of(right: float, *, wrong_from: int = 0) -> Score:
    """Return the score of a network that is wrong on the first images from a place on, always with the next class."""
    guessed = LABELS.copy()
    wrong = (wrong_from + np.arange(round((1 - right) * 1000))) % 1000
    guessed[wrong] = (guessed[wrong] + 1) % 10
    correct = int((guessed == LABELS).sum())
    return Score(correct, 1000, tuple(guessed.tolist()), tuple(LABELS.tolist()))


def taught_by(*scores: Score) -> Taught:
    return Taught(tuple(scores), scores[0])


def test_a_good_lesson_has_no_sign_and_its_gain_is_that_of_paired_images() -> None:
    student, teacher, alone = score_of(0.85), score_of(0.95), score_of(0.70)
    lesson = create_lesson(["teacher"], student, taught_by(teacher), "student-alone", alone)
    expected = compare_predictions(LABELS, np.array(alone.predictions), np.array(student.predictions)).change
    assert lesson.against_alone == expected
    assert (lesson.student, lesson.taught, lesson.alone_score) == (0.85, 0.95, 0.70)
    assert lesson.signs() == ()
    about_teacher, gain = lesson.describe()
    assert about_teacher.startswith("its teacher has top-1 95.00 %, as the student's images come to it; ")
    assert "agrees on 90.00 % of the images and is 10.00 pp [+" in about_teacher
    assert about_teacher.endswith("] worse")
    low, high = expected.interval_pp
    assert gain.endswith(
        f"(student-alone) gives top-1 70.00 %: the gain by its teacher is +15.00 pp [{-high:+.2f}, {-low:+.2f}]"
    )


def test_a_teacher_worse_than_its_student_and_a_gain_below_zero_are_signs() -> None:
    lesson = create_lesson(["resnet.onnx", "b"], score_of(0.80), taught_by(score_of(0.70)), "plain", score_of(0.90))
    worse, lost = lesson.signs()
    assert worse.startswith("the mean of its teachers resnet.onnx, b is worse than the student, by +10.00 pp [+8.")
    assert lesson.describe()[0].endswith("] better")
    assert "and is 10.00 pp [+8." in lesson.describe()[0]
    assert lost.startswith("the student is worse than without a teacher (plain), a gain of -10.00 pp [-1")
    unproven = create_lesson(["t"], score_of(0.80), taught_by(score_of(0.799)), "plain", score_of(0.799))
    assert unproven.signs() == ()
    assert unproven.describe()[1].endswith("which is not beyond chance")
    assert create_lesson(["t"], score_of(0.8), Taught(unknown="no name")).describe() == (
        "what its teacher t knows of the validation images is not measured: no name",
    )


def test_teachers_that_can_be_asked_have_a_score_where_their_mean_is_not_known() -> None:
    outlooks = [TeacherOutlook(name, None, (32, 32)) for name in ("few.parquet", "b.onnx")]
    taught = Taught((None, score_of(0.95)), None, "few.parquet has no vector for 2 of 4 validation images")
    assert early_remarks(taught, outlooks) == (
        "the teacher b.onnx alone has top-1 95.00 %, as the student's images come to it",
    )
    (said,) = create_lesson(["few.parquet", "b.onnx"], score_of(0.8), taught).describe()
    assert said.endswith(
        "of the validation images is not measured: few.parquet has no vector for 2 of 4 validation images"
    )
    assert early_remarks(taught_by(score_of(0.95)), outlooks[:1]) == ()


@pytest.mark.parametrize(
    ("right", "own", "sides", "sign"),
    [
        (0.10, None, None, "the teacher t, as the student's images come to it: top-1 10.00 % on 1,000 images is chance level"),
        (0.60, 0.93, 224, "t is made for 224 pixels and sees the student's 32 enlarged to that: top-1 93.00 % on"),
        (0.60, 0.93, 48, "t sees the student's crops, and not its own images: top-1 93.00 % on its own images and 60"),
        (0.60, None, 224, "enlarged to that; how much it loses by that is not known"),
        (0.60, None, 8, "the teacher t is made for 8 pixels and sees the student's 32 shrunk to that"),
        (0.93, 0.93, 224, None),
        (0.93, None, 48, None),
        (0.93, None, None, None),
    ],
)  # fmt: skip
def test_signs_that_show_before_a_training(
    right: float, own: float | None, sides: int | None, sign: str | None
) -> None:
    teacher = TeacherOutlook(
        "t", None if sides is None else (sides, sides), (32, 32), None if own is None else score_of(own)
    )
    found = early_signs(taught_by(score_of(right)), [teacher], CLASSES)
    assert len(found) == (sign is not None)
    assert sign is None or sign in found[0]
    remarks = early_remarks(taught_by(score_of(right)), [teacher])
    assert (remarks != ()) == (sides == 224 and own == 0.93 and right == 0.93)


def test_multi_label_teachers_are_compared_by_map() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random((300, 3)) < 0.3).astype(np.int8)
    good, poor, chance = (
        Score(0, 0, (), (), metric="mAP", answers=label_answers(truth * strength + rng.normal(size=truth.shape), truth))
        for strength in (3.0, 1.0, 0.0)
    )
    lesson = create_lesson(["t"], good, Taught((poor,), poor))
    assert lesson.metric == "mAP"
    assert lesson.against_teachers is not None
    assert lesson.against_teachers.drop_pp == pytest.approx(100 * (poor.value - good.value))
    assert "is worse than the student" in lesson.signs()[0]
    outlook = TeacherOutlook("t", None, (32, 32))
    assert "cannot be told from chance" in early_signs(Taught((chance,), chance), [outlook], CLASSES[:3])[0]
    assert early_signs(Taught((good,), good), [outlook], CLASSES[:3]) == ()
