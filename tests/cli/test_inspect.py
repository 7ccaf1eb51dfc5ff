"""`inspect` on a terminal and as JSON, for ONNX files, engines and artifact folders; wrong input in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from convnext_deploy.artifacts.artifact import Artifact
from tests.cli.conftest import call
from tests.graphs.others_graphs import CONV, conv, graph_of, random_weight, scales, zeros


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """An INT8 convolution with a zero point and a bias of integers."""
    bias = CONV.replace("y = Conv", "b = DequantizeLinear (bi, bs, bz) y = Conv").replace("xd, wd", "xd, wd, b")
    path = tmp_path / "model.onnx"
    integers = {"bi": np.ones(4, np.int32), "bs": scales(), "bz": zeros(None, np.int32)}
    onnx.save(conv(bias, z=np.int8(3), **integers), path)
    return path


def test_inspect_prints_interface_operators_layers_and_broken_rules(broken: Path) -> None:
    outcome = call("inspect", broken)
    assert outcome.code == 0
    assert outcome.err.startswith("next: ")
    lines = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert "format ONNX, opset 20, com.microsoft 1, IR 10" in lines
    assert "inputs x FP32 (batch, 8, 6, 6)" in lines
    assert "batch dynamic" in lines
    assert "Conv 1" in lines
    assert "Conv_4 Conv INT8 INT8, zero 3 INT8 by axis 0" in lines
    assert "Rules for TensorRT: 2 errors" in lines
    assert "error: zero-point-not-zero (2): QuantizeLinear_0, DequantizeLinear_1" in lines
    assert any(line.startswith("Fix: ") and "QuantizeBias" in line for line in lines)


def test_inspect_prints_at_most_twenty_layers_and_says_how_many_there_are(small_artifacts: dict[str, Artifact]) -> None:
    outcome = call("inspect", small_artifacts["onnx-int8"].path)
    record = json.loads(call("inspect", small_artifacts["onnx-int8"].path, "--json").out)
    total = len(record["layers"])
    assert total > 20
    assert f"Largest layers: 20 of {total}" in outcome.out
    table = outcome.out.split("Largest layers")[1].split("Rules")[0]
    assert record["layers"][19]["layer"] in table
    assert "model          test_convnext2 with 3 classes" in outcome.out
    assert "cat, dog, owl" in outcome.out


def test_inspect_cuts_nothing_off(small_artifacts: dict[str, Artifact]) -> None:
    outcome = call("inspect", small_artifacts["onnx-int8"].path)
    assert "…" not in outcome.out
    record = json.loads(call("inspect", small_artifacts["onnx-int8"].path, "--json").out)
    assert record["quantized"]
    for product in record["quantized"]:
        assert product["layer"] in outcome.out


def test_inspect_says_that_all_rules_are_kept(tmp_path: Path) -> None:
    onnx.save(graph_of("y = Conv (x, w)", w=random_weight(4, 8, 1, 1)), tmp_path / "model.onnx")
    assert "Rules for TensorRT: all kept" in call("inspect", tmp_path / "model.onnx").out


def test_inspect_says_what_no_runtime_takes(tmp_path: Path) -> None:
    onnx.save(graph_of("y = Gelu (x)", opset=17), tmp_path / "model.onnx")
    outcome = call("inspect", tmp_path / "model.onnx")
    assert (outcome.code, outcome.err.count("\n")) == (0, 1)
    assert outcome.err.startswith("next: mend the errors above")
    assert "error for every runtime: operator-not-in-opset (1): Gelu_0" in outcome.out
    (found,) = json.loads(call("inspect", tmp_path / "model.onnx", "--json").out)["findings"]
    assert (found["severity"], found["everywhere"]) == ("error", True)


def test_inspect_says_in_one_line_that_a_value_is_made_twice(tmp_path: Path) -> None:
    onnx.save(graph_of("y = Relu (x) y = Neg (x)"), tmp_path / "model.onnx")
    outcome = call("inspect", tmp_path / "model.onnx")
    assert outcome.code != 0
    assert "'y' is redeclared" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


def test_inspect_json_holds_all_places(broken: Path) -> None:
    outcome = call("inspect", broken, "--json")
    record = json.loads(outcome.out)
    assert (outcome.code, outcome.err, record["format"]) == (0, "", "onnx")
    errors = {found["name"]: found["places"] for found in record["findings"] if found["severity"] == "error"}
    assert errors == {
        "zero-point-not-zero": ["QuantizeLinear_0", "DequantizeLinear_1"],
        "bias-int32": ["DequantizeLinear_3"],
    }


def test_inspect_tells_of_an_engine_what_runs_in_int8(small_artifacts: dict[str, Artifact]) -> None:
    engine = small_artifacts["engine"]
    outcome = call("inspect", engine.path)
    record = json.loads(call("inspect", engine.main_file, "--json").out)
    assert (outcome.code, record["format"]) == (0, "tensorrt")
    assert outcome.err.startswith("next: convnext-deploy bench ")
    assert f"{record['nodes']['INT8']} INT8" in outcome.out
    assert "tensorrt-rtx" in outcome.out
    for product in record["float_nodes"]:
        assert product in outcome.out


def png(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))


def unreadable_metadata(path: Path) -> None:
    model = conv()
    entry = model.metadata_props.add()
    entry.key, entry.value = "convnext_deploy", "{"
    onnx.save(model, path)


@pytest.mark.parametrize(
    "damage",
    [png, unreadable_metadata, lambda path: path.touch(), lambda path: path.mkdir(), lambda path: None],
    ids=["png", "metadata", "empty", "folder", "missing"],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_inspect_ends_with_one_line_and_code_1_when_there_is_nothing_to_read(
    damage: Callable[[Path], None], as_json: bool, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    damage(path)
    outcome = call("inspect", path, *(["--json"] if as_json else []))
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert str(path) in outcome.err


def test_rules_of_tensorrt_are_no_errors_of_a_file_for_another_runtime(broken: Path) -> None:
    model = onnx.load(broken)
    entry = model.metadata_props.add()
    entry.key, entry.value = "convnext_deploy", json.dumps({"details": {"target": "openvino"}})
    onnx.save(model, broken)
    outcome = call("inspect", broken)
    assert "This file is for openvino; they count only where TensorRT is to run it." in outcome.out
    assert outcome.err == f"next: convnext-deploy bench {broken}\n"
