"""Networks with random weights everywhere, and files of them, for the tests that compare with other libraries."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from convnext_deploy.artifacts.spec import ModelSpec, Preprocess, default_preprocess, file_header
from convnext_deploy.models.checkpoints.safe_reader import save_state
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.models.variants import build_model

PREPROCESS = Preprocess(64, 0.8, "bilinear", (0.41, 0.46, 0.5), (0.21, 0.25, 0.3))
"""Unlike every default."""
WIDEST = 350
"""Channels of the last stage: wider networks have the same traits and take longer, so their tests are slow ones."""


@torch.no_grad()
def fill(network: nn.Module, seed: int = 0) -> None:
    """Draw weights that keep activations near 1 and let every parameter, LayerScale and biases too, change the logits."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim in (2, 4) and min(parameter.shape[:2]) > 1:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
        elif "norm" in name and name.endswith("weight"):
            parameter.copy_(1 + 0.2 * noise)
        else:
            parameter.copy_(0.3 * noise)


def random_network(spec: ModelSpec, seed: int = 0) -> ConvNeXt:
    """Return the network of a spec with random weights, in evaluation mode."""
    with torch.random.fork_rng([]):
        network = build_model(spec)
    fill(network, seed)
    return network.eval()


def write_weights(
    path: Path,
    spec: ModelSpec,
    class_names: tuple[str, ...] | None = None,
    preprocess: Preprocess | None = None,
    *,
    seed: int = 0,
) -> Path:
    """Write a random network as this package does, with a header that tells all about it."""
    found = preprocess or default_preprocess(224, None, spec.in_channels)
    save_state(path, random_network(spec, seed).state_dict(), file_header(spec, found, class_names, "fp32"))
    return path


def noise_images(channels: int, side: int, count: int = 2) -> Tensor:
    """Return normalized noise `(count, channels, side, side)`."""
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(side))


def assert_equal_states(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Check that two state dicts have the same names and the same bits."""
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key], tensor), key


def assert_same_logits(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Check that logits agree to a part of their largest, and are such that this means something."""
    assert expected.std() > 0.1
    assert found.shape == expected.shape
    assert ((found - expected).abs().max() / expected.abs().max()).item() <= tolerance
