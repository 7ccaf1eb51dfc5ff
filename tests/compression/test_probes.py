"""The files that are timed for the cost of widths, cut out of one graph; and when times are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from convnext_deploy.artifacts.spec import ModelSpec, default_preprocess
from convnext_deploy.compression import probes
from convnext_deploy.compression.cut_graph import cut_graph
from convnext_deploy.compression.probe_files import ProbeForm, ProbeWriter, write_probe
from convnext_deploy.compression.probes import ProbeTimes, measure_probes
from convnext_deploy.compression.times import times_for
from convnext_deploy.config.choices import Target
from convnext_deploy.errors import ArtifactError
from convnext_deploy.models.variants import with_widths
from convnext_deploy.system.progress import SilentProgress

SPEC = ModelSpec("test_convnext2", 3)
FORM = ProbeForm(SPEC, default_preprocess(32), "onnxruntime")
WIDTHS = (32, 0, 384, 64)
Arrays = dict[str, NDArray[np.float32]]


def _block(stage: int, number: int, source: str, result: str, arrays: Arrays) -> list[onnx.NodeProto]:
    """Return a block as exporters name its nodes, with its sum, and a transposition that it begins with."""
    name = f"stages.{stage}.{number}"
    nodes = [
        ("Transpose", "/Transpose", [source], f"{name}.in"),
        ("Transpose", "/Transpose_2", [f"{name}.in"], f"{name}.x"),
    ]
    nodes += [
        ("MatMul", ".pwconv1/MatMul", [f"{name}.x", f"{name}.w1"], f"{name}.h"),
        ("Relu", "/Relu", [f"{name}.h"], f"{name}.r"),
        ("MatMul", ".pwconv2/MatMul", [f"{name}.r", f"{name}.w2"], f"{name}.y"),
        ("Add", "/Add", [f"{name}.x", f"{name}.y"], result),
    ]
    rng = np.random.default_rng(stage + 10 * number)
    arrays[f"{name}.w1"] = rng.standard_normal((4, 16), np.float32)
    arrays[f"{name}.w2"] = rng.standard_normal((16, 4), np.float32)
    return [helper.make_node(kind, inputs, [output], name=name + end) for kind, end, inputs, output in nodes]


def _model() -> tuple[onnx.ModelProto, Arrays]:
    arrays: Arrays = {}
    nodes = [*_block(0, 0, "images", "a", arrays), *_block(0, 1, "a", "b", arrays)]
    nodes.append(helper.make_node("Identity", ["b"], ["logits"], name="head/Identity"))
    first, last = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in ("images", "logits"))
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "blocks", [first], [last], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), arrays


def _run(model: onnx.ModelProto, images: NDArray[np.float32]) -> NDArray[np.float32]:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: images})[0]
    return found


@pytest.mark.parametrize("widths", [(16, 16), (4, 12), (0, 8), (8, 0)])
def test_a_cut_graph_computes_the_first_units_of_each_block(widths: tuple[int, int]) -> None:
    model, arrays = _model()
    images = np.random.default_rng(1).standard_normal((5, 4), np.float32)
    expected = images
    for number, width in enumerate(widths):
        first, second = (arrays[f"stages.0.{number}.{name}"] for name in ("w1", "w2"))
        if width:
            expected = expected + np.maximum(expected @ first[:, :width], 0) @ second[:width]
    before = model.SerializeToString()
    found = cut_graph(model, [(16, 16)], [widths])
    np.testing.assert_allclose(_run(found, images), expected, rtol=1e-5, atol=1e-5)
    assert model.SerializeToString() == before
    assert len(found.graph.initializer) == 2 * sum(width > 0 for width in widths)


def test_a_graph_of_another_form_is_not_cut() -> None:
    model, _ = _model()
    with pytest.raises(ArtifactError, match="no weight with 24 hidden units"):
        cut_graph(model, [(24, 16)], [(8, 16)])
    with pytest.raises(ArtifactError, match="expected one, as our exporters write it"):
        cut_graph(model, [(16, 16), (16,)], [(16, 16), (0,)])


@pytest.mark.slow
@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_a_cut_file_has_the_nodes_of_the_pruned_networks_own(target: Target, tmp_path: Path) -> None:
    form = replace(FORM, target=target, activation="relu" if target == "openvino" else None)
    cut = ProbeWriter(form).write(WIDTHS, tmp_path / "cut")
    own = write_probe(form, with_widths(form.pruned_spec, WIDTHS), tmp_path / "own")
    assert cut.model == own.model
    models = [onnx.load(artifact.main_file) for artifact in (cut, own)]
    kinds = [Counter(node.op_type for node in model.graph.node) for model in models]
    assert kinds[0] == kinds[1]
    shapes = [sorted(tuple(tensor.dims) for tensor in model.graph.initializer) for model in models]
    assert [shape for shape in shapes[0] if len(shape) > 1] == [shape for shape in shapes[1] if len(shape) > 1]
    assert _run(models[0], np.zeros((1, 3, 32, 32), np.float32)).shape == (1, 3)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Sequence[int]]]:
    """What was timed, by a machine that takes as many ms as there are hundreds of hidden units."""
    seen: list[Sequence[Sequence[int]]] = []

    def time_widths(writer: ProbeWriter, widths: Any, *_: Any, machine: str, **__: Any) -> ProbeTimes:
        seen.append(widths)
        rounds = tuple((0.2 + sum(each) / 100,) * 3 for each in widths)
        changed = writer.form.activation is not None
        loaded = "load 9 on 2 cores" if len(seen) == 1 else None
        return ProbeTimes(widths, rounds, "onnxruntime", None, 1, machine, loaded, changed)

    monkeypatch.setattr(probes, "time_widths", time_widths)
    return seen


def test_times_are_kept_for_the_run_and_those_of_a_free_machine_for_all(timed: list[Any], tmp_path: Path) -> None:
    cache, run, say = tmp_path / "cache", tmp_path / "run", SilentProgress()
    first = measure_probes(ProbeWriter(FORM), say, cache, run)
    assert measure_probes(ProbeWriter(FORM), say, cache, run) == first
    assert len(timed) == 1
    second = measure_probes(ProbeWriter(FORM), say, cache)  # of another run: those were not to be relied on
    assert len(timed) == 2
    assert measure_probes(ProbeWriter(FORM), say, cache, tmp_path / "other") == second
    assert measure_probes(ProbeWriter(FORM), say, None, run) == first
    assert len(timed) == 2
    measure_probes(ProbeWriter(replace(FORM, activation="relu")), say, cache)
    assert timed[2][0] == timed[2][1]  # dense with both activations
    measure_probes(ProbeWriter(replace(FORM, preprocess=default_preprocess(64))), say, cache)
    assert len(timed) == 4


def test_times_of_a_target_are_measured_or_a_proxy_that_a_device_can_scale(timed: list[Any], tmp_path: Path) -> None:
    found = times_for(ProbeWriter(FORM), SilentProgress(), None, tmp_path)
    assert found.is_measured
    assert found.dense_ms == pytest.approx(0.2 + 12.8)
    assert "24 networks with onnxruntime" in found.origin
    assert found.origin.endswith("times are not to be relied on, and not kept for other runs")
    writer = ProbeWriter(replace(FORM, target="tensorrt"))
    proxy = times_for(writer, SilentProgress(), None)
    assert not proxy.is_measured
    assert "not a measurement" in proxy.origin
    dense = (128, 256, 384, 512)
    scaled = times_for(writer, SilentProgress(), None, None, [(dense, 3 * proxy.dense_ms)])
    assert scaled.is_measured
    assert scaled.dense_ms == pytest.approx(3 * proxy.dense_ms)
    assert scaled.model.fixed_ms == pytest.approx(3 * proxy.model.fixed_ms)
    ms = [3.0, 1.0]  # the fixed part three times as long as estimated, the blocks as long
    two = [dense, (128, 0, 0, 0)]
    known = [[proxy.model.fixed_ms, proxy.model.curves[0].at(128)], [proxy.dense_ms - proxy.model.fixed_ms]]
    times = [ms[0] * known[0][0] + ms[1] * known[1][0], ms[0] * known[0][0] + ms[1] * known[0][1]]
    apart = times_for(writer, SilentProgress(), None, None, list(zip(two, times, strict=True)))
    assert apart.model.fixed_ms == pytest.approx(3 * proxy.model.fixed_ms)
    assert apart.dense_ms == pytest.approx(times[0])
    assert len(timed) == 1
