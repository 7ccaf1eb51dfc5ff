"""The kinds of stages. A new kind is a file with its settings and its `run`, and a line here."""

import importlib

from convnext_deploy.config.stage import StageConfig

STAGE_KINDS: dict[str, str] = {
    "train": "convnext_deploy.config.train:TrainConfig",
    "distill": "convnext_deploy.config.distill:DistillConfig",
    "prune": "convnext_deploy.config.prune:PruneConfig",
    "ptq": "convnext_deploy.config.ptq:PTQConfig",
    "qat": "convnext_deploy.config.quantize:QATConfig",
    "quantize": "convnext_deploy.config.quantize:QuantizeConfig",
    "onnx": "convnext_deploy.config.onnx:ONNXConfig",
    "tensorrt": "convnext_deploy.config.engine:TensorRTConfig",
    "torch-tensorrt": "convnext_deploy.config.engine:TorchTensorRTConfig",
}
"""Kind → where its settings are, which is imported when a recipe asks for it: a file in `stages/` may hold settings and `run`.

Those of the built-in kinds are in files of their own, so that reading a recipe does not import PyTorch.
"""


def stage_config(kind: str) -> type[StageConfig]:
    """Return the settings of a kind in `STAGE_KINDS`."""
    module, _, name = STAGE_KINDS[kind].partition(":")
    config: type[StageConfig] = getattr(importlib.import_module(module), name)
    return config


def trains_a_network(kind: str) -> bool:
    """Whether stages of a kind train a network of their own, rather than one that they are given; False for unknown kinds."""
    if kind not in STAGE_KINDS:
        return False
    config = stage_config(kind)
    return config.trains and not config.needs_source
