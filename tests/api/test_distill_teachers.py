"""What is said on the command line counts for every teacher of `distill` that does not tell it, and for no other."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from convnext_deploy.api.distill import distill
from convnext_deploy.api.options import DataOptions, ExecutionOptions
from convnext_deploy.api.run import run
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.recipe import Recipe
from convnext_deploy.errors import ArtifactError, RecipeError
from tests.pipeline.test_open_artifact import write_foreign_onnx
from tests.stages.foreign_teachers import NETWORKS

HERE = ExecutionOptions(device="cpu", workers=0)
MODULES = {name: sys.modules[f"convnext_deploy.api.{name}"] for name in ("distill", "run")}


class _Stop(Exception):  # noqa: N818  (it ends what was to be seen, and is no error)
    pass


class Seen:
    """What a verb would run: its recipe and its opened teachers, the source first."""

    recipe: Recipe
    teachers: list[Artifact]

    def __call__(
        self, recipe: Recipe, settings: Any, source: Artifact, data: Any, others: Mapping[str, Artifact]
    ) -> None:
        self.recipe, self.teachers = recipe, [source, *others.values()]
        raise _Stop


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Nothing is run."""
    found = Seen()
    monkeypatch.setattr(MODULES["distill"], "run_stages", found)
    monkeypatch.setattr(MODULES["run"], "run_recipe", found)
    return found


def see(seen: Seen, places: Sequence[Path | str] | Path | str, folder: Path, **options: Any) -> Seen:
    data = DataOptions(folder, **{"image_size": 32, **options})
    with pytest.raises(_Stop):
        distill(student="atto", teacher_checkpoint=places, data=data, execution=HERE)
    return seen


def see_again(seen: Seen, folder: Path, classes: Path | None = None) -> list[Artifact]:
    """Return the teachers of the recipe that `distill` made, as `run` opens them."""
    with pytest.raises(_Stop):
        run(seen.recipe, data=DataOptions(folder, classes=classes), execution=HERE)
    return seen.teachers


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    path = tmp_path / "classes.txt"
    path.write_text("owl\ncat\ndog\n")
    return path


def torchvision(folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    return str(next(kind for kind in NETWORKS if kind.name == "torchvision").write(folder)[0])


def write_named(path: Path) -> Path:
    model = onnx.load(write_foreign_onnx(path))
    helper.set_model_props(model, {"names": str(dict(enumerate(("cat", "dog", "owl"))))})
    onnx.save(model, path)
    return path


def test_a_file_of_classes_names_the_outputs_of_teachers_without_names(
    seen: Seen, tmp_path: Path, image_folder: Path, classes: Path
) -> None:
    unnamed = write_foreign_onnx(tmp_path / "unnamed.onnx")
    named = write_named(tmp_path / "named.onnx")
    for places in ([unnamed], [named, unnamed], [unnamed, named]):
        teachers = see(seen, places, image_folder, classes=classes).teachers
        for opened in (teachers, see_again(seen, image_folder, classes)):
            names = {teacher.main_file.name: teacher.class_names for teacher in opened}
            expected = {"unnamed.onnx": ("owl", "cat", "dog"), "named.onnx": ("cat", "dog", "owl")}
            assert names == {place.name: expected[place.name] for place in places}


def test_settings_count_for_every_teacher_that_does_not_tell_them(
    seen: Seen, tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = torchvision(tmp_path / "a"), torchvision(tmp_path / "b")
    told = next(kind for kind in NETWORKS if kind.name == "timm CNN").write(tmp_path)[0]
    own = see(seen, told, image_folder, mean=0.5, std=0.25).teachers[0].preprocess
    assert own.mean != (0.5,) * 3
    for places in ([first, second], [told, first, second]):
        teachers = see(seen, places, image_folder, mean=0.5, std=0.25).teachers
        for opened in (teachers, see_again(seen, image_folder)):
            assert len(opened) == len(places)
            for teacher in opened:
                preprocess = teacher.preprocess
                if teacher.main_file.name == "best.pth":
                    assert (preprocess.mean, preprocess.std, preprocess.image_size) == ((0.5,) * 3, (0.25,) * 3, 32)
                else:
                    assert preprocess == own
    config = seen.recipe.stages[-1].config
    assert isinstance(config, DistillConfig)
    assert seen.recipe.source == first  # which tells less than the one that was named before it


def test_a_graph_for_images_of_any_size_takes_the_size_that_is_said(
    seen: Seen, tmp_path: Path, image_folder: Path
) -> None:
    path = write_foreign_onnx(tmp_path / "any.onnx", ("n", 3, "h", "w"))
    assert see(seen, path, image_folder).teachers[0].preprocess.image_size == 32
    assert see_again(seen, image_folder)[0].preprocess.image_size == 32
    with pytest.raises(ArtifactError, match="say with --image-size"):
        distill(student="atto", teacher_checkpoint=path, data=DataOptions(image_folder), execution=HERE)
    fixed = write_foreign_onnx(tmp_path / "fixed.onnx", ("n", 3, 48, 48))
    assert see(seen, fixed, image_folder).teachers[0].preprocess.image_size == 48


def test_output_and_range_of_a_graph_are_said_to_distill(seen: Seen, tmp_path: Path, image_folder: Path) -> None:
    path = write_foreign_onnx(tmp_path / "two.onnx")
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("Neg", ["scores"], ["other"]))
    model.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["batch", 3]))
    onnx.save(model, path)
    with pytest.raises(ArtifactError, match="say which with --output-name"):
        distill(student="atto", teacher_checkpoint=path, data=DataOptions(image_folder), execution=HERE)
    teacher = see(seen, path, image_folder, output_name="other", input_range="0-255").teachers[0]
    assert (teacher.io.output_names, teacher.io.white) == (("other",), 255.0)
    assert see_again(seen, image_folder)[0].io == teacher.io


def test_what_no_teacher_takes_is_refused(tmp_path: Path, image_folder: Path) -> None:
    data = DataOptions(image_folder, output_name="scores")
    for place in (torchvision(tmp_path), None):
        with pytest.raises(RecipeError, match="are for ONNX files of another origin"):
            distill("atto" if place is None else None, "atto", teacher_checkpoint=place, data=data, execution=HERE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_checkpoint": ["a.onnx", "a.onnx"]}, r"a\.onnx was given twice"),
        ({"teacher": "tiny", "teacher_checkpoint": "a.onnx"}, "nothing can tell that it is a tiny"),
        ({"teacher": "timm:resnet18", "teacher_weights": "timm/convnext_tiny"}, "has weights of its own"),
    ],
)
def test_teachers_that_contradict_are_refused(
    options: dict[str, Any], message: str, tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_foreign_onnx(tmp_path / "a.onnx")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=message):
        distill(student="atto", data=DataOptions(image_folder), execution=HERE, **options)


def test_a_folder_beside_others_is_no_stage_of_its_name(
    seen: Seen, tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_named(tmp_path / "a.onnx")
    folder = tmp_path / "source"
    folder.mkdir()
    next(kind for kind in NETWORKS if kind.name == "timm CNN").write(folder)
    monkeypatch.chdir(tmp_path)
    see(seen, ["a.onnx", "source"], image_folder)
    assert [teacher.format for teacher in seen.teachers] == ["onnx", "foreign"]
    assert [teacher.format for teacher in see_again(seen, image_folder)] == ["onnx", "foreign"]
