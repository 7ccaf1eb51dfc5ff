"""The numbers of the classes mean the same on both sides: names are matched, orders known, and what is assumed is said."""

from __future__ import annotations

import argparse
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import convnext_deploy as api
from convnext_deploy.api.options import DataOptions, ExecutionOptions, TrainingOptions
from convnext_deploy.artifacts.artifact import Artifact, read_artifact
from convnext_deploy.artifacts.details import TorchDetails
from convnext_deploy.artifacts.spec import ModelSpec, file_header
from convnext_deploy.config.choices import Dialect
from convnext_deploy.errors import DataError
from convnext_deploy.models.checkpoints.hub_config import transformers_config
from convnext_deploy.models.checkpoints.image_processor import transformers_preprocessor
from convnext_deploy.models.checkpoints.key_maps import from_native
from convnext_deploy.models.checkpoints.safe_reader import save_state
from convnext_deploy.pipeline.open_artifact import find_baseline, open_input
from convnext_deploy.reports.record import Report
from tests.colours import COUNT, PREPROCESS, SPEC, colour_network, save_colours, write_colours
from tests.rows import accuracy_of, drop_of
from tests.shared import make_once

NUMBERS = tuple(str(number) for number in range(1, COUNT + 1))
HERE = ExecutionOptions(device="cpu", workers=0)
COUNTS = {"train": 2, "val": 3}


@pytest.fixture(autouse=True, scope="module")
def _short_timing(short_timing: None) -> None:
    """Nothing here looks at the latency."""


@pytest.fixture(scope="module")
def numbered() -> Path:
    """Folders `1` to `10`, which the network answers in the order of their numbers; do not change it."""
    return make_once("numbered-colours", lambda root: write_colours(root, NUMBERS, COUNTS))


def options(folder: Path, classes: Path | None = None) -> DataOptions:
    return DataOptions(folder, image_size=32, crop_pct=1.0, classes=classes)


def validate(path: Path, folder: Path, classes: Path | None = None) -> Report:
    return api.validate(path, data=options(folder, classes), execution=HERE)


def top1(report: Report) -> float:
    return accuracy_of(report.rows[-1]).value


def test_folders_are_numbered_as_the_library_that_wrote_the_file_does(numbered: Path, tmp_path: Path) -> None:
    report = validate(save_colours(tmp_path / "timm.pth"), numbered)
    assert top1(report) == 1.0  # by the order of bytes: 0.1
    (said,) = report.assumptions
    assert "the folders in timm's natural order" in said
    assert "output 1 is '2' (in the order of their characters it would be '10')" in said
    assert not report.rows[0].warnings


def test_numbers_in_a_file_of_labels_are_those_of_the_outputs(numbered: Path, tmp_path: Path) -> None:
    """As in shards, whatever the library of the network: in the order of their characters, 10 would come before 2."""
    labels = tmp_path / "labels.csv"
    names = sorted(path.relative_to(numbered).as_posix() for path in numbered.rglob("*.png"))
    labels.write_text("\n".join(["filename,label", *(f"{name},{name.split('/')[1]}" for name in names)]))
    path = save_colours(tmp_path / "other.pth", "facebook")
    data = DataOptions(numbered, image_size=32, crop_pct=1.0, labels=labels)
    report = api.validate(path, data=data, execution=HERE)
    assert top1(report) == 1.0
    assert report.assumptions == (
        "the classes are matched by number, because the file of the network does not name them, so that output 0 is '1'",
    )


def test_numbers_that_are_wrong_are_found_in_the_answers(numbered: Path, tmp_path: Path) -> None:
    dialect: Dialect = "facebook"  # with names of weights of a library that sorts folders by their characters
    path = save_colours(tmp_path / "other.pth", dialect)
    report = validate(path, numbered)
    assert top1(report) == pytest.approx(0.1)
    note, guess = report.rows[0].warnings
    assert "is chance level" in guess
    assert note.startswith(
        "WRONG NUMBERS: top-1 is 10.00 %, and 100.00 % if the classes are numbered anew: output 1 is '2', "
    )
    assert "which is timm's natural order" in note
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(NUMBERS))
    right = validate(path, numbered, classes)
    assert (top1(right), right.assumptions, right.rows[0].warnings) == (1.0, (), ())
    classes.write_text("\n".join((*NUMBERS[:9], "eleven")))
    with pytest.raises(DataError, match=r"'eleven' is not in .*; '10' is not in .*classes\.txt"):
        validate(path, numbered, classes)


@pytest.mark.parametrize("told", ["class map beside", "class map elsewhere", "hyper_parameters"])
def test_names_in_the_file_of_the_training_count(told: str, tmp_path: Path) -> None:
    names = ("b", "a", *NUMBERS[2:])
    folder = write_colours(tmp_path / "photos", names, COUNTS)
    path = tmp_path / "weights" / "best.pth"
    path.parent.mkdir()
    state = {"state_dict": torch.load(save_colours(path), weights_only=True)}
    if told == "hyper_parameters":
        torch.save({**state, "hyper_parameters": {"lr": 1e-3, "classes": list(names)}}, path)
    else:
        torch.save({**state, "args": argparse.Namespace(class_map="/data/map.txt", model="test_convnext")}, path)
    if told == "class map beside":
        (path.parent / "map.txt").write_text("\n".join(names))
    if told != "class map elsewhere":
        report = validate(path, folder)
        assert (top1(report), report.assumptions) == (1.0, ())
        return
    assert any("was given the class map /data/map.txt, which is not at hand" in note for note in open_input(path).notes)


def test_names_are_matched_in_any_order_and_unicode_form(tmp_path: Path) -> None:
    names = ("Äpfel", "zebra", "cañon", "b", "A", "x10", "x9", "été", "ü", "q")
    folder = write_colours(tmp_path / "photos", tuple(unicodedata.normalize("NFD", name) for name in names), COUNTS)
    path = tmp_path / "own.safetensors"
    save_state(path, colour_network().state_dict(), file_header(SPEC, PREPROCESS, names, "fp32"))
    report = validate(path, folder)
    assert (top1(report), report.assumptions) == (1.0, ())


def test_one_spelling_for_training_and_another_for_validation_is_one_class(tmp_path: Path) -> None:
    names = ("é", *NUMBERS[1:])
    folder = write_colours(tmp_path / "photos", names, COUNTS)
    (folder / "val" / "é").rename(folder / "val" / unicodedata.normalize("NFD", "é"))
    path = tmp_path / "own.safetensors"
    save_state(path, colour_network().state_dict(), file_header(SPEC, PREPROCESS, names, "fp32"))
    assert top1(validate(path, folder)) == 1.0


@pytest.mark.parametrize("told", ["class file", "checkpoint"])
def test_names_of_a_class_file_or_checkpoint_are_matched_in_another_unicode_form(told: str, tmp_path: Path) -> None:
    names = ("ü", "é", *NUMBERS[2:])  # not the order of the folders
    folder = write_colours(tmp_path / "photos", names, COUNTS)
    apart = [unicodedata.normalize("NFD", name) for name in names]
    assert apart[0] != names[0]
    path, classes = save_colours(tmp_path / "other.pth"), None
    if told == "class file":
        classes = tmp_path / "classes.txt"
        classes.write_text("\n".join(apart), encoding="utf-8")
    else:
        torch.save({"state_dict": torch.load(path, weights_only=True), "hyper_parameters": {"classes": apart}}, path)
    report = validate(path, folder, classes)
    assert (top1(report), report.assumptions) == (1.0, ())


@pytest.mark.parametrize("named", ["with", "without", "folders"])
def test_transformers_labels_and_folders_of_imagenet(named: str, tmp_path: Path) -> None:
    ids = tuple(f"n{7 * number + 1440764:08d}" for number in range(COUNT))
    labels = {"with": tuple(f"thing {n}, Res {n}" for n in range(COUNT)), "folders": ids[::-1], "without": None}[named]
    folder = write_colours(tmp_path / "photos", ids[::-1] if named == "folders" else ids, COUNTS)
    weights = tmp_path / "hub"
    weights.mkdir()
    spec = ModelSpec("convnext_atto", COUNT)
    save_file(
        from_native(colour_network(spec.variant).state_dict(), spec, "huggingface"), weights / "model.safetensors"
    )
    (weights / "config.json").write_text(json.dumps(transformers_config(spec, PREPROCESS, labels)))
    (weights / "preprocessor_config.json").write_text(json.dumps(transformers_preprocessor(PREPROCESS)))
    report = validate(weights, folder)
    assert top1(report) == 1.0
    said = " ".join(report.assumptions)
    assert ("WordNet ids, which are taken to be numbered in their order" in said) == (named == "with")
    assert ("the folders in the order of their characters" in said) == (named == "without")


def test_every_stage_and_its_ancestor_keep_the_numbers(numbered: Path, tmp_path: Path) -> None:
    path = save_colours(tmp_path / "other.pth", "facebook")
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps({name: number for number, name in enumerate(NUMBERS)}))
    quantized = api.quantize(
        path, calibration_method="minmax", calibration_images=20, out=tmp_path / "run",
        data=options(numbered, classes), execution=HERE,
    ).report  # fmt: skip
    assert [accuracy_of(row).top1 for row in quantized.rows] == [1.0, 1.0]
    folder = tmp_path / "run" / "stages" / "ptq"
    assert read_artifact(folder).class_names == NUMBERS
    # without the file: the stage has the names, and lends them to its ancestor, whose own file has none
    report = api.validate(folder, baseline=path, data=options(numbered, classes), execution=HERE)
    assert (drop_of(report.rows[1]).top1_drop_pp, accuracy_of(report.rows[1]).flipped) == (0.0, 0)
    assert top1(validate(folder, numbered)) == 1.0
    ancestor = find_baseline(read_artifact(folder))
    assert isinstance(ancestor, Artifact)
    assert ancestor.class_names == NUMBERS


def test_training_goes_on_from_a_head_whose_classes_have_another_order(numbered: Path, tmp_path: Path) -> None:
    names = tuple(str(name) for name in np.random.default_rng(3).permutation(NUMBERS))
    folder = write_colours(tmp_path / "photos", names, COUNTS)
    path = tmp_path / "own.safetensors"
    save_state(path, colour_network().state_dict(), file_header(SPEC, PREPROCESS, names, "fp32"))
    still = TrainingOptions(epochs=1, batch_size=10, base_learning_rate=1e-9)
    report = api.train(
        checkpoint=path, out=tmp_path / "run", data=options(folder), training=still, execution=HERE
    ).report
    assert [accuracy_of(row).top1 for row in report.rows] == [1.0, 1.0]
    assert read_artifact(tmp_path / "run" / "stages" / "model").class_names == names


@pytest.mark.heavy
def test_a_student_learns_from_a_teacher_whose_classes_have_another_order(tmp_path: Path) -> None:
    names = tuple(str(name) for name in np.random.default_rng(3).permutation(NUMBERS))
    folder = write_colours(tmp_path / "photos", names, COUNTS)
    path = tmp_path / "own.safetensors"
    save_state(path, colour_network().state_dict(), file_header(SPEC, PREPROCESS, names, "fp32"))
    teacher = tmp_path / "teacher.safetensors"
    mirrored = {**colour_network().state_dict()}
    mirrored |= {key: mirrored[key].flip(0) for key in ("head.weight", "head.bias")}
    save_state(teacher, mirrored, file_header(SPEC, PREPROCESS, names[::-1], "fp32"))
    still = TrainingOptions(epochs=1, batch_size=10, base_learning_rate=1e-9, drop_path_rate=0.0)
    report = api.distill(
        teacher_checkpoint=teacher, student_weights=path, out=tmp_path / "run", distill_method="teacher-only",
        data=options(folder), training=still, execution=HERE,
    ).report  # fmt: skip
    assert [accuracy_of(row).top1 for row in report.rows] == [1.0, 1.0]
    loss = read_artifact(tmp_path / "run" / "stages" / "student").details_as(TorchDetails).history[0]["train_loss"]
    assert loss is not None
    assert loss < 0.1  # the same network: only the order differs


def test_a_teacher_answers_in_the_students_order() -> None:
    from convnext_deploy.training.teacher import Teacher

    network, order = colour_network(), np.array([3, 1, 2, 0, 4, 5, 6, 7, 8, 9])
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(
            Teacher(network, PREPROCESS, PREPROCESS, order)(images), network(images)[:, torch.from_numpy(order)]
        )
