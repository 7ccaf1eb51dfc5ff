"""What tests read of an artifact's details, of which they know that it is there."""

from __future__ import annotations

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import EngineDetails, FP16Record, ONNXDetails, PTQRecord, Selection, TorchDetails


def torch_details(artifact: Artifact) -> TorchDetails:
    """Return those of a PyTorch artifact."""
    return artifact.details_as(TorchDetails)


def onnx_details(artifact: Artifact) -> ONNXDetails:
    """Return those of an ONNX artifact."""
    return artifact.details_as(ONNXDetails)


def fp16_of(artifact: Artifact) -> FP16Record:
    """Return what stays in FP32 in an FP16 graph."""
    found = onnx_details(artifact).fp16
    assert found is not None
    return found


def engine_details(artifact: Artifact) -> EngineDetails:
    """Return those of engines."""
    return artifact.details_as(EngineDetails)


def ptq_of(artifact: Artifact) -> PTQRecord:
    """Return what post-training quantization did to it."""
    found = torch_details(artifact).ptq
    assert found is not None
    return found


def selection_of(artifact: Artifact) -> Selection:
    """Return what `quantize` tried."""
    found = torch_details(artifact).selection
    assert found is not None
    return found
