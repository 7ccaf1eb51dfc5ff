"""The model configurations say in Triton's own protobuf definitions what the models take and give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from tests.bundles.graphs import FP32, INT8

FP32_TYPE, UINT8_TYPE, INT64_TYPE = (
    model_config_pb2.DataType.Value(f"TYPE_{name}") for name in ("FP32", "UINT8", "INT64")
)
CPU_OR_GPU, GPU = (model_config_pb2.ModelInstanceGroup.Kind.Value(f"KIND_{name}") for name in ("AUTO", "GPU"))


def parse(path: Path) -> Any:
    return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
def test_a_model_of_any_batch_is_served_in_batches(made: Path, runtime: str) -> None:
    config = parse(made / "triton" / runtime / INT8 / "config.pbtxt")
    assert (config.name, config.max_batch_size) == (INT8, 6)
    (images,), (logits,) = config.input, config.output
    assert (images.name, images.data_type, list(images.dims)) == ("images", FP32_TYPE, [3, 32, 32])
    assert (logits.name, logits.data_type, list(logits.dims)) == ("logits", FP32_TYPE, [3])
    assert logits.label_filename == "labels.txt"
    assert list(config.dynamic_batching.preferred_batch_size) == [3, 6]
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    for size, warmup in zip((1, 6), config.model_warmup, strict=True):
        assert warmup.batch_size == size
        assert list(warmup.inputs["images"].dims) == [3, 32, 32]
        assert warmup.inputs["images"].zero_data


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
def test_a_model_with_a_frozen_batch_is_served_without_batching(made: Path, runtime: str) -> None:
    config = parse(made / "triton" / runtime / FP32 / "config.pbtxt")
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [4, 3, 32, 32]
    assert list(config.output[0].dims) == [4, 3]
    assert not config.HasField("dynamic_batching")
    (warmup,) = config.model_warmup
    assert warmup.batch_size == 1
    assert list(warmup.inputs["images"].dims) == [4, 3, 32, 32]


def test_each_repository_names_its_own_runtime(made: Path) -> None:
    onnx, plan = (parse(made / "triton" / runtime / INT8 / "config.pbtxt") for runtime in ("onnxruntime", "tensorrt"))
    assert (onnx.backend, onnx.default_model_filename) == ("onnxruntime", "model.onnx")
    assert (plan.platform, plan.default_model_filename) == ("tensorrt_plan", "model.plan")
    assert [group.kind for group in onnx.instance_group] == [CPU_OR_GPU]
    assert [(group.kind, group.count) for group in plan.instance_group] == [(GPU, 1)]
    assert plan.optimization.cuda.graphs
    assert not onnx.HasField("optimization")


def test_pixels_and_the_largest_classes_keep_their_types(make: Callable[..., Path]) -> None:
    config = parse(make(pixels=True, top_k=2) / "triton" / "onnxruntime" / FP32 / "config.pbtxt")
    assert (config.input[0].data_type, list(config.input[0].dims)) == (UINT8_TYPE, [32, 32, 3])
    assert config.model_warmup[0].inputs["images"].data_type == UINT8_TYPE
    assert [(o.name, o.data_type, list(o.dims), o.label_filename) for o in config.output] == [
        ("scores", FP32_TYPE, [2], ""),
        ("classes", INT64_TYPE, [2], ""),
    ]


def test_labels_lie_beside_the_configuration_a_line_for_each_class(made: Path) -> None:
    for runtime in ("onnxruntime", "tensorrt"):
        text = (made / "triton" / runtime / INT8 / "labels.txt").read_text(encoding="utf-8")
        assert text == "cat\ndog\nowl\n"
