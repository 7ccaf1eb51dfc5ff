"""Build TensorRT engines from an ONNX artifact."""

from __future__ import annotations

import dataclasses

from convnext_deploy.artifact import Artifact, describe_file
from convnext_deploy.errors import ArtifactError
from convnext_deploy.exporters.tensorrt_engine import Profile, build_engine, check_gpus, import_tensorrt
from convnext_deploy.stage_config import TensorRTConfig
from convnext_deploy.stages.context import StageContext, require_source


def run(config: TensorRTConfig, source: Artifact | None, context: StageContext) -> Artifact:
    """Write one `model.<gpu>.plan` per GPU."""
    source = require_source(source, "tensorrt")
    if source.format != "onnx":
        raise ArtifactError(f"{source.path} is in the format {source.format}; engines are built from an ONNX artifact.")
    trt = import_tensorrt(config.flavor)
    if config.flavor == "tensorrt-rtx":
        check_gpus(trt, config.gpus)  # before the first build, so that a wrong name costs nothing
    gpus: tuple[str | None, ...] = config.gpus if config.flavor == "tensorrt-rtx" else (None,)
    profile = Profile(1, config.optimal_batch_size, config.max_batch_size)
    files = []
    for gpu in gpus:
        path = context.output / (f"model.{gpu.lower()}.plan" if gpu else "model.plan")
        plan = build_engine(
            source.main_file,
            flavor=config.flavor,
            gpu=gpu,
            profile=profile,
            workspace_mib=config.workspace_mib,
            optimization_level=config.optimization_level,
            progress=context.progress,
        )
        path.write_bytes(plan)
        files.append(describe_file(path))
    return dataclasses.replace(
        source,
        path=context.output,
        format="tensorrt",
        files=tuple(files),
        details={
            "flavor": config.flavor,
            "tensorrt": trt.__version__,
            "gpus": [gpu.upper() for gpu in gpus if gpu],
            "max_batch_size": config.max_batch_size,
        },
    )
