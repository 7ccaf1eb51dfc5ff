"""Kernels are counted for the layers that they compute, whatever a runtime calls them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from torch import nn

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.evaluation.timing.layer_times import (
    BETWEEN,
    LayerTime,
    Nodes,
    find_excess,
    group_by_layer,
    read_nodes,
)
from convnext_deploy.evaluation.timing.worker_process import Job, run_job
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.runners.profiling import Kernel

LAYERS = (
    "stem",
    "stages.0.0.dwconv",
    "stages.0.0.norm",
    "stages.0.0.pwconv1",
    "stages.0.0",
    "stages.0.0.pwconv2",
    "head",
)
NODES = Nodes(
    {
        "stem/Conv": "stem",
        "stages.0.0.dwconv/Conv": "stages.0.0.dwconv",
        "stages.0.0.norm/LayerNormalization": "stages.0.0.norm",
        "stages.0.0.pwconv1/MatMul": "stages.0.0.pwconv1",
        "stages.0.0.pwconv1/MatMul_2": "stages.0.0.pwconv1",
        "stages.0.0/Gelu": "stages.0.0",
        "stages.0.0.pwconv2/MatMul": "stages.0.0.pwconv2",
        "stages.0.0/Add": "stages.0.0",
        "head/Gemm": "head",
    },
    {"conv2d": "stem/Conv", "conv2d_1": "stages.0.0.dwconv/Conv"},
)
CHAIN = (("stem/Conv", "Conv"), ("stages.0.0.dwconv/Conv", "Conv"), ("stages.0.0.pwconv1/MatMul", "MatMul"))


def grouped(*kernels: tuple[str, str] | tuple[str, str, tuple[str, ...]], nodes: Nodes = NODES) -> dict[str, list[int]]:
    """Return layer → the places of its kernels: the first one takes 1 ms, the next ones 10, 100, …"""
    given = [
        Kernel(kernel[0], kernel[1], 10.0**place, kernel[2] if len(kernel) > 2 else ())
        for place, kernel in enumerate(kernels)
    ]
    return {
        time.layer: [place for place in range(len(given)) if int(time.ms / 10**place) % 10]
        for time in group_by_layer(given, nodes)
    }


@pytest.mark.parametrize(
    ("kernels", "expected"),
    [
        (CHAIN, {"stem": [0], "stages.0.0.dwconv": [1], "stages.0.0.pwconv1": [2]}),
        ((("conv2d_1_nchwc", "Conv"), ("conv2d_nchwc", "Conv")), {"stages.0.0.dwconv": [0], "stem": [1]}),
        # what a block computes itself comes to the layer before it
        (
            (
                ("stages.0.0.pwconv1/MatMul", "MatMul"),
                ("stages.0.0/Gelu", "Gelu"),
                ("stages.0.0.pwconv2/MatMul", "MatMul"),
            ),
            {"stages.0.0.pwconv1": [0, 1], "stages.0.0.pwconv2": [2]},
        ),
        (
            (CHAIN[2], ("BiasGelu_token_1", "BiasGelu"), ("stages.0.0.pwconv2/MatMul", "MatMul")),
            {"stages.0.0.pwconv1": [0, 1], "stages.0.0.pwconv2": [2]},
        ),
        ((("fused stages.0.0.pwconv1/MatMul_2_x", "MatMul"),), {"stages.0.0.pwconv1": [0]}),
        # conversions go where they are needed
        (
            (CHAIN[0], ("ReorderOutput_token_3", "ReorderOutput"), ("ReorderInput_token_4", "ReorderInput"), CHAIN[1]),
            {"stem": [0, 1], "stages.0.0.dwconv": [2, 3]},
        ),
        (
            (CHAIN[1], ("FakeQuantize_7", "Subgraph"), CHAIN[2]),
            {"stages.0.0.dwconv": [0], "stages.0.0.pwconv1": [1, 2]},
        ),
        ((("stem/Conv_abcd_acdb_stages.0.0.dwconv/Conv", "Reorder"), CHAIN[1]), {"stages.0.0.dwconv": [0, 1]}),
        # a kernel without a name where the graph has a layer that no other one names
        (
            (CHAIN[1], ("MVN_109", "MVN"), CHAIN[2]),
            {"stages.0.0.dwconv": [0], "stages.0.0.norm": [1], "stages.0.0.pwconv1": [2]},
        ),
        ((("mystery", "X"),), {"stem": [0]}),
        (
            (("k1", "", ("stages.0.0.norm/LayerNormalization", "stages.0.0.pwconv1/MatMul", "stages.0.0/Gelu")),),
            {"stages.0.0.pwconv1": [0]},
        ),
    ],
)
def test_kernel_counts_for_its_layer(kernels: Sequence[tuple[str, str]], expected: dict[str, list[int]]) -> None:
    assert grouped(*kernels) == expected


def test_without_a_graph_names_alone_tell_and_what_tells_nothing_is_between_layers() -> None:
    nodes = Nodes({}, {})
    assert grouped(("stages.0.0.pwconv1/MatMul + stages.0.0.pwconv1/Add", ""), nodes=nodes) == {
        "stages.0.0.pwconv1": [0]
    }
    assert grouped(("__myl_MulAdd_0x12", ""), nodes=nodes) == {BETWEEN: [0]}


def test_conversions_are_told_apart() -> None:
    kernels = [
        Kernel("stages.0.0.pwconv1/QuantizeLinear", "QuantizeLinear", 2.0),
        Kernel("stages.0.0.pwconv1/MatMulIntegerToFloat", "MatMulIntegerToFloat", 3.0),
    ]
    assert group_by_layer(kernels, Nodes({}, {})) == (LayerTime("stages.0.0.pwconv1", 5.0, 2.0),)


def test_find_excess_puts_the_layer_first_that_loses_most_beside_its_reference() -> None:
    ours = [LayerTime("a", 5.0), LayerTime("b", 4.0, 1.0), LayerTime("c", 1.0)]
    worst, other, last = find_excess(ours, [LayerTime("a", 4.5), LayerTime("b", 1.0), LayerTime("c", 2.0)])
    assert (worst.layer, worst.ms, worst.reference_ms, worst.conversions_ms) == ("b", 4.0, 1.0, 1.0)
    assert worst.share == pytest.approx(0.3)
    assert (other.layer, last.layer) == ("a", "c")
    assert last.share == pytest.approx(-0.1)


@pytest.mark.parametrize("runner", ["onnxruntime", "openvino"])
def test_real_profile_knows_every_layer_and_nothing_between(runner: str, small_artifacts: dict[str, Artifact]) -> None:
    pytest.importorskip(runner)
    artifact = small_artifacts["onnx-fp32"]
    found = run_job(Job(artifact, runner, "cpu", 1, 1, 0.1, most=16, profiled=True))["kernels"]
    kernels = [Kernel(**{**kernel, "nodes": tuple(kernel["nodes"])}) for kernel in found]
    times = {time.layer: time for time in group_by_layer(kernels, read_nodes(artifact))}
    network = load_network(small_artifacts["student"])
    products = {n for n, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    assert products <= set(times)
    assert BETWEEN not in times
    assert set(times) <= {name for name, _ in network.named_modules()}
    assert sum(time.ms for time in times.values()) == pytest.approx(sum(kernel.ms for kernel in kernels))
    # the matrix products are most of it, and a norm is not
    share = sum(time.ms for name, time in times.items() if "pwconv" in name) / sum(time.ms for time in times.values())
    assert share > 0.3
