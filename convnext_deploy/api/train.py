"""`train`: from scratch, or from given weights."""

from pathlib import Path

from convnext_deploy.api.open_inputs import name_variant, one_start, open_artifact, open_training_data
from convnext_deploy.api.options import DataOptions, ExecutionOptions, TrainingOptions, verb
from convnext_deploy.api.run_stages import create_execution, create_recipe, create_settings, run_stages
from convnext_deploy.api.training_presets import choose
from convnext_deploy.config.recipe import SOURCE, StageEntry
from convnext_deploy.config.train import TrainConfig
from convnext_deploy.pipeline.run_result import RunResult


@verb
def train(
    model: str | None = None,
    *,
    checkpoint: Path | str | None = None,
    weights: str | None = None,
    out: Path | str | None = None,
    data: DataOptions = DataOptions(),
    training: TrainingOptions = TrainingOptions(),
    execution: ExecutionOptions = ExecutionOptions(),
) -> RunResult:
    """Train a model from scratch, or fine-tune a checkpoint or published weights.

    Args:
        model: variant; None: that of the checkpoint or weights.
        checkpoint: artifact or weights file to start from; a head for other classes than the data's starts fresh.
        weights: name of published weights to start from.
        out: folder of the run; None: `runs/train-MODEL`.
        data: images; none named: the built-in digits.
        training: what replaces the preset for the data.
        execution: how work is done.

    Raises: DeployError: if the data or the weights cannot be used, or an option is not for `train`.
    """
    how = create_execution(execution, data.data)
    images = open_training_data(data, how, out)
    start = one_start(checkpoint, weights)
    source = None if start is None else open_artifact(start, model, data, how.progress)
    model = name_variant(model, source)
    chosen = choose(model, data, training, images, source, "model")
    stage = StageEntry("model", TrainConfig(chosen.model, chosen.fit), None if source is None else SOURCE)
    recipe = create_recipe(f"train-{model}", [stage], images, start, how.seed, data.preprocess)
    settings = create_settings("train", recipe.name, out, how, execution, choices={"model": chosen.words})
    return run_stages(recipe, settings, source, images)
