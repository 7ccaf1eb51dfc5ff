"""The layers that PyTorch does not have: GRN, the norms without a mean, stochastic depth; and the heads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.models.layers import ACTIVATIONS, GRN, NORMS, ScaleNorm, drop_path
from convnext_deploy.models.variants import build_model

DEPTHS, DIMS, CLASSES = (1, 1, 1, 1), (8, 16, 24, 32), 5


def randomized_grn(channels: int) -> GRN:
    grn = GRN(channels)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        grn.gamma.normal_(generator=generator)
        grn.beta.normal_(generator=generator)
    return grn


def test_grn_equals_formula_in_float64() -> None:
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 6))
    grn = randomized_grn(6)
    expected = np.empty_like(x)
    for image in range(2):
        norms = np.array([np.sqrt(np.sum(x[image, :, :, channel] ** 2)) for channel in range(6)])
        response = norms / (norms.mean() + 1e-6)
        gamma, beta = grn.gamma.detach().numpy().ravel(), grn.beta.detach().numpy().ravel()
        expected[image] = gamma * (x[image] * response) + beta + x[image]
    np.testing.assert_allclose(grn(torch.from_numpy(x).float()).detach().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_grn_is_identity_when_new() -> None:
    x = torch.randn(2, 3, 3, 4)
    assert torch.equal(GRN(4)(x), x)


@torch.no_grad()
def test_grn_does_not_overflow_when_input_is_half_precision() -> None:
    x = torch.full((1, 56, 56, 4), 2000.0)  # norms of 112000, beyond float16's 65504
    grn = randomized_grn(4)
    found = grn(x.half())
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), grn(x), rtol=2e-3, atol=1.0)


def randomized_norm(kind: str, channels: int, eps: float) -> nn.Module:
    norm = NORMS[kind](channels, eps)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(4))
    return norm


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e4])
@torch.no_grad()
def test_rmsnorm_equals_that_of_torch(scale: float) -> None:
    x = scale * torch.randn(2, 3, 4, 12, generator=torch.Generator().manual_seed(1))
    norm = randomized_norm("rmsnorm", 12, 1e-6)
    expected = nn.RMSNorm(12, eps=1e-6)
    expected.load_state_dict(norm.state_dict())
    torch.testing.assert_close(norm(x), expected(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (3.0, 1.0), (0.5, 1e-3), (-100.0, 40.0)])
@pytest.mark.parametrize("kind", ["rmsnorm", "simplenorm"])
@torch.no_grad()
def test_norm_equals_formula_in_float64(kind: str, offset: float, scale: float) -> None:
    x = offset + scale * np.random.default_rng(2).normal(size=(5, 12))
    norm = randomized_norm(kind, 12, 1e-6)
    expected = np.empty_like(x)
    for row in range(5):
        centre = x[row].sum() / 12
        power = sum(x[row] ** 2) / 12 if kind == "rmsnorm" else sum((x[row] - centre) ** 2) / 11
        expected[row] = x[row] / np.sqrt(power + 1e-6)
    expected *= norm.get_parameter("weight").numpy()
    np.testing.assert_allclose(norm(torch.from_numpy(x).float()).numpy(), expected, rtol=3e-5, atol=1e-6)


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_norm_does_not_overflow_when_squares_exceed_half_precision(kind: str, dtype: torch.dtype) -> None:
    # 300 squared is beyond float16's 65504
    x = 300 * torch.where(torch.arange(64) % 3 == 0, -1.0, 1.0).expand(4, 64)
    norm = NORMS[kind](64, 1e-6)
    found = norm.to(dtype)(x.to(dtype))
    assert found.dtype == dtype
    assert found.isfinite().all()
    assert found.abs().max() > 0.5
    torch.testing.assert_close(found.float(), norm.float()(x), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("kind", "has_bias"), [("layernorm", True), ("rmsnorm", False), ("simplenorm", False)])
def test_norm_has_a_bias_only_when_it_subtracts_the_mean(kind: str, has_bias: bool) -> None:
    names = {name for name, _ in NORMS[kind](4, 1e-6).named_parameters()}
    assert names == ({"weight", "bias"} if has_bias else {"weight"})


@pytest.mark.parametrize("centred", [False, True])
def test_norm_gives_the_gradient_of_the_formula_in_float64(centred: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    x, direction = torch.randn(2, 3, 6, generator=generator).double()
    norm = ScaleNorm(6, 1e-6, centred=centred)
    found = x.float().requires_grad_()
    (norm(found) * direction.float()).sum().backward()
    expected = x.clone().requires_grad_()
    power = expected.var(-1, keepdim=True) if centred else (expected**2).mean(-1, keepdim=True)
    (expected / (power + 1e-6).sqrt() * direction).sum().backward()
    assert found.grad is not None
    assert expected.grad is not None
    torch.testing.assert_close(found.grad, expected.grad.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("gelu", nn.GELU()), ("gelu_tanh", nn.GELU(approximate="tanh")), ("silu", nn.SiLU()), ("relu", nn.ReLU())],
)
def test_activation_is_what_its_name_says(name: str, expected: nn.Module) -> None:
    x = torch.linspace(-6, 6, 101)
    torch.testing.assert_close(ACTIVATIONS[name](x), expected(x), rtol=0, atol=0)


def test_drop_path_keeps_or_zeroes_whole_samples_and_keeps_expectation() -> None:
    torch.manual_seed(0)
    x = torch.full((20_000, 2, 2, 3), 3.0)
    ratio = drop_path(x, 0.25) / x
    assert torch.equal(ratio, ratio[:, :1, :1, :1].expand_as(ratio))
    assert set(ratio.unique().tolist()) == {0.0, float(ratio.max())}
    assert ratio.max().item() == pytest.approx(1 / 0.75)
    standard_error = (0.25 / 0.75 / len(x)) ** 0.5
    assert ratio[:, 0, 0, 0].mean().item() == pytest.approx(1.0, abs=4 * standard_error)


def network_with(head_hidden_size: int | None, **options: object) -> ConvNeXt:
    torch.manual_seed(0)
    network = ConvNeXt(
        DEPTHS,
        DIMS,
        num_classes=CLASSES,
        head_hidden_size=head_hidden_size,
        layer_scale_init=0.5,
        **options,  # type: ignore[arg-type]
    )
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.normal_()
    return network


@contextmanager
def inputs_of(layer: nn.Module | None) -> Iterator[list[Tensor]]:
    """Record what a layer is given."""
    assert layer is not None
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach()))
    yield seen
    handle.remove()


IMAGES = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(9))


@torch.no_grad()
def test_head_dropout_zeroes_inputs_of_the_logits_only_in_training() -> None:
    network = network_with(None, head_dropout=0.25)
    with inputs_of(network.head) as seen:
        network.train()(IMAGES)
        network.eval()(IMAGES)
    dropped, whole = seen
    standard_error = (0.25 * 0.75 / dropped.numel()) ** 0.5
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=4 * standard_error)
    torch.testing.assert_close(dropped[dropped != 0], whole[dropped != 0] / 0.75)
    assert (whole == 0).sum() == 0


@torch.no_grad()
def test_head_input_dropout_zeroes_inputs_of_the_hidden_layer_only_in_training() -> None:
    network = network_with(48, head_input_dropout=0.5)
    with inputs_of(network.pre_logits) as seen, inputs_of(network.head) as hidden:
        network.train()(IMAGES)
        network.eval()(IMAGES)
    dropped, whole = seen
    standard_error = (0.5 * 0.5 / dropped.numel()) ** 0.5
    assert (dropped == 0).float().mean().item() == pytest.approx(0.5, abs=4 * standard_error)
    torch.testing.assert_close(dropped[dropped != 0], whole[dropped != 0] / 0.5)
    assert (whole == 0).sum() == 0
    assert (hidden[0] == 0).sum() == 0, "head_input_dropout is not head_dropout"


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@torch.no_grad()
def test_hidden_layer_stands_between_pooled_features_and_logits(activation: str) -> None:
    network = network_with(48, head_activation=activation).eval()
    with inputs_of(network.pre_logits) as seen:
        logits = network(IMAGES)
    state = network.state_dict()
    hidden = seen[0] @ state["pre_logits.weight"].T + state["pre_logits.bias"]
    hidden = hidden.relu() if activation == "relu" else F.gelu(hidden)
    torch.testing.assert_close(logits, hidden @ state["head.weight"].T + state["head.bias"])
    assert seen[0].shape == (64, 32)
    assert state["head.weight"].shape == (CLASSES, 48)


@pytest.mark.parametrize("first", [False, True])
@torch.no_grad()
def test_last_norm_stands_where_head_norm_first_says(first: bool) -> None:
    network = network_with(None, head_norm_first=first, head_norm_eps=1e-3).eval()
    assert (network.norm is None) == first
    assert (network.norm_pre is None) != first
    norm = network.norm_pre if first else network.norm
    assert isinstance(norm, nn.LayerNorm)
    assert norm.eps == 1e-3
    with inputs_of(network.head) as pooled, inputs_of(norm) as before:
        network(IMAGES)
    features = before[0]
    assert features.ndim == (4 if first else 2)
    mean, deviation = features.mean(-1, keepdim=True), features.var(-1, keepdim=True, correction=0)
    expected = (features - mean) / (deviation + 1e-3).sqrt()
    torch.testing.assert_close(pooled[0], expected.mean((1, 2)) if first else expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("asked", "expected"), [(None, 1536), (0, None), (64, 64)])
def test_build_model_takes_the_hidden_size_of_the_variant_unless_told(asked: int | None, expected: int | None) -> None:
    with torch.device("meta"):
        network = build_model(ModelSpec("convnext_large_mlp", CLASSES, head_hidden_size=asked))
    assert (network.pre_logits is not None) == (expected is not None)
    assert network.pre_logits is None or network.pre_logits.weight.shape == (expected, 1536)
    assert network.head.weight.shape == (CLASSES, expected or 1536)
