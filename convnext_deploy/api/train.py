"""`train`: from scratch, or from given weights."""

from __future__ import annotations

from pathlib import Path

from convnext_deploy.api.open_inputs import (
    name_variant,
    one_start,
    open_optional,
    open_training_data,
)
from convnext_deploy.api.options import DEFAULTS, Options
from convnext_deploy.api.run_stages import run_stages
from convnext_deploy.api.training_presets import (
    DIGITS_FIT,
    fit_preset,
    model_config,
    override_fit,
)
from convnext_deploy.config.recipe import SOURCE, StageEntry
from convnext_deploy.config.train import TrainConfig
from convnext_deploy.pipeline.run import RunResult


def train(
    model: str | None = None,
    *,
    checkpoint: Path | None = None,
    weights: str | None = None,
    options: Options = DEFAULTS,
) -> RunResult:
    """Train a model from scratch, or fine-tune a checkpoint or published weights.

    Args:
        model: variant; None: that of the checkpoint or weights.
        checkpoint: artifact or weights file to start from; a head for other classes than the data's starts fresh.
        weights: likewise, the name of published weights.
        options: see `Options`.
    """
    data = open_training_data(options)
    checkpoint = one_start(checkpoint, weights)
    source = open_optional(checkpoint, model, options)
    model = name_variant(model, source)
    fit = override_fit(fit_preset(data, DIGITS_FIT, source), options)
    stage = StageEntry(
        "model", TrainConfig(model_config(model, options, data, source), fit), SOURCE if source else None
    )
    return run_stages(f"train-{model}", (stage,), options, source, data, checkpoint, "train")
