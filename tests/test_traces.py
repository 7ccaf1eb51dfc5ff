"""Graphs that tests share are those that tracing would give."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from tests.conftest import EXPORT
from tests.traces import with_weights


class Small(nn.Module):
    """What the networks have: a convolution, linear layers, one of them square, a norm, and numbers of its own."""

    mean: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 6, 4, 4)
        self.norm = nn.LayerNorm(6)
        self.square, self.out = nn.Linear(6, 6), nn.Linear(6, 5)
        self.gamma = nn.Parameter(torch.rand(6))
        self.register_buffer("mean", torch.rand(3).view(-1, 1, 1))
        for parameter in self.parameters():
            parameter.data = torch.rand(parameter.shape)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.conv(images - self.mean).permute(0, 2, 3, 1))
        logits: Tensor = self.out(x + self.gamma * nn.functional.gelu(self.square(x))).mean((1, 2))
        return logits


class Doubled(Small):
    """A network of which something is computed from a weight when it is traced."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) @ (2 * self.out.weight)


def weights(network: nn.Module) -> dict[str, Any]:
    return {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}


def graph_of(network: nn.Module) -> bytes:
    program = EXPORT(network.eval(), (torch.zeros(2, 3, 8, 8),), dynamo=True, verbose=False)
    assert program is not None
    graph: bytes = program.model_proto.SerializeToString()
    return graph


@pytest.fixture(scope="module")
def first() -> tuple[bytes, dict[str, Any]]:
    return graph_of(Small(0)), weights(Small(0))


def images() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)


def outputs(graph: bytes | None) -> np.ndarray[Any, Any]:
    import onnxruntime

    assert graph is not None
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    found: np.ndarray[Any, Any] = session.run(None, {session.get_inputs()[0].name: images()})[0]
    return found


def test_other_weights_in_a_traced_graph_are_those_of_their_own(first: tuple[bytes, dict[str, Any]]) -> None:
    other = Small(1).eval()
    with torch.inference_mode():
        expected = other(torch.from_numpy(images())).numpy()
    np.testing.assert_allclose(outputs(with_weights(*first, weights(other))), expected, rtol=1e-5)
    assert with_weights(*first, weights(Small(0))) == first[0]


def test_what_is_not_certain_is_traced(first: tuple[bytes, dict[str, Any]]) -> None:
    graph, old = first
    new = weights(Small(1))
    assert with_weights(graph, {**old, "another": old["gamma"]}, {**new, "another": new["out.bias"]}) is None
    proto, ones = onnx.ModelProto.FromString(graph), np.ones((6, 6), np.float32)
    (square,) = (tensor for tensor in proto.graph.initializer if list(tensor.dims) == [6, 6])
    square.CopyFrom(numpy_helper.from_array(ones, "its name is gone"))
    assert (
        with_weights(proto.SerializeToString(), {**old, "square.weight": ones}, new) is None
    )  # as it is, or transposed
    assert with_weights(graph_of(Doubled(0)), weights(Doubled(0)), new) is None


class Twice(Small):
    """A network of two weights that begin as equals, of which the exporter keeps one."""

    def __init__(self, seed: int, *, equal: bool) -> None:
        super().__init__(seed)
        self.delta = nn.Parameter(self.gamma.detach().clone() if equal else torch.rand(6))

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.conv(images - self.mean).permute(0, 2, 3, 1))
        logits: Tensor = self.out(self.gamma * x + self.delta * nn.functional.gelu(self.square(x))).mean((1, 2))
        return logits


def test_equal_weights_that_share_an_initializer_are_not_told_apart() -> None:
    graph, old = graph_of(Twice(0, equal=True)), weights(Twice(0, equal=True))
    kept = {tensor.name for tensor in onnx.ModelProto.FromString(graph).graph.initializer} & {"gamma", "delta"}
    assert len(kept) == 1
    assert with_weights(graph, old, weights(Twice(1, equal=False))) is None
    equal = Twice(2, equal=True).eval()
    with torch.inference_mode():
        expected = equal(torch.from_numpy(images())).numpy()
    np.testing.assert_allclose(outputs(with_weights(graph, old, weights(equal))), expected, rtol=1e-5)
