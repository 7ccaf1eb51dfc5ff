"""`compress`: a latency and an allowed drop in, a network out that was measured to keep both."""

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from convnext_deploy.api.open_inputs import name_variant, open_artifact, open_data_for
from convnext_deploy.api.open_teachers import open_teachers, teacher_places
from convnext_deploy.api.options import DataOptions, EvaluationOptions, ExecutionOptions, TrainingOptions, verb
from convnext_deploy.api.run_stages import (
    check_early,
    create_execution,
    create_gate,
    create_recipe,
    create_settings,
    run_stages,
)
from convnext_deploy.api.training_presets import choose, choose_qat, describe_qat
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.compression.budget import Budget, parse_budget
from convnext_deploy.compression.device_times import times_on_devices
from convnext_deploy.compression.explore import Exploration, explore
from convnext_deploy.compression.probe_files import ProbeForm, ProbeWriter
from convnext_deploy.compression.probes import check_widths
from convnext_deploy.compression.times import MEASURED_TARGETS, check_runtime, times_for
from convnext_deploy.config.choices import Activation, Target
from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.onnx import ONNXConfig
from convnext_deploy.config.prune import PruneConfig
from convnext_deploy.config.quantize import QuantizeConfig
from convnext_deploy.config.recipe import SOURCE, Gate, LatencyGoal, Recipe, StageEntry
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import ArtifactError, DataError, RecipeError
from convnext_deploy.evaluation.timing.front import Front
from convnext_deploy.models.variants import complete_spec
from convnext_deploy.pipeline.run_folder import claim
from convnext_deploy.pipeline.run_result import RunResult
from convnext_deploy.stages.context import StageContext
from convnext_deploy.system.cache_folder import user_cache
from convnext_deploy.system.execution import Execution
from convnext_deploy.system.shared_work import from_first

MAX_DROP_PP = 0.3
_DENSE = ("dense-int8", "dense-onnx")
_KEPT_BYTES = 2**30


@verb
def compress(
    checkpoint: Path | str,
    *,
    latency_budget: str | Sequence[str],
    target: Target = "openvino",
    activation: Activation | None = None,
    teacher_checkpoint: Path | str | Sequence[Path | str] | None = None,
    model: str | None = None,
    out: Path | str | None = None,
    data: DataOptions = DataOptions(),
    evaluation: EvaluationOptions = EvaluationOptions(),
    training: TrainingOptions = TrainingOptions(),
    execution: ExecutionOptions = ExecutionOptions(),
) -> RunResult:
    """Prune, distill and quantize a network so that it keeps a latency, and measure what that cost.

    The time of each hidden width is measured on this machine, once; for the targets of TensorRT it is a proxy. Then the widths are
    searched that lose least under the budget, the network is pruned to them, learns from the dense one, and is quantized. At the
    end it is timed beside the dense network in the same form.

    Args:
        checkpoint: the dense network: an FP32 artifact or checkpoint, or the name of published weights.
        latency_budget: of a call with one image, as a share of the dense network's in the same form, `0.6x`, or as a time, `3ms`;
            of several each gets a network of its own.
        target: the runtime it is for.
        activation: of the pruned networks, such as `relu`, which some runtimes compute faster; None: as in the checkpoint.
        teacher_checkpoint: what the pruned networks learn from in the place of the dense one, as for `distill`; several teach by
            the mean of what they predict.
        model: variant that the checkpoint must hold.
        out: folder of the run; None: `runs/compress-VARIANT`.
        data: images; none named: the digits, for what was trained on them.
        evaluation: how much may be lost against the dense network; of top-1 0.3 pp where it is not said. Quantizing alone may
            lose 0.2 pp whatever is said, so that another limit judges the same files, and nothing is trained again for it.
        training: what replaces the preset, for learning from the dense network and for training with quantizers.
        execution: how work is done.

    Raises: DeployError: if there are no images, the checkpoint cannot be used, or no network keeps the budget.
    """
    budgets = _budgets(latency_budget)
    check_runtime(target)
    how = create_execution(execution, data.data)
    source = open_artifact(checkpoint, model, data, how.progress)
    _check_source(source)
    # what is said of images is said of the checkpoint; of a teacher for images of any size it says the size
    of_teachers = DataOptions(data.data, classes=data.classes, image_size=source.preprocess.image_size)
    teachers, asked = open_teachers(teacher_places(teacher_checkpoint), None, of_teachers, how.progress)
    preprocess = dataclasses.replace(data.preprocess, **asked.asked())
    images = open_data_for(source, data, how, out)
    if images is None:
        raise DataError("compressing needs images: give the image folder with --data DIR.")
    variant = name_variant(None, source)
    settings = create_settings("compress", f"compress-{variant}", out, how, execution)
    plans = execution.dry_run or False
    gate = dataclasses.replace(create_gate(evaluation, MAX_DROP_PP), against=SOURCE)
    taught, qat = choose(variant, data, training, images, source, "pruned"), choose_qat(training, images)
    distill = DistillConfig(
        taught.model,
        tuple(teachers) or SOURCE,
        taught.fit,
        teacher_cache=len(budgets) > 1 and _is_little(taught.fit, images),
    )

    def recipe_of(widths: Sequence[tuple[int, ...]]) -> Recipe:
        stages = _dense(target)
        for budget, each in zip(budgets, widths, strict=True):
            pruned, distilled, quantized, graph = _names(budget, alone=len(budgets) == 1)
            stages += [
                StageEntry(pruned, PruneConfig(widths=each, activation=activation), SOURCE),
                StageEntry(distilled, distill, pruned),
                StageEntry(quantized, QuantizeConfig(target=target, fit=qat), distilled),
                StageEntry(graph, _graph(target), quantized, gate),
            ]
        return create_recipe(f"compress-{variant}", stages, images, checkpoint, how.seed, preprocess)

    def search() -> tuple[Exploration, str, bool]:
        # what is known to end the run does so before minutes of measuring, and nobody else works in the folder meanwhile
        with nullcontext() if plans else claim(settings.out):
            dense = sum(complete_spec(source.model).block_widths, ())
            check_early(recipe_of([dense] * len(budgets)), settings, source, images, teachers)
            return _explore(source, budgets, target, activation, images, settings.out, how, plans=plans)

    found, origin, is_measured = from_first(search)
    how.progress.say(f"times of hidden widths: {origin}")
    choices: dict[str, tuple[str, ...]] = {}
    goals = []
    for budget, chosen in zip(budgets, found.chosen, strict=True):
        pruned, distilled, quantized, graph = _names(budget, alone=len(budgets) == 1)
        choices |= {pruned: tuple(chosen.describe(found.dense_ms)), distilled: taught.words}
        choices[quantized] = describe_qat(qat, training, images)
        predicted = chosen.predicted_ms / found.dense_ms if is_measured else None
        goals.append(LatencyGoal(graph, _DENSE[1], budget.ratio, budget.ms, predicted))
    recipe = recipe_of([chosen.widths for chosen in found.chosen])
    recipe = dataclasses.replace(recipe, latency_goals=tuple(goals))
    settings = dataclasses.replace(settings, choices=choices, explored=found.front)
    result = run_stages(recipe, settings, source, images, teachers)
    if plans:
        result = dataclasses.replace(result, report=dataclasses.replace(result.report, front=Front((), found.front)))
    return result


def _budgets(told: str | Sequence[str]) -> tuple[Budget, ...]:
    """Return the budgets in their order. Raises: RecipeError: if one is none, or there is none, or one twice."""
    texts = [told] if isinstance(told, str) else list(told)
    found = tuple(parse_budget(text) for text in texts)
    if not found:
        raise RecipeError("no latency_budget was given; expected at least one, such as 0.6x or 3ms.")
    if len({str(each) for each in found}) < len(found):
        raise RecipeError(f"latency_budget = {texts} names a budget twice; give each once.")
    return found


def _check_source(source: Artifact) -> None:
    """Raises: ArtifactError: if it is no network that can be pruned."""
    if source.format != "torch" or source.precision != "fp32":
        raise ArtifactError(
            f"{source.place} is {source.format} {source.precision}; compressing starts from a PyTorch network in FP32: give the "
            "checkpoint that it was made from."
        )


def _explore(
    source: Artifact,
    budgets: tuple[Budget, ...],
    target: Target,
    activation: Activation | None,
    images: Data,
    out: Path,
    how: Execution,
    *,
    plans: bool,
) -> tuple[Exploration, str, bool]:
    """Return the widths for each budget, where the times are from by which they were chosen, and whether these were measured."""
    cache = how.cache_dir or out / "cache"
    other = None if activation in (None, complete_spec(source.model).activation) else activation
    writer = ProbeWriter(ProbeForm(source.model, source.preprocess, target, other))
    kept, measured = how.cache_dir or user_cache(), times_on_devices(out, source.model)
    times = times_for(writer, how.progress, kept, cache, measured, keep=not plans)
    context = StageContext("widths", out, images, how, cache)
    check = None
    if target in MEASURED_TARGETS and not plans:

        def check(widths: Sequence[int]) -> tuple[float, float]:
            return check_widths(writer, widths, how.progress)

    found = explore(source, budgets, times, context, activation, check, keep=not plans)
    return found, times.origin, times.is_measured


def _is_little(fit: FitConfig, images: Data) -> bool:
    """Whether what a teacher says of all crops can be kept, so that the networks of several budgets ask it once."""
    count = len(images.train) + (0 if images.unlabelled is None else len(images.unlabelled.images))
    size = 2 * len(images.class_names) * count * fit.own_crop_epochs
    return not images.multi_label and size <= _KEPT_BYTES


def _dense(target: Target) -> list[StageEntry]:
    """Return the stages that make the same form of the dense network."""
    quantized, graph = _DENSE
    return [
        StageEntry(quantized, QuantizeConfig(target=target, method="ptq"), SOURCE),
        StageEntry(graph, _graph(target), quantized, Gate(against=SOURCE)),
    ]


def _graph(target: Target) -> ONNXConfig:
    return ONNXConfig() if target in MEASURED_TARGETS else ONNXConfig(precision="fp16", runtime="tensorrt")


def _names(budget: Budget, *, alone: bool) -> tuple[str, str, str, str]:
    """Return the names of the stages for a budget."""
    end = "" if alone else f"-{budget}"
    return f"pruned{end}", f"distilled{end}", f"int8{end}", f"onnx{end}"
