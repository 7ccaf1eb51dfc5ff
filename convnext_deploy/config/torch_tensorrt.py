"""The settings of a Torch-TensorRT program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

from convnext_deploy.config.checks import require
from convnext_deploy.config.choices import Precision
from convnext_deploy.config.engine import EngineConfig


@dataclass(frozen=True)
class TorchTensorRTConfig(EngineConfig):
    """Compile a float PyTorch artifact with Torch-TensorRT, for the GPU present; with `fp16`, norms and sums stay FP32."""

    kind: ClassVar[str] = "torch-tensorrt"
    done: ClassVar[str] = "built into a Torch-TensorRT program"
    implementation: ClassVar[str | None] = "convnext_deploy.stages.torch_tensorrt"
    precision: Precision = "fp16"

    def __post_init__(self) -> None:
        known = "'fp32' or 'fp16'; INT8 goes through ONNX, to a stage of the kind tensorrt"
        require(self.precision in get_args(Precision), "precision", self.precision, known)
        super().__post_init__()
