"""Wrong input ends with one clear line on standard error, exit code 1 or 2, and no half-written artifact."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from convnext_deploy import options
from convnext_deploy.artifact import Artifact
from convnext_deploy.cli import group
from tests.cli.conftest import assert_nothing_half_written, call
from tests.conftest import write_image_folder
from tests.test_inputs import write_foreign_onnx

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
        return ["train", "--model", "atto", "--data", data, "--out", self.out, *QUICK]

    def write_recipe(self, text: str) -> Path:
        path = self.path / "recipe.toml"
        path.write_text(text)
        return path


@pytest.fixture
def place(tmp_path: Path, image_folder: Path, small_artifacts: dict[str, Artifact]) -> Place:
    return Place(tmp_path, image_folder, small_artifacts)


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
    data = write_image_folder(place.path / "images", ("cat", "dog"), train=2, validation=1)
    teacher = place.artifacts["teacher"].path
    names: Arguments = ["--teacher", "femto", "--student", "atto", "--teacher-checkpoint", teacher]
    return ["distill", *names, "--data", data, "--out", place.out, *QUICK]


def recipe_with(text: str) -> Callable[[Place], Arguments]:
    stage = '[[stages]]\nkind = "train"\nmodel = { name = "atto", image_size = 32 }\n'

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


def fixed_batch_onnx(place: Place) -> Arguments:
    path = write_foreign_onnx(place.path / "fixed.onnx", (1, 3, 32, 32))
    return ["validate", path, "--data", place.images, "--workers", "0"]


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


DATA_CASES: list[Case] = [
    ("missing data folder", lambda p: p.train(p.path / "none"), "none does not exist; expected a folder with train/"),
    ("data is a file", data_is_a_file, "is a file; expected a folder with train/ and val/"),
    ("empty data folder", empty_data, "has no train/; found nothing. Expected train/CLASS/"),
    ("empty split", empty_split, "val has no images; expected one folder per class"),
    ("class only in train", one_class_only_in("train"), "class 'yak' has no images in"),
    ("class only in val", one_class_only_in("val"), "class 'yak' has no images in"),
    (
        "unreadable training image",
        text_called_png("train"),
        "train/dog/3.png cannot be read as an image (not an image)",
    ),
    ("unreadable validation image", text_called_png("val"), "val/dog/3.png cannot be read as an image (not an image)"),
    ("cut image", cut_image, "train/dog/3.png cannot be read as an image ("),
    ("other classes", other_classes, "was trained with class 'owl' where"),
    ("fewer classes", fewer_classes, "has 3 classes,"),
    ("teacher of other classes", teacher_of_other_classes, "has 3 classes,"),
    (
        "no data for a recipe",
        lambda p: ["run", recipe_with("")(p)[1], "--out", p.out],
        "names no data; give an image folder",
    ),
    (
        "no data for quantize",
        lambda p: ["quantize", p.artifacts["student"].path, "--out", p.out],
        "quantization needs images: give the image folder with --data DIR",
    ),
    (
        "no data for validate",
        lambda p: ["validate", p.artifacts["student"].main_file],
        "validation needs images: give the image folder with --data DIR",
    ),
]
NAME_CASES: list[Case] = [
    (
        "unknown model",
        lambda p: ["train", "--model", "tinny", "--data", p.images, "--out", p.out],
        "unknown model 'tinny'. Did you mean 'tiny'? Known models: atto, femto",
    ),
    (
        "unknown student",
        lambda p: ["distill", "--teacher", "femto", "--student", "nosuch", "--data", p.images, "--out", p.out, *QUICK],
        "unknown model 'nosuch'.",
    ),
    ("unknown model in a recipe", recipe_of_unknown_model, "unknown model 'convnext-tinny'. Did you mean"),
    ("unknown recipe key", recipe_with("epochs = 3\n"), "recipe.toml: stage 'train': unknown key 'epochs'."),
    ("unknown target", recipe_with('[[stages]]\nkind = "ptq"\ntarget = "tensort"\n'), "'tensort'"),
    ("missing recipe", lambda p: ["run", p.path / "none.toml", "--out", p.out], "there is no recipe"),
    ("recipe is a folder", lambda p: ["run", p.images, "--out", p.out], "cannot be read"),
    (
        "image too small for the network",
        lambda p: ["train", "--model", "atto", "--data", p.images, "--out", p.out, "--image-size", "16"],
        "image_size = 16 is out of range; expected >= 32",
    ),
    (
        "unknown GPU",
        artifact("export", name="onnx-int8", after=("--format", "tensorrt-rtx", "--gpu", "sm99")),
        "'sm99'",
    ),
    (
        "Orin for TensorRT-RTX",
        artifact("export", name="onnx-int8", after=("--format", "tensorrt-rtx", "--gpu", "sm87")),
        "Orin (SM87) needs standard TensorRT: use --format tensorrt on the device",
    ),
]
ARTIFACT_CASES: list[Case] = [
    ("checkpoint of another origin", foreign_checkpoint, "is no ConvNeXt checkpoint with the official key names"),
    ("checkpoint that runs code", unsafe_checkpoint, "reading it would execute code, which is refused"),
    ("cut checkpoint", cut_checkpoint, "cut.safetensors is no readable safetensors file"),
    ("cut artifact", cut_artifact, "its manifest says"),
    (
        "missing checkpoint",
        lambda p: ["quantize", p.path / "none.pth", "--data", p.images, "--out", p.out],
        "does not exist",
    ),
    ("missing artifact", lambda p: ["export", p.path / "none", "--out", p.out], "does not exist"),
    (
        "missing teacher",
        lambda p: [
            "distill",
            "--teacher",
            "femto",
            "--student",
            "atto",
            "--teacher-checkpoint",
            p.path / "none",
            "--data",
            p.images,
            "--out",
            p.out,
        ],
        "does not exist",
    ),
    ("missing baseline", artifact("validate", name="student", after=("--baseline", "/none")), "/none does not exist"),
    ("run folder for an artifact", run_folder, "It is a run; point at one of its artifacts"),
    ("wrong suffix", wrong_suffix, "a file ending in .safetensors, .pth, .pt, .bin or .onnx"),
    ("no ONNX file", no_onnx, "is no readable ONNX file"),
    (
        "another model to quantize",
        artifact("quantize", name="student", after=("--model", "femto")),
        "not the convnext_femto",
    ),
    (
        "another model to export",
        artifact("export", name="student", after=("--model", "v2-atto")),
        "not the convnextv2_atto",
    ),
    ("another model to validate", artifact("validate", name="qat", after=("--model", "tiny")), "holds a convnext_atto"),
    (
        "another model to fine-tune",
        lambda p: [*p.train(p.images), "--model", "femto", "--checkpoint", p.artifacts["student"].main_file],
        "holds a convnext_atto, not the convnext_femto asked for with --model",
    ),
    ("INT8 to quantize", artifact("quantize", name="ptq"), "is already int8; quantize its FP32 ancestor"),
    ("INT8 to quantize with training", artifact("quantize", name="qat", after=("--method", "qat")), "is already int8"),
    ("ONNX to quantize", artifact("quantize", name="onnx-fp32"), "this step needs a PyTorch artifact"),
    ("ONNX to ONNX", artifact("export", name="onnx-fp32"), "is in the format onnx already"),
    ("engine to ONNX", artifact("export", name="engine"), "is in the format tensorrt already"),
    (
        "engine to engine",
        artifact("export", name="engine", after=("--format", "tensorrt-rtx")),
        "is in the format tensorrt; engines are built from an ONNX artifact",
    ),
    ("ONNX of another size", artifact("validate", name="onnx-fp32", after=("--image-size", "64")), "64"),
    ("network on too small images", artifact("validate", name="student", after=("--image-size", "8")), "8"),
    ("foreign ONNX with a fixed batch", fixed_batch_onnx, "fixed.onnx"),
    ("no report", lambda p: ["report", p.images], "is no finished run: it has no report.json"),
    ("missing run", lambda p: ["report", p.path / "none"], "is no finished run"),
]
OUT_CASES: list[Case] = [
    (f"{arguments[0]} into a file", out_is_a_file(*arguments), "out cannot be written (")
    for arguments in (
        ("train", "--model", "atto", "--image-size", "32", "--epochs", "1"),
        ("distill", "--teacher", "femto", "--student", "atto", "--image-size", "32", "--epochs", "1"),
        ("quantize", "STUDENT"),
        ("export", "STUDENT"),
        ("validate", "STUDENT"),
    )
]
CASES = [*DATA_CASES, *NAME_CASES, *ARTIFACT_CASES, *OUT_CASES]


@pytest.mark.parametrize(("build", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_command_ends_with_one_clear_line(
    place: Place, build: Callable[[Place], Arguments], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.path)  # where `runs/` would appear
    arguments = build(place)
    outcome = call(*arguments)
    assert outcome.code == 1
    lines = outcome.err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert expected in lines[-1]
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    assert_nothing_half_written(place.path)
    if place.out.is_file():
        assert place.out.read_text() == "mine"


@pytest.mark.parametrize("build", [case[1] for case in OUT_CASES], ids=[case[0] for case in OUT_CASES])
def test_output_folder_is_checked_before_the_work(
    place: Place, build: Callable[[Place], Arguments], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.path)
    outcome = call(*build(place))
    assert outcome.code == 1
    assert "done in" not in outcome.err


def test_device_cuda_without_a_gpu_ends_with_one_clear_line(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "cuda_driver_error", lambda: "no GPU")
    outcome = call(*place.train(place.images), "--device", "cuda")
    assert (outcome.code, outcome.err) == (
        1,
        "error: --device cuda was asked for, but here is no GPU; use --device cpu.\n",
    )


def test_negative_seed_is_refused_by_name(place: Place) -> None:
    outcome = call(*place.train(place.images), "--seed", "-1")
    assert outcome.code in (1, 2)
    assert "seed" in outcome.err.splitlines()[-1]
    assert_nothing_half_written(place.path)


@pytest.mark.parametrize(
    ("module", "form", "expected"),
    [
        ("tensorrt_rtx", "tensorrt-rtx", "tensorrt-rtx is not installed; pip install 'tensorrt_rtx"),
        ("tensorrt", "tensorrt", "tensorrt is not installed; pip install 'convnext_deploy[tensorrt]'"),
    ],
)
def test_missing_package_is_named_with_the_line_that_installs_it(
    place: Place, monkeypatch: pytest.MonkeyPatch, module: str, form: str, expected: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    source = place.artifacts["onnx-int8"].path
    outcome = call("export", source, "--format", form, "--data", place.images, "--out", place.out, "--workers", "0")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith(f"error: {expected}")
    assert_nothing_half_written(place.path)


USAGE_CASES = [
    (("nosuch",), "No such command 'nosuch'"),
    (("train",), "Missing option '--model'"),
    (("distill", "--teacher", "base"), "Missing option '--student'"),
    (("quantize",), "Missing argument 'CHECKPOINT'"),
    (("train", "--model", "atto", "--nosuch"), "No such option '--nosuch'"),
    (("export", "x", "--format", "tflite"), "Invalid value for '--format'"),
    (("quantize", "x", "--method", "awq"), "Invalid value for '--method'"),
    (("train", "--model", "atto", "--device", "tpu"), "Invalid value for '--device'"),
    *(
        (("train", "--model", "atto", flag, value), f"Invalid value for '{flag}'")
        for flag, value in (
            ("--batch-size", "0"),
            ("--batch-size", "-8"),
            ("--batch-size", "many"),
            ("--epochs", "0"),
            ("--image-size", "0"),
            ("--patch-size", "3"),
            ("--crop-pct", "0"),
            ("--crop-pct", "1.5"),
            ("--workers", "-1"),
            ("--base-learning-rate", "0"),
            ("--flip-probability", "2"),
        )
    ),
    (("validate", "x", "--batch-size", "0"), "Invalid value for '--batch-size'"),
    (("quantize", "x", "--calibration-images", "0"), "Invalid value for '--calibration-images'"),
    (("quantize", "x", "--max-drop", "-1"), "Invalid value for '--max-drop'"),
    (("export", "x", "--max-batch-size", "0"), "Invalid value for '--max-batch-size'"),
    (("distill", "--teacher", "a", "--student", "b", "--temperature", "0"), "Invalid value for '--temperature'"),
]


@pytest.mark.parametrize(("arguments", "expected"), USAGE_CASES, ids=[" ".join(case[0]) for case in USAGE_CASES])
def test_wrong_usage_exits_with_2_and_names_the_flag(
    arguments: tuple[str, ...], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = call(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.splitlines()[-1].startswith(f"Error: {expected}")
    assert list(tmp_path.iterdir()) == []
    result = CliRunner().invoke(group, list(arguments))
    assert result.exit_code == 2
    assert expected in result.output


def python_m(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "convnext_deploy", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_process_exits_with_1_and_one_line_when_the_input_is_wrong(tmp_path: Path) -> None:
    done = python_m("run", tmp_path / "none.toml")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: there is no recipe ")
    assert done.stderr.count("\n") == 1


def test_process_exits_with_2_when_the_usage_is_wrong() -> None:
    done = python_m("train", "--model", "atto", "--batch-size", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == "Error: Invalid value for '--batch-size': 0 is not in the range x>=1."


def test_process_names_an_unreadable_image_that_another_process_decodes(place: Place) -> None:
    data = place.copy_images()
    (data / "val" / "dog" / "3.png").write_text("this is no image")
    done = python_m("validate", place.artifacts["student"].path, "--data", data, "--workers", "2", "--device", "cpu")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "val/dog/3.png cannot be read as an image" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
