"""Logits of engines with the TensorRT runner: stand-ins for the bindings of each release and for the GPU of PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from convnext_deploy.artifacts.spec import GraphIO
from convnext_deploy.errors import ArtifactError
from convnext_deploy.runners.graph_io import to_logits
from tests.exporters.tensorrt_stand_in import RELEASES, RTX_RELEASE
from tests.runners.conftest import CLASSES, MAX_BATCH, SIDE, Machine, Opened


def some_images(count: int) -> NDArray[np.float32]:
    """Return images `(count, 3, SIDE, SIDE)`."""
    images: NDArray[np.float32] = np.random.default_rng(count).normal(size=(count, 3, SIDE, SIDE)).astype(np.float32)
    return images


def expected_logits(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what the stand-in computes."""
    logits: NDArray[np.float32] = images[:, 0, 0].sum(axis=1)[:, None] + np.arange(CLASSES, dtype=np.float32)
    return logits


@pytest.mark.parametrize("release", [*RELEASES, RTX_RELEASE])
@pytest.mark.parametrize("count", [1, MAX_BATCH, 5, 9])
def test_logits_are_right_for_any_number_of_images(
    open_release: Opened, machine: Machine, release: str, count: int
) -> None:
    runner = open_release(release)
    images = some_images(count)
    logits = runner.logits(images)
    assert logits.shape == (count, CLASSES)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected_logits(images), rtol=1e-5, atol=1e-5)
    batches = [shape[0] for shape in machine.script.batches]
    assert sum(batches) == count
    assert max(batches) <= MAX_BATCH
    runner.close()


@pytest.mark.parametrize("release", [*RELEASES, RTX_RELEASE])
@pytest.mark.parametrize("count", [1, 4, 6])
def test_logits_fill_up_a_frozen_batch_and_cut_the_result(
    open_release: Opened, machine: Machine, release: str, count: int
) -> None:
    machine.script.input_shape = (4, 3, SIDE, SIDE)
    images = some_images(count)
    found = open_release(release).logits(images)
    np.testing.assert_allclose(found, expected_logits(images), rtol=1e-5, atol=1e-5)
    assert {shape[0] for shape in machine.script.batches} == {4}


def test_logits_fill_up_to_the_least_batch_of_the_profile(open_release: Opened, machine: Machine) -> None:
    machine.script.engine_batches = (2, 3, 3)
    images = some_images(4)
    np.testing.assert_allclose(open_release(RTX_RELEASE).logits(images), expected_logits(images), rtol=1e-5, atol=1e-5)
    assert min(shape[0] for shape in machine.script.batches) >= 2


def test_logits_come_from_pixels_where_the_engine_takes_them(open_release: Opened, machine: Machine) -> None:
    machine.script.input_type, machine.script.input_shape = "UINT8", (-1, SIDE, SIDE, 3)
    io = GraphIO("uint8", "nhwc")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, SIDE, SIDE)).astype(np.float32)
    mean, std = (np.array(v, np.float32)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    found = open_release(RTX_RELEASE, io=io).logits(((pixels / 255 - mean) / std).astype(np.float32))
    # the stand-in sums what lies at the place of the first row: the three channels of its first pixel
    np.testing.assert_allclose(found, pixels[:, :, 0, 0].sum(axis=1)[:, None] + np.arange(CLASSES), rtol=1e-6)


def test_logits_come_from_half_precision_where_the_engine_takes_and_gives_it(
    open_release: Opened, machine: Machine
) -> None:
    machine.script.input_type, machine.script.outputs = "HALF", {"logits": "HALF"}
    images = some_images(3)
    found = open_release(RTX_RELEASE).logits(images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected_logits(images), atol=0.02)


def test_logits_come_from_scores_and_classes(open_release: Opened, machine: Machine) -> None:
    machine.script.outputs = {"classes": "INT64", "scores": "FLOAT"}
    images = np.abs(some_images(5)) + 1
    expected = to_logits({"probabilities": expected_logits(images)}, CLASSES)
    np.testing.assert_allclose(open_release(RTX_RELEASE).logits(images), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "kind", "said"),
    [((-1, 3, 16, 16), "FLOAT", r"shape \(3, 16, 16\)"), ((-1, 3, SIDE, SIDE), "UINT8", r"torch\.uint8")],
)
def test_logits_raise_when_the_engine_takes_other_images(
    open_release: Opened, machine: Machine, shape: tuple[int, ...], kind: str, said: str
) -> None:
    machine.script.input_shape, machine.script.input_type = shape, kind
    with pytest.raises(
        ArtifactError, match=rf"^[^\n]*\.plan takes images of [^\n]*{said}[^\n]*found \(3, 8, 8\) and float32\.$"
    ):
        open_release(RTX_RELEASE).logits(some_images(1))


def test_logits_raise_when_the_memory_of_the_gpu_is_short(
    open_release: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **more: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    runner = open_release(RTX_RELEASE)
    monkeypatch.setattr(torch, "empty", fail)
    with pytest.raises(ArtifactError, match=r"^[^\n]*on 2 images \(CUDA out of memory\.\)[^\n]*$"):
        runner.logits(some_images(2))


def test_logits_wait_for_the_stream_they_ran_on(open_release: Opened, machine: Machine) -> None:
    open_release(RTX_RELEASE).logits(some_images(2))
    assert machine.script.streams == [77]
    assert [stream.waited for stream in machine.streams] == [1]


def test_logits_accept_images_that_are_not_contiguous(open_release: Opened) -> None:
    images = some_images(3).transpose(0, 1, 3, 2)
    np.testing.assert_allclose(open_release(RTX_RELEASE).logits(images), expected_logits(images), rtol=1e-5, atol=1e-5)


def test_logits_raise_when_the_engine_fails(open_release: Opened, machine: Machine) -> None:
    runner = open_release(RTX_RELEASE)
    machine.script.runs = False
    with pytest.raises(ArtifactError, match=r"the engine [^\n]*\.plan failed: no reason given"):
        runner.logits(some_images(1))


def test_logits_raise_when_the_engine_refuses_the_shape(open_release: Opened, machine: Machine) -> None:
    runner = open_release(RTX_RELEASE)
    runner.logits(some_images(1))
    machine.script.shapes_fit = False
    with pytest.raises(ArtifactError, match=r"^[^\n]+$"):
        runner.logits(some_images(1))
