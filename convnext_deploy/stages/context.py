"""What a stage gets besides its config and its source, and what all stages do alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from convnext_deploy.artifact import Artifact, ModelSpec, Preprocess, default_preprocess, describe_file, file_header
from convnext_deploy.data.loaders import TrainingBatches
from convnext_deploy.data.sources import Data
from convnext_deploy.errors import ArtifactError
from convnext_deploy.models.checkpoint import save_state
from convnext_deploy.models.variants import resolve_variant
from convnext_deploy.network import WEIGHTS
from convnext_deploy.progress import Progress
from convnext_deploy.recipe import FitConfig, ModelConfig
from convnext_deploy.training.fit import Objective, autocast_dtype, fit


@dataclass(frozen=True)
class StageContext:
    """`output` is the new, empty folder to write into. `data` is opened when a stage first asks for it."""

    name: str
    output: Path
    open_data: Callable[[], Data]
    seed: int
    device: str
    workers: int
    progress: Progress
    teacher: Artifact | None = None


def require_source(source: Artifact | None, kind: str) -> Artifact:
    """Return the source. Raises: ArtifactError: if there is none."""
    if source is None:
        raise ArtifactError(f"a {kind} stage needs a source artifact.")
    return source


def model_of(config: ModelConfig, data: Data, source: Artifact | None) -> tuple[ModelSpec, Preprocess]:
    """Return the network and the evaluation transform that a training stage asks for.

    Raises: ArtifactError: if the stage fine-tunes a source whose network is another one.
    """
    spec = ModelSpec(resolve_variant(config.name), len(data.class_names), config.in_channels, config.patch_size)
    if source is not None and source.model != spec:
        found, after = dataclasses.asdict(source.model), dataclasses.asdict(spec)
        differing, asked = next(item for item in after.items() if found[item[0]] != item[1])
        raise ArtifactError(
            f"{source.main_file} cannot be fine-tuned as asked: its {differing} is {found[differing]}, this stage asks for {asked}."
        )
    return spec, default_preprocess(config.image_size, config.crop_pct, config.in_channels)


def fit_network(
    network: nn.Module, preprocess: Preprocess, config: FitConfig, context: StageContext, objective: Objective
) -> list[dict[str, float]]:
    """Run the training loop on the training images with a stage's settings."""
    batches = TrainingBatches(
        context.open_data().train,
        preprocess,
        batch_size=config.batch_size,
        crop_scale_min=config.crop_scale_min,
        flip_probability=config.flip_probability,
        seed=context.seed,
        workers=context.workers,
        device=context.device,
    )
    return fit(
        network,
        batches,
        objective,
        description=context.name,
        epochs=config.epochs,
        base_learning_rate=config.base_learning_rate,
        warmup_epochs=config.warmup_epochs,
        final_learning_rate_ratio=config.final_learning_rate_ratio,
        weight_decay=config.weight_decay,
        autocast=autocast_dtype(config.autocast, context.device),
        seed=context.seed,
        progress=context.progress,
    )


def write_torch_artifact(
    network: nn.Module,
    context: StageContext,
    *,
    model: ModelSpec,
    preprocess: Preprocess,
    class_names: tuple[str, ...] | None,
    precision: str,
    details: Mapping[str, Any],
    source: Artifact | None,
) -> Artifact:
    """Write the weights, with a header that makes the file readable on its own, and describe them."""
    header = {
        **file_header(model, preprocess, class_names, precision),
        "details": {key: value for key, value in details.items() if key == "target"},
    }
    path = context.output / WEIGHTS
    save_state(path, network.state_dict(), header)
    return Artifact(
        path=context.output,
        format="torch",
        precision=precision,
        model=model,
        class_names=class_names,
        preprocess=preprocess,
        files=(describe_file(path),),
        details=details,
        lineage=source.lineage if source is not None else (),
    )
