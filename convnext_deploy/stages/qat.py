"""Quantization-aware training: weights and scales of a PTQ artifact learn to live on their grids."""

from __future__ import annotations

from convnext_deploy.artifact import Artifact
from convnext_deploy.errors import ArtifactError
from convnext_deploy.network import load_network
from convnext_deploy.quantization.prepare import without_quantizers
from convnext_deploy.quantization.scheme import read_scheme
from convnext_deploy.stage_config import QATConfig
from convnext_deploy.stages.context import (
    StageContext,
    fit_network,
    require_source,
    training_options,
    write_torch_artifact,
)
from convnext_deploy.stages.distill import check_teacher, distillation_objective, open_teacher


def run(config: QATConfig, source: Artifact | None, context: StageContext) -> Artifact:
    """Fine-tune under fake quantization. The teacher is the context's, or the float model that the artifact still holds."""
    source = require_source(source, "qat")
    scheme = read_scheme(source.details)
    if scheme is None:
        raise ArtifactError(f"{source.path} has no quantizers to train; QAT starts from a PTQ artifact.")
    if config.teacher is not None and not context.teachers:
        raise ArtifactError(f"stage '{context.name}' has no teacher artifact.")
    for artifact in context.teachers:
        check_teacher(artifact, context.open_data(), source.model.in_channels)
    network = load_network(source, **training_options(config.fit)).to(context.device)
    teachers = [open_teacher(artifact, source.preprocess, context.device) for artifact in context.teachers]
    teacher = teachers[0] if teachers else without_quantizers(network).requires_grad_(False).eval()
    objective = distillation_objective(
        lambda batch: teacher(batch.images),
        temperature=config.temperature,
        distill_loss_weight=config.distill_loss_weight,
        label_smoothing=config.fit.label_smoothing,
    )
    history = fit_network(network, source.preprocess, config.fit, context, objective)
    return write_torch_artifact(
        network,
        context,
        model=source.model,
        preprocess=source.preprocess,
        class_names=source.class_names,
        precision="int8",
        details={**scheme.details(), "history": history},
        source=source,
    )
