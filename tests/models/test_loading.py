"""Putting weights into a network: exactly, without a copy, or not at all; and a new head on old weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.errors import CheckpointError
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.models.checkpoints.safe_reader import save_state
from convnext_deploy.models.checkpoints.state_dict import load_checkpoint, load_into
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.models.variants import build_model
from convnext_deploy.pipeline.open_artifact import open_input
from tests.models.conftest import assert_equal_logits, assert_equal_states, mapped_ranges, random_state, refusal

SPEC = ModelSpec("test_convnext", 3)
KEY = "stages.1.1.pwconv2.weight"
HEAD = ("head.weight", "head.bias")
HIDDEN = ("pre_logits.weight", "pre_logits.bias")
NORM = ("norm.weight", "norm.bias")


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return random_state(SPEC)


def build(**changes: Any) -> ConvNeXt:
    torch.manual_seed(6)
    return build_model(ModelSpec(**{"variant": "test_convnext", "num_classes": 3, **changes}))


def copy_of(network: ConvNeXt) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def assert_refused_without_change(state: dict[str, Tensor], *, reinitialize_head: bool = False, **changes: Any) -> str:
    network = build(**changes)
    before, identities = copy_of(network), [id(p) for p in network.parameters()]
    message = refusal(lambda: load_into(network, state, "w.pth", reinitialize_head=reinitialize_head))
    assert_equal_states(network.state_dict(), before)
    assert [id(p) for p in network.parameters()] == identities
    return message


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_load_into_takes_every_weight_without_a_copy(state: dict[str, Tensor], device: str) -> None:
    with torch.device(device):
        network = build()
    assert load_into(network, state, "w.pth") == ()
    assert_equal_states(network.state_dict(), state)
    for name, parameter in network.named_parameters():
        assert parameter.data_ptr() == state[name].data_ptr(), name
        assert parameter.requires_grad


@pytest.mark.parametrize(
    ("dtype", "exact"),
    [
        (torch.float64, 2.0**-30),  # float32 holds it, float16 does not
        (torch.float16, 0.333251953125),
        (torch.bfloat16, 0.333984375),
        (torch.float8_e4m3fn, 0.34375),
        (torch.float8_e5m2, 0.3125),
        (torch.int8, -117.0),
        (torch.uint8, 200.0),
        (torch.int64, -70_000.0),
    ],
)
def test_load_into_converts_dtypes(state: dict[str, Tensor], dtype: torch.dtype, exact: float) -> None:
    network = build()
    load_into(network, {**state, KEY: torch.full_like(state[KEY], exact).to(dtype)}, "w.pth")
    found = network.state_dict()[KEY]
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.full_like(state[KEY], exact))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64, torch.bfloat16])
def test_load_into_refuses_when_a_weight_is_not_finite(
    state: dict[str, Tensor], dtype: torch.dtype, value: float
) -> None:
    broken = state[KEY].to(dtype, copy=True)
    broken[3, 5] = value
    message = assert_refused_without_change({**state, KEY: broken})
    assert f"w.pth: '{KEY}' holds values that are not finite" in message


def test_load_into_refuses_when_a_weight_is_too_large_for_float32(state: dict[str, Tensor]) -> None:
    broken = state[KEY].double()
    broken[0, 0] = 1e300
    assert f"'{KEY}' holds values that are not finite" in assert_refused_without_change({**state, KEY: broken})


def test_load_into_refuses_when_a_shape_differs(state: dict[str, Tensor]) -> None:
    message = assert_refused_without_change({**state, "head.weight": torch.zeros(7, 64)})
    assert "'head.weight' has shape (7, 64), the network needs (3, 64)" in message


@pytest.mark.parametrize("key", ["norm.bias", "head.bias", "downsample_layers.2.1.weight", "stages.3.1.gamma"])
def test_load_into_refuses_when_a_key_is_missing(state: dict[str, Tensor], key: str) -> None:
    less = {other: value for other, value in state.items() if other != key}
    assert f"w.pth lacks '{key}'" in assert_refused_without_change(less)


@pytest.mark.parametrize("key", ["ema.decay", "pre_logits.weight", "stages.0.7.gamma", "head.scale"])
def test_load_into_refuses_when_a_key_is_left_over(state: dict[str, Tensor], key: str) -> None:
    assert f"w.pth has '{key}'" in assert_refused_without_change({**state, key: torch.zeros(1)})


def without(state: dict[str, Tensor], *keys: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key not in keys}


@pytest.mark.parametrize(
    ("saved", "wanted", "kept"),
    [
        ({}, {}, ()),
        ({"num_classes": 9}, {}, HEAD),
        ({"head_hidden_size": 16}, {}, HEAD),
        ({}, {"head_hidden_size": 16}, (*HIDDEN, *HEAD)),
        ({"head_hidden_size": 16}, {"head_hidden_size": 24}, (*HIDDEN, *HEAD)),
        ({"head_hidden_size": 16, "num_classes": 9}, {"head_hidden_size": 16}, (*HIDDEN, *HEAD)),
        ({"head_hidden_size": 16}, {"head_hidden_size": 16}, ()),
    ],
    ids=["equal", "classes", "hidden left over", "hidden missing", "hidden of another width", "both", "equal hidden"],
)
def test_reinitialize_head_keeps_the_networks_own_head_when_it_differs(
    saved: dict[str, Any], wanted: dict[str, Any], kept: tuple[str, ...]
) -> None:
    weights = random_state(ModelSpec(**{"variant": "test_convnext", "num_classes": 3, **saved}))
    network = build(**wanted)
    own = copy_of(network)
    assert set(load_into(network, weights, "w.pth", reinitialize_head=True)) == set(kept)
    assert_equal_states(network.state_dict(), {key: own[key] if key in kept else weights[key] for key in own})


@pytest.mark.parametrize(
    ("missing", "kept"),
    [(HEAD, HEAD), ((*HEAD, *NORM), (*HEAD, *NORM)), (("head.bias",), HEAD)],
    ids=["head", "head and last norm", "bias of the head"],
)
def test_reinitialize_head_keeps_what_a_backbone_lacks(
    state: dict[str, Tensor], missing: tuple[str, ...], kept: tuple[str, ...]
) -> None:
    network = build()
    own = copy_of(network)
    assert set(load_into(network, without(state, *missing), "w.pth", reinitialize_head=True)) == set(kept)
    assert_equal_states(network.state_dict(), {key: own[key] if key in kept else state[key] for key in own})


def test_reinitialize_head_keeps_the_norm_before_the_pooling_when_a_backbone_lacks_it() -> None:
    spec = ModelSpec("convnext_tiny_hnf", 3)
    with torch.device("meta"):
        network = build_model(spec)
    less = without(random_state(spec), *HEAD, "norm_pre.weight", "norm_pre.bias")
    kept = load_into(network, less, "w.pth", reinitialize_head=True)
    assert set(kept) == {*HEAD, "norm_pre.weight", "norm_pre.bias"}


@pytest.mark.parametrize(
    ("missing", "changed", "expected"),
    [
        (NORM, {}, "w.pth lacks 'norm.weight'"),  # a head without its norm is no backbone
        (("stages.1.0.norm.bias",), {}, "w.pth lacks 'stages.1.0.norm.bias'"),
        ((), {"norm.weight": torch.ones(7)}, "'norm.weight' has shape (7,), the network needs (64,)"),
        (HEAD, {"norm.weight": torch.ones(7)}, "'norm.weight' has shape (7,), the network needs (64,)"),
        (HEAD, {"extra.weight": torch.ones(7)}, "w.pth has 'extra.weight'"),
        (HEAD, {KEY: torch.full((32, 128), math.nan)}, "not finite"),
        ((), {"head.weight": torch.full((3, 64), math.nan)}, "'head.weight' holds values that are not finite"),
    ],
)
def test_reinitialize_head_refuses_any_other_misfit(
    state: dict[str, Tensor], missing: tuple[str, ...], changed: dict[str, Tensor], expected: str
) -> None:
    weights = {**without(state, *missing), **changed}
    assert expected in assert_refused_without_change(weights, reinitialize_head=True)


@pytest.mark.parametrize(("missing", "first"), [(HEAD, "head.weight"), ((*HEAD, *NORM), "norm.weight")])
def test_load_into_refuses_a_backbone_unless_asked_for_a_new_head(
    state: dict[str, Tensor], missing: tuple[str, ...], first: str
) -> None:
    assert f"w.pth lacks '{first}'" in assert_refused_without_change(without(state, *missing))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_load_network_maps_the_file_and_copies_nothing(tmp_path: Path, state: dict[str, Tensor], suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_state(path, state, {})
    network = load_network(open_input(path))
    mapped = mapped_ranges(path)
    assert not network.training
    for name, parameter in network.named_parameters():
        assert parameter.dtype == torch.float32
        assert any(parameter.data_ptr() in addresses for addresses in mapped), name
    assert_equal_states(network.state_dict(), state)


def test_load_network_leaves_the_file_alone_when_the_network_is_trained(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    save_state(tmp_path / "w.safetensors", state, {})
    before = (tmp_path / "w.safetensors").read_bytes()
    network = load_network(open_input(tmp_path / "w.safetensors")).train()
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    assert not torch.equal(network.state_dict()["head.bias"], state["head.bias"])
    assert (tmp_path / "w.safetensors").read_bytes() == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_load_network_gives_float32_when_the_file_is_of_another_dtype(
    tmp_path: Path, state: dict[str, Tensor], dtype: torch.dtype
) -> None:
    rounded = {key: tensor.to(dtype) for key, tensor in state.items()}
    torch.save(rounded, tmp_path / "w.pth")
    artifact = open_input(tmp_path / "w.pth")
    assert f"w.pth: weights in {str(dtype).removeprefix('torch.')} are converted to float32" in artifact.notes
    network = load_network(artifact)
    assert_equal_states(network.state_dict(), {key: tensor.float() for key, tensor in rounded.items()})
    reference = build()
    reference.load_state_dict({key: tensor.float() for key, tensor in rounded.items()})
    assert_equal_logits(network, reference.eval())


def test_load_network_refuses_when_there_is_neither_head_nor_the_norm_before_it(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    left_out = (*HEAD, "norm.weight", "norm.bias")
    save_state(tmp_path / "w.safetensors", without(state, *left_out), {})
    artifact = open_input(tmp_path / "w.safetensors")
    assert artifact.model.num_classes == 0
    message = refusal(lambda: load_network(artifact), CheckpointError)
    assert "neither a head nor the norm before it" in message
    assert load_checkpoint(artifact.main_file).state.keys() == without(state, *left_out).keys()
