"""Graphs as other tools write them: by hand, by both exporters of PyTorch, and by ONNX Runtime's quantizer."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import timm
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from torch import nn

from convnext_deploy.graphs.compute_nodes import AnalyzedGraph, find_compute_nodes
from convnext_deploy.graphs.onnx_view import view_graph

SIDE = 32


def graph_of(
    body: str,
    x: str = "float[batch,8,6,6]",
    y: str = "float[batch,c,h,w]",
    opset: int = 20,
    ir: int = 10,
    **tensors: Any,
) -> onnx.ModelProto:
    """Return a graph from `x` to `y` whose nodes are written in ONNX's own text, with tensors by name."""
    text = f'<ir_version: {ir}, opset_import: ["" : {opset}, "com.microsoft" : 1]>\ng ({x} x) => ({y} y) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    for name, values in tensors.items():
        if values is not None:  # the body makes it
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    return model


def analyze(model: onnx.ModelProto) -> AnalyzedGraph:
    """Return what rules are applied to."""
    return find_compute_nodes(view_graph(ir.from_proto(model)))


def random_weight(*shape: int, dtype: type[np.generic] = np.float32) -> NDArray[Any]:
    """Return weights of a usual size, or integers over the whole range."""
    rng = np.random.default_rng(len(shape))
    if np.issubdtype(dtype, np.integer):
        return rng.integers(-127, 128, shape).astype(dtype)
    return rng.normal(0, 0.2, shape).astype(dtype)


def scales(count: int | None = None, dtype: type[np.generic] = np.float32) -> NDArray[Any]:
    """Return one scale, or one for each of `count` channels."""
    return np.array(0.02, dtype) if count is None else np.linspace(0.01, 0.03, count).astype(dtype)


def zeros(count: int | None = None, dtype: type[np.generic] = np.int8) -> NDArray[Any]:
    """Return zero points to go with `scales`."""
    return np.zeros(() if count is None else count, dtype)


PAIR = "q = QuantizeLinear (x, s, z) xd = DequantizeLinear (q, s, z)"
CONV = f"{PAIR} wd = DequantizeLinear <axis = 0> (w, ws, wz) y = Conv <pads = [1, 1, 1, 1]> (xd, wd)"
MATMUL = f"{PAIR} wd = DequantizeLinear <axis = 1> (w, ws, wz) y = MatMul (xd, wd)"
GEMM = f"{PAIR} wd = DequantizeLinear <axis = 0> (w, ws, wz) y = Gemm <transB = 1> (xd, wd, b)"


def conv(body: str = CONV, **changes: Any) -> onnx.ModelProto:
    """Return an INT8 convolution of 8 to 4 channels; `changes` replace its tensors."""
    tensors = {
        "w": random_weight(4, 8, 3, 3, dtype=np.int8),
        "ws": scales(4),
        "wz": zeros(4),
        "s": scales(),
        "z": zeros(),
    }
    return graph_of(body, **(tensors | changes))


def matmul(body: str = MATMUL, **changes: Any) -> onnx.ModelProto:
    """Return an INT8 linear layer of 16 to 4 features; `changes` replace its tensors."""
    tensors = {"w": random_weight(16, 4, dtype=np.int8), "ws": scales(4), "wz": zeros(4), "s": scales(), "z": zeros()}
    shapes = {"x": "float[batch,6,16]", "y": "float[batch,6,n]"}
    return graph_of(body, **(shapes | tensors | changes))


def gemm(body: str = GEMM, **changes: Any) -> onnx.ModelProto:
    """Return an INT8 linear layer of 16 to 4 features as Gemm; `changes` replace its tensors."""
    tensors = {"w": random_weight(4, 16, dtype=np.int8), "ws": scales(4), "wz": zeros(4), "s": scales(), "z": zeros()}
    return graph_of(
        body, **({"x": "float[batch,16]", "y": "float[batch,n]", "b": random_weight(4)} | tensors | changes)
    )


@torch.no_grad()
def timm_model(version: int = 2, **changes: Any) -> nn.Module:
    """Return a small timm ConvNeXt of a version, whose parameters all differ."""
    sizes: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (16, 32, 48, 64), "num_classes": 5, "conv_mlp": False}
    with torch.random.fork_rng([]):
        torch.manual_seed(version)
        model: nn.Module = timm.create_model(
            "convnextv2_atto" if version == 2 else "convnext_atto", **(sizes | changes)
        )
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def export_new(model: nn.Module, path: Path, *, dynamic: bool = True) -> Path:
    """Write a model as `torch.onnx.export(dynamo=True)` does."""
    images = torch.zeros(2 if dynamic else 1, 3, SIDE, SIDE)
    shapes = ({0: torch.export.Dim("batch", min=1)},) if dynamic else None
    with _quiet():
        program = torch.onnx.export(
            model, (images,), dynamo=True, dynamic_shapes=shapes, input_names=["images"], verbose=False
        )
    assert program is not None
    program.save(path)
    return path


def export_old(model: nn.Module, path: Path, opset: int) -> Path:
    """Write a model as PyTorch's former exporter, from its own traces, did."""
    with _quiet():
        torch.onnx.export(
            model,
            (torch.zeros(1, 3, SIDE, SIDE),),
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
        )
    return path


class _Images(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.batches: Iterator[dict[str, Any]] = iter(
            [{"images": rng.normal(0, 1, (2, 3, SIDE, SIDE)).astype(np.float32)} for _ in range(2)]
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self.batches, None)


def quantize_with_onnxruntime(path: Path, out: Path, **options: Any) -> Path:
    """Quantize a file with `quantize_static` and write it to `out`."""
    with _quiet():
        quantize_static(path, out, _Images(), **options)
    return out


@contextmanager
def _quiet() -> Iterator[None]:
    # both tools print and warn about themselves
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
