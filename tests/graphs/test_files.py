"""What `inspect` makes of engines, artifact folders and files that are damaged or something else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from convnext_deploy.api.inspect import inspect
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.errors import ArtifactError
from convnext_deploy.graphs.engine_plan import EngineRecord, inspect_plan, read_header
from convnext_deploy.graphs.lint.onnx_summary import ONNXRecord
from tests.details import engine_details
from tests.graphs.others_graphs import conv


def write(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def cut_off(path: Path) -> None:
    onnx.save(conv(), path)
    path.write_bytes(path.read_bytes()[:-100])


def without_opset(path: Path) -> None:
    model = conv()
    del model.opset_import[:]
    path.write_bytes(model.SerializeToString())


def without_weights(path: Path) -> None:
    onnx.save(conv(), path, save_as_external_data=True, location="model.data", size_threshold=0)
    path.with_name("model.data").unlink()


def with_cut_weights(path: Path) -> None:
    onnx.save(conv(), path, save_as_external_data=True, location="model.data", size_threshold=0)
    data = path.with_name("model.data")
    data.write_bytes(data.read_bytes()[:-1])


def with_a_name_that_is_no_text(path: Path) -> None:
    path.write_bytes(conv().SerializeToString().replace(b"Conv_3", b"Conv\xff3"))


def with_a_shape_that_is_not_the_tensors(path: Path) -> None:
    model = conv()
    next(tensor for tensor in model.graph.initializer if tensor.name == "ws").dims[0] = 5
    path.write_bytes(model.SerializeToString())


def with_weights_elsewhere(path: Path) -> None:
    model = conv()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../secret"
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (write(b""), "is empty"),
        (write(b"\x89PNG\r\n\x1a\n" + bytes(range(256))), "is not an ONNX file"),
        (write(b"words and words"), "is not an ONNX file"),
        (cut_off, "is cut off"),
        (without_opset, "has no operator set"),
        (without_weights, "'model.data' beside it, which is missing"),
        (with_cut_weights, "'model.data' beside it, which has"),
        (with_a_name_that_is_no_text, "is damaged"),
        (with_a_shape_that_is_not_the_tensors, "is damaged"),
        (with_weights_elsewhere, "outside its folder, '../secret'"),
        (lambda path: path.mkdir(), "is not an artifact folder: it has no manifest.json"),
        (lambda path: None, "does not exist"),
    ],
)
def test_inspect_says_in_one_line_what_is_wrong(damage: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    damage(path)
    with pytest.raises(ArtifactError) as caught:
        inspect(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_inspect_takes_artifact_folders(small_artifacts: dict[str, Artifact]) -> None:
    found = inspect(small_artifacts["onnx-int8"].path)
    assert isinstance(found, ONNXRecord)
    assert found.metadata["model"]["variant"] == "test_convnext2"
    assert found.metadata["class_names"] == ["cat", "dog", "owl"]
    with pytest.raises(ArtifactError, match="PyTorch model"):
        inspect(small_artifacts["student"].path)


def test_engine_of_tensorrt_rtx_is_told_from_its_plan_and_manifest(small_artifacts: dict[str, Artifact]) -> None:
    artifact = small_artifacts["engine"]
    found = inspect(artifact.path)
    assert isinstance(found, EngineRecord)
    assert found == inspect(artifact.main_file)
    assert (found.flavor, found.size_bytes) == ("tensorrt-rtx", artifact.files[0].size_bytes)
    assert found.version is not None
    assert engine_details(artifact).tensorrt.startswith(found.version)
    graph = inspect(small_artifacts["onnx-int8"].path)
    assert isinstance(graph, ONNXRecord)
    products = sum(sum(graph.operators.get(name, {}).values()) for name in ("Conv", "MatMul", "Gemm"))
    assert found.nodes["INT8"] == len(graph.quantized)
    assert len(found.float_nodes) == products - len(graph.quantized)
    assert found.manifest["gpus"] == engine_details(artifact).gpus
    assert json.loads(found.to_json())["format"] == "tensorrt"


def test_engine_without_its_manifest_is_told_from_its_plan(
    small_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    path = Path(shutil.copy(small_artifacts["engine"].main_file, tmp_path / "other.engine"))
    found = inspect_plan(path)
    assert (found.manifest, found.notes) == ({}, ())
    assert found.nodes == inspect_plan(small_artifacts["engine"].main_file).nodes


def test_plan_of_standard_tensorrt_is_told_by_its_header(tmp_path: Path) -> None:
    header = b"ftrt" + bytes(20) + bytes((10, 3, 0, 30))
    assert read_header(header) == ("tensorrt", "10.3.0.30")
    (tmp_path / "model.plan").write_bytes(header + bytes(1000))
    found = inspect_plan(tmp_path / "model.plan")
    assert (found.flavor, found.version, found.nodes) == ("tensorrt", "10.3.0.30", {})
    assert "on its GPU alone" in found.notes[0]


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n", b"words", bytes(64)], ids=["png", "text", "zeros"])
def test_file_that_is_no_plan_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.plan").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"^[^\n]*model\.plan is not a TensorRT plan[^\n]*$"):
        inspect(tmp_path / "model.plan")
