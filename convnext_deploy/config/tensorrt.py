"""The settings of TensorRT engines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from convnext_deploy.config.checks import require
from convnext_deploy.config.choices import Flavor
from convnext_deploy.config.engine import EngineConfig


@dataclass(frozen=True)
class TensorRTConfig(EngineConfig):
    """Build engines from an ONNX artifact: of `tensorrt-rtx` for each of `gpus`, of `tensorrt` for the GPU present.

    `gpus` are names or compute capabilities, such as `rtx-4070` or `sm86`; an entry may be a list with commas. A frozen batch of
    the ONNX file must be at most `max_batch_size`. `timing_cache` is a file, `version_compatible` plans run in later releases too,
    and `stripped` ones hold no weights; all three are for `tensorrt`. With `strict` it is an error that a MatMul or Conv node
    which the ONNX file asks for in INT8 runs in float.
    """

    kind: ClassVar[str] = "tensorrt"
    done: ClassVar[str] = "built into engines"
    implementation: ClassVar[str | None] = "convnext_deploy.stages.tensorrt"
    flavor: Flavor = "tensorrt-rtx"
    gpus: tuple[str, ...] = ("sm86", "sm89")
    timing_cache: str | None = None
    version_compatible: bool = False
    stripped: bool = False
    strict: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        named = bool(self.gpus) and all(gpu.strip(" ,") for gpu in self.gpus)
        require(self.flavor == "tensorrt" or named, "gpus", self.gpus, "at least one, such as 'rtx-4070' or 'sm86'")
        require(self.timing_cache != "", "timing_cache", self.timing_cache, "the name of a file")
