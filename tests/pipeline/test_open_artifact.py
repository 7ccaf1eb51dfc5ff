"""What a user may point at: artifact folders, files of ours, and ONNX files."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from convnext_deploy.artifacts.artifact import Artifact, describe_file, read_artifact
from convnext_deploy.artifacts.details import ONNXDetails
from convnext_deploy.artifacts.spec import GraphIO, ModelSpec, default_preprocess
from convnext_deploy.config.preprocess import PreprocessSettings
from convnext_deploy.errors import ArtifactError, CheckpointError, RecipeError
from convnext_deploy.models.checkpoints.safe_reader import METADATA_KEY
from convnext_deploy.pipeline.open_artifact import find_baseline, open_input
from convnext_deploy.pipeline.run import RunResult


def write_foreign_onnx(
    path: Path,
    shape: Sequence[int | str] = ("batch", 3, 32, 32),
    classes: int = 3,
    *,
    metadata: str | None = None,
    quantized: bool = False,
) -> Path:
    """Write a classifier of another origin: average pooling and a linear layer."""
    weight = np.eye(int(shape[1]), classes, dtype=np.float32)
    initializers = [numpy_helper.from_array(weight, "weight")]
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixels"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("MatMul", ["features", "weight"], ["scores"]),
    ]
    if quantized:
        initializers = [
            numpy_helper.from_array(weight.astype(np.int8), "weight_int8"),
            numpy_helper.from_array(np.array(1.0, np.float32), "scale"),
        ]
        nodes.insert(0, helper.make_node("DequantizeLinear", ["weight_int8", "scale"], ["weight"]))
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [shape[0], classes])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    if metadata is not None:
        helper.set_model_props(model, {METADATA_KEY: metadata})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def described(artifact: Artifact) -> dict[str, Any]:
    """Return what must be equal for a folder and for its bare main file."""
    names = ("format", "precision", "model", "class_names", "preprocess", "sha256", "main_file")
    return {name: getattr(artifact, name) for name in names}


@pytest.mark.parametrize("name", ["student", "qat", "onnx-int8", "engine"])
def test_open_input_opens_a_folder(small_artifacts: dict[str, Artifact], name: str) -> None:
    artifact = small_artifacts[name]
    assert open_input(artifact.path) == artifact


@pytest.mark.parametrize("name", ["teacher", "student", "ptq", "qat", "onnx-fp32", "onnx-int8"])
def test_open_input_knows_as_much_of_the_bare_file_as_of_the_folder(
    small_artifacts: dict[str, Artifact], name: str
) -> None:
    folder = small_artifacts[name]
    bare = open_input(folder.main_file)
    assert described(bare) == described(folder)
    assert bare.scheme == folder.scheme


def test_open_input_reads_the_header_of_a_file_moved_elsewhere(
    small_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    source = small_artifacts["student"]
    copied = Path(shutil.copy(source.main_file, tmp_path / "best.safetensors"))
    opened = open_input(copied)
    assert opened.class_names == ("cat", "dog", "owl")
    assert (opened.preprocess.image_size, opened.model.variant) == (32, "test_convnext2")
    assert opened.main_file == copied


def test_open_input_names_an_artifact_when_given_the_run_folder(small_run: RunResult) -> None:
    out = Path(small_run.report.rows[0].identity.artifact).parent.parent
    with pytest.raises(
        ArtifactError, match=r"is not an artifact folder.*It is a run; point at one of its artifacts"
    ) as error:
        open_input(out)
    hint = Path(str(error.value).rpartition("such as ")[2].removesuffix("."))
    assert read_artifact(hint).path.parent == out / "stages"


def test_open_input_raises_when_a_folder_is_neither_artifact_nor_run(tmp_path: Path) -> None:
    with pytest.raises(
        ArtifactError, match=r"is not an artifact folder: it has no manifest\.json and no model\.safetensors\.$"
    ):
        open_input(tmp_path)


def test_open_input_raises_when_a_link_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(ArtifactError, match=r"w\.safetensors is a symbolic link that leads nowhere"):
        open_input(tmp_path / "w.safetensors")


def test_open_input_raises_when_the_path_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(
        ArtifactError, match="does not exist; expected an artifact folder, a checkpoint or an ONNX file"
    ):
        open_input(tmp_path / "none.safetensors")


@pytest.mark.parametrize("name", ["model.txt", "model", "model.plan"])
def test_open_input_raises_when_the_suffix_is_unknown(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(
        ArtifactError, match=r"a file ending in \.safetensors, \.pth, \.pt, \.bin, \.ckpt, \.tar or \.onnx"
    ):
        open_input(tmp_path / name)


def test_open_input_accepts_the_asked_model_by_any_of_its_names(small_artifacts: dict[str, Artifact]) -> None:
    artifact = small_artifacts["student"]
    for name in ("test_convnext2", "test-convnext2", "TEST_CONVNEXT2"):
        assert open_input(artifact.path, model=name) == artifact


@pytest.mark.parametrize("bare", [False, True])
def test_open_input_raises_when_the_file_holds_another_model(small_artifacts: dict[str, Artifact], bare: bool) -> None:
    artifact = small_artifacts["student"]
    with pytest.raises(CheckpointError, match="holds a test_convnext2, not the convnextv2_atto asked for with --model"):
        open_input(artifact.main_file if bare else artifact.path, model="v2-atto")


def test_open_input_raises_when_the_asked_model_is_unknown(small_artifacts: dict[str, Artifact]) -> None:
    with pytest.raises(RecipeError, match=r"unknown model 'tinny'. Did you mean 'tiny'\?"):
        open_input(small_artifacts["student"].path, model="tinny")


def test_open_input_overrides_image_size_and_crop_only(small_artifacts: dict[str, Artifact]) -> None:
    artifact = small_artifacts["student"]
    opened = open_input(artifact.path, asked=PreprocessSettings(image_size=160))
    expected = dataclasses.replace(artifact.preprocess, image_size=160, crop_pct=0.875)
    note = (
        "model.safetensors: evaluated at 160 pixels, center crop 0.875, bicubic, mean 0.485 0.456 0.406, std 0.229 0.224 0.225 "
        "(size asked for; crop assumed: usual for this size)"
    )
    assert opened == dataclasses.replace(artifact, preprocess=expected, notes=(note,))
    opened = open_input(artifact.path, asked=PreprocessSettings(crop_pct=0.5))
    assert opened.preprocess == dataclasses.replace(artifact.preprocess, crop_pct=0.5)
    opened = open_input(artifact.path, asked=PreprocessSettings(image_size=160, crop_pct=0.9))
    assert (opened.preprocess.image_size, opened.preprocess.crop_pct) == (160, 0.9)


@pytest.mark.parametrize("name", ["onnx-fp32", "engine"])
def test_open_input_refuses_another_size_for_a_graph_that_has_one(
    small_artifacts: dict[str, Artifact], name: str
) -> None:
    path = small_artifacts[name].path
    with pytest.raises(ArtifactError, match=r"takes images of 32 pixels alone; export its PyTorch artifact again with"):
        open_input(path, asked=PreprocessSettings(image_size=64))
    assert open_input(path, asked=PreprocessSettings(image_size=32, crop_pct=0.9)).preprocess.crop_pct == 0.9


def test_open_input_opens_a_foreign_onnx_file(tmp_path: Path) -> None:
    path = write_foreign_onnx(tmp_path / "foreign.onnx", ("batch", 3, 48, 48), classes=5)
    spec = ModelSpec("unknown", 5, 3)
    files = (describe_file(path),)
    notes = (
        "foreign.onnx: 'scores' is taken for the logits of 5 classes",
        "foreign.onnx: takes normalized images, an assumption, because the file does not tell; --input-range says otherwise",
        "foreign.onnx: evaluated at 48 pixels, center crop 1, bicubic, mean 0.485 0.456 0.406, std 0.229 0.224 0.225 (size from "
        "the graph; crop, crop mode, interpolation, mean and std assumed: usual, because an ONNX file does not tell)",
    )
    details = ONNXDetails(io=GraphIO(output_names=("scores",)))
    assert open_input(path) == Artifact(
        tmp_path, details, "fp32", spec, None, default_preprocess(48), files, notes=notes
    )


def test_open_input_knows_a_quantized_foreign_onnx_file(tmp_path: Path) -> None:
    assert open_input(write_foreign_onnx(tmp_path / "a.onnx", quantized=True)).precision == "int8"


def test_open_input_takes_the_size_of_a_dynamic_foreign_onnx_file_from_the_user(tmp_path: Path) -> None:
    path = write_foreign_onnx(tmp_path / "a.onnx", ("batch", 1, "height", "width"))
    with pytest.raises(ArtifactError, match=r"images of any size, \(batch, 1, height, width\); say with --image-size"):
        open_input(path)
    assert open_input(path, asked=PreprocessSettings(image_size=96)).preprocess == default_preprocess(96, None, 1)


def test_open_input_accepts_any_model_name_for_a_foreign_onnx_file(tmp_path: Path) -> None:
    path = write_foreign_onnx(tmp_path / "a.onnx")
    assert open_input(path, model="tiny") == open_input(path)


def write_graph(path: Path, inputs: list[onnx.ValueInfoProto], nodes: list[onnx.NodeProto], classes: list[int]) -> Path:
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, classes)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", inputs, [output]), opset_imports=opsets), path)
    return path


def test_open_input_raises_when_an_onnx_file_has_no_image_input(tmp_path: Path) -> None:
    tokens = helper.make_tensor_value_info("tokens", TensorProto.FLOAT, [1, 7])
    path = write_graph(tmp_path / "a.onnx", [tokens], [helper.make_node("Identity", ["tokens"], ["out"])], [1, 7])
    with pytest.raises(
        ArtifactError, match=r"is not an image classifier: expected one input .*found 1 input\(s\), \(1, 7\)"
    ):
        open_input(path)


def test_open_input_raises_when_an_onnx_file_has_two_inputs(tmp_path: Path) -> None:
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, 8]) for name in ("a", "b")]
    path = write_graph(tmp_path / "a.onnx", inputs, [helper.make_node("Add", ["a", "b"], ["out"])], [1, 3])
    with pytest.raises(ArtifactError, match=r"is not an image classifier.*found 2 input\(s\)"):
        open_input(path)


def test_open_input_raises_when_an_onnx_file_has_no_input(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["out"], value=numpy_helper.from_array(np.zeros((1, 3), np.float32)))
    path = write_graph(tmp_path / "a.onnx", [], [constant], [1, 3])
    with pytest.raises(ArtifactError, match=r"is not an image classifier.*found 0 input\(s\)"):
        open_input(path)


@pytest.mark.parametrize("content", [b"", b"not an ONNX file"])
def test_open_input_raises_when_an_onnx_file_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"a\.onnx is (empty|not an ONNX file)"):
        open_input(tmp_path / "a.onnx")


@pytest.mark.parametrize("metadata", ["{", '{"model": {}}'])
def test_open_input_raises_when_the_header_of_an_onnx_file_is_damaged(tmp_path: Path, metadata: str) -> None:
    path = write_foreign_onnx(tmp_path / "a.onnx", metadata=metadata)
    with pytest.raises(ArtifactError, match=r"a\.onnx"):
        open_input(path)


def test_open_input_changes_nothing_on_disk(small_artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    copied = tmp_path / "student"
    shutil.copytree(small_artifacts["student"].path, copied)
    before = {path.name: describe_file(path) for path in tmp_path.rglob("*") if path.is_file()}
    open_input(copied, model="test-convnext2", asked=PreprocessSettings(image_size=64))
    open_input(copied / "model.safetensors")
    assert {path.name: describe_file(path) for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["ptq", "qat", "onnx-fp32", "onnx-int8", "engine"])
def test_find_baseline_returns_the_fp32_student(small_artifacts: dict[str, Artifact], name: str) -> None:
    assert find_baseline(small_artifacts[name]) == small_artifacts["student"]


def test_find_baseline_says_when_there_is_no_lineage(small_artifacts: dict[str, Artifact]) -> None:
    assert (
        find_baseline(open_input(small_artifacts["qat"].main_file)) == "the artifact does not say what it was made of"
    )


@pytest.mark.parametrize("state", ["missing", "altered"])
def test_find_baseline_says_when_the_ancestor_is_not_what_it_was(
    small_artifacts: dict[str, Artifact], tmp_path: Path, state: str
) -> None:
    elsewhere = tmp_path / "student"
    if state == "altered":
        shutil.copytree(small_artifacts["teacher"].path, elsewhere)
    record = dataclasses.replace(small_artifacts["ptq"].lineage[-1], input_paths={"source": str(elsewhere)})
    moved = tmp_path / "moved" / "ptq"  # away from the run, beside which it would be found
    reason = find_baseline(dataclasses.replace(small_artifacts["ptq"], path=moved, lineage=(record,)))
    assert isinstance(reason, str)
    assert str(elsewhere) in reason
    assert ("does not exist" if state == "missing" else "is no longer the file that ptq was made of") in reason
