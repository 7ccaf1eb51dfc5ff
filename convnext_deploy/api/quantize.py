"""`quantize`: the cheapest INT8 that loses too little to matter."""

from pathlib import Path

from convnext_deploy.api.open_inputs import open_artifact, open_data_for, with_features
from convnext_deploy.api.options import DataOptions, EvaluationOptions, ExecutionOptions, TrainingOptions, refuse, verb
from convnext_deploy.api.run_stages import create_execution, create_gate, create_recipe, create_settings, run_stages
from convnext_deploy.api.training_presets import DIGITS_QAT_FIT, override_fit
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.choices import CalibrationMethod, FeatureOutput, QuantizeMethod, Target
from convnext_deploy.config.ptq import PTQConfig
from convnext_deploy.config.quantize import QATConfig, QuantizeConfig
from convnext_deploy.config.recipe import SOURCE, StageEntry
from convnext_deploy.data.datasets import BUILT_IN
from convnext_deploy.errors import ArtifactError, DataError, RecipeError
from convnext_deploy.pipeline.run_result import RunResult


@verb
def quantize(
    checkpoint: Path | str,
    *,
    target: Target = "tensorrt",
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
        target: the runtime it is for, which decides what is quantized and how.
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
    config: PTQConfig | QuantizeConfig
    if calibration_method is not None:
        config = PTQConfig(calibration_method=calibration_method, target=target, calibration_images=counted)
    else:
        config = QuantizeConfig(
            target=target,
            method=method,
            max_drop_pp=drop,
            calibration_images=counted,
            selection_images=QuantizeConfig.selection_images if selection_images is None else selection_images,
            time_budget_s=time_budget_s,
            fit=override_fit(DIGITS_QAT_FIT if images.name == BUILT_IN else QATConfig().fit, training),
        )
    stage = StageEntry(config.kind, config, SOURCE, create_gate(evaluation, drop))
    recipe = create_recipe(
        f"{config.kind}-{source.model.variant}", [stage], images, checkpoint, how.seed, data.preprocess, output
    )
    return run_stages(recipe, create_settings("quantize", recipe.name, out, how, execution), source, images)


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
