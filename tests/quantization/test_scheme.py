"""The schemes as data: which tensors each target quantizes in each variant, and what a recipe may change about it."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.errors import RecipeError
from convnext_deploy.models.variants import build_model
from convnext_deploy.quantization.scheme import (
    CHOICES,
    SCHEMES,
    LayerScheme,
    QuantizationScheme,
    TensorScheme,
    resolve_scheme,
)

VARIANTS = {
    "convnext_tiny": ModelSpec("convnext_tiny", 7),
    "convnextv2_tiny": ModelSpec("convnextv2_tiny", 7),
    "convnext_atto_ols": ModelSpec("convnext_atto_ols", 7),
    "convnext_atto_rms": ModelSpec("convnext_atto_rms", 7),
    "test_convnext3": ModelSpec("test_convnext3", 7),
    "hidden": ModelSpec("convnext_large_mlp", 7, head_hidden_size=24),
}
DOWNSAMPLING = {f"downsample_layers.{stage}.1" for stage in (1, 2, 3)}
S8 = TensorScheme(-128, 127, symmetric=True, per_channel=False)
S8_PER_CHANNEL = TensorScheme(-128, 127, symmetric=True, per_channel=True)
U8 = TensorScheme(0, 255, symmetric=False, per_channel=False)
E4M3 = TensorScheme(-448, 448, symmetric=True, per_channel=False, floating=True)
INT8_TARGETS = [target for target, scheme in SCHEMES.items() if scheme.precision == "int8"]


def layer_names(spec: ModelSpec) -> list[str]:
    with torch.device("meta"):
        network = build_model(spec)
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


NAMES = {variant: layer_names(spec) for variant, spec in VARIANTS.items()}


def expected_choices(target: str, names: list[str]) -> dict[str, str]:
    """Return what issue and sources say, written without patterns: layer name → choice, of the quantized layers."""
    linear = {name for name in names if name.rpartition(".")[2] in ("pwconv1", "pwconv2")}
    if target == "tensorrt-fp8":
        return dict.fromkeys(linear | DOWNSAMPLING, "fp8")
    after_gelu = {name for name in linear if name.endswith("pwconv2")}
    depthwise = {name for name in names if name.endswith(".dwconv")}
    stem = {name for name in names if name.startswith("downsample_layers.0.")}
    outputs = depthwise if target == "tensorrt-depthwise" else set()
    patches = stem | DOWNSAMPLING if target == "onnxruntime" else set()
    inputs = (linear | DOWNSAMPLING) - outputs - patches
    shifted = {"onnxruntime": set(), "openvino": inputs}.get(target, after_gelu)
    choices = {**dict.fromkeys(inputs, "int8"), **dict.fromkeys(outputs, "int8-output")}
    choices |= dict.fromkeys(patches, "int8-patches")
    return choices | dict.fromkeys(shifted, "int8-zero-point-shift")


@pytest.mark.parametrize("target", SCHEMES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_scheme_selects_exactly_the_layers_of_its_target(variant: str, target: str) -> None:
    names, scheme = NAMES[variant], SCHEMES[target]
    expected = expected_choices(target, names)
    assert {name: scheme.choice(name) for name in names if scheme.is_site(name)} == expected
    found = scheme.select(names)
    assert {name for name, layer in found.items() if layer.output is not None} == {
        name for name, choice in expected.items() if choice in ("int8-output", "int8-patches")
    }
    assert {name for name, layer in found.items() if layer.patches} == {
        name for name, choice in expected.items() if choice == "int8-patches"
    }
    assert {name for name, layer in found.items() if layer.input_shift} == {
        name for name, choice in expected.items() if choice == "int8-zero-point-shift"
    }
    assert not any(scheme.is_site(name) for name in ("head", "pre_logits", "norm", "stages.0.0.norm"))


@pytest.mark.parametrize(
    ("target", "activation", "output"),
    [
        ("tensorrt", S8, None),
        ("tensorrt-depthwise", S8, S8),
        ("tensorrt-fp8", E4M3, None),
        ("onnxruntime", U8, TensorScheme(0, 255, symmetric=True, per_channel=True)),
        ("openvino", U8, None),
    ],
)
def test_scheme_has_the_grids_that_its_target_multiplies(
    target: str, activation: TensorScheme, output: TensorScheme | None
) -> None:
    for layer in SCHEMES[target].select(NAMES["convnext_tiny"]).values():
        # a grid with a zero point, where the runtime's own has none
        assert layer.input == (replace(activation, symmetric=False) if layer.input_shift else activation)
        assert layer.weight == (replace(E4M3, per_channel=True) if activation == E4M3 else S8_PER_CHANNEL)
        assert layer.output in (None, output)


def test_schemes_are_named_by_their_targets_and_choices_by_their_tensors() -> None:
    assert list(SCHEMES) == ["tensorrt", "tensorrt-depthwise", "tensorrt-fp8", "onnxruntime", "openvino"]
    assert all(scheme.target == target for target, scheme in SCHEMES.items())
    assert all(choice in CHOICES for scheme in SCHEMES.values() for _, choice in scheme.sites)
    assert [scheme.dtype for scheme in (S8, S8_PER_CHANNEL, U8)] == ["int8", "int8", "uint8"]
    assert {scheme.precision for scheme in SCHEMES.values()} == {"int8", "fp8"}


@pytest.mark.parametrize("target", INT8_TARGETS)
def test_override_changes_the_layers_that_it_matches_and_no_other(target: str) -> None:
    names = NAMES["convnext_tiny"]
    before = resolve_scheme(target)
    after = before.with_overrides({"stages.3.*": "float", "head": "int8", "stages.0.?.dwconv": "int8-output"})
    for name in names:
        if name.startswith("stages.3."):
            assert after.layer(name) is None
        elif name == "head":
            assert after.layer(name) == LayerScheme(before.activation, before.weight)
        elif name.startswith("stages.0.") and name.endswith("dwconv"):
            output = before.output or before.activation
            assert after.layer(name) == LayerScheme(before.activation, before.weight, output)
        else:
            assert after.layer(name) == before.layer(name)
    assert "stages.3.0.pwconv1" in before.select(names)
    assert before == SCHEMES[target], "a scheme is not changed in place"
    assert after.with_overrides({}) == before, "new overrides take the place of the old ones"


def test_override_with_more_letters_wins_whatever_the_order() -> None:
    overrides = {"stages.*": "float", "stages.3.*": "int8", "stages.3.1.pwconv2": "float"}
    forwards = resolve_scheme("tensorrt", overrides)
    backwards = resolve_scheme("tensorrt", dict(reversed(overrides.items())))
    assert forwards == backwards
    expected = {"stages.0.0.pwconv1": "float", "stages.3.1.pwconv1": "int8", "stages.3.1.pwconv2": "float"}
    assert {name: forwards.choice(name) for name in expected} == expected
    # The letters of a class stand for one character, and are not counted.
    classes = resolve_scheme("tensorrt", {"stages.[0123].0.pwconv1": "float", "stages.*.*.pwconv1": "int8-output"})
    assert classes.choice("stages.2.0.pwconv1") == "float"
    assert classes.choice("stages.2.1.pwconv1") == "int8-output"


PARTS = st.sampled_from(["stages", "[012]", "*", "?", "3", "0", "pwconv1", "pwconv?", "dwconv", "head"])


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(
    rules=st.lists(
        st.tuples(
            st.lists(PARTS, min_size=1, max_size=4).map(".".join), st.sampled_from(SCHEMES["onnxruntime"].choices)
        ),
        max_size=5,
        unique_by=lambda rule: rule[0],
    ),
    name=st.sampled_from(NAMES["convnext_tiny"]),
)
def test_choice_never_depends_on_the_order_of_overrides(rules: list[tuple[str, str]], name: str) -> None:
    def choose(overrides: dict[str, str]) -> str:
        try:
            return resolve_scheme("onnxruntime", overrides).choice(name)
        except RecipeError:
            return "disagree"

    found = {choose(dict(order)) for order in (rules, rules[::-1], sorted(rules))}
    assert len(found) == 1


def test_choice_refuses_when_equally_specific_overrides_disagree() -> None:
    scheme = resolve_scheme("tensorrt", {"stages.3.*": "int8", "*.pwconv1": "float"})
    assert scheme.choice("stages.2.1.pwconv1") == "float"
    scheme = resolve_scheme("tensorrt", {"stages.*.1.*": "int8", "stages.3.*.*": "float"})
    assert scheme.choice("stages.3.0.pwconv1") == "float"
    message = "'stages.3.*.*' = 'float' and 'stages.*.1.*' = 'int8' disagree about 'stages.3.1."
    for ask in (lambda: scheme.choice("stages.3.1.pwconv1"), lambda: scheme.select(NAMES["convnext_tiny"])):
        with pytest.raises(RecipeError, match=re.escape(message)):
            ask()
    agreed = resolve_scheme("tensorrt", {"stages.*.1.*": "float", "stages.3.*.*": "float"})
    assert agreed.choice("stages.3.1.pwconv1") == "float"


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("stages.3.2.pwconv", r"Did you mean 'stages\.3\.2\.pwconv[12]'\?"),
        ("haed", r"Did you mean 'head'\?"),
        ("stages.9.*", r"Did you mean 'stages\.|Layers have names such as downsample_layers\.0\.0, "),
        ("stages.*.norm", r"Did you mean 'stages\.|Layers have names such as downsample_layers\.0\.0, "),
        ("", r"Layers have names such as downsample_layers\.0\.0, "),
    ],
)
def test_select_refuses_an_override_that_matches_nothing_and_names_the_nearest(pattern: str, hint: str) -> None:
    scheme = resolve_scheme("tensorrt", {pattern: "float", "head": "int8"})
    expected = (
        f"^sites: '{re.escape(pattern)}' matches no linear layer or convolution of the network\\. ({hint})[^\n]*$"
    )
    with pytest.raises(RecipeError, match=expected):
        scheme.select(NAMES["convnext_tiny"])


def test_select_refuses_when_nothing_is_left_to_quantize() -> None:
    with pytest.raises(RecipeError, match="'tensorrt' scheme: sites leaves all of them in float"):
        resolve_scheme("tensorrt", {"*": "float"}).select(NAMES["convnext_tiny"])
    with pytest.raises(RecipeError, match=r"its layers match none of stages\.\*\.pwconv1, "):
        resolve_scheme("tensorrt").select(["0", "1"])
    assert resolve_scheme("tensorrt", {"0": "int8"}).select(["0", "1"]).keys() == {"0"}


@pytest.mark.parametrize(
    ("choice", "hint"), [("flaot", " Did you mean 'float'?"), ("int8_output", " Did you mean 'int8-output'?"), ("", "")]
)
def test_with_overrides_refuses_an_unknown_choice(choice: str, hint: str) -> None:
    expected = f"sites: 'head' = '{choice}' is unknown.{hint} Known: float, int8, int8-output, int8-zero-point-shift, int8-patches."
    with pytest.raises(RecipeError) as caught:
        resolve_scheme("openvino", {"head": choice})
    assert str(caught.value) == expected


def test_floating_grids_have_one_choice_beside_float() -> None:
    names = NAMES["convnext_tiny"]
    scheme = resolve_scheme("tensorrt-fp8", {"stages.3.*": "float", "head": "fp8"})
    assert {name for name in scheme.select(names) if name.startswith(("head", "stages.3"))} == {"head"}
    assert resolve_scheme("tensorrt-fp8", json.loads(json.dumps(scheme.details()))["sites"]) == scheme
    for target, choice, known in (
        ("tensorrt-fp8", "int8", "float, fp8"),
        ("tensorrt", "fp8", "float, int8, int8-output"),
    ):
        with pytest.raises(RecipeError, match=f"^sites: 'head' = '{choice}' is not of the target '{target}'.* {known}"):
            resolve_scheme(target, {"head": choice})


@pytest.mark.parametrize(
    ("target", "hint"),
    [("tensort", " Did you mean 'tensorrt'?"), ("onnx-runtime", " Did you mean 'onnxruntime'?"), ("coreml", "")],
)
def test_resolve_scheme_suggests_a_name_when_target_is_unknown(target: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve_scheme(target)
    assert str(caught.value) == (
        f"unknown quantization target '{target}'.{hint} Known: tensorrt, tensorrt-depthwise, tensorrt-fp8, onnxruntime, openvino."
    )


def test_layer_scheme_refuses_grids_that_no_target_multiplies() -> None:
    affine = TensorScheme(-128, 127, symmetric=False, per_channel=True)
    with pytest.raises(RecipeError, match="the grid of a weight must be symmetric"):
        LayerScheme(S8, affine)
    with pytest.raises(RecipeError, match="an input has one scale"):
        LayerScheme(S8_PER_CHANNEL, S8_PER_CHANNEL)
    with pytest.raises(RecipeError, match="must be symmetric: the channels share a zero point"):
        LayerScheme(S8, S8_PER_CHANNEL, affine)
    assert LayerScheme(S8, S8_PER_CHANNEL, S8_PER_CHANNEL).output == S8_PER_CHANNEL


@pytest.mark.parametrize("target", INT8_TARGETS)
@pytest.mark.parametrize("overrides", [{}, {"stages.3.*": "float", "head": "int8-output"}], ids=["plain", "overrides"])
def test_resolve_scheme_makes_the_same_scheme_of_what_is_stored(target: str, overrides: dict[str, str]) -> None:
    scheme = resolve_scheme(target, overrides)
    stored = json.loads(json.dumps(scheme.details()))
    assert resolve_scheme(stored["target"], stored.get("sites")) == scheme
    assert ("sites" in stored) == bool(overrides)


def test_resolve_scheme_refuses_an_unknown_target() -> None:
    with pytest.raises(RecipeError, match="unknown quantization target 'nonsense'"):
        resolve_scheme("nonsense")


def test_scheme_is_a_value() -> None:
    scheme = QuantizationScheme("mine", (("a", "int8"), ("*", "int8-output")), S8, S8_PER_CHANNEL)
    assert (scheme.choice("a"), scheme.choice("b")) == ("int8", "int8-output"), "the first rule that matches counts"
    assert hash(scheme) == hash(scheme.with_overrides({}))
