"""The ONNX stage: what each of its settings puts into the file, and that its runner measures the artifact all the same."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.bundles.contents import collect
from convnext_deploy.config.choices import Target
from convnext_deploy.config.onnx import ONNXConfig
from convnext_deploy.config.ptq import PTQConfig
from convnext_deploy.data.datasets import Data
from convnext_deploy.data.evaluation_batches import EvaluationBatches
from convnext_deploy.errors import RecipeError
from convnext_deploy.exporters.onnx.fp16 import LARGEST
from convnext_deploy.graphs.onnx_io import read_metadata, tensor_shape
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.runners import open_runner
from convnext_deploy.stages import onnx as stage
from convnext_deploy.stages import ptq
from convnext_deploy.stages.context import StageContext
from convnext_deploy.system.execution import Execution
from tests.details import fp16_of, onnx_details
from tests.exporters.recorded_progress import RecordingProgress
from tests.shared import heavy_except, slow_except


@pytest.fixture
def lines() -> RecordingProgress:
    return RecordingProgress()


def export(
    source: Artifact, folder: Path, data: Data | None, lines: RecordingProgress | None = None, **settings: Any
) -> Artifact:
    folder.mkdir(parents=True)

    execution = Execution(progress=lines or RecordingProgress())
    context = StageContext("onnx", folder, data, execution, folder.parent / "cache")
    return stage.run(ONNXConfig(**settings), source, context)


def images_of(source: Artifact, data: Data) -> NDArray[np.float32]:
    batches = EvaluationBatches(data.validation, source.preprocess, 16, 0)
    found: NDArray[np.float32] = np.concatenate([images.numpy() for images, _ in batches])
    return found


def logits_of(artifact: Artifact, images: NDArray[np.float32]) -> NDArray[np.float32]:
    runner = open_runner(artifact)
    try:
        return runner.logits(images)
    finally:
        runner.close()


SETTINGS: list[dict[str, Any]] = [
    {"precision": "fp16"},
    {"precision": "fp16", "runtime": "tensorrt-rtx"},
    {"batch_size": 3},
    {"runtime": "openvino"},
    {"runtime": "onnxruntime", "input_type": "uint8", "input_layout": "nhwc"},
    {"input_type": "uint8", "precision": "fp16", "output": "probabilities"},
    {"output": "top-k", "top_k": 2, "batch_size": 3, "precision": "fp16"},
]


@pytest.mark.parametrize("name", heavy_except(("qat",), ("student", "qat")))
@pytest.mark.parametrize(
    "settings", slow_except(SETTINGS[1:5:3], SETTINGS), ids=lambda settings: "-".join(map(str, settings.values()))
)
def test_every_setting_gives_a_file_that_answers_as_the_network_does(
    name: str, settings: dict[str, Any], small_artifacts: dict[str, Artifact], small_data: Data, tmp_path: Path
) -> None:
    source = small_artifacts[name]
    images = images_of(source, small_data)
    expected = logits_of(source, images)
    artifact = export(source, tmp_path / "onnx", small_data, **settings)
    half = settings.get("precision") == "fp16"
    assert artifact.precision == {"student": "fp16" if half else "fp32", "qat": "int8-fp16" if half else "int8"}[name]
    onnx.checker.check_model(onnx.load(artifact.main_file), full_check=True)
    bare = open_input(artifact.main_file)
    for opened in (artifact, bare):  # the file tells all that its runner needs
        found = logits_of(opened, images)
        assert found.shape == expected.shape
        assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.95
    assert (bare.precision, bare.details) == (artifact.precision, artifact.details)
    if settings.get("output") != "top-k":
        difference = found - expected
        # probabilities tell logits up to one number per image
        difference -= difference.mean(axis=1, keepdims=True)
        assert np.abs(difference).max() <= (0.1 if half or name == "qat" else 1e-4) * np.ptp(expected)


@pytest.mark.parametrize(
    ("runtime", "kind", "absent"),
    [("openvino", "Conv", "MatMul"), pytest.param("tensorrt", "MatMul", "Shape", marks=pytest.mark.heavy)],
)
def test_float_graph_has_the_form_of_its_runtime(
    runtime: str, kind: str, absent: str, small_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    artifact = export(small_artifacts["student"], tmp_path / "onnx", None, runtime=runtime)
    graph = onnx.load(artifact.main_file).graph
    weights = {i.name for i in graph.initializer}
    places = {node.op_type for node in graph.node for name in node.input if name in weights and "pwconv" in name}
    assert kind in places
    assert absent not in {node.op_type for node in graph.node}


@pytest.mark.parametrize("target", heavy_except(("onnxruntime",), ("onnxruntime", "openvino")))
def test_quantized_artifact_has_the_form_of_its_own_target(
    target: Target, small_artifacts: dict[str, Artifact], small_data: Data, tmp_path: Path
) -> None:
    folder = tmp_path / "ptq"
    folder.mkdir()
    context = StageContext("ptq", folder, small_data, Execution(progress=RecordingProgress()), tmp_path / "cache")
    config = PTQConfig(target=target, calibration_method="minmax", calibration_images=12, bias_correction=False)
    source = ptq.run(config, small_artifacts["student"], context)
    artifact = export(source, tmp_path / "onnx", None, runtime="tensorrt")
    kinds = Counter(node.op_type for node in onnx.load(artifact.main_file).graph.node)
    products = kinds["MatMulIntegerToFloat"] if target == "onnxruntime" else kinds["QuantizeLinear"]
    assert products == onnx_details(artifact).quantized_layers
    assert products > 0
    images = images_of(source, small_data)
    expected = logits_of(source, images)
    found = logits_of(open_input(artifact.main_file), images)
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.95

    # the contract: whoever serves the FP32 file puts the INT8 one in its place, and changes nothing else
    in_float = export(small_artifacts["student"], tmp_path / "float", None, runtime=target)
    collect([(each.path, each) for each in (in_float, artifact)])  # so one bundle, with one preprocessing, holds both
    ours, theirs = (onnxruntime.InferenceSession(str(each.main_file)) for each in (artifact, in_float))
    assert [signature(session) for session in (ours, theirs)] == [signature(theirs)] * 2
    assert signature(theirs)[0] == ("images", "tensor(float)")
    answers = [session.run(None, {"images": images})[0] for session in (ours, theirs)]
    assert np.abs(answers[0] - answers[1]).mean() < 0.02 * np.ptp(answers[1])

    # what asks for something else says so by its name, and the export says it too
    lines = RecordingProgress()
    wanted = export(
        source, tmp_path / "pixels", None, lines, input_type="uint8", input_layout="nhwc", output="top-k", top_k=2
    )
    session = onnxruntime.InferenceSession(str(wanted.main_file))
    assert signature(session)[0] == ("pixels_uint8_nhwc", "tensor(uint8)")
    assert lines.said == [
        "onnx: the input 'pixels_uint8_nhwc' takes pixels from 0 to 255 (N, 32, 32, 3) uint8; model.safetensors takes normalized "
        "images (N, 3, 32, 32)",
        "onnx: the graph gives 'scores' and 'classes'; model.safetensors gives 'logits'",
    ]
    ((pixels, _),) = EvaluationBatches(small_data.validation, source.preprocess, 18, as_pixels=True)
    classes = session.run(["classes"], {"pixels_uint8_nhwc": pixels.numpy()})[0]
    # the same integers reach the stem, whichever way the pixels took
    assert np.array_equal(classes[:, 0], answers[0].argmax(axis=1))


def signature(session: onnxruntime.InferenceSession) -> list[tuple[str, str]]:
    """Return names and types of what a file takes and gives, in their order."""
    return [(value.name, value.type) for value in (*session.get_inputs(), *session.get_outputs())]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_fp16_is_for_tensorrt(runtime: Any) -> None:
    with pytest.raises(RecipeError, match="that of a TensorRT"):
        ONNXConfig(precision="fp16", runtime=runtime)


def test_ranges_come_from_training_images_or_else_from_noise(
    small_artifacts: dict[str, Artifact], small_data: Data, tmp_path: Path, lines: RecordingProgress
) -> None:
    source = small_artifacts["student"]
    measured = export(source, tmp_path / "a", small_data, lines, precision="fp16", range_images=5)
    record = fp16_of(measured)
    assert record.ranges_from == "5 training images"
    assert 0 < record.largest_activation < LARGEST
    assert record.fp32_nodes["sums"] >= 10
    assert not any("noise" in line for line in lines.said)
    blind = export(source, tmp_path / "b", None, lines, precision="fp16")
    assert fp16_of(blind).ranges_from == "8 images of noise"
    assert any("what may overflow in FP16 is judged by noise" in line for line in lines.said)


def test_fp32_export_opens_no_data(small_artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    assert export(small_artifacts["student"], tmp_path / "a", None).precision == "fp32"


def test_rtx_keeps_int8_matmuls_in_fp32(small_artifacts: dict[str, Artifact], small_data: Data, tmp_path: Path) -> None:
    nodes = []
    for runtime in ("tensorrt", "tensorrt-rtx"):
        artifact = export(small_artifacts["qat"], tmp_path / runtime, small_data, precision="fp16", runtime=runtime)
        nodes.append(fp16_of(artifact).fp32_nodes)
    assert "int8" not in nodes[0]
    assert nodes[1]["int8"] >= 12
    assert nodes[0]["sums"] == nodes[1]["sums"]


def test_file_says_where_it_comes_from(small_artifacts: dict[str, Artifact], small_data: Data, tmp_path: Path) -> None:
    source = dataclasses.replace(small_artifacts["qat"], license="cc-by-nc-4.0")
    artifact = export(source, tmp_path / "a", small_data)
    found = read_metadata(onnx.load(artifact.main_file))
    assert found["license"] == artifact.license == open_input(artifact.main_file).license == "cc-by-nc-4.0"
    assert [entry["name"] for entry in found["lineage"]] == [record.name for record in source.lineage]
    assert found["class_names"] == list(source.class_names or ())
    assert found["details"]["target"] == "tensorrt"
    assert found["preprocess"]["image_size"] == source.preprocess.image_size
    assert str(tmp_path) not in artifact.main_file.read_bytes().decode("latin-1")
    assert str(source.path.parents[1]) not in artifact.main_file.read_bytes().decode("latin-1")
    named = export(source, tmp_path / "b", small_data, license="MIT")
    assert (named.license, read_metadata(onnx.load(named.main_file))["license"]) == ("MIT", "MIT")


def test_frozen_batch_is_in_the_file(small_artifacts: dict[str, Artifact], small_data: Data, tmp_path: Path) -> None:
    artifact = export(small_artifacts["student"], tmp_path / "a", small_data, batch_size=3)
    graph = onnx.load(artifact.main_file).graph
    assert tensor_shape(graph.input[0])[0] == tensor_shape(graph.output[0])[0] == 3
    assert artifact.io.batch_size == 3


@pytest.mark.parametrize("name", heavy_except(("qat",), ("student", "qat")))
def test_other_image_sizes_are_exported_and_run(
    name: str, small_artifacts: dict[str, Artifact], small_data: Data, tmp_path: Path
) -> None:
    source = small_artifacts[name]
    larger = dataclasses.replace(source, preprocess=dataclasses.replace(source.preprocess, image_size=64))
    artifact = export(larger, tmp_path / "a", small_data)
    assert tensor_shape(onnx.load(artifact.main_file).graph.input[0]) == (None, 3, 64, 64)
    images = images_of(larger, small_data)
    expected = logits_of(source, images)  # a network takes any size
    assert np.abs(logits_of(artifact, images) - expected).max() <= (0.1 if name == "qat" else 1e-4) * np.ptp(expected)


def test_same_export_twice_gives_the_same_bytes(
    small_artifacts: dict[str, Artifact], small_data: Data, tmp_path: Path
) -> None:
    hashes = {
        export(small_artifacts["qat"], tmp_path / name, small_data, precision="fp16").sha256 for name in ("a", "b")
    }
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"top_k": 0}, "top_k"),
        ({"range_images": 0}, "range_images"),
        ({"license": " "}, "license"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        ONNXConfig(**settings)
