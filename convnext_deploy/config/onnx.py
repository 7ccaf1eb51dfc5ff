"""The settings of an export to ONNX."""

from dataclasses import dataclass
from typing import ClassVar

from convnext_deploy.config.checks import require
from convnext_deploy.config.choices import GraphOutput, InputLayout, InputType, Precision, Runtime
from convnext_deploy.config.stage import StageConfig
from convnext_deploy.errors import ExportError


@dataclass(frozen=True)
class ONNXConfig(StageConfig):
    """Export to ONNX, a quantized artifact as explicit Q/DQ, for the target `onnxruntime` in that runtime's integer operators.

    `precision` is that of everything that is not INT8 or FP8; with `fp16` types are written into the graph, with FP32 where FP16
    would overflow, which `range_images` training images show, and for `runtime` `tensorrt-rtx` around such MatMul nodes. A float
    graph for `onnxruntime` or `openvino` has the form that it runs fastest (see `exporters.onnx.runtime_rewrites`), which others
    read too; what is quantized is for its own target. `output` `logits` is that of the network: of one without head its features.
    `batch_size` None: any. For the other settings of the graph's ends see `spec.GraphIO`. `license`: of the weights, written into
    the file; None: what is known of it.
    """

    kind: ClassVar[str] = "onnx"
    done: ClassVar[str] = "exported to ONNX"
    implementation: ClassVar[str | None] = "convnext_deploy.stages.onnx"
    result_version: ClassVar[int] = 3  # a small bias of a quantized layer is FP16
    precision: Precision = "fp32"
    runtime: Runtime = "tensorrt"
    batch_size: int | None = None
    input_type: InputType = "float32"
    input_layout: InputLayout = "nchw"
    output: GraphOutput = "logits"
    top_k: int = 5
    range_images: int = 64
    license: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size is not None:
            require(self.batch_size >= 1, "batch_size", self.batch_size, ">= 1")
        require(self.top_k >= 1, "top_k", self.top_k, ">= 1")
        if self.precision == "fp16":
            require("tensorrt" in self.runtime, "runtime", self.runtime, "that of a TensorRT with precision = 'fp16'")
        require(self.range_images >= 1, "range_images", self.range_images, ">= 1")
        require(
            self.license is None or bool(self.license.strip()), "license", self.license, "a name such as 'Apache-2.0'"
        )

    @property
    def reads_images(self) -> bool:
        """Whether ranges of activations are measured, on training images."""
        return self.precision == "fp16"


def check_top_k(count: int, classes: int, stage: str = "", *, multi_label: bool = False) -> None:
    """Check how many classes are asked for; `stage` begins the error.

    Raises: ExportError: if there are not as many, or each of them is an answer of its own.
    """
    if multi_label:
        raise ExportError(
            f"{stage}a multi-label network answers each label by itself, and its best classes alone would leave out the others; "
            "export --output probabilities."
        )
    if count > classes:
        raise ExportError(
            f"{stage}the {count} largest of {classes} classes were asked for; choose --top-k 1 to {classes} (in a recipe top_k)."
        )
