"""The formulas for parameters, multiply-accumulates and kept activations equal what PyTorch counts on the built networks."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.errors import RecipeError
from convnext_deploy.models.convnext import MLP_RATIO as MLP_RATIO_OF_THE_NETWORK
from convnext_deploy.models.variants import MLP_RATIO, VARIANTS, build_model
from convnext_deploy.models.zoo.cost import activation_bytes, count_macs, count_parameters

# Networks that are not as in the table: each option that changes a shape.
OTHERS = (
    ModelSpec("convnext_atto", 7, in_channels=1),
    ModelSpec("convnext_atto", 10, patch_size=2),
    ModelSpec("convnextv2_pico", 2, in_channels=1, patch_size=8),
    ModelSpec("convnext_tiny", 4, head_hidden_size=128),
    ModelSpec("convnext_tiny_hnf", 4, head_hidden_size=512),
    ModelSpec("convnext_large_mlp", 5, head_hidden_size=0),
    ModelSpec("convnext_femto_ols", 3, in_channels=1),
    ModelSpec("test_convnext", 3, hidden_widths=(96, 0, 32, 64, 160, 0, 192, 32, 0)),
    ModelSpec("convnextv2_atto", 3, hidden_widths=(0, 96, 32, 0, 160, 0, 192, 32, 640, 0, 64, 96)),
)
SPECS = (*(ModelSpec(variant, 1000) for variant in VARIANTS), *OTHERS)
# One of each kind of stem, norm, head, activation and version, where running all would take long.
KINDS = (
    *(
        ModelSpec(variant, 1000)
        for variant in (
            "convnext_zepto_rms", "convnext_zepto_rms_ols", "convnext_atto_ols", "convnext_atto_rms", "convnext_tiny_hnf",
            "convnext_large_mlp", "convnextv2_femto", "test_convnext3",
        )
    ),
    *(spec for spec in OTHERS if spec.variant != "convnext_large_mlp"),
)  # fmt: skip
# GMACs at 224 pixels as the READMEs of facebookresearch/ConvNeXt and ConvNeXt-V2 print them ("FLOPs").
PUBLISHED_GMACS = {
    "convnext_tiny": 4.5,
    "convnext_small": 8.7,
    "convnext_base": 15.4,
    "convnext_large": 34.4,
    "convnext_xlarge": 60.9,
    "convnextv2_atto": 0.55,
    "convnextv2_femto": 0.78,
    "convnextv2_pico": 1.37,
    "convnextv2_nano": 2.45,
    "convnextv2_tiny": 4.47,
    "convnextv2_base": 15.4,
    "convnextv2_large": 34.4,
    "convnextv2_huge": 115,
}


def name_of(spec: ModelSpec) -> str:
    return f"{spec.variant}-{spec.num_classes}-{spec.in_channels}-{spec.patch_size}-{spec.head_hidden_size}"


@functools.cache
def meta_network(spec: ModelSpec, gradient_checkpointing: bool = False) -> nn.Module:
    """Build a network without memory, in training mode; do not change it."""
    with torch.device("meta"):
        return build_model(spec, gradient_checkpointing=gradient_checkpointing).train()


def meta_images(spec: ModelSpec, size: int, count: int = 1) -> Tensor:
    return torch.empty(count, spec.in_channels, size, size, device="meta")


def kept_bytes(network: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Run a forward pass and return the bytes of all storages that autograd saves, without those of parameters."""
    parameters = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()  # held, so that nothing is freed while it is counted
    assert output.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


def test_mlp_ratio_is_that_of_the_network() -> None:
    assert MLP_RATIO == MLP_RATIO_OF_THE_NETWORK


@pytest.mark.parametrize("spec", SPECS, ids=name_of)
def test_count_parameters_equals_those_of_the_network(spec: ModelSpec) -> None:
    assert count_parameters(spec) == sum(parameter.numel() for parameter in meta_network(spec).parameters())


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        *((spec, 64) for spec in KINDS),
        # sizes that no stride divides: odd maps lose their last row, and overlapping stems round up
        *((ModelSpec(variant, 10), size) for variant in ("convnext_atto", "convnext_atto_ols") for size in (97, 101)),
        (ModelSpec("convnext_zepto_rms_ols", 10), 95),
        (ModelSpec("test_convnext3", 10), 130),
        pytest.param(ModelSpec("convnext_atto", 10), 223, marks=pytest.mark.heavy),
        pytest.param(ModelSpec("convnext_atto_ols", 10), 223, marks=pytest.mark.heavy),
        pytest.param(ModelSpec("convnextv2_tiny", 1000), 288, marks=pytest.mark.heavy),
    ],
    ids=lambda value: name_of(value) if isinstance(value, ModelSpec) else str(value),
)
def test_count_macs_is_half_of_the_operations_that_pytorch_counts(spec: ModelSpec, size: int) -> None:
    network = meta_network(spec)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(meta_images(spec, size))
    assert 2 * count_macs(spec, size) == counter.get_total_flops()


@pytest.mark.parametrize(("variant", "gmacs"), PUBLISHED_GMACS.items())
def test_count_macs_at_224_is_published_figure(variant: str, gmacs: float) -> None:
    assert count_macs(ModelSpec(variant, 1000), 224) / 1e9 == pytest.approx(gmacs, rel=0.01)


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        *((spec, 16 * spec.patch_size) for spec in KINDS),
        (ModelSpec("convnext_atto_rms", 1000), 224),
        pytest.param(ModelSpec("convnext_tiny", 1000), 224, marks=pytest.mark.heavy),
        pytest.param(ModelSpec("convnextv2_nano", 1000), 224, marks=pytest.mark.heavy),
    ],
    ids=lambda value: name_of(value) if isinstance(value, ModelSpec) else str(value),
)
def test_activation_bytes_is_what_autograd_keeps(spec: ModelSpec, size: int) -> None:
    network = meta_network(spec)
    kept = kept_bytes(network, lambda: network(meta_images(spec, size)))
    # left out: means and deviations of norms, and what GRN keeps of each channel; both a few percent at most
    assert activation_bytes(spec, size, 4) == pytest.approx(kept, rel=0.05)


def test_activation_bytes_grows_with_the_bytes_per_value() -> None:
    spec = ModelSpec("convnext_nano", 10)
    assert activation_bytes(spec, 64, 4) == 2 * activation_bytes(spec, 64, 2)


def test_gradient_checkpointing_keeps_less_in_every_variant() -> None:
    for variant in VARIANTS:
        spec = ModelSpec(variant, 10)
        with_it = activation_bytes(spec, 224, 4, gradient_checkpointing=True)
        # the largest block exists once in any case, and a test network has little else
        assert with_it < (0.95 if variant.startswith("test_") else 0.7) * activation_bytes(spec, 224, 4)


@pytest.mark.parametrize(
    ("spec", "size", "least"),
    [
        (ModelSpec("convnext_tiny", 10), 31, 32),
        (ModelSpec("convnext_tiny", 10, patch_size=2), 15, 16),
        (ModelSpec("convnext_tiny", 10, patch_size=8), 63, 64),
        (ModelSpec("convnext_atto_ols", 10), 28, 29),
    ],
    ids=["patch-4", "patch-2", "patch-8", "overlap"],
)
def test_too_small_image_is_refused_with_the_least_size(spec: ModelSpec, size: int, least: int) -> None:
    message = f"image_size = {size} is too small for {spec.variant}; expected >= {least} pixels"
    with pytest.raises(RecipeError, match=message):
        count_macs(spec, size)
    with pytest.raises(RecipeError, match=message):
        activation_bytes(spec, size, 4)
    assert count_macs(spec, least) > 0
