"""The precision of files that ONNX Runtime's quantizers and converters write is told by their nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from convnext_deploy.graphs.onnx_view import open_view
from convnext_deploy.graphs.precision import read_precision
from tests.graphs.others_graphs import MATMUL, conv, graph_of, matmul, random_weight, scales, zeros

HALF = np.float16


class Reader(CalibrationDataReader):  # type: ignore[misc]  # the package is not typed
    def __init__(self) -> None:
        self.left = [{"x": np.random.default_rng(0).normal(size=(2, 8, 6, 6)).astype(np.float32)}]

    def get_next(self) -> dict[str, Any] | None:
        return self.left.pop() if self.left else None


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    body = "a = Conv (x, v) b = Transpose <perm = [0, 2, 3, 1]> (a) y = MatMul (b, w)"
    path = tmp_path_factory.mktemp("float") / "float.onnx"
    onnx.save(graph_of(body, v=random_weight(4, 8, 1, 1), w=random_weight(4, 5)), path)
    return path


def precision_of(model: onnx.ModelProto, folder: Path) -> str:
    onnx.save(model, folder / "model.onnx")
    return read_precision(open_view(folder / "model.onnx"))


def test_files_of_onnxruntime_are_called_what_they_compute_on(source: Path, tmp_path: Path) -> None:
    found = {"float": read_precision(open_view(source))}
    quantize_dynamic(str(source), str(tmp_path / "dynamic.onnx"))
    for name, kinds in {
        "qlinear": {"quant_format": QuantFormat.QOperator},
        "pairs": {"quant_format": QuantFormat.QDQ},
        "16-bit": {"quant_format": QuantFormat.QDQ, "activation_type": QuantType.QUInt16},
    }.items():
        quantize_static(str(source), str(tmp_path / f"{name}.onnx"), Reader(), **kinds)
    found |= {path.stem: read_precision(open_view(path)) for path in tmp_path.glob("*.onnx")}
    assert found == {"float": "fp32", "dynamic": "int8", "qlinear": "int8", "pairs": "int8", "16-bit": "int16"}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (conv(), "int8"),
        (conv(x="float16[batch,8,6,6]", y="float16[batch,4,6,6]", s=scales(dtype=HALF), ws=scales(4, HALF)), "int8-fp16"),
        # both halves of a pair are there, and no node multiplies what they make
        (graph_of("q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z)", s=scales(), z=zeros()), "fp32"),
        (matmul(MATMUL.replace("MatMul (xd", "MatMul (x")), "int8"),
        (graph_of("y = MatMul (x, w)", x="float16[n,6]", y="float16[n,4]", w=random_weight(6, 4, dtype=HALF)), "fp16"),
        # stored in half the bytes, computed in FP32
        (graph_of("v = Cast <to = 1> (w) y = MatMul (x, v)", x="float[n,6]", w=random_weight(6, 4, dtype=HALF)), "fp32"),
        (
            graph_of("v = Cast <to = 16> (w) c = MatMul (x, v) y = Cast <to = 1> (c)", x="bfloat16[n,6]", w=random_weight(6, 4)),
            "bf16",
        ),
    ],
    ids=["int8", "int8-fp16", "pair-alone", "weight-only", "fp16", "fp16-storage", "bf16"],
)  # fmt: skip
def test_nodes_tell_the_precision_and_not_what_is_stored(model: onnx.ModelProto, expected: str, tmp_path: Path) -> None:
    assert precision_of(model, tmp_path) == expected
