"""The settings of every kind of stage, as frozen records that check their own values."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from convnext_deploy.errors import RecipeError


def require(condition: bool, field_name: str, found: object, expected: str) -> None:
    """Check a value. Raises: RecipeError: naming the field, what was found and what was expected."""
    if not condition:
        raise RecipeError(f"{field_name} = {found!r} is out of range; expected {expected}.")


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


AugmentationPolicy = Literal["none", "randaugment", "autoaugment", "trivialaugment"]


@dataclass(frozen=True)
class Augmentation:
    """Which training transforms there are, and how strong: flat keys of a stage's `fit` table.

    ConvNeXt's own for ImageNet (arXiv 2201.03545, table 5): RandAugment of magnitude 9, erasing 0.25, Mixup 0.8, CutMix 1.0. The
    defaults have crop and flip alone, which is right for small networks and for medical images.

    Attributes:
        crop_scale_min: least area of the random resized crop, a fraction of the image.
        flip_probability: of being mirrored left to right.
        color_jitter: brightness, contrast and saturation each get a factor uniform in 1 ± this, in random order; 0: off.
        augmentation_policy: RandAugment (arXiv 1909.13719), AutoAugment (1805.09501), TrivialAugmentWide (2103.10158) or none.
        randaugment_ops: operations per image.
        randaugment_magnitude: of them, 0 to 30.
        random_erasing_probability: of a rectangle being replaced by noise (arXiv 1708.04896).
        mixup_alpha: of the Beta distribution of Mixup's weights (arXiv 1710.09412); 0: no Mixup.
        cutmix_alpha: of the Beta distribution of CutMix's areas (arXiv 1905.04899); 0: no CutMix. With both, each has half the
            batches.
        mixing_probability: of a batch being mixed.
    """

    crop_scale_min: float = 0.08
    flip_probability: float = 0.5
    color_jitter: float = 0.0
    augmentation_policy: AugmentationPolicy = "none"
    randaugment_ops: int = 2
    randaugment_magnitude: int = 9
    random_erasing_probability: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    mixing_probability: float = 1.0

    def __post_init__(self) -> None:
        require(0 < self.crop_scale_min <= 1, "crop_scale_min", self.crop_scale_min, "0 < value <= 1")
        for name in ("flip_probability", "random_erasing_probability", "mixing_probability"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "0 to 1")
        for name in ("color_jitter", "mixup_alpha", "cutmix_alpha"):
            require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), ">= 0")
        policies = get_args(AugmentationPolicy)
        known = " or ".join(repr(policy) for policy in policies)
        require(self.augmentation_policy in policies, "augmentation_policy", self.augmentation_policy, known)
        require(self.randaugment_ops >= 1, "randaugment_ops", self.randaugment_ops, ">= 1")
        require(0 <= self.randaugment_magnitude <= 30, "randaugment_magnitude", self.randaugment_magnitude, "0 to 30")

    @property
    def is_mixing(self) -> bool:
        """Whether batches may be mixed, so that targets are probabilities of classes."""
        return (self.mixup_alpha > 0 or self.cutmix_alpha > 0) and self.mixing_probability > 0


@dataclass(frozen=True)
class FitConfig(Augmentation):
    """One training run. Defaults: ConvNeXt's ImageNet settings (arXiv 2201.03545, table 5) where they do not need 8 GPUs.

    Attributes:
        base_learning_rate: at batch 4096; it is scaled linearly to `batch_size`.
        head_dropout: before the logits; `head_input_dropout` is before the hidden layer of a head that has one.
        gradient_checkpointing: save memory by computing each block twice.
        accumulation_steps: parts that fit the memory, into which a batch is cut.
        layer_decay: factor of the learning rate from one twelfth of the depth to the one before it.
        frozen_stages: the stem and that many model stages stay as they are.
        head_only_epochs: at first only the last norm and the head are trained.
        ema_decay: of the average of the weights that becomes the result; 0: the last weights do.
    """

    epochs: int = 300
    batch_size: int = 128
    base_learning_rate: float = 4e-3
    warmup_epochs: float = 20.0
    final_learning_rate_ratio: float = 0.01
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    drop_path_rate: float = 0.1
    head_input_dropout: float = 0.0
    head_dropout: float = 0.0
    layer_scale_init: float = 1e-6
    autocast: Literal["auto", "off", "bf16", "fp16"] = "auto"
    gradient_checkpointing: bool = False
    gradient_clip_norm: float | None = None
    accumulation_steps: int = 1
    layer_decay: float = 1.0
    frozen_stages: int = 0
    head_only_epochs: float = 0.0
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.epochs >= 1, "epochs", self.epochs, ">= 1")
        require(self.batch_size >= 1, "batch_size", self.batch_size, ">= 1")
        require(0 < self.base_learning_rate < math.inf, "base_learning_rate", self.base_learning_rate, "> 0")
        require(0 <= self.warmup_epochs < math.inf, "warmup_epochs", self.warmup_epochs, ">= 0")
        require(
            0 <= self.final_learning_rate_ratio <= 1,
            "final_learning_rate_ratio",
            self.final_learning_rate_ratio,
            "0 to 1",
        )
        require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, ">= 0")
        require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "0 <= value < 1")
        require(0 <= self.drop_path_rate < 1, "drop_path_rate", self.drop_path_rate, "0 <= value < 1")
        clip = self.gradient_clip_norm
        require(clip is None or 0 < clip < math.inf, "gradient_clip_norm", clip, "> 0")
        parts = self.accumulation_steps
        require(1 <= parts <= self.batch_size, "accumulation_steps", parts, f"1 to batch_size ({self.batch_size})")
        require(0 < self.layer_decay <= 1, "layer_decay", self.layer_decay, "0 < value <= 1")
        require(0 <= self.frozen_stages <= 4, "frozen_stages", self.frozen_stages, "0 to 4")
        require(0 <= self.head_only_epochs <= self.epochs, "head_only_epochs", self.head_only_epochs, "0 to epochs")
        require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "0 <= value < 1")
        for name in ("head_input_dropout", "head_dropout"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "0 <= value < 1")
        require(self.layer_scale_init > 0, "layer_scale_init", self.layer_scale_init, "> 0")


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

    def __post_init__(self) -> None:
        _check_distillation(self.temperature, self.distill_loss_weight)
        for name in ("dkd_alpha", "dkd_beta", "feature_loss_weight"):
            require(0 <= getattr(self, name) <= 1000, name, getattr(self, name), "0 to 1000")
        if isinstance(self.teacher, tuple):
            names = self.teacher
            require(len(set(names)) == len(names) > 0, "teacher", names, "at least one name, each once")
        if self.method == "feature" and self.fit.gradient_checkpointing:
            raise RecipeError("method = 'feature' needs what gradient_checkpointing drops; use one of the two.")


@dataclass(frozen=True)
class PTQConfig:
    """Post-training quantization. `percentile` counts for `calibration_method = "percentile"` only."""

    kind: ClassVar[str] = "ptq"
    target: str = "tensorrt"
    calibration_method: Literal["minmax", "percentile"] = "percentile"
    percentile: float = 99.99
    calibration_images: int = 512
    batch_size: int = 64

    def __post_init__(self) -> None:
        require(50 < self.percentile <= 100, "percentile", self.percentile, "50 < value <= 100")
        require(self.calibration_images >= 1, "calibration_images", self.calibration_images, ">= 1")
        require(self.batch_size >= 1, "batch_size", self.batch_size, ">= 1")


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
class ONNXConfig:
    """Export to ONNX: FP32 from an FP32 artifact, explicit Q/DQ from a quantized one. Dynamic batch."""

    kind: ClassVar[str] = "onnx"


@dataclass(frozen=True)
class TensorRTConfig:
    """Build engines from an ONNX artifact. `gpus` (`sm86`, …) is for `tensorrt-rtx`; `tensorrt` builds for the GPU present."""

    kind: ClassVar[str] = "tensorrt"
    flavor: Literal["tensorrt-rtx", "tensorrt"] = "tensorrt-rtx"
    gpus: tuple[str, ...] = ("sm86", "sm89")
    optimal_batch_size: int = 1
    max_batch_size: int = 8
    workspace_mib: int = 1024
    optimization_level: int = 3

    def __post_init__(self) -> None:
        best, most = self.optimal_batch_size, self.max_batch_size
        require(1 <= best <= most, "optimal_batch_size", best, f"1 to max_batch_size ({most})")
        require(self.workspace_mib >= 1, "workspace_mib", self.workspace_mib, ">= 1")
        require(0 <= self.optimization_level <= 5, "optimization_level", self.optimization_level, "0 to 5")
        require(self.flavor == "tensorrt" or bool(self.gpus), "gpus", self.gpus, "at least one, such as 'sm86'")
        require(len({g.lower() for g in self.gpus}) == len(self.gpus), "gpus", self.gpus, "each GPU once")


def _check_distillation(temperature: float, weight: float) -> None:
    # outside, float32 has no digits left for T² * KL, or for logits / T
    require(0.01 <= temperature <= 100, "temperature", temperature, "> 0, from 0.01 to 100")
    require(0 <= weight <= 1, "distill_loss_weight", weight, "0 to 1")


StageConfig = TrainConfig | DistillConfig | PTQConfig | QATConfig | ONNXConfig | TensorRTConfig
CONFIGS: dict[str, type[StageConfig]] = {
    config.kind: config for config in (TrainConfig, DistillConfig, PTQConfig, QATConfig, ONNXConfig, TensorRTConfig)
}
