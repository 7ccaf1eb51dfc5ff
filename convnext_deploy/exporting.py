"""`export`: from an artifact to ONNX, TensorRT engines or a Torch-TensorRT program."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from convnext_deploy.artifact import Artifact
from convnext_deploy.errors import RecipeError
from convnext_deploy.opening import open_artifact, open_data_for
from convnext_deploy.options import DEFAULTS, Options, allowed_drop
from convnext_deploy.pipeline import RunResult
from convnext_deploy.quantization.scheme import read_scheme
from convnext_deploy.recipe import SOURCE, Gate, StageEntry
from convnext_deploy.stage_config import ONNXConfig, TensorRTConfig, TorchTensorRTConfig
from convnext_deploy.stage_runs import run_stages

Format = Literal["onnx", "tensorrt-rtx", "tensorrt", "torch-tensorrt"]


def export(
    artifact: Path,
    *,
    format: Format = "onnx",  # noqa: A002  (the flag's name)
    graph: ONNXConfig | None = None,
    engine: TensorRTConfig | TorchTensorRTConfig | None = None,
    model: str | None = None,
    options: Options = DEFAULTS,
) -> RunResult:
    """Export an artifact or checkpoint to ONNX, from there to TensorRT engines, or to Torch-TensorRT. Validated with images.

    Args:
        artifact: artifact folder or file, or the name of published weights; for engines also an ONNX artifact.
        format: what to make.
        graph: how the ONNX graph is made. None: FP32 for `onnx`, FP16 that suits the runtime for engines.
        engine: how engines are built; the flavor is that of the format. For `torch-tensorrt` a `TorchTensorRTConfig`. None: the
            defaults.
        model: variant that the artifact must hold.
        options: see `Options`.

    Raises: RecipeError: if the artifact cannot become that, or settings are for another format.
    """
    source = open_artifact(artifact, model, options)
    gate = Gate(max_top1_drop_pp=allowed_drop(options))
    if format == "torch-tensorrt":
        stages = [_program(graph, engine, gate)]
    else:
        stages = (
            [] if source.format != "torch" and format != "onnx" else [_graph(artifact, source, format, graph, gate)]
        )
        if format != "onnx":
            if not stages and graph is not None:
                raise RecipeError(
                    f"{artifact} is in the format {source.format} already, and its graph is what it is; give the PyTorch artifact "
                    "that it was made from."
                )
            stages.append(_engine(artifact, source, format, graph.batch_size if graph else None, engine, gate))
        elif engine is not None:
            raise RecipeError("settings of engines were given for the format onnx; choose tensorrt-rtx or tensorrt.")
    name = f"{format}-{source.model.variant}"
    return run_stages(name, tuple(stages), options, source, open_data_for(source, options), artifact)


def _graph(artifact: Path, source: Artifact, format: Format, graph: ONNXConfig | None, gate: Gate) -> StageEntry:  # noqa: A002
    if source.format != "torch":
        raise RecipeError(f"{artifact} is in the format {source.format} already; ONNX is made from a PyTorch artifact.")
    if graph is None:
        graph = ONNXConfig() if format == "onnx" else ONNXConfig(precision="fp16", runtime=_runtime(format))
    return StageEntry("onnx", graph, SOURCE, gate)


def _runtime(format: Format) -> Literal["tensorrt", "tensorrt-rtx"]:  # noqa: A002
    return "tensorrt-rtx" if format == "tensorrt-rtx" else "tensorrt"


def _engine(
    artifact: Path,
    source: Artifact,
    format: Format,  # noqa: A002
    frozen: int | None,
    engine: TensorRTConfig | TorchTensorRTConfig | None,
    gate: Gate,
) -> StageEntry:
    scheme = read_scheme(source.details)
    if scheme is not None and not scheme.target.startswith("tensorrt"):
        raise RecipeError(
            f"{artifact} was quantized for {scheme.target}, with zero points that TensorRT does not read; quantize its FP32 "
            "ancestor with --target tensorrt."
        )
    if isinstance(engine, TorchTensorRTConfig):
        raise RecipeError(f"settings of Torch-TensorRT were given for the format {format}; give a TensorRTConfig.")
    config = replace(engine or TensorRTConfig(), flavor=_runtime(format))
    if frozen is not None:
        config = replace(config, max_batch_size=max(frozen, config.max_batch_size))
    return StageEntry("engine", config, "onnx" if source.format == "torch" else SOURCE, gate)


def _program(graph: ONNXConfig | None, engine: TensorRTConfig | TorchTensorRTConfig | None, gate: Gate) -> StageEntry:
    if graph is not None or isinstance(engine, TensorRTConfig):
        raise RecipeError("torch-tensorrt goes without ONNX; its settings are those of TorchTensorRTConfig.")
    return StageEntry("program", engine or TorchTensorRTConfig(), SOURCE, gate)
