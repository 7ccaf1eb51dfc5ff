"""Fine-tuning through recipes and the command line: what runs, what is repeated, and what the report says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import convnext_deploy as api
from convnext_deploy.api.convert import convert
from convnext_deploy.api.options import DataOptions, ExecutionOptions, TrainingOptions
from convnext_deploy.artifacts.artifact import Artifact, read_artifact
from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.config.recipe import Recipe
from convnext_deploy.config.recipe_toml import load_recipe
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import OutputError
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.pipeline.open_foreign import open_references
from convnext_deploy.pipeline.run import RunResult, run_recipe
from convnext_deploy.pipeline.stage import Settings
from convnext_deploy.system.execution import Execution
from tests.cli.conftest import Outcome, assert_nothing_half_written, call
from tests.details import torch_details
from tests.rows import rows_in
from tests.weights import PREPROCESS, random_network, write_weights

CLASSES = ("cat", "dog", "owl")
QUICK = ("--epochs", "1", "--batch-size", "36", "--base-learning-rate", "1e-9", "--workers", "0", "--device", "cpu")
RECIPE = """
name = "tuned"
[[stages]]
kind = "train"
name = "model"
[stages.model]
name = "test_convnext"
image_size = 64
weights = "{weights}"
[stages.fit]
epochs = 1
batch_size = 36
base_learning_rate = 1e-9
warmup_epochs = 0
[[stages]]
kind = "distill"
name = "student"
teacher = "model"
[stages.model]
name = "test_convnext2"
image_size = 64
[stages.fit]
epochs = 1
batch_size = 36
base_learning_rate = 1e-9
warmup_epochs = 0
"""


@pytest.fixture(autouse=True, scope="module")
def _short_timing(short_timing: None) -> None:
    """Nothing here looks at the latency."""


def write_start(
    path: Path,
    classes: int = 3,
    names: tuple[str, ...] | None = CLASSES,
    *,
    variant: str = "test_convnext",
    seed: int = 0,
) -> Path:
    return write_weights(path, ModelSpec(variant, classes), names, PREPROCESS, seed=seed)


def write_recipe(folder: Path, weights: Path, text: str = RECIPE) -> Path:
    path = folder / "tuned.toml"
    path.write_text(text.format(weights=weights))
    return path


def run_tuned(recipe: Recipe, out: Path, data: Data, *, restart: bool = False) -> RunResult:
    settings = Settings(out, Execution(), restart=restart)
    return run_recipe(recipe, settings, data=data, weights=open_references(recipe))


def rows_of(outcome: Outcome) -> dict[str, dict[str, Any]]:
    assert outcome.code == 0, outcome.err
    return rows_in(outcome.out)


def body_difference(artifact: Artifact, variant: str = "test_convnext") -> float:
    """Return the largest change of a weight outside of the head, from those that `write_start` writes."""
    found, given = load_network(artifact).state_dict(), random_network(ModelSpec(variant, 3)).state_dict()
    return max(float((found[key] - given[key]).abs().max()) for key in given if not key.startswith("head."))


def test_run_recipe_repeats_a_stage_when_its_weights_change(small_data: Data, tmp_path: Path) -> None:
    weights = write_start(tmp_path / "w.safetensors")
    recipe = load_recipe(write_recipe(tmp_path, weights))
    first = run_tuned(recipe, tmp_path / "out", small_data)
    assert first.executed == ("model", "student")
    model = read_artifact(tmp_path / "out" / "stages" / "model")
    assert body_difference(model) < 1e-6
    assert model.lineage[-1].input_paths == {"weights": str(weights)}
    assert run_tuned(recipe, tmp_path / "out", small_data).executed == ()
    write_start(weights, seed=1)
    with pytest.raises(
        OutputError, match=r"made otherwise: model \(input weights w.safetensors \(.*…\) → w.safetensors \("
    ):
        run_tuned(recipe, tmp_path / "out", small_data)
    assert run_tuned(recipe, tmp_path / "out", small_data, restart=True).executed == ("model", "student")
    assert read_artifact(tmp_path / "out" / "stages" / "model").sha256 != model.sha256


def test_dry_run_says_what_would_run_and_writes_nothing_when_stages_start_from_weights(
    small_data: Data, image_folder: Path, tmp_path: Path
) -> None:
    weights = write_start(tmp_path / "w.safetensors")
    recipe, out = write_recipe(tmp_path, weights), tmp_path / "out"
    flags = ("--dry-run", "--data", image_folder, "--out", out)
    outcome = call("run", recipe, *flags)
    lines = [f"model: train from weights:{weights}: would run", "student: distill from model: would run"]
    assert (outcome.code, outcome.out.splitlines()) == (0, lines)
    assert not out.exists()
    run_tuned(load_recipe(recipe), out, small_data)
    outcome = call("run", recipe, *flags)
    assert [line.rpartition(": ")[2] for line in outcome.out.splitlines()] == ["up to date"] * 2
    write_start(weights, seed=1)
    outcome = call("run", recipe, *flags)
    assert (outcome.code, outcome.out) == (1, "")
    assert "model (input weights w.safetensors (" in outcome.err
    outcome = call("run", recipe, *flags, "--restart")
    assert [line.rpartition(": ")[2] for line in outcome.out.splitlines()] == ["would run"] * 2


@pytest.mark.parametrize("dry", [False, True])
def test_run_ends_with_one_line_when_the_weights_of_a_recipe_are_missing(
    dry: bool, image_folder: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, tmp_path / "none.pth")
    outcome = call("run", recipe, *(["--dry-run"] if dry else []), "--data", image_folder, "--out", tmp_path / "out")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.splitlines()[-1].startswith(f"error: {tmp_path / 'none.pth'} does not exist")
    assert not (tmp_path / "out").exists()


def test_run_ends_with_one_line_when_a_recipe_has_empty_weights(image_folder: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, Path())
    recipe.write_text(recipe.read_text().replace('"."', '""'))
    outcome = call("run", recipe, "--data", image_folder, "--out", tmp_path / "out")
    assert (outcome.code, outcome.out) == (1, "")
    assert "weights" in outcome.err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


OTHERS: list[tuple[int, tuple[str, ...] | None, str]] = [
    (5, None, "has 5 classes"),
    (3, ("cat", "dog", "yak"), "was trained with class 'yak' where"),
]


@pytest.mark.parametrize(("classes", "names", "reason"), OTHERS, ids=["count", "names"])
def test_train_reports_weights_for_other_classes_as_not_validated(
    classes: int, names: tuple[str, ...] | None, reason: str, image_folder: Path, tmp_path: Path
) -> None:
    weights = write_start(tmp_path / "w.safetensors", classes, names)
    flags = ("--data", image_folder, "--out", tmp_path / "out", "--json")
    outcome = call("train", "--weights", weights, *flags, *QUICK)
    rows = rows_of(outcome)
    assert list(rows) == ["source", "model"]
    assert rows["source"]["accuracy"] is None
    assert rows["source"]["not_run"].startswith("not validated: source ")
    assert reason in rows["source"]["not_run"]
    assert (rows["model"]["accuracy"]["total"], rows["model"]["provenance"]["baseline"]) == (18, None)
    assert rows["model"]["identity"]["variant"] == "test_convnext"
    assert "model: head.weight, head.bias start fresh" in outcome.err
    model = read_artifact(tmp_path / "out" / "stages" / "model")
    assert (model.class_names, model.model, model.preprocess) == (CLASSES, ModelSpec("test_convnext", 3), PREPROCESS)
    assert body_difference(model) < 1e-6
    assert "not validated: source" in (tmp_path / "out" / "report.md").read_text()


def test_quantize_still_refuses_weights_for_other_classes(image_folder: Path, tmp_path: Path) -> None:
    weights = write_start(tmp_path / "w.safetensors", 5, None)
    outcome = call("quantize", weights, "--data", image_folder, "--out", tmp_path / "out", "--workers", "0")
    assert outcome.code == 1
    assert "has 5 classes" in outcome.err.splitlines()[-1]


def test_train_takes_the_network_from_the_weights_of_another_library(image_folder: Path, tmp_path: Path) -> None:
    source = write_start(tmp_path / "own.safetensors")
    folder = convert(source, "timm", tmp_path / "timm").path
    flags = ("--data", image_folder, "--out", tmp_path / "out", "--json")
    rows = rows_of(call("train", "--weights", folder, *flags, *QUICK))
    assert rows["source"]["accuracy"]["correct"] == rows["model"]["accuracy"]["correct"]
    model = read_artifact(tmp_path / "out" / "stages" / "model")
    assert (model.model.variant, model.preprocess, model.class_names) == ("test_convnext", PREPROCESS, CLASSES)


def test_train_asks_for_a_model_when_there_is_nothing_to_tell_it(image_folder: Path) -> None:
    outcome = call("train", "--data", image_folder)
    assert outcome.code == 2
    assert "give --model, or what to start from with --checkpoint or --weights" in outcome.err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--model", "tiny"), "holds a test_convnext, not the convnext_tiny asked for with --model"),
        (("--patch-size", "8"), "its patch_size is 4, this stage asks for 8"),
    ],
    ids=["model", "patch-size"],
)
def test_train_ends_with_one_line_when_the_weights_are_not_as_asked(
    flags: tuple[str, ...], expected: str, image_folder: Path, tmp_path: Path
) -> None:
    weights = write_start(tmp_path / "w.safetensors")
    outcome = call("train", "--weights", weights, *flags, "--data", image_folder, "--out", tmp_path / "out", *QUICK)
    assert outcome.code == 1
    assert expected in outcome.err.splitlines()[-1]
    assert_nothing_half_written(tmp_path)


def test_train_refuses_a_checkpoint_and_weights_together(image_folder: Path, tmp_path: Path) -> None:
    weights = write_start(tmp_path / "w.safetensors")
    outcome = call("train", "--weights", weights, "--checkpoint", weights, "--data", image_folder)
    assert outcome.code == 2
    assert "--checkpoint and --weights were both given" in outcome.err


def test_distill_takes_both_networks_from_their_weights(image_folder: Path, tmp_path: Path) -> None:
    teacher = write_start(tmp_path / "teacher.safetensors")
    student = write_start(tmp_path / "student.safetensors", 5, None, variant="test_convnext2")
    names = ("--teacher-weights", teacher, "--student-weights", student)
    outcome = call("distill", *names, "--data", image_folder, "--out", tmp_path / "out", "--json", *QUICK)
    rows = rows_of(outcome)
    assert [(name, row["identity"]["variant"]) for name, row in rows.items()] == [
        ("source", "test_convnext"),
        ("student", "test_convnext2"),
    ]
    assert "student: head.weight, head.bias start fresh" in outcome.err
    artifact = read_artifact(tmp_path / "out" / "stages" / "student")
    assert body_difference(artifact, "test_convnext2") < 1e-6
    assert artifact.lineage[-1].input_paths == {"teacher": str(teacher), "weights": str(student)}


def test_distill_asks_for_a_network_that_nothing_tells(image_folder: Path, tmp_path: Path) -> None:
    weights = write_start(tmp_path / "w.safetensors")
    outcome = call("distill", "--teacher-weights", weights, "--data", image_folder)
    assert outcome.code == 2
    assert "give --student, or its weights" in outcome.err
    twice = ("--teacher-weights", weights, "--teacher-checkpoint", weights, "--student", "atto")
    assert "--teacher-checkpoint and --teacher-weights were both given" in call("distill", *twice).err


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_api_train_learns_from_weights_and_leaves_their_file_alone(
    suffix: str, image_folder: Path, tmp_path: Path
) -> None:
    weights = write_start(tmp_path / "own.safetensors", 5, None)
    if suffix == ".pth":
        weights = tmp_path / "own.pth"
        torch.save(random_network(ModelSpec("test_convnext", 5)).state_dict(), weights)
    before = weights.read_bytes()
    training = TrainingOptions(
        2, 12, base_learning_rate=0.1, head_hidden_size=8, head_dropout=0.1, gradient_checkpointing=True
    )
    result = api.train(
        checkpoint=weights,
        out=tmp_path / "out",
        data=DataOptions(image_folder, image_size=64),
        training=training,
        execution=ExecutionOptions(device="cpu", workers=0),
    )
    assert weights.read_bytes() == before
    model = read_artifact(tmp_path / "out" / "stages" / "model")
    assert result.report.passed
    assert model.model == ModelSpec("test_convnext", 3, head_hidden_size=8)
    assert body_difference(model) > 1e-4
    config = model.lineage[-1].config
    assert (config["fit"]["head_dropout"], config["fit"]["gradient_checkpointing"]) == (0.1, True)
    assert torch.isfinite(torch.tensor([epoch["train_loss"] for epoch in torch_details(model).history])).all()
