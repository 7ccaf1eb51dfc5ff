"""A certificate is honest: wrong folds show in it. And what cannot be folded is refused in one line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convnext_deploy.artifacts.details import Certificate, Difference
from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.errors import CheckpointError, DataError, RecipeError
from convnext_deploy.models import fold as folding
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.models.equivalence import compare
from convnext_deploy.models.fold import fold
from convnext_deploy.quantization.prepare import prepare
from convnext_deploy.quantization.scheme import resolve_scheme
from tests.models.conftest import refusal
from tests.models.test_fold import CLASSES, PREPROCESS, REDUCED_DEPTHS, assert_exact, images_of, network_of

V1, V2 = ModelSpec("test_convnext", CLASSES), ModelSpec("convnextv2_atto", CLASSES)
Layer = nn.Linear | nn.Conv2d


def relative(certificate: Certificate) -> dict[tuple[str, str], float]:
    return {(found.images, found.precision): found.relative for found in certificate.differences}


def absorb_without_shift(layer: Layer, scale: Tensor | None, shift: Tensor | None) -> None:
    RIGHT_INPUT(layer, scale, None)


def absorb_scaled_shift(layer: Layer, scale: Tensor | None, shift: Tensor | None) -> None:
    RIGHT_INPUT(layer, scale, None)  # the weight is scaled too early for the bias
    RIGHT_INPUT(layer, None, shift)


def absorb_one_pixel(layer: Layer, scale: Tensor | None, shift: Tensor | None) -> None:
    assert layer.bias is not None
    if shift is not None:
        layer.bias += layer.weight.reshape(*layer.weight.shape[:2], -1)[..., 0] @ shift.flatten()
    RIGHT_INPUT(layer, scale, None)


def absorb_inverse_scale(layer: Layer, scale: Tensor | None, shift: Tensor | None) -> None:
    RIGHT_INPUT(layer, None if scale is None else 1 / scale, shift)


def absorb_next_channel(layer: Layer, scale: Tensor | None, shift: Tensor | None) -> None:
    RIGHT_INPUT(layer, None if scale is None else scale.roll(1), shift)


def absorb_in_float32(layer: Layer, scale: Tensor | None, shift: Tensor | None) -> None:
    RIGHT_INPUT(layer, scale, shift)
    layer.weight.copy_(layer.weight.float())


def scale_without_bias(layer: Layer, gain: Tensor | None) -> None:
    if gain is not None:
        layer.weight *= gain.view(-1, 1)


def scale_nothing(layer: Layer, gain: Tensor | None) -> None:
    pass


RIGHT_INPUT: Callable[[Layer, Tensor | None, Tensor | None], None] = folding._absorb_input
WRONG: list[tuple[str, Callable[..., None], ModelSpec]] = [
    ("_absorb_input", absorb_without_shift, V1),
    ("_absorb_input", absorb_without_shift, V2),
    ("_absorb_input", absorb_scaled_shift, V1),
    ("_absorb_input", absorb_one_pixel, V1),
    ("_absorb_input", absorb_inverse_scale, V1),
    ("_absorb_input", absorb_inverse_scale, ModelSpec("convnext_zepto_rms", CLASSES)),
    ("_absorb_input", absorb_next_channel, V2),
    ("_scale_output", scale_without_bias, V1),
    ("_scale_output", scale_nothing, V1),
]


@pytest.mark.parametrize(("function", "wrong", "spec"), WRONG)
def test_certificate_shows_a_wrong_fold(
    monkeypatch: pytest.MonkeyPatch, function: str, wrong: Callable[..., None], spec: ModelSpec
) -> None:
    monkeypatch.setattr(folding, function, wrong)
    certificate = fold(network_of(spec), PREPROCESS, images_of(spec)).certificate
    assert not certificate.holds
    assert min(relative(certificate).values()) > 1e-3  # random and given images, float64 and float32: all of them tell


def test_certificate_shows_arithmetic_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "_absorb_input", absorb_in_float32)
    certificate = fold(network_of(V1), PREPROCESS, images_of(V1)).certificate
    assert not certificate.holds
    found = relative(certificate)
    assert found["random", "float64"] > 1e-9 < found["given", "float64"]
    assert found["random", "float32"] < 1e-5


def test_certificate_shows_a_weight_that_was_lost_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(V1)
    copy_ = torch.Tensor.copy_

    def forgetful(target: Tensor, source: Tensor) -> Tensor:
        return target if target.shape == network.head.weight.shape else copy_(target, source)

    monkeypatch.setattr(torch.Tensor, "copy_", forgetful)
    certificate = fold(network, PREPROCESS, images_of(V1)).certificate
    found = relative(certificate)
    assert found["random", "float64"] < 1e-12
    assert found["random", "float32"] > 1e-3 < found["given", "float32"]
    assert not certificate.holds


def test_certificate_shows_a_wrong_normalization(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "_as_pixels", lambda images, preprocess: images)
    assert not fold(network_of(V1), PREPROCESS, pixels="unit", rewrites=()).certificate.holds


def test_certificate_says_what_it_compared() -> None:
    network = network_of(V1)
    result = fold(network, PREPROCESS, images_of(V1, count=11), pixels="byte")
    assert [(d.images, d.num_images, d.precision) for d in result.certificate.differences] == [
        ("random", 2, "float64"),
        ("given", 11, "float64"),
        ("random", 2, "float32"),
        ("given", 11, "float32"),
    ]
    with torch.no_grad():
        expected = network.double()(images_of(V1, count=11).double()).abs().max().item()
    given = result.certificate.differences[1]
    assert given.absolute == pytest.approx(given.relative * expected, rel=1e-9)
    assert {d.images for d in fold(network.float(), PREPROCESS).certificate.differences} == {"random"}


def test_certificate_is_the_same_each_time() -> None:
    assert fold(network_of(V1), PREPROCESS).certificate == fold(network_of(V1), PREPROCESS).certificate


def test_record_is_json_and_names_every_place() -> None:
    certificate = fold(network_of(ModelSpec("convnext_atto_ols", CLASSES)), PREPROCESS, pixels="byte").certificate
    assert certificate.holds
    read = json.loads(json.dumps(dataclasses.asdict(certificate), allow_nan=False))
    assert read["folded"][0] == {
        "rewrite": "norm_affine",
        "source": "downsample_layers.1.0",
        "target": "downsample_layers.1.1",
    }
    assert {"rewrite": "layer_scale", "source": "stages.2.1", "target": "stages.2.1.pwconv2"} in read["folded"]
    assert {"rewrite": "norm_affine", "source": "norm", "target": "head"} in read["folded"]
    assert len(read["folded"]) == 3 + 2 * sum(REDUCED_DEPTHS) + 1
    assert [kept["source"] for kept in read["kept"]] == ["downsample_layers.0.2", "mean and std"]
    assert set(read["differences"][0]) == {"images", "num_images", "precision", "absolute", "relative"}


def test_certificate_is_frozen() -> None:
    certificate = fold(network_of(V1), PREPROCESS).certificate
    with pytest.raises(dataclasses.FrozenInstanceError):
        certificate.folded = ()  # type: ignore[misc]


@pytest.mark.parametrize(
    ("precision", "difference", "holds"),
    [("float64", 1e-9, True), ("float64", 1.1e-9, False), ("float32", 1e-3, True), ("float32", 1.1e-3, False)],
)
def test_certificate_holds_within_its_tolerances(precision: Any, difference: float, holds: bool) -> None:
    exact = Difference("random", 2, "float64", 0.0, 0.0)
    certificate = Certificate((), (), (exact, Difference("given", 2, precision, 5.0, difference), exact))
    assert certificate.holds is holds


def test_compare_is_relative_to_the_largest_logit() -> None:
    before = torch.tensor([[1.0, -8.0], [2.0, 4.0]], dtype=torch.float64)
    after = before + torch.tensor([[0.0, 0.5], [-2.0, 0.0]])
    assert compare("given", torch.float32, before, after) == Difference("given", 2, "float32", 2.0, 0.25)
    zero = torch.zeros(2, 3, dtype=torch.float64)
    assert compare("random", torch.float64, zero, zero).relative == 0
    assert 1e300 < compare("random", torch.float64, zero, zero + 1).relative < float("inf")


def fold_with(**changes: Any) -> Callable[[], object]:
    arguments = {"network": network_of(V1), "preprocess": PREPROCESS, **changes}
    return lambda: fold(**arguments)


def broken(key: str, value: float) -> ConvNeXt:
    network = network_of(V1)
    with torch.no_grad():
        network.get_parameter(key).flatten()[1] = value
    return network


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["stages.0.0.gamma", "downsample_layers.1.0.bias", "head.weight"])
def test_fold_refuses_weights_that_are_not_finite(key: str, value: float) -> None:
    message = refusal(fold_with(network=broken(key, value)))
    assert f"'{key}' holds values that are not finite; the training that made it diverged." in message


def test_fold_refuses_weights_that_folding_makes_infinite() -> None:
    network = broken("stages.0.0.gamma", 1e30)
    with torch.no_grad():
        network.get_parameter("stages.0.0.pwconv2.weight").mul_(1e10)
    # in float32 the logits were already lost; what float64 can hold is refused where it is rounded
    assert "not finite" in refusal(fold_with(network=network))


def test_fold_refuses_a_quantized_network() -> None:
    network = prepare(network_of(V1), resolve_scheme("tensorrt"))
    assert "'downsample_layers.1.1' is quantized" in refusal(fold_with(network=network))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fold_refuses_half_precision(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    assert f"the weights are {name}; fold the float32" in refusal(fold_with(network=network_of(V1, dtype)))


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"rewrites": ["layer_scal"]}, RecipeError, "'layer_scal' is unknown. Did you mean 'layer_scale'?"),
        ({"pixels": "bytes"}, RecipeError, "'bytes' is unknown. Did you mean 'byte'?"),
        ({"images": torch.zeros(2, 1, 64, 64)}, DataError, "shape (2, 1, 64, 64); expected (N, 3, H, W)"),
        ({"images": torch.zeros(3, 64, 64)}, DataError, "shape (3, 64, 64)"),
        ({"images": torch.zeros(0, 3, 64, 64)}, DataError, "shape (0, 3, 64, 64)"),
        ({"images": torch.full((1, 3, 64, 64), float("nan"))}, DataError, "images hold values that are not finite"),
        ({"preprocess": dataclasses.replace(PREPROCESS, std=(0.2, 0.0, 0.2))}, DataError, "cannot be normalized: std"),
        (
            {"preprocess": dataclasses.replace(PREPROCESS, mean=(0.5,), std=(0.5,))},
            DataError,
            "for 1 channels, the network takes 3",
        ),
        ({"images": torch.full((1, 3, 64, 64), 3e38)}, CheckpointError, "logits are not finite in float32"),
    ],
)
def test_fold_refuses(changes: dict[str, Any], kind: type[CheckpointError], said: str) -> None:
    assert said in refusal(fold_with(**changes), kind)


def test_fold_takes_images_as_they_come() -> None:
    images = images_of(V1).to(memory_format=torch.channels_last).half().requires_grad_()
    assert_exact(fold(network_of(V1), PREPROCESS, images))
