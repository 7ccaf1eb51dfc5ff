"""Every variant goes all the way: FP32, FP16 and INT8 ONNX that ONNX Runtime runs, and engines for four generations of GPUs.

Widths are the real ones, with one block in each model stage. `benchmarks/export.py` does it at full depth.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from convnext_deploy.artifacts.details import Profile
from convnext_deploy.artifacts.spec import ModelSpec, default_preprocess
from convnext_deploy.exporters.onnx.fp16 import find_islands, measure_ranges, to_half
from convnext_deploy.exporters.onnx.qdq import insert_qdq
from convnext_deploy.exporters.onnx.trace import export_float
from convnext_deploy.exporters.tensorrt.build import build_engine
from convnext_deploy.exporters.tensorrt.build_options import BuildOptions
from convnext_deploy.graphs.engine_precisions import read_plan_nodes, report_precisions
from convnext_deploy.graphs.onnx_io import save_onnx
from convnext_deploy.graphs.onnx_view import open_view
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.models.fold import fold
from convnext_deploy.models.identities import drop_identities
from convnext_deploy.models.variants import VARIANTS
from convnext_deploy.quantization.calibration import calibrate
from convnext_deploy.quantization.prepare import prepare, read_sites
from convnext_deploy.quantization.scheme import resolve_scheme
from convnext_deploy.stages.onnx import layers_that_sum
from convnext_deploy.system.progress import SilentProgress
from tests.exporters.conftest import structured_images
from tests.exporters.test_variants import logits_of
from tests.weights import WIDEST, random_network

SIDE, CLASSES = 32, 10
FLOAT_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16)


@dataclass(frozen=True)
class Exported:
    """A folded network and the files of all its precisions."""

    name: str
    folder: Path
    model: ConvNeXt
    quantized: ConvNeXt

    @property
    def images(self) -> NDArray[np.float32]:
        """Four images."""
        return structured_images(4, 3, SIDE, seed=3)

    def path(self, precision: str) -> Path:
        """Return the file of a precision."""
        return self.folder / f"{precision}.onnx"


def export_all(name: str, folder: Path, target: str) -> Exported:
    """Write the files of a variant with one block a stage, float and quantized for a target, each in FP32 and FP16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, name, dataclasses.replace(VARIANTS[name], depths=(1, 1, 1, 1)))
        network = random_network(ModelSpec(name, CLASSES))
    model = fold(network, default_preprocess(SIDE)).network
    scheme = resolve_scheme(target)
    quantized = prepare(copy.deepcopy(model), scheme)
    images = structured_images(8, 3, SIDE, seed=1)
    calibrate(quantized, [torch.from_numpy(images)], "minmax")
    plain = drop_identities(copy.deepcopy(model))
    single = export_float(plain, 3, SIDE)
    integer = insert_qdq(single, read_sites(quantized))
    ranges, sums = measure_ranges(single, [images]), layers_that_sum(plain)
    found = Exported(name, folder, model, quantized)
    for precision, graph in (("fp32", single), (scheme.precision, integer)):
        save_onnx(graph, found.path(precision), {"precision": precision})
        islands = find_islands(graph, sums, ranges, int8_matmuls=True)
        half = "fp16" if graph is single else f"{precision}-fp16"
        save_onnx(to_half(graph, islands), found.path(half), {"precision": half})
    return found


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.slow if row.dims[-1] > WIDEST else pytest.mark.heavy])
        for name, row in VARIANTS.items()
    ],
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_all(request.param, tmp_path_factory.mktemp(request.param), "tensorrt")


def run(path: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(["logits"], {"images": images})[0]
    return found


def test_onnxruntime_computes_every_precision(exported: Exported) -> None:
    images = exported.images
    expected, quantized = logits_of(exported.model, images), logits_of(exported.quantized, images)
    scale = np.abs(expected).max()
    for count in (1, 3):  # any batch
        assert np.abs(run(exported.path("fp32"), images[:count]) - expected[:count]).max() <= 1e-4 * scale
    assert np.abs(run(exported.path("fp16"), images) - expected).max() <= 0.02 * scale
    # a value at a rounding boundary may go to either side, so a few of the logits differ by some steps
    for precision in ("int8", "int8-fp16"):
        assert np.abs(run(exported.path(precision), images) - quantized).mean() <= 0.03 * scale, precision


def test_files_keep_what_tensorrt_asks_for(exported: Exported) -> None:
    """The invariants of an explicitly quantized, strongly typed file."""
    for precision in ("fp32", "fp16", "int8", "int8-fp16"):
        proto = onnx.load(exported.path(precision))
        onnx.checker.check_model(proto, full_check=True)  # sorted and typed, too
        assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 20)]
        assert proto.ir_version <= 10
        assert not any(node.op_type.startswith(("QLinear", "Dynamic", "MatMulInteger")) for node in proto.graph.node)
        constants = {i.name: i for i in proto.graph.initializer}
        uses = [name for node in proto.graph.node for name in set(node.input) if name in constants]
        large = [name for name in uses if max(constants[name].dims, default=1) > 1]
        floats = [name for name in large if constants[name].data_type in FLOAT_TYPES and "_scale" not in name]
        assert len(floats) == len(set(floats)), "a weight that two layers share"
        pairs = [node for node in proto.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
        assert bool(pairs) == precision.startswith("int8")
        for node in pairs:
            _, scale, zero_point = (constants.get(name) for name in node.input)
            assert scale is not None
            assert zero_point is not None
            assert zero_point.data_type == TensorProto.INT8
            assert not numpy_helper.to_array(zero_point).any()
            assert numpy_helper.to_array(scale).min() > 0
        makers = {name: node for node in proto.graph.node for name in node.output}
        for node in proto.graph.node:
            if node.op_type in ("Conv", "MatMul", "Gemm"):
                dequantized = [n in makers and makers[n].op_type == "DequantizeLinear" for n in node.input[:2]]
                assert len(set(dequantized)) == 1, "one of two inputs in INT8"
                if dequantized[1]:
                    weight = makers[node.input[1]]
                    axis = next((a.i for a in weight.attribute if a.name == "axis"), 1)
                    assert axis == {"Conv": 0, "Gemm": 0, "MatMul": 1}[node.op_type]
                    assert len(constants[weight.input[1]].dims) == 1
                    assert not constants[makers[node.input[0]].input[1]].dims
                if len(node.input) > 2:
                    assert constants[node.input[2]].data_type in FLOAT_TYPES


@pytest.mark.parametrize(
    ("precision", "gpu"),
    [("fp32", "SM86"), ("fp16", "SM75"), ("fp16", "SM89"), ("int8-fp16", "SM120"), ("int8", "SM86")],
)
def test_engines_build_and_run_in_int8_what_they_should(exported: Exported, precision: str, gpu: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    engine = build_engine(
        exported.path(precision),
        flavor="tensorrt-rtx",
        gpu=gpu,
        options=BuildOptions(Profile(1, 1, 8)),
        progress=SilentProgress(),
    )
    report = report_precisions(read_plan_nodes(engine.plan), open_view(exported.path(precision)))
    assert report is not None
    # two linear layers in each of four blocks, and three downsampling convolutions
    assert report.requested_int8 == (2 * 4 + 3 if precision.startswith("int8") else 0)
    assert (report.fallbacks, report.unseen) == ((), ())
    assert report.nodes.get("INT8", 0) == report.requested_int8
    assert set(report.nodes) <= {"INT8", "FP32" if precision in ("fp32", "int8") else "FP16"}
