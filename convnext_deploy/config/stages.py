"""The settings of every kind of stage, as frozen records that check their own values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from convnext_deploy.config.checks import require
from convnext_deploy.config.training import FitConfig
from convnext_deploy.errors import RecipeError

Flavor = Literal["tensorrt-rtx", "tensorrt"]


@dataclass(frozen=True)
class ModelConfig:
    """The network of a training stage.

    `crop_pct` None: that of the initial weights, without any 0.875 from 128 pixels on and 1.0 below. `head_hidden_size`: width
    of a hidden layer before the logits; None: as in the variant, 0: none. `weights`: initial weights, a file, an artifact or a
    name such as `timm/convnext_tiny.fb_in1k`; a head of another size is left out.
    """

    name: str
    image_size: int = 224
    patch_size: int = 4
    in_channels: int = 3
    crop_pct: float | None = None
    head_hidden_size: int | None = None
    head_activation: Literal["gelu", "relu"] = "gelu"
    weights: str | None = None

    def __post_init__(self) -> None:
        require(self.patch_size in (2, 4, 8), "patch_size", self.patch_size, "2 (small images), 4 (usual) or 8")
        require(self.in_channels in (1, 3), "in_channels", self.in_channels, "1 (grey) or 3 (RGB)")
        least = 8 * self.patch_size
        require(
            self.image_size >= least, "image_size", self.image_size, f">= {least} with patch_size {self.patch_size}"
        )
        if self.crop_pct is not None:
            require(0.1 <= self.crop_pct <= 1.0, "crop_pct", self.crop_pct, "0.1 to 1.0")
        require(self.weights != "", "weights", self.weights, "a file, a folder or a name")
        if self.head_hidden_size is not None:
            require(self.head_hidden_size >= 0, "head_hidden_size", self.head_hidden_size, ">= 1, or 0 for none")


@dataclass(frozen=True)
class TrainConfig:
    """Train from scratch, or fine-tune the stage's source artifact when it has one."""

    kind: ClassVar[str] = "train"
    model: ModelConfig
    fit: FitConfig = field(default_factory=FitConfig)


@dataclass(frozen=True)
class DistillConfig:
    """Train a student on labels and on a teacher (another stage, or `source`), or the mean prediction of several.

    `method`: `kd` follows the teacher's probabilities at `temperature` (arXiv 1503.02531), `teacher-only` does so without the
    labels (2106.05237), `hard-label` follows its most probable class (2012.12877), `dkd` weighs target class (`dkd_alpha`) and
    other classes (`dkd_beta`) apart (2203.08679), `feature` adds `feature_loss_weight` times a loss of the features after each
    model stage to `kd` (1412.6550). The labels get `1 - distill_loss_weight`, with `teacher-only` nothing.

    Defaults: those of VanillaKD (arXiv 2305.15781), temperature 1 and equal weights, which took ConvNeXt V2-T to 85.0 % on
    ImageNet; 2106.05237 has temperature 1 too. Long schedules count for more than the method.

    `teacher_cache` keeps the teacher's predictions on disk, in half precision, of the `teacher_cache_top_k` most probable classes
    or of all (0): what was computed once is not computed again, by this run or by other students with the same crops.
    """

    kind: ClassVar[str] = "distill"
    model: ModelConfig
    teacher: str | tuple[str, ...]
    fit: FitConfig = field(default_factory=FitConfig)
    method: Literal["kd", "teacher-only", "hard-label", "dkd", "feature"] = "kd"
    temperature: float = 1.0
    distill_loss_weight: float = 0.5
    dkd_alpha: float = 1.0
    dkd_beta: float = 2.0
    feature_loss_weight: float = 1.0
    teacher_cache: bool = False
    teacher_cache_top_k: int = 0

    def __post_init__(self) -> None:
        _check_distillation(self.temperature, self.distill_loss_weight)
        require(self.teacher_cache_top_k >= 0, "teacher_cache_top_k", self.teacher_cache_top_k, ">= 0")
        if self.teacher_cache and self.method == "feature":
            raise RecipeError("method = 'feature' needs the teacher's features, which teacher_cache does not keep.")
        for name in ("dkd_alpha", "dkd_beta", "feature_loss_weight"):
            require(0 <= getattr(self, name) <= 1000, name, getattr(self, name), "0 to 1000")
        if isinstance(self.teacher, tuple):
            names = self.teacher
            require(len(set(names)) == len(names) > 0, "teacher", names, "at least one name, each once")
        if self.method == "feature" and self.fit.gradient_checkpointing:
            raise RecipeError("method = 'feature' needs what gradient_checkpointing drops; use one of the two.")


@dataclass(frozen=True)
class PTQSteps:
    """What is done to a network between folding and INT8, without training.

    `calibration_method`: how the range of an activation is chosen; `auto`: tensor by tensor, by the error at the layer's output.
    `percentile` counts for `percentile` and as a candidate of `auto`. `smoothing` scales channels between a norm or GRN and the
    layer after it (SmoothQuant, arXiv 2211.10438), with `smoothing_alpha` or, None, what suits each layer, which may be nothing.
    `bias_correction` keeps the mean of every channel (1906.04721). `reconstruction` learns which way each weight is rounded
    (AdaRound, 2004.10568), block by block, in `reconstruction_steps` each.
    """

    calibration_method: Literal["auto", "minmax", "moving_average", "percentile", "mse", "entropy"] = "auto"
    percentile: float = 99.99
    smoothing: bool = True
    smoothing_alpha: float | None = None
    bias_correction: bool = True
    reconstruction: bool = False
    reconstruction_steps: int = 300

    def __post_init__(self) -> None:
        require(50 < self.percentile <= 100, "percentile", self.percentile, "50 < value <= 100")
        if self.smoothing_alpha is not None:
            require(0 <= self.smoothing_alpha <= 1, "smoothing_alpha", self.smoothing_alpha, "0 to 1")
            require(self.smoothing, "smoothing_alpha", self.smoothing_alpha, "only with smoothing = true")
        require(self.reconstruction_steps >= 1, "reconstruction_steps", self.reconstruction_steps, ">= 1")


@dataclass(frozen=True)
class PTQConfig(PTQSteps):
    """Post-training quantization with the steps given. `sites`: pattern over layer names → choice, see `quantization.scheme`."""

    kind: ClassVar[str] = "ptq"
    target: str = "tensorrt"
    sites: dict[str, str] = field(default_factory=dict)
    calibration_images: int = 512
    batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_calibration(self.calibration_images, self.batch_size)


@dataclass(frozen=True)
class QATConfig:
    """Quantization-aware training from a PTQ artifact.

    `teacher`: another stage or `source`, such as the teacher that the network was distilled from; None: the artifact's own float
    weights. By default the teacher alone is followed: the aim is the same predictions, not further training on the labels.
    """

    kind: ClassVar[str] = "qat"
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(epochs=5, base_learning_rate=4e-4, warmup_epochs=0.5, drop_path_rate=0.0)
    )
    teacher: str | None = None
    temperature: float = 1.0
    distill_loss_weight: float = 1.0

    def __post_init__(self) -> None:
        _check_distillation(self.temperature, self.distill_loss_weight)


@dataclass(frozen=True)
class QuantizeConfig:
    """Climb from the cheapest method of quantization to the strongest, and stop at the first that loses too little to matter.

    A rung is good enough when it loses at most `max_drop_pp` percentage points of top-1, luck included (see `stages.quantize`), on
    `selection_images` training images that no other step sees. `method`: `ptq` ends before training, `qat` goes to training
    at once, from the best of the rest, and `auto` trains only if nothing else is good enough. `time_budget_s`: no rung is begun
    that would not end within it; the first one always is. Training settings are those of `QATConfig`.
    """

    kind: ClassVar[str] = "quantize"
    target: str = "tensorrt"
    sites: dict[str, str] = field(default_factory=dict)
    method: Literal["auto", "ptq", "qat"] = "auto"
    max_drop_pp: float = 0.2
    calibration_images: int = 512
    selection_images: int = 1024
    batch_size: int = 32
    time_budget_s: float | None = None
    fit: FitConfig = field(default_factory=lambda: QATConfig().fit)
    teacher: str | None = None
    temperature: float = 1.0
    distill_loss_weight: float = 1.0

    def __post_init__(self) -> None:
        _check_calibration(self.calibration_images, self.batch_size)
        _check_distillation(self.temperature, self.distill_loss_weight)
        require(0 <= self.max_drop_pp <= 100, "max_drop_pp", self.max_drop_pp, "0 to 100")
        require(self.selection_images >= 1, "selection_images", self.selection_images, ">= 1")
        if self.time_budget_s is not None:
            require(self.time_budget_s > 0, "time_budget_s", self.time_budget_s, "> 0")


@dataclass(frozen=True)
class ONNXConfig:
    """Export to ONNX, a quantized artifact as explicit Q/DQ, for the target `onnxruntime` in that runtime's integer operators.

    `precision` is that of everything that is not INT8; with `fp16` types are written into the graph, with FP32 where FP16 would
    overflow, which `range_images` training images show, and for `runtime` `tensorrt-rtx` around INT8 matrix products too. A float
    graph for `onnxruntime` or `openvino` has the form that it runs fastest (see `exporters.forms`), which others read too; what is
    quantized is for its own target. `batch_size` None: any. For the other settings of the graph's ends see `spec.GraphIO`.
    `license`: of the weights, written into the file; None: what is known of it.
    """

    kind: ClassVar[str] = "onnx"
    precision: Literal["fp32", "fp16"] = "fp32"
    runtime: Literal["tensorrt", "tensorrt-rtx", "onnxruntime", "openvino"] = "tensorrt"
    batch_size: int | None = None
    input_type: Literal["float32", "uint8"] = "float32"
    input_layout: Literal["nchw", "nhwc"] = "nchw"
    output: Literal["logits", "probabilities", "top-k"] = "logits"
    top_k: int = 5
    range_images: int = 64
    license: str | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None:
            require(self.batch_size >= 1, "batch_size", self.batch_size, ">= 1")
        require(self.top_k >= 1, "top_k", self.top_k, ">= 1")
        if self.precision == "fp16":
            require("tensorrt" in self.runtime, "runtime", self.runtime, "that of a TensorRT with precision = 'fp16'")
        require(self.range_images >= 1, "range_images", self.range_images, ">= 1")
        require(
            self.license is None or bool(self.license.strip()), "license", self.license, "a name such as 'Apache-2.0'"
        )


@dataclass(frozen=True)
class TensorRTConfig:
    """Build engines from an ONNX artifact: of `tensorrt-rtx` for each of `gpus`, of `tensorrt` for the GPU present.

    `gpus` are names or compute capabilities, such as `rtx-4070` or `sm86`; an entry may be a list with commas. A frozen batch of
    the ONNX file must be at most `max_batch_size`. `timing_cache` is a file, `version_compatible` plans run in later releases too,
    and `stripped` ones hold no weights; all three are for `tensorrt`. With `strict` it is an error that a product which the ONNX
    file asks for in INT8 runs in float.
    """

    kind: ClassVar[str] = "tensorrt"
    flavor: Flavor = "tensorrt-rtx"
    gpus: tuple[str, ...] = ("sm86", "sm89")
    optimal_batch_size: int = 1
    max_batch_size: int = 8
    workspace_mib: int = 1024
    optimization_level: int = 3
    timing_cache: str | None = None
    version_compatible: bool = False
    stripped: bool = False
    strict: bool = False

    def __post_init__(self) -> None:
        _check_engine(self)
        named = bool(self.gpus) and all(gpu.strip(" ,") for gpu in self.gpus)
        require(self.flavor == "tensorrt" or named, "gpus", self.gpus, "at least one, such as 'rtx-4070' or 'sm86'")
        require(self.timing_cache != "", "timing_cache", self.timing_cache, "the name of a file")


@dataclass(frozen=True)
class TorchTensorRTConfig:
    """Compile a float PyTorch artifact with Torch-TensorRT, for the GPU present; with `fp16`, norms and sums stay FP32."""

    kind: ClassVar[str] = "torch-tensorrt"
    precision: Literal["fp32", "fp16"] = "fp16"
    optimal_batch_size: int = 1
    max_batch_size: int = 8
    workspace_mib: int = 1024
    optimization_level: int = 3

    def __post_init__(self) -> None:
        known = "'fp32' or 'fp16'; INT8 goes through ONNX, to a stage of the kind tensorrt"
        require(self.precision in ("fp32", "fp16"), "precision", self.precision, known)
        _check_engine(self)


def _check_engine(config: TensorRTConfig | TorchTensorRTConfig) -> None:
    best, most = config.optimal_batch_size, config.max_batch_size
    require(1 <= best <= most, "optimal_batch_size", best, f"1 to max_batch_size ({most})")
    require(config.workspace_mib >= 1, "workspace_mib", config.workspace_mib, ">= 1")
    require(config.workspace_mib <= 2**20, "workspace_mib", config.workspace_mib, "<= 1048576, which are 1 TiB")
    require(0 <= config.optimization_level <= 5, "optimization_level", config.optimization_level, "0 to 5")


def _check_distillation(temperature: float, weight: float) -> None:
    # outside, float32 has no digits left for T² * KL, or for logits / T
    require(0.01 <= temperature <= 100, "temperature", temperature, "> 0, from 0.01 to 100")
    require(0 <= weight <= 1, "distill_loss_weight", weight, "0 to 1")


def _check_calibration(images: int, batch_size: int) -> None:
    require(images >= 1, "calibration_images", images, ">= 1")
    require(batch_size >= 1, "batch_size", batch_size, ">= 1")


StageConfig = (
    TrainConfig
    | DistillConfig
    | PTQConfig
    | QATConfig
    | QuantizeConfig
    | ONNXConfig
    | TensorRTConfig
    | TorchTensorRTConfig
)
CONFIGS: dict[str, type[StageConfig]] = {config.kind: config for config in get_args(StageConfig)}
