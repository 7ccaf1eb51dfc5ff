"""PyTorch's runners: threads, and kernels by `torch.compile`."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from convnext_deploy.errors import BackendUnavailableError
from convnext_deploy.runners.torch import CompiledTorchRunner, TorchRunner

compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


class Counting(nn.Module):
    """Sums of an image's values; keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.threads.append(torch.get_num_threads())
        return images.flatten(1)[:, :5] * 2.0


class Small(nn.Module):
    """Just enough to be compiled in seconds."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.relu(images.flatten(1)[:, :5] * 2.0 + 1.0)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def noise(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(count).standard_normal((count, 3, 4, 4), dtype=np.float32)


def test_float32_is_computed_in_float32_whatever_is_switched_on() -> None:
    network = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Flatten(), nn.Linear(32 * 4, 5))
    images = noise(40)
    runner = TorchRunner(network, "cpu")
    expected = runner.logits(images)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert np.array_equal(runner.logits(images), expected)
            assert network(torch.from_numpy(images)).dtype == torch.bfloat16
    finally:
        torch.set_float32_matmul_precision("highest")


def test_threads_hold_during_calls_and_not_after_them(two_threads: None) -> None:
    network = Counting()
    for threads in (1, 2, None):
        TorchRunner(network, "cpu", threads).logits(noise(1))
        assert torch.get_num_threads() == 2
    assert network.threads == [1, 2, 2]


def test_cuda_without_a_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailableError, match=r"^PyTorch finds no GPU; use the device cpu\.$"):
        TorchRunner(Small(), "cuda")


@compiler
def test_compiled_network_answers_for_any_number_of_images_with_two_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def run_as_it_is(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=run_as_it_is))
    for _ in range(2):
        runner, plain = CompiledTorchRunner(Small(), "cpu", 1), TorchRunner(Small(), "cpu")
        for count in (4, 1, 2, 11, 4):
            np.testing.assert_allclose(runner.logits(noise(count)), plain.logits(noise(count)), rtol=1e-6)
    assert len(graphs) == 4


@pytest.mark.slow
@compiler
def test_really_compiled_network_answers_for_any_number_of_images() -> None:
    runner, plain = CompiledTorchRunner(Small(), "cpu", 1), TorchRunner(Small(), "cpu")
    for count in (4, 1, 2, 11, 4):
        np.testing.assert_allclose(runner.logits(noise(count)), plain.logits(noise(count)), rtol=1e-6)


@compiler
def test_compiler_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = CompiledTorchRunner(Small(), "cpu")

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("CppCompileError: exit 1\npages of text")

    runner._network = refuse  # type: ignore[assignment]
    with pytest.raises(
        BackendUnavailableError, match=r"^torch\.compile fails here \([^\n]+\); use the runner torch\.$"
    ):
        runner.logits(noise(2))
