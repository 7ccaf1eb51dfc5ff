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
from latency_files import Files

from convnext_deploy.models.variants import resolve_variant
from convnext_deploy.validation.fresh_process import Job, run_job

_CANDIDATES = ("ours-int8-onnxruntime", "ours-int8-openvino")
_PARTS = {
    "products": ("MatMul", "Gemm", "FullyConnected", "Conv"),
    "GELU": ("Gelu",),
    "norms": ("LayerNormalization", "MVN"),
    "quantization": ("QuantizeLinear", "FakeQuantize"),
}
"""Part → what the names of its operators have in them."""


def print_profiles(arguments: argparse.Namespace) -> None:
    """Print milliseconds and share of each part, for both forms of every network and batch size."""
    for model in arguments.models:
        files = Files(resolve_variant(model), arguments.image_size, arguments)
        for size in arguments.batch_sizes:
            for name in _CANDIDATES:
                artifact = files.artifact(KINDS[name], size)
                assert artifact is not None
                runner = KINDS[name].runner
                job = Job(artifact, runner, "cpu", size, arguments.threads, arguments.seconds, profiled=True)
                depthwise = depthwise_nodes(onnx.load(artifact.main_file, load_external_data=False))
                print(f"\n{files.variant}, batch {size}, {name}:\n")
                print(render(run_job(job)["kernels"], depthwise), flush=True)


def depthwise_nodes(proto: onnx.ModelProto) -> set[str]:
    """Return the names of the depthwise convolutions, and those that ONNX Runtime gives them in its own layout."""
    names = {
        node.name
        for node in proto.graph.node
        if node.op_type == "Conv" and any(a.name == "group" and a.i > 1 for a in node.attribute)
    }
    return names | {f"{name}_nchwc" for name in names}


def render(kernels: Sequence[dict[str, Any]], depthwise: set[str]) -> str:
    """Return a Markdown table of the parts, the largest first; kernels as `runners.profiling.Kernel` in JSON."""
    times: dict[str, float] = {}
    for kernel in kernels:
        part = _part(kernel, depthwise)
        times[part] = times.get(part, 0.0) + kernel["ms"]
    total = sum(times.values())
    ordered = sorted(times.items(), key=lambda item: -item[1])
    lines = [f"| {part} | {ms:.2f} | {100 * ms / total:.0f} % |" for part, ms in ordered]
    return "\n".join(["| | ms | |", "|---|---|---|", *lines, f"| all kernels | {total:.2f} | |"])


def _part(kernel: dict[str, Any], depthwise: set[str]) -> str:
    if depthwise.intersection([kernel["name"], *kernel["nodes"]]):
        return "depthwise convolutions"
    operator = kernel["operator"].replace("DequantizeLinear", "QuantizeLinear")
    return next(
        (part for part, words in _PARTS.items() if any(word in operator for word in words)), f"rest: {operator}"
    )
