"""The TensorRT runner with stand-ins for the bindings of each release and for the GPU of PyTorch."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from convnext_deploy.artifact import Artifact, describe_file
from convnext_deploy.errors import ArtifactError, BackendUnavailableError
from convnext_deploy.runners import open_runner, tensorrt
from convnext_deploy.spec import ModelSpec, default_preprocess
from tests.exporters.tensorrt_stand_in import RELEASES, RTX_RELEASE, Script, create_stand_in

CLASSES, SIDE, MAX_BATCH = 3, 8, 4


@dataclass
class Stream:
    """A CUDA stream of the stand-in for PyTorch's GPU."""

    cuda_stream: int = 77
    waited: int = 0

    def synchronize(self) -> None:
        self.waited += 1


@dataclass
class Machine:
    """What the tests set and see: the bindings, the streams, and the GPU's compute capability."""

    script: Script
    streams: list[Stream]
    capability: tuple[int, int] = (8, 6)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine that looks as if it had a GPU, whose memory is that of the CPU."""
    machine = Machine(Script(), [])

    def create_stream() -> Stream:
        machine.streams.append(Stream())
        return machine.streams[-1]

    empty = torch.empty

    def empty_on_cpu(shape: tuple[int, ...], device: str) -> torch.Tensor:
        assert device == "cuda"
        return empty(shape)

    monkeypatch.setattr(tensorrt, "cuda_driver_error", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: machine.capability)
    monkeypatch.setattr(torch.cuda, "Stream", create_stream)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(torch, "empty", empty_on_cpu)
    return machine


@pytest.fixture
def artifact(tmp_path: Path, machine: Machine) -> Artifact:
    """An engine of TensorRT-RTX for two GPUs, with the bytes that the stand-in takes for an engine."""
    files = []
    for name in ("model.sm86.plan", "model.sm89.plan"):
        (tmp_path / name).write_bytes(machine.script.plan or b"")
        files.append(describe_file(tmp_path / name))
    details = {"flavor": "tensorrt-rtx", "gpus": ["SM86", "SM89"], "max_batch_size": MAX_BATCH}
    spec = ModelSpec("convnext_atto", CLASSES)
    return Artifact(tmp_path, "tensorrt", "int8", spec, None, default_preprocess(SIDE), tuple(files), details)


Opened = Callable[[str], Any]


@pytest.fixture
def open_release(artifact: Artifact, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Open the engine as if it were of the given release."""

    def open_it(release: str) -> Any:
        stand_in = create_stand_in(release, machine.script)
        monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
        if release == RTX_RELEASE:
            return open_runner(artifact)
        details = {"flavor": "tensorrt", "gpus": [], "max_batch_size": MAX_BATCH}
        return open_runner(dataclasses.replace(artifact, details=details))

    return open_it


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
    with pytest.raises(ArtifactError, match="the engine failed"):
        runner.logits(some_images(1))


def test_logits_raise_when_the_engine_refuses_the_shape(open_release: Opened, machine: Machine) -> None:
    runner = open_release(RTX_RELEASE)
    runner.logits(some_images(1))
    machine.script.shapes_fit = False
    with pytest.raises(ArtifactError, match=r"^[^\n]+$"):
        runner.logits(some_images(1))


def test_open_runner_takes_the_plan_of_the_gpu_present(
    open_release: Opened, machine: Machine, artifact: Artifact
) -> None:
    machine.capability = (8, 9)
    (artifact.path / "model.sm86.plan").unlink()
    images = some_images(1)
    np.testing.assert_allclose(open_release(RTX_RELEASE).logits(images), expected_logits(images), rtol=1e-5, atol=1e-5)


def test_open_runner_says_which_gpu_is_here_when_the_engine_is_for_others(
    open_release: Opened, machine: Machine
) -> None:
    machine.capability = (12, 0)
    with pytest.raises(BackendUnavailableError, match=r"^built for SM86, SM89; not run: this GPU is SM120$"):
        open_release(RTX_RELEASE)
    assert machine.script.built == []


def test_open_runner_touches_no_runtime_when_there_is_no_gpu(
    open_release: Opened, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "cuda_driver_error", lambda: "no GPU")
    with pytest.raises(BackendUnavailableError, match=r"^built for SM86, SM89; not run: no GPU$"):
        open_release(RTX_RELEASE)
    with pytest.raises(BackendUnavailableError, match=r"^built; not run: no GPU$"):
        open_release("tensorrt-10.3.0")
    assert machine.script.built == []


def test_open_runner_says_so_when_pytorch_has_no_cuda(open_release: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailableError, match=r"^built for SM86, SM89; not run: this PyTorch has no CUDA"):
        open_release(RTX_RELEASE)


@pytest.mark.parametrize("release", [*RELEASES, RTX_RELEASE])
def test_open_runner_gives_the_words_of_tensorrt_when_the_engine_cannot_be_loaded(
    open_release: Opened, machine: Machine, release: str
) -> None:
    machine.script.loads, machine.script.errors = False, ("the plan is of another version",)
    with pytest.raises(ArtifactError, match=r"^[^\n]*\.plan: the plan is of another version$"):
        open_release(release)


def test_open_runner_gives_the_words_of_tensorrt_in_one_line(open_release: Opened, machine: Machine) -> None:
    machine.script.loads, machine.script.errors = False, ("the plan is\n  of another version",)
    with pytest.raises(ArtifactError, match=r"^[^\n]*: the plan is of another version$"):
        open_release(RTX_RELEASE)


def test_open_runner_raises_when_no_context_can_be_made(open_release: Opened, machine: Machine) -> None:
    machine.script.contexts = False
    with pytest.raises(ArtifactError, match=r"^[^\n]+$"):
        open_release(RTX_RELEASE)


def test_open_runner_prints_the_install_line_when_the_bindings_are_missing(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'tensorrt_rtx"):
        open_runner(artifact)
