"""Fixtures for engines: a machine that looks as if it had a GPU, and an engine that a stand-in for TensorRT runs on it."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from convnext_deploy.artifacts.artifact import Artifact, describe_file
from convnext_deploy.artifacts.details import EngineDetails, Profile
from convnext_deploy.artifacts.spec import ModelSpec, default_preprocess
from convnext_deploy.runners import open_runner, tensorrt
from tests.exporters.tensorrt_stand_in import RTX_RELEASE, Script, create_stand_in

CLASSES, SIDE, MAX_BATCH = 3, 8, 4


@dataclass
class Stream:
    """A CUDA stream of the stand-in for PyTorch's GPU."""

    cuda_stream: int = 77
    waited: int = 0

    def synchronize(self) -> None:
        self.waited += 1


@dataclass
class Machine:
    """What the tests set and see: the bindings, the streams, and the GPU's compute capability."""

    script: Script
    streams: list[Stream]
    capability: tuple[int, int] = (8, 6)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine that looks as if it had a GPU, whose memory is that of the CPU."""
    machine = Machine(Script(input_shape=(-1, 3, SIDE, SIDE), engine_batches=(1, 1, MAX_BATCH)), [])

    def create_stream() -> Stream:
        machine.streams.append(Stream())
        return machine.streams[-1]

    empty = torch.empty

    def empty_on_cpu(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> torch.Tensor:
        assert device == "cuda"
        return empty(shape, dtype=dtype)

    monkeypatch.setattr(tensorrt, "cuda_driver_error", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: machine.capability)
    monkeypatch.setattr(torch.cuda, "Stream", create_stream)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(torch, "empty", empty_on_cpu)
    return machine


@pytest.fixture
def plan_artifact(tmp_path: Path, machine: Machine) -> Artifact:
    """An engine of TensorRT-RTX for two GPUs, with the bytes that the stand-in takes for an engine."""
    files = []
    for name in ("model.sm86.plan", "model.sm89.plan"):
        (tmp_path / name).write_bytes(machine.script.plan or b"")
        files.append(describe_file(tmp_path / name))
    details = EngineDetails("tensorrt-rtx", "1.7.1", ("SM86", "SM89"), Profile(1, 1, 8))
    spec = ModelSpec("convnext_atto", CLASSES)
    return Artifact(tmp_path, details, "int8", spec, None, default_preprocess(SIDE), tuple(files))


def details_for(release: str, artifact: Artifact) -> EngineDetails:
    """Return the details of the engine, or of one for the GPU present if the release builds no others."""
    details = artifact.details_as(EngineDetails)
    return details if release == RTX_RELEASE else dataclasses.replace(details, flavor="tensorrt", gpus=())


Opened = Callable[..., Any]


@pytest.fixture
def open_release(plan_artifact: Artifact, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Open the engine as if it were of the given release."""

    def open_it(release: str, **changes: Any) -> Any:
        stand_in = create_stand_in(release, machine.script)
        monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
        details = dataclasses.replace(details_for(release, plan_artifact), **changes)
        return open_runner(dataclasses.replace(plan_artifact, details=details))

    return open_it
