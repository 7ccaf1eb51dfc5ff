"""A recipe: an ordered list of stages, as frozen records that check their own values."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from convnext_deploy.errors import RecipeError, suggest

SOURCE = "source"  # the name under which stages refer to the artifact that the user brought
WEIGHTS_PREFIX = "weights:"  # before the place of a stage's initial weights
BASELINE = "baseline"  # the name of its FP32 ancestor in the report


def _require(condition: bool, field_name: str, found: object, expected: str) -> None:
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
        _require(self.patch_size in (2, 4, 8), "patch_size", self.patch_size, "2 (small images), 4 (usual) or 8")
        _require(self.in_channels in (1, 3), "in_channels", self.in_channels, "1 (grey) or 3 (RGB)")
        least = 8 * self.patch_size
        _require(
            self.image_size >= least, "image_size", self.image_size, f">= {least} with patch_size {self.patch_size}"
        )
        if self.crop_pct is not None:
            _require(0.1 <= self.crop_pct <= 1.0, "crop_pct", self.crop_pct, "0.1 to 1.0")
        _require(self.weights != "", "weights", self.weights, "a file, a folder or a name")
        if self.head_hidden_size is not None:
            _require(self.head_hidden_size >= 0, "head_hidden_size", self.head_hidden_size, ">= 1, or 0 for none")


@dataclass(frozen=True)
class FitConfig:
    """One training run. Defaults: ConvNeXt's ImageNet settings (arXiv 2201.03545, table 5) where they do not need 8 GPUs.

    `base_learning_rate` holds at batch 4096 and is scaled linearly to `batch_size`. `crop_scale_min` is the least area of the
    random resized crop. `head_dropout` is before the logits, `head_input_dropout` before the hidden layer of a head that has
    one. `gradient_checkpointing` saves memory by computing each block twice.
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
    crop_scale_min: float = 0.08
    flip_probability: float = 0.5
    autocast: Literal["auto", "off", "bf16"] = "auto"
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "epochs", self.epochs, ">= 1")
        _require(self.batch_size >= 1, "batch_size", self.batch_size, ">= 1")
        _require(0 < self.base_learning_rate < math.inf, "base_learning_rate", self.base_learning_rate, "> 0")
        _require(0 <= self.warmup_epochs < math.inf, "warmup_epochs", self.warmup_epochs, ">= 0")
        _require(
            0 <= self.final_learning_rate_ratio <= 1,
            "final_learning_rate_ratio",
            self.final_learning_rate_ratio,
            "0 to 1",
        )
        _require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, ">= 0")
        _require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "0 <= value < 1")
        _require(0 <= self.drop_path_rate < 1, "drop_path_rate", self.drop_path_rate, "0 <= value < 1")
        for name in ("head_input_dropout", "head_dropout"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "0 <= value < 1")
        _require(self.layer_scale_init > 0, "layer_scale_init", self.layer_scale_init, "> 0")
        _require(0 < self.crop_scale_min <= 1, "crop_scale_min", self.crop_scale_min, "0 < value <= 1")
        _require(0 <= self.flip_probability <= 1, "flip_probability", self.flip_probability, "0 to 1")


@dataclass(frozen=True)
class TrainConfig:
    """Train from scratch, or fine-tune the stage's source artifact when it has one."""

    kind: ClassVar[str] = "train"
    model: ModelConfig
    fit: FitConfig = field(default_factory=FitConfig)


@dataclass(frozen=True)
class DistillConfig:
    """Train a student on labels and on the logits of a teacher (another stage, or `source`)."""

    kind: ClassVar[str] = "distill"
    model: ModelConfig
    teacher: str
    fit: FitConfig = field(default_factory=FitConfig)
    temperature: float = 2.0
    distill_loss_weight: float = 0.7

    def __post_init__(self) -> None:
        _check_distillation(self.temperature, self.distill_loss_weight)


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
        _require(50 < self.percentile <= 100, "percentile", self.percentile, "50 < value <= 100")
        _require(self.calibration_images >= 1, "calibration_images", self.calibration_images, ">= 1")
        _require(self.batch_size >= 1, "batch_size", self.batch_size, ">= 1")


@dataclass(frozen=True)
class QATConfig:
    """Quantization-aware training from a PTQ artifact; its own float weights are the teacher.

    By default the teacher alone is followed: the aim is the same predictions, not further training on the labels.
    """

    kind: ClassVar[str] = "qat"
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(epochs=5, base_learning_rate=4e-4, warmup_epochs=0.5, drop_path_rate=0.0)
    )
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
        _require(1 <= best <= most, "optimal_batch_size", best, f"1 to max_batch_size ({most})")
        _require(self.workspace_mib >= 1, "workspace_mib", self.workspace_mib, ">= 1")
        _require(0 <= self.optimization_level <= 5, "optimization_level", self.optimization_level, "0 to 5")
        _require(self.flavor == "tensorrt" or bool(self.gpus), "gpus", self.gpus, "at least one, such as 'sm86'")
        _require(len({g.lower() for g in self.gpus}) == len(self.gpus), "gpus", self.gpus, "each GPU once")


def _check_distillation(temperature: float, weight: float) -> None:
    _require(temperature > 0, "temperature", temperature, "> 0")
    _require(0 <= weight <= 1, "distill_loss_weight", weight, "0 to 1")


StageConfig = TrainConfig | DistillConfig | PTQConfig | QATConfig | ONNXConfig | TensorRTConfig
CONFIGS: dict[str, type[StageConfig]] = {
    config.kind: config for config in (TrainConfig, DistillConfig, PTQConfig, QATConfig, ONNXConfig, TensorRTConfig)
}


@dataclass(frozen=True)
class Gate:
    """What a stage must reach. None: not judged. `max_top1_drop_pp` in percentage points, `min_top1` a fraction."""

    max_top1_drop_pp: float | None = None
    min_top1: float | None = None

    def __post_init__(self) -> None:
        if self.max_top1_drop_pp is not None:
            _require(0 <= self.max_top1_drop_pp <= 100, "max_top1_drop_pp", self.max_top1_drop_pp, "0 to 100")
        if self.min_top1 is not None:
            _require(0 <= self.min_top1 <= 1, "min_top1", self.min_top1, "a fraction, 0 to 1")


@dataclass(frozen=True)
class StageEntry:
    """A stage in a recipe. `source` names an earlier stage or `source`; None only where a stage starts from nothing."""

    name: str
    config: StageConfig
    source: str | None
    gate: Gate = field(default_factory=Gate)

    @property
    def inputs(self) -> dict[str, str]:
        """Names of the artifacts that the stage reads, by role."""
        roles = {"source": self.source, "teacher": getattr(self.config, "teacher", None), "weights": self.weights}
        return {role: name for role, name in roles.items() if name is not None}

    @property
    def weights(self) -> str | None:
        """Where the initial weights of a training stage lie, if not in its source, with a prefix that no stage name has."""
        weights = self.config.model.weights if isinstance(self.config, TrainConfig | DistillConfig) else None
        return None if weights is None else WEIGHTS_PREFIX + weights


@dataclass(frozen=True)
class Recipe:
    """Stages in order. `data` is `digits` or an image folder; `source` the path of an artifact, checkpoint or ONNX file."""

    name: str
    stages: tuple[StageEntry, ...]
    data: str | None = None
    source: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.seed >= 0, "seed", self.seed, ">= 0")
        known = {SOURCE} if self.source else set()
        if not self.stages:
            raise RecipeError(f"recipe '{self.name}' has no stages; add at least one [[stages]] table.")
        for stage in self.stages:
            if not stage.name or not set(stage.name) <= _NAME_CHARACTERS or stage.name[0] in ".-":
                raise RecipeError(
                    f"stage name {stage.name!r} is not usable; expected letters, digits, '-', '_' and '.'."
                )
            if stage.name in {*known, SOURCE, BASELINE}:
                raise RecipeError(
                    f"the stage name '{stage.name}' is taken; names must differ, and '{SOURCE}' and '{BASELINE}' are reserved."
                )
            for role, name in stage.inputs.items():
                if role != "weights" and name not in known:
                    raise RecipeError(
                        f"stage '{stage.name}': {role} = '{name}' is no earlier stage."
                        f"{suggest(name, known)} Known here: {', '.join(sorted(known)) or 'none'}."
                    )
            if stage.source is not None and stage.weights is not None:
                raise RecipeError(
                    f"stage '{stage.name}' has both a source and weights to start from; give one of them."
                )
            if stage.source is None and not isinstance(stage.config, TrainConfig | DistillConfig):
                raise RecipeError(f"stage '{stage.name}' ({stage.config.kind}) has nothing to work on; set its source.")
            known.add(stage.name)


_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
