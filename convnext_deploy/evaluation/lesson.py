"""What a student had to learn from, what it made of that, and the signs that it was a bad lesson."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convnext_deploy.config.choices import MetricName
from convnext_deploy.evaluation.gate import measure_drop
from convnext_deploy.evaluation.guessing import find_guessing
from convnext_deploy.evaluation.label_score import compare_labels, doubt_labels
from convnext_deploy.evaluation.score import Score
from convnext_deploy.metrics.change import Change

FAR = 2.0
"""Times the student's image size, or its part, from which on a teacher's own is far from it."""


@dataclass(frozen=True)
class Taught:
    """What the teachers of a stage answer to the validation images as these come to them: through the student's transform.

    `each`: the score of every teacher, None where it teaches no classes or cannot be asked; `together`: of their mean, None where
    none has a score, or one that teaches cannot be asked. `unknown`: why their mean is not known, in words.
    """

    each: tuple[Score | None, ...] = ()
    together: Score | None = None
    unknown: str | None = None


@dataclass(frozen=True)
class TeacherOutlook:
    """A teacher beside its student: its `name`, the sides of its images and of the student's (None: it looks at none).

    `own`: its score on its own images, None: not known.
    """

    name: str
    sides: tuple[int, int] | None
    student_sides: tuple[int, int]
    own: Score | None = None

    @property
    def is_far(self) -> bool:
        """Whether its images are of a size far from those of the student."""
        if self.sides is None:
            return False
        ratio = max(self.sides) / max(self.student_sides)
        return ratio >= FAR or ratio <= 1 / FAR


@dataclass(frozen=True)
class Lesson:
    """What teachers were worth to a student. Fractions; changes are what the student lost, positive: it is worse.

    `taught`: the score of the teachers together, as they see the student's images; None: not known, and `unknown` says why.
    `alone`: the name of the same training without teachers, None: there is none.
    """

    teachers: tuple[str, ...]
    metric: MetricName
    student: float
    taught: float | None = None
    unknown: str | None = None
    against_teachers: Change | None = None
    alone: str | None = None
    alone_score: float | None = None
    against_alone: Change | None = None

    def describe(self) -> tuple[str, ...]:
        """Return what is to be known of it, a sentence each."""
        who = _who(self.teachers)
        found = []
        if self.taught is not None and self.against_teachers is not None:
            change = self.against_teachers
            found.append(
                f"{who} has {self.metric} {_percent(self.taught)}, as the student's images come to it; the student agrees on "
                f"{_percent(change.agreement)} of the {'answers' if self.metric == 'mAP' else 'images'} and is {_compared(change)}"
            )
        elif self.unknown is not None:
            found.append(f"what {who} knows of the validation images is not measured: {self.unknown}")
        if self.against_alone is not None and self.alone_score is not None:
            low, high = _gain_interval(self.against_alone)
            proven = "" if low > 0 or high < 0 else ", which is not beyond chance"
            found.append(
                f"the same training without a teacher ({self.alone}) gives {self.metric} {_percent(self.alone_score)}: the gain by "
                f"{who} is {_pp(self.against_alone)}{proven}"
            )
        return tuple(found)

    def signs(self) -> tuple[str, ...]:
        """Return the signs that the lesson was bad which show in the student, a sentence each."""
        who = _who(self.teachers)
        found = []
        if self.against_teachers is not None and _gain_interval(self.against_teachers)[0] > 0:
            found.append(
                f"{who} is worse than the student, by {_pp(self.against_teachers)} {self.metric}: little can be learned from it; "
                "take a better teacher, or train it for longer first"
            )
        if self.against_alone is not None and _gain_interval(self.against_alone)[1] < 0:
            found.append(
                f"the student is worse than without a teacher ({self.alone}), a gain of {_pp(self.against_alone)}; train alone, "
                "give the labels more weight (--distill-loss-weight), or take a better teacher"
            )
        return tuple(found)


def create_lesson(
    teachers: Sequence[str], student: Score, taught: Taught, alone: str | None = None, alone_score: Score | None = None
) -> Lesson:
    """Compare a student with its teachers, and with itself trained alone, image by image.

    Args:
        teachers: their names.
        student: its score.
        taught: the teachers' answers to the same images.
        alone: the name of the training without teachers.
        alone_score: its score.
    """
    together = taught.together
    return Lesson(
        tuple(teachers),
        student.metric,
        student.value,
        None if together is None else together.value,
        taught.unknown,
        None if together is None else change_of(student, together),
        alone,
        None if alone_score is None else alone_score.value,
        None if alone_score is None else change_of(student, alone_score),
    )


def early_signs(taught: Taught, teachers: Sequence[TeacherOutlook], class_names: Sequence[str]) -> tuple[str, ...]:
    """Return the signs of a bad lesson that show before a student has learned anything, a sentence each.

    Args:
        taught: what the teachers answer.
        teachers: in the same order.
        class_names: of the data.
    """
    found = []
    for teacher, score in zip(teachers, taught.each, strict=False):
        if score is None:
            continue
        if score.answers is not None:
            chance = doubt_labels(compare_labels(score.answers))
        else:
            chance = find_guessing(score, len(class_names), class_names)
        if chance is not None:
            found.append(
                f"the {_called(teacher.name)}, as the student's images come to it: {chance}; nothing can be learned from that, "
                "so check its image size, normalization and the order of its classes"
            )
        if teacher.own is not None and teacher.sides is not None:
            lost = change_of(score, teacher.own)
            if lost.interval_pp[0] > 0:
                found.append(_lost_by_size(teacher, score, lost))
        elif teacher.is_far:
            found.append(f"{_size(teacher)}; how much it loses by that is not known")
    return tuple(found)


def early_remarks(taught: Taught, teachers: Sequence[TeacherOutlook]) -> tuple[str, ...]:
    """Return what is good to know of teachers before a student learns, a sentence each."""
    lossless = tuple(
        f"{_size(teacher)}, and loses nothing beyond chance by that"
        for teacher, score in zip(teachers, taught.each, strict=False)
        if score is not None
        and teacher.is_far
        and teacher.own is not None
        and change_of(score, teacher.own).interval_pp[0] <= 0
    )
    return (*scores_alone(taught, teachers), *lossless)


def scores_alone(taught: Taught, teachers: Sequence[TeacherOutlook]) -> tuple[str, ...]:
    """Return what is known of single teachers where their mean is not known, a sentence each."""
    return tuple(
        f"the {_called(teacher.name)} alone has {score.metric} {_percent(score.value)}, as the student's images come to it"
        for teacher, score in zip(teachers, taught.each, strict=False)
        if score is not None and taught.together is None
    )


def change_of(score: Score, baseline: Score) -> Change:
    """Return what a score lost against another one on the same images. Raises: DataError: if they are of others."""
    if score.answers is None:
        return measure_drop(score, baseline).change
    found = compare_labels(score.answers, baseline.answers)
    assert found.drop_pp is not None  # there is a baseline
    assert found.drop_interval_pp is not None
    return Change(found.drop_pp, found.drop_interval_pp, found.agreement or 0.0)


def _lost_by_size(teacher: TeacherOutlook, score: Score, lost: Change) -> str:
    own = "" if teacher.own is None else f"{score.metric} {_percent(teacher.own.value)} on its own images and "
    low, high = lost.interval_pp
    what = (
        _size(teacher)
        if teacher.is_far
        else f"the {_called(teacher.name)} sees the student's crops, and not its own images"
    )
    fix = (
        "train the student on images of about its size (--image-size), or take a teacher for smaller ones"
        if teacher.is_far
        else "give the student the teacher's image size, crop and normalization"
    )
    less = f"{lost.drop_pp:.2f} pp [{low:.2f}, {high:.2f}] less"
    return f"{what}: {own}{_percent(score.value)} so, {less}, and that is what it teaches; {fix}"


def _size(teacher: TeacherOutlook) -> str:
    assert teacher.sides is not None  # the caller has looked
    own, given = ("x".join(map(str, dict.fromkeys(sides))) for sides in (teacher.sides, teacher.student_sides))
    way = "enlarged" if max(teacher.sides) > max(teacher.student_sides) else "shrunk"
    return f"the {_called(teacher.name)} is made for {own} pixels and sees the student's {given} {way} to that"


def _who(teachers: Sequence[str]) -> str:
    return f"its {_called(teachers[0])}" if len(teachers) == 1 else f"the mean of its teachers {', '.join(teachers)}"


def _called(teacher: str) -> str:
    return "teacher" if teacher == "teacher" else f"teacher {teacher}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def _gain_interval(change: Change) -> tuple[float, float]:
    low, high = change.interval_pp
    return -high, -low


def _compared(change: Change) -> str:
    """Say how much better or worse the student is, as a positive number."""
    (low, high), word = (change.interval_pp, "worse") if change.drop_pp > 0 else (_gain_interval(change), "better")
    return f"{abs(change.drop_pp):.2f} pp [{low:+.2f}, {high:+.2f}] {word}"


def _pp(change: Change) -> str:
    """Return how much better the student is, in percentage points."""
    low, high = _gain_interval(change)
    return f"{-change.drop_pp + 0.0:+.2f} pp [{low:+.2f}, {high:+.2f}]"
