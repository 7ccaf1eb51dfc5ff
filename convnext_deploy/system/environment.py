"""Describe the machine and the versions of packages, as reports record them."""

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convnext_deploy.system.cuda_driver import cuda_driver_error, describe_gpus
from convnext_deploy.system.distributed import usable_cores

_PACKAGES = (
    "convnext_deploy", "torch", "torchvision", "numpy", "pillow", "pillow_simd", "onnx", "onnxruntime", "onnxruntime_gpu",
    "onnxruntime_openvino", "openvino", "tensorrt_rtx", "tensorrt_rtx_cu12", "tensorrt_rtx_cu13", "tensorrt", "tensorrt_cu12",
    "tensorrt_cu13", "torch_tensorrt",
)  # fmt: skip
_THREADS = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# which instructions and kernels are used, how threads are placed and wait, and who gives memory
_VARIABLES = (
    "ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA", "DNNL_DEFAULT_FPMATH_MODE", "ONEDNN_DEFAULT_FPMATH_MODE",
    "MKL_ENABLE_INSTRUCTIONS", "MKL_DYNAMIC", "OMP_DYNAMIC", "OMP_PLACES", "OMP_PROC_BIND", "OMP_SCHEDULE", "OMP_WAIT_POLICY",
    "GOMP_CPU_AFFINITY", "GOMP_SPINCOUNT", "KMP_AFFINITY", "KMP_BLOCKTIME", "KMP_HW_SUBSET", "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "LD_PRELOAD", "MALLOC_CONF", "MALLOC_ARENA_MAX",
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
    """Return the machine and the package versions, as plain texts and numbers.

    `gpus`; `threads`, the limits of threads that environment variables set; and `variables`, those that decide how is computed, are
    there only where there are such.
    """
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    threads, variables = (
        ", ".join(f"{name}={os.environ[name]}" for name in names if os.environ.get(name))
        for names in (_THREADS, _VARIABLES)
    )
    gpus = _gpus()
    return {
        "cpu": cpu,
        "cores": usable_cores(),
        "system": platform.system(),
        **({"threads": threads} if threads else {}),
        **({"variables": variables} if variables else {}),
        **({"gpus": gpus} if gpus else {}),
        "versions": package_versions(),
    }


def _gpus() -> str:
    if cuda_driver_error() is not None:
        return ""
    found = describe_gpus()
    names = ", ".join(f"{gpu['name']} ({gpu['capability']})" for gpu in found["gpus"])
    return f"{names}; CUDA {found['cuda']}"


def conditions_of(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a measurement depends on of an environment: all but this package, whose records have versions of their own."""
    versions = {name: each for name, each in environment["versions"].items() if name != "convnext_deploy"}
    return {**environment, "versions": versions}
