"""Where wrong input is made: a folder with copies of good things, and what spoils them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from click.testing import CliRunner

from convnext_deploy.artifacts.artifact import Artifact
from tests.conftest import write_image_folder

QUICK = ("--image-size", "32", "--epochs", "1", "--batch-size", "16", "--workers", "0", "--device", "cpu")


Arguments = list[str | Path]


@dataclass(frozen=True)
class Place:
    """What a case builds its arguments from: an empty folder, good images, good artifacts."""

    path: Path
    images: Path
    artifacts: dict[str, Artifact]

    @property
    def out(self) -> Path:
        return self.path / "out"

    def copy_images(self) -> Path:
        return Path(shutil.copytree(self.images, self.path / "images"))

    def train(self, data: Path | str) -> Arguments:
        return ["train", "--model", "test_convnext2", "--data", data, "--out", self.out, *QUICK]

    def write_recipe(self, text: str) -> Path:
        path = self.path / "recipe.toml"
        path.write_text(text)
        return path


Case = tuple[str, Callable[[Place], Arguments], str]


def one_class_only_in(split: str) -> Callable[[Place], Arguments]:
    def build(place: Place) -> Arguments:
        data = place.copy_images()
        shutil.copytree(data / split / "owl", data / split / "yak")
        return place.train(data)

    return build


def empty_data(place: Place) -> Arguments:
    (place.path / "images").mkdir()
    return place.train(place.path / "images")


def empty_split(place: Place) -> Arguments:
    data = place.copy_images()
    shutil.rmtree(data / "val")
    (data / "val" / "cat").mkdir(parents=True)
    return place.train(data)


def data_is_a_file(place: Place) -> Arguments:
    (place.path / "images").write_text("x")
    return place.train(place.path / "images")


def text_called_png(split: str) -> Callable[[Place], Arguments]:
    def build(place: Place) -> Arguments:
        data = place.copy_images()
        (data / split / "dog" / "3.png").write_text("this is no image")
        return place.train(data)

    return build


def cut_image(place: Place) -> Arguments:
    data = place.copy_images()
    image = data / "train" / "dog" / "3.png"
    image.write_bytes(image.read_bytes()[:200])
    return ["quantize", place.artifacts["student"].path, "--data", data, "--out", place.out, "--workers", "0"]


def other_classes(place: Place) -> Arguments:
    data = write_image_folder(place.path / "images", ("cat", "dog", "yak"), train=2, validation=1)
    return ["validate", place.artifacts["student"].path, "--data", data, "--workers", "0"]


def fewer_classes(place: Place) -> Arguments:
    data = write_image_folder(place.path / "images", ("cat", "dog"), train=2, validation=1)
    return ["validate", place.artifacts["onnx-int8"].main_file, "--data", data, "--workers", "0"]


def teacher_of_other_classes(place: Place) -> Arguments:
    data = write_image_folder(place.path / "images", ("cat", "elk"), train=2, validation=1)
    teacher = place.artifacts["teacher"].path
    names: Arguments = ["--teacher", "test_convnext3", "--student", "test_convnext2", "--teacher-checkpoint", teacher]
    return ["distill", *names, "--data", data, "--out", place.out, *QUICK]


def recipe_with(text: str) -> Callable[[Place], Arguments]:
    stage = '[[stages]]\nkind = "train"\nmodel = { name = "test_convnext2", image_size = 32 }\n'

    def build(place: Place) -> Arguments:
        recipe = place.write_recipe('name = "r"\n' + stage + text)
        return ["run", recipe, "--data", place.images, "--out", place.out]

    return build


def recipe_of_unknown_model(place: Place) -> Arguments:
    recipe = place.write_recipe('name = "r"\n[[stages]]\nkind = "train"\nmodel = { name = "convnext-tinny" }\n')
    return ["run", recipe, "--data", place.images, "--out", place.out]


def foreign_checkpoint(place: Place) -> Arguments:
    torch.save({"layer1.0.conv1.weight": torch.zeros(4, 4, 3, 3)}, place.path / "resnet.pth")
    return ["quantize", place.path / "resnet.pth", "--data", place.images, "--out", place.out]


def unsafe_checkpoint(place: Place) -> Arguments:
    torch.save({"head": CliRunner()}, place.path / "unsafe.pth")
    return ["validate", place.path / "unsafe.pth", "--data", place.images]


def cut_checkpoint(place: Place) -> Arguments:
    content = place.artifacts["student"].main_file.read_bytes()
    (place.path / "cut.safetensors").write_bytes(content[: len(content) // 2])
    return ["export", place.path / "cut.safetensors", "--out", place.out]


def cut_artifact(place: Place) -> Arguments:
    copied = Path(shutil.copytree(place.artifacts["student"].path, place.path / "student"))
    (copied / "model.safetensors").write_bytes((copied / "model.safetensors").read_bytes()[:-1])
    return ["validate", copied, "--data", place.images]


def run_folder(place: Place) -> Arguments:
    return ["validate", place.artifacts["student"].path.parents[1], "--data", place.images]


def wrong_suffix(place: Place) -> Arguments:
    (place.path / "model.h5").write_bytes(b"x")
    return ["validate", place.path / "model.h5", "--data", place.images]


def no_onnx(place: Place) -> Arguments:
    (place.path / "a.onnx").write_text("text")
    return ["validate", place.path / "a.onnx", "--data", place.images]


def out_is_a_file(*arguments: str) -> Callable[[Place], Arguments]:
    """Return the arguments of a verb, `STUDENT` standing for an artifact, with a file where `--out` points."""

    def build(place: Place) -> Arguments:
        place.out.write_text("mine")
        named: Arguments = [str(place.artifacts["student"].path) if a == "STUDENT" else a for a in arguments]
        return [*named, "--data", place.images, "--out", place.out, "--workers", "0"]

    return build


def artifact(*before: str, name: str, after: tuple[str, ...] = ()) -> Callable[[Place], Arguments]:
    def build(place: Place) -> Arguments:
        rest: Arguments = ["--data", place.images, "--out", place.out, "--workers", "0", "--device", "cpu"]
        return [*before, place.artifacts[name].path, *after, *rest]

    return build
