"""What teachers know is measured once as the student's images come to them, and the report says what they were worth."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convnext_deploy.artifacts.artifact import read_artifact
from convnext_deploy.config.comparisons import with_comparisons
from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.recipe import Recipe, StageEntry
from convnext_deploy.config.train import ModelConfig, TrainConfig
from convnext_deploy.data.contents import Contents
from convnext_deploy.data.datasets import Data, FolderImages
from convnext_deploy.data.unlabelled import mix_in, open_unlabelled
from convnext_deploy.errors import DataError
from convnext_deploy.evaluation.lesson import Taught
from convnext_deploy.pipeline.lessons import measure_teaching
from convnext_deploy.pipeline.open_foreign import open_references
from convnext_deploy.pipeline.run import plan_recipe, run_recipe
from convnext_deploy.pipeline.run_result import RunResult
from convnext_deploy.pipeline.stage import Settings
from convnext_deploy.reports.html.report_page import render_html
from convnext_deploy.reports.markdown import render_markdown
from convnext_deploy.reports.recipe_toml import write_recipe
from convnext_deploy.reports.record import read_report
from convnext_deploy.stages.distill import Teachers
from convnext_deploy.system.execution import Execution
from convnext_deploy.system.progress import SilentProgress
from convnext_deploy.training.predictions import find_rows
from tests.conftest import draw_image
from tests.shared import slow_except
from tests.stages.foreign_teachers import NETWORKS, write_program, write_table

FIT = FitConfig(epochs=2, batch_size=12, base_learning_rate=1.0, warmup_epochs=0, drop_path_rate=0.0, autocast="off")


class Said(SilentProgress):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def write_answers(folder: Path, data: Data, *, parts: int = 3, wrong: int = 0) -> Path:
    """Write logits that are right for all images but the first `wrong` of the validation, named by their last folders."""
    names, vectors = [], []
    for images in (data.train, data.validation):
        assert isinstance(images, FolderImages)
        if parts == 2 and images is data.validation:
            break  # a name such as cat/0.png would mean two images
        names += ["/".join(path.parts[-parts:]) for path in images.paths]
        vectors.append(6 * np.eye(3, dtype=np.float32)[images.labels])
    answers = np.concatenate(vectors)
    first = len(data.train)
    answers[first : first + wrong] = np.roll(answers[first : first + wrong], 1, axis=1)
    return write_table(folder, names, answers, "logits")


def taught(
    teachers: list[str | Path], out: Path, data: Data, progress: Any = None, **changes: Any
) -> tuple[Recipe, RunResult]:
    config = DistillConfig(ModelConfig("test_convnext2", 32), tuple(map(str, teachers)), FIT, **changes)
    recipe = Recipe("taught", (StageEntry("student", config, None),), data.name)
    execution = Execution(progress=progress or SilentProgress())
    return recipe, run_recipe(recipe, Settings(out, execution), data=data, weights=open_references(recipe))


def test_report_says_what_a_teacher_gained(
    small_data: Data, short_timing: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, said = write_answers(tmp_path, small_data, wrong=2), Said()
    recipe, result = taught([teacher], tmp_path / "out", small_data, said, compare_alone=True)
    assert result.executed == ("student-alone", "student")
    report = read_report(tmp_path / "out")
    row, alone = (next(row for row in report.rows if row.name == name) for name in ("student", "student-alone"))
    lesson = row.lesson
    assert lesson is not None
    assert lesson.taught == pytest.approx(16 / 18)
    assert (row.accuracy and row.accuracy.top1, alone.accuracy and alone.accuracy.top1) == (
        lesson.student,
        lesson.alone_score,
    )
    assert lesson.against_alone is not None
    assert lesson.against_alone.drop_pp == pytest.approx(100 * ((lesson.alone_score or 0) - lesson.student))
    assert any("taught by logits.safetensors, top-1 88.89 % as the student's images" in line for line in said.lines)
    for text in (render_markdown(report), render_html(report)):
        assert "the same training without a teacher" in text
        assert "the student agrees on" in text
    made = read_artifact(tmp_path / "out" / "stages" / "student-alone").lineage[-1]
    assert (made.kind, made.config["fit"]["epochs"]) == ("train", 2)
    assert "student-alone" not in (write_recipe(report) or "")
    assert "compare_alone = true" in (write_recipe(report) or "")

    def refuse(*_: Any) -> None:
        raise AssertionError("the teacher is asked again")

    monkeypatch.setattr(Teachers, "each", refuse)
    assert taught([teacher], tmp_path / "out", small_data, compare_alone=True)[1].executed == ()
    again = taught([teacher], tmp_path / "out", small_data)[1]  # what the student learned is the same
    assert again.executed == ()
    assert "student-alone" not in {row.name for row in again.report.rows}
    weights = open_references(recipe)
    plan = plan_recipe(recipe, tmp_path / "out", None, small_data, weights)
    assert [(stage.name, runs) for stage, runs in plan] == [("student-alone", False), ("student", False)]


def test_a_training_without_teachers_that_a_recipe_has_is_the_one_to_compare_with() -> None:
    config = DistillConfig(ModelConfig("atto"), "teacher", FIT, compare_alone=True)
    teacher = StageEntry("teacher", TrainConfig(ModelConfig("nano"), FIT), None)
    asked = Recipe("r", (teacher, StageEntry("student", config, None)))
    found = with_comparisons(asked)
    assert [stage.name for stage in found.stages] == ["teacher", "student-alone", "student"]
    assert found.stages[1].config == TrainConfig(ModelConfig("atto"), FIT)
    assert with_comparisons(found) == found
    plain = dataclasses.replace(asked, stages=(StageEntry("plain", config.alone, None), *asked.stages))
    assert with_comparisons(plain) is plain


@pytest.mark.heavy
def test_names_that_mean_training_images_say_nothing_of_validation_images(
    small_data: Data, short_timing: None, tmp_path: Path
) -> None:
    teacher = write_answers(tmp_path, small_data, parts=2)
    row = taught([teacher], tmp_path / "out", small_data)[1].report.rows[-1]
    assert row.lesson is not None
    assert row.lesson.taught is None
    assert "do not tell validation images from training images" in (row.lesson.unknown or "")
    assert any("is not measured: the names in" in note for note in row.notes)


@pytest.mark.heavy
def test_report_names_the_classes_of_a_teacher_that_the_data_lacks(
    small_data: Data, short_timing: None, tmp_path: Path
) -> None:
    own = load_file(write_answers(tmp_path, small_data))
    wide = {name: np.concatenate([row, np.ones(2, np.float32)]) for name, row in own.items()}
    names = (*small_data.class_names, "emu", "confidence")
    save_file(wide, tmp_path / "wide.safetensors", metadata={"class_names": json.dumps(names)})
    row = taught([tmp_path / "wide.safetensors"], tmp_path / "out", small_data)[1].report.rows[-1]
    assert any(
        note.endswith("has 5 classes, of which the 3 of the data teach; left out are emu, confidence")
        for note in row.notes
    )


def ask(teachers: list[Path], out: Path, data: Data, **changes: Any) -> Taught:
    """Return what a run keeps of teachers before anything is trained."""
    config = DistillConfig(ModelConfig("test_convnext2", 32), tuple(map(str, teachers)), FIT, **changes)
    stage = StageEntry("student", config, None)
    artifacts = open_references(Recipe("taught", (stage,), data.name))
    found = measure_teaching(stage, artifacts, data, Settings(out, Execution()))
    assert found is not None
    return found


def test_a_file_without_validation_images_leaves_the_other_teachers_judged(small_data: Data, tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    program, whole = write_program(tmp_path)[0], write_answers(tmp_path, small_data, wrong=2)
    few = write_answers(tmp_path / "few", small_data, parts=2)
    found = ask([few, program, whole], tmp_path / "out", small_data)
    assert found.together is None
    assert found.unknown == f"the names in {few} do not tell validation images from training images"
    first, second, third = found.each
    assert first is None
    assert second is not None
    assert third is not None
    assert third.value == pytest.approx(16 / 18)
    assert ask([few, program, whole], tmp_path / "out", small_data) == found
    # features have no score, so that the mean of the others is that of all
    assert isinstance(small_data.train, FolderImages)
    names = ["/".join(path.parts[-3:]) for path in small_data.train.paths]
    features = write_table(tmp_path, names, np.ones((len(names), 5), np.float32), "features")
    found = ask([features, whole], tmp_path / "out", small_data, method="feature")
    assert found.unknown is None
    assert found.together is not None
    assert found.together.value == pytest.approx(16 / 18)
    alone = ask([features], tmp_path / "out", small_data, method="feature")
    assert "its features teach alone" in (alone.unknown or "")


def test_a_file_is_judged_by_the_images_that_are_trained_on(small_data: Data, tmp_path: Path) -> None:
    """It needs no vector of another image; where labelled images train too, their names may mean validation images."""
    root, rng = tmp_path / "more", np.random.default_rng(7)
    root.mkdir()
    for number in range(4):
        draw_image(number % 3, rng).save(root / f"{number}.png")
    more = open_unlabelled(str(root), small_data.train, [small_data.validation], Contents())
    data = dataclasses.replace(small_data, unlabelled=more)
    assert isinstance(more.images, FolderImages)
    assert isinstance(data.validation, FolderImages)
    judging = list(data.validation.paths)
    answers = np.concatenate([np.ones((len(more.images), 3)), 6 * np.eye(3)[data.validation.labels]])
    named = [f"more/{path.name}" for path in more.images.paths]
    for parts, share, known in ((3, 1.0, True), (2, 1.0, True), (2, 0.5, False), (3, 0.5, True), (2, 0.0, False)):
        names = [*named, *("/".join(path.parts[-parts:]) for path in judging)]
        teacher = write_table(tmp_path, names, answers.astype(np.float32), "logits")
        found = ask([teacher], tmp_path / "out", data, method="teacher-only", unlabelled_share=share)
        assert (None if found.together is None else found.together.value) == (1.0 if known else None), (parts, share)
        assert known == (found.unknown is None)
        assert known or "do not tell validation images from training images" in (found.unknown or "")
        mixed = data.train if share == 0 else mix_in(data.train, more, share)
        if share == 1:
            assert len(find_rows(names, dataclasses.replace(data, train=mixed), teacher)) == len(more.images)
            continue
        with pytest.raises(DataError, match="has no vector for"):  # the training itself needs one of each image
            find_rows(names, dataclasses.replace(data, train=mixed), teacher)


def test_a_judgement_is_kept_for_the_images_and_names_that_it_is_about(small_data: Data, tmp_path: Path) -> None:
    """Labelled images that come later may have the names by which validation images were meant."""
    validation, train = small_data.validation, small_data.train
    assert isinstance(validation, FolderImages)
    assert isinstance(train, FolderImages)
    teacher = write_table(
        tmp_path,
        ["/".join(path.parts[-2:]) for path in validation.paths],
        6 * np.eye(3, dtype=np.float32)[validation.labels],
        "logits",
    )
    known = {"/".join(path.parts[-2:]) for path in validation.paths}
    others = [place for place, path in enumerate(train.paths) if "/".join(path.parts[-2:]) not in known]
    fewer = dataclasses.replace(
        small_data, train=FolderImages([train.paths[place] for place in others], train.labels[others])
    )
    assert others
    assert len(others) < len(train)
    assert ask([teacher], tmp_path / "out", fewer).together is not None
    assert ask([teacher], tmp_path / "out", small_data).together is None
    assert ask([teacher], tmp_path / "out", fewer).together is not None


@pytest.mark.heavy
@pytest.mark.parametrize("kind", slow_except(("ensemble",), ("ensemble", "timm ViT", "ONNX float", "ONNX uint8")))
def test_teachers_of_other_kinds_are_scored_as_they_teach(
    kind: str, small_data: Data, short_timing: None, tmp_path: Path
) -> None:
    said = Said()
    if kind == "ensemble":  # one that guesses, and one that knows all
        teachers: list[str | Path] = [write_program(tmp_path)[0], write_answers(tmp_path, small_data)]
    else:
        teachers = [next(each for each in NETWORKS if each.name == kind).write(tmp_path)[0]]
    row = taught(teachers, tmp_path / "out", small_data, said)[1].report.rows[-1]
    assert row.lesson is not None
    assert row.lesson.taught is not None
    assert (kind == "ensemble") == (row.lesson.taught == 1.0)
    chance = [text for text in row.warnings if "as the student's images come to it: top-1" in text]
    assert len(chance) == 1
    early = next(place for place, line in enumerate(said.lines) if chance[0] in line)
    assert early < next(place for place, line in enumerate(said.lines) if "epoch 1/2" in line)
