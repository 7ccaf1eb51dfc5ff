"""Training under fake quantization, which `qat` and `quantize` share."""

import copy

import torch
from torch import nn

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import History
from convnext_deploy.artifacts.spec import Preprocess
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.quantize import QATConfig
from convnext_deploy.data.agreement import outputs_for
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.models.identities import identity_parameters
from convnext_deploy.quantization.dead_channels import scales_kept_in_half
from convnext_deploy.stages.context import StageContext
from convnext_deploy.stages.epoch_choice import set_aside
from convnext_deploy.stages.rehearsal import seconds_of
from convnext_deploy.stages.teachers import distillation_objective, open_teacher, same_features
from convnext_deploy.stages.training_setup import fit_network, label_weights
from convnext_deploy.system.distributed import world
from convnext_deploy.training.schedule import autocast_dtype
from convnext_deploy.training.student_loss import Distillation
from convnext_deploy.training.teacher import Teacher

_TIMED_IMAGES = 8


def train_quantized(
    network: ConvNeXt,
    own: nn.Module | Teacher,
    source: Artifact,
    preprocess: Preprocess,
    config: QATConfig,
    context: StageContext,
) -> History:
    """Train weights, biases, scales and zero points in place, and return the history. What folding made neutral stays so.

    Args:
        network: calibrated, on the device.
        own: the float network, which teaches if the context has no other teacher.
        source: of the stage.
        preprocess: of the images that `network` takes.
        config: settings.
        context: of the stage.
    """
    context = set_aside(config.fit, context)
    teacher = own
    if context.teachers:
        other = context.teachers[0]
        outputs = outputs_for(other, context.need_data())
        teacher = open_teacher(other, preprocess, context, outputs)
    if isinstance(teacher, nn.Module):
        teacher.requires_grad_(False).eval()
    neutral = set(identity_parameters(network))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in neutral)
    if not network.num_classes:
        with scales_kept_in_half(network):
            return fit_network(network, preprocess, config.fit, context, same_features(teacher), teacher)
    objective = distillation_objective(
        lambda batch: teacher(batch.images),
        Distillation(
            "kd",
            config.temperature,
            config.distill_loss_weight,
            config.fit.label_smoothing,
            multi_label=context.need_data().multi_label,
            positive_weights=label_weights(config.fit, context),
        ),
    )
    with scales_kept_in_half(network):
        return fit_network(network, preprocess, config.fit, context, objective)


def training_seconds(network: ConvNeXt, preprocess: Preprocess, fit: FitConfig, context: StageContext) -> float:
    """Return about how long training would take on all processes, from two passes with gradients over a few images."""
    device = context.execution.device
    if device != context.execution.exact_device:
        network = copy.deepcopy(network).to(device)
    images = torch.zeros(_TIMED_IMAGES, len(preprocess.mean), *preprocess.sides, device=device)
    dtype = autocast_dtype(fit.autocast, device)

    def step() -> None:
        with torch.enable_grad(), torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            network(images).float().sum().backward()

    seconds = seconds_of(step, device) / _TIMED_IMAGES
    network.zero_grad(set_to_none=True)
    return seconds * fit.epochs * len(context.need_data().train) / world().size
