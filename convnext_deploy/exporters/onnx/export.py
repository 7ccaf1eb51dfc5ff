"""Export a network, float or quantized, to the ONNX graph for a runtime."""

from collections.abc import Callable
from dataclasses import dataclass

import onnx

from convnext_deploy.config.image_size import ImageSize
from convnext_deploy.exporters.onnx.patch_linear import as_patch_linear
from convnext_deploy.exporters.onnx.qdq import insert_qdq
from convnext_deploy.exporters.onnx.runtime_rewrites import rewrite_for
from convnext_deploy.exporters.onnx.trace import export_float
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.models.identities import drop_identities
from convnext_deploy.quantization.prepare import QuantizedSite, quantized_layers, read_sites, without_quantizers


@dataclass(frozen=True)
class NetworkGraph:
    """A network as it was traced, its graph in float, its graph with Q/DQ pairs, and the sites that they are from."""

    network: ConvNeXt
    float_graph: onnx.ModelProto
    graph: onnx.ModelProto
    sites: dict[str, QuantizedSite]


def export_network(
    network: ConvNeXt,
    in_channels: int,
    image_size: ImageSize,
    batch_size: int | None = None,
    *,
    runtime: str = "tensorrt",
    rewrite: Callable[[ConvNeXt, str, bool], ConvNeXt] = rewrite_for,
) -> NetworkGraph:
    """Return the graph of a network for a runtime, from `images (batch, C, S, S)` to `logits (batch, classes)`.

    Args:
        network: folded; calibrated, if it is quantized. It is not changed.
        in_channels: of the images.
        image_size: side, or height and width, in pixels.
        batch_size: the only one that the graph is to take; None: any.
        runtime: `tensorrt`, `tensorrt-rtx`, `onnxruntime` or `openvino`, for which the network is rewritten.
        rewrite: what does so, in place, given the network, the runtime and whether it is quantized.

    Raises: ExportError: if the exporter refuses, or if a site is not in the graph.
    """
    sites = read_sites(network)
    patches = [name for name, layer in quantized_layers(network) if layer.patches]
    plain = as_patch_linear(rewrite(drop_identities(without_quantizers(network)), runtime, bool(sites)), patches)
    exported = export_float(plain, in_channels, image_size, batch_size)
    return NetworkGraph(plain, exported, insert_qdq(exported, sites), sites)
