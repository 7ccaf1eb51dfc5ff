"""What a stage would make, and why it could not: known before any work from settings, inputs and this machine alone.

A stage itself checks all of this again. Here it is found before the hours that the stages in front of it take.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import Format
from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.engine import TensorRTConfig, TorchTensorRTConfig
from convnext_deploy.config.onnx import ONNXConfig
from convnext_deploy.config.ptq import PTQConfig
from convnext_deploy.config.quantize import QATConfig, QuantizeConfig
from convnext_deploy.config.recipe import StageEntry
from convnext_deploy.config.train import TrainConfig
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import RecipeError
from convnext_deploy.exporters.tensorrt.bindings import RELEASES, import_tensorrt, require_gpu
from convnext_deploy.exporters.tensorrt.build import check_gpus, check_options
from convnext_deploy.exporters.tensorrt.torch_tensorrt import import_torch_tensorrt
from convnext_deploy.models.variants import build_model, resolve_variant
from convnext_deploy.quantization.scheme import resolve_scheme
from convnext_deploy.stages.onnx import output_of
from convnext_deploy.stages.teachers import check_teacher
from convnext_deploy.stages.tensorrt import build_options
from convnext_deploy.stages.training_setup import model_of
from convnext_deploy.system.gpu_models import resolve_gpus
from convnext_deploy.training.schedule import autocast_dtype
from convnext_deploy.training.torch_compile import check_compiler


@dataclass(frozen=True)
class Outlook:
    """What is known of an artifact that may not be there yet.

    `name`: of the stage, or where it lies. `artifact`: the thing itself; None: it is still to be made. `target`: what it is
    quantized for.
    """

    name: str
    format: Format
    precision: str
    model: ModelSpec
    target: str | None = None
    artifact: Artifact | None = None


def outlook_of(artifact: Artifact) -> Outlook:
    """Return what is known of an artifact that is there."""
    return Outlook(
        str(artifact.main_file), artifact.format, artifact.precision, artifact.model, artifact.target, artifact
    )


def foresee(stage: StageEntry, inputs: Mapping[str, Outlook], data: Data | None, device: str) -> Outlook | None:
    """Return what a stage would make of its inputs, by their roles; None for a kind of which nothing is known here.

    Raises: DeployError: what the stage would end with.
    """
    config, source = stage.config, inputs.get("source")
    if isinstance(config, TrainConfig | DistillConfig):
        return _train(stage, config, inputs, data, device)
    if source is None:
        return None
    if isinstance(config, PTQConfig | QuantizeConfig | QATConfig):
        return _quantize(stage, config, inputs, data, device)
    if isinstance(config, ONNXConfig):
        _expect(stage, source, "torch", "ONNX is made of a PyTorch artifact")
        classes = source.model.num_classes
        output_of(config, source.model, source.name)
        if config.output == "top-k" and config.top_k > classes:
            raise RecipeError(
                f"stage '{stage.name}': the {config.top_k} largest of {classes} classes were asked for; set top_k to 1 to "
                f"{classes}."
            )
        quantized = source.precision != "fp32"
        precision = {"fp16": f"{source.precision}-fp16" if quantized else "fp16"}.get(
            config.precision, source.precision
        )
        return replace(source, name=stage.name, format="onnx", precision=precision, artifact=None)
    if isinstance(config, TensorRTConfig):
        return _build(stage, config, source)
    if isinstance(config, TorchTensorRTConfig):
        _expect(stage, source, "torch", "Torch-TensorRT compiles a PyTorch artifact")
        if source.precision != "fp32":
            raise RecipeError(
                f"stage '{stage.name}': {source.name} is quantized, and Torch-TensorRT would run its quantizers in PyTorch; take "
                "its float source."
            )
        import_torch_tensorrt()
        return replace(source, name=stage.name, format="torch-tensorrt", artifact=None)
    return None


def _expect(stage: StageEntry, source: Outlook, expected: Format, why: str) -> None:
    if source.format != expected:
        raise RecipeError(f"stage '{stage.name}': {source.name} is in the format {source.format}; {why}.")


def _train(
    stage: StageEntry,
    config: TrainConfig | DistillConfig,
    inputs: Mapping[str, Outlook],
    data: Data | None,
    device: str,
) -> Outlook:
    asked = config.model
    _check_fit(config, device)
    start = inputs.get("source") or inputs.get("weights")
    if start is not None:
        _expect(stage, start, "torch", "a training starts from a PyTorch artifact")
        if start.precision != "fp32":
            raise RecipeError(f"stage '{stage.name}': {start.name} is {start.precision}; a training starts from FP32.")
    classes = 0 if data is None else len(data.class_names)
    if data is not None and (start is None or start.artifact is not None):
        spec, _ = model_of(asked, data, None if start is None else start.artifact)
    else:
        spec = ModelSpec(resolve_variant(asked.name), classes, asked.in_channels, asked.patch_size)
        for name in ("variant", "in_channels", "patch_size") if start is not None else ():
            found, wanted = getattr(start.model, name) if start else None, getattr(spec, name)
            if found != wanted:
                raise RecipeError(
                    f"stage '{stage.name}': its source cannot be fine-tuned as asked: its {name} is {found}, this stage asks for "
                    f"{wanted}."
                )
    _check_teachers(stage, inputs, data, spec)
    return Outlook(stage.name, "torch", "fp32", spec)


def _check_fit(config: TrainConfig | DistillConfig | QATConfig | QuantizeConfig, device: str) -> None:
    autocast_dtype(config.fit.autocast, device)
    if config.fit.compile:
        check_compiler(is_cuda=device == "cuda", wanted_by="compile = true", instead="leave compile out")


def _check_teachers(stage: StageEntry, inputs: Mapping[str, Outlook], data: Data | None, student: ModelSpec) -> None:
    channels, config = student.in_channels, stage.config
    by_features = config.method == "feature" if isinstance(config, DistillConfig) else not student.num_classes
    for role, teacher in inputs.items():
        if not role.startswith("teacher"):
            continue
        if teacher.artifact is not None and data is not None:
            check_teacher(teacher.artifact, data, channels, features_alone=by_features)
        elif teacher.model.in_channels != channels:
            raise RecipeError(
                f"stage '{stage.name}': the teacher {teacher.name} takes {teacher.model.in_channels} channels, the student "
                f"{channels}; both see the same images."
            )


def _quantize(
    stage: StageEntry,
    config: PTQConfig | QuantizeConfig | QATConfig,
    inputs: Mapping[str, Outlook],
    data: Data | None,
    device: str,
) -> Outlook:
    source = inputs["source"]
    _expect(stage, source, "torch", "quantization starts from a PyTorch artifact")
    if not isinstance(config, PTQConfig):
        _check_fit(config, device)
        _check_teachers(stage, inputs, data, source.model)
    if isinstance(config, QATConfig):
        if not source.precision.startswith("int8"):
            raise RecipeError(
                f"stage '{stage.name}': {source.name} has no quantizers to train; QAT starts from a PTQ artifact."
            )
        return replace(source, name=stage.name, artifact=None)
    if source.precision != "fp32":
        raise RecipeError(
            f"stage '{stage.name}': {source.name} is already {source.precision}; quantize its FP32 ancestor."
        )
    with torch.device("meta"):  # names alone are looked up
        network = build_model(source.model)
    layers = (name for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d))
    resolve_scheme(config.target, config.sites).select(layers)
    return replace(source, name=stage.name, precision="int8", target=config.target, artifact=None)


def _build(stage: StageEntry, config: TensorRTConfig, source: Outlook) -> Outlook:
    _expect(stage, source, "onnx", "engines are built from an ONNX artifact")
    if source.target is not None and not source.target.startswith("tensorrt"):
        raise RecipeError(
            f"stage '{stage.name}': {source.name} was quantized for {source.target}, with zero points that TensorRT does not read; "
            "quantize for the target tensorrt."
        )
    require_gpu(config.flavor)
    trt = import_tensorrt(config.flavor)
    check_options(config.flavor, build_options(config))
    if RELEASES[config.flavor].builds_for_gpus:
        check_gpus(trt, resolve_gpus(config.gpus))
    return replace(source, name=stage.name, format="tensorrt", artifact=None)
