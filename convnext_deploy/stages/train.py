"""Train a network from scratch, or fine-tune the source."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from convnext_deploy.artifact import Artifact, ModelSpec
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.models.variants import build_model
from convnext_deploy.network import load_network
from convnext_deploy.recipe import FitConfig, TrainConfig
from convnext_deploy.stages.context import StageContext, fit_network, model_of, write_torch_artifact


def run(config: TrainConfig, source: Artifact | None, context: StageContext) -> Artifact:
    """Train with cross-entropy on the labels."""
    data = context.open_data()
    spec, preprocess = model_of(config.model, data, source)
    network = start_network(spec, config.fit, source, context)

    def objective(images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(network(images).float(), labels, label_smoothing=config.fit.label_smoothing)

    history = fit_network(network, preprocess, config.fit, context, objective)
    return write_torch_artifact(
        network,
        context,
        model=spec,
        preprocess=preprocess,
        class_names=data.class_names,
        precision="fp32",
        details={"history": history},
        source=source,
    )


def start_network(spec: ModelSpec, config: FitConfig, source: Artifact | None, context: StageContext) -> ConvNeXt:
    """Return the network to train, on the device: the source's weights, or fresh ones drawn from the seed."""
    if source is not None:
        return load_network(source, drop_path_rate=config.drop_path_rate).to(context.device)
    with torch.random.fork_rng([]):
        torch.manual_seed(context.seed)
        network = build_model(spec, drop_path_rate=config.drop_path_rate, layer_scale_init=config.layer_scale_init)
    return network.to(context.device)
