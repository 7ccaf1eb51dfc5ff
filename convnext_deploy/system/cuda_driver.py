"""Ask the NVIDIA driver for its GPUs, without touching TensorRT, which crashes the process where there is no driver."""

import ctypes
import sys
from typing import Any

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


def cuda_driver_error() -> str | None:
    """Return why no GPU can be used, or None when one can."""
    try:
        driver = _load()
    except OSError:
        return "no GPU"
    if driver.cuInit(0) != 0:
        return "no GPU (the NVIDIA driver does not start)"
    count = ctypes.c_int(0)
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "no GPU (the NVIDIA driver sees none)"
    return None


def _load() -> Any:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def describe_gpus() -> dict[str, Any]:
    """Return what the driver says of itself and of its GPUs; only where `cuda_driver_error` returns None.

    Returns: `cuda`, the newest CUDA that the driver runs, such as `13.0`; and `gpus`, for each its `name`, its `capability`, such
        as `SM86`, and `memory_bytes`.
    """
    driver = _load()
    version, count = ctypes.c_int(0), ctypes.c_int(0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    driver.cuDeviceGetCount(ctypes.byref(count))
    gpus = []
    for index in range(count.value):
        device, major, minor = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0)
        name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t(0)
        driver.cuDeviceGet(ctypes.byref(device), index)
        driver.cuDeviceGetName(name, len(name), device)
        driver.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, device)
        driver.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, device)
        driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        gpus.append(
            {
                "name": name.value.decode(errors="replace"),
                "capability": f"SM{major.value}{minor.value}",
                "memory_bytes": memory.value,
            }
        )
    return {"cuda": f"{version.value // 1000}.{version.value % 1000 // 10}", "gpus": gpus}


def describe_gpu() -> str | None:
    """Return the first GPU that this process may use, such as `NVIDIA L4 (SM89)`; None where there is none."""
    if cuda_driver_error() is not None:
        return None
    gpu = describe_gpus()["gpus"][0]
    return f"{gpu['name']} ({gpu['capability']})"


def gpu_name() -> str:
    """Return the compute capability of the GPU, such as `SM86`; only where PyTorch has one."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return f"SM{major}{minor}"


def gpu_bus_id() -> str | None:
    """Return the PCI address of the first GPU that this process may use, such as `0000:65:00.0`; None where there is none.

    NVML counts GPUs of its own, whatever `CUDA_VISIBLE_DEVICES` says; by its address the right one is found.
    """
    if cuda_driver_error() is not None:
        return None
    driver = _load()
    device, address = ctypes.c_int(0), ctypes.create_string_buffer(32)
    if driver.cuDeviceGet(ctypes.byref(device), 0) != 0 or driver.cuDeviceGetPCIBusId(address, 32, device) != 0:
        return None
    return address.value.decode()
