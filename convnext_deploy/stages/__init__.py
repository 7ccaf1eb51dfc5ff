"""Stages: each turns one artifact into another. They know nothing of how the result is judged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.stages import (
    DistillConfig,
    ONNXConfig,
    PTQConfig,
    QATConfig,
    QuantizeConfig,
    StageConfig,
    TensorRTConfig,
    TorchTensorRTConfig,
    TrainConfig,
)
from convnext_deploy.stages import distill, onnx, ptq, qat, quantize, tensorrt, torch_tensorrt, train
from convnext_deploy.stages.context import StageContext

Stage = Callable[[Any, Artifact | None, StageContext], Artifact]
"""`run(config, source, context)`; the config is of the type that the stage is listed under."""

STAGES: dict[type[StageConfig], Stage] = {
    TrainConfig: train.run,
    DistillConfig: distill.run,
    PTQConfig: ptq.run,
    QATConfig: qat.run,
    QuantizeConfig: quantize.run,
    ONNXConfig: onnx.run,
    TensorRTConfig: tensorrt.run,
    TorchTensorRTConfig: torch_tensorrt.run,
}
