"""Train a network from scratch, or fine-tune the source."""

import torch.nn.functional as F
from torch import Tensor, nn

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import TorchDetails
from convnext_deploy.config.train import TrainConfig
from convnext_deploy.data.loaders import Batch
from convnext_deploy.models.variants import resolve_variant
from convnext_deploy.stages.context import StageContext
from convnext_deploy.stages.epoch_choice import set_aside
from convnext_deploy.stages.foresight import Given, Outlook, given_to
from convnext_deploy.stages.training_setup import fit_network, foresee_training, label_weights, model_of, start_network
from convnext_deploy.stages.write_artifact import write_torch_artifact
from convnext_deploy.training.losses import bce_loss


def check(config: TrainConfig) -> None:
    """Raises: RecipeError: if there is no such network."""
    resolve_variant(config.model.name)


def foresee(config: TrainConfig, given: Given) -> Outlook:
    """Return what would be made. Raises: DeployError: if it could not be."""
    return foresee_training(config.model, config.fit, given)


def run(config: TrainConfig, source: Artifact | None, context: StageContext) -> Artifact:
    """Train with cross-entropy on the labels, starting from the source, from given weights, or from fresh ones.

    Of multi-label data each label has a binary cross-entropy of its own.
    """
    foresee(config, given_to(context, source))
    context = set_aside(config.fit, context)
    data = context.need_data()
    start = source or context.weights
    spec, preprocess = model_of(config.model, data, start)
    network = start_network(spec, config.fit, start, context)

    weights = label_weights(config.fit, context)

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        logits, smoothing = model(batch.images).float(), config.fit.label_smoothing
        if data.multi_label:
            return bce_loss(logits, batch.labels, smoothing, weights)
        return F.cross_entropy(logits, batch.labels, label_smoothing=smoothing)

    history = fit_network(network, preprocess, config.fit, context, objective)
    return write_torch_artifact(
        network,
        context,
        model=spec,
        preprocess=preprocess,
        class_names=data.class_names,
        precision="fp32",
        details=TorchDetails(history=history),
        source=start,
    )
