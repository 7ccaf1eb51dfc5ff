"""Checkpoints: exact round trips, formats, and one clear line for everything that is no checkpoint of ours."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import convnext_tiny, resnet18

from convnext_deploy.artifact import ModelSpec
from convnext_deploy.errors import CheckpointError
from convnext_deploy.models.checkpoint import infer_model_spec, load_into, load_metadata, load_state, save_state
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.models.variants import VARIANTS, build_model

ATTO = ModelSpec("convnext_atto", 3)


@pytest.fixture(scope="module")
def network() -> ConvNeXt:
    torch.manual_seed(0)
    return build_model(ATTO).eval()


@pytest.fixture(scope="module")
def state(network: ConvNeXt) -> dict[str, Tensor]:
    return network.state_dict()


def assert_equal_states(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def refusal(call: Callable[[], object]) -> str:
    """Return the one line with which `call` is refused."""
    with pytest.raises(CheckpointError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_save_state_then_load_state_is_bit_exact(state: dict[str, Tensor], tmp_path: Path) -> None:
    metadata = {"model": {"variant": "convnext_atto"}, "names": ["café", "ö"], "nothing": None}
    mixed = {**state, "int": torch.tensor([1, -2], dtype=torch.int32), "scalar": torch.tensor(0.1)}
    save_state(tmp_path / "w.safetensors", mixed, metadata)
    assert_equal_states(load_state(tmp_path / "w.safetensors"), mixed)
    assert load_metadata(tmp_path / "w.safetensors") == metadata


def test_save_state_writes_the_same_bytes_whatever_the_order(state: dict[str, Tensor], tmp_path: Path) -> None:
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_state(first, state, {"a": 1, "b": 2})
    copies = {key: state[key].clone() for key in reversed(state)}
    save_state(second, copies, {"b": 2, "a": 1})
    assert first.read_bytes() == second.read_bytes()


def test_save_state_keeps_values_when_memory_is_not_contiguous(tmp_path: Path) -> None:
    weight = torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    save_state(tmp_path / "w.safetensors", {"weight": weight, "t": weight[0, 0].T}, {})
    assert_equal_states(load_state(tmp_path / "w.safetensors"), {"weight": weight, "t": weight[0, 0].T})


def test_load_metadata_is_empty_when_file_is_of_another_origin(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pth")
    assert load_metadata(tmp_path / "w.safetensors") == {}
    assert load_metadata(tmp_path / "w.pth") == {}


def test_load_metadata_refuses_when_file_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"no")
    assert "w.safetensors" in refusal(lambda: load_metadata(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_load_state_reads_pickled_weights_when_flat_or_nested(
    state: dict[str, Tensor], tmp_path: Path, suffix: str, wrapper: str | None
) -> None:
    path = tmp_path / f"w{suffix}"
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, path)
    assert_equal_states(load_state(path), state)


def test_load_state_reads_legacy_pickle(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"model": state}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert_equal_states(load_state(tmp_path / "w.pth"), state)


class _CreatesFile:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", ["torch", "legacy", "pickle"])
def test_load_state_executes_nothing_when_pickle_holds_code(tmp_path: Path, save: str) -> None:
    marker, path = tmp_path / "executed", tmp_path / "w.pth"
    content = {"model": {"weight": torch.ones(2)}, "args": _CreatesFile(marker)}
    if save == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=save == "torch")
    message = refusal(lambda: load_state(path))
    assert str(path) in message
    assert not marker.exists()
    if save != "pickle":
        assert "would execute code" in message
        torch.load(path, weights_only=False)
        assert marker.exists(), "the file is harmless and proves nothing"


@pytest.mark.parametrize(
    "content",
    [b"", b"These are not weights.\n", b"key = 1", b"(", b"{}", b"a", bytes(100)],
    ids=["empty", "sentence", "assignment", "bracket", "braces", "letter", "zeros"],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_load_state_refuses_when_file_is_no_checkpoint(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    message = refusal(lambda: load_state(path))
    assert str(path) in message
    assert "execute code" not in message


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(content=st.one_of(st.binary(max_size=40), st.text(max_size=40).map(str.encode)))
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_load_state_refuses_when_bytes_are_arbitrary(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / f"arbitrary{suffix}"
    path.write_bytes(content)
    refusal(lambda: load_state(path))


@pytest.mark.parametrize("form", ["safetensors", "pth", "legacy.pth"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.05, 0.3, 0.5, 0.95, 0.999])
def test_load_state_refuses_when_file_is_truncated(tmp_path: Path, form: str, kept: float) -> None:
    path = tmp_path / f"w.{form}"
    tensors = {"a": torch.arange(300.0), "b": torch.ones(7, 5), "c": torch.zeros(2, dtype=torch.int64)}
    if form == "safetensors":
        save_state(path, tensors, {"model": {}})
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=form == "pth")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    assert str(path) in refusal(lambda: load_state(path))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_load_state_refuses_when_file_is_missing(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"none{suffix}"
    assert refusal(lambda: load_state(path)) == f"there is no checkpoint {path}."


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_load_state_refuses_when_path_is_a_folder(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"folder{suffix}"
    path.mkdir()
    assert str(path) in refusal(lambda: load_state(path))


@pytest.mark.parametrize(
    "content", [torch.ones(3), [torch.ones(3)], {}, {"epoch": 3}, {"model": {"a": torch.ones(1), "epoch": 3}}]
)
def test_load_state_refuses_when_content_is_no_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert "holds no state dict" in refusal(lambda: load_state(tmp_path / "w.pth"))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("num_classes", "in_channels", "patch_size"), [(10, 3, 4), (1000, 1, 2)])
def test_infer_model_spec_finds_what_was_built(
    variant: str, num_classes: int, in_channels: int, patch_size: int
) -> None:
    spec = ModelSpec(variant, num_classes, in_channels, patch_size)
    with torch.device("meta"):
        state = build_model(spec).state_dict()
    assert infer_model_spec(state, Path("w.pth")) == spec


@pytest.mark.parametrize("create", [resnet18, convnext_tiny])
def test_infer_model_spec_refuses_when_architecture_is_another(create: Callable[[], torch.nn.Module]) -> None:
    with torch.device("meta"):
        state = create().state_dict()
    message = refusal(lambda: infer_model_spec(state, Path("other.pth")))
    assert "other.pth is no ConvNeXt checkpoint" in message
    assert next(iter(state)) in message


def test_infer_model_spec_refuses_when_size_is_unknown() -> None:
    state = ConvNeXt((1, 1, 2, 1), (8, 16, 24, 32), num_classes=2).state_dict()
    message = refusal(lambda: infer_model_spec(state, Path("odd.pth")))
    assert "v1 of unknown size: depths (1, 1, 2, 1), widths (8, 16, 24, 32)" in message


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("downsample_layers.0.0.weight", (40,)),
        ("downsample_layers.0.0.weight", ()),
        ("head.weight", ()),
        ("stages.2.0.dwconv.weight", ()),
    ],
)
def test_infer_model_spec_refuses_when_a_tensor_lacks_dimensions(
    state: dict[str, Tensor], key: str, shape: tuple[int, ...]
) -> None:
    assert "w.pth" in refusal(lambda: infer_model_spec({**state, key: torch.zeros(shape)}, Path("w.pth")))


def test_load_into_copies_every_weight(state: dict[str, Tensor]) -> None:
    torch.manual_seed(5)
    other = build_model(ATTO)
    assert not torch.equal(other.state_dict()["head.weight"], state["head.weight"])
    load_into(other, state, "w.pth")
    assert_equal_states(other.state_dict(), state)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_load_into_refuses_when_a_weight_is_not_finite(state: dict[str, Tensor], value: float) -> None:
    broken = state["stages.1.1.pwconv2.weight"].clone()
    broken[3, 5] = value
    message = refusal(lambda: load_into(build_model(ATTO), {**state, "stages.1.1.pwconv2.weight": broken}, "w.pth"))
    assert "w.pth: 'stages.1.1.pwconv2.weight' holds values that are not finite" in message


def test_load_into_refuses_when_a_shape_differs(state: dict[str, Tensor]) -> None:
    message = refusal(lambda: load_into(build_model(ATTO), {**state, "head.weight": torch.zeros(7, 320)}, "w.pth"))
    assert "'head.weight' has shape (7, 320), the network needs (3, 320)" in message


def test_load_into_refuses_when_a_key_is_missing_or_left_over(state: dict[str, Tensor]) -> None:
    less = {key: value for key, value in state.items() if key != "norm.bias"}
    assert "w.pth lacks 'norm.bias'" in refusal(lambda: load_into(build_model(ATTO), less, "w.pth"))
    more = {**state, "ema.decay": torch.zeros(1)}
    assert "w.pth has 'ema.decay'" in refusal(lambda: load_into(build_model(ATTO), more, "w.pth"))


def test_load_into_leaves_the_network_alone_when_refusing(state: dict[str, Tensor]) -> None:
    torch.manual_seed(6)
    target = build_model(ATTO)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    refusal(lambda: load_into(target, {**state, "head.bias": torch.full((3,), torch.nan)}, "w.pth"))
    assert_equal_states(target.state_dict(), before)
