"""Runners that measure the time of each layer."""

from __future__ import annotations

from typing import Protocol

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.errors import RunnerError
from convnext_deploy.runners import Runner, default_runner
from convnext_deploy.runners.profiling import Kernel
from convnext_deploy.runners.session_options import OPENVINO_PRECISIONS, PROVIDERS


class ProfiledRunner(Runner, Protocol):
    """A runner that was opened to be profiled, and is slower for it."""

    def kernels(self) -> tuple[Kernel, ...]:
        """Return the kernels in the order in which they run. Call it once, after the calls, of one batch size."""


def open_profiled(artifact: Artifact, runner: str | None = None, threads: int | None = None) -> ProfiledRunner:
    """Open an ONNX artifact or an engine to be profiled; see `open_runner`.

    Raises: RunnerError: for a runner without a profile. Otherwise as `open_runner`.
    """
    name = default_runner(artifact) if runner is None else runner
    if name in OPENVINO_PRECISIONS:
        from convnext_deploy.runners.openvino import OpenVINORunner

        return OpenVINORunner(artifact, name, threads, profiled=True)
    if name in PROVIDERS:
        from convnext_deploy.runners.onnxruntime import ONNXRuntimeRunner

        return ONNXRuntimeRunner(artifact, name, threads, alone=True, profiled=True)
    if name == "tensorrt":
        from convnext_deploy.runners.tensorrt import TensorRTRunner

        return TensorRTRunner(artifact, profiled=True)
    raise RunnerError(f"the runner {name} has no profile; expected one for ONNX or engines.")
