"""Explicit quantization: insert QuantizeLinear and DequantizeLinear into a float graph, as every runtime reads them.

Both inputs of a quantized MatMul, Gemm or Conv come from DequantizeLinear: weights are int8 or FP8 initializers with a scale per
output channel, activations have one scale, biases are float. Where a site says so, its input is shifted before, or its output goes
through a pair as well, after a division where its channels have scales of their own. Symmetric int8 and FP8 are what TensorRT's
explicit quantization reads; ONNX Runtime and OpenVINO read uint8 with a zero point too.
"""

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.tape import Tape

from convnext_deploy.errors import ExportError
from convnext_deploy.exporters.onnx.graph_edits import add_constant, finish, put_in_place_of
from convnext_deploy.exporters.onnx.patch_linear import patch_rows
from convnext_deploy.quantization.prepare import ActivationGrid, QuantizedSite

_CHANNEL_AXES = {"MatMul": 1, "Gemm": 0, "Conv": 0}
"""Operator → axis of the output channels in its weight: `(K, N)` for MatMul, `(N, K)` for Gemm with transB, `(N, C, h, w)`."""


def insert_qdq(proto: onnx.ModelProto, sites: Mapping[str, QuantizedSite]) -> onnx.ModelProto:
    """Return the graph with a Q/DQ pair at the input, a DQ at the weight and, where a site has one, a pair at the output.

    Args:
        proto: from `export_float`; its nodes carry the names of their layers in `doc_string`.
        sites: layer name → levels and scales.

    Raises: ExportError: if a site has no MatMul, Gemm or Conv in the graph, or its weight is not where it is expected.
    """
    model = ir.from_proto(proto)
    graph = model.graph
    # A layer's last node that computes: it may lay out its result anew after that.
    last = {node.doc_string: node for node in graph if node.op_type in (*_CHANNEL_AXES, "Add")}
    pending = dict(sites)
    for node in list(graph):
        name = node.doc_string or ""
        if name in pending and node.op_type in _CHANNEL_AXES:
            _quantize_inputs(graph, node, name, pending.pop(name))
            # the MatMul of a linear layer may be followed by the sum with its bias, which is the layer's last node
            _finish_layer(graph, last[name], name, sites[name])
    if pending:
        raise ExportError(
            f"the exported graph has no MatMul, Gemm or Conv for the quantized layers {', '.join(sorted(pending))}."
        )
    return finish(model)


def _quantize_inputs(graph: ir.Graph, node: ir.Node, name: str, site: QuantizedSite) -> None:
    activation, weight = node.inputs[:2]
    assert activation is not None
    assert weight is not None  # the operators have both
    levels = site.weight
    if node.op_type == "Conv" and levels.ndim == 2:  # a linear layer that is exported as a 1×1 convolution
        levels = levels[:, :, None, None]
    elif node.op_type == "MatMul":  # the exporter stores the weight of a linear layer transposed
        levels = (patch_rows(site.weight) if site.weight.ndim == 4 else site.weight).T
    found = None if weight.const_value is None else weight.const_value.shape.numpy()
    if found != levels.shape:
        raise ExportError(f"the weight of '{name}' has shape {found} in the graph, expected {levels.shape}.")
    tape = Tape()
    if site.input.shift is not None:
        shift = add_constant(graph, f"{name}.input_shift", site.input.shift)
        shifted = ir.val(f"{name}.input_shifted")
        activation = tape.op("Add", [activation, shift], doc_string=name, output=shifted)
    dequantized = ir.val(f"{name}.input_dequantized")
    node.replace_input_with(0, _pair(graph, tape, f"{name}.input", activation, dequantized, site.input))
    scale = np.asarray(site.weight_scale / site.output_steps, np.float32)
    parts = [
        add_constant(graph, f"{name}.weight_quantized", levels),
        add_constant(graph, f"{name}.weight_scale", scale),
        add_constant(graph, f"{name}.weight_zero_point", np.zeros(scale.shape, levels.dtype)),
    ]
    axis = {"axis": _CHANNEL_AXES[node.op_type]} if scale.ndim else {}
    dequantized = ir.val(f"{name}.weight_dequantized")
    node.replace_input_with(1, tape.op("DequantizeLinear", parts, axis, doc_string=name, output=dequantized))
    graph.insert_before(node, tape.nodes)


def _finish_layer(graph: ir.Graph, node: ir.Node, name: str, site: QuantizedSite) -> None:
    tape, value = Tape(), node.outputs[0]
    if site.bias is not None:
        bias = add_constant(graph, f"{name}.bias_rounded", (site.bias / site.output_steps).astype(np.float32))
        constants = [place for place, v in enumerate(node.inputs) if v is not None and v.is_initializer()]
        place = 2 if node.op_type in ("Conv", "Gemm") else next(iter(constants), None)
        stored = node.inputs[place] if place in constants else None
        if stored is not None and stored.shape != bias.shape:
            raise ExportError(f"the bias of '{name}' has shape {stored.shape}, expected {bias.shape}.")
        if place is None:
            value = tape.op(
                "Add", [value, bias], doc_string=name, output=put_in_place_of(value, f"{name}.without_bias")
            )
        else:
            node.resize_inputs(max(len(node.inputs), place + 1))  # the exporter leaves out a bias of zeros
            node.replace_input_with(place, bias)
    if site.output is not None:
        result, grid = put_in_place_of(value, f"{name}.output"), site.output
        if grid.scale.ndim:
            # A pair with scale 1, because the layer's result is divided by its scales already (in its weight scales and bias), and
            # a Mul by them: a runtime that fuses QuantizeLinear into its integer kernel takes one scale there, and a Mul by channel
            # is faster than a DequantizeLinear by channel.
            one = ActivationGrid(np.array(1.0, np.float32), grid.zero_point[0])
            steps = _pair(graph, tape, f"{name}.output", value, ir.val(f"{name}.output_steps"), one)
            scales = grid.scale.reshape(-1, 1, 1) if node.op_type == "Conv" else grid.scale
            factor = add_constant(graph, f"{name}.output_channel_scale", scales)
            tape.op("Mul", [steps, factor], doc_string=name, output=result)
        else:
            _pair(graph, tape, f"{name}.output", value, result, grid)
    graph.insert_after(node, tape.nodes)


def _pair(
    graph: ir.Graph, tape: Tape, place: str, source: ir.Value, result: ir.Value, grid: ActivationGrid
) -> ir.Value:
    # The type of the zero point is the type of the levels.
    qparams = [
        add_constant(graph, f"{place}_scale", grid.scale),
        add_constant(graph, f"{place}_zero_point", grid.zero_point),
    ]
    layer, levels = place.rpartition(".")[0], ir.val(f"{place}_quantized")
    levels = tape.op("QuantizeLinear", [source, *qparams], doc_string=layer, output=levels)
    return tape.op("DequantizeLinear", [levels, *qparams], doc_string=layer, output=result)
