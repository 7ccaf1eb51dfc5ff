"""Export to ONNX: float, folded here, or INT8 as explicit Q/DQ, folded before it was quantized; in FP32 or FP16.

ONNX and the exporter are imported when a stage runs: what only looks ahead does without them.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from convnext_deploy.artifacts.artifact import Artifact, describe_file
from convnext_deploy.artifacts.details import FP16Record, ONNXDetails
from convnext_deploy.artifacts.spec import GraphIO, ModelSpec, Preprocess, file_header
from convnext_deploy.config.choices import FeatureOutput, GraphOutput
from convnext_deploy.config.onnx import ONNXConfig, check_top_k
from convnext_deploy.errors import ArtifactError
from convnext_deploy.graphs.names import OUTPUT_NAMES
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.models.fold import fold
from convnext_deploy.models.layers import GRN, ScaleNorm
from convnext_deploy.models.zoo.cost import describe_features
from convnext_deploy.stages.chosen_images import choose_images
from convnext_deploy.stages.context import StageContext, require_source
from convnext_deploy.stages.foresight import Given, Outlook, given_to

if TYPE_CHECKING:
    import onnx

_SYNTHETIC_IMAGES = 8
_BATCH_SIZE = 8


def foresee(config: ONNXConfig, given: Given) -> Outlook:
    """Return what would be made. Raises: DeployError: if it could not be."""
    source = given.need_source("onnx")
    given.expect(source, "torch", "ONNX is made of a PyTorch artifact")
    output_of(config, source.model, given.called(source))
    if config.output == "top-k":
        check_top_k(
            config.top_k, source.model.num_classes, given.of_stage(source), multi_label=source.model.multi_label
        )
    precision = source.precision
    if config.precision == "fp16":
        precision = "fp16" if precision == "fp32" else f"{precision}-fp16"
    return source.made(given.name, format="onnx", precision=precision)


def run(config: ONNXConfig, source: Artifact | None, context: StageContext) -> Artifact:
    """Write `model.onnx`, with input `images` and the network's output, such as `logits`, unless asked otherwise."""
    from convnext_deploy.exporters.onnx.export import export_network
    from convnext_deploy.exporters.onnx.fp16 import find_islands, to_half
    from convnext_deploy.exporters.onnx.ort_fusion import fuse_int8_matmuls
    from convnext_deploy.exporters.onnx.pre_post_processing import add_ends
    from convnext_deploy.graphs.onnx_io import save_onnx

    source = require_source(source, "onnx")
    foresee(config, given_to(context, source))
    output = output_of(config, source.model, str(source.path))
    network, scheme = load_network(source), source.scheme
    io = GraphIO(config.input_type, config.input_layout, output, config.top_k, config.batch_size)
    fp16: FP16Record | None = None
    precision = source.precision
    # FP16 is for TensorRT alone, whatever the network was quantized for
    runtime = scheme.target if scheme is not None and config.precision == "fp32" else config.runtime
    with context.execution.progress.task(f"{context.name}: export", 1, "graphs") as task:
        preprocess = source.preprocess
        if scheme is None:
            network = fold(network, preprocess).network
        elif io.white is not None and network.stem.std is not None:
            # it would undo the normalization of pixels that the graph had just made
            network.stem.undo_normalization(None, None)
            count = source.model.in_channels
            preprocess = dataclasses.replace(preprocess, mean=(0.0,) * count, std=(1.0,) * count)
        found = export_network(
            network, source.model.in_channels, source.preprocess.image_size, config.batch_size, runtime=runtime
        )
        proto = add_ends(found.graph, io, preprocess, multi_label=source.model.multi_label)
        if config.precision == "fp16":
            precision = "fp16" if precision == "fp32" else f"{precision}-fp16"
            ranges, images = _measure(config, found.float_graph, preprocess, context)
            islands = find_islands(
                proto, layers_that_sum(found.network), ranges, int8_matmuls=config.runtime == "tensorrt-rtx"
            )
            proto = to_half(proto, islands)
            reasons = dict(sorted(Counter(islands.values()).items()))
            fp16 = FP16Record(config.runtime, reasons, max(ranges.values(), default=0.0), images)
        elif runtime == "onnxruntime":
            proto = fuse_int8_matmuls(proto)
        details = ONNXDetails(
            **(scheme.details() if scheme else {}), io=io, fp16=fp16, quantized_layers=len(found.sites)
        )
        path = context.output / "model.onnx"
        license_ = config.license or source.license
        header = file_header(source.model, source.preprocess, source.class_names, precision, license_)
        if source.class_order is not None:
            header["class_order"] = source.class_order
        save_onnx(proto, path, {**header, "details": dataclasses.asdict(details), "lineage": source.history()})
        task.advance()
    for line in describe_ends(io, source):
        context.execution.progress.say(f"{context.name}: {line}")
    return dataclasses.replace(
        source,
        path=context.output,
        precision=precision,
        files=(describe_file(path),),
        details=details,
        license=license_,
    )


def output_of(config: ONNXConfig, model: ModelSpec, name: str) -> GraphOutput:
    """Return what the graph of a network of this name is to give. Raises: ArtifactError: if the network has no such thing."""
    own, asked = model.output, config.output
    if own == "logits" and asked in get_args(FeatureOutput):
        raise ArtifactError(
            f"{name} is a classifier, and its {asked} cannot be compared with its logits; take its features from the start: "
            f"'convnext-deploy export DIR --output {asked}', or source_output = '{asked}' beside the recipe's source."
        )
    if own != "logits" and asked not in ("logits", own):
        raise ArtifactError(f"{name} is a feature extractor, which gives {own} and no {asked}.")
    return asked if own == "logits" else own


def describe_ends(io: GraphIO, source: Artifact) -> Iterator[str]:
    """Say what a graph takes and gives otherwise than the network that it is made of."""
    if not io.takes_usual_images:
        (height, width), channels = source.preprocess.sides, source.model.in_channels
        usual = f"(N, {channels}, {height}, {width})"
        shape = usual if io.input_layout == "nchw" else f"(N, {height}, {width}, {channels})"
        values = "normalized images" if io.white is None else f"pixels from 0 to {io.white:g}"
        kind = "uint8" if io.input_type == "uint8" else "float32"
        taken = f"normalized images {usual}"
        yield f"the input '{io.input_name}' takes {values} {shape} {kind}; {source.main_file.name} takes {taken}"
    if io.gives_features:
        yield f"the graph gives '{OUTPUT_NAMES[io.output][0]}' {describe_features(source.model, source.preprocess.image_size)}"
    elif io.output != "logits":
        given = " and ".join(f"'{name}'" for name in OUTPUT_NAMES[io.output])
        yield f"the graph gives {given}; {source.main_file.name} gives 'logits'"


def layers_that_sum(network: nn.Module) -> list[str]:
    """Return the names of the layers that sum squares: norms and GRN."""
    return [name for name, m in network.named_modules() if isinstance(m, nn.LayerNorm | ScaleNorm | GRN)]


def _measure(
    config: ONNXConfig, exported: onnx.ModelProto, preprocess: Preprocess, context: StageContext
) -> tuple[dict[str, float], str]:
    """Return the ranges of all tensors of the float network, and the images that they were measured on, in words."""
    from convnext_deploy.exporters.onnx.fp16 import measure_ranges

    if context.data is not None:
        images = choose_images(config.range_images, preprocess, context, config.batch_size or _BATCH_SIZE)
        batches = (batch.cpu().numpy() for batch in images.batches())
        return measure_ranges(exported, _full(batches, config.batch_size)), f"{len(images)} training images"
    context.execution.progress.say(
        f"{context.name}: no --data was given, so what may overflow in FP16 is judged by noise and not by your images"
    )
    shape = (config.batch_size or _SYNTHETIC_IMAGES, len(preprocess.mean), *preprocess.sides)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(context.execution.seed)).numpy()
    return measure_ranges(exported, [noise]), f"{shape[0]} images of noise"


def _full(batches: Iterator[NDArray[np.float32]], size: int | None) -> Iterator[NDArray[np.float32]]:
    """Fill up a last batch that a graph with a frozen batch would not take."""
    for batch in batches:
        yield np.resize(batch, (size or len(batch), *batch.shape[1:]))
