"""Quantization-aware training: weights and scales of a PTQ artifact learn to live on their grids."""

from torch import nn

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import TorchDetails
from convnext_deploy.config.quantize import QATConfig
from convnext_deploy.errors import ArtifactError
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.quantization.prepare import without_quantizers
from convnext_deploy.stages.context import StageContext, require_source
from convnext_deploy.stages.quantized_training import check_teachers, train_quantized
from convnext_deploy.stages.teachers import open_teacher
from convnext_deploy.stages.training_setup import training_options
from convnext_deploy.stages.write_artifact import write_torch_artifact
from convnext_deploy.training.teacher import Teacher


def run(config: QATConfig, source: Artifact | None, context: StageContext) -> Artifact:
    """Fine-tune under fake quantization. The teacher is the context's, or the FP32 network that the artifact was made from.

    Where that is gone, the artifact's own float weights teach, which bias correction and learned rounding have moved a little.
    """
    source = require_source(source, "qat")
    scheme = source.scheme
    if scheme is None:
        raise ArtifactError(f"{source.path} has no quantizers to train; QAT starts from a PTQ artifact.")
    check_teachers(source, config.teacher, context)
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
        precision="int8",
        details=TorchDetails(**scheme.details(), history=history),
        source=source,
    )
