"""`quantize`: the cheapest INT8 that loses too little to matter."""

from __future__ import annotations

from pathlib import Path

from convnext_deploy.api.open_inputs import (
    open_artifact,
    open_data_for,
)
from convnext_deploy.api.options import DEFAULTS, Options
from convnext_deploy.api.run_stages import run_stages
from convnext_deploy.api.training_presets import (
    DIGITS_QAT_FIT,
    override_fit,
)
from convnext_deploy.config.choices import CalibrationMethod, QuantizeMethod, Target
from convnext_deploy.config.ptq import PTQConfig
from convnext_deploy.config.qat import QATConfig
from convnext_deploy.config.quantize import QuantizeConfig
from convnext_deploy.config.recipe import SOURCE, Gate, StageEntry
from convnext_deploy.data.datasets import BUILT_IN
from convnext_deploy.errors import DataError, RecipeError
from convnext_deploy.pipeline.run import RunResult


def quantize(
    checkpoint: Path,
    *,
    target: Target = QuantizeConfig.target,
    method: QuantizeMethod = "auto",
    calibration_method: CalibrationMethod | None = None,
    time_budget_s: float | None = None,
    model: str | None = None,
    options: Options = DEFAULTS,
) -> RunResult:
    """Quantize an FP32 artifact or checkpoint to INT8 by the cheapest method that loses too little to matter.

    Args:
        checkpoint: artifact folder or file, or the name of published weights.
        target: name in `quantization.scheme.SCHEMES`.
        method: see `QuantizeConfig`.
        calibration_method: quantize once, with this choice of ranges, and do not climb; see `PTQSteps`.
        time_budget_s: seconds, see `QuantizeConfig`.
        model: variant that the checkpoint must hold.
        options: see `Options`; a drop of `max_top1_drop_pp` is allowed.
    """
    source = open_artifact(checkpoint, model, options)
    data = open_data_for(source, options)
    if data is None:
        raise DataError("quantization needs images: give the image folder with --data DIR.")
    drop = QuantizeConfig.max_drop_pp if options.max_top1_drop_pp is None else options.max_top1_drop_pp
    images = options.calibration_images or QuantizeConfig.calibration_images
    config: PTQConfig | QuantizeConfig
    if calibration_method is not None:
        if method == "qat" or time_budget_s is not None:
            raise RecipeError("--calibration-method quantizes once, without --method qat and --time-budget.")
        config = PTQConfig(calibration_method=calibration_method, target=target, calibration_images=images)
    else:
        fit = override_fit(DIGITS_QAT_FIT if data.name == BUILT_IN else QATConfig().fit, options)
        config = QuantizeConfig(
            target=target,
            method=method,
            max_drop_pp=drop,
            calibration_images=images,
            selection_images=options.selection_images or QuantizeConfig.selection_images,
            time_budget_s=time_budget_s,
            fit=fit,
        )
    stage = StageEntry(config.kind, config, SOURCE, Gate(max_top1_drop_pp=drop))
    return run_stages(f"{config.kind}-{source.model.variant}", (stage,), options, source, data, checkpoint, "quantize")
