"""Where the time goes in our INT8 forms, by the runtimes' own profiles: `latency.py --profile`.

OpenVINO's products have the GELU, the quantization and the residual sum in them. Products are the floor: no graph of a runtime
computes the network in less than they take.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import onnx
from latency_candidates import KINDS
from latency_files import Files, save
from latency_table import render_profile

from convnext_deploy.evaluation.timing.worker_process import Job, run_job

_CANDIDATES = ("ours-int8-onnxruntime", "ours-int8-openvino")
_PARTS = {
    "products": ("MatMul", "Gemm", "FullyConnected", "Conv"),
    "GELU": ("Gelu",),
    "norms": ("LayerNormalization", "MVN"),
    "quantization": ("QuantizeLinear", "FakeQuantize"),
}
"""Part → what the names of its operators have in them."""


def profile(arguments: argparse.Namespace) -> int:
    """Print milliseconds and share of each part, for both forms of every network and batch size; return the exit code."""
    rows = []
    for model in arguments.models:
        files = Files(model, arguments.image_size, arguments)
        for size in arguments.batch_sizes:
            for name in _CANDIDATES:
                artifact = files.artifact(KINDS[name], size)
                assert artifact is not None
                runner = KINDS[name].runner
                job = Job(artifact, runner, "cpu", size, arguments.threads, arguments.seconds, profiled=True)
                depthwise = depthwise_kernels(onnx.load(artifact.main_file, load_external_data=False))
                parts = sum_parts(run_job(job)["kernels"], depthwise)
                rows.append({"model": files.variant, "batch_size": size, "runner": runner, "parts_ms": parts})
    print(render_profile(rows))
    save(rows, arguments)
    return 0


def depthwise_kernels(proto: onnx.ModelProto) -> set[str]:
    """Return the names that kernels of depthwise convolutions may have: ONNX Runtime calls some of its own by the output."""
    return {
        name
        for node in proto.graph.node
        if node.op_type == "Conv" and any(a.name == "group" and a.i > 1 for a in node.attribute)
        for name in (node.name, f"{node.output[0]}_nchwc")
    }


def sum_parts(kernels: Sequence[dict[str, Any]], depthwise: set[str]) -> dict[str, float]:
    """Return the milliseconds of each part, the largest first; kernels as `runners.profiling.Kernel` in JSON."""
    times: dict[str, float] = {}
    for kernel in kernels:
        part = _part(kernel, depthwise)
        times[part] = times.get(part, 0.0) + kernel["ms"]
    return dict(sorted(times.items(), key=lambda item: -item[1]))


def _part(kernel: dict[str, Any], depthwise: set[str]) -> str:
    if kernel["operator"] == "GroupConvolution" or depthwise.intersection([kernel["name"], *kernel["nodes"]]):
        return "depthwise convolutions"
    operator = kernel["operator"].replace("DequantizeLinear", "QuantizeLinear")
    return next((part for part, words in _PARTS.items() if any(word in operator for word in words)), "rest")
