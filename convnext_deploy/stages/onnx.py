"""Export to ONNX: FP32, folded here, or INT8 as explicit Q/DQ, folded before it was quantized."""

from __future__ import annotations

import dataclasses

from convnext_deploy.artifact import Artifact, describe_file
from convnext_deploy.exporters.onnx_float import export_float, save_onnx
from convnext_deploy.exporters.patches import as_patch_linear
from convnext_deploy.exporters.qdq import insert_qdq
from convnext_deploy.models.fold import drop_identities, fold
from convnext_deploy.network import load_network
from convnext_deploy.quantization.prepare import quantized_layers, read_sites, without_quantizers
from convnext_deploy.quantization.scheme import read_scheme
from convnext_deploy.spec import file_header
from convnext_deploy.stage_config import ONNXConfig
from convnext_deploy.stages.context import StageContext, require_source


def run(config: ONNXConfig, source: Artifact | None, context: StageContext) -> Artifact:
    """Write `model.onnx` with dynamic batch, input `images`, output `logits`."""
    source = require_source(source, "onnx")
    network, scheme = load_network(source), read_scheme(source.details)
    with context.progress.task(f"{context.name}: export", 1) as task:
        sites = read_sites(network)
        patches = [name for name, layer in quantized_layers(network) if layer.patches]
        plain = without_quantizers(network)
        if scheme is None:
            plain = fold(plain, source.preprocess).network
        plain = as_patch_linear(drop_identities(plain), patches)
        proto = export_float(plain, source.model.in_channels, source.preprocess.image_size)
        if sites:
            proto = insert_qdq(proto, sites)
        path = context.output / "model.onnx"
        header = file_header(source.model, source.preprocess, source.class_names, source.precision)
        save_onnx(proto, path, {**header, "details": scheme.details() if scheme else {}})
        task.advance()
    return dataclasses.replace(
        source,
        path=context.output,
        format="onnx",
        files=(describe_file(path),),
        details={**(scheme.details() if scheme else {}), "quantized_layers": len(sites)},
    )
