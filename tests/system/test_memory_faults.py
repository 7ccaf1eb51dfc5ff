"""Memory that runs out: told in one line with what to lower and where, or computed in smaller parts with the same answers."""

from __future__ import annotations

import dataclasses
import errno
import gc
import importlib
import os
import re
import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image
from torch import nn

from convnext_deploy.api.options import verb
from convnext_deploy.config.stages import STAGE_KINDS, stage_config
from convnext_deploy.data import decoding
from convnext_deploy.data.contents import Contents
from convnext_deploy.errors import ArtifactError, DeployError, TooLittleMemoryError
from convnext_deploy.evaluation.run_images import run_batches
from convnext_deploy.evaluation.score import Guessing, count_guesses
from convnext_deploy.evaluation.timing._worker import _describe
from convnext_deploy.runners.torch import TorchRunner
from convnext_deploy.system.memory_faults import Halving, needing_memory, out_of_memory
from convnext_deploy.system.progress import SilentProgress
from convnext_deploy.training import checkpoint_store
from convnext_deploy.training.checkpoint_store import TrainingStore
from tests.cli.conftest import call
from tests.images import read_image

CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.79 GiB of which 1.2 GiB is free."
)


class Said(SilentProgress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@contextmanager
def memory(more: int) -> Iterator[None]:
    """Let this process take so many bytes of addresses more, and no others."""
    gc.collect()
    size = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize(
    ("call", "asked"),
    [
        (lambda: torch.zeros(1 << 32), "17,179,869,184 bytes"),
        (lambda: np.ones(1 << 30), "8.00 GiB"),
        (lambda: bytes(1 << 33), ""),
        (lambda: Image.new("RGB", (60_000, 60_000)), ""),
    ],
    ids=["torch", "numpy", "python", "pillow"],
)
def test_what_libraries_say_of_too_little_memory_is_known(call: Callable[[], object], asked: str) -> None:
    text = f"here: there is too little memory{f' ({asked} more were asked for)' if asked else ''}; lower it."
    with memory(1 << 28), pytest.raises(TooLittleMemoryError) as caught, needing_memory("here", "lower it"):
        call()
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (torch.OutOfMemoryError(CUDA), "the GPU has too little memory (2.00 GiB more were asked for)"),
        (RuntimeError("CUDA error: out of memory\nCompile with"), "the GPU has too little memory"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "the GPU has too little memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "the GPU has too little memory"),
        (RuntimeError("Exception from src: std::bad_alloc"), "there is too little memory"),
        (ImportError("libx.so: failed to map segment from shared object"), "there is too little memory"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "there is too little memory"),
        (RuntimeError("could not create a primitive"), "there is too little memory"),
        (MemoryError(), "there is too little memory"),
        (RuntimeError("can't start new thread"), "no thread can be started, for want of memory or by ulimit -u"),
    ],
    ids=repr,
)
def test_whatever_says_it_ends_in_one_line_also_through_our_own_errors(error: Exception, text: str) -> None:
    def fail(*, within: bool) -> None:
        if not within:
            raise error
        try:
            raise error
        except Exception as found:
            raise ArtifactError(f"cannot run: {found}") from None

    for within in (False, True):
        one_line = rf"^here: {re.escape(text)}[^\n]*lower it\.$"
        with pytest.raises(TooLittleMemoryError, match=one_line), needing_memory("here", "lower it"):
            fail(within=within)


def test_other_errors_are_no_want_of_memory() -> None:
    for error in (
        RuntimeError("shapes differ"),
        ArtifactError("x is damaged: failed to allocate"),  # a file may have any name
        OSError(errno.ENOSPC, "No space left on device"),
        KeyError("out of memory"),
    ):
        assert out_of_memory(error) is None
        with pytest.raises(type(error)) as caught, needing_memory("here", "lower it"):
            raise error
        assert caught.value is error


def test_every_kind_of_stage_says_what_takes_less_memory() -> None:
    for kind in STAGE_KINDS:
        config = stage_config(kind)
        fields = {"calibration_images", "max_batch_size"} & {field.name for field in dataclasses.fields(config)}
        assert not fields or any(name in config.takes_less_memory for name in fields), kind


class OfSmallMemory:
    """A runner that computes no more than so many images at once."""

    name, device = "small", "cpu"

    def __init__(self, most: int, error: Exception) -> None:
        self.most, self.error, self.asked = most, error, list[int]()

    def logits(self, images: Any) -> NDArray[np.float32]:
        self.asked.append(len(images))
        if len(images) > self.most:
            raise self.error
        flat: NDArray[np.float32] = images.reshape(len(images), -1)[:, :7]
        return flat

    def prepare(self, images: Any) -> Any:
        raise AssertionError

    run = prepare

    def close(self) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError(CUDA), pytest.param(MemoryError(), marks=pytest.mark.heavy)], ids=["GPU", "CPU"]
)
def test_scoring_goes_on_with_half_of_the_batch_and_gives_the_same_score(error: Exception) -> None:
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((23, 1, 3, 3), np.float32))
    batches = list(zip(images.split(10), torch.arange(23).remainder(7).split(10), strict=True))

    def score(most: int, said: Said) -> tuple[object, list[int]]:
        runner = OfSmallMemory(most, error)
        return count_guesses(run_batches(runner, batches, Guessing(), "model: validate", said)), runner.asked

    expected, asked = score(10, Said())
    assert asked == [10, 10, 3]
    found, asked = score(3, said := Said())
    assert found == expected
    assert asked == [10, 5, 3, 3, 3, 1, 3, 3, 3, 1, 3]
    assert said.lines == [
        f"model: validate: too little memory for {size} images at once; goes on with {half}, which changes logits by rounding at "
        "most"
        for size, half in ((10, 5), (5, 3))
    ]
    with pytest.raises(
        TooLittleMemoryError, match=r"^model: validate, of a single image: (the GPU has|there is) too little"
    ):
        list(run_batches(OfSmallMemory(0, error), batches[-1:], Guessing(), "model: validate", Said()))


def test_halving_lets_other_errors_through() -> None:
    with pytest.raises(ArtifactError, match="damaged"):
        Halving(OfSmallMemory(0, ArtifactError("damaged")).logits, np.concatenate, "x", Said())(
            np.zeros((4, 7), np.float32)
        )


class _Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.linspace(-1, 1, 64 * 27).reshape(64, 3, 3, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(images, self.weight).mean((2, 3))


def _torch_logits() -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    return TorchRunner(_Convolution(), "cpu").logits


def _onnx_logits() -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    images, logits = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", None, None, None]) for n in "xy")
    weight = helper.make_tensor("w", TensorProto.FLOAT, [64, 3, 3, 3], np.linspace(-1, 1, 64 * 27))
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "g", [images], [logits], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])

    def compute(taken: NDArray[np.float32]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = session.run(None, {"x": taken})[0].mean((2, 3))
        return found

    return compute


@pytest.mark.parametrize("runtime", [_torch_logits, _onnx_logits])
@pytest.mark.heavy
def test_real_runtimes_compute_the_same_in_little_memory(
    runtime: Callable[[], Callable[[NDArray[np.float32]], NDArray[np.float32]]],
) -> None:
    images, logits = np.random.default_rng(0).standard_normal((2000, 3, 32, 32), np.float32), runtime()
    expected = logits(images[:30])
    with memory(150 << 20):
        found = Halving(logits, np.concatenate, "score", said := Said())(images)
    assert said.lines
    assert len(found) == len(images)
    np.testing.assert_allclose(found[:30], expected, atol=1e-4)


def test_verb_that_runs_out_of_memory_ends_in_one_line() -> None:
    def inspect() -> None:
        raise MemoryError

    inspect.__module__ = "convnext_deploy.api.inspect"
    with pytest.raises(TooLittleMemoryError, match=r"^inspect: there is too little memory; close other programs"):
        verb(inspect)()


def test_command_line_tells_memory_and_disks_wherever_they_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tempfile.gettempdir()
    for error, text in (
        (MemoryError(), "this command: there is too little memory; close other programs"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            f"a temporary file cannot be written to {temporary} (No space",
        ),
        (
            OSError(errno.EIO, os.strerror(errno.EIO), "/x/y"),
            "/x/y cannot be written (Input/output error); see what dmesg says",
        ),
    ):

        def fail(_: str, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(importlib, "import_module", fail)
        outcome = call("models")
        assert (outcome.code, outcome.out) == (1, "")
        assert re.fullmatch(rf"error: {re.escape(text)}[^\n]+\.\n", outcome.err)


def test_image_is_not_called_unreadable_for_want_of_memory(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    path = next(image_folder.rglob("*.png"))
    monkeypatch.setattr(decoding, "to_8_bit", fail)
    monkeypatch.setattr(decoding, "_ends_oddly", lambda *_: True)
    with pytest.raises(MemoryError):
        read_image(path)
    with pytest.raises(MemoryError):
        Contents().find_unreadable([path])


def test_state_of_a_training_is_not_called_damaged_for_want_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = TrainingStore(tmp_path, "key")
    store.save({"step": 1})
    before = (tmp_path / checkpoint_store.LAST).read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(RuntimeError, match="can't allocate"):
        store.load()
    assert (tmp_path / checkpoint_store.LAST).read_bytes() == before


def test_isolated_measurement_says_it_too() -> None:
    assert _describe(RuntimeError("std::bad_alloc")) == {"failed": "too little memory"}
    assert _describe(DeployError("wrong")) == {"failed": "wrong"}
