"""What `latency.py` compares."""

from __future__ import annotations

from dataclasses import dataclass

OURS, STATIC = "ours", "quantize_static"
WHOLE, RELU, FLOOR = "all", "ReLU instead of GELU", "matrix products and patches alone"
"""Words of variations of our forms, see `latency_ablation.py`: nothing left out, … the least that a graph can be."""


@dataclass(frozen=True)
class Kind:
    """A candidate: `source` is the file that is timed, see `Files.artifact`; `runner` is what times it."""

    words: str
    group: str
    runner: str
    source: str


KINDS: dict[str, Kind] = {
    "ours-int8-onnxruntime": Kind("INT8, target onnxruntime", OURS, "onnxruntime", "stage int8-onnxruntime"),
    "ours-int8-openvino": Kind("INT8, target openvino", OURS, "openvino", "stage int8-openvino"),
    "ours-bf16-openvino": Kind("bf16, form for openvino", OURS, "openvino-bf16", "stage float-openvino"),
    "ours-fp32-openvino": Kind("FP32, form for openvino", OURS, "openvino-fp32", "stage float-openvino"),
    "ours-fp32-onnxruntime": Kind("FP32, form for onnxruntime", OURS, "onnxruntime", "stage float-onnxruntime"),
    "ours-compiled": Kind("FP32, compiled", OURS, "torch-compile", "weights"),
    "ours-eager": Kind("FP32, eager", OURS, "torch", "weights"),
    "nncf": Kind("INT8, defaults", "NNCF", "openvino", "peer nncf-openvino"),
    "nncf-transformer": Kind("INT8, TRANSFORMER", "NNCF", "openvino", "peer nncf-openvino-transformer"),
    "ort-u8s8-products": Kind("U8S8, MatMul, Gemm, Conv", STATIC, "onnxruntime", "peer ort-u8s8-products"),
    "ort-u8s8": Kind("U8S8, default operators", STATIC, "onnxruntime", "peer ort-u8s8-minmax"),
    "ort-s8s8": Kind("S8S8 symmetric", STATIC, "onnxruntime", "peer ort-s8s8-minmax"),
    "modelopt": Kind("INT8", "Model Optimizer", "onnxruntime", "peer modelopt-max"),
    "timm-bf16-openvino": Kind("bf16", "timm's export", "openvino-bf16", "timm.onnx"),
    "timm-fp32-openvino": Kind("FP32", "timm's export", "openvino-fp32", "timm.onnx"),
    "timm-fp32-onnxruntime": Kind("FP32", "timm's export", "onnxruntime", "timm.onnx"),
    "timm-eager": Kind("FP32, eager", "timm", "torch", "timm"),
}
