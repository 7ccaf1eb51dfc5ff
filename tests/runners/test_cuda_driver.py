"""Asking for an NVIDIA driver: every way in which there can be none."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import pytest

from convnext_deploy.system.cuda_driver import cuda_driver_error, describe_gpus, gpu_name


@dataclass
class Driver:
    """A driver library that answers as told."""

    initialized: int = 0
    counted: int = 0
    gpus: int = 1

    def cuInit(self, flags: int) -> int:  # noqa: N802  (the driver's name)
        assert flags == 0
        return self.initialized

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802  (likewise)
        count._obj.value = self.gpus
        return self.counted


def test_cuda_driver_error_says_no_gpu_when_there_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert cuda_driver_error() == "no GPU"


@pytest.mark.parametrize(
    ("driver", "reason"),
    [(Driver(initialized=100), "does not start"), (Driver(counted=3), "sees none"), (Driver(gpus=0), "sees none")],
    ids=["not started", "not counted", "no device"],
)
def test_cuda_driver_error_tells_why_a_driver_is_of_no_use(
    monkeypatch: pytest.MonkeyPatch, driver: Driver, reason: str
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert reason in (cuda_driver_error() or "")


@pytest.mark.parametrize(("platform", "library"), [("linux", "libcuda.so.1"), ("win32", "nvcuda.dll")])
def test_cuda_driver_error_is_none_when_there_is_a_gpu(
    monkeypatch: pytest.MonkeyPatch, platform: str, library: str
) -> None:
    asked: list[str] = []

    def load(name: str) -> Driver:
        asked.append(name)
        return Driver(gpus=2)

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr("convnext_deploy.system.cuda_driver.sys.platform", platform)
    assert cuda_driver_error() is None
    assert asked == [library]


class Talking(Driver):
    """A driver of two GPUs that says what they are."""

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802  (the driver's name)
        version._obj.value = 12080
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802  (likewise)
        device._obj.value = 10 + index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802  (likewise)
        name.value = b"Orin" if device.value == 10 else b"NVIDIA H200"
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802  (likewise)
        value._obj.value = {75: 8, 76: 7}[attribute] if device.value == 10 else {75: 9, 76: 0}[attribute]
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> int:  # noqa: N802  (likewise)
        memory._obj.value = 8 * 10**9 if device.value == 10 else 150 * 10**9
        return 0


def test_describe_gpus_tells_each_by_name_capability_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Talking(gpus=2))
    assert describe_gpus() == {
        "cuda": "12.8",
        "gpus": [
            {"name": "Orin", "capability": "SM87", "memory_bytes": 8 * 10**9},
            {"name": "NVIDIA H200", "capability": "SM90", "memory_bytes": 150 * 10**9},
        ],
    }


@pytest.mark.gpu
@pytest.mark.skipif(cuda_driver_error() is not None, reason="no GPU to describe")
def test_describe_gpus_agrees_with_pytorch() -> None:
    import torch

    found = describe_gpus()["gpus"]
    assert [gpu["name"] for gpu in found] == [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    assert found[0]["capability"] == gpu_name()
    assert found[0]["memory_bytes"] == pytest.approx(torch.cuda.get_device_properties(0).total_memory, rel=0.02)
