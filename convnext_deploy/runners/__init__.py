"""Runners open an artifact and compute logits. They know its manifest, not how it was made."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.artifact import Artifact


class Runner(Protocol):
    """An opened artifact. `name` tells the backend, `device` where it runs."""

    name: str
    device: str

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map normalized images `(N, C, S, S)` float32 to logits `(N, num_classes)` float32, for any N >= 1."""

    def close(self) -> None:
        """Give back threads and memory; the runner cannot be used afterwards."""


def open_runner(artifact: Artifact, device: str = "cpu") -> Runner:
    """Open an artifact with the backend of its format.

    Args:
        artifact: any.
        device: `cpu` or `cuda`; an engine always runs on the GPU, ONNX Runtime on the CPU.

    Raises:
        BackendUnavailableError: if this machine lacks the package, driver or GPU that the artifact needs.
        ArtifactError: if the file does not fit its manifest.
    """
    if artifact.format == "torch":
        from convnext_deploy.network import load_network
        from convnext_deploy.runners.torch import TorchRunner

        return TorchRunner(load_network(artifact), device)
    if artifact.format == "onnx":
        from convnext_deploy.runners.onnxruntime import ONNXRuntimeRunner

        return ONNXRuntimeRunner(artifact)
    if artifact.format == "torch-tensorrt":
        from convnext_deploy.runners.torch_tensorrt import TorchTensorRTRunner

        return TorchTensorRTRunner(artifact)
    from convnext_deploy.runners.tensorrt import TensorRTRunner

    return TensorRTRunner(artifact)
