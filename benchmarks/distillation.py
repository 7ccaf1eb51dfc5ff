"""What a teacher is worth: a student alone, taught by a foreign network, and by a ConvNeXt, on CIFAR-10 over several seeds.

    python benchmarks/distillation.py --data DIR [--seeds 0 1 2] [--rows NAME …] [--foreign FILE.onnx] [--work DIR] [--out FILE]

Two teachers are trained once, unless they are there: `foreign_teacher.py` makes a residual network in plain PyTorch and saves it
as ONNX, and this package trains a `femto` with a stem of 2. The student, an `atto` with a stem of 2, then learns in every row of
`ROWS` for the same number of epochs with the same settings, from the same initial weights and with the same crops in the same
order. Each is scored on all test images. All rows of the first seed come before those of the next.

It takes hours and may be ended at any time: a trained cell is written at once, and what was begun goes on from its last state when
the same command is started again. Predictions of teachers are kept in `--work`, and shared by rows of one teacher and seed.

In one row every fifth image has a label and the teacher alone says what the others are, in as many steps as the other rows. The
last rows train twice as long; their second half repeats the crops of the first, so that the teachers need not be asked again.

Losses: what `distill` does when nothing is said, which is knowledge distillation at temperature 4 with nine tenths of the weight
(Tian et al. 2020, arXiv 1910.10699, section 4, for CIFAR); at temperature 1 with equal weights (VanillaKD, arXiv 2305.15781); with
logit standardization at temperature 2 and 9 to 0.1 (Sun et al. 2024, arXiv 2403.01427, official code); and DIST at temperature 4
and 2 to 1 (Huang et al. 2022, arXiv 2205.10536, for CIFAR).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distillation_table import render

from convnext_deploy import run, validate
from convnext_deploy.api.options import DataOptions, ExecutionOptions
from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.recipe import Recipe, StageEntry
from convnext_deploy.config.train import ModelConfig, TrainConfig
from convnext_deploy.metrics.intervals import wilson_interval
from convnext_deploy.reports.record import Accuracy
from convnext_deploy.system.environment import describe_environment
from convnext_deploy.system.files import write_text
from convnext_deploy.system.progress_bars import create_progress

HERE = Path(__file__).resolve().parent
BATCH_SIZE = 128
STUDENT, OWN_TEACHER = ModelConfig("atto", 32, 2), ModelConfig("femto", 32, 2)


@dataclass(frozen=True)
class Row:
    """A way to train the student.

    By whom it is taught, `foreign`, `own` or nobody (None), the settings of `DistillConfig`, whether of five images four have no
    label, so that only the teacher says what they are, and for how many times the epochs of other rows.
    """

    name: str
    teacher: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    mostly_unlabelled: bool = False
    times_epochs: int = 1


_USUAL: dict[str, Any] = {
    "method": DistillConfig.method,
    "temperature": DistillConfig.temperature,
    "distill_loss_weight": DistillConfig.distill_loss_weight,
}
_VANILLA = {"temperature": 1.0, "distill_loss_weight": 0.5}
_STANDARDIZED = {"temperature": 2.0, "distill_loss_weight": 0.989, "standardize_logits": True}
_DIST = {"method": "dist", "temperature": 4.0, "distill_loss_weight": 0.667}
ROWS = (
    Row("alone"),
    Row("foreign", "foreign"),
    Row("foreign-standardized", "foreign", _STANDARDIZED),
    Row("own", "own"),
    Row("own-standardized", "own", _STANDARDIZED),
    Row("foreign-dist", "foreign", _DIST),
    Row("foreign-vanilla", "foreign", _VANILLA),
    Row("foreign-fifth", "foreign", mostly_unlabelled=True),
    Row("alone-longer", times_epochs=2),
    Row("foreign-longer", "foreign", times_epochs=2),
    Row("own-longer", "own", times_epochs=2),
)


def fit(epochs: int, arguments: argparse.Namespace, own_crops: int = 0) -> FitConfig:
    """Return the settings that all trainings share: 3e-3 at batch 128, crops of 40 % and more, mirrored.

    `own_crops`: so many epochs have crops of their own; 0: all.
    """
    return FitConfig(
        epochs=epochs,
        batch_size=BATCH_SIZE,
        base_learning_rate=0.096,
        warmup_epochs=1.0,
        drop_path_rate=0.0,
        crop_scale_min=0.4,
        autocast=arguments.autocast,
        augmentation_epochs=own_crops,
    )


def execute(recipe: Recipe, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a recipe of one training in a folder of its name; return what is stored of it."""
    how = ExecutionOptions(progress=create_progress(), cache_dir=arguments.work / "cache")
    out = arguments.work / "runs" / recipe.name
    data = arguments.data if recipe.unlabelled is None else a_fifth(arguments) / "labelled"
    report = run(recipe, out=out, data=DataOptions(data), execution=how).report
    (stage,) = recipe.stages
    assert isinstance(stage.config, TrainConfig | DistillConfig)
    accuracy = next(row.accuracy for row in report.rows if row.name == stage.name)
    history = json.loads((out / "checkpoints" / stage.name / "history.json").read_text(encoding="utf-8"))
    images = sum(1 for _ in (arguments.data / "train").glob("*/*")) // BATCH_SIZE * BATCH_SIZE
    return {
        **_scored(accuracy),
        "epochs": stage.config.fit.epochs,
        "autocast": arguments.autocast,
        # of the steps of all epochs, also of those before it was ended and begun again: with the teacher, without the scoring
        "training_s": sum(images / epoch["images_per_s"] for epoch in history),
        "top1_per_epoch": [epoch["validation_top1"] for epoch in history],
        "commit": _commit(),
        "environment": report.environment,
    }


def _scored(accuracy: Accuracy | None) -> dict[str, Any]:
    assert accuracy is not None
    assert accuracy.correct is not None
    low, high = wilson_interval(accuracy.correct, accuracy.total)
    return {
        "top1": accuracy.correct / accuracy.total,
        "top1_interval": [low, high],
        "correct": accuracy.correct,
        "images": accuracy.total,
    }


def a_fifth(arguments: argparse.Namespace) -> Path:
    """Link every fifth training image of a class into `labelled`, and the others, without classes, into `unlabelled`."""
    folder: Path = arguments.work / "a-fifth"
    if folder.exists():
        return folder
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for images in sorted((arguments.data / "train").resolve().iterdir()):
        for place, file in enumerate(sorted(images.iterdir())):
            name = f"unlabelled/{images.name}-{file.name}" if place % 5 else f"labelled/train/{images.name}/{file.name}"
            link = partial / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
    (partial / "labelled" / "test").symlink_to((arguments.data / "test").resolve(), target_is_directory=True)
    partial.rename(folder)
    return folder


def foreign_teacher(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train the residual network if there is no file of it, and score it as every other file."""
    file = arguments.foreign or arguments.work / "foreign" / "teacher.onnx"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        words = ["--data", str(arguments.data), "--out", str(file)]
        subprocess.run([sys.executable, str(HERE / "foreign_teacher.py"), *words], check=True)
    report = validate(file, data=DataOptions(arguments.data), execution=ExecutionOptions(progress=create_progress()))
    return {**_scored(report.rows[0].accuracy), "environment": report.environment, "place": str(file)}


def own_teacher(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train the ConvNeXt that teaches."""
    config = TrainConfig(OWN_TEACHER, fit(arguments.teacher_epochs, arguments))
    found = execute(Recipe("own-teacher", (StageEntry("teacher", config, None),)), arguments)
    return {**found, "place": str(arguments.work / "runs" / "own-teacher" / "stages" / "teacher")}


def train(row: Row, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train the student of a row."""
    learn = fit(row.times_epochs * arguments.epochs, arguments, arguments.epochs if row.times_epochs > 1 else 0)
    config: TrainConfig | DistillConfig = TrainConfig(STUDENT, learn)
    if row.teacher is not None:
        make = {"foreign": foreign_teacher, "own": own_teacher}[row.teacher]
        place = once(f"{row.teacher}-teacher", lambda: make(arguments), arguments)["place"]
        config = DistillConfig(STUDENT, place, learn, teacher_cache=True, **row.settings)
    unlabelled = str(a_fifth(arguments) / "unlabelled") if row.mostly_unlabelled else None
    recipe = Recipe(f"{row.name}-{seed}", (StageEntry("student", config, None),), seed=seed, unlabelled=unlabelled)
    return {"row": row.name, "seed": seed, **execute(recipe, arguments)}


def once(name: str, make: Callable[[], dict[str, Any]], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what is stored under a name, made if it is not there with these settings."""
    file = arguments.work / "results" / f"{name}.json"
    names = ("epochs", "autocast", *(["teacher_epochs"] if name.startswith("own") else []))
    settings = {key: getattr(arguments, key) for key in names}
    if file.exists():
        stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if {key: stored["settings"].get(key) for key in names} == settings:
            return stored
    found = {"settings": settings, **make()}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(found, indent=1) + "\n")
    return found


def collect(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return everything that is stored, in the order of the rows; places on this machine are left out."""
    stored = {
        file.stem: json.loads(file.read_text(encoding="utf-8")) for file in (arguments.work / "results").glob("*.json")
    }
    for found in stored.values():
        found.pop("place", None)
    teachers = {name: stored.pop(f"{name}-teacher") for name in ("foreign", "own") if f"{name}-teacher" in stored}
    names = [row.name for row in ROWS]
    cells = sorted(stored.values(), key=lambda cell: (names.index(cell["row"]), cell["seed"]))
    return {
        "command": " ".join(["python", "benchmarks/distillation.py", *sys.argv[1:]]),
        "student": dataclasses.asdict(STUDENT),
        "own_teacher": dataclasses.asdict(OWN_TEACHER),
        "rows": {
            row.name: {
                "teacher": row.teacher,
                "labels": 0.2 if row.mostly_unlabelled else 1.0,
                "times_epochs": row.times_epochs,
                **({} if row.teacher is None else {**_USUAL, **row.settings}),
            }
            for row in ROWS
        },
        "teachers": teachers,
        "cells": cells,
    }


def _commit() -> str:
    words = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    return found.stdout.strip() or describe_environment()["versions"]["convnext_deploy"]


def main() -> None:
    """Train what is not there yet, and print the table after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as train/CLASS/ and test/CLASS/")
    parser.add_argument("--foreign", type=Path, help="ONNX file of foreign_teacher.py; without it one is trained")
    parser.add_argument("--epochs", type=int, default=4, help="of the student")
    parser.add_argument("--teacher-epochs", type=int, default=8, help="of our own teacher")
    parser.add_argument("--autocast", default="auto")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS], default=[row.name for row in ROWS])
    parser.add_argument("--work", type=Path, default=Path("runs/distillation"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        for row in [row for row in ROWS if row.name in arguments.rows]:
            once(f"{row.name}-{seed}", functools.partial(train, row, seed, arguments), arguments)
            found = collect(arguments)
            print(render(found), flush=True)
            if arguments.out is not None:
                write_text(arguments.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
