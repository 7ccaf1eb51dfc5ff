"""`benchmarks/latency.py`: its figures from planted times, and a small run of it all."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from convnext_deploy.evaluation.latency import noise_images
from convnext_deploy.runners import open_runner, openvino
from tests.benchmarks.conftest import BENCHMARKS
from tests.evaluation.graphs import SIDE, write_classifier


def planted(times: dict[str, list[float]], batch_size: int = 1) -> list[dict[str, Any]]:
    """Return rows with these times in milliseconds, one a round."""
    from latency_table import add_ratios, describe

    place = {"model": "convnext_tiny", "batch_size": batch_size}
    rows = [
        {**place, **describe(name), "processes_ms": found, "not_run": None if found else "not here", "error": None}
        for name, found in times.items()
    ]
    add_ratios(rows)
    return rows


FASTER = {
    "ours-int8-onnxruntime": [20.0, 22.0, 40.0],
    "ours-int8-openvino": [10.0, 11.0, 20.0],
    "ort-u8s8": [30.0, 33.0, 60.0],
    "ort-u8s8-products": [25.0, 27.5, 50.0],
    "nncf": [20.0, 22.0, 40.0],
    "modelopt": [],
}


def test_ratios_are_to_our_fastest_and_paired_by_round() -> None:
    rows = {row["candidate"]: row for row in planted(FASTER)}
    assert rows["ours-int8-openvino"]["ratio"] == [1.0, 1.0, 1.0]
    assert rows["nncf"]["ratio"] == [2.0, 2.0, 2.0]  # though its median over a round of another is not
    assert rows["nncf"]["p50_ms"] == 22.0
    assert rows["modelopt"]["p50_ms"] is None
    assert rows["modelopt"]["ratio"] is None


@pytest.mark.parametrize("runner", ["onnxruntime", "openvino"])
def test_own_call_times_the_runtime_on_the_array_that_the_runner_takes(runner: str, tmp_path: Path) -> None:
    from latency_own_call import runtime_call, time_pair

    artifact = write_classifier(tmp_path / "model.onnx", width=64)
    opened = open_runner(artifact, runner=runner)
    prepared = opened.prepare(noise_images(2, (3, SIDE, SIDE)))
    theirs: Any = runtime_call(opened, prepared)()
    np.testing.assert_array_equal(next(iter(opened.run(prepared).values())), theirs[0])
    opened.close()
    pair = time_pair(artifact, runner, 2, 1, 0.01)
    assert 0 < pair.ours_ms < 1000
    assert 0 < pair.runtime_ms < 1000
    assert 0.1 < pair.ratio < 10


def test_claims_are_against_the_best_of_the_others() -> None:
    from latency_table import claims

    first, second = claims(planted(FASTER))
    assert (first["ours"], first["theirs"]) == ("ours-int8-onnxruntime", "ort-u8s8-products")
    assert first["ratio"] == pytest.approx([0.8, 0.8, 0.8])
    assert first["holds"]
    assert (second["ours"], second["theirs"]) == ("ours-int8-openvino", "nncf")
    assert second["ratio"] == pytest.approx([0.5, 0.5, 0.5])


@pytest.mark.parametrize(("theirs", "holds"), [(10.0 / 0.95, True), (10.4, False)])
def test_claim_that_does_not_hold_is_seen(theirs: float, *, holds: bool) -> None:
    from latency_table import claims, render_claims

    found = claims(planted({"ours-int8-openvino": [10.0], "timm-bf16-openvino": [theirs]}))
    assert [claim["holds"] for claim in found] == [holds]
    assert ("does not hold" in render_claims(found)) != holds


def test_table_has_a_column_for_each_batch_and_a_dash_for_what_did_not_run() -> None:
    from latency_table import render_rows

    text = render_rows([*planted(FASTER), *planted({"ours-int8-openvino": [70.0]}, 8)])
    assert "| tiny, batch 1: ms | × ours | tiny, batch 8: ms | × ours |" in text
    assert "| Model Optimizer: INT8 | `onnxruntime` | – | – | – | – |" in text
    assert "| ours: INT8, target openvino | `openvino` | 11.0 | 1.00 [1.00, 1.00] | 70.0 | 1.00 [1.00, 1.00] |" in text
    assert len({line.count("|") for line in text.splitlines()}) == 1


def test_profile_knows_depthwise_convolutions_from_products() -> None:
    from latency_profile import depthwise_kernels, sum_parts
    from latency_table import render_profile

    def conv(name: str, group: int) -> onnx.NodeProto:
        return onnx.helper.make_node("Conv", ["x", "w"], [name], name=f"{name}/Conv", group=group)

    graph = onnx.helper.make_graph([conv("stem", 1), conv("conv_1", 96)], "graph", [], [])
    kernels = [
        {"name": "stem", "operator": "Conv", "ms": 1.0, "nodes": []},
        {"name": "conv_1_nchwc", "operator": "Conv", "ms": 2.0, "nodes": []},
        {"name": "conv_12", "operator": "MatMulIntegerToFloat", "ms": 4.0, "nodes": []},
        {"name": "dq", "operator": "DequantizeLinear", "ms": 1.0, "nodes": []},
        {"name": "merged", "operator": "Conv", "ms": 0.5, "nodes": ["gelu", "conv_1/Conv"]},
        {"name": "another", "operator": "GroupConvolution", "ms": 0.5, "nodes": []},
        {"name": "add", "operator": "Add", "ms": 1.0, "nodes": []},
    ]
    parts = sum_parts(kernels, depthwise_kernels(onnx.helper.make_model(graph)))
    assert parts == {"products": 5.0, "depthwise convolutions": 3.0, "quantization": 1.0, "rest": 1.0}
    row = {"model": "convnext_tiny", "batch_size": 1, "runner": "onnxruntime", "parts_ms": parts}
    assert render_profile([row]).endswith("| 10.00 | 5.00 (50 %) | 3.00 (30 %) | 1.00 (10 %) | 1.00 (10 %) |")


@pytest.mark.heavy
def test_small_run_times_ours_and_others_and_says_what_is_missing(tmp_path: Path) -> None:
    words = ["--models", "test_convnext", "--image-size", "32", "--batch-sizes", "2", "--threads", "1", "--rounds", "1"]
    words += ["--seconds", "0.05", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "latency.json")]
    words += ["--candidates", "ours-int8-onnxruntime", "timm-fp32-onnxruntime", "nncf", "--python-nncf", "nowhere"]
    done = subprocess.run([sys.executable, str(BENCHMARKS / "latency.py"), *words], capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr  # whether it is faster is not for so small a network to say
    record = json.loads((tmp_path / "latency.json").read_text())
    rows = {row["candidate"]: row for row in record["rows"]}
    assert set(rows) == {"ours-int8-onnxruntime", "timm-fp32-onnxruntime", "nncf"}
    assert "nowhere cannot be run" in rows["nncf"]["not_run"]
    assert rows["ours-int8-onnxruntime"]["p50_ms"] > 0
    assert rows["timm-fp32-onnxruntime"]["error"] < 1e-5
    assert 1e-4 < rows["ours-int8-onnxruntime"]["error"] < 0.05
    assert [claim["claim"] for claim in record["claims"]] == ["our best / best of all others"]
    assert "| ours: INT8, target onnxruntime |" in done.stdout


@pytest.mark.slow  # half a minute each
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_every_variation_of_a_form_computes_the_network_it_says(runtime: str, tmp_path: Path) -> None:
    from latency_ablation import VARIATIONS, build
    from latency_candidates import FLOOR, RELU
    from latency_files import Files

    if runtime == "openvino" and not openvino.is_installed():
        pytest.skip("openvino is not installed")
    files = Files("convnext_atto", 32, argparse.Namespace(work=tmp_path))
    graphs, errors = set(), {}
    for number, variation in enumerate(VARIATIONS[runtime]):
        artifact = build(files, variation, tmp_path / f"{number}.onnx")
        errors[variation.words] = files.error(artifact, variation.runner or runtime)
        differs = not variation.dynamic and variation.runner is None and "v2" not in variation.words
        assert not differs or artifact.sha256 not in graphs, variation.words
        graphs.add(artifact.sha256)
    others = [errors.pop(RELU), errors.pop(FLOOR)]
    assert max(errors.values()) < 0.05 < min(others)


def test_the_floor_is_compared_with_the_fastest_of_others_round_by_round() -> None:
    from latency_candidates import FLOOR, RELU, WHOLE
    from latency_table import render_floor

    times = {
        WHOLE: [10.0, 20.0, 12.0],
        FLOOR: [5.0, 10.0, 6.0],
        "NNCF: INT8, defaults": [30.0, 60.0, 36.0],
        "NNCF: INT8, TRANSFORMER": [20.0, 40.0, 24.0],
    }
    place = {"model": "convnext_tiny", "batch_size": 1, "runner": "openvino"}
    rows: list[dict[str, Any]] = [{**place, "words": words, "processes_ms": found} for words, found in times.items()]
    head, _, line = render_floor(rows).splitlines()
    assert head.endswith(f"| {WHOLE} | {RELU} | {FLOOR} |")
    assert "| `openvino` | NNCF: INT8, TRANSFORMER | 24.0 | 0.50 [0.50, 0.50] | – | 0.25 [0.25, 0.25] |" in line
    assert len(render_floor([row for row in rows if "NNCF" not in row["words"]]).splitlines()) == 2


@pytest.mark.heavy
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_floor_of_a_form_has_its_integer_products_and_nothing_beside_them(runtime: str, tmp_path: Path) -> None:
    from latency_ablation import VARIATIONS, build
    from latency_candidates import FLOOR, WHOLE
    from latency_files import Files

    files = Files("convnext_atto", 32, argparse.Namespace(work=tmp_path))
    whole, floor = (
        onnx.load(
            build(files, next(v for v in VARIATIONS[runtime] if v.words == words), tmp_path / f"{words}.onnx").main_file
        )
        for words in (WHOLE, FLOOR)
    )
    assert products(floor) == products(whole)
    assert {"Gelu", "BiasGelu"}.isdisjoint(node.op_type for node in floor.graph.node)
    norms = [node for node in floor.graph.node if node.op_type == "LayerNormalization"]
    assert len(norms) == 5  # of the stem, of three downsampling layers, and of the head
    stored = {t.name for t in floor.graph.initializer}
    assert all(
        node.op_type != "Add" or stored.intersection(node.input) for node in floor.graph.node
    )  # no sum with an input


def products(proto: onnx.ModelProto) -> Counter[tuple[int, ...]]:
    """Count the weights of a graph's matrix products and ungrouped convolutions by shape."""
    shapes = {t.name: tuple(t.dims) for t in proto.graph.initializer}
    return Counter(
        shape for shape in shapes.values() if len(shape) in (2, 4) and shape[1:2] != (1,) and min(shape[:2]) > 3
    )
