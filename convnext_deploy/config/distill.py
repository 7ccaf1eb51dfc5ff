"""The settings of a stage that distills."""

from dataclasses import dataclass, field
from typing import ClassVar

from convnext_deploy.config.checks import require
from convnext_deploy.config.choices import DistillMethod
from convnext_deploy.config.fit import TAKES_LESS_MEMORY, FitConfig
from convnext_deploy.config.stage import StageConfig
from convnext_deploy.config.train import ModelConfig, TrainConfig
from convnext_deploy.errors import RecipeError


@dataclass(frozen=True)
class DistillConfig(StageConfig):
    """Train a student on labels and on a teacher, or the mean prediction of several.

    `teacher`: another stage, or `source`; or a network of another kind: a file (ONNX, `.pt2`, predictions), a folder of timm or
    transformers, or a name such as `timm:resnet50.a1_in1k`.

    `method`: `kd` follows the teacher's probabilities at `temperature` (arXiv 1503.02531), `teacher-only` does so without the
    labels (2106.05237), `hard-label` follows its most probable class (2012.12877), `dkd` weighs target class (`dkd_alpha`) and
    other classes (`dkd_beta`) apart (2203.08679), `dist` follows how classes and images are ranked (2205.10536), `feature` adds
    `feature_loss_weight` times a loss of the features after each model stage to `kd` (1412.6550). The labels get
    `1 - distill_loss_weight`, with `teacher-only` nothing.

    Defaults: temperature 4, and nine tenths of the weight for the teacher, as in 1910.10699; on CIFAR-10 the best of what was
    measured at equal cost (benchmarks/distillation.py). 2305.15781 has temperature 1 and equal weights, with which ConvNeXt V2-T
    came to 85.0 % on ImageNet: try them for long schedules, which count for more than the method.

    `standardize_logits`: both are compared with mean 0 and standard deviation 1 over the classes (2403.01427, whose temperature is
    2 and whose teacher has nine tenths of the weight).

    `unlabelled_share`: of each batch, of images that the teacher alone labels, where the recipe names a folder of `unlabelled`;
    1: of no others, with `teacher-only`; 0: none. None: as many as there are among all images, and at most 7 of 8 (the mu = 7 of
    2001.07685). An epoch has as many images as both sets together. The labels' loss is the mean over the labelled images.

    `teacher_cache` keeps the teacher's predictions on disk, in half precision, of the `teacher_cache_top_k` most probable classes
    or of all (0): what was computed once is not computed again, by this run or by other students with the same crops.
    All classes of one teacher serve at every temperature.

    `compare_alone`: the student is trained without its teachers too, with the same settings and seed, as the stage `NAME-alone`;
    the report says what the teachers gained.
    """

    kind: ClassVar[str] = "distill"
    done: ClassVar[str] = "distilled"
    result_version: ClassVar[int] = 5  # a teacher's predictions are rounded at temperature 1
    implementation: ClassVar[str | None] = "convnext_deploy.stages.distill"
    trains: ClassVar[bool] = True
    takes_less_memory: ClassVar[str] = TAKES_LESS_MEMORY
    needs_source: ClassVar[bool] = False
    references: ClassVar[tuple[str, ...]] = ("model.weights", "teacher", "compare_alone")
    model: ModelConfig
    teacher: str | tuple[str, ...]
    fit: FitConfig = field(default_factory=FitConfig)
    method: DistillMethod = "kd"
    temperature: float = 4.0
    distill_loss_weight: float = 0.9
    dkd_alpha: float = 1.0
    dkd_beta: float = 2.0
    feature_loss_weight: float = 1.0
    standardize_logits: bool = False
    unlabelled_share: float | None = None
    teacher_cache: bool = False
    teacher_cache_top_k: int = 0
    compare_alone: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_distillation(self.temperature, self.distill_loss_weight)
        require(self.teacher_cache_top_k >= 0, "teacher_cache_top_k", self.teacher_cache_top_k, ">= 0")
        share = self.unlabelled_share
        require(share is None or 0 <= share <= 1, "unlabelled_share", share, "0 to 1")
        if share == 1 and self.method != "teacher-only":
            raise RecipeError(
                f"unlabelled_share = 1 leaves no image with a label, and method = '{self.method}' learns from labels too; use "
                "method = 'teacher-only', or a share below 1."
            )
        if self.teacher_cache and self.method == "feature":
            raise RecipeError("method = 'feature' needs the teacher's features, which teacher_cache does not keep.")
        for name in ("dkd_alpha", "dkd_beta", "feature_loss_weight"):
            require(0 <= getattr(self, name) <= 1000, name, getattr(self, name), "0 to 1000")
        if isinstance(self.teacher, tuple):
            names = self.teacher
            require(len(set(names)) == len(names) > 0, "teacher", names, "at least one name, each once")
        if self.method == "feature" and self.fit.gradient_checkpointing:
            raise RecipeError("method = 'feature' needs what gradient_checkpointing drops; use one of the two.")

    @property
    def reads_unlabelled(self) -> bool:
        """Whether images without labels are mixed in, where there are some."""
        return self.unlabelled_share != 0

    @property
    def teachers(self) -> tuple[str, ...]:
        """Names of the teachers, in their order."""
        return self.teacher if isinstance(self.teacher, tuple) else (self.teacher,)

    @property
    def alone(self) -> TrainConfig:
        """The same training on the labels alone."""
        return TrainConfig(self.model, self.fit)

    @property
    def shows_alone(self) -> bool:
        """Whether the student is trained alone too."""
        return self.compare_alone

    @property
    def initial_weights(self) -> str | None:
        """Where the student's initial weights lie, if not in the source."""
        return self.model.weights


def check_distillation(temperature: float, weight: float) -> None:
    """Check what every loss against a teacher has. Raises: RecipeError: if a value is out of range."""
    # outside, float32 has no digits left for T² * KL, or for logits / T
    require(0.01 <= temperature <= 100, "temperature", temperature, "> 0, from 0.01 to 100")
    require(0 <= weight <= 1, "distill_loss_weight", weight, "0 to 1")
