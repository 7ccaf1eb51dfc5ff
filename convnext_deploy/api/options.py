"""What every verb takes, and what is decided for the user who leaves it out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from convnext_deploy.data.datasets import BUILT_IN, Data
from convnext_deploy.pipeline.stage import Settings
from convnext_deploy.system.execution import Execution, decoding_processes, resolve_device
from convnext_deploy.system.progress import Progress, SilentProgress

DEFAULT_MAX_TOP1_DROP_PP = 0.5


@dataclass(frozen=True)
class Options:
    """What every verb takes. None: decided from the data and the machine.

    `epochs`, `batch_size` and `base_learning_rate` override the training settings of all stages of the verb; `image_size`,
    `crop_pct` and `patch_size` those of the network or of the evaluation transform. `command` is what the report says was typed;
    None: the name of the function that was called. `speed_check` and `min_speedup`: see `Recipe` and `Gate`.
    """

    data: str | None = None
    out: Path | None = None
    validation_fraction: float = 0.1
    skip_unreadable: bool = False
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: int | None = None
    image_size: int | None = None
    crop_pct: float | None = None
    patch_size: int | None = None
    batch_size: int | None = None
    epochs: int | None = None
    base_learning_rate: float | None = None
    flip_probability: float | None = None
    drop_path_rate: float | None = None
    head_hidden_size: int | None = None
    head_dropout: float | None = None
    gradient_checkpointing: bool | None = None
    calibration_images: int | None = None
    selection_images: int | None = None
    max_top1_drop_pp: float | None = None
    min_speedup: float | None = None
    speed_check: bool = True
    compile: bool | None = None
    augmentation_epochs: int | None = None
    augmentation_seed: int | None = None
    cache_dir: Path | None = None
    tensorboard: bool = False
    command: str | None = None
    progress: Progress = field(default_factory=SilentProgress)


DEFAULTS = Options()


def allowed_drop(options: Options) -> float:
    """Return the gate in percentage points."""
    return DEFAULT_MAX_TOP1_DROP_PP if options.max_top1_drop_pp is None else options.max_top1_drop_pp


def create_settings(options: Options, name: str, data: Data | None, function: str | None = None) -> Settings:
    """Decide where and how to run; `function` is the verb that was called, for the report."""
    out = options.out if options.out is not None else Path("runs") / name
    if options.tensorboard:
        from convnext_deploy.training.tensorboard import check_tensorboard

        check_tensorboard()
    return Settings(
        Path(out),
        create_execution(options, data),
        options.tensorboard,
        options.command or (None if function is None else f"convnext_deploy.{function}(…)  # called from Python"),
        options.speed_check,
    )


def create_execution(options: Options, data: Data | None) -> Execution:
    """Decide how work is done where the user left it open."""
    cache_dir = None if options.cache_dir is None else Path(options.cache_dir)
    workers = resolve_workers(options, data)
    return Execution(resolve_device(options.device), workers, options.seed, options.progress, cache_dir)


def resolve_workers(options: Options, data: Data | None) -> int:
    """Return the number of processes that decode images."""
    if options.workers is not None:
        return options.workers
    # Processes that decode images pay off for files, not for arrays in memory.
    return 0 if data is None or data.name == BUILT_IN else decoding_processes()
