"""Every known trap is found where it is planted, is gone when it is cured, and costs in TensorRT-RTX what its text says."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from torch import nn

from convnext_deploy.exporters.onnx.fp16 import find_islands, to_half
from convnext_deploy.graphs.engine_precisions import read_products
from convnext_deploy.graphs.lint.rule import Trap
from convnext_deploy.graphs.lint.rules import TRAPS, find_traps
from convnext_deploy.models.layers import GRN
from tests.exporters.conftest import Network
from tests.exporters.test_targets import VARIANTS, export
from tests.graphs.float_trap_cases import FILE_CASES, FLOAT_CASES
from tests.graphs.others_graphs import conv, scales, subject_of, zeros
from tests.graphs.quantized_trap_cases import GRID_CASES, PLACEMENT_CASES, PRODUCT_CASES
from tests.graphs.trap_case import Case

CASES = (*GRID_CASES, *PRODUCT_CASES, *PLACEMENT_CASES, *FLOAT_CASES, *FILE_CASES)
NEEDS_FILES = {"weights-beside-the-file"}  # see test_inspection


def named(model: onnx.ModelProto) -> dict[str, Trap]:
    return {trap.name: trap for trap in find_traps(subject_of(model))}


def serious(model: onnx.ModelProto) -> set[str]:
    return {trap.name for trap in named(model).values() if trap.severity != "note"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_find_traps_finds_a_trap_where_it_is_planted_and_not_when_it_is_cured(case: Case) -> None:
    assert named(case.planted)[case.trap].places == case.places
    assert case.trap not in named(case.cured)


def test_every_trap_has_a_case() -> None:
    assert {case.trap for case in CASES} | NEEDS_FILES == {kind.name for kind in TRAPS}
    assert len({kind.name for kind in TRAPS}) == len(TRAPS)


def build(model: onnx.ModelProto) -> bytes | None:
    """Return a plan; None where TensorRT-RTX refuses the file."""
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        return None
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    images = network.get_input(0)
    profile.set_shape(images.name, *((batch, *tuple(images.shape)[1:]) for batch in (1, 1, 8)))
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    return bytes(plan)


@pytest.mark.parametrize("case", [case for case in CASES if case.tensorrt == "refuses"], ids=lambda case: case.name)
def test_tensorrt_rtx_refuses_what_is_called_an_error(case: Case) -> None:
    assert build(case.planted) is None
    assert named(case.planted)[case.trap].severity == "error"
    assert build(case.cured) is not None


@pytest.mark.parametrize("case", [case for case in CASES if case.tensorrt == "float"], ids=lambda case: case.name)
def test_tensorrt_rtx_computes_in_float_without_a_word_what_is_said_to_do_so(case: Case) -> None:
    planted, cured = build(case.planted), build(case.cured)
    assert planted is not None
    assert cured is not None
    if not read_products(cured):
        pytest.skip("this TensorRT-RTX does not keep readable code in its plans")
    assert [product.precision for product in read_products(planted)] == ["FP32"]
    assert [product.precision for product in read_products(cured)] == ["INT8"]


def test_our_float_export_has_no_trap(network: Network) -> None:
    assert serious(network.graph) == set()


def test_our_int8_export_for_tensorrt_has_only_the_trap_of_its_fp32_rest(network: Network) -> None:
    assert serious(network.quantized.graph) == {"fp32-beside-int8"}


@pytest.mark.parametrize("name", VARIANTS)
def test_our_int8_export_of_any_variant_has_only_the_trap_of_its_fp32_rest(name: str) -> None:
    assert serious(export(name, "tensorrt").graph) == {"fp32-beside-int8"}


@pytest.mark.parametrize("quantized", [False, True], ids=["fp16", "int8-fp16"])
def test_our_half_export_for_tensorrt_rtx_has_no_trap(network: Network, quantized: bool) -> None:
    sums = [name for name, module in network.model.named_modules() if isinstance(module, nn.LayerNorm | GRN)]
    graph = network.quantized.graph if quantized else network.graph
    assert serious(to_half(graph, find_islands(graph, sums, {}, int8_products=True))) == set()
    for_others = to_half(graph, find_islands(graph, sums, {}, int8_products=False))
    assert serious(for_others) == ({"fp16-result-of-int8"} if quantized else set())


def test_our_export_for_onnxruntime_is_named_unfit_for_tensorrt() -> None:
    assert {"uint8", "zero-point-not-zero"} <= serious(export("v2-patch-2", "onnxruntime").graph)


def test_find_traps_puts_errors_first() -> None:
    found = find_traps(subject_of(conv(z=zeros(dtype=np.uint8), s=scales() * 1e-6, ws=scales(), wz=zeros())))
    kinds = [trap.severity for trap in found]
    assert kinds == sorted(kinds, key=("error", "warning", "note").index)
    assert set(kinds) == {"error", "warning", "note"}
