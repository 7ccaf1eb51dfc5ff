"""Every rule finds what breaks it and nothing once it is fixed, and TensorRT-RTX does with it what its text says."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from torch import nn

from convnext_deploy.artifacts.spec import GraphIO, default_preprocess
from convnext_deploy.config.choices import InputLayout
from convnext_deploy.exporters.onnx.fp16 import find_islands, to_half
from convnext_deploy.exporters.onnx.pre_post_processing import add_ends
from convnext_deploy.graphs.engine_precisions import read_plan_nodes
from convnext_deploy.graphs.lint.onnx_summary import RULES, apply_rules
from convnext_deploy.graphs.lint.rule import Finding
from convnext_deploy.models.layers import GRN
from tests.exporters.conftest import Network
from tests.exporters.test_targets import VARIANTS, export
from tests.graphs.float_rule_cases import FILE_CASES, FLOAT_CASES
from tests.graphs.others_graphs import analyze, conv, scales, zeros
from tests.graphs.quantized_rule_cases import GRID_CASES, LAYER_CASES, PLACEMENT_CASES
from tests.graphs.rule_case import Case
from tests.graphs.validity_rule_cases import VALIDITY_CASES
from tests.shared import slow_except

CASES = (*GRID_CASES, *LAYER_CASES, *PLACEMENT_CASES, *FLOAT_CASES, *FILE_CASES, *VALIDITY_CASES)
NEEDS_FILES = {"weights-beside-the-file"}  # see test_onnx_file


def named(model: onnx.ModelProto) -> dict[str, Finding]:
    return {finding.name: finding for finding in apply_rules(analyze(model))}


def serious(model: onnx.ModelProto) -> set[str]:
    return {finding.name for finding in named(model).values() if finding.severity != "note"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rule_finds_what_breaks_it_and_not_what_is_fixed(case: Case) -> None:
    assert named(case.broken)[case.rule].places == case.places
    assert case.rule not in named(case.fixed)


def test_every_rule_has_a_case() -> None:
    assert {case.rule for case in CASES} | NEEDS_FILES == {rule.name for rule in RULES}
    assert len({rule.name for rule in RULES}) == len(RULES)


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
    assert build(case.broken) is None
    assert named(case.broken)[case.rule].severity == "error"
    assert build(case.fixed) is not None


@pytest.mark.heavy
@pytest.mark.parametrize("case", [case for case in CASES if case.tensorrt == "float"], ids=lambda case: case.name)
def test_tensorrt_rtx_computes_in_float_without_a_word_what_is_said_to_do_so(case: Case) -> None:
    broken, fixed = build(case.broken), build(case.fixed)
    assert broken is not None
    assert fixed is not None
    if not read_plan_nodes(fixed):
        pytest.skip("this TensorRT-RTX does not keep readable code in its plans")
    assert [product.precision for product in read_plan_nodes(broken)] == ["FP32"]
    assert [product.precision for product in read_plan_nodes(fixed)] == ["INT8"]


def test_our_float_export_breaks_no_rule(network: Network) -> None:
    assert serious(network.graph) == set()


@pytest.mark.heavy
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_our_export_of_pixels_breaks_no_rule(network: Network, layout: InputLayout) -> None:
    preprocess = default_preprocess(network.image_size, None, network.in_channels)
    graph = add_ends(network.graph, GraphIO("uint8", layout, "top-k", 2), preprocess)
    assert serious(graph) == set()
    assert build(graph) is not None


def test_our_int8_export_for_tensorrt_breaks_only_the_rule_for_its_fp32_rest(network: Network) -> None:
    assert serious(network.quantized.graph) == {"fp32-beside-int8"}


@pytest.mark.heavy
@pytest.mark.parametrize("name", slow_except(("convnext_atto_rms",), VARIANTS))
def test_our_int8_export_of_any_variant_breaks_only_the_rule_for_its_fp32_rest(name: str) -> None:
    assert serious(export(name, "tensorrt").graph) == {"fp32-beside-int8"}


@pytest.mark.parametrize("quantized", [False, True], ids=["fp16", "int8-fp16"])
def test_our_half_export_for_tensorrt_rtx_breaks_no_rule(network: Network, quantized: bool) -> None:
    sums = [name for name, module in network.model.named_modules() if isinstance(module, nn.LayerNorm | GRN)]
    graph = network.quantized.graph if quantized else network.graph
    assert serious(to_half(graph, find_islands(graph, sums, {}, int8_matmuls=True))) == set()
    for_others = to_half(graph, find_islands(graph, sums, {}, int8_matmuls=False))
    assert serious(for_others) == ({"fp16-result-of-int8"} if quantized else set())


def test_our_export_for_onnxruntime_is_named_unfit_for_tensorrt() -> None:
    assert {"uint8", "zero-point-not-zero"} <= serious(export("v2-patch-2", "onnxruntime").graph)


def test_errors_come_first() -> None:
    found = apply_rules(analyze(conv(z=zeros(dtype=np.uint8), s=scales() * 1e-6, ws=scales(), wz=zeros())))
    kinds = [finding.severity for finding in found]
    assert kinds == sorted(kinds, key=("error", "warning", "note").index)
    assert set(kinds) == {"error", "warning", "note"}
