"""Find the float baseline of an INT8 artifact: the same network in float for the same runtime, and the stages that make it."""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, TypeVar

from convnext_deploy.artifacts.artifact import Artifact, StageRecord, quantized_type
from convnext_deploy.artifacts.details import EngineDetails
from convnext_deploy.config.engine import TensorRTConfig
from convnext_deploy.config.onnx import ONNXConfig
from convnext_deploy.config.recipe import BASELINE, SOURCE, StageEntry
from convnext_deploy.config.records import read_record
from convnext_deploy.system.cuda_driver import cuda_driver_error, gpu_name

CPU_RUNTIMES = ("onnxruntime", "openvino")
_WITHOUT_EFFECT = ("license", "range_images", "top_k")  # on the speed of a graph
Config = TypeVar("Config", ONNXConfig, TensorRTConfig)


@dataclass(frozen=True)
class FloatBaseline:
    """How to compare an INT8 artifact: the stages that make the float one, in order, of which the last one makes it itself.

    `runner` computes the INT8 artifact, `float_runner` the other one, in calls of each of `batch_sizes` images.
    """

    stages: tuple[StageEntry, ...]
    runner: str
    float_runner: str
    device: str
    batch_sizes: tuple[int, ...]


def is_judged(artifact: Artifact) -> bool:
    """Whether an artifact is INT8 or FP8 as it is deployed: an ONNX graph or an engine."""
    return artifact.format in ("onnx", "tensorrt") and quantized_type(artifact.precision) is not None


def find_float_baseline(
    artifact: Artifact, baseline: str | None, known: Collection[StageEntry], names: Collection[str]
) -> FloatBaseline | str:
    """Return what an INT8 artifact is to be compared with, or in words why it is not measured.

    Args:
        artifact: as `is_judged` says, made by a stage.
        baseline: the name of its nearest FP32 PyTorch ancestor; None if that is not at hand.
        known: stages of the run with the same evaluation transform; one that makes the float baseline already is taken.
        names: those that are taken.
    """
    if reason := _obstacle(artifact):
        return reason
    if baseline is None:
        return "its FP32 ancestor is not at hand, of which the float baseline is made"
    prefix = "" if baseline in (BASELINE, SOURCE) else f"{baseline}-"
    graph, engine = _settings(artifact.lineage, ONNXConfig), _settings(artifact.lineage, TensorRTConfig)
    if graph is None or (engine is None and artifact.format == "tensorrt"):
        return "its history does not say how it was exported"
    if engine is None:
        target: Any = artifact.target  # one of CPU_RUNTIMES
        config = dataclasses.replace(graph, precision="fp32", runtime=target)
        stage = _find(config, baseline, known) or _name(StageEntry(f"{prefix}float-{target}", config, baseline), names)
        return FloatBaseline((stage,), target, _float_runner(target), "cpu", (graph.batch_size or 1,))
    flavor = engine.flavor
    config = dataclasses.replace(graph, precision="fp16", runtime=flavor)
    half = _find(config, baseline, known) or _name(StageEntry(f"{prefix}float-{flavor}-onnx", config, baseline), names)
    built = _find(engine, half.name, known)
    built = built or _name(StageEntry(f"{prefix}float-{flavor}", engine, half.name), names)
    sizes = (graph.batch_size,) if graph.batch_size else tuple(sorted({1, engine.optimal_batch_size}))
    return FloatBaseline((half, built), "tensorrt", "tensorrt", "cuda", sizes)


def _obstacle(artifact: Artifact) -> str | None:
    """Return why an INT8 artifact cannot be measured on the runtime that it is for, here."""
    if artifact.format == "onnx":
        target = artifact.target
        if target == "openvino":
            from convnext_deploy.runners.openvino import is_installed

            return None if is_installed() else "openvino is not installed; pip install 'convnext_deploy[openvino]'"
        if target in CPU_RUNTIMES:
            return None
        return cuda_driver_error() or "this graph is for engines, and they are measured; build some of it"
    if missing := cuda_driver_error():
        return missing
    details = artifact.details_as(EngineDetails)
    if details.gpus and (here := gpu_name()) not in details.gpus:
        return f"built for {', '.join(details.gpus)}, and this GPU is {here}"
    return "it has no weights until they are put back" if details.stripped else None


def _float_runner(target: str) -> str:
    """Return the fastest way to run a float graph that a user of this runtime has."""
    if target != "openvino":
        return target
    from convnext_deploy.runners.openvino import computes_bf16

    return "openvino-bf16" if computes_bf16() else "openvino-fp32"


def _settings(lineage: tuple[StageRecord, ...], config: type[Config]) -> Config | None:
    """Return the settings of the last stage of a kind in a history; None if there is none, or another version made it."""
    record = next((record for record in reversed(lineage) if record.kind == config.kind), None)
    if record is None:
        return None
    try:
        return read_record(config, record.config, record.name)
    except ValueError:
        return None


def _find(config: ONNXConfig | TensorRTConfig, source: str, stages: Collection[StageEntry]) -> StageEntry | None:
    """Return the stage that makes the same of the same source."""

    def what_counts(config: Any) -> dict[str, Any]:
        settings = dataclasses.asdict(config)
        kept = ("top_k",) if settings.get("output") == "top-k" else ()
        return {key: value for key, value in settings.items() if key not in _WITHOUT_EFFECT or key in kept}

    return next(
        (
            stage
            for stage in stages
            if type(stage.config) is type(config)
            and stage.source == source
            and what_counts(stage.config) == what_counts(config)
        ),
        None,
    )


def _name(stage: StageEntry, names: Collection[str]) -> StageEntry:
    """Return the stage under a name that no other has."""
    count, name = 1, stage.name
    while name in names:
        count += 1
        name = f"{stage.name}-{count}"
    return dataclasses.replace(stage, name=name)
