"""`distill`: train a student with a teacher."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from convnext_deploy.api.open_inputs import name_variant, one_start, open_artifact, open_training_data
from convnext_deploy.api.open_teachers import open_teachers, teacher_places
from convnext_deploy.api.options import DataOptions, ExecutionOptions, TrainingOptions, verb
from convnext_deploy.api.run_stages import create_execution, create_recipe, create_settings, run_stages
from convnext_deploy.api.training_presets import better_teacher, choose, choose_loss_weight
from convnext_deploy.config.choices import DistillMethod
from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.recipe import SOURCE, StageEntry
from convnext_deploy.config.train import TrainConfig
from convnext_deploy.errors import RecipeError
from convnext_deploy.pipeline.open_foreign import read_name
from convnext_deploy.pipeline.run_result import RunResult


@verb
def distill(
    teacher: str | None = None,
    student: str | None = None,
    *,
    teacher_checkpoint: Path | str | Sequence[Path | str] | None = None,
    teacher_weights: str | None = None,
    student_weights: Path | str | None = None,
    distill_method: DistillMethod = "kd",
    temperature: float | None = None,
    distill_loss_weight: float | None = None,
    teacher_cache: bool = False,
    teacher_cache_top_k: int | None = None,
    compare_alone: bool = False,
    unlabelled_share: float | None = None,
    out: Path | str | None = None,
    data: DataOptions = DataOptions(),
    training: TrainingOptions = TrainingOptions(),
    execution: ExecutionOptions = ExecutionOptions(),
) -> RunResult:
    """Train a student with a teacher, which is trained first when no checkpoint of it is given.

    Args:
        teacher: variant, or a network of another library, `timm:NAME`, `torchvision:NAME` or `transformers:OWNER/NAME`, with its
            published weights or those of `teacher_checkpoint`; None: what that holds.
        student: variant; None: that of its weights.
        teacher_checkpoint: artifact or weights file; ONNX file, `.pt2` program or folder of timm or transformers; or a file of
            predictions. Several teach by the mean of what they predict.
        teacher_weights: name of published weights of the teacher, for the classes of the data.
        student_weights: artifact, weights file or name that the student starts from; its head may be for other classes.
        distill_method: what is learned from the teacher: its probabilities (`kd`; without the labels: `teacher-only`; target and
            other classes apart: `dkd`), how it ranks classes and images (`dist`), its most probable class (`hard-label`), or
            probabilities and features (`feature`).
        temperature: softens both logits, 0.01 to 100, but for `hard-label`; None: 4.
        distill_loss_weight: weight of the teacher's loss, 0 to 1; the labels, which `teacher-only` does without, get the rest.
            None: 0.9, on the built-in digits 0.5.
        teacher_cache: keep the teacher's predictions on disk; what is there, for the same crops, is not computed again.
        teacher_cache_top_k: of so many classes; 0 and None: of all.
        compare_alone: train the student without its teacher too, with the same settings and seed, and report the gain.
        unlabelled_share: of each batch, of the images of `data.unlabelled`, which the teacher alone labels; 1, with
            `teacher-only`: no others. None: as many as there are among all images, at most 7 of 8.
        out: folder of the run; None: `runs/distill-TEACHER-STUDENT`.
        data: images; none named: the built-in digits.
        training: what replaces the preset for the data, for the student and for a teacher that is trained first.
        execution: how work is done.

    Raises: DeployError: if the data or the weights cannot be used, or an option is not for `distill`.
    """
    loss = _loss(distill_method, temperature, distill_loss_weight)
    if teacher_cache_top_k and not teacher_cache:
        raise RecipeError(
            "teacher_cache_top_k is about the cache of the teacher's predictions; ask for teacher_cache too."
        )
    how = create_execution(execution, data.data)
    images = open_training_data(data, how, out)
    places = _teachers(teacher, teacher_checkpoint, teacher_weights)
    opened, asked = open_teachers(places, teacher, data, how.progress)
    taught_by = next(iter(opened), None)
    source = None if taught_by is None else opened.pop(taught_by)
    of_student = replace(data, input_range=None, output_name=None)  # which are about a teacher's graph
    start = None if student_weights is None else open_artifact(student_weights, student, of_student, how.progress)
    teacher, student = name_variant(teacher, source), name_variant(student, start)
    stages: list[StageEntry] = []
    choices: dict[str, tuple[str, ...]] = {}
    if source is None:
        how.progress.say(better_teacher(teacher, images))
        chosen = choose(teacher, data, training, images, None, "teacher")
        stages.append(StageEntry("teacher", TrainConfig(chosen.model, chosen.fit), None))
        choices["teacher"] = chosen.words
    first = "teacher" if source is None else SOURCE
    taught = images if unlabelled_share != 0 else replace(images, unlabelled=None)
    chosen = choose(student, data, training, taught, start, "student", student_weights)
    choices["student"] = chosen.words
    if distill_loss_weight is None and distill_method != "teacher-only":
        loss["distill_loss_weight"], words = choose_loss_weight(images)
        choices["student"] += words
    saves_teacher = bool(chosen.fit.augmentation_epochs) and training.augmentation_epochs is None
    config = DistillConfig(
        model=chosen.model,
        teacher=(first, *opened) if opened else first,
        fit=chosen.fit,
        method=distill_method,
        temperature=loss.get("temperature", DistillConfig.temperature),
        distill_loss_weight=loss.get("distill_loss_weight", DistillConfig.distill_loss_weight),
        # crops that come again were chosen so that the teacher is asked once
        teacher_cache=teacher_cache or (saves_teacher and distill_method != "feature"),
        teacher_cache_top_k=teacher_cache_top_k or 0,
        compare_alone=compare_alone,
        unlabelled_share=unlabelled_share,
    )
    stages.append(StageEntry("student", config, None))
    recipe = create_recipe(f"distill-{teacher}-{student}", stages, images, taught_by, how.seed, asked)
    settings = create_settings("distill", recipe.name, out, how, execution, choices=choices)
    return run_stages(recipe, settings, source, images, opened)


def _teachers(
    named: str | None, checkpoints: Path | str | Sequence[Path | str] | None, weights: str | None
) -> list[str]:
    """Return where the teachers lie, as a recipe says it; none: the teacher is trained first.

    Raises: RecipeError: if one is said twice, or a name counts for several.
    """
    given = [checkpoints] if isinstance(checkpoints, Path | str) else list(checkpoints or ())
    foreign = None if named is None else read_name(named)
    if len(given) < 2:
        one = one_start(given[0] if given else None, weights)
        given = [] if one is None else [one]
    elif weights is not None or named is not None:
        raise RecipeError(
            "several teacher checkpoints were given; leave --teacher and --teacher-weights out, and name networks of other "
            "libraries with their weights, such as timm:resnet50@best.pth."
        )
    if foreign is None:
        return [str(place) for place in given] if len(given) < 2 else teacher_places(given)
    if weights is not None:
        raise RecipeError(
            f"--teacher {named} has weights of its own; leave --teacher-weights {weights} or --teacher out."
        )
    if given and foreign.weights is not None:
        raise RecipeError(f"--teacher {named} names its weights; leave --teacher-checkpoint out.")
    return [f"{named}@{given[0]}" if given else str(named)]


def _loss(method: DistillMethod, temperature: float | None, weight: float | None) -> dict[str, float]:
    """Return the settings of the loss that were given. Raises: RecipeError: if the method does not use one of them."""
    if method == "hard-label" and temperature is not None:
        raise RecipeError("distill_method 'hard-label' does not use temperature; leave it out.")
    if method == "teacher-only" and weight is not None:
        raise RecipeError("distill_method 'teacher-only' does not use distill_loss_weight; leave it out.")
    settings = {"temperature": temperature, "distill_loss_weight": weight}
    return {name: value for name, value in settings.items() if value is not None}
