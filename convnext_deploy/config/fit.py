"""The settings of a training run: how batches are augmented, and how the network learns from them."""

import math
from dataclasses import dataclass

from convnext_deploy.config.checks import check_fields, require
from convnext_deploy.config.choices import AugmentationPolicy, Autocast

TAKES_LESS_MEMORY = (
    "lower batch_size or image_size, raise accumulation_steps, which computes the same in smaller parts, or set "
    "gradient_checkpointing = true; of the machine's memory fewer --workers take less, too"
)

REFERENCE_BATCH_SIZE = 4096  # for which `base_learning_rate` is given
LINEAR_FROM = 512  # batch size
_PAPER_RATE = 4e-3  # at batch 4096, arXiv 2201.03545, table 5


@dataclass(frozen=True)
class Augmentation:
    """Which training transforms there are, and how strong: flat keys of a stage's `fit` table.

    ConvNeXt's own for ImageNet (arXiv 2201.03545, table 5): RandAugment (magnitude 9 on timm's scale to 10, which is 27 here),
    erasing 0.25, Mixup 0.8, CutMix 1.0. The defaults have crop and flip alone, which is right for small networks and for medical
    images.

    Attributes:
        crop_scale_min: least area of the random resized crop, a fraction of the image.
        flip_probability: of being mirrored left to right.
        color_jitter: brightness, contrast and saturation each get a factor uniform in 1 ± this, in random order; 0: off.
        augmentation_policy: RandAugment (arXiv 1909.13719), AutoAugment (1805.09501), TrivialAugmentWide (2103.10158) or none.
        randaugment_ops: operations per image.
        randaugment_magnitude: of them, 0 to 30; the default is torchvision's.
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
        check_fields(self)
        require(0 < self.crop_scale_min <= 1, "crop_scale_min", self.crop_scale_min, "0 < value <= 1")
        for name in ("flip_probability", "random_erasing_probability", "mixing_probability"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "0 to 1")
        for name in ("color_jitter", "mixup_alpha", "cutmix_alpha"):
            require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), ">= 0")
        require(self.randaugment_ops >= 1, "randaugment_ops", self.randaugment_ops, ">= 1")
        require(0 <= self.randaugment_magnitude <= 30, "randaugment_magnitude", self.randaugment_magnitude, "0 to 30")

    @property
    def is_mixing(self) -> bool:
        """Whether batches may be mixed, so that targets are probabilities of classes."""
        return (self.mixup_alpha > 0 or self.cutmix_alpha > 0) and self.mixing_probability > 0


def base_for(rate: float, at: int, batch_size: int) -> float:
    """Return the learning rate at batch 4096 whose linear scaling gives `batch_size` what suits AdamW.

    That is `rate`, which holds at a batch of `at`, scaled with the square root below batch 512 and linearly above.

    Source: Malladi et al. 2022, arXiv 2205.10287: the square-root rule of adaptive methods; linear above as the papers do.
    """

    def reach(batch: int) -> float:
        return math.sqrt(batch * LINEAR_FROM) if batch < LINEAR_FROM else batch

    return float(f"{rate * reach(batch_size) / reach(at) * REFERENCE_BATCH_SIZE / batch_size:.6g}")


@dataclass(frozen=True)
class FitConfig(Augmentation):
    """One training run. Defaults: ConvNeXt's ImageNet settings (arXiv 2201.03545, table 5) where they do not need 8 GPUs.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step, of all processes together.
        base_learning_rate: at batch 4096; it is scaled linearly to `batch_size`. None: 4e-3, scaled linearly down to batch 512 and
            with the square root below: AdamW hardly learns at what the linear rule leaves there.
        warmup_epochs: the learning rate rises linearly for so long, at most for half of the training; then it falls as a cosine.
        final_learning_rate_ratio: last learning rate over the highest.
        weight_decay: AdamW's, of the weights of convolutions and linear layers.
        label_smoothing: share of a label's probability that is spread over all classes; of multi-label data, over yes and no.
        balance_labels: of multi-label data: the images that have a label weigh as much as all that have it not, at most 100 times.
        drop_path_rate: chance that the last block is skipped in a step (stochastic depth); it rises linearly from 0 at the first.
        head_input_dropout: before the hidden layer of a head that has one.
        head_dropout: before the logits.
        layer_scale_init: first value of LayerScale, in version 1.
        autocast: type of the forward pass: `bf16`, `fp16` (on a GPU), `off` for FP32, `auto` for bf16 where it is faster. A GPU
            scores epochs with it too; artifacts are scored in FP32.
        gradient_checkpointing: save memory by computing each block twice.
        gradient_clip_norm: largest L2 norm of all gradients together; none: not clipped.
        accumulation_steps: parts that fit the memory, into which a batch is cut.
        layer_decay: factor of the learning rate from one group of layers to the one before it; groups as in the official code.
        frozen_stages: the stem and that many model stages stay as they are.
        head_only_epochs: at first only the last norm and the head are trained.
        ema_decay: of the average of the weights that becomes the result; 0: the last weights do.
        augmentation_epochs: so many epochs have crops of their own; later ones repeat theirs in another order. 0: all.
        augmentation_seed: of order and augmentation; none: the recipe's. Students with the same one see the same crops.
        compile: let `torch.compile` make the kernels.
        patience: end when so many epochs in a row were no better than the best, which is then the result: by a tenth of the
            training images, set aside for that and not trained on. 0: all epochs are trained, and the last is the result.
    """

    epochs: int = 300
    batch_size: int = 128
    base_learning_rate: float | None = None
    warmup_epochs: float = 20.0
    final_learning_rate_ratio: float = 0.01
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    balance_labels: bool = False
    drop_path_rate: float = 0.1
    head_input_dropout: float = 0.0
    head_dropout: float = 0.0
    layer_scale_init: float = 1e-6
    autocast: Autocast = "auto"
    gradient_checkpointing: bool = False
    gradient_clip_norm: float | None = None
    accumulation_steps: int = 1
    layer_decay: float = 1.0
    frozen_stages: int = 0
    head_only_epochs: float = 0.0
    ema_decay: float = 0.0
    augmentation_epochs: int = 0
    augmentation_seed: int | None = None
    compile: bool = False
    patience: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.epochs >= 1, "epochs", self.epochs, ">= 1")
        require(self.batch_size >= 1, "batch_size", self.batch_size, ">= 1")
        base = self.base_learning_rate
        require(base is None or 0 < base < math.inf, "base_learning_rate", base, "> 0")
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
        require(self.augmentation_epochs >= 0, "augmentation_epochs", self.augmentation_epochs, ">= 0")
        seed = self.augmentation_seed
        require(seed is None or seed >= 0, "augmentation_seed", seed, ">= 0")
        require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "0 <= value < 1")
        for name in ("head_input_dropout", "head_dropout"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "0 <= value < 1")
        require(self.patience >= 0, "patience", self.patience, ">= 0")
        require(self.layer_scale_init > 0, "layer_scale_init", self.layer_scale_init, "> 0")

    @property
    def own_crop_epochs(self) -> int:
        """How many epochs have crops of their own."""
        return min(self.augmentation_epochs or self.epochs, self.epochs)

    @property
    def linear_learning_rate(self) -> float:
        """The learning rate at batch 4096 that the linear rule scales to `batch_size`: what was said, or what stands for it."""
        said = self.base_learning_rate
        return base_for(_PAPER_RATE, REFERENCE_BATCH_SIZE, self.batch_size) if said is None else said
