"""ONNX files that other tools made are opened, run and validated as they are: any type, layout, batch, and further outputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import convnext_deploy as api
from convnext_deploy.api.options import DataOptions
from convnext_deploy.artifacts.spec import GraphIO
from convnext_deploy.errors import ArtifactError
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.runners import open_runner
from tests.rows import accuracy_of, drop_of

SIDE, CLASSES = 32, 3


@pytest.fixture(scope="module")
def timm_network() -> torch.nn.Module:
    import timm

    torch.manual_seed(0)
    network: torch.nn.Module = timm.create_model("test_convnext2", num_classes=CLASSES).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("gamma", "bias")):
                parameter.add_(torch.randn(parameter.shape) * 0.5)
    return network


@pytest.fixture(scope="module")
def timm_file(timm_network: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `torch.onnx.export` makes of timm's network without any further argument: a frozen batch and names of its own."""
    import warnings

    path = tmp_path_factory.mktemp("timm") / "timm.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's dependencies warn about themselves
        program = torch.onnx.export(timm_network, (torch.zeros(2, 3, SIDE, SIDE),), dynamo=True, verbose=False)
    assert program is not None
    program.save(str(path))
    return path


def images(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(count, 3, SIDE, SIDE)).astype(np.float32)


def logits_of(path: Path, taken: NDArray[np.float32]) -> NDArray[np.float32]:
    runner = open_runner(open_input(path))
    try:
        return runner.logits(taken)
    finally:
        runner.close()


def test_frozen_batch_of_timm_runs_any_number_of_images(timm_network: torch.nn.Module, timm_file: Path) -> None:
    assert open_input(timm_file).io.batch_size == 2
    with torch.inference_mode():
        expected = timm_network(torch.from_numpy(images(5))).numpy()
    found = logits_of(timm_file, images(5))
    assert found.shape == (5, CLASSES)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_timm_file_is_validated(timm_file: Path, image_folder: Path) -> None:
    report = api.validate(timm_file, data=DataOptions(image_folder))
    found, own = accuracy_of(report.rows[0]), report.rows[0].identity
    assert found.total
    assert found.runner == "onnxruntime"
    assert (own.variant, own.precision) == ("unknown", "fp32")


def test_file_of_quantize_static_is_validated_against_what_it_was_made_from(
    timm_file: Path, image_folder: Path, tmp_path: Path
) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            self.batches: Iterator[dict[str, Any]] = iter([{name: images(2)}, {name: images(2) * 0.5}])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    reader = Reader(onnx.load(timm_file).graph.input[0].name)
    path = tmp_path / "static.onnx"
    quantize_static(str(timm_file), str(path), reader, quant_format=QuantFormat.QDQ, per_channel=True)
    assert open_input(path).precision == "int8"
    report = api.validate(path, baseline=timm_file, data=DataOptions(image_folder))
    assert drop_of(report.rows[1]).agreement > 0.5


def write(path: Path, kind: int, shape: list[int | str], *, last: bool = False, features_first: bool = False) -> Path:
    """Write a classifier whose logits are the means of the three channels, scaled."""
    axes = [1, 2] if last else [2, 3]
    number = np.float16 if kind == TensorProto.FLOAT16 else np.float32
    weight = np.diag([1, 2, 3]).astype(number)
    inner = TensorProto.FLOAT16 if kind == TensorProto.FLOAT16 else TensorProto.FLOAT
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=inner),
        helper.make_node("ReduceMean", ["floats", "axes"], ["features"], keepdims=0),
        helper.make_node("MatMul", ["features", "weight"], ["scores"]),
        helper.make_node("Unsqueeze", ["features", "axis"], ["deep"]),
    ]
    constants = [
        numpy_helper.from_array(weight, "weight"),
        numpy_helper.from_array(np.array(axes), "axes"),
        numpy_helper.from_array(np.array([2]), "axis"),
    ]
    outputs = [helper.make_tensor_value_info("scores", inner, [shape[0], 3])]
    if features_first:
        outputs.insert(0, helper.make_tensor_value_info("deep", inner, [shape[0], 3, 1]))
    inputs = [helper.make_tensor_value_info("pixels", kind, shape)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    onnx.checker.check_model(str(path), full_check=True)
    return path


def means(taken: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = taken.mean(axis=(2, 3)) * np.array([1, 2, 3], np.float32)
    return found


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
def test_files_of_any_type_and_layout_run(tmp_path: Path, kind: int, last: bool) -> None:
    shape: list[int | str] = ["n", SIDE, SIDE, 3] if last else ["n", 3, SIDE, SIDE]
    path = write(tmp_path / "a.onnx", kind, shape, last=last)
    artifact = open_input(path)
    assert artifact.io == GraphIO(input_layout="nhwc" if last else "nchw", output_names=("scores",))
    assert (artifact.model.in_channels, artifact.preprocess.image_size) == (3, SIDE)
    assert artifact.precision == ("fp16" if kind == TensorProto.FLOAT16 else "fp32")
    found = logits_of(path, images(3))
    assert found.dtype == np.float32
    assert np.abs(found - means(images(3))).max() < (2e-3 if kind == TensorProto.FLOAT16 else 1e-6)


def test_file_that_takes_pixels_gets_pixels(tmp_path: Path) -> None:
    path = write(tmp_path / "a.onnx", TensorProto.UINT8, ["n", SIDE, SIDE, 3], last=True)
    artifact = open_input(path)
    assert artifact.io.input_type == "uint8"
    raw = np.random.default_rng(0).integers(0, 256, (2, 3, SIDE, SIDE))
    mean, std = (np.array(v)[:, None, None] for v in (artifact.preprocess.mean, artifact.preprocess.std))
    found = logits_of(path, ((raw / 255 - mean) / std).astype(np.float32))
    assert np.abs(found - means(raw.astype(np.float32))).max() < 1e-3


def test_logits_are_found_among_other_outputs(tmp_path: Path) -> None:
    path = write(tmp_path / "a.onnx", TensorProto.FLOAT, ["n", 3, SIDE, SIDE], features_first=True)
    assert open_input(path).model.num_classes == 3
    assert np.allclose(logits_of(path, images(2)), means(images(2)), atol=1e-6)


def test_type_that_no_image_has_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.onnx", TensorProto.DOUBLE, ["n", 3, SIDE, SIDE])
    with pytest.raises(ArtifactError, match=r"takes tensor\(double\); expected one of tensor\(float\)"):
        open_runner(open_input(path))


def test_file_of_model_optimizer_is_validated(tmp_path: Path) -> None:
    path = Path(__file__).parents[1] / "golden" / "onnx" / "model_optimizer-0.47.0-int8.onnx"
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in "abcde":
            (tmp_path / part / name).mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(
                tmp_path / part / name / "0.png"
            )
    report = api.validate(path, data=DataOptions(tmp_path))
    found = accuracy_of(report.rows[0])
    assert (report.rows[0].identity.precision, found.total, found.top5) == ("int8-fp16", 5, 1.0)
