"""Quantization-aware training: weights and scales of a PTQ artifact learn to live on their grids."""

from torch import nn

from convnext_deploy.artifacts.artifact import Artifact, quantized_type
from convnext_deploy.artifacts.details import TorchDetails
from convnext_deploy.config.quantize import QATConfig
from convnext_deploy.errors import ArtifactError
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.quantization.prepare import without_quantizers
from convnext_deploy.stages.context import StageContext, require_source
from convnext_deploy.stages.foresight import Given, Outlook, check_fit, given_to
from convnext_deploy.stages.ptq_steps import QUANTIZES_TORCH
from convnext_deploy.stages.quantized_training import train_quantized
from convnext_deploy.stages.teachers import check_quantized_teachers, open_teacher
from convnext_deploy.stages.training_setup import training_options
from convnext_deploy.stages.write_artifact import write_torch_artifact
from convnext_deploy.system.full_float32 import full_float32
from convnext_deploy.training.teacher import Teacher


def foresee(config: QATConfig, given: Given) -> Outlook:
    """Return what would be made. Raises: DeployError: if it could not be."""
    source = given.need_source("qat")
    given.need_data()
    given.expect(source, "torch", QUANTIZES_TORCH)
    if quantized_type(source.precision) is None:
        raise ArtifactError(f"{given.called(source)} has no quantizers to train; QAT starts from a PTQ artifact.")
    check_fit(config.fit, given.device)
    check_quantized_teachers(given, source.model, needed=config.teacher is not None)
    return source.made(given.name)


@full_float32()
def run(config: QATConfig, source: Artifact | None, context: StageContext) -> Artifact:
    """Fine-tune under fake quantization. The teacher is the context's, or the FP32 network that the artifact was made from.

    Where that is gone, the artifact's own float weights teach, which bias correction and GPTQ have moved a little.
    """
    source = require_source(source, "qat")
    foresee(config, given_to(context, source))
    scheme = source.scheme
    assert scheme is not None  # of a quantized artifact
    network = load_network(source, **training_options(config.fit)).to(context.execution.device)
    own: nn.Module | Teacher = without_quantizers(network)
    if context.baseline is not None:
        own = open_teacher(context.baseline, source.preprocess, context)
    history = train_quantized(network, own, source, source.preprocess, config, context)
    return write_torch_artifact(
        network,
        context,
        model=source.model,
        preprocess=source.preprocess,
        class_names=source.class_names,
        precision=scheme.precision,
        details=TorchDetails(**scheme.details(), history=history),
        source=source,
    )
