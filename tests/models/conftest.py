"""What the tests of networks and their weights share: random weights, comparisons, and the one line of a refusal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.errors import CheckpointError, DeployError
from convnext_deploy.models.variants import build_model

TOLERANCE = 1e-5
# the layers whose outputs go through a nonlinearity; in all dialects, and in torchvision's by position
_BEFORE_ACTIVATION = ("pwconv1", "mlp.fc1", "block.3")


def random_weights(shapes: Mapping[str, Tensor], seed: int, *, weak: bool = False) -> dict[str, Tensor]:
    """Draw weights that keep activations near 1 and let every parameter, gamma and bias too, change the logits.

    `weak` makes what enters the norms about as small as their eps, so that a wrong eps shows.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, empty in shapes.items():
        noise = torch.empty(empty.shape).uniform_(-(3**0.5), 3**0.5, generator=generator)  # of variance 1
        is_matrix = empty.ndim in (2, 4) and "grn" not in key
        if is_matrix:
            weights[key] = noise.div_(empty[0].numel() ** 0.5)
        elif "grn" not in key and key.endswith("weight"):
            weights[key] = noise.mul_(0.2).add_(1)
        else:
            weights[key] = noise.mul_(0.3)
        matrix = key.removesuffix(".bias").removesuffix(".weight") + ".weight"
        of_convolution = matrix in shapes and shapes[matrix].ndim in (2, 4) and "grn" not in key
        if weak and of_convolution and not any(name in key for name in _BEFORE_ACTIVATION):
            weights[key].mul_(1e-3)
    return weights


def meta_state(spec: ModelSpec) -> dict[str, Tensor]:
    """Return names and shapes of a network of ours, without memory."""
    with torch.device("meta"):
        return dict(build_model(spec).state_dict())


def random_state(spec: ModelSpec, seed: int = 0) -> dict[str, Tensor]:
    """Return random weights of a network of ours under its own names."""
    return random_weights(meta_state(spec), seed)


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a state dict."""
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def assert_equal_states(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check that two state dicts are the same bit for bit."""
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype, key
        assert torch.equal(found[key], tensor), key


@torch.no_grad()
def assert_equal_logits(
    ours: nn.Module, reference: Callable[[Tensor], Tensor], *, channels: int = 3, sizes: tuple[int, ...] = (64, 96)
) -> None:
    """Check that two networks give the same logits for images of several sizes, to 1e-5 of the largest one."""
    for size in sizes:
        images = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(size))
        expected = reference(images)
        largest = expected.abs().max()
        assert expected.std() > 0.1 * largest > 0, "the logits say nothing"
        assert (ours(images) - expected).abs().max() <= TOLERANCE * largest


def refusal(call: Callable[[], object], kind: type[DeployError] = CheckpointError) -> str:
    """Return the one line with which `call` is refused."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def mapped_ranges(path: Path) -> list[range]:
    """Return the addresses at which a file is mapped into the memory of this process."""
    ranges = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == str(path):
            start, end = fields[0].split("-")
            ranges.append(range(int(start, 16), int(end, 16)))
    return ranges
