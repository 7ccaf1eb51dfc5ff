"""`convert` on the command line: what it prints, and that wrong input ends with one line and leaves nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.models.checkpoints.key_maps import DIALECTS
from convnext_deploy.pipeline.open_artifact import open_input
from tests.cli.conftest import call
from tests.weights import PREPROCESS, write_weights

CLASSES = ("cat", "dog", "owl")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_weights(tmp_path / "w.safetensors", ModelSpec("convnext_atto", 3), CLASSES, PREPROCESS)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_convert_tells_what_it_wrote_and_how_to_load_it(dialect: str, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = call("convert", source, "--to", dialect, "--out", out)
    assert (outcome.code, outcome.err) == (0, "")
    files = ", ".join(sorted(path.name for path in out.iterdir()))
    first, *rest = outcome.out.splitlines()
    assert first == f"convnext_atto for {dialect} in {out}: {files}"
    assert rest[0] == "To load it, in that folder:"
    (readme,) = [
        part for part in (out / "README.md").read_text().split("```python\n") if part.startswith(("import", "from"))
    ]
    assert "\n".join(rest[2:]) in readme


def test_convert_prints_json_alone_when_asked(source: Path, tmp_path: Path) -> None:
    outcome = call("convert", source, "--to", "timm", "--out", tmp_path / "out", "--json")
    record = json.loads(outcome.out)
    assert (outcome.code, record["dialect"], record["variant"]) == (0, "timm", "convnext_atto")
    assert record["files"] == ["README.md", "class_names.txt", "config.json", "model.safetensors"]


def test_convert_takes_an_artifact_folder_of_a_run(small_artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    artifact = small_artifacts["student"]
    assert call("convert", artifact.path, "--to", "timm", "--out", tmp_path / "out").code == 0
    found = open_input(tmp_path / "out")
    assert (found.class_names, found.preprocess) == (artifact.class_names, artifact.preprocess)


def test_convert_says_what_it_found_out_about_a_foreign_file(source: Path, tmp_path: Path) -> None:
    call("convert", source, "--to", "torchvision", "--out", tmp_path / "torchvision")
    outcome = call("convert", tmp_path / "torchvision" / "model.pth", "--to", "timm", "--out", tmp_path / "timm")
    assert outcome.code == 0
    assert "model.pth: weights in the names of torchvision" in outcome.err.splitlines()
    assert "model.pth: a convnext_atto with 3 classes" in outcome.err.splitlines()


def test_convert_lists_what_the_other_library_does_differently(tmp_path: Path) -> None:
    spec = ModelSpec("convnext_atto", 3, head_norm_eps=1e-12)
    source = write_weights(tmp_path / "w.safetensors", spec, CLASSES, PREPROCESS)
    outcome = call("convert", source, "--to", "timm", "--out", tmp_path / "out")
    assert "- the last norm's eps 1e-12 becomes 1e-06, because timm has one for all norms" in outcome.out.splitlines()


def test_convert_writes_the_evaluation_that_was_asked_for(source: Path, tmp_path: Path) -> None:
    flags = ("--image-size", "96", "--crop-pct", "0.75", "--model", "atto")
    assert call("convert", source, "--to", "timm", "--out", tmp_path / "out", *flags).code == 0
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]
    assert (settings["input_size"], settings["crop_pct"]) == ([3, 96, 96], 0.75)


def v2(folder: Path) -> list[str | Path]:
    return [write_weights(folder / "v2.safetensors", ModelSpec("convnextv2_atto", 3)), "--to", "torchvision"]


def quantized(folder: Path) -> list[str | Path]:
    return [folder / "ptq", "--to", "timm"]


def another_model(folder: Path) -> list[str | Path]:
    return [folder / "w.safetensors", "--to", "timm", "--model", "femto"]


def missing(folder: Path) -> list[str | Path]:
    return [folder / "none.pth", "--to", "timm"]


def no_network(folder: Path) -> list[str | Path]:
    return ["timm/convnext_atto.d2_in1k", "--to", "torchvision"]


def foreign(folder: Path) -> list[str | Path]:
    torch.save({"layer1.0.conv1.weight": torch.zeros(4, 4, 3, 3)}, folder / "resnet.pth")
    return [folder / "resnet.pth", "--to", "timm"]


def damaged_config(folder: Path) -> list[str | Path]:
    call("convert", folder / "w.safetensors", "--to", "timm", "--out", folder / "timm")
    (folder / "timm" / "config.json").write_text("{")
    return [folder / "timm", "--to", "torchvision"]


CASES: list[tuple[Callable[[Path], list[str | Path]], str]] = [
    (v2, "convnextv2_atto cannot be written for torchvision, whose ConvNeXt lacks ConvNeXt v2"),
    (quantized, "is int8 in the format torch; other libraries take FP32 weights"),
    (another_model, "holds a convnext_atto, not the convnext_femto asked for with --model"),
    (missing, "none.pth does not exist"),
    (no_network, "bring DIR here and give it in the place of the name"),
    (foreign, "is not a ConvNeXt checkpoint"),
    (damaged_config, "config.json cannot be read as JSON"),
]


@pytest.mark.parametrize(("build", "expected"), CASES, ids=[case[0].__name__ for case in CASES])
def test_convert_ends_with_one_line_and_leaves_nothing(
    build: Callable[[Path], list[str | Path]], expected: str, source: Path, small_artifacts: dict[str, Artifact],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "ptq").symlink_to(small_artifacts["ptq"].path)
    arguments = build(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    outcome = call("convert", *arguments, "--out", tmp_path / "out")
    assert (outcome.code, outcome.out) == (1, "")
    lines = outcome.err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert expected in lines[-1]
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("x", "--to", "keras", "--out", "y"), "Invalid value for '--to'"),
        (("x", "--out", "y"), "Missing option '--to'"),
        (("x", "--to", "timm"), "Missing option '--out'"),
        (("--to", "timm", "--out", "y"), "Missing argument 'CHECKPOINT'"),
    ],
)
def test_convert_exits_with_2_when_the_usage_is_wrong(arguments: tuple[str, ...], expected: str) -> None:
    outcome = call("convert", *arguments)
    assert outcome.code == 2
    assert expected in outcome.err
