"""Score the teachers of a stage as its student's images come to them, once, and enter what their lesson was worth."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.spec import Preprocess
from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.recipe import Recipe, StageEntry, report_name
from convnext_deploy.data.agreement import outputs_for
from convnext_deploy.data.datasets import Data
from convnext_deploy.data.evaluation_batches import EvaluationBatches
from convnext_deploy.data.image_sets import ImageSet
from convnext_deploy.data.label_table import some
from convnext_deploy.data.loaders import Batch
from convnext_deploy.errors import DataError, first_line
from convnext_deploy.evaluation.label_score import label_answers
from convnext_deploy.evaluation.lesson import (
    Taught,
    TeacherOutlook,
    create_lesson,
    early_remarks,
    early_signs,
    scores_alone,
)
from convnext_deploy.evaluation.measure import BATCH_SIZE, RESULT_VERSION, read_kept, write_kept
from convnext_deploy.evaluation.score import Score
from convnext_deploy.pipeline.ledger import Ledger
from convnext_deploy.pipeline.stage import Settings
from convnext_deploy.runners import open_runner
from convnext_deploy.stages.context import StageContext
from convnext_deploy.stages.distill import Teachers, foresee_student
from convnext_deploy.stages.foresight import Given, outlook_of
from convnext_deploy.stages.training_setup import model_of
from convnext_deploy.stages.unlabelled import mixed
from convnext_deploy.system.distributed import batches_of
from convnext_deploy.system.full_float32 import full_float32
from convnext_deploy.system.shared_work import share_out
from convnext_deploy.training.losses import average_teachers
from convnext_deploy.training.predictions import check_judged

_FEATURES_ALONE = "it has other classes than the data, or none, so that its features teach alone"


def measure_teaching(
    stage: StageEntry, artifacts: Mapping[str, Artifact], data: Data | None, settings: Settings
) -> Taught | None:
    """Score the teachers of a stage that distills on the validation images; what an earlier run has measured is taken.

    Args:
        stage: of a recipe.
        artifacts: by the names under which the stage refers to them.
        data: with the validation images.
        settings: of the run, in whose `scores/` it is kept.

    Returns: None of a stage that does not distill. Raises: DeployError: what the stage itself would end with.
    """
    config = stage.config
    if not isinstance(config, DistillConfig) or data is None:
        return None
    inputs = {role: artifacts[name] for role, name in stage.inputs.items()}
    given = {role: outlook_of(artifact) for role, artifact in inputs.items()}
    foresee_student(config, Given(stage.name, given, data, settings.execution.device))
    teachers = tuple(artifact for role, artifact in inputs.items() if role.startswith("teacher"))
    _, preprocess = model_of(config.model, data, inputs.get("source") or inputs.get("weights"))
    path = settings.out / "scores" / f"{stage.name}.teaching.json"
    key = _key(config, teachers, preprocess, data, settings)
    kept = None if settings.measure_again else read_kept(Taught, path, key)
    if kept is not None:
        return kept
    trained = mixed(config, data).train
    reasons = [_why_unknown(teacher, data, trained) for teacher in teachers]
    context = StageContext(
        stage.name,
        settings.out,
        dataclasses.replace(data, train=data.validation),  # whose predictions a file is asked for
        settings.execution,
        settings.out / "cache",
        teachers=tuple(teacher for teacher, reason in zip(teachers, reasons, strict=True) if reason is None),
        open_graph=_open_graph,
    )
    asked = _score(_Asking(config, preprocess, context)) if context.teachers else Taught(unknown=_FEATURES_ALONE)
    scores = iter(asked.each)
    each = tuple(None if reason else next(scores) for reason in reasons)
    # features have no score, so that nothing lacks where they are not known
    lacking = [
        reason
        for teacher, reason in zip(teachers, reasons, strict=True)
        if reason is not None and outputs_for(teacher, data) is not None
    ]
    found = Taught(each, None if lacking else asked.together, "; ".join(lacking) or asked.unknown)
    write_kept(path, key, found)
    return found


def _key(
    config: DistillConfig, teachers: tuple[Artifact, ...], preprocess: Preprocess, data: Data, settings: Settings
) -> str:
    content = [
        [
            [each.sha256, each.model.settings(), each.preprocess.settings(), each.class_names, repr(each.io)]
            for each in teachers
        ],
        preprocess.settings(),
        data.validation_fingerprint,
        [config.temperature, settings.execution.device, RESULT_VERSION],
    ]
    if any(teacher.format == "predictions" for teacher in teachers):
        # whether a file's names mean validation images alone is a matter of all images, and of the folders that they lie in
        more = data.unlabelled if config.reads_unlabelled else None
        content += [
            [data.fingerprint, str(Path(data.name).absolute())],
            []
            if more is None
            else [data.unlabelled_fingerprint, str(Path(more.name).absolute()), config.unlabelled_share],
        ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _why_unknown(teacher: Artifact, data: Data, trained: ImageSet) -> str | None:
    """Return why a teacher cannot be asked about the validation images; None: it can."""
    if teacher.format == "predictions":
        try:
            check_judged(teacher.main_file, data, trained)
        except DataError as error:
            return first_line(error)
    return None


@dataclasses.dataclass(frozen=True)
class _Asking:
    """What the teachers of a stage answer to each batch of validation images, and together, as `_shorten` keeps it."""

    config: DistillConfig
    preprocess: Preprocess
    context: StageContext

    @torch.no_grad()
    def __call__(self, numbers: range) -> Iterator[list[tuple[Any, ...] | None]]:
        data, execution = self.context.need_data(), self.context.execution
        teachers = Teachers(self.config, self.preprocess, data, self.context)
        own = batches_of(numbers, len(data.validation), BATCH_SIZE)
        batches = EvaluationBatches(data.validation, self.preprocess, BATCH_SIZE, execution.workers, own)
        for number, (pixels, labels) in zip(numbers, batches, strict=True):
            places = number * BATCH_SIZE + torch.arange(len(labels))
            batch = Batch(pixels.to(execution.device), labels.to(execution.device), numbers=places)
            logits = teachers.each(batch)
            able = [each for each in logits if each is not None]
            mean = average_teachers(able, teachers.temperature, multi_label=data.multi_label) if able else None
            yield [
                None
                if answers is None
                else _shorten(answers.float().cpu().numpy(), labels.numpy(), multi_label=data.multi_label)
                for answers in (*logits, mean)
            ]


@full_float32()
def _score(asking: _Asking) -> Taught:
    """Let the teachers look at all validation images as the student's evaluation transform makes them."""
    context = asking.context
    data = context.need_data()
    count, found = len(data.validation), list[list[tuple[Any, ...] | None]]()
    doing = f"{context.name}: teachers on validation images"
    with context.execution.progress.task(doing, count, "images") as task:
        for answers in share_out(asking, range(-(-count // BATCH_SIZE))):
            task.advance(min(BATCH_SIZE, count - len(found) * BATCH_SIZE))
            found.append(answers)
    *each, together = [
        _join([part for part in parts if part is not None], multi_label=data.multi_label)
        for parts in zip(*found, strict=True)
    ]
    return Taught(tuple(each), together, None if together is not None else _FEATURES_ALONE)


def _open_graph(artifact: Artifact) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    return open_runner(artifact).logits


def _shorten(logits: Any, labels: Any, *, multi_label: bool) -> tuple[Any, ...]:
    """Return what is kept of the answers to a batch: of one class an image the first guesses, and not all logits."""
    logits = np.nan_to_num(logits)
    if multi_label:
        return logits, labels
    order = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    return order[:, 0], (order == labels[:, None]).any(axis=1), labels


def _join(parts: list[tuple[Any, ...]], *, multi_label: bool) -> Score | None:
    if not parts:
        return None
    joined = [np.concatenate(part) for part in zip(*parts, strict=True)]
    if multi_label:
        return Score(0, 0, (), (), metric="mAP", answers=label_answers(*joined))
    guessed, in_five, labels = joined
    return Score(int((guessed == labels).sum()), int(in_five.sum()), tuple(guessed.tolist()), tuple(labels.tolist()))


def outlooks(stage: StageEntry, ledger: Ledger, artifacts: Mapping[str, Artifact]) -> list[TeacherOutlook]:
    """Return the teachers of a stage beside its student, with what they score on their own images where that is known."""
    config, data = stage.config, ledger.data
    assert isinstance(config, DistillConfig)
    assert data is not None
    start = stage.inputs.get("source") or stage.inputs.get("weights")
    _, preprocess = model_of(config.model, data, None if start is None else artifacts[start])
    found = []
    for name in _teachers(stage):
        artifact = artifacts[name]
        looks = artifact.format != "predictions"
        shown = report_name(name)
        sides = artifact.preprocess.sides if looks else None
        found.append(TeacherOutlook(shown, sides, preprocess.sides, ledger.scores.get(shown)))
    return found


def tell_early(
    stage: StageEntry, taught: Taught | None, ledger: Ledger, artifacts: Mapping[str, Artifact], settings: Settings
) -> None:
    """Say before a training what its teachers know, and what speaks against them."""
    if taught is None or ledger.data is None:
        return
    say, names = settings.execution.progress.say, ledger.data.class_names
    teachers = outlooks(stage, ledger, artifacts)
    if taught.together is not None:
        who = ", ".join(teacher.name for teacher in teachers)
        score = taught.together
        say(
            f"{stage.name}: taught by {who}, {score.metric} {100 * score.value:.2f} % as the student's images come to it"
        )
    for text in scores_alone(taught, teachers):
        say(f"{stage.name}: {text}")
    for text in early_signs(taught, teachers, names):
        say(f"WARNING: {stage.name}: {text}")


def enter_lesson(
    stage: StageEntry, taught: Taught | None, ledger: Ledger, artifacts: Mapping[str, Artifact], recipe: Recipe
) -> None:
    """Let the report say what the teachers of a stage were worth to its student."""
    student = ledger.scores.get(stage.name)
    if taught is None or student is None or ledger.data is None:
        return
    teachers = outlooks(stage, ledger, artifacts)
    alone = _find_alone(stage, recipe, ledger)
    score = None if alone is None else ledger.scores.get(alone)
    lesson = create_lesson([each.name for each in teachers], student, taught, alone, score)
    signs = (*early_signs(taught, teachers, ledger.data.class_names), *lesson.signs())
    remarks = [*lesson.describe(), *early_remarks(taught, teachers), *_classes(stage, ledger.data, artifacts)]
    rows = (
        dataclasses.replace(row, lesson=lesson, warnings=(*row.warnings, *signs), notes=(*row.notes, *remarks))
        if row.name == stage.name
        else row
        for row in ledger.report.rows
    )
    ledger.change(rows=tuple(rows))


def _classes(stage: StageEntry, data: Data, artifacts: Mapping[str, Artifact]) -> list[str]:
    """Say which teachers have other classes than the data."""
    found = []
    for name in _teachers(stage):
        artifact, count = artifacts[name], artifacts[name].model.num_classes
        outputs = outputs_for(artifact, data) if count else None
        if count and outputs is None:
            found.append(f"the teacher {report_name(name)} has {count:,} other classes; its features teach alone")
        elif outputs is not None and count > len(outputs):
            others = [other for place, other in enumerate(artifact.class_names or ()) if place not in outputs]
            found.append(
                f"the teacher {report_name(name)} has {count:,} classes, of which the {len(outputs):,} of the data teach; left out "
                f"are {some(others)}"
            )
    return found


def _find_alone(stage: StageEntry, recipe: Recipe, ledger: Ledger) -> str | None:
    """Return the name of a stage that does the same training without teachers; None if there is none."""
    wanted = (stage.config.alone, stage.source)
    return next(
        (each.name for each in recipe.stages if (each.config, each.source) == wanted and each.name in ledger.scores),
        None,
    )


def _teachers(stage: StageEntry) -> list[str]:
    return [name for role, name in stage.inputs.items() if role.startswith("teacher")]
