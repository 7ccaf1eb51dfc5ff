"""Graphs that take pixels and give probabilities or the largest classes compute what the network and its transform do."""

from __future__ import annotations

import itertools
from typing import Any, get_args, get_type_hints

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto

from convnext_deploy.artifacts.spec import GraphIO, Preprocess
from convnext_deploy.config.choices import InputType
from convnext_deploy.config.records import read_record
from convnext_deploy.errors import ArtifactError, ExportError
from convnext_deploy.exporters.onnx.fp16 import find_islands, to_half
from convnext_deploy.exporters.onnx.pre_post_processing import add_ends
from convnext_deploy.exporters.onnx.trace import export_float
from convnext_deploy.graphs.names import OUTPUT_NAMES
from convnext_deploy.graphs.onnx_io import tensor_shape
from convnext_deploy.runners.graph_io import prepare_images, run_in_parts, to_logits
from tests.exporters.conftest import Network

INPUTS = list(itertools.product(get_args(InputType), ("nchw", "nhwc")))
NAMES = {"float32": "images", "uint8": "pixels_uint8", "float32-0-1": "pixels_0_1", "float32-0-255": "pixels_0_255"}
OUTPUTS = ("logits", "probabilities", "top-k")


def preprocess_for(network: Network) -> Preprocess:
    channels = network.in_channels
    return Preprocess(network.image_size, 1.0, "bicubic", (0.41, 0.46, 0.5)[:channels], (0.21, 0.25, 0.3)[:channels])


def pixels(network: Network, count: int = 4) -> NDArray[np.uint8]:
    shape = (count, network.in_channels, network.image_size, network.image_size)
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def normalize(values: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.float32]:
    mean, std = (np.array(v)[:, None, None] for v in (preprocess.mean, preprocess.std))
    found: NDArray[np.float32] = ((values / 255 - mean) / std).astype(np.float32)
    return found


def run(graph: onnx.ModelProto, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
    onnx.checker.check_model(graph, full_check=True)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: images}), strict=True))


def logits_of(network: Network, images: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.inference_mode():
        found: NDArray[np.float32] = network.model(torch.from_numpy(images)).numpy()
    return found


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: NDArray[np.float32] = powers / powers.sum(axis=1, keepdims=True)
    return found


@pytest.mark.parametrize(("input_type", "layout"), INPUTS)
def test_any_input_gives_the_logits(network: Network, input_type: Any, layout: Any) -> None:
    preprocess, io = preprocess_for(network), GraphIO(input_type, layout)
    graph = add_ends(network.graph, io, preprocess)
    kind = TensorProto.UINT8 if input_type == "uint8" else TensorProto.FLOAT
    side, channels = network.image_size, network.in_channels
    assert graph.graph.input[0].type.tensor_type.elem_type == kind
    item = (channels, side, side) if layout == "nchw" else (side, side, channels)
    assert tensor_shape(graph.graph.input[0]) == (None, *item)
    raw = pixels(network)
    images = normalize(raw, preprocess)
    # a file that takes something else than the network does says so by the name of its input
    assert graph.graph.input[0].name == NAMES[input_type] + ("_nhwc" if layout == "nhwc" else "")
    white: dict[str, NDArray[Any]] = {
        "uint8": raw,
        "float32-0-1": raw / np.float32(255),
        "float32-0-255": raw.astype(np.float32),
    }
    taken = white.get(input_type, images)
    given = taken if layout == "nchw" else np.ascontiguousarray(taken.transpose(0, 2, 3, 1))
    expected = logits_of(network, images)
    assert np.abs(run(graph, given)["logits"] - expected).max() <= 1e-4 * np.abs(expected).max()
    from_pixels = prepare_images(np.ascontiguousarray(raw.transpose(0, 2, 3, 1)), io, preprocess)
    for prepared in (prepare_images(images, io, preprocess), from_pixels):
        assert (prepared.dtype, prepared.shape) == (given.dtype, given.shape)
        assert prepared.flags.c_contiguous
        assert np.abs(prepared.astype(np.float64) - given).max() <= 2e-6 * (io.white or 1.0)
    if input_type == "uint8":
        assert np.array_equal(prepared, given)


@pytest.mark.parametrize("half", [False, True])
def test_outputs_are_the_softmax_and_its_largest_classes(network: Network, half: bool) -> None:
    preprocess, images = preprocess_for(network), network.images(6)
    expected = softmax(logits_of(network, images))
    tolerance = 5e-3 if half else 1e-5
    for output in OUTPUTS[1:]:
        graph = add_ends(network.graph, GraphIO(output=output, top_k=3), preprocess)  # type: ignore[arg-type]
        if half:
            graph = to_half(graph, find_islands(graph, [], {}, int8_matmuls=False))
        found = run(graph, images)
        assert tuple(found) == OUTPUT_NAMES[output]
        if output == "probabilities":
            assert np.abs(found["probabilities"] - expected).max() < tolerance
        else:
            assert found["scores"].shape == found["classes"].shape == (6, 3)
            assert np.abs(found["scores"] - np.take_along_axis(expected, found["classes"], 1)).max() < tolerance
            assert np.abs(found["scores"] - -np.sort(-expected, axis=1)[:, :3]).max() < tolerance
        assert np.array_equal(to_logits(found, network.classes).argmax(axis=1), expected.argmax(axis=1))


@pytest.mark.heavy
def test_ends_keep_a_frozen_batch_frozen(networks: dict[str, Network]) -> None:
    network = networks["v1"]
    graph = export_float(network.model, network.in_channels, network.image_size, batch_size=2)
    assert tensor_shape(graph.graph.input[0])[0] == 2
    ended = add_ends(graph, GraphIO("uint8", "nhwc", "top-k", 2, 2), preprocess_for(network))
    assert tensor_shape(ended.graph.input[0])[0] == 2
    assert [tensor_shape(output) for output in ended.graph.output] == [(2, 2), (2, 2)]
    raw = np.ascontiguousarray(pixels(network, 2).transpose(0, 2, 3, 1))
    assert run(ended, raw)["classes"].shape == (2, 2)


def test_usual_ends_change_nothing(network: Network) -> None:
    same = add_ends(network.graph, GraphIO(), preprocess_for(network))
    assert same.SerializeToString(deterministic=True) == network.graph.SerializeToString(deterministic=True)


def test_more_classes_than_there_are_cannot_be_asked_for(network: Network) -> None:
    with pytest.raises(ExportError, match=r"the 6 largest of 5 classes were asked for; choose --top-k 1 to 5"):
        add_ends(network.graph, GraphIO(output="top-k", top_k=6), preprocess_for(network))


def test_every_pixel_value_survives_normalization() -> None:
    preprocess = Preprocess(16, 1.0, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    every = np.tile(np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16), (1, 3, 1, 1))
    back = prepare_images(normalize(every, preprocess), GraphIO("uint8"), preprocess)
    assert np.array_equal(back, every)


def test_values_no_pixel_has_are_cut_off() -> None:
    preprocess = Preprocess(2, 1.0, "bicubic", (0.5,), (0.5,))
    images = np.array([[[[-9.0, 9.0], [-1.0, 1.0]]]], np.float32)
    assert prepare_images(images, GraphIO("uint8"), preprocess).tolist() == [[[[0, 255], [0, 255]]]]


def test_to_logits_takes_the_output_with_one_column_per_class() -> None:
    features, logits = np.zeros((2, 7), np.float32), np.ones((2, 3), np.float16)
    found = to_logits({"features": features, "output": logits}, 3)
    assert found.dtype == np.float32
    assert found.tolist() == [[1.0] * 3] * 2
    with pytest.raises(ArtifactError, match=r"gives features \(2, 7\); expected logits of shape \(batch, 3\)"):
        to_logits({"features": features}, 3)


def test_to_logits_refuses_classes_that_do_not_exist() -> None:
    with pytest.raises(ArtifactError, match="names class 4; there are 3"):
        to_logits({"scores": np.ones((1, 1), np.float32), "classes": np.array([[4]])}, 3)


def test_probability_zero_has_a_finite_logarithm() -> None:
    assert np.isfinite(to_logits({"probabilities": np.array([[0.0, 1.0]], np.float32)}, 2)).all()


@pytest.mark.parametrize("count", [1, 3, 4, 7])
@pytest.mark.parametrize("frozen", [False, True])
def test_run_in_parts_gives_every_image_its_result(count: int, frozen: bool) -> None:
    images = np.arange(count, dtype=np.float32)[:, None]
    sizes = []

    def double(part: NDArray[Any]) -> dict[str, NDArray[Any]]:
        sizes.append(len(part))
        return {"twice": 2 * part}

    found = run_in_parts(images, double, 3, frozen=frozen)
    assert found["twice"].tolist() == (2 * images).tolist()
    assert set(sizes) == {3} if frozen else max(sizes) <= 3
    assert len(sizes) == -(-count // 3)


def test_manifest_may_say_only_what_a_graph_can_do() -> None:
    assert read_record(GraphIO, {}, "io") == GraphIO()
    for name in get_type_hints(GraphIO):
        # outputs may have any names
        wrongs: tuple[Any, ...] = ("other", -1, True, 1.5, [1] if name == "output_names" else [])
        for wrong in wrongs:
            with pytest.raises(ValueError, match=f"io: {name}"):
                read_record(GraphIO, {name: wrong}, "io")
    with pytest.raises(ValueError, match="unknown key 'colour'"):
        read_record(GraphIO, {"colour": "red"}, "io")
