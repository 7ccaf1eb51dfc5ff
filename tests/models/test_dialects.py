"""Names and shapes of other libraries: exact round trips, and a clear refusal of what a library does not have."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.config.choices import Dialect
from convnext_deploy.models.checkpoints.key_maps import DIALECTS, check_writable, from_native, recognize, to_native
from convnext_deploy.models.variants import VARIANTS
from tests.models.conftest import assert_equal_states, meta_state, refusal, shapes

_ALL = ("timm", "torchvision", "facebook", "huggingface")
_NO_TORCHVISION = ("timm", "facebook", "huggingface")
_TIMM = ("timm",)

# which libraries have which network
WRITABLE: dict[str, tuple[str, ...]] = {
    "convnext_zepto_rms": _TIMM,
    "convnext_zepto_rms_ols": _TIMM,
    "convnext_atto": _ALL,
    "convnext_atto_ols": _TIMM,
    "convnext_atto_rms": _TIMM,
    "convnext_femto": _ALL,
    "convnext_femto_ols": _TIMM,
    "convnext_pico": _ALL,
    "convnext_pico_ols": _TIMM,
    "convnext_nano": _ALL,
    "convnext_nano_ols": _TIMM,
    "convnext_tiny": _ALL,
    "convnext_tiny_hnf": _TIMM,
    "convnext_small": _ALL,
    "convnext_base": _ALL,
    "convnext_large": _ALL,
    "convnext_large_mlp": _TIMM,
    "convnext_xlarge": _ALL,
    "convnext_xxlarge": _TIMM,
    "convnextv2_atto": _NO_TORCHVISION,
    "convnextv2_femto": _NO_TORCHVISION,
    "convnextv2_pico": _NO_TORCHVISION,
    "convnextv2_nano": _NO_TORCHVISION,
    "convnextv2_tiny": _NO_TORCHVISION,
    "convnextv2_small": _NO_TORCHVISION,
    "convnextv2_base": _NO_TORCHVISION,
    "convnextv2_large": _NO_TORCHVISION,
    "convnextv2_huge": _NO_TORCHVISION,
    "test_convnext": _TIMM,
    "test_convnext2": _TIMM,
    "test_convnext3": _TIMM,
}
# what the refusal of a variant names, for every library that does not have it
LACKING = {
    "convnext_zepto_rms": "simplenorm",
    "convnext_zepto_rms_ols": "overlapping stems",
    "convnext_atto_ols": "overlapping stems",
    "convnext_atto_rms": "rmsnorm",
    "convnext_femto_ols": "overlapping stems",
    "convnext_pico_ols": "overlapping stems",
    "convnext_nano_ols": "overlapping stems",
    "convnext_tiny_hnf": "norm before the pooling",
    "convnext_large_mlp": "hidden layer",
    "convnext_xxlarge": "eps 1e-05",
    "test_convnext": "eps 1e-05",
    "test_convnext2": "eps 1e-05",
    "test_convnext3": "eps 1e-05",
}
PAIRS = [(variant, dialect) for variant, dialects in WRITABLE.items() for dialect in dialects]

# The first block, the second downsampling and the head of v1 and v2 as each library publishes them. The official code is in no
# package, so its names and shapes are written out here: github.com/facebookresearch/ConvNeXt and ConvNeXt-V2.
FACEBOOK_V2 = {
    "downsample_layers.0.0.weight": (40, 3, 4, 4),
    "downsample_layers.0.1.bias": (40,),
    "downsample_layers.2.1.weight": (160, 80, 2, 2),
    "stages.0.0.dwconv.weight": (40, 1, 7, 7),
    "stages.0.0.norm.weight": (40,),
    "stages.0.0.pwconv1.weight": (160, 40),
    "stages.0.0.grn.gamma": (1, 1, 1, 160),
    "stages.0.0.grn.beta": (1, 1, 1, 160),
    "stages.0.0.pwconv2.weight": (40, 160),
    "norm.weight": (320,),
    "head.bias": (7,),
}
FACEBOOK_V1 = {**{key: shape for key, shape in FACEBOOK_V2.items() if "grn" not in key}, "stages.2.5.gamma": (160,)}


def test_table_has_every_variant_and_dialect() -> None:
    assert set(WRITABLE) == set(VARIANTS)
    assert set(LACKING) == {variant for variant, dialects in WRITABLE.items() if dialects == _TIMM}
    assert get_args(Dialect) == DIALECTS == _ALL


@pytest.fixture(scope="module")
def numbers() -> Tensor:
    """Random numbers, enough for every layer; each takes its own stretch of them."""
    return torch.rand(10_000_000, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("variant", "dialect"), PAIRS)
def test_round_trip_is_bit_exact(
    numbers: Tensor, variant: str, dialect: Dialect, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = VARIANTS[variant]  # the depth is its own; a matrix of any width is turned like a narrow one
    monkeypatch.setitem(VARIANTS, variant, dataclasses.replace(row, dims=(8, 12, 16, 20), stem_dim=row.stem_dim and 6))
    spec = ModelSpec(variant, 7)
    state = {
        key: numbers[9973 * index :][: empty.numel()].view(empty.shape)
        for index, (key, empty) in enumerate(meta_state(spec).items())
    }
    written = from_native(state, spec, dialect)
    assert recognize(written) == dialect
    assert_equal_states(to_native(written, dialect), state)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_check_writable_agrees_with_the_table(dialect: Dialect) -> None:
    for variant, dialects in WRITABLE.items():
        spec = ModelSpec(variant, 7)
        if dialect in dialects:
            assert check_writable(spec, dialect) == []
            continue
        message = refusal(lambda spec=spec: check_writable(spec, dialect))  # type: ignore[misc]
        assert message.startswith(f"{variant} cannot be written for {dialect}, whose ConvNeXt lacks ")
        assert ("ConvNeXt v2" if variant.startswith("convnextv2") else LACKING[variant]) in message


@pytest.mark.parametrize(
    ("variant", "dialect", "changes", "lacking"),
    [
        ("convnext_atto", "timm", {"patch_size": 2}, "a patch size of 2"),
        # timm keeps the whole network's stride at 32 by dilating its last stage instead of halving there
        ("convnext_atto", "timm", {"patch_size": 8}, "a patch size of 8"),
        ("convnext_atto", "timm", {"patch_size": 16}, "a patch size of 16"),
        ("convnext_tiny_hnf", "timm", {"head_hidden_size": 8}, "a hidden layer with the norm before the pooling"),
        ("convnext_atto", "timm", {"head_hidden_size": 8, "head_activation": "relu"}, "a relu in the head"),
        ("convnext_large_mlp", "timm", {"head_activation": "relu"}, "a relu in the head"),
        ("convnext_atto", "torchvision", {"in_channels": 1}, "1 input channels"),
        ("convnext_atto", "torchvision", {"patch_size": 2}, "a patch size of 2"),
        ("convnext_atto", "torchvision", {"activation": "silu"}, "the activation silu"),
        ("convnext_atto", "torchvision", {"norm_eps": 1e-5}, "norms with eps 1e-05"),
        ("convnext_atto", "facebook", {"patch_size": 8}, "a patch size of 8"),
        ("convnext_atto", "facebook", {"activation": "relu"}, "the activation relu"),
        ("convnext_atto", "facebook", {"head_hidden_size": 8}, "a hidden layer in the head"),
        ("convnextv2_atto", "huggingface", {"norm_eps": 1e-5}, "norms with eps 1e-05"),
        ("convnext_atto", "huggingface", {"head_hidden_size": 8}, "a hidden layer in the head"),
        *(
            ("convnext_atto", dialect, {"num_classes": 0}, "a form without head")
            for dialect in ("torchvision", "facebook")
        ),
    ],
)
def test_check_writable_refuses_when_library_lacks_an_option(
    variant: str, dialect: Dialect, changes: dict[str, Any], lacking: str
) -> None:
    spec = ModelSpec(variant, **{"num_classes": 7, **changes})
    message = refusal(lambda: check_writable(spec, dialect))
    assert message.startswith(f"{variant} cannot be written for {dialect}")
    assert lacking in message
    assert refusal(lambda: from_native({}, spec, dialect)) == message


@pytest.mark.parametrize(
    ("variant", "dialect", "changes"),
    [
        ("convnext_atto", "timm", {"in_channels": 1}),
        ("convnext_atto", "timm", {"patch_size": 3}),
        ("convnext_atto", "timm", {"head_hidden_size": 8}),
        ("convnext_large_mlp", "timm", {"head_hidden_size": 0}),
        ("convnext_atto", "timm", {"activation": "relu", "norm_eps": 1e-5}),
        ("convnext_atto", "facebook", {"in_channels": 1}),
        ("convnext_large_mlp", "facebook", {"head_hidden_size": 0}),
        ("convnext_xxlarge", "torchvision", {"norm_eps": 1e-6}),
        ("convnext_atto", "huggingface", {"in_channels": 1, "patch_size": 2, "activation": "silu"}),
        ("convnextv2_atto", "huggingface", {"patch_size": 8}),
    ],
)
def test_round_trip_keeps_shapes_when_options_are_others(
    variant: str, dialect: Dialect, changes: dict[str, Any]
) -> None:
    spec = ModelSpec(variant, 7, **changes)
    written = from_native(meta_state(spec), spec, dialect)
    assert recognize(written) == dialect
    assert shapes(to_native(written, dialect)) == shapes(meta_state(spec))


@pytest.mark.parametrize("dialect", ["timm", "torchvision", "facebook"])
def test_check_writable_notes_when_eps_of_the_last_norm_is_lost(dialect: Dialect) -> None:
    assert check_writable(ModelSpec("convnext_atto", 7, head_norm_eps=1e-6), dialect) == []
    (note,) = check_writable(ModelSpec("convnext_atto", 7, head_norm_eps=1e-12), dialect)
    assert "eps 1e-12 becomes 1e-06" in note
    assert dialect in note


def test_check_writable_notes_nothing_when_library_keeps_eps_of_the_last_norm() -> None:
    assert check_writable(ModelSpec("convnext_atto", 7, head_norm_eps=1e-12), "huggingface") == []


@pytest.mark.parametrize(
    ("variant", "expected"), [("convnext_atto", FACEBOOK_V1), ("convnextv2_atto", FACEBOOK_V2)], ids=["v1", "v2"]
)
def test_from_native_writes_official_names_and_shapes(variant: str, expected: dict[str, tuple[int, ...]]) -> None:
    spec = ModelSpec(variant, 7)
    written = shapes(from_native(meta_state(spec), spec, "facebook"))
    assert {key: written.get(key) for key in expected} == expected


def test_from_native_refuses_when_a_weight_has_no_name() -> None:
    spec = ModelSpec("convnext_atto", 7)
    state = {**meta_state(spec), "stages.0.0.dwconv.scale": torch.ones(1)}
    for dialect in ("timm", "torchvision", "huggingface"):
        message = refusal(lambda dialect=dialect: from_native(state, spec, dialect))  # type: ignore[misc]
        assert "'stages.0.0.dwconv.scale' has no name in" in message


def test_to_native_keeps_names_that_it_does_not_know() -> None:
    state = {"stem.0.weight": torch.ones(4, 3, 4, 4), "stages.0.attn.qkv": torch.ones(2), "epoch": torch.ones(1)}
    found = to_native(state, "timm")
    assert list(found) == ["downsample_layers.0.0.weight", "stages.0.attn.qkv", "epoch"]


@pytest.mark.parametrize(
    ("key", "native", "shape", "expected"),
    [
        ("stages.1.blocks.0.mlp.fc1.weight", "stages.1.0.pwconv1.weight", (8, 2, 1, 1), (8, 2)),
        ("stages.1.blocks.0.mlp.fc1.weight", "stages.1.0.pwconv1.weight", (8, 2), (8, 2)),
        ("stages.1.blocks.0.mlp.fc2.weight", "stages.1.0.pwconv2.weight", (2, 8, 3, 3), (2, 8, 3, 3)),
        ("stages.3.blocks.12.mlp.grn.weight", "stages.3.12.grn.gamma", (8,), (1, 1, 1, 8)),
        ("stages.3.blocks.12.mlp.grn.bias", "stages.3.12.grn.beta", (2, 4), (2, 4)),
        ("stages.0.blocks.1.gamma", "stages.0.1.gamma", (8, 1, 1), (8,)),
        ("stages.0.blocks.1.gamma", "stages.0.1.gamma", (2, 4), (2, 4)),
        ("stages.0.blocks.1.gamma", "stages.0.1.gamma", (), ()),
    ],
)
def test_to_native_changes_only_shapes_that_mean_the_same(
    key: str, native: str, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert shapes(to_native({key: torch.zeros(shape)}, "timm")) == {native: expected}


@pytest.mark.parametrize("keys", [["conv1.weight"], ["stem.conv.weight"], ["xstem.0.weight"], []])
def test_recognize_finds_nothing_when_network_is_another(keys: list[str]) -> None:
    state: dict[str, Tensor] = {key: torch.ones(1) for key in keys}
    assert recognize(state) is None
