"""The settings of TensorRT engines and of Torch-TensorRT programs."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, get_args

import msgspec

from convnext_deploy.config.checks import require
from convnext_deploy.config.choices import Flavor, Precision
from convnext_deploy.config.stage import StageConfig

_PRECISIONS = "'fp32' or 'fp16'; INT8 goes through ONNX, to a stage of the kind tensorrt"


@dataclass(frozen=True, kw_only=True)
class EngineConfig(StageConfig):
    """The batch sizes that an engine takes, 1 to `max_batch_size`, fastest at the optimal one, and how its build goes about it."""

    optimal_batch_size: int = 1
    max_batch_size: int = 8
    workspace_mib: int = 1024
    optimization_level: int = 3
    takes_less_memory: ClassVar[str] = "lower workspace_mib or max_batch_size"

    def __post_init__(self) -> None:
        super().__post_init__()
        best, most = self.optimal_batch_size, self.max_batch_size
        require(1 <= best <= most, "optimal_batch_size", best, f"1 to max_batch_size ({most})")
        require(self.workspace_mib >= 1, "workspace_mib", self.workspace_mib, ">= 1")
        require(self.workspace_mib <= 2**20, "workspace_mib", self.workspace_mib, "<= 1048576, which are 1 TiB")
        require(0 <= self.optimization_level <= 5, "optimization_level", self.optimization_level, "0 to 5")

    @property
    def reads_images(self) -> bool:
        """Never: what is INT8 or FP8 has its ranges in the file that an engine is built from."""
        return False


@dataclass(frozen=True)
class TensorRTConfig(EngineConfig):
    """Build engines from an ONNX artifact: of `tensorrt-rtx` for each of `gpus`, of `tensorrt` for the GPU present.

    `gpus` are names or compute capabilities, such as `rtx-4070` or `sm86`; an entry may be a list with commas. A frozen batch of
    the ONNX file must be at most `max_batch_size`. `timing_cache` is a file, `version_compatible` plans run in later releases too,
    and `stripped` ones hold no weights; all three are for `tensorrt`. With `strict` it is an error that a MatMul or Conv node
    which the ONNX file asks for in INT8 or FP8 runs in float.
    """

    kind: ClassVar[str] = "tensorrt"
    done: ClassVar[str] = "built into engines"
    implementation: ClassVar[str | None] = "convnext_deploy.stages.tensorrt"
    references: ClassVar[tuple[str, ...]] = ("timing_cache",)
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


@dataclass(frozen=True)
class TorchTensorRTConfig(EngineConfig):
    """Compile a float PyTorch artifact with Torch-TensorRT, for the GPU present; with `fp16`, norms and sums stay FP32."""

    kind: ClassVar[str] = "torch-tensorrt"
    done: ClassVar[str] = "built into a Torch-TensorRT program"
    implementation: ClassVar[str | None] = "convnext_deploy.stages.torch_tensorrt"
    precision: Annotated[Precision, msgspec.Meta(description=_PRECISIONS)] = "fp16"

    def __post_init__(self) -> None:
        require(self.precision in get_args(Precision), "precision", self.precision, _PRECISIONS)
        super().__post_init__()
