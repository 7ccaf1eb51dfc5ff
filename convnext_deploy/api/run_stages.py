"""From the stages that a verb wants to a run of the pipeline."""

from __future__ import annotations

from pathlib import Path

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.recipe import Recipe, StageEntry
from convnext_deploy.config.stages import DistillConfig, PTQConfig, QuantizeConfig, TensorRTConfig, TrainConfig
from convnext_deploy.data.datasets import Data
from convnext_deploy.models.variants import resolve_variant
from convnext_deploy.pipeline.open_artifact import open_weights
from convnext_deploy.pipeline.run import RunResult, run_recipe
from convnext_deploy.pipeline.stage import Settings


def create_recipe(
    name: str, stages: list[StageEntry], data: Data | None, source: Path | str | None, seed: int
) -> Recipe:
    """Return the recipe of a verb; `source` is what the user named, if the stages start from something."""
    return Recipe(
        name=name,
        stages=tuple(stages),
        data=None if data is None else data.name,
        source=None if source is None else str(source),
        seed=seed,
    )


def run_stages(recipe: Recipe, settings: Settings, source: Artifact | None, data: Data | None) -> RunResult:
    """Run a recipe whose source and data are open."""
    check_names(recipe)
    return run_recipe(recipe, settings, source, data, open_weights(recipe))


def check_names(recipe: Recipe) -> None:
    """Resolve every name that a stage would look up later, so that a wrong one costs no training."""
    from convnext_deploy.quantization.scheme import resolve_scheme
    from convnext_deploy.system.gpu_models import resolve_gpus

    for stage in recipe.stages:
        if isinstance(stage.config, TrainConfig | DistillConfig):
            resolve_variant(stage.config.model.name)
        elif isinstance(stage.config, PTQConfig | QuantizeConfig):
            resolve_scheme(stage.config.target, stage.config.sites)
        elif isinstance(stage.config, TensorRTConfig) and stage.config.flavor == "tensorrt-rtx":
            resolve_gpus(stage.config.gpus)
