"""Build TensorRT engines from an ONNX artifact, and report which of their MatMul/Conv nodes run in INT8 or FP8.

ONNX and what builds are imported when a stage runs: what only looks ahead does without them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from convnext_deploy.artifacts.artifact import Artifact, describe_file, quantized_type
from convnext_deploy.artifacts.details import EngineDetails, PrecisionReport, Profile
from convnext_deploy.config.engine import TensorRTConfig
from convnext_deploy.errors import ArtifactError, ExportError
from convnext_deploy.exporters.tensorrt.bindings import RELEASES, import_tensorrt, require_gpu
from convnext_deploy.exporters.tensorrt.build_options import BuildOptions, check_fp8, check_gpus, check_options
from convnext_deploy.stages.context import StageContext, require_source
from convnext_deploy.stages.foresight import Given, Outlook, given_to
from convnext_deploy.system.cuda_driver import describe_gpu, describe_gpus
from convnext_deploy.system.files import write_bytes
from convnext_deploy.system.gpu_models import resolve_gpus

if TYPE_CHECKING:
    from convnext_deploy.exporters.tensorrt.build import Engine
    from convnext_deploy.graphs.onnx_view import GraphView

THIS_GPU = "this GPU"
_LISTED = 5  # layers that a warning names
# TensorRT-RTX computes FP32 from 8 bits in every convolution, whatever the type of its scales
_EXPECTED = ("Converting conv activation scales to fp32.", "Converting conv weight scales to fp32.")


def check(config: TensorRTConfig) -> None:
    """Raises: RecipeError: if a GPU is unknown."""
    if config.flavor == "tensorrt-rtx":
        resolve_gpus(config.gpus)


def foresee(config: TensorRTConfig, given: Given) -> Outlook:
    """Return what would be made. Raises: DeployError: if it could not be."""
    source = given.need_source("tensorrt")
    given.expect(source, "onnx", "engines are built from an ONNX artifact")
    if source.artifact is None and source.target is not None and not source.target.startswith("tensorrt"):
        raise ArtifactError(  # a file that is there is looked into instead, see `check_scales`
            f"{given.called(source)} was quantized for {source.target}, with zero points that TensorRT does not read; quantize "
            "for the target tensorrt."
        )
    require_gpu(config.flavor)
    trt = import_tensorrt(config.flavor)
    check_options(config.flavor, build_options(config))
    if quantized_type(source.precision) == "FP8":
        check_fp8([gpu or describe_gpus()["gpus"][0]["capability"] for gpu in _targets(config)])
    if RELEASES[config.flavor].builds_for_gpus:
        check_gpus(trt, resolve_gpus(config.gpus))
    return source.made(given.name, format="tensorrt")


def run(config: TensorRTConfig, source: Artifact | None, context: StageContext) -> Artifact:
    """Write one `model.<gpu>.plan` per compute capability, or `model.plan` for the GPU present."""
    from convnext_deploy.exporters.tensorrt.build import build_engine, check_scales, check_turing
    from convnext_deploy.graphs.onnx_view import open_view

    source = require_source(source, "tensorrt")
    # All that can be wrong is found out before the first build, which on a device takes minutes.
    foresee(config, given_to(context, source))
    trt = import_tensorrt(config.flavor)
    options = dataclasses.replace(build_options(config), image=_image_of(source))
    view = open_view(source.main_file)
    check_scales(view)
    gpus = _targets(config)
    if "SM75" in gpus:
        check_turing(view)
    files, reports, warnings = [], dict[str, PrecisionReport | None](), list[str]()
    for gpu in gpus:
        engine = build_engine(
            source.main_file, flavor=config.flavor, gpu=gpu, options=options, progress=context.execution.progress
        )
        path = context.output / (f"model.{gpu.lower()}.plan" if gpu else "model.plan")
        write_bytes(path, engine.plan)
        files.append(describe_file(path))
        place = gpu or THIS_GPU
        found = _report(trt, config, engine, path, view)
        warnings += _judge(found, place, view, config.strict)
        warnings += [f"TensorRT: {line}" for line in engine.warnings if not line.endswith(_EXPECTED)]
        reports[place] = found
        if found is not None and found.requested:
            context.execution.progress.say(f"{context.name}: {place}: {found.summary()}")
    details = EngineDetails(
        config.flavor,
        trt.__version__,
        tuple(gpu for gpu in gpus if gpu),
        engine.batch,
        source.io,
        config.version_compatible,
        config.stripped,
        reports,
        tuple(dict.fromkeys(warnings)),
        None if RELEASES[config.flavor].builds_for_gpus else describe_gpu(),
    )
    return dataclasses.replace(source, path=context.output, files=tuple(files), details=details)


def build_options(config: TensorRTConfig) -> BuildOptions:
    """Return what the settings ask of a build."""
    return BuildOptions(
        Profile(1, config.optimal_batch_size, config.max_batch_size),
        config.workspace_mib,
        config.optimization_level,
        # not Path.expanduser, which raises where there is no such user
        Path(os.path.expanduser(config.timing_cache)) if config.timing_cache else None,  # noqa: PTH111
        config.version_compatible,
        config.stripped,
    )


def _image_of(source: Artifact) -> tuple[int, ...]:
    """Return the shape of an image, for a graph that takes any size."""
    sides, channels = source.preprocess.sides, source.model.in_channels
    return (*sides, channels) if source.io.input_layout == "nhwc" else (channels, *sides)


def _targets(config: TensorRTConfig) -> tuple[str | None, ...]:
    return resolve_gpus(config.gpus) if RELEASES[config.flavor].builds_for_gpus else (None,)


def _report(
    trt: ModuleType, config: TensorRTConfig, engine: Engine, path: Path, view: GraphView
) -> PrecisionReport | None:
    from convnext_deploy.exporters.tensorrt.load import load_engine
    from convnext_deploy.graphs.engine_precisions import inspect_engine, read_layers, read_plan_nodes, report_precisions

    if RELEASES[config.flavor].builds_for_gpus:
        return report_precisions(read_plan_nodes(engine.plan), view)
    if config.stripped:
        return None  # without its weights it cannot be loaded
    loaded = load_engine(trt, config.flavor, engine.plan, path, host_code=config.version_compatible)
    name = view.inputs[0].name
    # types of an engine with an open batch are known for a shape only
    loaded.context.set_input_shape(name, (engine.batch.optimal, *tuple(loaded.engine.get_tensor_shape(name))[1:]))
    return report_precisions(read_layers(inspect_engine(trt, loaded.engine, loaded.context)), view)


def _judge(report: PrecisionReport | None, place: str, view: GraphView, strict: bool) -> list[str]:
    """Return the warnings of a precision report. Raises: ExportError: if one is an error, because `strict` was asked for."""
    from convnext_deploy.graphs.compute_nodes import find_compute_nodes

    quantized = find_compute_nodes(view).quantized_nodes
    if not quantized:
        return []
    kind, asked = quantized[0].quantized_type, len(quantized)
    if report is None:
        return [f"{place}: the engine does not tell which of the {asked} {kind} MatMul/Conv nodes run in {kind}"]
    warnings = []
    if report.fallbacks:
        text = f"{place}: {len(report.fallbacks)} of {asked} {kind} MatMul/Conv nodes run in float: "
        if strict:
            raise ExportError(
                f"{text}{', '.join(report.fallbacks)}. Leave strict out to accept it, or keep these layers in float."
            )
        warnings.append(text + _list(report.fallbacks))
    if report.unseen:
        warnings.append(f"{place}: the engine does not tell how it computes {_list(report.unseen)}")
    return warnings


def _list(layers: Sequence[str]) -> str:
    more = len(layers) - _LISTED
    return ", ".join(layers[:_LISTED]) + (f" and {more} more" if more > 0 else "")
