"""Distillation with images that the teacher alone labels: the loss, the same bits by every way, keys and names."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file
from torch import Tensor, nn

import convnext_deploy as api
from convnext_deploy.api.options import DataOptions, ExecutionOptions, TrainingOptions
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.recipe import Recipe, StageEntry
from convnext_deploy.config.recipe_toml import load_recipe
from convnext_deploy.config.train import TrainConfig
from convnext_deploy.data.contents import Contents
from convnext_deploy.data.datasets import Data, FolderImages
from convnext_deploy.data.loaders import Batch
from convnext_deploy.data.unlabelled import mix_in, open_unlabelled
from convnext_deploy.errors import DataError, RecipeError
from convnext_deploy.pipeline.ingredients import differences, ingredients_of
from convnext_deploy.reports.recipe_toml import write_recipe
from convnext_deploy.stages import distill, teachers
from convnext_deploy.training.checkpoint_store import TrainingStore
from convnext_deploy.training.losses import dkd_loss, kd_loss
from convnext_deploy.training.predictions import PredictionTable, find_rows
from convnext_deploy.training.student_loss import Distillation, distillation_loss
from tests.conftest import draw_image
from tests.shared import slow_except
from tests.stages.conftest import FIT, Train
from tests.stages.test_distill import MODEL, STUDENT, TEACHER, write
from tests.training.fake_batches import KilledError
from tests.weights import assert_equal_states

QUICK = dataclasses.replace(FIT, epochs=2, batch_size=20)
LABELLED = 3  # of 8 rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root, rng = tmp_path / "more", np.random.default_rng(7)
    (root / "cat").mkdir(parents=True)
    for number in range(24):
        draw_image(number, rng).save(root / ("cat" if number % 2 else "") / f"{number}.png")
    return root


@pytest.fixture
def data(small_data: Data, folder: Path) -> Data:
    judging = [small_data.validation]
    return dataclasses.replace(
        small_data, unlabelled=open_unlabelled(str(folder), small_data.train, judging, Contents())
    )


def draw(multi_label: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 8, 4, generator=generator)
    labels = torch.randint(0, 2 if multi_label else 4, (8, 4) if multi_label else (8,), generator=generator)
    labels[LABELLED:] = -1
    return student, teacher, labels


@pytest.mark.parametrize("form", ["classes", "probabilities", "several labels"])
def test_labels_count_as_the_mean_over_images_that_have_some_and_the_teacher_as_that_over_all(form: str) -> None:
    """And the parts of a batch, which processes and accumulation make, add up to the whole."""
    student, teacher, labels = draw(form == "several labels")
    by = Distillation(
        temperature=2.0,
        distill_loss_weight=0.3,
        label_smoothing=0.1,
        labelled_share=LABELLED / 8,
        multi_label=form == "several labels",
    )
    if form == "probabilities":
        labels = torch.where(
            (labels < 0)[:, None], torch.full((8, 4), -1.0), F.one_hot(labels.clamp(min=0), 4) * 0.7 + 0.075
        )
    found = distillation_loss(student, teacher, labels, by)
    plain = dataclasses.replace(by, labelled_share=1.0)
    hard = distillation_loss(student[:LABELLED], None, labels[:LABELLED], plain)
    soft = distillation_loss(student, teacher, labels.clamp(min=0), dataclasses.replace(plain, method="teacher-only"))
    torch.testing.assert_close(found, 0.7 * hard + 0.3 * soft)
    torch.testing.assert_close(distillation_loss(student, None, labels, by), hard)
    halves = [distillation_loss(student[rows], teacher[rows], labels[rows], by) for rows in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(sum(halves) / 2, found)


def test_other_methods_need_no_label_of_an_image() -> None:
    student, teacher, labels = draw()
    by = Distillation(distill_loss_weight=1.0, labelled_share=LABELLED / 8)
    target = labels.clone()
    target[LABELLED:] = teacher[LABELLED:].argmax(1)
    weights: dict[str, Any] = {"temperature": 1.0, "alpha": 1.0, "beta": 2.0}
    found = distillation_loss(student, teacher, labels, dataclasses.replace(by, method="dkd"))
    torch.testing.assert_close(found, dkd_loss(student, teacher, target, **weights))
    alone = dataclasses.replace(by, method="teacher-only", labelled_share=0.0)
    torch.testing.assert_close(
        distillation_loss(student, teacher, torch.full((8,), -1), alone), kd_loss(student, teacher, 1.0)
    )


def test_training_has_the_same_bits_cached_killed_and_in_parts(
    train: Train, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = dataclasses.replace(QUICK, mixup_alpha=0.8)
    expected, history = train(fit, data=data, teacher_cache=False)
    cached, cached_history = train(fit, data=data)
    assert_equal_states(cached, expected)
    assert cached_history == history

    make, done = teachers.distillation_objective, [0]

    def create(*arguments: Any, **options: Any) -> Any:
        objective = make(*arguments, **options)

        def compute(network: nn.Module, batch: Batch) -> Tensor:
            done[0] += 1
            if done[0] == 5:  # in the second of two epochs of 3 batches
                raise KilledError
            return objective(network, batch)

        return compute

    monkeypatch.setattr(distill, "distillation_objective", create)
    store = TrainingStore(tmp_path / "state", "key", 0.0)
    with pytest.raises(KilledError):
        train(fit, data=data, store=store)
    resumed, resumed_history = train(fit, data=data, store=TrainingStore(tmp_path / "state", "key", 0.0))
    assert done[0] == 5 + 2
    assert_equal_states(resumed, expected)
    assert resumed_history == history
    without, _ = train(fit, data=data, unlabelled_share=0.0)
    plain, _ = train(fit, data=dataclasses.replace(data, unlabelled=None))
    assert_equal_states(without, plain)
    assert any(not torch.equal(plain[name], expected[name]) for name in plain)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "method", slow_except(("teacher-only", "feature"), ("teacher-only", "hard-label", "dkd", "dist", "feature"))
)
def test_every_method_trains_with_unlabelled_images(method: Any, train: Train, data: Data) -> None:
    found, history = train(QUICK, data=data, method=method, teacher_cache=False)
    assert all(np.isfinite(row["train_loss"] or np.nan) for row in history)
    if method == "teacher-only":  # whose loss is that of the teacher, whatever the labels say
        assert isinstance(data.train, FolderImages)
        other = dataclasses.replace(data.train, labels=(data.train.labels + 1) % 3)
        again, _ = train(QUICK, data=dataclasses.replace(data, train=other), method=method, teacher_cache=False)
        assert_equal_states(again, found)
        alone, _ = train(QUICK, data=data, method=method, unlabelled_share=1.0)
        cached, _ = train(QUICK, data=data, method=method, unlabelled_share=1.0, teacher_cache=False)
        assert_equal_states(cached, alone)


@pytest.mark.heavy
def test_multi_label_data_is_distilled_with_unlabelled_images(
    train: Train, data: Data, weights: dict[str, Artifact], tmp_path: Path
) -> None:
    for name, spec in (("teacher", TEACHER), ("student", STUDENT)):
        weights[name] = write(tmp_path, f"several-{name}", dataclasses.replace(spec, multi_label=True), 1)
    several = data.as_multi_label()
    found, history = train(QUICK, data=several, teacher_cache=False)
    assert np.isfinite(history[-1]["train_loss"] or np.nan)
    without, _ = train(QUICK, data=dataclasses.replace(several, unlabelled=None), teacher_cache=False)
    assert any(not torch.equal(found[name], without[name]) for name in found)


def table(path: Path, names: list[str]) -> Path:
    vectors = np.random.default_rng(0).normal(size=(len(names), 3)).astype(np.float32)
    save_file({"logits": vectors}, path, metadata={"files": json.dumps(names)})
    return path


def test_a_file_of_predictions_tells_the_images_of_two_folders_apart(data: Data, folder: Path, tmp_path: Path) -> None:
    """Both have a cat/1.png, and so has the validation."""
    assert data.unlabelled is not None
    mixed = dataclasses.replace(data, train=mix_in(data.train, data.unlabelled, None))
    root = Path(data.name)
    assert isinstance(data.train, FolderImages)
    assert isinstance(data.unlabelled.images, FolderImages)
    own = [path.relative_to(root).as_posix() for path in data.train.paths]
    others = [path.relative_to(folder.parent).as_posix() for path in data.unlabelled.images.paths]
    path = table(tmp_path / "t.safetensors", [*reversed(others), *own])
    read = PredictionTable(path, mixed, "logits")
    expected = PredictionTable(path, data, "logits")
    assert len(read.vectors) == 36 + 24
    assert torch.equal(read.vectors[:36], expected.vectors)
    assert len({tuple(vector) for vector in read.vectors.tolist()}) == 60
    short = [path.relative_to(folder).as_posix() for path in data.unlabelled.images.paths]
    with pytest.raises(DataError, match=r"that fits .*more/.* and .*val/.*; name them with more of their folders"):
        find_rows([*own, *short], mixed, path)
    with pytest.raises(DataError, match="the same name for several training images"):
        find_rows([*{*(name.removeprefix("train/") for name in own), *short}], mixed, path)
    with pytest.raises(DataError, match="has no vector for 24 of 60 training images"):
        find_rows(own, mixed, path)


def test_the_key_of_a_stage_tells_which_images_its_teacher_labels(
    data: Data, folder: Path, tmp_path: Path, small_data: Data
) -> None:
    distilled = StageEntry("student", DistillConfig(MODEL, "teacher", QUICK), None)
    trained = StageEntry("teacher", TrainConfig(MODEL, QUICK), None)
    teacher: dict[str, Artifact] = {"teacher": write(tmp_path, "teacher", TEACHER, 1)}
    found = ingredients_of(distilled, teacher, data, 0)
    assert found.places["unlabelled"] == str(folder)
    none = StageEntry("student", DistillConfig(MODEL, "teacher", QUICK, unlabelled_share=0.0), None)
    for stage, given in ((trained, {}), (none, teacher)):
        assert ingredients_of(stage, given, data, 0).key == ingredients_of(stage, given, small_data, 0).key
    (folder / "0.png").unlink()
    fewer = open_unlabelled(str(folder), data.train, [], Contents())
    other = ingredients_of(distilled, teacher, dataclasses.replace(data, unlabelled=fewer), 0)
    assert other.key != found.key
    (said,) = differences(found, other)
    assert said.startswith("input unlabelled more (")


def test_what_cannot_be_is_refused(train: Train, small_data: Data) -> None:
    with pytest.raises(RecipeError, match=r"unlabelled_share = 1 leaves no image with a label.*'teacher-only'"):
        DistillConfig(MODEL, "teacher", QUICK, unlabelled_share=1.0)
    with pytest.raises(RecipeError, match=r"unlabelled_share = 1.5 .*0 to 1"):
        DistillConfig(MODEL, "teacher", QUICK, unlabelled_share=1.5)
    with pytest.raises(RecipeError, match=r"unlabelled_share = 0.5 asks for .* there are none.*--unlabelled DIR"):
        train(QUICK, data=small_data, unlabelled_share=0.5)
    stages = (StageEntry("alone", TrainConfig(MODEL, QUICK), None),)
    with pytest.raises(RecipeError, match="names unlabelled images, and none of its stages has a teacher"):
        Recipe("r", stages, unlabelled="more")


@pytest.mark.heavy
def test_the_verb_and_its_recipe_say_what_was_done(folder: Path, image_folder: Path, tmp_path: Path) -> None:
    result = api.distill(
        None,
        "test_convnext2",
        teacher_checkpoint=write(tmp_path, "teacher", TEACHER, 1).main_file,
        unlabelled_share=0.25,
        out=tmp_path / "out",
        data=DataOptions(image_folder, image_size=32, unlabelled=folder),
        training=TrainingOptions(epochs=1, batch_size=16),
        execution=ExecutionOptions(workers=0),
    )
    (row,) = (row for row in result.report.rows if row.name == "student")
    assert any("24 images without labels" in note for note in row.notes)
    (tmp_path / "again.toml").write_text(write_recipe(result.report) or "")
    recipe = load_recipe(tmp_path / "again.toml")
    assert recipe.unlabelled == str(folder)
    assert recipe.stages[0].config.unlabelled_share == 0.25  # type: ignore[attr-defined]
    assert api.run(recipe, out=tmp_path / "out", execution=ExecutionOptions(workers=0)).executed == ()
