"""What the caller has told PyTorch does not reach the results, and is as it was afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import convnext_deploy as api
from convnext_deploy.artifacts.artifact import read_artifact
from convnext_deploy.system.torch_defaults import usual_torch

QUIET = api.ExecutionOptions(progress="off", workers=0)


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


STATES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "bfloat16 by default": default_dtype,
    "meta by default": lambda: torch.device("meta"),
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def describe() -> tuple[object, ...]:
    switches = torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
    return torch.get_default_dtype(), torch.get_default_device(), *switches


@pytest.mark.parametrize("state", STATES)
def test_within_a_verb_pytorch_is_as_where_nobody_said_otherwise(state: str) -> None:
    usual = describe()
    with STATES[state]():
        told = describe()
        assert told != usual
        with usual_torch():
            assert describe() == usual
        assert describe() == told


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that was trained where nobody said anything."""
    return train(tmp_path_factory.mktemp("alone"))


def train(folder: Path) -> Path:
    few = api.TrainingOptions(epochs=1, batch_size=512)
    found = api.train("test_convnext", out=folder / "run", training=few, execution=QUIET)
    return Path(found.report.rows[-1].identity.artifact)


@pytest.mark.heavy
@pytest.mark.parametrize("state", STATES)
def test_training_and_conversion_give_the_same_bits(state: str, alone: Path, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (200, 90, 30)).save(tmp_path / "image.png")
    with STATES[state]():
        there = train(tmp_path)
        api.convert(alone, "timm", tmp_path / "timm")
        stream = api.predict(alone, tmp_path / "image.png", stream=True, execution=QUIET)
        found = [prediction.guesses for prediction in stream]
    assert read_artifact(there).sha256 == read_artifact(alone).sha256
    assert found == [prediction.guesses for prediction in api.predict(alone, tmp_path / "image.png", execution=QUIET)]
    (file,) = (tmp_path / "timm").glob("*.safetensors")
    assert {value.dtype for value in load_file(file).values()} == {torch.float32}
