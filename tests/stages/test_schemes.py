"""An artifact carries its scheme: whatever target and overrides it was quantized with, it opens as what it was."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from convnext_deploy.artifacts.artifact import Artifact, read_artifact, write_manifest
from convnext_deploy.artifacts.details import ONNXDetails, PTQRecord, TorchDetails
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.onnx import ONNXConfig
from convnext_deploy.config.quantize import QATConfig
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import CheckpointError, RecipeError
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.quantization.calibration import calibrate
from convnext_deploy.quantization.prepare import prepare, quantized_layers
from convnext_deploy.quantization.scheme import SCHEMES, QuantizationScheme, resolve_scheme
from convnext_deploy.stages import onnx as onnx_stage
from convnext_deploy.stages import qat as qat_stage
from convnext_deploy.stages.context import StageContext
from convnext_deploy.stages.write_artifact import write_torch_artifact
from convnext_deploy.system.execution import Execution
from tests.details import onnx_details

OVERRIDES = {"stages.3.*": "float", "head": "int8", "stages.0.0.dwconv": "int8-output"}
INT8_TARGETS = [target for target, scheme in SCHEMES.items() if scheme.precision == "int8"]
IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
EVERY_SCHEME = pytest.mark.parametrize(
    "scheme",
    [*SCHEMES.values(), *(SCHEMES[target].with_overrides(OVERRIDES) for target in INT8_TARGETS)],
    ids=[*SCHEMES, *(f"{target}-overrides" for target in INT8_TARGETS)],
)


def context(folder: Path, data: Data | None = None) -> StageContext:
    folder.mkdir()
    return StageContext("stage", folder, data, Execution(), folder.parent / "cache")


def quantize(source: Artifact, scheme: QuantizationScheme, folder: Path) -> tuple[ConvNeXt, Artifact]:
    """Quantize as a PTQ stage does."""
    network = prepare(load_network(source), scheme)
    calibrate(network, [IMAGES], "minmax")
    artifact = write_torch_artifact(
        network,
        context(folder),
        model=source.model,
        preprocess=source.preprocess,
        class_names=source.class_names,
        precision=scheme.precision,
        details=TorchDetails(**scheme.details(), ptq=PTQRecord(len(IMAGES))),
        source=source,
    )
    return network, artifact


@EVERY_SCHEME
@torch.no_grad()
def test_artifact_opens_with_the_quantizers_that_it_was_written_with(
    scheme: QuantizationScheme, small_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    network, artifact = quantize(small_artifacts["student"], scheme, tmp_path / "ptq")
    write_manifest(artifact)
    expected = network(IMAGES)
    layers = {name: layer.output_quantizer is None for name, layer in quantized_layers(network)}
    # from the folder, whose manifest was written and read, and from the bare file, which tells by its header
    for found in (read_artifact(artifact.path), open_input(artifact.main_file)):
        assert found.scheme == scheme
        opened = load_network(found)
        assert {name: layer.output_quantizer is None for name, layer in quantized_layers(opened)} == layers
        assert torch.equal(opened(IMAGES), expected)


@pytest.mark.heavy
def test_onnx_file_tells_target_and_overrides(small_artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    scheme = resolve_scheme("onnxruntime", OVERRIDES)
    network, artifact = quantize(small_artifacts["student"], scheme, tmp_path / "ptq")
    exported = onnx_stage.run(ONNXConfig(), artifact, context(tmp_path / "onnx"))
    assert exported.scheme == scheme
    assert onnx_details(exported).quantized_layers == len(dict(quantized_layers(network)))
    assert open_input(exported.main_file).scheme == scheme
    assert open_input(exported.main_file).details == exported.details
    plain = onnx_stage.run(ONNXConfig(), small_artifacts["student"], context(tmp_path / "float"))
    assert plain.details == ONNXDetails(quantized_layers=0)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", pytest.param("tensorrt-fp8", marks=pytest.mark.heavy)])
def test_qat_trains_asymmetric_and_floating_grids_and_keeps_the_scheme(
    target: str, small_artifacts: dict[str, Artifact], small_data: Data, tmp_path: Path
) -> None:
    scheme = resolve_scheme(target, {"stages.3.*": "float"})
    network, artifact = quantize(small_artifacts["student"], scheme, tmp_path / "ptq")
    config = QATConfig(fit=FitConfig(epochs=1, batch_size=16, base_learning_rate=0.0256, warmup_epochs=0))
    trained = qat_stage.run(config, artifact, context(tmp_path / "qat", small_data))
    assert (trained.scheme, trained.precision) == (scheme, scheme.precision)
    before, after = network.state_dict(), load_network(trained).state_dict()
    assert before.keys() == after.keys()
    moved = {key.rpartition(".")[2] for key in before if not torch.equal(before[key], after[key])}
    assert {"log2_scale", "weight", "bias"} <= moved
    assert ("zero_point_shift" in moved) == (not scheme.activation.symmetric)
    assert "zero_point" not in moved


def test_artifact_of_another_scheme_does_not_open(small_artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    _, artifact = quantize(small_artifacts["student"], resolve_scheme("tensorrt"), tmp_path / "ptq")
    for details, error, words in (
        (TorchDetails("onnxruntime"), CheckpointError, "quantizer"),
        (TorchDetails("tensorrt", {"head": "int8"}), CheckpointError, "head"),
        (TorchDetails("tensorrt", {"haed": "int8"}), RecipeError, "Did you mean 'head'"),
        (TorchDetails("tensorrt", {"head": "int4"}), RecipeError, "'head' = 'int4' is unknown"),
    ):
        with pytest.raises(error, match=words):
            load_network(dataclasses.replace(artifact, details=details))


def test_weights_header_holds_the_scheme_and_nothing_else_of_the_details(
    small_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    scheme = resolve_scheme("openvino", OVERRIDES)
    _, artifact = quantize(small_artifacts["student"], scheme, tmp_path / "ptq")
    assert open_input(artifact.main_file).details == TorchDetails(**scheme.details())
    assert json.loads(json.dumps(scheme.details())) == scheme.details()
