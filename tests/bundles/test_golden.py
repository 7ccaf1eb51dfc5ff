"""Which images are golden, and how far another machine's answers may be from those of this one."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from convnext_deploy.api.open_inputs import open_data_for
from convnext_deploy.api.options import DataOptions
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.bundles.contents import Model, collect
from convnext_deploy.bundles.device import answers
from convnext_deploy.bundles.golden import allowed_errors, choose_images, compute_outputs, spread_over_classes
from convnext_deploy.data.datasets import open_data
from convnext_deploy.data.transforms import normalize
from convnext_deploy.errors import ArtifactError
from convnext_deploy.system.execution import Execution
from tests.bundles.graphs import PREPROCESS, row_sum_graph, stage_record, write_onnx_artifact


def opened(folder: Path, proto: onnx.ModelProto, precision: str = "fp32") -> Model:
    artifact = write_onnx_artifact(folder, proto, precision)
    return collect([(artifact.path, artifact)]).models[0]


def test_spread_over_classes_takes_one_of_each_class_before_a_second() -> None:
    labels = np.array([2, 2, 2, 0, 0, 1])
    assert spread_over_classes(labels, 5) == [3, 5, 0, 4, 1]
    assert spread_over_classes(labels, 99) == [3, 5, 0, 4, 1, 2]


def test_spread_over_classes_takes_classes_at_even_distances_where_there_are_many() -> None:
    labels = np.repeat(np.arange(100), 3)
    assert labels[spread_over_classes(labels, 4)].tolist() == [0, 33, 66, 99]
    assert labels[spread_over_classes(labels, 1)].tolist() == [0]


def test_images_are_synthetic_without_data(tmp_path: Path) -> None:
    artifact = write_onnx_artifact(tmp_path / "a", row_sum_graph())
    one, two = (choose_images(artifact, 3, None) for _ in range(2))
    assert one.kind == "synthetic"
    assert (one.pixels.shape, one.pixels.dtype.name) == ((3, 32, 32, 3), "uint8")
    assert np.array_equal(one.pixels, two.pixels)
    assert one.pixels.std(axis=(1, 2)).min() > 10


def test_images_are_digits_for_what_was_trained_on_them(tmp_path: Path) -> None:
    record = dataclasses.replace(stage_record("train", "train", "0", tmp_path), data="digits")
    names = tuple(str(digit) for digit in range(10))
    artifact = write_onnx_artifact(tmp_path / "a", row_sum_graph(), lineage=(record,), class_names=names)
    artifact = dataclasses.replace(artifact, model=dataclasses.replace(artifact.model, num_classes=10))
    golden = choose_images(artifact, 4, open_data_for(artifact, DataOptions(), Execution()))
    assert (golden.kind, golden.origin) == ("built-in", "4 validation images of the built-in digits")


def test_images_of_the_user_are_named_without_their_path(tmp_path: Path, image_folder: Path) -> None:
    artifact = write_onnx_artifact(tmp_path / "a", row_sum_graph())
    golden = choose_images(artifact, 99, open_data(str(image_folder)))
    assert (golden.kind, golden.origin) == ("own", f"18 validation images of '{image_folder.name}'")


def test_model_inputs_normalizes_as_validation_does() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    takes = {"dtype": "float32", "layout": "NCHW"}
    found = answers.model_inputs(pixels, dataclasses.asdict(PREPROCESS), takes)
    expected = normalize(torch.from_numpy(pixels), PREPROCESS).numpy()
    assert found.flags.c_contiguous
    assert np.abs(found - expected).max() <= 1e-6


@pytest.mark.parametrize(
    ("dtype", "layout", "shape"),
    [("uint8", "NHWC", (2, 4, 5, 3)), ("uint8", "NCHW", (2, 3, 4, 5)), ("float16", "NHWC", (2, 4, 5, 3))],
)
def test_model_inputs_have_the_type_and_layout_that_a_model_takes(
    dtype: str, layout: str, shape: tuple[int, ...]
) -> None:
    pixels = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    found = answers.model_inputs(pixels, dataclasses.asdict(PREPROCESS), {"dtype": dtype, "layout": layout})
    assert (found.dtype.name, found.shape) == (dtype, shape)
    values = found if dtype == "uint8" else found * PREPROCESS.std * 255 + np.multiply(PREPROCESS.mean, 255)
    back = values.transpose(0, 2, 3, 1) if layout == "NCHW" else values
    assert np.abs(back - pixels).max() < 0.2


@pytest.mark.parametrize("count", [1, 3, 8, 9, 17])
@pytest.mark.parametrize(("smallest", "largest"), [(1, 8), (1, 1), (4, 4), (9, 9), (2, 5), (1, 64)])
def test_run_in_parts_gives_every_image_its_own_answer(count: int, smallest: int, largest: int) -> None:
    sizes = []

    def run(part: np.ndarray) -> dict[str, np.ndarray]:
        sizes.append(len(part))
        return {"double": 2 * part}

    images = np.arange(count, dtype=np.float32)[:, None]
    found = answers.run_in_parts(run, images, smallest, largest)
    assert np.array_equal(found["double"], 2 * images)
    assert min(sizes) >= smallest
    assert max(sizes) <= max(smallest, min(largest, 8))
    assert sizes[0] == smallest


def noisy(values: np.ndarray, size: float) -> dict[str, np.ndarray]:
    return {"logits": values + size * np.array([[1.0, -1.0, 0.0]])}


def test_compare_allows_what_is_within_the_tolerance_and_no_more() -> None:
    golden = np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 5.0]])
    # an error of 0.1 * sqrt(2), where the usual length is 5
    agrees, text = answers.compare({"logits": golden}, noisy(golden, 0.1), 0.0283)
    assert agrees
    assert text == "error 2.8e-02 of 2.8e-02 allowed, 2 of 2 images in the same class"
    assert not answers.compare({"logits": golden}, noisy(golden, 0.1), 0.0282)[0]


def test_compare_fails_when_a_clear_class_changed_and_not_when_a_close_one_did() -> None:
    golden = {"scores": np.array([[9.0, 8.0], [9.0, 1.0]]), "classes": np.array([[0, 1], [0, 1]])}
    close = {**golden, "classes": np.array([[1, 0], [0, 1]])}
    clear = {**golden, "classes": np.array([[0, 1], [1, 0]])}
    assert answers.compare(golden, close, 0.1) == (
        True,
        "error 0.0e+00 of 1.0e-01 allowed, 1 of 2 images in the same class",
    )
    agrees, text = answers.compare(golden, clear, 0.1)
    assert not agrees
    assert text.endswith("1 of 2 images in the same class; of the others 1 were clear cases")


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ({"logits": np.full((1, 2), np.nan)}, "not finite"),
        ({"logits": np.array([[np.inf, 1.0]])}, "not finite"),
        ({"logits": np.ones((1, 3))}, r"output 'logits' is \(1, 3\), expected \(1, 2\)"),
        ({"probabilities": np.ones((1, 2))}, "output 'logits' is None"),
    ],
)
def test_compare_fails_on_what_is_no_answer(found: dict[str, Any], text: str) -> None:
    agrees, said = answers.compare({"logits": np.array([[1.0, 2.0]])}, found, 1e9)
    assert not agrees
    assert re.search(text, said)


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("fp32", {"onnx": 1e-4, "engine": 1e-2}),
        ("fp16", {"onnx": 1e-2, "engine": 2e-2}),
        ("int8", {"onnx": 3e-2, "engine": 5e-2}),
        ("int8-fp16", {"onnx": 3e-2, "engine": 5e-2}),
        ("other", {"onnx": 3e-2, "engine": 5e-2}),
    ],
)
def test_allowed_errors_are_those_of_the_precision_for_a_network_that_does_not_amplify(
    precision: str, expected: dict[str, float], tmp_path: Path
) -> None:
    model = opened(tmp_path / "a", row_sum_graph(), precision)
    images = np.ones((4, 3, 32, 32), np.float32)
    path = model.artifact.main_file
    assert allowed_errors(model, path, images, compute_outputs(model, path, images)) == expected


def test_allowed_errors_grow_with_what_a_network_amplifies(tmp_path: Path) -> None:
    # what the first row sums to is almost nothing beside its parts, so that noise on these is large beside it
    images = np.ones((4, 3, 32, 32), np.float32)
    images[:, 0, 0, ::2] = -1 + 2e-3
    model = opened(tmp_path / "a", row_sum_graph())
    path = model.artifact.main_file
    found = allowed_errors(model, path, images, compute_outputs(model, path, images))
    assert 1e-4 <= found["onnx"] < 1e-2 < found["engine"] <= 0.3


def test_allowed_errors_of_pixels_are_those_of_the_precision(tmp_path: Path) -> None:
    model = opened(tmp_path / "a", row_sum_graph(pixels=True), "int8")
    images = np.ones((2, 32, 32, 3), np.uint8)
    path = model.artifact.main_file
    assert allowed_errors(model, path, images, compute_outputs(model, path, images)) == {"onnx": 3e-2, "engine": 5e-2}


def test_answers_that_are_not_finite_are_no_golden_ones(tmp_path: Path) -> None:
    model = opened(tmp_path / "a", row_sum_graph(offset=float("inf")))
    with pytest.raises(ArtifactError, match="'logits' with numbers that are not finite"):
        compute_outputs(model, model.artifact.main_file, np.ones((2, 3, 32, 32), np.float32))


def test_a_file_that_cannot_be_run_is_one_line(tmp_path: Path, graphs: dict[str, Artifact]) -> None:
    (model,) = collect([(graphs["int8"].path, graphs["int8"])]).models
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ArtifactError, match=r"^ONNX Runtime cannot run [^\n]*$"):
        compute_outputs(model, tmp_path / "model.onnx", np.ones((2, 3, 32, 32), np.float32))
