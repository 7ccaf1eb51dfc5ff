"""Distillation through its stage and QAT with a kept teacher: what is computed, what is saved, what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convnext_deploy as api
from convnext_deploy.api.options import DataOptions, ExecutionOptions, TrainingOptions
from convnext_deploy.artifacts.artifact import Artifact, read_artifact, write_manifest
from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.ptq import PTQConfig
from convnext_deploy.config.quantize import QATConfig
from convnext_deploy.config.recipe_toml import load_recipe
from convnext_deploy.config.train import ModelConfig
from convnext_deploy.data.datasets import Data
from convnext_deploy.data.loaders import Batch
from convnext_deploy.errors import ArtifactError, DataError, RecipeError
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.models.checkpoints.safe_reader import load_metadata
from convnext_deploy.models.checkpoints.state_dict import load_checkpoint
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.pipeline.run import run_recipe
from convnext_deploy.pipeline.stage import Settings
from convnext_deploy.stages import distill, ptq, qat, quantized_training
from convnext_deploy.stages.context import StageContext
from convnext_deploy.stages.teachers import distillation_objective
from convnext_deploy.system.execution import Execution
from convnext_deploy.training.losses import average_teachers
from convnext_deploy.training.student_loss import Distillation, distillation_loss
from convnext_deploy.training.teacher_cache import rounded
from tests.weights import PREPROCESS, noise_images, random_network, write_weights

CLASSES = ("cat", "dog", "owl")
TEACHER, STUDENT = ModelSpec("test_convnext", 3), ModelSpec("test_convnext2", 3)
MODEL = ModelConfig("test_convnext2", 64, crop_pct=PREPROCESS.crop_pct)
QUICK = FitConfig(epochs=1, batch_size=18, base_learning_rate=1.0, warmup_epochs=0, drop_path_rate=0.0, autocast="off")
METHODS: tuple[Any, ...] = ("kd", "teacher-only", "hard-label", "dkd", "dist", "feature")
IMAGES, LABELS = noise_images(3, 64, 4), torch.tensor([0, 1, 2, 0])


def write(folder: Path, name: str, spec: ModelSpec, seed: int = 0, classes: tuple[str, ...] = CLASSES) -> Artifact:
    return open_input(write_weights(folder / f"{name}.safetensors", spec, classes, PREPROCESS, seed=seed))


@pytest.fixture
def create_context(small_data: Data, tmp_path: Path) -> Callable[..., StageContext]:
    def create(name: str, **inputs: Any) -> StageContext:
        output = tmp_path / f"stage-{name}"
        output.mkdir()
        return StageContext(name, output, small_data, Execution(), tmp_path / "cache", **inputs)

    return create


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a stage handed to its training, and the loss on four images; nothing is trained."""
    found: dict[str, Any] = {}

    def compute(network: nn.Module, _: Any, __: Any, ___: Any, objective: Any) -> list[dict[str, float]]:
        found["names"] = [name for name, _ in network.named_parameters()]
        network.train()
        with torch.no_grad():
            found["loss"] = objective(network, Batch(IMAGES, LABELS)).item()
        return []

    for stage in (distill, quantized_training):
        monkeypatch.setattr(stage, "fit_network", compute)
    return found


@pytest.mark.parametrize("method", METHODS[:5])
def test_distill_trains_with_the_loss_of_its_settings(
    method: Any, create_context: Callable[..., StageContext], seen: dict[str, Any], tmp_path: Path
) -> None:
    teacher, student = write(tmp_path, "teacher", TEACHER, 1), write(tmp_path, "student", STUDENT)
    config = DistillConfig(MODEL, "teacher", QUICK, method, 3.0, 0.4, dkd_alpha=0.5, dkd_beta=4.0)
    distill.run(config, None, create_context("student", teachers=(teacher,), weights=student))
    with torch.no_grad():
        logits = random_network(STUDENT)(IMAGES), rounded(random_network(TEACHER, 1)(IMAGES), 1.0)
    options: dict[str, Any] = {"method": method, "temperature": 3.0, "distill_loss_weight": 0.4, "label_smoothing": 0.1}
    expected = distillation_loss(*logits, LABELS, Distillation(dkd_alpha=0.5, dkd_beta=4.0, **options))
    assert seen["loss"] == pytest.approx(expected.item(), rel=1e-4)
    assert not any(name.startswith("feature") for name in seen["names"])


def test_distill_adds_the_loss_of_features_by_its_weight(
    create_context: Callable[..., StageContext], seen: dict[str, Any], tmp_path: Path
) -> None:
    teacher, student = write(tmp_path, "teacher", TEACHER, 1), write(tmp_path, "student", STUDENT)
    losses = []
    for weight in (0.0, 1.0, 3.0):
        config = DistillConfig(MODEL, "teacher", QUICK, "feature", feature_loss_weight=weight)
        context = create_context(f"student-{weight}", teachers=(teacher,), weights=student)
        distill.run(config, None, context)
        losses.append(seen["loss"])
    distill.run(
        DistillConfig(MODEL, "teacher", QUICK), None, create_context("kd", teachers=(teacher,), weights=student)
    )
    assert losses[0] == pytest.approx(seen["loss"], rel=1e-5)
    assert 0.5 < losses[1] - losses[0] < 4
    assert losses[2] - losses[0] == pytest.approx(3 * (losses[1] - losses[0]), rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_distill_trains_the_student_and_saves_nothing_else(
    method: Any, create_context: Callable[..., StageContext], tmp_path: Path
) -> None:
    teacher, student = write(tmp_path, "teacher", TEACHER, 1), write(tmp_path, "student", STUDENT)
    context = create_context("student", teachers=(teacher,), weights=student)
    artifact = distill.run(DistillConfig(MODEL, "teacher", QUICK, method), None, context)
    write_manifest(artifact)
    state, before = load_checkpoint(artifact.main_file).state, random_network(STUDENT).state_dict()
    assert state.keys() == before.keys()
    assert all(not torch.equal(state[name], before[name]) for name in before if name.endswith("weight"))
    assert load_network(read_artifact(artifact.path))(IMAGES).isfinite().all()
    assert load_metadata(artifact.main_file)["model"]["variant"] == "test_convnext2"


def test_distillation_objective_follows_the_mean_prediction_of_several_teachers() -> None:
    student, teachers = random_network(STUDENT), [random_network(TEACHER, seed) for seed in (1, 2)]
    objective = distillation_objective(
        lambda batch: average_teachers([teacher(batch.images) for teacher in teachers], 2.0),
        Distillation(temperature=2.0, distill_loss_weight=1.0, label_smoothing=0.0),
    )
    found = objective(student, Batch(IMAGES, LABELS))
    found.backward()
    assert all(p.grad is None for teacher in teachers for p in teacher.parameters())
    with torch.no_grad():
        mean = sum((teacher(IMAGES).double() / 2).softmax(dim=1) for teacher in teachers) / 2
        log_q = (student(IMAGES).double() / 2).log_softmax(dim=1)
    assert isinstance(mean, Tensor)
    assert found.item() == pytest.approx(4 * (mean * (mean.log() - log_q)).sum(dim=1).mean().item(), rel=1e-4)


@pytest.fixture
def quantized(create_context: Callable[..., StageContext], tmp_path: Path) -> Artifact:
    config = PTQConfig(calibration_images=6)
    artifact = ptq.run(config, write(tmp_path, "float", STUDENT), create_context("ptq"))
    write_manifest(artifact)
    return read_artifact(artifact.path)


def expected_qat_loss(quantized: Artifact, teacher: nn.Module) -> float:
    with torch.no_grad():
        p = teacher(IMAGES).double().softmax(dim=1)
        q = load_network(quantized)(IMAGES).double().softmax(dim=1)
    return F.kl_div(q.log(), p, reduction="batchmean").item()


def test_qat_keeps_the_teacher_that_it_is_given(
    quantized: Artifact, create_context: Callable[..., StageContext], seen: dict[str, Any], tmp_path: Path
) -> None:
    qat.run(QATConfig(QUICK), quantized, create_context("own"))
    own = seen["loss"]
    # what is left is so little that the ties of rounding, which go either way with the batch, are a part of it
    assert own == pytest.approx(expected_qat_loss(quantized, random_network(STUDENT)), rel=0.3)
    teacher = write(tmp_path, "teacher", TEACHER, 1)
    qat.run(QATConfig(QUICK, "teacher"), quantized, create_context("kept", teachers=(teacher,)))
    assert seen["loss"] == pytest.approx(expected_qat_loss(quantized, random_network(TEACHER, 1)), rel=1e-3)
    assert seen["loss"] > 100 * own


def test_qat_refuses_a_teacher_that_is_missing_or_of_other_classes(
    quantized: Artifact, create_context: Callable[..., StageContext], tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=r"^stage 'none' has no teacher artifact\.$"):
        qat.run(QATConfig(QUICK, "teacher"), quantized, create_context("none"))
    other = write(tmp_path, "other", TEACHER, classes=("cat", "dog", "yak"))
    with pytest.raises(DataError, match="was trained with class 'yak' where"):
        qat.run(QATConfig(QUICK, "teacher"), quantized, create_context("other", teachers=(other,)))


RECIPE = """
name = "kept"
source = "teacher.safetensors"
[[stages]]
kind = "distill"
name = "student"
teacher = "source"
method = "feature"
model = { name = "test_convnext2", image_size = 64 }
fit = { epochs = 1, batch_size = 18 }
[[stages]]
kind = "ptq"
calibration_images = 6
[[stages]]
kind = "qat"
teacher = "source"
fit = { epochs = 1, batch_size = 18 }
"""


def test_recipe_keeps_the_teacher_from_distillation_to_qat(
    small_data: Data, short_timing: None, tmp_path: Path
) -> None:
    (tmp_path / "r.toml").write_text(RECIPE)
    recipe, teacher = load_recipe(tmp_path / "r.toml"), write(tmp_path, "teacher", TEACHER, 1)
    run_recipe(recipe, Settings(tmp_path / "out", Execution()), source=teacher, data=small_data)
    lineage = read_artifact(tmp_path / "out" / "stages" / "qat").lineage
    assert [(record.name, sorted(record.inputs)) for record in lineage] == [
        ("student", ["teacher"]),
        ("ptq", ["source"]),
        ("qat", ["source", "teacher"]),
    ]
    assert {record.inputs["teacher"] for record in lineage if "teacher" in record.inputs} == {teacher.sha256}


def test_api_distill_takes_the_method(image_folder: Path, short_timing: None, tmp_path: Path) -> None:
    write(tmp_path, "teacher", TEACHER, 1)
    api.distill(
        None,
        "test_convnext2",
        teacher_checkpoint=tmp_path / "teacher.safetensors",
        distill_method="dkd",
        out=tmp_path / "out",
        data=DataOptions(image_folder, image_size=64),
        training=TrainingOptions(epochs=1, batch_size=18),
        execution=ExecutionOptions(device="cpu", workers=0),
    )
    config = read_artifact(tmp_path / "out" / "stages" / "student").lineage[-1].config
    assert (config["method"], config["temperature"], config["distill_loss_weight"]) == ("dkd", 4.0, 0.9)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", (0.0, -1.0, 0.009, 101.0, float("inf"), float("nan"))),
        ("distill_loss_weight", (-0.1, 1.1, float("nan"))),
        *((name, (-0.1, float("inf"), float("nan"))) for name in ("dkd_alpha", "dkd_beta", "feature_loss_weight")),
    ],
)
def test_distill_config_refuses_values_out_of_range(name: str, values: tuple[float, ...]) -> None:
    config = DistillConfig(MODEL, "teacher")
    for value in values:
        with pytest.raises(RecipeError, match=rf"^{name} = {value} is out of range; expected [^\n]+$"):
            dataclasses.replace(config, **{name: value})  # type: ignore[arg-type]


def test_distill_config_refuses_features_with_gradient_checkpointing() -> None:
    fit = dataclasses.replace(QUICK, gradient_checkpointing=True)
    assert DistillConfig(MODEL, "teacher", fit).fit == fit
    with pytest.raises(RecipeError, match=r"^method = 'feature' needs what gradient_checkpointing drops"):
        DistillConfig(MODEL, "teacher", fit, "feature")


def test_load_recipe_names_an_unknown_method(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE.replace('"feature"', '"features"'))
    with pytest.raises(
        RecipeError, match="method = 'features' is unknown; expected one of 'kd', 'teacher-only', 'hard-"
    ):
        load_recipe(tmp_path / "r.toml")
