"""Published weights by torchvision's names: its cache and its download, with files made here; nothing leaves this machine."""

from __future__ import annotations

import dataclasses
import hashlib
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import ConvNeXt_Tiny_Weights

from convnext_deploy.api.convert import convert
from convnext_deploy.artifacts.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec, Preprocess
from convnext_deploy.data.transforms import evaluation_transform, normalize
from convnext_deploy.errors import CheckpointError
from convnext_deploy.models.checkpoints.hub import fetch_weights
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.pipeline.open_artifact import open_input
from tests.data.test_transforms import picture
from tests.models.test_pretrained import NOWHERE, local_only, message_of
from tests.weights import assert_equal_states, random_network, write_weights

TORCHVISION = "ConvNeXt_Tiny_Weights.IMAGENET1K_V1"
Publish = Callable[[str], str]


@pytest.fixture(autouse=True)
def _only_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and no way out of this machine."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("NO_PROXY", "localhost")
    monkeypatch.setattr(socket, "getaddrinfo", local_only)


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Let torchvision's weights lie in a local file with that end of its name; returns the name of the file.

    They are of a smaller network than the name says, which saves time and changes nothing.
    """

    def lay(digits: str) -> str:
        source = write_weights(tmp_path / "own.safetensors", ModelSpec("convnext_atto", 1000))
        written = convert(source, "torchvision", tmp_path / "out").path / "model.pth"
        hashed = hashlib.sha256(written.read_bytes()).hexdigest()[:8]
        file = written.rename(tmp_path / f"convnext_tiny-{digits or hashed}.pth")
        member = ConvNeXt_Tiny_Weights.IMAGENET1K_V1
        monkeypatch.setattr(member, "_value_", dataclasses.replace(member.value, url=file.as_uri()))
        return file.name

    return lay


@pytest.mark.parametrize("name", [TORCHVISION, "convnext_tiny_weights.imagenet1k_v1", "ConvNeXt_Tiny_Weights.DEFAULT"])
def test_open_input_downloads_torchvisions_weights_into_its_cache(name: str, publish: Publish, tmp_path: Path) -> None:
    file = publish("")
    artifact = open_input(Path(name))
    assert artifact.main_file == tmp_path / "torch" / "hub" / "checkpoints" / file
    assert artifact.preprocess == Preprocess(224, 224 / 236, "bilinear", IMAGENET_MEAN, IMAGENET_STD)
    assert artifact.class_names is not None
    assert (len(artifact.class_names), artifact.class_names[0]) == (1000, "tench")
    assert_equal_states(load_network(artifact).state_dict(), random_network(artifact.model).state_dict())
    (tmp_path / file).unlink()
    assert open_input(Path(name)) == artifact


@pytest.mark.parametrize(("width", "height"), [(500, 375), (301, 480)])
def test_open_input_evaluates_torchvisions_weights_as_published(publish: Publish, width: int, height: int) -> None:
    publish("")
    preprocess = open_input(Path(TORCHVISION)).preprocess
    image = picture(width, height)
    own = normalize(torch.from_numpy(np.array(evaluation_transform(image, preprocess)))[None], preprocess)
    torch.testing.assert_close(own[0], ConvNeXt_Tiny_Weights.IMAGENET1K_V1.transforms()(image), rtol=0, atol=1e-5)


def test_open_input_refuses_and_keeps_nothing_when_the_download_has_another_hash(
    publish: Publish, tmp_path: Path
) -> None:
    file = publish("01234567")
    message = message_of(TORCHVISION)
    assert "invalid hash value" in message
    assert f"download file://{tmp_path / file}; bring the file here" in message
    assert list((tmp_path / "torch" / "hub" / "checkpoints").iterdir()) == []


def test_open_input_says_how_to_bring_torchvisions_file_when_there_is_no_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    member, url = ConvNeXt_Tiny_Weights.IMAGENET1K_V1, f"{NOWHERE}/convnext_tiny-983f1562.pth"
    monkeypatch.setattr(member, "_value_", dataclasses.replace(member.value, url=url))
    message = message_of(TORCHVISION)
    assert f"'{TORCHVISION}' is not in the cache, and downloading it failed" in message
    assert (
        f"Where there is a network, download {url}; bring the file here and give it in the place of the name" in message
    )


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("ConvNeXt_Tiny_Weights.IMAGENET1K_V2", "ConvNeXt_Tiny_Weights.IMAGENET1K_V1"),
        ("ConvNeXt_Tinny_Weights.IMAGENET1K_V1", "ConvNeXt_Tiny_Weights.IMAGENET1K_V1"),
    ],
)
def test_fetch_weights_suggests_the_nearest_name_of_torchvision(name: str, nearest: str) -> None:
    with pytest.raises(CheckpointError, match=rf"no weights '{name}'\. Did you mean '{nearest}'\? Known: ") as error:
        fetch_weights(name)
    for size in ("Tiny", "Small", "Base", "Large"):
        assert f"ConvNeXt_{size}_Weights.IMAGENET1K_V1" in str(error.value)
