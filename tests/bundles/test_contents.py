"""What goes into a bundle together, under which names, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from convnext_deploy.api.open_inputs import open_artifact
from convnext_deploy.api.options import DataOptions
from convnext_deploy.artifacts.artifact import write_manifest
from convnext_deploy.artifacts.details import FP16Record, ONNXDetails
from convnext_deploy.artifacts.spec import GraphIO, ModelSpec, default_preprocess
from convnext_deploy.bundles.contents import Contents, collect
from convnext_deploy.errors import ArtifactError
from convnext_deploy.system.progress import SilentProgress
from tests.bundles.graphs import row_sum_graph, stage_record, write_engine_artifact, write_onnx_artifact
from tests.weights import write_weights


def collected(*folders: Path) -> Contents:
    return collect([(folder, open_artifact(folder, None, DataOptions(), SilentProgress())) for folder in folders])


def test_collect_lists_the_smallest_model_first(tmp_path: Path) -> None:
    large, small = row_sum_graph(padding=99), row_sum_graph()
    folders = [
        write_onnx_artifact(tmp_path / name, graph, name).path for name, graph in (("fp32", large), ("int8", small))
    ]
    assert [model.name for model in collected(*folders).models] == ["convnext_atto-int8", "convnext_atto-fp32"]


def test_collect_names_models_of_one_precision_by_their_stages(tmp_path: Path) -> None:
    folders = [
        write_onnx_artifact(tmp_path / str(n) / stage, row_sum_graph(offset=n), "int8").path
        for n, stage in enumerate(("fine", "ö", "fine"))
    ]
    names = {model.name for model in collected(*folders).models}
    assert names == {"convnext_atto-int8-fine", "convnext_atto-int8-fine-2", "convnext_atto-int8"}


def test_collect_names_models_of_one_precision_by_what_tells_them_apart(tmp_path: Path) -> None:
    details = [
        ONNXDetails("tensorrt", io=GraphIO("uint8", "nhwc", batch_size=4)),
        ONNXDetails("tensorrt", io=GraphIO(output="top-k"), fp16=FP16Record("tensorrt-rtx", {}, 1.0, "noise")),
        ONNXDetails("tensorrt", io=GraphIO(output="logits")),
        ONNXDetails("tensorrt"),
    ]
    for n, entry in enumerate(details):
        write_onnx_artifact(tmp_path / str(n) / "onnx", row_sum_graph(offset=n), "int8", details=entry)
    write_onnx_artifact(tmp_path / "4" / "onnx", row_sum_graph(offset=4), "fp32", details=details[0])
    names = {m.name.removeprefix("convnext_atto-") for m in collected(*tmp_path.glob("*/onnx")).models}
    assert names == {"int8-pixels-nhwc-batch4", "int8-tensorrt-rtx-top-k", "int8-onnx", "int8-onnx-2", "fp32"}


def test_collect_names_a_file_of_another_origin_by_its_own_name(tmp_path: Path) -> None:
    path = tmp_path / "my model (1).onnx"
    path.write_bytes(row_sum_graph().SerializeToString())
    contents = collected(path)
    assert (contents.name, contents.models[0].name) == ("my_model_1", "my_model_1-fp32")


def test_collect_takes_the_same_artifact_once(tmp_path: Path) -> None:
    folder = write_onnx_artifact(tmp_path / "a", row_sum_graph()).path
    assert len(collected(folder, folder / "model.onnx", folder).models) == 1


@pytest.mark.parametrize(
    ("arguments", "dtype", "layout", "frozen", "outputs"),
    [
        ({}, "float32", "NCHW", None, ["logits"]),
        ({"batch": 4}, "float32", "NCHW", 4, ["logits"]),
        ({"pixels": True}, "uint8", "NHWC", None, ["logits"]),
        ({"top_k": 2}, "float32", "NCHW", None, ["scores", "classes"]),
    ],
)
def test_collect_reads_what_a_graph_takes_and_gives(
    tmp_path: Path, arguments: dict[str, Any], dtype: str, layout: str, frozen: int | None, outputs: list[str]
) -> None:
    (model,) = collected(write_onnx_artifact(tmp_path / "a", row_sum_graph(**arguments)).path).models
    assert (model.input.dtype, model.layout, model.frozen_batch) == (dtype, layout, frozen)
    assert [output.name for output in model.outputs] == outputs
    assert model.obstacle is None


def test_collect_finds_what_tensorrt_would_not_compute_as_written(tmp_path: Path) -> None:
    (model,) = collected(write_onnx_artifact(tmp_path / "a", row_sum_graph(unsigned=True), "int8").path).models
    assert model.obstacle is not None
    assert "TensorRT" in model.obstacle


@pytest.mark.parametrize(
    ("opset", "kind", "text"),
    [
        (
            17,
            TensorProto.FLOAT,
            r"operator-not-in-opset \(.*Gelu is in the standard from opset 20 on, not in 17\).*To mend",
        ),
        (20, TensorProto.DOUBLE, r"against-the-standard \(.*B has inconsistent type"),
    ],
)
def test_collect_refuses_what_no_runtime_takes(tmp_path: Path, opset: int, kind: int, text: str) -> None:
    proto = row_sum_graph()
    proto.opset_import[0].version = opset
    proto.graph.input[0].type.tensor_type.elem_type = kind
    proto.graph.node[-1].output[0] = "sums"
    proto.graph.node.append(helper.make_node("Gelu", ["sums"], ["logits"]))
    artifact = write_onnx_artifact(tmp_path / "a", proto)
    with pytest.raises(ArtifactError, match=f"a breaks the rule {text}"):
        collected(artifact.path)


def test_collect_tells_of_versions_that_devices_do_not_read(tmp_path: Path) -> None:
    proto = row_sum_graph()
    proto.opset_import[0].version = 23
    (model,) = collected(write_onnx_artifact(tmp_path / "a", proto).path).models
    assert model.late == ("opset 23: TensorRT 10.3 of JetPack 6 reads up to opset 20",)


def test_collect_refuses_a_graph_whose_scores_are_not_its_first_output(tmp_path: Path) -> None:
    proto = row_sum_graph()
    proto.graph.node.append(helper.make_node("Reshape", ["sum", "row_shape"], ["embedding"]))
    proto.graph.output.insert(0, helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 1]))
    onnx.save(proto, tmp_path / "a.onnx")
    with pytest.raises(ArtifactError, match=r"gives 'embedding' before its scores, logits"):
        collected(tmp_path / "a.onnx")


def test_collect_compares_an_engine_with_the_file_that_it_was_built_from(tmp_path: Path) -> None:
    one, other = (write_onnx_artifact(tmp_path / n, row_sum_graph(offset=i), "int8") for i, n in enumerate(("a", "b")))
    engine = write_engine_artifact(tmp_path / "engine", other, gpus=("SM86", "SM120"))
    found = collected(one.path, other.path, engine.path).engines
    assert [(e.model.artifact.path.name, e.is_exact, e.gpus) for e in found] == [
        ("b", True, ("SM86",)),
        ("b", True, ("SM120",)),
    ]
    assert len({e.file for e in found}) == 2
    assert found[0].file == f"engines/{found[0].model.name}.sm86.plan"


def test_collect_compares_an_engine_with_another_file_of_its_precision_and_says_so(tmp_path: Path) -> None:
    given, source = (write_onnx_artifact(tmp_path / n, row_sum_graph(offset=i)) for i, n in enumerate(("a", "b")))
    engine = write_engine_artifact(tmp_path / "engine", source)
    (found,) = collected(given.path, engine.path).engines
    assert (found.model.artifact.path.name, found.is_exact) == ("a", False)


def test_collect_names_engines_for_the_same_gpu_apart(tmp_path: Path) -> None:
    source = write_onnx_artifact(tmp_path / "a", row_sum_graph())
    engines = [write_engine_artifact(tmp_path / n, source, plan=n.encode()).path for n in ("one", "two")]
    own = write_engine_artifact(tmp_path / "own", source, flavor="tensorrt", gpus=())
    found = collected(source.path, *engines, own.path).engines
    assert [e.file.removeprefix("engines/convnext_atto-fp32") for e in found] == [".sm86.plan", ".sm86-2.plan", ".plan"]
    assert [e.path.read_bytes() for e in found] == [b"one", b"two", b"a plan"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"model": ModelSpec("convnext_tiny", 3)},
            "is a convnext_tiny, .* is a convnext_atto; a bundle holds one model",
        ),
        ({"class_names": ("cat", "dog", "yak")}, "is of the classes .*yak"),
        ({"class_names": None}, "is of the classes None"),
        ({"preprocess": default_preprocess(32, 0.5)}, r"is preprocessed by .*crop_pct=0\.5"),
    ],
)
def test_collect_refuses_artifacts_that_do_not_belong_together(
    tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    one = write_onnx_artifact(tmp_path / "one", row_sum_graph())
    other = write_onnx_artifact(tmp_path / "other", row_sum_graph(offset=1), **changes)
    with pytest.raises(ArtifactError, match=f"other {text}"):
        collected(one.path, other.path)


def test_collect_refuses_weights_and_says_what_to_do(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "weights.safetensors", ModelSpec("convnext_atto", 3))
    with pytest.raises(ArtifactError, match=r"format torch.*convnext-deploy export '.*weights\.safetensors'"):
        collected(path)


def test_collect_refuses_an_engine_without_any_onnx(tmp_path: Path) -> None:
    engine = write_engine_artifact(tmp_path / "engine", write_onnx_artifact(tmp_path / "a", row_sum_graph()))
    with pytest.raises(ArtifactError, match="name that one too"):
        collected(engine.path)


def test_collect_refuses_an_engine_of_a_precision_that_no_onnx_has(tmp_path: Path) -> None:
    fp32 = write_onnx_artifact(tmp_path / "a", row_sum_graph())
    engine = write_engine_artifact(tmp_path / "engine", write_onnx_artifact(tmp_path / "b", row_sum_graph(), "int8"))
    artifact = dataclasses.replace(engine, lineage=(stage_record("x", "tensorrt", "f" * 64, tmp_path),))
    write_manifest(artifact)
    with pytest.raises(ArtifactError, match="any of the precision int8"):
        collected(fp32.path, engine.path)


def test_collect_refuses_engines_without_weights(tmp_path: Path) -> None:
    source = write_onnx_artifact(tmp_path / "a", row_sum_graph())
    engine = write_engine_artifact(tmp_path / "engine", source, stripped=True)
    with pytest.raises(ArtifactError, match="stripped of its weights"):
        collected(source.path, engine.path)


def test_weights_in_a_file_of_their_own_are_joined(tmp_path: Path) -> None:
    proto = row_sum_graph()
    onnx.save(proto, tmp_path / "a.onnx", save_as_external_data=True, location="a.data", size_threshold=0)
    (model,) = collected(tmp_path / "a.onnx").models
    assert (model.joins_weights, model.fixes_size) == (True, False)


def test_collect_refuses_a_graph_of_other_images_than_its_manifest_says(tmp_path: Path) -> None:
    artifact = write_onnx_artifact(tmp_path / "a", row_sum_graph(), preprocess=default_preprocess(64))
    with pytest.raises(ArtifactError, match=r"images \(None, 3, 32, 32\); expected one input.*3, 64, 64"):
        collected(artifact.path)


def test_collect_refuses_outputs_that_are_no_scores(tmp_path: Path) -> None:
    proto = row_sum_graph()
    proto.graph.output.append(helper.make_tensor_value_info("column", TensorProto.FLOAT, ["batch", "any"]))
    artifact = write_onnx_artifact(tmp_path / "a", proto)
    with pytest.raises(ArtifactError, match=r"column float32 \(None, None\); expected scores"):
        collected(artifact.path)
