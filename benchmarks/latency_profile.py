"""Where the time goes in our INT8 forms, by the runtimes' own profiles: `latency.py --profile`.

A part is the sum over its kernels of each one's median time. OpenVINO's products have the GELU, the quantization and the residual
sum in them. They are the floor: no graph of a runtime computes the network in less than its products take.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latency_candidates import KINDS
from latency_files import Files

from convnext_deploy.artifact import Artifact
from convnext_deploy.models.variants import resolve_variant
from convnext_deploy.runners.session_options import onnxruntime_entries, openvino_properties
from convnext_deploy.validation.latency import noise_images

_WARM_UP, _CALLS = 5, 20
_PARTS = {
    "MatMulIntegerToFloat": "products",
    "MatMulInteger": "products",
    "MatMul": "products",
    "FusedMatMul": "products",
    "Gemm": "products",
    "FullyConnected": "products",
    "QLinearConv": "products",
    "Conv": "products",
    "FusedConv": "products",
    "Convolution": "products",
    "Gelu": "GELU",
    "BiasGelu": "GELU",
    "FastGelu": "GELU",
    "QuickGelu": "GELU",
    "LayerNormalization": "norms",
    "MVN": "norms",
    "QuantizeLinear": "quantization",
    "DequantizeLinear": "quantization",
    "FakeQuantize": "quantization",
}
Kernels = Iterator[tuple[str, str, float]]  # name, part, milliseconds, once for each call


def print_profiles(arguments: argparse.Namespace) -> None:
    """Print milliseconds and share of each part for both forms of every network and batch size."""
    for model in arguments.models:
        files = Files(resolve_variant(model), arguments.image_size, arguments)
        for size in arguments.batch_sizes:
            for name, profile in (("ours-int8-onnxruntime", _onnxruntime), ("ours-int8-openvino", _openvino)):
                artifact = files.artifact(KINDS[name], size)
                assert artifact is not None
                print(f"\n{files.variant}, batch {size}, {name}:")
                print(_render(profile(artifact, size, arguments.threads)))


def _render(kernels: Kernels) -> str:
    """Return a Markdown table of the parts, the largest first."""
    calls: dict[tuple[str, str], list[float]] = {}
    for name, part, milliseconds in kernels:
        calls.setdefault((part, name), []).append(milliseconds)
    times: dict[str, float] = {}
    for (part, _), found in calls.items():
        times[part] = times.get(part, 0.0) + statistics.median(found)
    total = sum(times.values())
    ordered = sorted(times.items(), key=lambda item: -item[1])
    lines = [f"| {part} | {ms:.2f} | {100 * ms / total:.0f} % |" for part, ms in ordered]
    return "\n".join(["| | ms | |", "|---|---|---|", *lines, f"| all kernels | {total:.2f} | |"])


def _onnxruntime(artifact: Artifact, batch_size: int, threads: int) -> Kernels:
    import onnxruntime

    images = noise_images(batch_size, (3, artifact.preprocess.image_size, artifact.preprocess.image_size))
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, threads
        for key, value in onnxruntime_entries(alone=True).items():
            options.add_session_config_entry(key, value)
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(artifact.main_file), options, providers=["CPUExecutionProvider"])
        source = session.get_inputs()[0].name
        for _ in range(_WARM_UP + _CALLS):
            session.run(None, {source: images})
        events = json.loads(Path(session.end_profiling()).read_text())
    runs = [event["ts"] for event in events if event["name"] == "model_run"]
    begin = sorted(runs)[_WARM_UP]
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time") and event["ts"] >= begin:
            arguments = event["args"]
            shapes = [next(iter(shape.values())) for shape in arguments.get("input_type_shape", [])]
            part = _part(arguments["op_name"], _is_depthwise(arguments["op_name"], shapes))
            yield event["name"], part, event["dur"] / 1000


def _is_depthwise(operator: str, shapes: list[list[int]]) -> bool:
    """Tell a depthwise convolution `(C, 1, h, w)` from others by its weight; there are no others with one input channel."""
    return "Conv" in operator and any(len(shape) == 4 and shape[1] == 1 and shape[2] > 1 for shape in shapes[1:])


def _openvino(artifact: Artifact, batch_size: int, threads: int) -> Kernels:
    import openvino

    side = artifact.preprocess.image_size
    core = openvino.Core()
    model = core.read_model(str(artifact.main_file))
    model.reshape([batch_size, 3, side, side])
    properties: dict[str, Any] = {**openvino_properties("artifact", artifact.precision, threads), "PERF_COUNT": True}
    compiled = core.compile_model(model, "CPU", properties)
    request = compiled.create_infer_request()
    images = noise_images(batch_size, (3, side, side))
    for _ in range(_WARM_UP):
        request.infer([images])
    for _ in range(_CALLS):
        request.infer([images])
        for node in request.profiling_info:
            milliseconds = node.real_time.total_seconds() * 1000
            if milliseconds:
                yield node.node_name, _part(node.node_type, "dw" in node.exec_type), milliseconds


def _part(operator: str, is_depthwise: bool) -> str:
    return "depthwise convolutions" if is_depthwise else _PARTS.get(operator, f"rest: {operator}")
