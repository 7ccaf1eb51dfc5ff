"""Builds with the stand-in of a TensorRT release, as if there were a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Protocol

import pytest

from convnext_deploy.artifacts.details import Profile
from convnext_deploy.config.choices import Flavor
from convnext_deploy.exporters.tensorrt import bindings as tensorrt_releases
from convnext_deploy.exporters.tensorrt import build_options as tensorrt_options
from convnext_deploy.exporters.tensorrt.build import Engine, build_engine
from convnext_deploy.exporters.tensorrt.build_options import BuildOptions
from convnext_deploy.system.progress import Progress, SilentProgress
from tests.exporters.tensorrt_stand_in import RELEASES, RTX_RELEASE, Script, create_stand_in

ALL_RELEASES = (*RELEASES, RTX_RELEASE)
STANDARD = pytest.mark.parametrize("release", RELEASES, indirect=True)
OPTIONS = BuildOptions(Profile(1, 2, 8), workspace_mib=64, optimization_level=4)


class Build(Protocol):
    """Build an engine with the stand-in of a release."""

    def __call__(self, options: BuildOptions = ..., progress: Progress = ...) -> Engine: ...


def flavor_of(release: str) -> Flavor:
    """Return the flavor that a release belongs to."""
    return "tensorrt-rtx" if release == RTX_RELEASE else "tensorrt"


def prepare_build(release: str, script: Script, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Put the stand-in of a release in the place of the bindings, and return what builds with it."""
    flavor = flavor_of(release)
    stand_in = create_stand_in(release, script)
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    for module in (tensorrt_options, tensorrt_releases):
        monkeypatch.setattr(module, "cuda_driver_error", lambda: None)
    silent = SilentProgress()

    def build(options: BuildOptions = OPTIONS, progress: Progress = silent) -> Engine:
        gpu = "SM86" if flavor == "tensorrt-rtx" else None
        return build_engine(Path("model.onnx"), flavor=flavor, gpu=gpu, options=options, progress=progress)

    return build
