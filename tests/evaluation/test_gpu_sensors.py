"""Power and temperature while a block runs, from a stand-in for NVML; and nothing where there is no NVML."""

from __future__ import annotations

import sys
import threading
import time
from types import ModuleType, SimpleNamespace

import pytest

from convnext_deploy.system import gpu_sensors
from convnext_deploy.system.cuda_driver import cuda_driver_error, gpu_bus_id
from convnext_deploy.system.gpu_sensors import read_gpu


class NVMLError(Exception):
    pass


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """NVML of a machine whose GPU draws 70 W and gets warmer with each look at it."""
    state = SimpleNamespace(asked=None, ended=0, looks=0, sensor=True)

    def handle(bus_id: str) -> str:
        state.asked = bus_id
        return "handle"

    def power(_: str) -> int:
        if not state.sensor:
            raise NVMLError("not supported")
        return 70_000

    def temperature(_: str, kind: int) -> int:
        assert kind == 0
        state.looks += 1
        return 40 + int(state.looks)

    def end() -> None:
        state.ended += 1

    module = ModuleType("pynvml")
    module.__dict__.update(
        NVMLError=NVMLError,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlShutdown=end,
        nvmlDeviceGetHandleByPciBusId=handle,
        nvmlDeviceGetPowerUsage=power,
        nvmlDeviceGetTemperature=temperature,
    )
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(gpu_sensors, "gpu_bus_id", lambda: "0000:65:00.0")
    return state


def test_power_is_the_mean_and_temperature_the_highest(nvml: SimpleNamespace) -> None:
    threads = threading.active_count()
    with read_gpu() as readings:
        while nvml.looks < 3:
            time.sleep(0.001)
    assert readings.mean_watts == 70.0
    assert readings.highest_celsius == 40.0 + nvml.looks >= 43.0
    assert (nvml.asked, nvml.ended) == ("0000:65:00.0", 1)
    assert threading.active_count() == threads


def test_gpu_without_a_sensor_has_no_readings(nvml: SimpleNamespace) -> None:
    nvml.sensor = False
    with read_gpu() as readings:
        time.sleep(0.05)
    assert (readings.mean_watts, readings.highest_celsius, nvml.ended) == (None, None, 1)


def test_nothing_is_read_for_the_cpu_or_without_the_package_or_a_gpu(
    nvml: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with read_gpu(wanted=False) as readings:
        pass
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with read_gpu() as missing:
        pass
    monkeypatch.setattr(gpu_sensors, "gpu_bus_id", lambda: None)
    with read_gpu() as no_gpu:
        pass
    assert [found.watts for found in (readings, missing, no_gpu)] == [[], [], []]
    assert nvml.asked is None


@pytest.mark.skipif(cuda_driver_error() is None, reason="there is a GPU")
def test_no_gpu_has_no_address() -> None:
    assert gpu_bus_id() is None


@pytest.mark.skipif(cuda_driver_error() is not None, reason="no GPU has sensors")
@pytest.mark.gpu
def test_real_gpu_has_power_and_temperature() -> None:
    pytest.importorskip("pynvml")
    with read_gpu() as readings:
        time.sleep(0.1)
    assert readings.mean_watts is None or 1 < readings.mean_watts < 2000
    assert readings.highest_celsius is None or 10 < readings.highest_celsius < 120
