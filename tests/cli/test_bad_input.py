"""Wrong input ends with one clear line on standard error, exit code 1, and no half-written artifact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from convnext_deploy.artifacts.artifact import Artifact
from tests.cli.bad_input import (
    QUICK,
    Arguments,
    Case,
    Place,
    artifact,
    cut_artifact,
    cut_checkpoint,
    cut_image,
    data_is_a_file,
    empty_data,
    empty_split,
    fewer_classes,
    foreign_checkpoint,
    no_onnx,
    one_class_only_in,
    other_classes,
    out_is_a_file,
    recipe_of_unknown_model,
    recipe_with,
    run_folder,
    teacher_of_other_classes,
    text_called_png,
    unsafe_checkpoint,
    wrong_suffix,
)
from tests.cli.conftest import assert_nothing_half_written, call


@pytest.fixture
def place(tmp_path: Path, image_folder: Path, small_artifacts: dict[str, Artifact]) -> Place:
    return Place(tmp_path, image_folder, small_artifacts)


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
        "unknown model 'tinny'. Did you mean 'tiny'? Known models: zepto_rms, zepto_rms_ols, atto",
    ),
    (
        "unknown student",
        lambda p: [
            "distill",
            "--teacher",
            "test_convnext3",
            "--student",
            "nosuch",
            "--data",
            p.images,
            "--out",
            p.out,
            *QUICK,
        ],
        "unknown model 'nosuch'.",
    ),
    ("unknown model in a recipe", recipe_of_unknown_model, "unknown model 'convnext-tinny'. Did you mean"),
    ("unknown recipe key", recipe_with("epochs = 3\n"), "recipe.toml: stage 'train': unknown key 'epochs'."),
    ("unknown target", recipe_with('[[stages]]\nkind = "ptq"\ntarget = "tensort"\n'), "'tensort'"),
    ("missing recipe", lambda p: ["run", p.path / "none.toml", "--out", p.out], "there is no recipe"),
    ("recipe is a folder", lambda p: ["run", p.images, "--out", p.out], "cannot be read"),
    (
        "image too small for the network",
        lambda p: ["train", "--model", "test_convnext2", "--data", p.images, "--out", p.out, "--image-size", "16"],
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
        "cannot build for a Jetson Orin (SM87), only for SM75",
    ),
]
ARTIFACT_CASES: list[Case] = [
    ("checkpoint of another origin", foreign_checkpoint, "is not a ConvNeXt checkpoint: it looks like a ResNet"),
    (
        "checkpoint that runs code",
        unsafe_checkpoint,
        "reading it would execute code (click.testing.CliRunner), which is refused",
    ),
    ("cut checkpoint", cut_checkpoint, "cut.safetensors is not a readable safetensors file"),
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
            "test_convnext3",
            "--student",
            "test_convnext2",
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
    ("wrong suffix", wrong_suffix, "a file ending in .safetensors, .pth, .pt, .bin, .ckpt, .tar or .onnx"),
    ("no ONNX file", no_onnx, "is not an ONNX file or is cut off"),
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
    (
        "another model to validate",
        artifact("validate", name="qat", after=("--model", "tiny")),
        "holds a test_convnext2",
    ),
    (
        "another model to fine-tune",
        lambda p: [*p.train(p.images), "--model", "femto", "--checkpoint", p.artifacts["student"].main_file],
        "holds a test_convnext2, not the convnext_femto asked for with --model",
    ),
    ("INT8 to quantize", artifact("quantize", name="ptq"), "is already int8; quantize its FP32 ancestor"),
    ("INT8 to quantize with training", artifact("quantize", name="qat", after=("--method", "qat")), "is already int8"),
    ("ONNX to quantize", artifact("quantize", name="onnx-fp32"), "quantization starts from a PyTorch network"),
    ("ONNX to ONNX", artifact("export", name="onnx-fp32"), "is in the format onnx already"),
    ("engine to ONNX", artifact("export", name="engine"), "is in the format tensorrt already"),
    (
        "engine to engine",
        artifact("export", name="engine", after=("--format", "tensorrt-rtx")),
        "is in the format tensorrt; engines are built from an ONNX artifact",
    ),
    ("ONNX of another size", artifact("validate", name="onnx-fp32", after=("--image-size", "64")), "64"),
    ("network on too small images", artifact("validate", name="student", after=("--image-size", "8")), "8"),
    (
        "top-k without top-k",
        artifact("export", name="student", after=("--top-k", "3")),
        "--top-k counts with --output top-k",
    ),
    (
        "more classes than there are",
        artifact("export", name="student", after=("--output", "top-k", "--top-k", "9")),
        "the 9 largest of 3 classes were asked for; choose --top-k 1 to 3",
    ),
    (
        "GPU for ONNX",
        artifact("export", name="student", after=("--gpu", "sm86")),
        "--gpu does not count for onnx; it is for",
    ),
    (
        "speedup of a float graph",
        artifact("export", name="student", after=("--min-speedup", "2")),
        "is about INT8 against",
    ),
    (
        "epochs without training",
        artifact("quantize", name="student", after=("--calibration-method", "mse", "--epochs", "5")),
        "quantize with calibration_method does not use epochs: it does not train",
    ),
    (
        "types of a graph that is there already",
        artifact("export", name="onnx-fp32", after=("--format", "tensorrt-rtx", "--precision", "fp16")),
        "what its graph takes and gives, is made from a PyTorch artifact",
    ),
    (
        "ONNX settings for a program without ONNX",
        artifact("export", name="student", after=("--format", "torch-tensorrt", "--input-type", "uint8")),
        "--input-type does not count for torch-tensorrt",
    ),
    ("no report", lambda p: ["report", p.images], "is not a finished run: it has no report.json"),
    ("missing run", lambda p: ["report", p.path / "none"], "is not a finished run"),
]
OUT_CASES: list[Case] = [
    (f"{arguments[0]} into a file", out_is_a_file(*arguments), "out cannot be written (")
    for arguments in (
        ("train", "--model", "test_convnext2", "--image-size", "32", "--epochs", "1"),
        (
            "distill",
            "--teacher",
            "test_convnext3",
            "--student",
            "test_convnext2",
            "--image-size",
            "32",
            "--epochs",
            "1",
        ),
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
