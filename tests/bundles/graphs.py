"""Graphs of a few nodes, with the interfaces that exported networks have, and artifact folders of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from convnext_deploy.artifacts.artifact import Artifact, StageRecord, describe_file, write_manifest
from convnext_deploy.artifacts.details import EngineDetails, ONNXDetails, Profile
from convnext_deploy.artifacts.spec import ModelSpec, default_preprocess
from convnext_deploy.config.choices import Flavor

SIDE, CHANNELS, CLASSES = 32, 3, ("cat", "dog", "owl")
PREPROCESS = default_preprocess(SIDE)
INT8, FP32 = "convnext_atto-int8", "convnext_atto-fp32"
"""Names that models of these artifacts have in a bundle."""


def row_sum_graph(
    *,
    offset: float = 0.0,
    batch: int | None = None,
    pixels: bool = False,
    top_k: int | None = None,
    unsigned: bool = False,
    padding: int = 0,
) -> onnx.ModelProto:
    """Return a graph whose score of class `c` is the sum of `images[:, 0, 0]`, plus `c` and `offset`.

    This is what the stand-in for TensorRT computes. With `pixels` it takes uint8 `(N, S, S, C)`; with `top_k` it gives `scores`
    and `classes`; `unsigned` puts a pair of uint8 behind the scores, which TensorRT does not compute as written; `padding` makes
    the file larger by so many floats.
    """
    size: int | str = "batch" if batch is None else batch
    shape = [size, SIDE, SIDE, CHANNELS] if pixels else [size, CHANNELS, SIDE, SIDE]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8 if pixels else TensorProto.FLOAT, shape)
    constants: dict[str, np.ndarray] = {
        "starts": np.array([0, 0], np.int64),
        "ends": np.array([1, 1], np.int64),
        "slice_axes": np.array([1, 2], np.int64),
        "axes": np.array([1, 2, 3], np.int64),
        "row_shape": np.array([-1, 1], np.int64),
        "steps": (np.arange(len(CLASSES)) + offset).astype(np.float32),
    }
    nodes = [helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT)] if pixels else []
    nodes += [
        helper.make_node("Slice", ["floats" if pixels else "images", "starts", "ends", "slice_axes"], ["row"]),
        helper.make_node("ReduceSum", ["row", "axes"], ["sum"], keepdims=0),
        helper.make_node("Reshape", ["sum", "row_shape"], ["column"]),
        helper.make_node("Add", ["column", "steps"], ["logits"]),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [size, len(CLASSES)])]
    if unsigned:
        constants |= {"scale": np.array(1.0, np.float32), "zero": np.array(128, np.uint8)}
        nodes[-1].output[0] = "exact"
        nodes += [
            helper.make_node("QuantizeLinear", ["exact", "scale", "zero"], ["integers"]),
            helper.make_node("DequantizeLinear", ["integers", "scale", "zero"], ["logits"]),
        ]
    if top_k is not None:
        constants["k"] = np.array([top_k], np.int64)
        nodes.append(helper.make_node("TopK", ["logits", "k"], ["scores", "classes"], axis=-1))
        outputs = [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [size, top_k]),
            helper.make_tensor_value_info("classes", TensorProto.INT64, [size, top_k]),
        ]
    if padding:
        constants["padding"] = np.zeros(padding, np.float32)
    initializers = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    graph = helper.make_graph(nodes, "row_sum", [images], outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def stage_record(name: str, kind: str, source: str, folder: Path) -> StageRecord:
    """Return a step of a lineage that was made from what has the hash `source`, on the machine of this test."""
    data = str(folder / "photos")
    paths = {"source": str(folder / "before")}
    return StageRecord(name, kind, {}, {"source": source}, paths, data, "0", 0, {"torch": "2"}, 1.0, "key")


def write_onnx_artifact(folder: Path, proto: onnx.ModelProto, precision: str = "fp32", **changes: Any) -> Artifact:
    """Write an ONNX artifact; `changes` replace fields of its manifest."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    fields: dict[str, Any] = {
        "model": ModelSpec("convnext_atto", len(CLASSES), CHANNELS),
        "class_names": CLASSES,
        "preprocess": PREPROCESS,
        "lineage": (stage_record(folder.name, "onnx", "0" * 64, folder.parent),),
    }
    fields |= {"details": ONNXDetails(), "files": (describe_file(folder / "model.onnx"),), **changes}
    artifact = Artifact(folder, precision=precision, **fields)
    write_manifest(artifact)
    return artifact


def write_engine_artifact(
    folder: Path,
    source: Artifact,
    *,
    flavor: Flavor = "tensorrt-rtx",
    gpus: tuple[str, ...] = ("SM86",),
    plan: bytes = b"a plan",
    **changes: Any,
) -> Artifact:
    """Write an artifact of engines, one file per GPU, all with the same content, from an ONNX artifact; `changes`: its details."""
    folder.mkdir(parents=True)
    files = [folder / f"model.{gpu.lower()}.plan" for gpu in gpus] or [folder / "model.plan"]
    for file in files:
        file.write_bytes(plan)
    version = "1.7.1.116" if flavor == "tensorrt-rtx" else "10.3.0"
    artifact = Artifact(
        folder,
        EngineDetails(flavor, version, gpus, Profile(1, 1, 4), **changes),
        source.precision,
        source.model,
        source.class_names,
        source.preprocess,
        tuple(describe_file(file) for file in files),
        (*source.lineage, stage_record(folder.name, "tensorrt", source.sha256, folder.parent)),
    )
    write_manifest(artifact)
    return artifact
