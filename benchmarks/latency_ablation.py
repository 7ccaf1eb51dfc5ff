"""What each trait of our two INT8 forms is worth: `latency.py --ablation` times the whole form and each with one thing otherwise.

Some of the variations look for what is left to gain: the network with another GELU, with FP32 where OpenVINO computes in bf16
by itself, and other networks that say what a part costs: with ReLU instead of GELU, and with nothing but matrix products and
patches, the least that any graph of the runtime can take. The best peers of the runtime are timed beside them.
"""

from __future__ import annotations

import argparse
import copy
import functools
import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from latency_candidates import FLOOR, KINDS, RELU, WHOLE
from latency_files import Files, save
from latency_table import render_ablation, render_floor
from latency_timing import Timer, run_artifact, run_child, time_in_turns
from torch import nn

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.spec import file_header
from convnext_deploy.config.onnx import ONNXConfig
from convnext_deploy.errors import BackendUnavailableError
from convnext_deploy.exporters.onnx.export import export_network
from convnext_deploy.exporters.onnx.ort_fusion import fuse_int8_matmuls
from convnext_deploy.exporters.onnx.runtime_rewrites import rewrite_for
from convnext_deploy.graphs.onnx_io import save_onnx
from convnext_deploy.metrics.ratios import median_ratio
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.models.convnext import Block, ConvNeXt
from convnext_deploy.models.fold import fold
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.quantization.calibration import calibrate
from convnext_deploy.quantization.prepare import prepare
from convnext_deploy.quantization.scheme import resolve_scheme
from convnext_deploy.stages.ptq_steps import STEM

Form = Callable[[ConvNeXt, str, bool], ConvNeXt]


def _keep(network: ConvNeXt, runtime: str, quantized: bool) -> ConvNeXt:
    return network


def _without_convolutions(network: ConvNeXt, runtime: str, quantized: bool) -> ConvNeXt:
    """Take the norms of the form alone."""
    rewritten = rewrite_for(copy.deepcopy(network), runtime, quantized)
    for name, module in rewritten.named_modules():
        if isinstance(module, nn.LayerNorm):
            network.get_submodule(name).__class__ = type(module)
    return network


def _without_norms(network: ConvNeXt, runtime: str, quantized: bool) -> ConvNeXt:
    """Take all of the form but the norms."""
    rewritten = rewrite_for(network, runtime, quantized)
    for module in rewritten.modules():
        if isinstance(module, nn.LayerNorm):
            module.__class__ = nn.LayerNorm
    return rewritten


def _with_activation(name: str, network: ConvNeXt, runtime: str, quantized: bool) -> ConvNeXt:
    rewritten = rewrite_for(network, runtime, quantized)
    for module in rewritten.modules():
        if isinstance(module, Block):
            module.activation = name
    return rewritten


_TANH, _RELU = functools.partial(_with_activation, "gelu_tanh"), functools.partial(_with_activation, "relu")


class _Products(Block):
    """A block of which the linear layers are left, in either form; ReLU, which costs next to nothing, keeps them apart."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(N, H, W, C)` as a block does."""
        if isinstance(self.pwconv1, nn.Linear):
            return self.pwconv2(torch.relu(self.pwconv1(x)))  # type: ignore[no-any-return]  # modules return Any
        return self.pwconv2(torch.relu(self.pwconv1(x.permute(0, 3, 1, 2)))).permute(0, 2, 3, 1)


def _products_alone(network: ConvNeXt, runtime: str, quantized: bool) -> ConvNeXt:
    """Leave the linear layers, the stem and the downsampling."""
    rewritten = rewrite_for(network, runtime, quantized)
    for module in rewritten.modules():
        if isinstance(module, Block):
            module.__class__ = _Products
    return rewritten


@dataclass(frozen=True)
class Variation:
    """A graph: of which target, with which choices for layers, in which form, with ONNX Runtime's own operators or without."""

    words: str
    target: str
    sites: dict[str, str] = field(default_factory=dict)
    form: Form = rewrite_for
    fused: bool = True
    dynamic: bool = False
    runner: str | None = None
    """None: that of the runtime."""


_PEERS = {"openvino": ("nncf", "nncf-transformer"), "onnxruntime": ("ort-u8s8-products", "ort-u8s8")}
"""The candidates of others that run on a runtime and were the fastest there."""
_ZERO_POINT = {"stages.*.pwconv?": "int8", "downsample_layers.[123].1": "int8"}
VARIATIONS: dict[str, tuple[Variation, ...]] = {
    "openvino": (
        Variation(WHOLE, "openvino"),
        Variation("linear layers as matrix products", "openvino", form=_without_convolutions),
        Variation("LayerNorm of four dimensions", "openvino", form=_without_norms),
        Variation("a zero point instead of a shifted input", "openvino", sites=_ZERO_POINT),
        Variation("a graph for any batch", "openvino", dynamic=True),
        Variation("depthwise convolutions in INT8 too", "openvino", sites={"stages.*.dwconv": "int8-output"}),
        Variation("the file for TensorRT", "tensorrt", form=_keep),
        Variation("what stays in float in FP32, not bf16", "openvino", runner="openvino-fp32"),
        Variation("GELU by tanh", "openvino", form=_TANH),
        Variation(RELU, "openvino", form=_RELU),
        Variation(FLOOR, "openvino", form=_products_alone),
    ),
    "onnxruntime": (
        Variation(WHOLE, "onnxruntime"),
        Variation("Q/DQ pairs instead of MatMulIntegerToFloat", "onnxruntime", fused=False),
        Variation("depthwise convolutions in INT8 too", "onnxruntime", sites={"stages.*.dwconv": "int8-output"}),
        Variation("patches by convolutions", "onnxruntime", sites={"downsample_layers.?.?": "int8-output"}),
        Variation("GRN by ReduceL2 (v2)", "onnxruntime", form=_keep),
        Variation("GELU by tanh", "onnxruntime", form=_TANH),
        Variation(RELU, "onnxruntime", form=_RELU),
        Variation(FLOOR, "onnxruntime", form=_products_alone),
    ),
}


def build(files: Files, variation: Variation, path: Path) -> Artifact:
    """Write a variation as ONNX, as the stages would."""
    source, scheme = files.source, resolve_scheme(variation.target, variation.sites)
    pixels = "unit" if scheme.is_site(STEM) else "normalized"
    folded = fold(load_network(source), source.preprocess, pixels=pixels)  # type: ignore[arg-type]  # one of its names
    network = prepare(folded.network, scheme)
    calibrate(network, [torch.from_numpy(files.calibration())], "minmax")
    proto = export_network(network, 3, files.image_size, runtime=variation.target, rewrite=variation.form).graph
    if variation.target == "onnxruntime" and variation.fused:
        proto = fuse_int8_matmuls(proto)
    header = file_header(source.model, source.preprocess, None, "int8", None)
    partial = path.with_suffix(".partial")
    save_onnx(proto, partial, {**header, "details": scheme.details()})
    partial.replace(path)
    return open_input(path)


def ablate(arguments: argparse.Namespace) -> int:
    """Time all variations of all networks and print a table for each runtime."""
    rows = []
    for model in arguments.models:
        files = Files(model, arguments.image_size, arguments)
        for size in arguments.batch_sizes:
            for runtime, variations in VARIATIONS.items():
                timers = {
                    v.words: _timer(files, v, index, runtime, size, arguments)
                    for index, v in enumerate(variations)
                    if v.words == WHOLE or _is_wanted(v.words, arguments)
                }
                timers |= _peers(files, runtime, size, arguments)
                found, not_run = time_in_turns(timers, arguments.rounds, f"{files.variant}, batch {size}, {runtime}")
                place = {"model": files.variant, "batch_size": size, "runner": runtime}
                for words, times in found.items():
                    ratio = median_ratio(times, found[WHOLE]) if times and found[WHOLE] else None
                    rows.append(
                        {**place, "words": words, "processes_ms": times, "ratio": ratio, "not_run": not_run.get(words)}
                    )
                save(rows, arguments)  # an hour of work in all
    print(render_ablation(rows), render_floor(rows), sep="\n\n")
    return 0


def ablation_words() -> tuple[str, ...]:
    """Return what `--candidates` may name: variations of both forms, and peers."""
    own = [variation.words for variations in VARIATIONS.values() for variation in variations]
    return (*dict.fromkeys(own), *(_peer_words(name) for names in _PEERS.values() for name in names))


def _peer_words(name: str) -> str:
    return f"{KINDS[name].group}: {KINDS[name].words}"


def _is_wanted(words: str, arguments: argparse.Namespace) -> bool:
    return any(fnmatchcase(words, pattern) for pattern in arguments.candidates)


@functools.cache
def _version() -> str:
    """Return a name for what makes the graphs, so that those of another version are not taken."""
    return hashlib.sha256(bytes([ONNXConfig.result_version]) + Path(__file__).read_bytes()).hexdigest()[:12]


def _timer(
    files: Files, variation: Variation, index: int, runtime: str, batch_size: int, arguments: argparse.Namespace
) -> Timer:
    path = files.work / f"ablation-{_version()}-{runtime}-{index}.onnx"
    artifact = open_input(path) if path.exists() else build(files, variation, path)
    if variation.dynamic:
        return lambda: run_child(["openvino-dynamic", str(path)], batch_size, files.image_size, arguments)
    return lambda: run_artifact(artifact, variation.runner or runtime, batch_size, arguments)


def _peers(files: Files, runtime: str, batch_size: int, arguments: argparse.Namespace) -> dict[str, Timer]:
    """Return what times the files of others; what cannot be made here is left out and said so."""
    timers: dict[str, Timer] = {}
    for name in _PEERS[runtime]:
        kind = KINDS[name]
        words = _peer_words(name)
        if not _is_wanted(words, arguments):
            continue
        try:
            artifact = files.artifact(kind, batch_size)
        except BackendUnavailableError as error:
            print(f"{files.variant}, batch {batch_size}: {name} not run: {error}", file=sys.stderr)
            continue
        assert artifact is not None
        timers[words] = functools.partial(run_artifact, artifact, kind.runner, batch_size, arguments)
    return timers
