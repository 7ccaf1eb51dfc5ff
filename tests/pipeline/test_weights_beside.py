"""ONNX files that keep their weights beside them, in one file, in many or in folders, are used; or what is missing is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import convnext_deploy as api
from convnext_deploy.api.options import DataOptions, ExecutionOptions
from convnext_deploy.errors import ArtifactError
from convnext_deploy.graphs.lint.onnx_summary import ONNXRecord
from convnext_deploy.graphs.onnx_io import join_weights, load_onnx
from convnext_deploy.graphs.onnx_view import external_tensors, open_view
from tests.pipeline.test_image_sizes import write_graph

HERE = ExecutionOptions(device="cpu", workers=0)
FORMS: dict[str, dict[str, Any]] = {
    "one file": {"all_tensors_to_one_file": True, "location": "w.bin"},
    "many files": {"all_tensors_to_one_file": False},
    "a folder": {"all_tensors_to_one_file": True, "location": "weights/w.bin"},
}


@pytest.fixture(autouse=True, scope="module")
def _short_timing(short_timing: None) -> None:
    """Nothing here looks at the latency."""


@pytest.fixture(params=list(FORMS.values()), ids=list(FORMS))
def graph(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    (tmp_path / "a" / "weights").mkdir(parents=True)
    proto = onnx.load(write_graph(tmp_path / "whole.onnx", 32, 48))
    path = tmp_path / "a" / "m.onnx"
    onnx.save_model(proto, path, save_as_external_data=True, size_threshold=60, **request.param)
    assert any(True for _ in external_tensors(open_view(path).model))
    return path


def test_they_are_used_as_others(graph: Path, image_folder: Path, tmp_path: Path) -> None:
    found = api.validate(graph, data=DataOptions(image_folder), execution=HERE).rows[0]
    assert found.accuracy is not None
    inspected = api.inspect(graph)
    assert isinstance(inspected, ONNXRecord)
    assert not [each for each in inspected.findings if each.severity == "error"]
    api.bundle(graph, out=tmp_path / "bundle", golden_images=3)
    assert api.verify_bundle(tmp_path / "bundle").passed
    (copied,) = (tmp_path / "bundle" / "onnx").iterdir()
    assert not list(external_tensors(open_view(copied).model))
    whole, joined = (onnx.load(path).graph.initializer for path in (tmp_path / "whole.onnx", copied))
    for expected, own in zip(whole, joined, strict=True):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(own), onnx.numpy_helper.to_array(expected))


def test_links_as_in_the_cache_of_a_hub_are_followed(tmp_path: Path) -> None:
    """There `model.onnx` and its weights are links into one folder; a link that leads elsewhere is none of them."""
    whole = onnx.load(write_graph(tmp_path / "whole.onnx", 32, 48))
    blobs, shown = tmp_path / "blobs", tmp_path / "snapshots" / "onnx"
    blobs.mkdir()
    shown.mkdir(parents=True)
    onnx.save_model(
        onnx.load(tmp_path / "whole.onnx"), blobs / "m", save_as_external_data=True, size_threshold=60, location="w.bin"
    )
    (blobs / "w.bin").rename(blobs / "abc")
    for name, blob in (("m.onnx", "m"), ("w.bin", "abc")):
        (shown / name).symlink_to(blobs / blob)
    path = shown / "m.onnx"
    assert list(external_tensors(open_view(path).model))
    proto = load_onnx(path)
    join_weights(proto, path)
    for expected, own in zip(whole.graph.initializer, proto.graph.initializer, strict=True):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(own), onnx.numpy_helper.to_array(expected))
    (blobs / "abc").rename(tmp_path / "abc")
    (shown / "w.bin").unlink()
    (shown / "w.bin").symlink_to(tmp_path / "abc")
    with pytest.raises(ArtifactError, match=r"points to weights outside its folder, 'w.bin'"):
        open_view(path)


def test_what_is_missing_is_named_in_the_same_words_everywhere(graph: Path, image_folder: Path, tmp_path: Path) -> None:
    lost = sorted(path for path in graph.parent.rglob("*") if path.is_file() and path != graph)[0]
    lost.unlink()
    data = DataOptions(image_folder)
    calls: tuple[Callable[[], object], ...] = (
        lambda: api.validate(graph, data=data, execution=HERE),
        lambda: api.bench([graph], execution=ExecutionOptions(device="cpu")),
        lambda: api.quantize(graph, data=data, out=tmp_path / "out", execution=HERE),
        lambda: api.export(graph, format="tensorrt-rtx", out=tmp_path / "out"),
        lambda: api.bundle(graph, out=tmp_path / "out"),
        lambda: api.predict(graph, [image_folder / "val" / "cat" / "0.png"], execution=HERE),
        lambda: api.inspect(graph),
    )
    said = set()
    for call in calls:
        with pytest.raises(ArtifactError) as caught:
            call()
        said.add(str(caught.value))
    name = lost.relative_to(graph.parent).as_posix()
    assert said == {f"{graph} keeps its weights in '{name}' beside it, which is missing; copy both files together."}
    assert not (tmp_path / "out").exists()
