"""Examine the processor, memory, disk and GPUs of this machine."""

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convnext_deploy.system.distributed import usable_cores
from convnext_deploy.system.memory import memory_sizes

# Words in /proc/cpuinfo → what they are called. x86 lists `flags`, Arm `Features`.
_CPU_FEATURES = {
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f",),
    "VNNI": ("avx512_vnni", "avx_vnni"),
    "BF16": ("avx512_bf16", "bf16"),
    "AMX": ("amx_int8", "amx_bf16"),
    "dot products": ("asimddp",),
    "I8MM": ("i8mm",),
}
_SHARED = "/dev/shm"
_ENOUGH_SHARED = 1 << 30  # bytes, for NCCL between the GPUs of one machine


@dataclass(frozen=True)
class GPU:
    """A GPU, by its compute capability such as `SM86`."""

    name: str
    capability: str
    memory_bytes: int

    @property
    def number(self) -> int:
        """The compute capability without its point, such as 86."""
        return int(self.capability.removeprefix("SM"))

    @property
    def abilities(self) -> str:
        """What its tensor cores multiply."""
        kinds = {"FP16": 70, "INT8": 72, "BF16": 80, "FP8": 89}
        able = [kind for kind, first in kinds.items() if self.number >= first]
        if not able:
            return "no tensor cores: FP16 and INT8 gain little"
        return f"tensor cores for {', '.join(able)}"


@dataclass(frozen=True)
class Machine:
    """What was found. None: not known here.

    `cores` may be used by this process; `cpu_features` are those that matter here; `memory_bytes` is the limit of this
    process's container where there is one. `shared_bytes` is the size of `/dev/shm`. `gpu_error` says why there is no GPU;
    `driver_cuda` is the newest CUDA that the driver runs.
    """

    cpu: str
    cores: int
    cpu_features: tuple[str, ...] | None
    memory_bytes: int | None
    memory_available_bytes: int | None
    disk_free_bytes: int | None
    shared_bytes: int | None = None
    shared_free_bytes: int | None = None
    gpus: tuple[GPU, ...] = ()
    gpu_error: str | None = None
    driver: str | None = None
    driver_cuda: str | None = None

    @property
    def shared_allows(self) -> str:
        """What the size of `/dev/shm` allows."""
        if len(self.gpus) > 1 and self.shared_bytes is not None and self.shared_bytes < _ENOUGH_SHARED:
            return "images are loaded without it, but GPUs that train together need more: docker run --shm-size=1g"
        return "enough: images are loaded without it"

    @property
    def int8_on_cpu(self) -> str:
        """What INT8 is good for on this processor, in ONNX Runtime and OpenVINO."""
        if self.cpu_features is None:
            return "INT8: measure it, the features of this processor are not known"
        found = set(self.cpu_features)
        if found & {"VNNI", "AMX", "dot products", "I8MM"}:
            return "INT8 has instructions of its own: expect it to be faster than FP32 on ONNX Runtime and OpenVINO"
        if found & {"AVX2", "AVX-512"}:
            return (
                "INT8 without VNNI: little faster than FP32, and sums of products may saturate; compare speed and top-1"
            )
        return "INT8 without AVX2: slow, as is everything else"


def examine_machine(driver: Mapping[str, Any]) -> Machine:
    """Look at this machine.

    Args:
        driver: what `cuda_driver` says: `error`, or `cuda` and `gpus`.
    """
    info = _read("/proc/cpuinfo")
    memory, available = memory_sizes()
    shared = _disk(Path(_SHARED))
    disk = _disk(Path())
    return Machine(
        cpu=_field(info, "model name") or platform.processor() or platform.machine(),
        cores=usable_cores(),
        cpu_features=_features(info),
        memory_bytes=memory,
        memory_available_bytes=available,
        disk_free_bytes=disk[1],
        shared_bytes=shared[0],
        shared_free_bytes=shared[1],
        gpus=tuple(GPU(**gpu) for gpu in driver.get("gpus", ())),
        gpu_error=driver.get("error"),
        driver=_driver_version(),
        driver_cuda=driver.get("cuda"),
    )


def _features(info: str) -> tuple[str, ...] | None:
    words = set((_field(info, "flags") or _field(info, "Features") or "").split())
    if not words:
        return None
    return tuple(name for name, names in _CPU_FEATURES.items() if words & set(names))


def _disk(path: Path) -> tuple[int | None, int | None]:
    """Return the size in bytes of the disk or memory behind a folder, and how much of it is free."""
    try:
        found = shutil.disk_usage(path)
    except OSError:
        return None, None
    return found.total, found.free


def _driver_version() -> str | None:
    """Return the version of the NVIDIA driver, such as 580.95.05; Jetsons do not tell it so."""
    words = _read("/proc/driver/nvidia/version").split()
    return next((word for word in words if word.count(".") >= 1 and word.replace(".", "").isdigit()), None)


def _field(text: str, name: str) -> str | None:
    """Return the first value of a name in a file of lines such as `name : value`."""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return ""


def is_jetson() -> bool:
    """Whether this is a Jetson, whose TensorRT comes with JetPack."""
    return Path("/etc/nv_tegra_release").exists() or ("tegra" in os.uname().release if hasattr(os, "uname") else False)
