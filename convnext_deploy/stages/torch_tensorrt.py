"""Compile a float PyTorch artifact to a Torch-TensorRT program, on the GPU that will run it."""

import dataclasses

from convnext_deploy.artifacts.artifact import Artifact, describe_file
from convnext_deploy.artifacts.details import Profile, TorchTensorRTDetails
from convnext_deploy.config.engine import TorchTensorRTConfig
from convnext_deploy.errors import ArtifactError
from convnext_deploy.exporters.tensorrt.torch_tensorrt import compile_program, import_torch_tensorrt, save_program
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.models.fold import fold
from convnext_deploy.models.identities import drop_identities
from convnext_deploy.stages.context import StageContext, require_source
from convnext_deploy.stages.foresight import Given, Outlook, given_to
from convnext_deploy.system.cuda_driver import gpu_name

PROGRAM = "model.ep"


def foresee(config: TorchTensorRTConfig, given: Given) -> Outlook:
    """Return what would be made. Raises: DeployError: if it could not be."""
    source = given.need_source(config.kind)
    given.expect(
        source,
        "torch",
        "Torch-TensorRT compiles a PyTorch artifact. Engines from ONNX are built by --format tensorrt or tensorrt-rtx",
    )
    if source.precision != "fp32":
        raise ArtifactError(
            f"{given.called(source)} is quantized, and Torch-TensorRT would run its quantizers in PyTorch; take its float source, "
            "or go through ONNX for INT8: --format tensorrt or tensorrt-rtx."
        )
    import_torch_tensorrt()
    return source.made(given.name, format="torch-tensorrt", precision=config.precision)


def run(config: TorchTensorRTConfig, source: Artifact | None, context: StageContext) -> Artifact:
    """Write `model.ep`, an exported program that takes normalized float32 images and gives float32 logits."""
    source = require_source(source, config.kind)
    foresee(config, given_to(context, source))
    release = import_torch_tensorrt().__version__
    profile = Profile(1, config.optimal_batch_size, config.max_batch_size)
    image = (source.model.in_channels, *source.preprocess.sides)
    path = context.output / PROGRAM
    with context.execution.progress.task(f"{context.name}: {config.kind} {gpu_name()}", 3, "parts") as task:
        network = drop_identities(fold(load_network(source), source.preprocess).network)
        task.advance()
        compiled = compile_program(
            network,
            precision=config.precision,
            profile=profile,
            image=image,
            workspace_mib=config.workspace_mib,
            optimization_level=config.optimization_level,
        )
        task.advance()
        save_program(compiled, path, profile=profile, image=image)
        task.advance()
    return dataclasses.replace(
        source,
        path=context.output,
        precision=config.precision,
        files=(describe_file(path),),
        details=TorchTensorRTDetails(release, gpu_name(), config.max_batch_size),
    )
