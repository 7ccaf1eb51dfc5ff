"""The network computes the same logits as timm's, torchvision's and transformers' ConvNeXt with the same random weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models import convnext as torchvision_convnext
from torchvision.models.convnext import CNBlockConfig
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
)

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.config.choices import Dialect
from convnext_deploy.models.checkpoints.key_maps import from_native, recognize, to_native
from convnext_deploy.models.checkpoints.state_dict import infer_model_spec, load_into
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.models.variants import VARIANTS, build_model
from tests.models.conftest import assert_equal_logits, meta_state, random_weights, shapes
from tests.shared import heavy_except

CLASSES = 16
# more than 200 million parameters: compared at full width and this depth, and in full by names and shapes
LARGEST = ("convnext_large_mlp", "convnext_xlarge", "convnext_xxlarge", "convnextv2_huge")
REDUCED_DEPTHS, NARROW = (1, 1, 2, 1), (24, 32, 48, 64)
# one of each kind of norm, eps, stem and head
KINDS = (
    "convnext_zepto_rms_ols",
    "convnext_atto",
    "convnext_atto_ols",
    "convnext_atto_rms",
    "convnext_tiny_hnf",
    "convnextv2_atto",
    "test_convnext",
    "test_convnext3",
)


def create_timm(variant: str, **options: Any) -> nn.Module:
    """Return timm's network on the meta device."""
    with torch.device("meta"):
        network: nn.Module = timm.create_model(variant, pretrained=False, **{"num_classes": CLASSES, **options})
    return network


def build_ours(spec: ModelSpec, theirs: dict[str, Tensor]) -> ConvNeXt:
    """Return our network with the weights of another library."""
    dialect = recognize(theirs)
    assert dialect is not None
    with torch.device("meta"):
        ours = build_model(spec)
    load_into(ours, to_native(theirs, dialect), "theirs")
    return ours.eval()


def load_reference(reference: nn.Module, *, weak: bool = False) -> dict[str, Tensor]:
    weights = random_weights(reference.state_dict(), seed=1, weak=weak)
    reference.load_state_dict(weights, assign=True)
    reference.eval()
    return weights


def reduce_depth(monkeypatch: pytest.MonkeyPatch, variant: str, **changes: Any) -> dict[str, Any]:
    """Change the row of the table, and return what tells timm the same."""
    changes = {"depths": REDUCED_DEPTHS, **changes}
    monkeypatch.setitem(VARIANTS, variant, dataclasses.replace(VARIANTS[variant], **changes))
    return changes


def test_variants_are_those_of_timm() -> None:
    assert set(VARIANTS) == set(timm.list_models(module="convnext"))


@pytest.mark.parametrize("variant", heavy_except(KINDS, VARIANTS))
def test_forward_equals_timm_when_the_network_is_made_small(monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    # timm derives the width of an overlapping stem, which the table has as a number
    width = {"dims": NARROW} if VARIANTS[variant].stem == "patch" else {}
    reference = create_timm(variant, **reduce_depth(monkeypatch, variant, **width))
    assert_equal_logits(build_ours(ModelSpec(variant, CLASSES), load_reference(reference)), reference)


@pytest.mark.heavy
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in LARGEST])
def test_forward_equals_timm_when_weights_are_equal(variant: str) -> None:
    reference = create_timm(variant)
    weights = load_reference(reference)
    assert infer_model_spec(to_native(weights, "timm"), Path("w.pth")) == ModelSpec(variant, CLASSES)
    assert_equal_logits(build_ours(ModelSpec(variant, CLASSES), weights), reference)


@pytest.mark.heavy
@pytest.mark.parametrize("variant", LARGEST)
def test_forward_equals_timm_when_depth_is_reduced(monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    reference = create_timm(variant, **reduce_depth(monkeypatch, variant))
    weights = load_reference(reference)
    assert_equal_logits(build_ours(ModelSpec(variant, CLASSES), weights), reference)


@pytest.mark.parametrize("variant", heavy_except(KINDS, VARIANTS))
def test_names_and_shapes_are_those_of_timm(variant: str) -> None:
    theirs, ours = create_timm(variant, num_classes=1000).state_dict(), meta_state(ModelSpec(variant, 1000))
    assert shapes(to_native(theirs, "timm")) == shapes(ours)
    assert shapes(from_native(ours, ModelSpec(variant, 1000), "timm")) == shapes(theirs)


@pytest.mark.parametrize("variant", KINDS)
def test_forward_equals_timm_when_signals_are_as_weak_as_eps(variant: str) -> None:
    reference = create_timm(variant)
    assert_equal_logits(build_ours(ModelSpec(variant, CLASSES), load_reference(reference, weak=True)), reference)


@pytest.mark.heavy
def test_forward_equals_timm_when_xxlarge_signals_are_as_weak_as_eps(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = create_timm("convnext_xxlarge", **reduce_depth(monkeypatch, "convnext_xxlarge"))
    weights = load_reference(reference, weak=True)
    assert_equal_logits(build_ours(ModelSpec("convnext_xxlarge", CLASSES), weights), reference)


@pytest.mark.parametrize(
    ("variant", "changes", "options"),
    [
        ("convnext_atto", {"in_channels": 1}, {"in_chans": 1}),
        ("convnext_femto_ols", {"in_channels": 5}, {"in_chans": 5}),
        ("convnext_atto", {"patch_size": 1}, {"patch_size": 1}),
        ("convnext_atto", {"patch_size": 7}, {"patch_size": 7}),
        ("convnext_atto", {"head_hidden_size": 24}, {"head_hidden_size": 24}),
        ("convnextv2_atto", {"head_hidden_size": 400}, {"head_hidden_size": 400}),
        ("convnext_atto", {"activation": "silu"}, {"act_layer": "silu"}),
        ("convnext_zepto_rms_ols", {"activation": "relu"}, {"act_layer": "relu"}),
        ("convnextv2_atto", {"activation": "gelu_tanh"}, {"act_layer": "gelu_tanh"}),
        ("convnext_atto", {"norm_eps": 1e-4}, {"norm_eps": 1e-4}),
    ],
)
def test_forward_equals_timm_when_options_are_others(
    variant: str, changes: dict[str, Any], options: dict[str, Any]
) -> None:
    reference = create_timm(variant, **options)
    spec = ModelSpec(variant, CLASSES, **changes)
    size = 16 * spec.patch_size
    ours = build_ours(spec, load_reference(reference, weak=True))
    assert_equal_logits(ours, reference, channels=spec.in_channels, sizes=(2 * size, 3 * size))


@pytest.mark.parametrize("size", heavy_except(("tiny",), ("tiny", "small", "base", "large")))
def test_forward_equals_torchvision_when_weights_are_equal(size: str) -> None:
    with torch.device("meta"):
        reference = getattr(torchvision_convnext, f"convnext_{size}")(num_classes=CLASSES)
    spec = ModelSpec(f"convnext_{size}", CLASSES)
    theirs = reference.state_dict()
    assert shapes(from_native(meta_state(spec), spec, "torchvision")) == shapes(theirs)
    weights = load_reference(reference)
    assert infer_model_spec(to_native(weights, "torchvision"), Path("w.pth")) == spec
    assert_equal_logits(build_ours(spec, weights), reference)


def test_forward_equals_torchvision_when_signals_are_as_weak_as_eps(monkeypatch: pytest.MonkeyPatch) -> None:
    reduce_depth(monkeypatch, "convnext_tiny")
    dims = VARIANTS["convnext_tiny"].dims
    rows = [CNBlockConfig(*row) for row in zip(dims, (*dims[1:], None), REDUCED_DEPTHS, strict=True)]
    with torch.device("meta"):
        reference = torchvision_convnext.ConvNeXt(rows, num_classes=CLASSES)
    ours = build_ours(ModelSpec("convnext_tiny", CLASSES), load_reference(reference, weak=True))
    assert_equal_logits(ours, reference)


def create_transformers(spec: ModelSpec, **options: Any) -> nn.Module:
    """Return the network of transformers on the meta device."""
    row = VARIANTS[spec.variant]
    options = {
        "depths": list(row.depths),
        "hidden_sizes": list(row.dims),
        "num_labels": spec.num_classes,
        "num_channels": spec.in_channels,
        "patch_size": spec.patch_size,
        **options,
    }
    with torch.device("meta"):
        if row.version == 1:
            return ConvNextForImageClassification(ConvNextConfig(**options))
        return ConvNextV2ForImageClassification(ConvNextV2Config(**options))


@pytest.mark.parametrize("weak", [False, True], ids=["usual", "weak"])
@pytest.mark.parametrize(
    ("variant", "changes", "options"),
    [
        ("convnext_atto", {"head_norm_eps": 1e-12}, {}),
        ("convnext_atto", {"head_norm_eps": 1e-12, "in_channels": 1}, {}),
        ("convnext_atto", {"head_norm_eps": 1e-12, "patch_size": 8}, {}),
        ("convnext_femto", {"head_norm_eps": 1e-3}, {"layer_norm_eps": 1e-3}),
        ("convnext_nano", {"head_norm_eps": 1e-12, "activation": "silu"}, {"hidden_act": "silu"}),
        ("convnext_tiny", {"head_norm_eps": 1e-12}, {}),
        ("convnextv2_atto", {"head_norm_eps": 1e-12}, {}),
        ("convnextv2_pico", {"head_norm_eps": 1e-5, "patch_size": 2}, {"layer_norm_eps": 1e-5}),
        ("convnextv2_nano", {"head_norm_eps": 1e-12, "activation": "relu"}, {"hidden_act": "relu"}),
        ("convnextv2_tiny", {"head_norm_eps": 1e-12}, {}),
    ],
)
def test_forward_equals_transformers_when_weights_are_equal(
    variant: str, changes: dict[str, Any], options: dict[str, Any], weak: bool
) -> None:
    spec = ModelSpec(variant, CLASSES, **changes)
    reference = create_transformers(spec, **options)
    weights = load_reference(reference, weak=weak)
    shown = ModelSpec(variant, CLASSES, spec.in_channels, spec.patch_size)
    assert infer_model_spec(to_native(weights, "huggingface"), Path("w.pth")) == shown
    ours = build_ours(spec, weights)
    size = max(16 * spec.patch_size, 64)
    assert_equal_logits(ours, lambda x: reference(x).logits, channels=spec.in_channels, sizes=(size, size * 3 // 2))


@pytest.mark.parametrize(
    "variant",
    heavy_except(
        ("convnext_tiny", "convnextv2_pico"),
        [
            *(f"convnext_{size}" for size in ("atto", "nano", "tiny", "small", "base", "large", "xlarge")),
            *(f"convnextv2_{size}" for size in ("atto", "femto", "pico", "nano", "tiny", "base", "large", "huge")),
        ],
    ),
)
def test_names_and_shapes_are_those_of_transformers(variant: str) -> None:
    spec = ModelSpec(variant, 1000)
    theirs = create_transformers(spec).state_dict()
    assert shapes(from_native(meta_state(spec), spec, "huggingface")) == shapes(theirs)
    assert shapes(to_native(theirs, "huggingface")) == shapes(meta_state(spec))


def test_names_are_read_when_transformers_saved_the_network_without_head() -> None:
    spec = ModelSpec("convnextv2_femto", CLASSES)
    dialect: Dialect = "huggingface"
    backbone = create_transformers(spec).get_submodule("convnextv2").state_dict()
    assert recognize(backbone) == dialect
    found = infer_model_spec(to_native(backbone, dialect), Path("w.pth"))
    assert found == ModelSpec("convnextv2_femto", 0)
    expected = {key: shape for key, shape in shapes(meta_state(spec)).items() if not key.startswith("head.")}
    assert shapes(to_native(backbone, dialect)) == expected
