"""Describe the machine and the versions of packages, as reports record them."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from convnext_deploy.system.distributed import usable_cores

_PACKAGES = (
    "convnext_deploy", "torch", "torchvision", "numpy", "onnx", "onnxruntime", "openvino", "tensorrt_rtx", "tensorrt",
    "torch_tensorrt",
)  # fmt: skip


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None; also where its metadata is damaged."""
    try:
        version: str | None = importlib.metadata.version(distribution)
    except Exception:  # metadata that others left behind is damaged in many ways
        return None
    return version


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on, without importing them."""
    found = {name: version for name in _PACKAGES if (version := installed_version(name)) is not None}
    return {"python": platform.python_version(), **found}


def describe_environment() -> dict[str, Any]:
    """Return the machine and the package versions."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {"cpu": cpu, "cores": usable_cores(), "system": platform.system(), "versions": package_versions()}
