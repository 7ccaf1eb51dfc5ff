"""The options that several verbs take, as four records; one that a verb does not use is refused by name."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, cast, get_type_hints

from convnext_deploy.api.arguments import Record, bind_arguments, given_fields, plain
from convnext_deploy.api.uses import USES
from convnext_deploy.config.checks import require
from convnext_deploy.config.choices import CropMode, Device, InputRange, Interpolation
from convnext_deploy.config.image_size import ImageSize
from convnext_deploy.config.preprocess import PreprocessSettings
from convnext_deploy.errors import RecipeError
from convnext_deploy.system.disk_faults import naming_disk_faults
from convnext_deploy.system.memory_faults import LESS_MEMORY, needing_memory
from convnext_deploy.system.progress import Progress, SilentProgress, alive
from convnext_deploy.system.torch_defaults import usual_torch

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


@dataclass(frozen=True, repr=False)
class DataOptions(Record):
    """Which images there are, and how a network gets them. None: not given.

    Attributes:
        data: image folder, folder or URL of WebDataset shards, or `digits`. None: the recipe's, or the digits for what learns from
            them.
        validation_fraction: share of each class that is held out where the folder has no validation images, between 0 and 1;
            None: 0.1. One for all verbs, otherwise validation images leak into training.
        skip_unreadable: leave out images that cannot be read to their last pixel: all are decoded for that, once. None: they are an
            error.
        image_size: side of the network's input in pixels, or its height and width. None: the artifact's; for fresh weights by the
            number and the size of the images.
        crop_pct: share of the resized image that the evaluation transform keeps, 0.1 to 1. None: the artifact's; otherwise 0.875
            from 128 pixels on and 1 below.
        crop_mode: `center` resizes the shorter side, `squash` both. None: the artifact's; for fresh weights `center`.
        interpolation: how images are resized for evaluation. None: the artifact's; for fresh weights `bicubic`.
        mean: subtracted from pixel values in [0, 1], one number or one per channel. None: the artifact's; for fresh weights
            ImageNet's, 0.5 for grey images.
        std: then divided by, likewise.
        output_name: the output with the scores of the classes, of an ONNX file of another origin. None: the file tells.
        input_range: of the values that such a file takes: `normalized` by mean and std, or pixels from 0 to 1 or to 255, which it
            normalizes itself. None: what its first nodes tell, otherwise `normalized`.
        classes: file with the names of the classes in the order of the network's outputs, where its file does not tell them or
            tells others: text, a name a line, or JSON. Names are those of the folders.
        split: file with the names of the validation images, one a line, or JSON with lists for `train`, `val` and `test`; paths as
            in the folder. None: folders or `validation_fraction` tell them.
        groups: regular expression; images in whose names it finds the same, such as a patient or video, stay on one side.
        unlabelled: folder of images that the teacher alone labels, mixed with the labelled ones; None: the recipe's, or none.
        labels: file that tells the labels of images, any number for each: CSV, JSON, or annotations of COCO. None: folders tell
            them, or where images lie in none, a file of a usual name in the data folder, such as `labels.csv`.
    """

    data: Path | str | None = None
    validation_fraction: float | None = None
    skip_unreadable: bool | None = None
    image_size: ImageSize | None = None
    crop_pct: float | None = None
    crop_mode: CropMode | None = None
    interpolation: Interpolation | None = None
    mean: float | tuple[float, ...] | None = None
    std: float | tuple[float, ...] | None = None
    input_range: InputRange | None = None
    output_name: str | None = None
    classes: Path | str | None = None
    split: Path | str | None = None
    groups: str | None = None
    labels: Path | str | None = None
    unlabelled: Path | str | None = None

    def __post_init__(self) -> None:
        _make_plain(self)
        _ = self.preprocess  # which checks its values

    @property
    def preprocess(self) -> PreprocessSettings:
        """What was said of how images are made ready."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(PreprocessSettings)}
        for name in ("mean", "std"):
            if isinstance(values[name], int | float):
                values[name] = (values[name],)
        return PreprocessSettings(**values)


@dataclass(frozen=True, repr=False)
class EvaluationOptions(Record):
    """How a result is measured and judged. None: not given.

    Attributes:
        batch_size: images per step; None: 64.
        max_top1_drop_pp: largest drop of top-1 in percentage points. None: 0.5, of `quantize` 0.2, and `validate` does not judge.
        max_ece_increase_pp: largest rise of the expected calibration error (ECE) in percentage points; None: not judged.
        max_class_drop_pp: largest drop of top-1 of any class in percentage points; None: not judged.
        min_speedup: how many times as fast as its float baseline INT8 must be, 0.1 to 100; None: not slower.
        speed_check: whether INT8 is timed against its float baseline; None: it is.
    """

    batch_size: int | None = None
    max_top1_drop_pp: float | None = None
    max_ece_increase_pp: float | None = None
    max_class_drop_pp: float | None = None
    min_speedup: float | None = None
    speed_check: bool | None = None

    def __post_init__(self) -> None:
        _make_plain(self)
        _at_least(self, 1, "batch_size")


@dataclass(frozen=True, repr=False)
class TrainingOptions(Record):
    """What replaces what is chosen for the images in the trainings of a verb: see `FitConfig` and `ModelConfig`. None: not given.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step.
        base_learning_rate: peak at batch 4096, scaled linearly to the batch.
        flip_probability: share of training images that are mirrored, 0 to 1.
        drop_path_rate: stochastic depth of the last block, 0 to below 1.
        head_dropout: before the logits, 0 to below 1.
        gradient_checkpointing: save memory by computing each block twice.
        compile: let `torch.compile` make the kernels.
        augmentation_epochs: so many epochs have crops of their own, later ones repeat them in another order; 0: all.
        augmentation_seed: of order and augmentation alone, >= 0; None: the seed.
        patience: end when so many epochs were no better than the best, which is then the result, by a tenth of the training images
            that is set aside for it; 0: all epochs are trained, and the last is the result.
        patch_size: kernel and stride of the stem, 2, 4 or 8.
        head_hidden_size: width of a hidden layer between pooling and logits; 0: none.
    """

    epochs: int | None = None
    batch_size: int | None = None
    base_learning_rate: float | None = None
    flip_probability: float | None = None
    drop_path_rate: float | None = None
    head_dropout: float | None = None
    gradient_checkpointing: bool | None = None
    compile: bool | None = None
    augmentation_epochs: int | None = None
    augmentation_seed: int | None = None
    patience: int | None = None
    patch_size: int | None = None
    head_hidden_size: int | None = None

    def __post_init__(self) -> None:
        _make_plain(self)


@dataclass(frozen=True, repr=False)
class ExecutionOptions(Record):
    """How work is done and reported, never what is done. None: not given.

    Attributes:
        device: where PyTorch runs; None: `auto`, a GPU where there is one.
        workers: processes that decode images; 0: this one does. None: one per core, at most 8.
        seed: of weights, crops and the choice of calibration images, >= 0; None: 0.
        cache_dir: folder for what can be computed again (decoded small images, indices of shards, teachers' predictions), for
            other runs too. None: memory and the run's own folder; indices beside the shards.
        tensorboard: write TensorBoard events to `out/tensorboard` as well: curves of trainings, and what was measured of artifacts.
        measure_again: score and time also what an earlier run into the same folder has measured. None: only where the artifact, the
            images, the machine, its threads or a version has changed since.
        restart: replace what an earlier run into the same folder made with other settings, inputs or images, or with a release
            that gives other results; what is the same is kept. None: that is refused, with what differs.
        dry_run: do nothing, but say what would be done, with which settings and in about which time. None: it is done.
        mlflow: make a run of MLflow too, in the store and experiment that MLflow is set to.
        progress: where to report: `auto`, bars on a terminal and in a notebook and elsewhere nothing; `off`; or an object with the
            methods of `system.progress.Progress`.
        command: what the report says was typed; None: that the function was called.
    """

    device: Device | None = None
    workers: int | None = None
    seed: int | None = None
    cache_dir: Path | str | None = None
    tensorboard: bool | None = None
    measure_again: bool | None = None
    restart: bool | None = None
    dry_run: bool | None = None
    mlflow: bool | None = None
    progress: Progress | Literal["auto", "off"] = "auto"
    command: str | None = None

    def __post_init__(self) -> None:
        _make_plain(self)
        _at_least(self, 0, "workers")

    @property
    def reporter(self) -> Progress:
        """What `progress` means here."""
        if self.progress == "off":
            return SilentProgress()
        if not isinstance(self.progress, str):
            return self.progress
        from convnext_deploy.system.progress_bars import create_display

        return create_display()


Options = DataOptions | EvaluationOptions | TrainingOptions | ExecutionOptions
RECORDS: dict[str, type[Options]] = {
    "data": DataOptions,
    "evaluation": EvaluationOptions,
    "training": TrainingOptions,
    "execution": ExecutionOptions,
}
"""Parameter of a verb → its record."""

_INSTEAD = {"run": "set it in the recipe"}  # others: leave it out


def verb(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Let a verb, which is named as its file, refuse what it does not use before it opens anything.

    Raises:
        RecipeError: from the verb, if it is given an option that `USES` does not have for it, or something else than a record.
        TooLittleMemoryError, OutputError: from the verb, if memory runs out, or a disk takes no more of a library's files.
    """
    name = function.__module__.rpartition(".")[2]

    @functools.wraps(function)
    def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        for record in RECORDS.keys() & kwargs.keys():
            _check(name, record, kwargs[record])
        bound = bind_arguments(function, {record: _fields(kind) for record, kind in RECORDS.items()}, args, kwargs)
        execution = kwargs.get("execution")
        shown = execution.progress if isinstance(execution, ExecutionOptions) else None
        with needing_memory(name, LESS_MEMORY), naming_disk_faults(), alive(_given_display(shown), name), usual_torch():
            return function(*bound.args, **bound.kwargs)

    return checked


def _given_display(progress: object) -> Progress | None:
    """Return what shows progress where it was made by who calls, as the command line does."""
    return None if progress is None or isinstance(progress, str) else cast(Progress, progress)


def _fields(record: type[Options]) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(record))


def _make_plain(record: Options) -> None:
    """Give every field the form of its annotation. Raises: RecipeError: if one has none."""
    for name, hint in get_type_hints(type(record)).items():
        object.__setattr__(record, name, plain(name, getattr(record, name), hint))


def given(options: Options) -> list[str]:
    """Return the names of the fields that were given."""
    return [field.name for field in given_fields(options)]


def refuse(options: Options, what: str, why: str) -> None:
    """Refuse all fields of a record that were given. Raises: RecipeError: if there is one, naming it, `what` and `why`."""
    for name in given(options):
        raise RecipeError(f"{what} does not use {name}: {why}. Leave it out.")


def _check(name: str, record: str, options: Any) -> None:
    expected = RECORDS[record].__name__
    if not isinstance(options, RECORDS[record]):
        raise RecipeError(f"{name}: {record} = {options!r} is not a record of options; give {expected}(…).")
    used = USES.get(name, {})
    for unused in [field for field in given(options) if field not in used.get(record, ())]:
        users = [other for other, uses in USES.items() if unused in uses.get(record, ())]
        raise RecipeError(
            f"{name} does not use {unused}, which is for {', '.join(users)}; {_INSTEAD.get(name, 'leave it out')}."
        )
    if record not in used:
        raise RecipeError(f"{name} uses nothing of {expected}; leave {record} out.")


def _at_least(options: Options, least: int, name: str) -> None:
    value = getattr(options, name)
    require(value is None or value >= least, name, value, f">= {least}")
