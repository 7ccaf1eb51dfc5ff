"""Describe the machine and the versions of packages, as reports record them."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from convnext_deploy.system.distributed import usable_cores

_PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "onnx",
    "onnxruntime",
    "openvino",
    "tensorrt_rtx",
    "tensorrt",
    "torch_tensorrt",
)


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on, without importing them."""
    found = {"python": platform.python_version()}
    for package in ("convnext_deploy", *_PACKAGES):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe_environment() -> dict[str, Any]:
    """Return the machine and the package versions."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {"cpu": cpu, "cores": usable_cores(), "system": platform.system(), "versions": package_versions()}
