"""What ends a distillation for its teachers is found before any stage computes: missing rows, features that cannot be had."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import ForeignDetails
from convnext_deploy.config.choices import DistillMethod
from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.train import ModelConfig
from convnext_deploy.data.contents import Contents
from convnext_deploy.data.datasets import Data, FolderImages
from convnext_deploy.data.unlabelled import open_unlabelled
from convnext_deploy.errors import ArtifactError, DataError, DeployError
from convnext_deploy.pipeline.open_foreign import open_teacher_input
from convnext_deploy.stages.distill import foresee
from convnext_deploy.stages.foresight import Given, Outlook, outlook_of
from convnext_deploy.stages.teachers import check_teacher, no_features
from tests.conftest import draw_image
from tests.stages.foreign_teachers import NETWORKS, SIDE, write_program, write_table

BESIDE = "take the network that it was made of"


def foreseen(
    teacher: Artifact | Outlook, data: Data, method: DistillMethod = "kd", share: float | None = None
) -> Outlook:
    config = DistillConfig(
        ModelConfig("test_convnext2", SIDE), "teacher", FitConfig(epochs=1), method=method, unlabelled_share=share
    )
    given = outlook_of(teacher) if isinstance(teacher, Artifact) else teacher
    return foresee(config, Given("s", {"teacher": given}, data, "cpu"))


def names_of(data: Data) -> list[str]:
    assert isinstance(data.train, FolderImages)
    return ["/".join(path.parts[-2:]) for path in data.train.paths]


def table(folder: Path, names: list[str], width: int = 3) -> Artifact:
    vectors = np.random.default_rng(0).normal(size=(len(names), width)).astype(np.float32)
    return open_teacher_input(write_table(folder, names, vectors, "features" if width != 3 else "logits"))


@pytest.fixture
def with_others(small_data: Data, tmp_path: Path) -> Data:
    (tmp_path / "more").mkdir()
    for number in range(4):
        draw_image(number, np.random.default_rng(number)).save(tmp_path / "more" / f"{number}.png")
    others = open_unlabelled(str(tmp_path / "more"), small_data.train, [small_data.validation], Contents())
    return dataclasses.replace(small_data, unlabelled=others)


def test_a_file_with_all_rows_is_foreseen_to_teach(small_data: Data, tmp_path: Path) -> None:
    assert foreseen(table(tmp_path, names_of(small_data)), small_data).model.variant == "test_convnext2"


def test_rows_that_are_missing_or_twice_end_it_before_any_work(small_data: Data, tmp_path: Path) -> None:
    names = names_of(small_data)
    with pytest.raises(DataError, match=r"has no vector for 1 of \d+ training images") as caught:
        foreseen(table(tmp_path, names[1:]), small_data)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="has two vectors for"):
        foreseen(table(tmp_path, [*names, f"./{names[0]}"]), small_data)


def test_images_without_labels_need_rows_if_they_train(small_data: Data, with_others: Data, tmp_path: Path) -> None:
    labelled, others = names_of(small_data), [f"more/{number}.png" for number in range(4)]
    foreseen(table(tmp_path, labelled + others), with_others)
    foreseen(table(tmp_path, labelled), with_others, share=0.0)
    foreseen(table(tmp_path, others), with_others, "teacher-only", share=1.0)
    with pytest.raises(DataError, match=r"has no vector for 3 of \d+ training images"):
        foreseen(table(tmp_path, labelled), with_others)


def opened(kind: str, folder: Path) -> Artifact:
    writes = write_program if kind == ".pt2" else next(each.write for each in NETWORKS if each.name == kind)
    return open_teacher_input(writes(folder)[0])


@pytest.mark.parametrize(("kind", "form"), [("ONNX float", "an ONNX file"), (".pt2", "a program of torch.export")])
def test_graphs_and_programs_have_no_features_to_teach(kind: str, form: str, small_data: Data, tmp_path: Path) -> None:
    teacher = opened(kind, tmp_path)
    foreseen(teacher, small_data)
    own = f"is {form}, which gives logits alone; "
    with pytest.raises(
        ArtifactError, match=f"{own}leave the method 'feature' out, and its predictions teach, or {BESIDE}"
    ):
        foreseen(teacher, small_data, "feature")
    model = dataclasses.replace(teacher.model, num_classes=5)
    other = dataclasses.replace(teacher, model=model, class_names=("a", "b", "c", "d", "e"))
    with pytest.raises(ArtifactError, match=f"{own}{BESIDE}"):  # its predictions cannot teach either
        foreseen(other, small_data, "feature")
    with pytest.raises(
        DataError, match=rf"has 5 classes, .+ has 3\. The features in {form} do not teach; {BESIDE}"
    ) as caught:
        foreseen(other, small_data)
    assert "\n" not in str(caught.value)


def test_one_that_is_still_to_be_made_is_refused_too(small_data: Data, tmp_path: Path) -> None:
    teacher = outlook_of(opened("ONNX float", tmp_path)).made("onnx")
    with pytest.raises(ArtifactError, match="stage 's': the teacher onnx is an ONNX file, which gives logits alone"):
        foreseen(teacher, small_data, "feature")


def test_networks_of_libraries_and_files_have_features(small_data: Data, tmp_path: Path) -> None:
    foreseen(table(tmp_path, names_of(small_data), 20), small_data, "feature")
    program = opened(".pt2", tmp_path)
    model = dataclasses.replace(program.model, num_classes=5)
    teacher = dataclasses.replace(program, details=ForeignDetails("timm", "resnet18"), model=model, class_names=None)
    foreseen(teacher, small_data, "feature")
    with pytest.raises(DataError, match=r"can teach its features, by the method 'feature'\.$"):
        check_teacher(teacher, small_data, 3)


def test_a_graph_without_classes_is_not_sent_to_a_method_that_refuses_it(small_data: Data, tmp_path: Path) -> None:
    teacher = opened("ONNX float", tmp_path)
    other = dataclasses.replace(teacher, model=dataclasses.replace(teacher.model, num_classes=0), class_names=None)
    with pytest.raises(ArtifactError, match=f"has no classes, .+ The features in an ONNX file do not teach; {BESIDE}"):
        foreseen(other, small_data)
    assert "predictions" not in str(no_features("it", outlook_of(other), fits=True))


@pytest.mark.parametrize("name", ["t.csv", "t.npy", "t.pkl", "T.NPY"])
def test_other_files_are_told_every_form_of_a_teacher(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"path,cat,dog,owl")
    with pytest.raises(DeployError) as caught:
        open_teacher_input(tmp_path / name)
    assert all(form in str(caught.value) for form in (".onnx", ".pt2", ".parquet", "predictions", ".safetensors"))
    assert f"it ends in '{Path(name).suffix}'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "suffix"), [("ONNX float", ".ONNX"), (".pt2", ".PT2")])
def test_endings_count_in_any_case(kind: str, suffix: str, tmp_path: Path) -> None:
    teacher = opened(kind, tmp_path)
    path = teacher.main_file.rename(tmp_path / f"OTHER{suffix}")
    assert open_teacher_input(path).model == teacher.model
