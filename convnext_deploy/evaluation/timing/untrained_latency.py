"""Measure the latency of a network that is not trained yet."""

from __future__ import annotations

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.evaluation.latency import measure_latency
from convnext_deploy.models.variants import build_model
from convnext_deploy.runners.torch import TorchRunner


def measure_fresh_latency(spec: ModelSpec, image_size: int, device: str) -> float:
    """Return the median time in milliseconds for one image `(C, image_size, image_size)` in FP32 PyTorch.

    The weights are fresh; the time does not depend on their values.
    """
    runner = TorchRunner(build_model(spec).eval(), device)
    try:
        return measure_latency(runner, (spec.in_channels, image_size, image_size)).p50_ms
    finally:
        runner.close()
