"""Learning rates of every step, and which parameters are decayed."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.models.variants import build_model
from convnext_deploy.quantization.prepare import prepare
from convnext_deploy.quantization.scheme import resolve_scheme
from convnext_deploy.training.optimizer import create_optimizer, learning_rate_at, scaled_learning_rate


def test_scaled_learning_rate_is_linear_and_equal_at_batch_4096() -> None:
    assert scaled_learning_rate(4e-3, 4096) == 4e-3
    assert scaled_learning_rate(4e-3, 128) == pytest.approx(1.25e-4)
    assert scaled_learning_rate(4e-3, 8192) == pytest.approx(8e-3)


@pytest.mark.parametrize(
    ("batch", "peak"), [(8192, 8e-3), (4096, 4e-3), (512, 5e-4), (128, 2.5e-4), (32, 1.25e-4), (16, 8.84e-5)]
)
def test_learning_rate_that_nobody_gave_falls_with_the_square_root_below_batch_512(batch: int, peak: float) -> None:
    said_nothing, said = FitConfig(batch_size=batch), FitConfig(batch_size=batch, base_learning_rate=4e-3)
    assert scaled_learning_rate(said_nothing.linear_learning_rate, batch) == pytest.approx(peak, rel=1e-3)
    assert scaled_learning_rate(said.linear_learning_rate, batch) == pytest.approx(4e-3 * batch / 4096)


def test_learning_rate_at_warms_up_peaks_and_ends() -> None:
    rates = [learning_rate_at(step, 21, 4, 0.8, 0.1) for step in range(21)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == pytest.approx(0.8)
    assert rates[12] == pytest.approx(0.8 * (0.1 + 0.9 / 2))  # halfway down
    assert rates[8] == pytest.approx(0.8 * (0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2))  # a quarter of the way
    assert rates[20] == pytest.approx(0.08)


def test_learning_rate_at_starts_at_peak_when_there_is_no_warm_up() -> None:
    assert [learning_rate_at(step, 3, 0, 1.0, 0.0) for step in range(3)] == pytest.approx([1.0, 0.5, 0.0])


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(total=st.integers(1, 200), warmup=st.floats(0, 0.5), peak=st.floats(1e-6, 1.0), ratio=st.floats(0, 1))
def test_learning_rate_at_rises_to_peak_then_falls(total: int, warmup: float, peak: float, ratio: float) -> None:
    warmup_steps = int(warmup * total)
    rates = [learning_rate_at(step, total, warmup_steps, peak, ratio) for step in range(total)]
    assert max(rates) == pytest.approx(peak)
    assert min(rates[warmup_steps:]) >= peak * ratio * (1 - 1e-12)
    up, down = rates[:warmup_steps], rates[warmup_steps:]
    assert up == sorted(up)
    assert down == sorted(down, reverse=True)
    if len(down) > 1:
        assert down[-1] == pytest.approx(peak * ratio, abs=1e-12)


@pytest.mark.parametrize("variant", ["convnext_atto", "convnextv2_atto"])
@pytest.mark.parametrize("quantized", [False, True])
def test_create_optimizer_decays_weights_of_convolutions_and_linear_layers_only(variant: str, quantized: bool) -> None:
    with torch.device("meta"):
        model = build_model(ModelSpec(variant, 3))
        if quantized:
            prepare(model, resolve_scheme("tensorrt"))
    optimizer = create_optimizer(model, 0.1, 0.05)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    names = {name: decay[id(parameter)] for name, parameter in model.named_parameters()}
    assert len(decay) == len(names) == sum(len(group["params"]) for group in optimizer.param_groups)
    assert all(group["lr"] == 0.1 for group in optimizer.param_groups)
    for name, value in names.items():
        matrix = name.endswith(("conv.weight", "pwconv1.weight", "pwconv2.weight", "head.weight"))
        first_or_second = name in {
            "downsample_layers.0.0.weight",
            *(f"downsample_layers.{i}.1.weight" for i in (1, 2, 3)),
        }
        assert value == (0.05 if matrix or first_or_second else 0.0), name
    assert any("log2_scale" in name for name in names) == quantized
    assert any("grn.gamma" in name for name in names) == (variant == "convnextv2_atto")


def test_create_optimizer_leaves_out_frozen_parameters() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    model[0].weight.requires_grad_(False)
    optimizer = create_optimizer(model, 0.1, 0.05)
    assert [len(group["params"]) for group in optimizer.param_groups] == [0, 3]


def test_create_optimizer_step_equals_adamw_formula() -> None:
    model = torch.nn.Linear(3, 2)
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    optimizer = create_optimizer(model, 0.01, 0.5)
    gradients = torch.randn(2, 3), torch.randn(2)
    model.weight.grad, model.bias.grad = gradients[0].clone(), gradients[1].clone()
    optimizer.step()
    # After one step the bias-corrected moments are the gradient and its square.
    updates = [gradient / (gradient.abs() + 1e-8) for gradient in gradients]
    torch.testing.assert_close(model.weight.detach(), weight * (1 - 0.01 * 0.5) - 0.01 * updates[0])
    torch.testing.assert_close(model.bias.detach(), bias - 0.01 * updates[1])
