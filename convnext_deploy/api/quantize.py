"""`quantize`: the cheapest INT8 that loses too little to matter, or all that a GPU has the choice among."""

from collections.abc import Callable
from pathlib import Path

from convnext_deploy.api.candidates import Form, forms_for
from convnext_deploy.api.open_inputs import open_artifact, open_data_for, with_features
from convnext_deploy.api.options import DataOptions, EvaluationOptions, ExecutionOptions, TrainingOptions, refuse, verb
from convnext_deploy.api.run_stages import create_execution, create_gate, create_recipe, create_settings, run_stages
from convnext_deploy.api.training_presets import choose_qat, describe_qat
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.choices import CalibrationMethod, FeatureOutput, QuantizeMethod, Target, TargetOrAuto
from convnext_deploy.config.onnx import ONNXConfig
from convnext_deploy.config.ptq import PTQConfig
from convnext_deploy.config.quantize import QuantizeConfig
from convnext_deploy.config.recipe import SOURCE, Gate, StageEntry
from convnext_deploy.errors import ArtifactError, DataError, RecipeError
from convnext_deploy.pipeline.run_result import RunResult


@verb
def quantize(
    checkpoint: Path | str,
    *,
    target: TargetOrAuto = "tensorrt",
    gpus: tuple[str, ...] = (),
    method: QuantizeMethod = "auto",
    calibration_method: CalibrationMethod | None = None,
    calibration_images: int | None = None,
    selection_images: int | None = None,
    time_budget_s: float | None = None,
    output: FeatureOutput | None = None,
    model: str | None = None,
    out: Path | str | None = None,
    data: DataOptions = DataOptions(),
    evaluation: EvaluationOptions = EvaluationOptions(),
    training: TrainingOptions = TrainingOptions(),
    execution: ExecutionOptions = ExecutionOptions(),
) -> RunResult:
    """Quantize an FP32 artifact or checkpoint to INT8 by the cheapest method that loses too little to matter.

    Args:
        checkpoint: artifact folder or file, or the name of published weights.
        target: the runtime it is for, which decides what is quantized and how; `auto`: all forms that `gpus` may run, as ONNX files
            for a bundle, of which the device chooses the fastest.
        gpus: with `auto`, names or a compute capability, such as `rtx-4070`, `orin` or `sm89`.
        method: `ptq` does not train, `qat` does at once, `auto` if nothing else is good enough.
        calibration_method: quantize once, with ranges chosen so, instead of looking for the cheapest method.
        calibration_images: training images that fix the ranges, >= 1; None: 512.
        selection_images: other training images, by which the method is chosen, >= 1; None: 4096.
        time_budget_s: begin nothing that would not end within so many seconds; None: no limit.
        output: what the network is to give without its head: `features`, pooled, or the `feature-map` before the pooling; None: its
            logits, and of a network without head its features.
        model: variant that the checkpoint must hold.
        out: folder of the run; None: `runs/quantize-VARIANT`, or `runs/ptq-VARIANT` with a calibration method.
        data: images; none named: the digits, for what was trained on them.
        evaluation: how much may be lost, on the images of selection and in the end.
        training: what replaces the preset of quantization-aware training.
        execution: how work is done.

    Raises: DeployError: if there are no images, the checkpoint cannot be used, or an option is not for the method asked for.
    """
    once = calibration_method is not None
    forms, without = _forms(target, gpus)
    if once and (method == "qat" or time_budget_s is not None or selection_images is not None):
        raise RecipeError(
            "--calibration-method quantizes once, without --method qat, --selection-images and --time-budget."
        )
    if once or method == "ptq":
        what = "quantize with calibration_method" if once else "quantize with method 'ptq'"
        refuse(training, what, "it does not train")
    how = create_execution(execution, data.data)
    source = open_artifact(checkpoint, model, data, how.progress)
    _check_source(source)
    if output is not None:
        source = with_features(source, output, checkpoint, how.progress)
    images = open_data_for(source, data, how, out)
    if images is None:
        raise DataError("quantization needs images: give the image folder with --data DIR.")
    drop = QuantizeConfig.max_drop_pp if evaluation.max_top1_drop_pp is None else evaluation.max_top1_drop_pp
    counted = QuantizeConfig.calibration_images if calibration_images is None else calibration_images

    def configure(target: Target) -> PTQConfig | QuantizeConfig:
        if calibration_method is not None:
            return PTQConfig(calibration_method=calibration_method, target=target, calibration_images=counted)
        return QuantizeConfig(
            target=target,
            method=method,
            max_drop_pp=drop,
            calibration_images=counted,
            selection_images=QuantizeConfig.selection_images if selection_images is None else selection_images,
            time_budget_s=time_budget_s,
            fit=choose_qat(training, images),
        )

    gate = create_gate(evaluation, drop)
    if target == "auto":
        stages, name = _stages(forms, configure, gate), "auto"
    else:
        config = configure(target)
        stages, name = [StageEntry(config.kind, config, SOURCE, gate)], config.kind
    choices: dict[str, tuple[str, ...]] = {_graph(form): (form.reason,) for form in forms}
    for stage in stages:
        if isinstance(stage.config, QuantizeConfig) and method != "ptq":
            choices[stage.name] = describe_qat(stage.config.fit, training, images)
    recipe = create_recipe(
        f"{name}-{source.model.variant}", stages, images, checkpoint, how.seed, data.preprocess, output
    )
    for line in without:
        how.progress.say(line)
    settings = create_settings("quantize", recipe.name, out, how, execution, choices=choices)
    return run_stages(recipe, settings, source, images)


def _forms(target: TargetOrAuto, gpus: tuple[str, ...]) -> tuple[tuple[Form, ...], tuple[str, ...]]:
    """Return the forms to make, none where a target is named, and why others are not made.

    Raises: RecipeError: if target and GPUs do not go together.
    """
    if target != "auto":
        if gpus:
            raise RecipeError("--gpu counts with --target auto only, which chooses what is made; leave it out.")
        return (), ()
    if not gpus:
        raise RecipeError(
            "--target auto makes what a GPU may run best; say which with --gpu, such as rtx-4070 or orin."
        )
    return forms_for(gpus)[1:]


def _graph(form: Form) -> str:
    """Return the name of the stage that writes a form as a file."""
    return f"{form.precision}-onnx"


def _stages(
    forms: tuple[Form, ...], configure: Callable[[Target], PTQConfig | QuantizeConfig], gate: Gate
) -> list[StageEntry]:
    """Return the stages that make each form, and write it as a file in which FP16 is what is not quantized."""
    stages, graph = [], ONNXConfig(precision="fp16", runtime="tensorrt")
    for form in forms:
        if form.target is not None:
            stages.append(StageEntry(form.precision, configure(form.target), SOURCE, gate))
        stages.append(StageEntry(_graph(form), graph, SOURCE if form.target is None else form.precision, gate))
    return stages


def _check_source(source: Artifact) -> None:
    """Check that there is a float network to quantize, before any image is looked at. Raises: ArtifactError: if not."""
    ancestor = next((record.input_paths["source"] for record in source.lineage if "source" in record.input_paths), None)
    where = f", {ancestor}" if ancestor else ""
    if source.format != "torch":
        raise ArtifactError(
            f"{source.main_file} is in the format {source.format}; quantization starts from a PyTorch network: give the "
            f"PyTorch checkpoint that it was made from{where}."
        )
    if source.precision != "fp32":
        raise ArtifactError(f"{source.place} is already {source.precision}; quantize its FP32 ancestor{where}.")
