"""Reading and writing of weight files: exact round trips, all formats, and one clear line for what is no checkpoint."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.models.checkpoints.safe_reader import load_metadata, read_content, save_state, take_tensors
from tests.models.conftest import assert_equal_states, mapped_ranges, random_state, refusal


def read_tensors(path: Path) -> tuple[dict[str, Tensor], str | None, Mapping[str, Mapping[str, Any]]]:
    """Return the tensors of a file, their entry, and what its training was called with."""
    content, beside = read_content(path)
    return (*take_tensors(content, path), beside.arguments)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return random_state(ModelSpec("test_convnext", 3))


def test_save_state_then_read_tensors_is_bit_exact(state: dict[str, Tensor], tmp_path: Path) -> None:
    metadata = {"model": {"variant": "convnext_atto"}, "names": ["café", "ö"], "nothing": None}
    mixed = {**state, "int": torch.tensor([1, -2], dtype=torch.int32), "scalar": torch.tensor(0.1)}
    save_state(tmp_path / "w.safetensors", mixed, metadata)
    assert_equal_states(read_tensors(tmp_path / "w.safetensors")[0], mixed)
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
    assert_equal_states(read_tensors(tmp_path / "w.safetensors")[0], {"weight": weight, "t": weight[0, 0].T})


def test_load_metadata_is_empty_when_file_is_of_another_origin(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pth")
    assert load_metadata(tmp_path / "w.safetensors") == {}
    assert load_metadata(tmp_path / "w.pth") == {}


def test_load_metadata_refuses_when_file_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"no")
    assert "w.safetensors" in refusal(lambda: load_metadata(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".tar"])
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "model_ema", "state_dict_ema"])
def test_read_tensors_reads_pickled_weights_when_flat_or_nested(
    state: dict[str, Tensor], tmp_path: Path, suffix: str, wrapper: str | None
) -> None:
    path = tmp_path / f"w{suffix}"
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, path)
    found, entry, _ = read_tensors(path)
    assert_equal_states(found, state)
    assert entry == wrapper


@pytest.mark.parametrize("nested", [False, True])
def test_read_tensors_reads_legacy_pickle(state: dict[str, Tensor], tmp_path: Path, nested: bool) -> None:
    content = {"model": state} if nested else state
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    found, entry, _ = read_tensors(tmp_path / "w.pth")
    assert_equal_states(found, state)
    assert entry == ("model" if nested else None)


def test_read_tensors_takes_the_moving_average_when_there_are_several(tmp_path: Path) -> None:
    weights = {name: {"w": torch.full((2,), float(i))} for i, name in enumerate(("model", "model_ema"))}
    torch.save({**weights, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}, tmp_path / "w.pth")
    found, entry, _ = read_tensors(tmp_path / "w.pth")
    assert (found["w"].tolist(), entry) == ([1.0, 1.0], "model_ema")


def test_read_tensors_takes_the_weights_when_the_average_is_switched_off(tmp_path: Path) -> None:
    torch.save({"model_ema": None, "model": {"w": torch.ones(2)}}, tmp_path / "w.pth")
    assert read_tensors(tmp_path / "w.pth")[1] == "model"


def test_read_tensors_follows_entries_within_entries(tmp_path: Path) -> None:
    torch.save({"model": {"state_dict": {"w": torch.ones(2)}, "epoch": 1}}, tmp_path / "w.pth")
    found, entry, _ = read_tensors(tmp_path / "w.pth")
    assert (list(found), entry) == (["w"], "model")


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_read_tensors_reads_the_arguments_of_training_scripts(tmp_path: Path, form: str) -> None:
    arguments = argparse.Namespace(lr=1e-3, data="somewhere", nested=argparse.Namespace(a=[1, 2]))
    content = {"epoch": 3, "arch": "convnext_atto", "state_dict": {"w": torch.ones(2)}, "args": arguments}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=form == "zip")
    found, entry, _ = read_tensors(tmp_path / "w.pth")
    assert (list(found), entry) == (["w"], "state_dict")


def test_read_tensors_allows_namespaces_only_while_it_reads(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2), "args": argparse.Namespace()}, tmp_path / "w.pth")
    refusal(lambda: read_tensors(tmp_path / "w.pth"))
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "model.module."])
def test_read_tensors_cuts_off_prefixes_that_all_names_share(tmp_path: Path, prefix: str) -> None:
    torch.save({f"{prefix}a.weight": torch.ones(1), f"{prefix}b": torch.zeros(1)}, tmp_path / "w.pth")
    assert list(read_tensors(tmp_path / "w.pth")[0]) == ["a.weight", "b"]


def test_read_tensors_keeps_prefixes_that_not_all_names_share(tmp_path: Path) -> None:
    torch.save({"module.a": torch.ones(1), "b": torch.zeros(1)}, tmp_path / "w.pth")
    assert list(read_tensors(tmp_path / "w.pth")[0]) == ["module.a", "b"]


def test_read_tensors_reads_parameters_and_ordered_mappings(tmp_path: Path) -> None:
    layer = nn.Linear(2, 3)
    torch.save(OrderedDict(layer.named_parameters()), tmp_path / "w.pth")
    found, _, _ = read_tensors(tmp_path / "w.pth")
    assert torch.equal(found["weight"], layer.weight)
    torch.save(layer.state_dict(), tmp_path / "w.pth")  # an OrderedDict with attributes
    assert torch.equal(read_tensors(tmp_path / "w.pth")[0]["bias"], layer.bias)


@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.bool],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_read_tensors_keeps_the_dtype_of_the_file(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    tensor = torch.tensor([0.0, 1.0, -2.0, 1.5]).to(dtype)
    if suffix == ".pth":
        torch.save({"w": tensor}, tmp_path / "w.pth")
    else:
        save_file({"w": tensor}, tmp_path / "w.safetensors")
    found = read_tensors(tmp_path / f"w{suffix}")[0]["w"]
    assert found.dtype == dtype
    assert torch.equal(found.view(torch.uint8), tensor.view(torch.uint8))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_read_tensors_maps_the_file_and_copies_nothing(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    tensors = {"a": torch.rand(300_000), "b": torch.rand(7, 5)}
    if suffix == ".pth":
        torch.save({"model": tensors}, path)
    else:
        save_state(path, tensors, {})
    found, _, _ = read_tensors(path)
    mapped = mapped_ranges(path)
    for name, tensor in found.items():
        assert torch.equal(tensor, tensors[name])
        assert any(tensor.data_ptr() in addresses for addresses in mapped), name


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_read_tensors_leaves_the_file_alone_when_tensors_are_changed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save({"w": torch.rand(5000)}, path)
    else:
        save_state(path, {"w": torch.rand(5000)}, {})
    before = path.read_bytes()
    read_tensors(path)[0]["w"].zero_()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [b"", b"These are not weights.\n", b"key = 1", b"(", b"{}", b"a", bytes(100)],
    ids=["empty", "sentence", "assignment", "bracket", "braces", "letter", "zeros"],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_read_tensors_refuses_when_file_is_no_checkpoint(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    message = refusal(lambda: read_tensors(path))
    assert str(path) in message
    assert "execute code" not in message


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(content=st.one_of(st.binary(max_size=40), st.text(max_size=40).map(str.encode)))
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_read_tensors_refuses_when_bytes_are_arbitrary(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / f"arbitrary{suffix}"
    path.write_bytes(content)
    refusal(lambda: read_tensors(path))


@pytest.mark.parametrize("form", ["safetensors", "pth", "legacy.pth"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.05, 0.3, 0.5, 0.95, 0.999])
def test_read_tensors_refuses_when_file_is_truncated(tmp_path: Path, form: str, kept: float) -> None:
    path = tmp_path / f"w.{form}"
    tensors = {"a": torch.arange(300.0), "b": torch.ones(7, 5), "c": torch.zeros(2, dtype=torch.int64)}
    if form == "safetensors":
        save_state(path, tensors, {"model": {}})
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=form == "pth")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    assert str(path) in refusal(lambda: read_tensors(path))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_read_tensors_refuses_when_file_is_missing(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"none{suffix}"
    assert refusal(lambda: read_tensors(path)) == f"there is no checkpoint {path}."


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_read_tensors_refuses_when_path_is_a_folder(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"folder{suffix}"
    path.mkdir()
    assert str(path) in refusal(lambda: read_tensors(path))


@pytest.mark.parametrize(
    "content", [torch.ones(3), [torch.ones(3)], {}, {"epoch": 3}, {"model": {"a": torch.ones(1), "epoch": 3}}]
)
def test_read_tensors_refuses_when_content_is_no_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert "holds no state dict" in refusal(lambda: read_tensors(tmp_path / "w.pth"))
