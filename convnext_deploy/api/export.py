"""`export`: from an artifact to ONNX, TensorRT engines or a Torch-TensorRT program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from convnext_deploy.api.open_inputs import open_artifact, open_data_for
from convnext_deploy.api.options import DEFAULTS, Options, allowed_drop
from convnext_deploy.api.run_stages import run_stages
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.onnx import ONNXConfig
from convnext_deploy.config.recipe import SOURCE, Gate, StageEntry
from convnext_deploy.config.tensorrt import TensorRTConfig
from convnext_deploy.config.torch_tensorrt import TorchTensorRTConfig
from convnext_deploy.errors import RecipeError
from convnext_deploy.pipeline.run import RunResult

Format = Literal["onnx", "tensorrt-rtx", "tensorrt", "torch-tensorrt"]
ENGINES = ("tensorrt-rtx", "tensorrt")
_FLAGS = {"gpus": "--gpu"}


def export(
    artifact: Path,
    *,
    format: Format = "onnx",  # noqa: A002  (the flag's name)
    precision: Literal["fp32", "fp16"] | None = None,
    runtime: Literal["tensorrt", "tensorrt-rtx", "onnxruntime", "openvino"] | None = None,
    fixed_batch_size: int | None = None,
    input_type: Literal["float32", "uint8"] | None = None,
    input_layout: Literal["nchw", "nhwc"] | None = None,
    output: Literal["logits", "probabilities", "top-k"] | None = None,
    top_k: int | None = None,
    range_images: int | None = None,
    license: str | None = None,  # noqa: A002  (likewise)
    gpus: tuple[str, ...] = (),
    optimal_batch_size: int | None = None,
    max_batch_size: int | None = None,
    workspace_mib: int | None = None,
    optimization_level: int | None = None,
    timing_cache: str | None = None,
    version_compatible: bool | None = None,
    stripped: bool | None = None,
    strict: bool | None = None,
    model: str | None = None,
    options: Options = DEFAULTS,
) -> RunResult:
    """Export an artifact or checkpoint to ONNX, from there to TensorRT engines, or to Torch-TensorRT. Validated with images.

    What is None stays as `ONNXConfig`, `TensorRTConfig` and `TorchTensorRTConfig` say, but for the first two.

    Args:
        artifact: artifact folder or file, or the name of published weights; for engines also an ONNX artifact.
        format: what to make.
        precision: of all that is not INT8. None: FP32 for `onnx`, else FP16.
        runtime: what the graph is for. None: the TensorRT of the engines, `tensorrt` for `onnx`.
        fixed_batch_size: the only one that the graph takes.
        input_type: see `spec.GraphIO`, as for the next three.
        input_layout: order of the dimensions.
        output: what is given.
        top_k: how many classes a `top-k` output gives.
        range_images: training images that tell what overflows in FP16.
        license: of the weights, written into the file.
        gpus: names or compute capabilities, for `tensorrt-rtx`.
        optimal_batch_size: what engines are tuned for.
        max_batch_size: what engines accept.
        workspace_mib: limit of an engine's scratch memory.
        optimization_level: 0 to 5.
        timing_cache: file for `tensorrt`.
        version_compatible: for `tensorrt`.
        stripped: for `tensorrt`.
        strict: INT8 products that an engine runs in float are an error.
        model: variant that the artifact must hold.
        options: see `Options`.

    Raises: RecipeError: if the artifact cannot become that, or a setting is for another format.
    """
    graph = _given(
        precision=precision,
        runtime=runtime,
        batch_size=fixed_batch_size,
        input_type=input_type,
        input_layout=input_layout,
        output=output,
        top_k=top_k,
        range_images=range_images,
        license=license,
    )
    engine = _given(
        gpus=gpus or None,
        optimal_batch_size=optimal_batch_size,
        max_batch_size=max_batch_size,
        workspace_mib=workspace_mib,
        optimization_level=optimization_level,
        timing_cache=timing_cache,
        version_compatible=version_compatible,
        stripped=stripped,
        strict=strict,
    )
    if top_k is not None and output != "top-k":
        raise RecipeError("--top-k counts with --output top-k only; give both.")
    source = open_artifact(artifact, model, options)
    gate = Gate(max_top1_drop_pp=allowed_drop(options), min_speedup=options.min_speedup)
    stages: list[StageEntry] = []
    if format == "torch-tensorrt":
        stages.append(StageEntry("program", _program(graph, engine), SOURCE, gate))
    else:
        if source.format == "torch":
            stages.append(StageEntry("onnx", _graph(format, graph), SOURCE, gate))
        elif format == "onnx" or graph:
            raise RecipeError(
                f"{artifact} is in the format {source.format} already; ONNX, and what its graph takes and gives, is made from a "
                "PyTorch artifact."
            )
        if format in ENGINES:
            _check_scheme(artifact, source)
            stages.append(
                StageEntry("engine", _engine(format, graph, engine), stages[-1].name if stages else SOURCE, gate)
            )
        elif engine:
            raise RecipeError(f"{_flag(engine)} is about engines; choose the format {' or '.join(ENGINES)}.")
    name = f"{format}-{source.model.variant}"
    return run_stages(name, tuple(stages), options, source, open_data_for(source, options), artifact, "export")


def _given(**settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _flag(settings: Mapping[str, Any]) -> str:
    name = next(iter(settings))
    return _FLAGS.get(name, f"--{name.replace('_', '-')}")


def _graph(format: Format, settings: dict[str, Any]) -> ONNXConfig:  # noqa: A002  (the flag's name)
    usual = {"precision": "fp16", "runtime": format} if format in ENGINES else {}
    return ONNXConfig(**{**usual, **settings})


def _engine(format: Format, graph: dict[str, Any], settings: dict[str, Any]) -> TensorRTConfig:  # noqa: A002  (likewise)
    frozen = graph.get("batch_size")
    if frozen is not None:
        settings = {"max_batch_size": max(frozen, TensorRTConfig.max_batch_size), **settings}
    return TensorRTConfig(flavor="tensorrt-rtx" if format == "tensorrt-rtx" else "tensorrt", **settings)


def _program(graph: dict[str, Any], engine: dict[str, Any]) -> TorchTensorRTConfig:
    settings = {**graph, **engine}
    known = TorchTensorRTConfig.__dataclass_fields__
    if unknown := {name: value for name, value in settings.items() if name not in known}:
        raise RecipeError(f"{_flag(unknown)} does not count for torch-tensorrt, which goes without ONNX.")
    return TorchTensorRTConfig(**settings)


def _check_scheme(artifact: Path, source: Artifact) -> None:
    scheme = source.scheme
    if scheme is not None and not scheme.target.startswith("tensorrt"):
        raise RecipeError(
            f"{artifact} was quantized for {scheme.target}, with zero points that TensorRT does not read; quantize its FP32 "
            "ancestor with --target tensorrt."
        )
