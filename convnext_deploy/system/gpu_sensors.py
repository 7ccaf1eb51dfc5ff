"""Sample power and temperature of the GPU while it works."""

import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from convnext_deploy.system.cuda_driver import gpu_bus_id

_EVERY_S = 0.02


@dataclass
class GPUReadings:
    """Samples of a GPU: watts and degrees Celsius. Empty where there is nothing to read them from."""

    watts: list[float] = field(default_factory=list)
    celsius: list[float] = field(default_factory=list)

    @property
    def mean_watts(self) -> float | None:
        """Return the mean power, or None without samples."""
        return statistics.fmean(self.watts) if self.watts else None

    @property
    def highest_celsius(self) -> float | None:
        """Return the highest temperature, or None without samples."""
        return max(self.celsius, default=None)


@contextmanager
def read_gpu(*, wanted: bool = True) -> Iterator[GPUReadings]:
    """Sample the first GPU in a thread until the block ends, if it is `wanted` and NVML and its Python package are here."""
    readings = GPUReadings()
    opened = _open_nvml() if wanted else None
    if opened is None:
        yield readings
        return
    nvml, handle = opened
    ended = threading.Event()
    thread = threading.Thread(target=_sample, args=(nvml, handle, readings, ended), daemon=True)
    thread.start()
    try:
        yield readings
    finally:
        ended.set()
        thread.join()
        nvml.nvmlShutdown()


def _open_nvml() -> tuple[Any, Any] | None:
    """Return NVML and its handle of the GPU that CUDA takes first, or None."""
    bus_id = gpu_bus_id()
    if bus_id is None:
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return pynvml, pynvml.nvmlDeviceGetHandleByPciBusId(bus_id)
    except pynvml.NVMLError:
        return None


def _sample(nvml: Any, handle: Any, readings: GPUReadings, ended: threading.Event) -> None:
    while True:
        try:
            readings.watts.append(nvml.nvmlDeviceGetPowerUsage(handle) / 1000.0)
            readings.celsius.append(float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)))
        except nvml.NVMLError:  # not every GPU has both sensors
            return
        if ended.wait(_EVERY_S):
            return
