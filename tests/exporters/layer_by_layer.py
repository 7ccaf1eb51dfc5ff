"""Compare ONNX Runtime with PyTorch layer by layer."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.quantization.fake_quantize import quantize
from convnext_deploy.quantization.prepare import quantized_layers, read_sites


@torch.no_grad()
def check_every_layer(quantized: ConvNeXt, graph: onnx.ModelProto, images: NDArray[np.float32]) -> None:
    """Compare layer by layer, each with the very input that it has in ONNX Runtime: first its integers, then what it makes of them.

    So nothing that one layer rounds otherwise reaches the next; end to end, random networks amplify it, which trained ones do not
    (`tests/quantization/test_integer_reference.py`).
    """
    sites = read_sites(quantized)
    nodes = {node.output[0]: node for node in graph.graph.node}
    layers = dict(quantized_layers(quantized))
    sources, results, convolutions = {}, {}, set()
    for name in sites:
        reads = nodes[f"{name}.input_quantized"].input[0]
        sources[name] = nodes[reads].input[0] if reads == f"{name}.input_shifted" else reads
        own = [n for n in graph.graph.node if n.doc_string == name and n.op_type in ("MatMul", "Gemm", "Conv", "Add")]
        last = own[-1].output[0]
        if own[-1].op_type == "Conv" and isinstance(layers[name], nn.Linear):
            convolutions.add(name)
        results[name] = f"{name}.output_quantized" if last == f"{name}.output" else last
    integers = [f"{name}.input_quantized" for name in sites]
    tensors = list(dict.fromkeys([*sources.values(), *results.values(), *integers]))
    values = run_all(graph, [tensor for tensor in tensors if tensor != "images"], images)
    for name, layer in layers.items():
        scale, zero_point = layer.input_quantizer.qparams()
        here = torch.from_numpy(values[f"{name}.input_quantized"].astype(np.float32))
        if not layer.input_shift:
            assert float(zero_point) == float(sites[name].input.zero_point)
        x = torch.from_numpy(values[sources[name]])
        there = quantize(x, scale, zero_point, layer.input_quantizer.scheme)
        assert (here == there).double().mean() >= 0.9999, f"{name}: more than ties"
        step = there.abs().max() / 8 if layer.input_quantizer.scheme.floating else 1  # of FP8 the largest
        assert (here - there).abs().max() <= step
        x = (here - zero_point) * scale
        x = x.movedim(1, -1) if name in convolutions else x
        expected = layer(from_patches(x, layer.weight) if layer.patches else x).numpy()
        expected = np.moveaxis(expected, 1, -1) if layer.patches else expected
        found, grid = values[results[name]], sites[name].output
        found = np.moveaxis(found, 1, -1) if name in convolutions else found
        if grid is None:
            assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max(), name
        else:
            last = isinstance(layer, nn.Linear) or grid.scale.ndim == 0
            steps = np.rint(expected / (grid.scale if last else grid.scale.reshape(-1, 1, 1)))
            apart = np.abs(found.astype(np.int64) - steps - int(grid.zero_point.flat[0]))
            assert apart.max() <= 1, name
            assert (apart != 0).mean() <= 1e-3, name


def from_patches(rows: Tensor, weight: Tensor) -> Tensor:
    """Return the image `(N, C, H, W)` of its patches `(N, h, w, p q C)`."""
    images, height, width, _ = rows.shape
    _, channels, p, q = weight.shape
    parts = rows.reshape(images, height, width, p, q, channels).permute(0, 5, 1, 3, 2, 4)
    return parts.reshape(images, channels, height * p, width * q)


def run_all(graph: onnx.ModelProto, tensors: list[str], images: NDArray[np.float32]) -> dict[str, NDArray[np.generic]]:
    """Return what ONNX Runtime has in these tensors and the images, running the graph as it is written."""
    graph = copy.deepcopy(graph)
    for tensor in tensors:  # as floats: ONNX Runtime gives no FP8 to Python
        graph.graph.node.append(onnx.helper.make_node("Cast", [tensor], [f"{tensor}/float"], to=1))
        graph.graph.output.append(onnx.helper.make_tensor_value_info(f"{tensor}/float", 1, None))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [f"{tensor}/float" for tensor in tensors]
    return {"images": images, **dict(zip(tensors, session.run(names, {"images": images}), strict=True))}
