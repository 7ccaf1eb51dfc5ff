"""Asking for an NVIDIA driver: every way in which there can be none."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import pytest

from convnext_deploy.cuda_driver import cuda_driver_error


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
    [
        (Driver(initialized=100), "does not start"),
        (Driver(counted=3), "sees none"),
        (Driver(gpus=0), "sees none"),
    ],
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
    monkeypatch.setattr("convnext_deploy.cuda_driver.sys.platform", platform)
    assert cuda_driver_error() is None
    assert asked == [library]
