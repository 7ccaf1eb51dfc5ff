"""A bundle of two small graphs, one of them with engines, and copies of it to spoil."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convnext_deploy.api.bundle import bundle
from convnext_deploy.api.options import DataOptions
from convnext_deploy.artifacts.artifact import Artifact
from tests.bundles.graphs import row_sum_graph, write_engine_artifact, write_onnx_artifact
from tests.bundles.trtexec_device import Device
from tests.bundles.trtexec_stand_in import RELEASES, write_trtexec


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Artifacts by precision, and engines of the first one; do not change their folders."""
    folder = tmp_path_factory.mktemp("graphs") / "stages"
    int8 = write_onnx_artifact(folder / "onnx-int8", row_sum_graph(), "int8")
    fp32 = write_onnx_artifact(folder / "onnx-fp32", row_sum_graph(offset=0.25, batch=4, padding=99), "fp32")
    return {"int8": int8, "fp32": fp32, "engine": write_engine_artifact(folder / "engine", int8, gpus=("SM86", "SM89"))}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, graphs: dict[str, Artifact]) -> Path:
    """A bundle of all of them, in a folder with a space in its name; do not change it."""
    out = tmp_path_factory.mktemp("made") / "a bundle"
    bundle([artifact.path for artifact in graphs.values()], out, golden_images=5, max_batch_size=6)
    return out


@pytest.fixture(scope="session")
def real(small_artifacts: dict[str, Artifact], image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the small run: ONNX in FP32 and INT8 and an engine for RTX, with its validation images; do not change it."""
    out = tmp_path_factory.mktemp("real") / "bundle"
    paths = [small_artifacts[name].path for name in ("onnx-fp32", "onnx-int8", "engine")]
    bundle(paths, out, data=DataOptions(image_folder))
    return out


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, on another path."""
    return Path(shutil.copytree(made, tmp_path / "copied bundle"))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Make a bundle of one graph, with the given arguments of `row_sum_graph`."""

    def create(precision: str = "fp32", **arguments: Any) -> Path:
        artifact = write_onnx_artifact(tmp_path / "artifact", row_sum_graph(**arguments), precision)
        bundle([artifact.path], tmp_path / "bundle", golden_images=5)
        return tmp_path / "bundle"

    return create


@pytest.fixture
def place(copied: Path, tmp_path: Path) -> Callable[..., Device]:
    """Return a device with the stand-in of a release."""

    def create(release: str | None = RELEASES[-1], **behaviour: object) -> Device:
        folder = tmp_path / "tools of the device"
        trtexec = None if release is None else write_trtexec(folder, release, **behaviour)  # type: ignore[arg-type]
        return Device(copied, trtexec, tmp_path)

    return create


def read_record(folder: Path) -> dict[str, Any]:
    """Return the contents of `bundle.json`."""
    record: dict[str, Any] = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    return record
