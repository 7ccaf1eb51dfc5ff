"""`export`: from an artifact to ONNX, TensorRT engines or a Torch-TensorRT program."""

from pathlib import Path
from typing import Any, get_args

from convnext_deploy.api.open_inputs import open_artifact, open_data_for, with_features
from convnext_deploy.api.options import DataOptions, EvaluationOptions, ExecutionOptions, refuse, verb
from convnext_deploy.api.run_stages import (
    changes_of,
    create_execution,
    create_gate,
    create_recipe,
    create_settings,
    run_stages,
)
from convnext_deploy.artifacts.artifact import Artifact, quantized_type
from convnext_deploy.config.choices import (
    ExportFormat,
    FeatureOutput,
    GraphOutput,
    InputLayout,
    InputType,
    Precision,
    Runtime,
)
from convnext_deploy.config.engine import TensorRTConfig, TorchTensorRTConfig
from convnext_deploy.config.onnx import ONNXConfig
from convnext_deploy.config.recipe import SOURCE, Gate, StageEntry
from convnext_deploy.errors import RecipeError
from convnext_deploy.pipeline.run_result import RunResult

DEFAULT_MAX_TOP1_DROP_PP = 0.5
GPUS_OF_FP8 = ("sm89", "sm120")
_RTX, _ENGINES = ("tensorrt-rtx",), ("tensorrt-rtx", "tensorrt")
_GRAPH = ("runtime", "batch_size", "input_type", "input_layout", "output", "top_k", "range_images", "license")
_ENGINE = ("timing_cache", "version_compatible", "stripped", "strict")
_BUILD = ("optimal_batch_size", "max_batch_size", "workspace_mib", "optimization_level")
_FORMATS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_GRAPH, ("onnx", *_ENGINES)),
    **dict.fromkeys(_BUILD, (*_ENGINES, "torch-tensorrt")),
    **dict.fromkeys(_ENGINE, _ENGINES),
    "gpus": _RTX,
}
"""Setting → the formats that use it; `precision` is for all."""
_FLAGS = {"gpus": "--gpu", "batch_size": "--fixed-batch-size"}


@verb
def export(
    artifact: Path | str,
    *,
    format: ExportFormat = "onnx",  # noqa: A002  (the flag's name)
    precision: Precision | None = None,
    runtime: Runtime | None = None,
    fixed_batch_size: int | None = None,
    input_type: InputType | None = None,
    input_layout: InputLayout | None = None,
    output: GraphOutput | None = None,
    top_k: int | None = None,
    range_images: int | None = None,
    license: str | None = None,  # noqa: A002  (the flag's name)
    gpus: tuple[str, ...] = (),
    optimal_batch_size: int | None = None,
    max_batch_size: int | None = None,
    workspace_mib: int | None = None,
    optimization_level: int | None = None,
    timing_cache: Path | str | None = None,
    version_compatible: bool | None = None,
    stripped: bool | None = None,
    strict: bool | None = None,
    model: str | None = None,
    out: Path | str | None = None,
    data: DataOptions = DataOptions(),
    evaluation: EvaluationOptions = EvaluationOptions(),
    execution: ExecutionOptions = ExecutionOptions(),
) -> RunResult:
    """Export an artifact or checkpoint to ONNX, from there to TensorRT engines, or to Torch-TensorRT. Validated with images.

    What is None stays as `ONNXConfig`, `TensorRTConfig` and `TorchTensorRTConfig` say, but for the first two.

    Args:
        artifact: artifact folder or file, or the name of published weights; for engines also an ONNX artifact.
        format: what to make.
        precision: of all that is not INT8 or FP8. None: FP32 for `onnx`, else FP16.
        runtime: what a float or FP16 graph is for. None: the TensorRT of the engines, `tensorrt` for `onnx`.
        fixed_batch_size: the only one that the graph takes.
        input_type: `float32`, normalized images, as the artifact takes them; or pixels, which the graph normalizes itself:
            `uint8`, `float32-0-1`, `float32-0-255`.
        input_layout: order of the dimensions.
        output: what is given: `logits`, `probabilities`, or the `top-k` classes; or without the head `features`, pooled, or the
            `feature-map` before the pooling. None: `logits`, and of a network without head `features`.
        top_k: how many classes a `top-k` output gives.
        range_images: training images that tell what overflows in FP16.
        license: of the weights, written into the file.
        gpus: names or compute capabilities, for `tensorrt-rtx`.
        optimal_batch_size: what engines are tuned for.
        max_batch_size: what engines accept.
        workspace_mib: limit of an engine's scratch memory.
        optimization_level: 0 to 5.
        timing_cache: file for `tensorrt`.
        version_compatible: whether later releases of `tensorrt` run the engine too.
        stripped: whether the engine is without weights, to be refitted.
        strict: MatMul and Conv nodes in INT8 or FP8 that an engine runs in float are an error.
        model: variant that the artifact must hold.
        out: folder of the run; None: `runs/FORMAT-VARIANT`.
        data: images to validate with; none named: the digits, for what was trained on them.
        evaluation: gates on top-1 and speed.
        execution: how work is done.

    Raises: RecipeError: if the artifact cannot become that, or a setting is for another format.
    """
    taken = output if output == "features" or output == "feature-map" else None
    settings = {
        "precision": precision,
        "runtime": runtime,
        "batch_size": fixed_batch_size,
        "input_type": input_type,
        "input_layout": input_layout,
        "output": output if taken is None else None,  # what the source gives itself
        "top_k": top_k,
        "range_images": range_images,
        "license": license,
        "gpus": gpus or None,
        "optimal_batch_size": optimal_batch_size,
        "max_batch_size": max_batch_size,
        "workspace_mib": workspace_mib,
        "optimization_level": optimization_level,
        "timing_cache": None if timing_cache is None else str(timing_cache),
        "version_compatible": version_compatible,
        "stripped": stripped,
        "strict": strict,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    _check_settings(format, settings)
    how = create_execution(execution, data.data)
    source = open_artifact(artifact, model, data, how.progress)
    if taken is not None:
        source = with_features(source, taken, artifact, how.progress)
    _check_output(artifact, source, output)
    _check_source(artifact, source, format, settings)
    _check_speed(source, evaluation)
    stages = _stages(source, format, settings, create_gate(evaluation, DEFAULT_MAX_TOP1_DROP_PP))
    images = open_data_for(source, data, how, out, judges=True)
    if images is None:
        refuse(changes_of(evaluation), "export without data", "nothing is validated")
    recipe = create_recipe(
        f"{format}-{source.model.variant}", stages, images, artifact, how.seed, data.preprocess, taken
    )
    run = create_settings("export", recipe.name, out, how, execution, speed_check=evaluation.speed_check)
    return run_stages(recipe, run, source, images)


def _check_settings(to: ExportFormat, settings: dict[str, Any]) -> None:
    """Check that every setting has an effect. Raises: RecipeError: naming the first that has none."""
    for name in settings:
        if to not in _FORMATS.get(name, (to,)):
            raise RecipeError(f"{_flag(name)} does not count for {to}; it is for {' and '.join(_FORMATS[name])}.")
    if "top_k" in settings and settings.get("output") != "top-k":
        raise RecipeError("--top-k counts with --output top-k only; give both.")
    if "range_images" in settings and _precision(to, settings) != "fp16":
        raise RecipeError("--range-images counts with --precision fp16 only; give both.")


def _check_source(path: Path | str, source: Artifact, to: ExportFormat, settings: dict[str, Any]) -> None:
    """Check that the format can be made of the artifact. Raises: RecipeError: if not."""
    scheme = source.scheme
    if source.format == "torch":
        if scheme is not None and "runtime" in settings and _precision(to, settings) == "fp32":
            raise RecipeError(f"--runtime does not count for {path}, which was quantized for {scheme.target}.")
    elif to == "onnx" or (to in _ENGINES and not settings.keys().isdisjoint(("precision", *_GRAPH))):
        raise RecipeError(
            f"{path} is in the format {source.format} already; ONNX, and what its graph takes and gives, is made from a "
            "PyTorch artifact."
        )
    if to in _ENGINES and scheme is not None and not scheme.target.startswith("tensorrt"):
        raise RecipeError(
            f"{path} was quantized for {scheme.target}, with zero points that TensorRT does not read; quantize its FP32 "
            "ancestor with --target tensorrt."
        )


def _check_output(path: Path | str, source: Artifact, output: GraphOutput | None) -> None:
    """Check that a network gives what is asked for. Raises: RecipeError: if it has no head for that."""
    if output is not None and not source.model.num_classes and output not in get_args(FeatureOutput):
        raise RecipeError(
            f"{path} has no head, and gives no {output}; leave --output out, or give it a head with 'convnext-deploy train "
            "--checkpoint FILE --data DIR'."
        )


def _check_speed(source: Artifact, evaluation: EvaluationOptions) -> None:
    """Check that a gate on speed will be judged. Raises: RecipeError: if not."""
    if evaluation.min_speedup is None:
        return
    if quantized_type(source.precision) is None:
        raise RecipeError(
            f"--min-speedup is about INT8 against its float baseline, or FP8, and this artifact is {source.precision}; leave "
            "it out."
        )
    if evaluation.speed_check is False:
        raise RecipeError("--min-speedup is judged by the speed check; leave out --no-speed-check.")


def _stages(source: Artifact, to: ExportFormat, settings: dict[str, Any], gate: Gate) -> list[StageEntry]:
    """Return the stages that lead from the artifact to the format."""
    if to == "torch-tensorrt":
        return [StageEntry("program", TorchTensorRTConfig(**settings), SOURCE, gate)]
    stages: list[StageEntry] = []
    graph = {name: value for name, value in settings.items() if name in ("precision", *_GRAPH)}
    engine = {name: value for name, value in settings.items() if name not in graph}
    usual = {"precision": "fp16", "runtime": to} if to in _ENGINES else {}
    if source.format == "torch":
        stages.append(StageEntry("onnx", ONNXConfig(**{**usual, **graph}), SOURCE, gate))
    if to in _ENGINES:
        if "batch_size" in graph:
            engine = {"max_batch_size": max(graph["batch_size"], TensorRTConfig.max_batch_size), **engine}
        if to in _RTX and quantized_type(source.precision) == "FP8":
            engine = {"gpus": GPUS_OF_FP8, **engine}
        config = TensorRTConfig(flavor="tensorrt-rtx" if to == "tensorrt-rtx" else "tensorrt", **engine)
        stages.append(StageEntry("engine", config, stages[-1].name if stages else SOURCE, gate))
    return stages


def _precision(to: ExportFormat, settings: dict[str, Any]) -> str:
    return str(settings.get("precision", "fp16" if to in _ENGINES else "fp32"))


def _flag(name: str) -> str:
    return _FLAGS.get(name, f"--{name.replace('_', '-')}")
