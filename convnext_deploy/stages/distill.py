"""Knowledge distillation: a student learns from labels and from frozen teachers that see the same crops."""

import dataclasses
import functools
import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from torch import Tensor

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import TorchDetails
from convnext_deploy.artifacts.spec import GraphIO, Preprocess
from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.fit import Augmentation
from convnext_deploy.data.agreement import outputs_for, unless_in_order
from convnext_deploy.data.datasets import Data
from convnext_deploy.data.loaders import Batch
from convnext_deploy.errors import OutputError
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.models.variants import resolve_variant
from convnext_deploy.stages.context import StageContext
from convnext_deploy.stages.epoch_choice import set_aside
from convnext_deploy.stages.foresight import Given, Outlook, given_to, outlook_of
from convnext_deploy.stages.teachers import (
    Taught,
    TeacherLogits,
    check_features,
    check_multi_label,
    check_rows,
    check_teachers,
    distillation_objective,
    no_features,
    open_predictions,
    open_teacher,
)
from convnext_deploy.stages.training_setup import (
    fit_network,
    foresee_training,
    label_weights,
    model_of,
    plan_seed,
    start_network,
)
from convnext_deploy.stages.unlabelled import check_unlabelled, labelled_share, mixed, with_unlabelled
from convnext_deploy.stages.write_artifact import write_torch_artifact
from convnext_deploy.system.shared_work import from_first
from convnext_deploy.training.feature_distillation import (
    FeatureSource,
    FileFeatures,
    LastMap,
    StageFeatures,
    feature_distillation,
)
from convnext_deploy.training.foreign_network import ForeignNetwork
from convnext_deploy.training.losses import average_teachers
from convnext_deploy.training.predictions import PredictionTable
from convnext_deploy.training.schedule import autocast_dtype
from convnext_deploy.training.student_loss import Distillation
from convnext_deploy.training.teacher_cache import RESULT_VERSION, TeacherCache, classes_kept, rounded


def check(config: DistillConfig) -> None:
    """Raises: RecipeError: if there is no such network."""
    resolve_variant(config.model.name)


def foresee(config: DistillConfig, given: Given) -> Outlook:
    """Return what would be made. Raises: DeployError: if it could not be."""
    student = foresee_student(config, given)
    check_rows(given, mixed(config, given.need_data()))
    return student


def foresee_student(config: DistillConfig, given: Given) -> Outlook:
    """Return what would be made, but look up no rows of files of predictions. Raises: DeployError: if it could not be."""
    student = foresee_training(config.model, config.fit, given)
    check_unlabelled(config, given)
    with_features = config.method == "feature"
    check_teachers(given, student.model.in_channels, needed=True, features_alone=with_features)
    if with_features:
        check_features(given)
    check_multi_label(config, given)
    return student


def run(config: DistillConfig, source: Artifact | None, context: StageContext) -> Artifact:
    """Train the student; `source` or `context.weights` holds its initial weights if it has any."""
    # the rows of a file of predictions are looked up where it is opened
    foresee_student(config, given_to(context, source))
    context = with_unlabelled(config, set_aside(config.fit, context))
    data = context.need_data()
    start = source or context.weights
    spec, preprocess = model_of(config.model, data, start)
    with_features = config.method == "feature"
    student = start_network(spec, config.fit, start, context)
    teachers = Teachers(config, preprocess, data, context)
    features: AbstractContextManager[Callable[[], Tensor] | None] = nullcontext()
    if with_features:
        features = feature_distillation(student, teachers.features(spec.in_channels), context.execution.seed)
    logits: TeacherLogits = teachers
    if config.teacher_cache:
        logits = cached(teachers, config, preprocess, data, context)
    with features as loss_of_features:
        objective = distillation_objective(
            logits, distillation_of(config, context), loss_of_features, config.feature_loss_weight
        )
        history = fit_network(student, preprocess, config.fit, context, objective)
    return write_torch_artifact(
        student,
        context,
        model=spec,
        preprocess=preprocess,
        class_names=data.class_names,
        precision="fp32",
        details=TorchDetails(history=history),
        source=start,
    )


def distillation_of(config: DistillConfig, context: StageContext) -> Distillation:
    """Return the loss that a stage's settings ask for."""
    return Distillation(
        method="kd" if config.method == "feature" else config.method,
        temperature=config.temperature,
        distill_loss_weight=config.distill_loss_weight,
        label_smoothing=config.fit.label_smoothing,
        dkd_alpha=config.dkd_alpha,
        dkd_beta=config.dkd_beta,
        multi_label=context.need_data().multi_label,
        positive_weights=label_weights(config.fit, context),
        standardize=config.standardize_logits,
        labelled_share=labelled_share(context.need_data().train, config.fit.batch_size),
    )


class Teachers:
    """The teachers of a stage, opened when they are first asked: never, where all of their predictions are in the cache.

    Called with a batch, they return the logits `(N, classes)` of those that have an output for each class of the data, averaged and
    rounded as the cache keeps them; None: there are none. The others look at the batch too, for their features.
    """

    def __init__(self, config: DistillConfig, preprocess: Preprocess, data: Data, context: StageContext) -> None:
        self._config, self._preprocess, self._data, self._context = config, preprocess, data, context
        self.temperature = config.temperature
        self._of_features: list[FeatureSource] = []

    @property
    def top_k(self) -> int:
        """How many classes of an image are kept; 0: all."""
        return classes_kept(self._config.teacher_cache_top_k, len(self._data.class_names))

    @functools.cached_property
    def kept_at(self) -> float:
        """The temperature of the predictions that are kept.

        All log-probabilities of one network serve at every temperature, so that rows of an experiment which differ in it share
        them. A mean over teachers, the tail beyond `top_k` and what a file says of mixed images hold at one temperature alone.
        """
        (first, *others) = self._context.teachers
        return 1.0 if not self.top_k and not others and first.format != "predictions" else self.temperature

    @functools.cached_property
    def _open(self) -> list[tuple[Taught, bool]]:
        """The teachers, and whether their logits teach."""
        return [self._open_one(artifact) for artifact in self._context.teachers]

    def _open_one(self, artifact: Artifact) -> tuple[Taught, bool]:
        outputs = outputs_for(artifact, self._data)
        if artifact.model.multi_label != self._data.multi_label:
            outputs = None  # its logits answer another question; its features can teach
        if artifact.format == "predictions":
            return open_predictions(artifact, self._data, self._config.temperature, outputs), outputs is not None
        teacher = open_teacher(artifact, self._preprocess, self._context, outputs)
        return teacher, outputs is not None

    def features(self, channels: int) -> list[FeatureSource]:
        """Return what the teachers give of their features, for the images of so many channels that they are called with.

        Raises: ArtifactError: if one of them gives none.
        """
        for (teacher, teaches), artifact in zip(self._open, self._context.teachers, strict=True):
            if isinstance(teacher, PredictionTable):
                source: FeatureSource = FileFeatures(teacher)
            elif isinstance(teacher.network, ConvNeXt):
                source = StageFeatures(teacher.network)
            elif isinstance(teacher.network, ForeignNetwork):
                source = LastMap(teacher, channels, teaches=teaches)
            else:
                raise no_features(f"the teacher {artifact.main_file}", outlook_of(artifact), fits=teaches)
            self._of_features.append(source)
        return self._of_features

    def each(self, batch: Batch) -> list[Tensor | None]:
        """Return the logits of every teacher as they are; None of those whose logits do not teach."""
        for source in self._of_features:
            if isinstance(source, FileFeatures):
                source.look(batch)
        return [self._look(teacher, batch, teaches=teaches) for teacher, teaches in self._open]

    def raw(self, batch: Batch) -> Tensor | None:
        """Return their averaged logits as they are."""
        found = [logits for logits in self.each(batch) if logits is not None]
        return average_teachers(found, self.temperature, multi_label=self._data.multi_label) if found else None

    def _look(self, teacher: Taught, batch: Batch, *, teaches: bool) -> Tensor | None:
        if isinstance(teacher, PredictionTable):
            return teacher(batch) if teaches else None  # features stand for no classes
        logits: Tensor = teacher(batch.images)
        return logits if teaches else None

    def __call__(self, batch: Batch) -> Tensor | None:
        found = self.raw(batch)
        if found is None or self._data.multi_label:  # which no cache keeps
            return found
        return rounded(found, self.kept_at)


def cached(
    teachers: Teachers, config: DistillConfig, preprocess: Preprocess, data: Data, context: StageContext
) -> TeacherLogits:
    """Return the teachers' predictions from the cache of the plan of crops, which is shared by all students of that plan."""
    fit = config.fit
    autocast = autocast_dtype(fit.autocast, context.execution.device)
    picked = [unless_in_order(outputs_for(teacher, data), teacher.model.num_classes) for teacher in context.teachers]
    plan = {
        # the same weights may be those of networks that differ in what no weight shows, such as the activation
        "teachers": [
            [
                teacher.sha256,
                teacher.model.settings(),
                teacher.preprocess.settings(),
                # of one ONNX file other outputs may teach, or other values of the pixels
                *([] if teacher.io == GraphIO() else [repr(teacher.io)]),
                *(() if outputs is None else outputs.tolist()),
                *(("probabilities",) if getattr(teacher.details, "by_numbers", False) else ()),
            ]
            for teacher, outputs in zip(context.teachers, picked, strict=True)
        ],
        "images": [data.fingerprint, preprocess.settings()],
        "augmentation": {name.name: getattr(fit, name.name) for name in dataclasses.fields(Augmentation)},
        "order": [plan_seed(fit, context), min(fit.batch_size, len(data.train))],
        "temperature": teachers.kept_at,
        "top_k": teachers.top_k,
        "arithmetic": [context.execution.device, str(autocast)],
        "version": RESULT_VERSION,
    }
    key = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
    batch_size = min(fit.batch_size, len(data.train))
    cache = TeacherCache(
        context.cache_dir / "teachers" / key[:32],
        rows=len(data.train) // batch_size * batch_size,
        classes=len(data.class_names),
        temperature=teachers.kept_at,
        top_k=teachers.top_k,
        compute=_all_of(teachers),
    )
    epochs = fit.own_crop_epochs
    size = _in_words(cache.size_bytes(epochs))
    context.execution.progress.say(
        f"{context.name}: the teacher's predictions are kept in {cache.folder}, {size} when complete"
    )
    from_first(lambda: _check_space(cache.folder, cache.missing_bytes(epochs)))
    return cache


def _all_of(teachers: Teachers) -> Callable[[Batch], Tensor]:
    def compute(batch: Batch) -> Tensor:
        found = teachers.raw(batch)
        assert found is not None  # a stage without logits keeps none
        return found

    return compute


def _check_space(folder: Path, missing: int) -> None:
    """Check that the teachers' predictions fit on the disk. Raises: OutputError: if not."""
    disk = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(disk).free
    if missing > free:
        raise OutputError(
            f"the teacher's predictions need {_in_words(missing)} in {folder}, where {_in_words(free)} are free; "
            "set teacher_cache_top_k or augmentation_epochs, or choose another folder with --cache-dir."
        )


def _in_words(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
