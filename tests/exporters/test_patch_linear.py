"""A convolution on patches and its linear layer are the same sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from convnext_deploy.exporters.onnx.patch_linear import PatchLinear, as_patch_linear, patch_rows


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kernel", "height", "width"), [((4, 4), 32, 32), ((2, 2), 7, 9), ((2, 3), 8, 10), ((1, 1), 3, 2)]
)
def test_patch_linear_computes_what_the_convolution_does(
    kernel: tuple[int, int], height: int, width: int, bias: bool
) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 5, kernel, stride=kernel, bias=bias).double()
    images = torch.randn(2, 3, height, width, dtype=torch.float64)
    with torch.no_grad():
        expected, found = convolution(images), PatchLinear(convolution)(images)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_patch_rows_are_the_weight_of_the_linear_layer() -> None:
    convolution = nn.Conv2d(3, 5, (2, 3), stride=(2, 3))
    weight = convolution.weight.detach().numpy()
    expected = np.stack([[w[c, i, j] for i in range(2) for j in range(3) for c in range(3)] for w in weight])
    assert np.array_equal(patch_rows(weight), expected)
    assert np.array_equal(PatchLinear(convolution).weight.detach().numpy(), expected)


def test_only_the_named_layers_are_replaced() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), nn.Sequential(nn.GELU(), nn.Conv2d(4, 4, 2, stride=2))).eval()
    images = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = model(images)
        found = as_patch_linear(model, ["1.1"])
        assert torch.allclose(found(images), expected, atol=1e-6)
    assert isinstance(found[0], nn.Conv2d)
    assert isinstance(found[1][1], PatchLinear)  # type: ignore[index]  # a Sequential
