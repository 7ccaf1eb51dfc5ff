"""`--dry-run` finds what would end a run later: a table of failures, with what it says of each."""

from __future__ import annotations

import os
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from convnext_deploy.artifacts.artifact import Artifact
from tests.cli.conftest import call
from tests.conftest import write_image_folder

TRAIN = '[[stages]]\nkind = "train"\nname = "t"\nmodel = { name = "test_convnext2", image_size = 32 }\n'
PTQ, QAT, ONNX, ENGINE = (f'[[stages]]\nkind = "{kind}"\n' for kind in ("ptq", "qat", "onnx", "tensorrt"))
STUDENT = (
    '[[stages]]\nkind = "distill"\nname = "s"\nteacher = "{}"\nmodel = {{ name = "test_convnext2", image_size = 32 }}\n'
)

FAILURES = [
    # values, names
    ("out of range", TRAIN + "[stages.fit]\nepochs = 0\n", "epochs = 0 is out of range"),
    ("small images", TRAIN.replace("32", "16"), "image_size = 16 is out of range; expected >= 32"),
    ("unknown target", f'{TRAIN}{PTQ}target = "tensort"\n', "target = 'tensort' is unknown"),
    ("unknown model", TRAIN.replace("test_convnext2", "tinny"), "unknown model 'tinny'"),
    ("unknown GPU", f'{TRAIN}{ONNX}{ENGINE}gpus = ["sm99"]\n', "'sm99'"),
    (
        "unknown layer",
        f'{TRAIN}{PTQ}sites = {{ "stages.9.*" = "float" }}\n',
        "sites: 'stages.9.*' matches no linear layer",
    ),
    ("name that leads out", f'name = "../x"\n{TRAIN}', "the recipe's name '../x' cannot be that of a folder"),
    # what a stage is given by the one before it
    ("INT8 again", f'{TRAIN}{PTQ}{PTQ}name = "p"\n', "stage 'p': ptq is already int8; quantize its FP32 ancestor."),
    ("QAT of FP32", TRAIN + QAT, "stage 'qat': t has no quantizers to train"),
    (
        "PTQ of ONNX",
        TRAIN + ONNX + PTQ,
        "stage 'ptq': onnx is in the format onnx; quantization starts from a PyTorch artifact.",
    ),
    ("ONNX of ONNX", f'{TRAIN}{ONNX}{ONNX}name = "o"\n', "stage 'o': onnx is in the format onnx"),
    (
        "engine of PyTorch",
        TRAIN + ENGINE,
        "stage 'tensorrt': t is in the format torch; engines are built from an ONNX artifact.",
    ),
    (
        "engine of zero points",
        f'{TRAIN}{PTQ}target = "openvino"\n{ONNX}{ENGINE}',
        "stage 'tensorrt': onnx was quantized for openvino, with zero points that TensorRT does not read",
    ),
    (
        "more than all classes",
        f'{TRAIN}{ONNX}output = "top-k"\ntop_k = 9\n',
        "stage 'onnx': the 9 largest of 3 classes were asked for; choose --top-k 1 to 3 (in a recipe top_k).",
    ),
    (
        "another network",
        TRAIN + TRAIN.replace('"t"', '"u"\nsource = "t"').replace("test_convnext2", "atto"),
        "stage 'u': its source cannot be fine-tuned as asked: its variant is test_convnext2, this stage asks for convnext_atto.",
    ),
    (
        "teacher of other images",
        TRAIN.replace("32", "32, in_channels = 1") + STUDENT.format("t"),
        "stage 's': the teacher t takes 1 channels, the student 3",
    ),
    # this machine
    ("FP16 on a CPU", TRAIN + '[stages.fit]\nautocast = "fp16"\n', 'autocast = "fp16" needs a GPU'),
    (
        "no compiler",
        TRAIN + "[stages.fit]\ncompile = true\n",
        "compile = true needs a C++ compiler, and there is no 'nosuch'",
    ),
    ("no TensorRT-RTX", TRAIN + ONNX + ENGINE, "tensorrt-rtx is not installed; pip install"),
    ("stripped without a GPU", f"{TRAIN}{ONNX}{ENGINE}stripped = true\n", "tensorrt-rtx is not installed"),
    (
        "no GPU",
        f'{TRAIN}{ONNX}{ENGINE}flavor = "tensorrt"\n',
        "standard TensorRT builds engines on the GPU that runs them",
    ),
    ("no GPU for a program", TRAIN + '[[stages]]\nkind = "torch-tensorrt"\n', "the GPU that runs the program"),
    # what was brought
    ("no weights", TRAIN.replace("32", '32, weights = "none.pth"'), "none.pth does not exist"),
    ("not from the hub", TRAIN.replace("32", '32, weights = "timm/no_such_network"'), "timm/no_such_network"),
    (
        "weights of ONNX",
        TRAIN.replace("32", '32, weights = "ONNX"'),
        "is in the format onnx; a training starts from a PyTorch",
    ),
    (
        "weights of another network",
        TRAIN.replace("test_convnext2", "atto").replace("32", '32, weights = "STUDENT"'),
        "its variant is",
    ),
]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without GPU, compiler, TensorRT and network."""
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setenv("CXX", "nosuch")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def dry_run(folder: Path, text: str, data: Path, *arguments: str | Path) -> tuple[int, str]:
    """Return the exit code, and the last line that is said."""
    recipe = folder / "recipe.toml"
    recipe.write_text(text if text.startswith("name") else f'name = "r"\n{text}')
    return run(folder, data, "--dry-run", *arguments)


def run(folder: Path, data: Path, *arguments: str | Path) -> tuple[int, str]:
    words = ("--data", data, "--out", folder / "out", "--device", "cpu", "--workers", "0", *arguments)
    outcome = call("run", folder / "recipe.toml", *words)
    return outcome.code, (outcome.err.splitlines() or outcome.out.splitlines())[-1]


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(("text", "expected"), [row[1:] for row in FAILURES], ids=[row[0] for row in FAILURES])
def test_dry_run_says_what_would_fail(
    text: str, expected: str, image_folder: Path, small_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    for word, name in (("ONNX", "onnx-fp32"), ("STUDENT", "student")):
        text = text.replace(f'"{word}"', f'"{small_artifacts[name].path}"')
    code, line = dry_run(tmp_path, text, image_folder)
    assert code == 1
    assert line.startswith("error: ")
    assert expected in line
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]
    assert run(tmp_path, image_folder) == (1, line), "the run itself says the same"
    left = {path.name for path in (tmp_path / "out").glob("*")}
    assert left <= {".lock", "cache"}, "before any work"


def test_dry_run_says_that_classes_differ(small_artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    data = write_image_folder(tmp_path / "two", ("cat", "elk"), train=2, validation=1)
    head = f'name = "r"\nsource = "{small_artifacts["student"].path}"\n'
    for stages in (ONNX, STUDENT.format("source")):
        code, line = dry_run(tmp_path, head + stages, data)
        assert code == 1
        assert "model.safetensors has 3 classes, " in line


def test_dry_run_says_what_cannot_be_written(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for flag, what in (("--out", "output"), ("--cache-dir", "cache")):
        for place in (tmp_path / "file", tmp_path / "file" / "below"):
            code, line = dry_run(tmp_path, TRAIN, image_folder, flag, place)
            assert (code, line) == (
                1,
                f"error: the {what} folder {place} cannot be written ({tmp_path / 'file'} is a file); choose another one with "
                f"{flag}.",
            )
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda place: usage(10**9, 10**9 - 10**6, 10**6))
        code, line = dry_run(tmp_path, TRAIN + ONNX, image_folder)
    assert code == 1
    assert f"{tmp_path / 'out'} has room for 1 MB; make room, or choose another folder with --out." in line
    monkeypatch.setattr(os, "access", lambda place, mode, **options: mode != os.W_OK | os.X_OK)  # click asks, too
    code, line = dry_run(tmp_path, TRAIN, image_folder)
    assert code == 1
    assert f"cannot be written ({tmp_path} may not be written)" in line


def test_dry_run_of_what_works_says_nothing_of_failures(image_folder: Path, tmp_path: Path) -> None:
    stages = TRAIN + STUDENT.format("t") + PTQ + QAT + ONNX
    code, line = dry_run(tmp_path, stages, image_folder)
    assert (code, line) == (0, "onnx: onnx from qat: would run")
    assert os.listdir(tmp_path) == ["recipe.toml"]  # noqa: PTH208
