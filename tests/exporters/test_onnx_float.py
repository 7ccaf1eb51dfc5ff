"""Float graphs: what they look like, that they compute what PyTorch computes, and what their files hold."""

from __future__ import annotations

import copy
import gc
import json
import logging
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import nn

from convnext_deploy.errors import ArtifactError, ExportError
from convnext_deploy.exporters.onnx.trace import export_float
from convnext_deploy.graphs.names import name_nodes
from convnext_deploy.graphs.onnx_io import METADATA_KEY, load_onnx, read_metadata, save_onnx, tensor_shape
from tests.exporters.conftest import Network


def run_onnx(path: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the logits of a file in ONNX Runtime."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    logits: NDArray[np.float32] = session.run(["logits"], {"images": images})[0]
    return logits


def small_graph() -> onnx.ModelProto:
    """Return a valid graph of one node."""
    value = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3])
    result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph([helper.make_node("Relu", ["images"], ["logits"])], "small", [value], [result])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_export_float_writes_opset_20_and_at_most_ir_10(network: Network) -> None:
    assert [(opset.domain, opset.version) for opset in network.graph.opset_import] == [("", 20)]
    assert network.graph.ir_version <= 10


def test_export_float_names_inputs_and_outputs_and_leaves_the_batch_open(network: Network) -> None:
    (images,), (logits,) = network.graph.graph.input, network.graph.graph.output
    assert (images.name, logits.name) == ("images", "logits")
    assert tensor_shape(images) == (None, network.in_channels, network.image_size, network.image_size)
    assert tensor_shape(logits) == (None, network.classes)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_export_float_computes_the_logits_of_pytorch_for_any_batch(network: Network, batch: int) -> None:
    images = network.images(batch)
    with torch.inference_mode():
        expected = network.model(torch.from_numpy(images)).numpy()
    found = run_onnx(network.path, images)
    assert found.shape == (batch, network.classes)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_export_float_writes_norms_and_gelus_as_single_nodes(network: Network) -> None:
    counts = Counter(node.op_type for node in network.graph.graph.node)
    blocks = sum(network.depths)
    assert counts["LayerNormalization"] == blocks + 5  # one per block, stem, three downsamplings, head
    assert counts["Gelu"] == blocks
    assert counts["Erf"] == counts["Tanh"] == 0
    assert counts["ReduceL2"] == (blocks if network.version == 2 else 0)  # GRN
    assert counts["Conv"] == blocks + 4
    assert counts["MatMul"] + counts["Gemm"] == 2 * blocks + 1


def test_export_float_marks_every_product_with_the_name_of_its_layer(network: Network) -> None:
    layers = [name for name, module in network.model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    products = [node for node in network.graph.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert sorted(node.doc_string for node in products) == sorted(layers)


def test_export_float_passes_the_full_checker(network: Network) -> None:
    onnx.checker.check_model(onnx.load(network.path), full_check=True)


def test_export_float_leaves_nothing_of_this_machine_in_the_file(network: Network) -> None:
    content = network.path.read_bytes()
    traces = (str(Path.cwd()), sys.prefix, "site-packages", ".py", "Traceback", 'File "', "stack_trace")
    assert [trace for trace in traces if trace.encode() in content] == []
    assert not any(node.doc_string or node.metadata_props for node in onnx.load(network.path).graph.node)


@pytest.mark.heavy
def test_export_float_gives_the_same_bytes_again(
    networks: dict[str, Network], traced_anew: None, tmp_path: Path
) -> None:
    network = networks["v2"]
    save_onnx(
        export_float(network.model, network.in_channels, network.image_size),
        tmp_path / "again.onnx",
        {"precision": "any"},
    )
    assert (tmp_path / "again.onnx").read_bytes() == network.path.read_bytes()


@pytest.mark.parametrize(
    "error", [RuntimeError("cannot trace\nthis\nlong story"), AssertionError()], ids=["long", "empty"]
)
def test_export_float_fails_in_one_line_when_the_exporter_raises(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(torch.onnx, "export", fail)
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    with pytest.raises(ExportError, match=r"^torch\.onnx\.export failed[^\n]*$"):
        export_float(nn.Identity(), 3, 32)
    assert logger.level == before
    assert gc.isenabled()


def test_save_onnx_writes_metadata_that_read_metadata_returns(tmp_path: Path) -> None:
    header = {"precision": "fp32", "class_names": ["cat", "öwl"], "preprocess": {"mean": [0.5, 0.25]}}
    save_onnx(small_graph(), tmp_path / "model.onnx", header)
    assert read_metadata(load_onnx(tmp_path / "model.onnx")) == header


def test_save_onnx_can_write_the_same_model_twice(tmp_path: Path) -> None:
    model = small_graph()
    save_onnx(model, tmp_path / "one.onnx", {"n": 1})
    save_onnx(model, tmp_path / "two.onnx", {"n": 2})
    assert read_metadata(load_onnx(tmp_path / "two.onnx")) == {"n": 2}


def test_save_onnx_refuses_an_invalid_graph_and_writes_nothing(tmp_path: Path) -> None:
    model = small_graph()
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ExportError, match=r"^the exported graph is not valid ONNX[^\n]*$"):
        save_onnx(model, tmp_path / "model.onnx", {})
    assert list(tmp_path.iterdir()) == []


def test_read_metadata_is_empty_for_a_file_of_another_origin() -> None:
    assert read_metadata(small_graph()) == {}


@pytest.mark.parametrize("text", ["[1, 2]", "null"])
def test_read_metadata_is_empty_when_the_value_is_no_mapping(text: str) -> None:
    assert read_metadata(with_metadata(text)) == {}


def test_read_metadata_raises_one_line_when_the_value_is_no_json() -> None:
    with pytest.raises(ArtifactError, match=r"^[^\n]+$"):
        read_metadata(with_metadata("{broken"))


def with_metadata(text: str) -> onnx.ModelProto:
    """Return a graph whose metadata of this package is `text`."""
    model = small_graph()
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, text
    return model


@pytest.mark.parametrize("content", [None, b"no network, just words\n", b""], ids=["missing", "text", "empty"])
def test_load_onnx_raises_one_line_when_the_file_is_none(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"^[^\n]*{re.escape(str(path))}[^\n]*$"):
        load_onnx(path)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
def test_load_onnx_raises_one_line_when_the_file_is_cut_off(
    networks: dict[str, Network], fraction: float, tmp_path: Path
) -> None:
    content = networks["v1"].path.read_bytes()
    path = tmp_path / "model.onnx"
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(ArtifactError, match=rf"^[^\n]*{re.escape(str(path))}[^\n]*$"):
        load_onnx(path)


def test_load_onnx_raises_one_line_when_the_path_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"^[^\n]+$"):
        load_onnx(tmp_path)


def test_load_onnx_returns_what_was_saved(networks: dict[str, Network]) -> None:
    saved = copy.deepcopy(networks["v1"].graph)
    name_nodes(saved.graph)
    for node in saved.graph.node:
        node.doc_string = ""
    loaded = load_onnx(networks["v1"].path)
    assert loaded.graph == saved.graph
    assert json.loads(loaded.metadata_props[0].value) == {"precision": "any"}


def test_tensor_shape_tells_dynamic_dimensions_from_fixed_ones() -> None:
    value = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, None, 0])
    assert tensor_shape(value) == (None, 3, None, 0)
