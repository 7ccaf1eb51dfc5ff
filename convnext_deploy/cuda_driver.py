"""Is there an NVIDIA driver, without touching TensorRT, which crashes the process where there is none; and which GPU it drives."""

from __future__ import annotations

import ctypes
import sys


def cuda_driver_error() -> str | None:
    """Return why no GPU can be used, or None when one can."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return "no GPU"
    if driver.cuInit(0) != 0:
        return "no GPU (the NVIDIA driver does not start)"
    count = ctypes.c_int(0)
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "no GPU (the NVIDIA driver sees none)"
    return None


def gpu_name() -> str:
    """Return the compute capability of the GPU, such as `SM86`; only where PyTorch has one."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return f"SM{major}{minor}"
