"""Published weights by name on the Hugging Face hub: its cache and its download, with files made here and served by localhost."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, file_download
from huggingface_hub import utils as huggingface_hub_utils
from safetensors.torch import load_file

from convnext_deploy.api.convert import convert
from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.errors import ArtifactError, BackendUnavailableError, CheckpointError, DeployError
from convnext_deploy.models.checkpoints.hub import is_weights_name
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.pipeline.open_artifact import open_input
from tests.weights import PREPROCESS, assert_equal_states, random_network, write_weights

SPEC = ModelSpec("test_convnext", 3)
NAME = "timm/test_convnext.r160_in1k"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NOWHERE = "http://localhost:9"  # the discard port, on which nothing listens


_getaddrinfo = socket.getaddrinfo
# close_session's name before huggingface_hub 1.0
close_session = getattr(huggingface_hub, "close_session", None) or huggingface_hub_utils.reset_sessions


def local_only(host: Any, *arguments: Any, **more: Any) -> Any:
    """Look up an address on this machine; any other fails the test."""
    assert host in ("localhost", b"localhost"), f"a test asks for {host!r}"
    return _getaddrinfo(host, *arguments, **more)


def use_hub(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client of the Hugging Face hub ask another server."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    for module in (constants, file_download):  # before huggingface_hub 1.0 each has its own
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, and no way out of this machine."""
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    use_hub(NOWHERE, monkeypatch)
    monkeypatch.setattr(socket, "getaddrinfo", local_only)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    close_session()
    return tmp_path / "hub"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What timm's repository of the network would hold, and more."""
    folder = tmp_path_factory.mktemp("published")
    source = write_weights(folder / "own.safetensors", SPEC, ("cat", "dog", "owl"), PREPROCESS)
    out = convert(source, "timm", folder / "out").path
    torch.save(load_file(out / "model.safetensors"), out / "pytorch_model.bin")
    (out / "tf_model.h5").write_bytes(b"of no use here")
    return out


def fill_cache(cache: Path, files: Path, names: tuple[str, ...] = ("config.json", "model.safetensors")) -> Path:
    """Lay files into the cache as huggingface_hub does."""
    repository = cache / f"models--{NAME.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for name in names:
        content = (files / name).read_bytes()
        blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).symlink_to(Path("..", "..", "blobs", blob.name))
    return snapshot


class Hub(BaseHTTPRequestHandler):
    """The part of the Hugging Face hub that a download needs, for one repository."""

    def __init__(self, files: Path, asked: list[str], *arguments: Any) -> None:
        self.files, self.asked = files, asked
        super().__init__(*arguments)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  (the name is the base class's)
        """Stay silent."""

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        """Answer for the repository `NAME`; every other one is missing."""
        path = self.path.partition("?")[0]
        name = path.removeprefix(f"/{NAME}/resolve/{COMMIT}/")
        names = sorted(file.name for file in self.files.iterdir())
        if path == f"/api/models/{NAME}/revision/main":
            siblings = [{"rfilename": name} for name in names]
            self.answer(json.dumps({"id": NAME, "sha": COMMIT, "siblings": siblings}).encode())
        elif path == f"/api/models/{NAME}/tree/{COMMIT}":
            tree = [{"type": "file", "path": n, "size": (self.files / n).stat().st_size, "oid": n} for n in names]
            self.answer(json.dumps(tree).encode())
        elif name in names:
            if self.command == "GET":
                self.asked.append(name)
            self.answer((self.files / name).read_bytes(), ETag=f'"{name}"', X_Repo_Commit=COMMIT)
        else:
            self.answer(b"{}", 404, X_Error_Code="RepoNotFound")

    def do_HEAD(self) -> None:
        """Likewise, without the content."""
        self.do_GET()


Serve = Callable[[Path], list[str]]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Serve a folder as the repository, from localhost; returns the list of files that are downloaded."""
    with contextlib.ExitStack() as stack:

        def start(folder: Path) -> list[str]:
            asked: list[str] = []
            server = stack.enter_context(ThreadingHTTPServer(("localhost", 0), partial(Hub, folder, asked)))
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            use_hub(f"http://localhost:{server.server_address[1]}", monkeypatch)
            return asked

        yield start
    close_session()


@pytest.fixture
def served(serve: Serve, files: Path) -> list[str]:
    """Serve timm's repository; returns the list of files that are downloaded."""
    return serve(files)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("timm/convnext_tiny.fb_in1k", True),
        ("facebook/convnext-tiny-224", True),
        ("hf-hub:someone/their-convnext", True),
        ("ConvNeXt_Tiny_Weights.IMAGENET1K_V1", True),
        ("convnext_tiny_weights.default", True),
        ("someone/their-convnext", False),
        ("timm/a/b", False),
        ("timm/", False),
        ("timm", False),
        ("/timm/x", False),
        ("./timm/x", False),
        ("hf-hub:x", False),
        ("convnext_tiny", False),
        ("ResNet50_Weights.IMAGENET1K_V1", False),
        ("", False),
    ],
)
def test_is_weights_name_knows_the_names_of_publishers(text: str, expected: bool) -> None:
    assert is_weights_name(text) is expected


@pytest.mark.parametrize("prefix", ["", "hf-hub:"])
@pytest.mark.parametrize("offline", [False, True])
def test_open_input_takes_weights_from_the_hubs_cache_when_there_is_no_network(
    prefix: str, offline: bool, cache: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = fill_cache(cache, files)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    artifact = open_input(Path(prefix + NAME))
    assert artifact.main_file == snapshot / "model.safetensors"
    assert (artifact.model, artifact.preprocess, artifact.class_names) == (SPEC, PREPROCESS, ("cat", "dog", "owl"))
    assert_equal_states(load_network(artifact).state_dict(), random_network(SPEC).state_dict())


def test_open_input_downloads_what_it_needs_once(served: list[str], cache: Path) -> None:
    artifact = open_input(Path(NAME))
    assert sorted(served) == ["config.json", "model.safetensors"]
    assert artifact.path.is_relative_to(cache)
    assert artifact.preprocess == PREPROCESS
    assert_equal_states(load_network(artifact).state_dict(), random_network(SPEC).state_dict())
    assert open_input(Path(NAME)) == artifact
    assert len(served) == 2


def test_open_input_downloads_the_pickled_weights_when_there_are_no_others(
    serve: Serve, files: Path, tmp_path: Path
) -> None:
    for name in ("config.json", "pytorch_model.bin"):
        (tmp_path / "repository").mkdir(exist_ok=True)
        shutil.copy(files / name, tmp_path / "repository" / name)
    served = serve(tmp_path / "repository")
    artifact = open_input(Path(NAME))
    assert sorted(served) == ["config.json", "pytorch_model.bin"]
    assert_equal_states(load_network(artifact).state_dict(), random_network(SPEC).state_dict())


def test_open_input_finds_what_was_downloaded_when_the_network_is_gone(
    served: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_input(Path(NAME))
    use_hub(NOWHERE, monkeypatch)
    assert open_input(Path(NAME)) == first


def message_of(name: str, error: type[DeployError] = CheckpointError) -> str:
    with pytest.raises(error) as caught:
        open_input(Path(name))
    assert "\n" not in str(caught.value)
    return str(caught.value)


BRING = f"Where there is a network: hf download {NAME} config.json model.safetensors --local-dir DIR; bring DIR here"


@pytest.mark.parametrize("offline", [False, True])
def test_open_input_says_how_to_bring_the_files_when_the_hub_cannot_be_reached(
    offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    start = f"'{NAME}' is not in the cache of the Hugging Face hub, and the hub cannot be reached. {BRING}"
    assert message_of(NAME).startswith(start)


def test_open_input_says_how_to_bring_the_files_when_the_cache_has_the_config_only(
    cache: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_cache(cache, files, ("config.json",))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert BRING in message_of(NAME)


def test_open_input_raises_when_the_hub_has_no_such_repository(served: list[str]) -> None:
    message = message_of("timm/convnext_tinny.fb_in1k")
    assert "the Hugging Face hub has no repository 'timm/convnext_tinny.fb_in1k', or it needs a login" in message
    assert served == []


def test_open_input_names_the_line_that_installs_the_hubs_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'convnext_deploy[hub]'" in message_of(NAME, BackendUnavailableError)


def test_open_input_prefers_a_file_of_the_same_name(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("timm").mkdir()
    Path(NAME).symlink_to(files)
    assert open_input(Path(NAME)).path == Path(NAME)


@pytest.mark.parametrize("name", ["someone/their-convnext", "timm/a/b", "convnext_tiny"])
def test_open_input_asks_nobody_for_what_is_no_published_name(name: str, served: list[str]) -> None:
    assert message_of(name, ArtifactError).startswith(f"{name} does not exist; expected an artifact folder")
    assert served == []
