"""A GPU for the programs of a bundle that is the memory of this process, and the bindings of a release of TensorRT on it."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest

from convnext_deploy.bundles.device import tensorrt_device
from tests.exporters.tensorrt_stand_in import Script, create_stand_in

STREAM = 77


@dataclass
class Driver:
    """The functions of libcuda that `GPU` calls. `fails` names one that returns an error; `live` is the memory not yet freed."""

    capability: tuple[int, int] = (8, 6)
    fails: str | None = None
    called: list[str] = field(default_factory=list)
    live: dict[int, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            self.called.append(name)
            if name == self.fails:
                return 719
            getattr(self, f"_{name}", lambda *_: None)(*arguments)
            return 0

        return call

    def _cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> None:  # noqa: N802  (the driver's name)
        value._obj.value = self.capability[attribute - 75]

    def _cuStreamCreate(self, stream: Any, flags: int) -> None:  # noqa: N802
        stream._obj.value = STREAM

    def _cuMemAlloc_v2(self, address: Any, size: ctypes.c_size_t) -> None:  # noqa: N802
        memory = ctypes.create_string_buffer(size.value)
        address._obj.value = ctypes.addressof(memory)
        self.live[address._obj.value] = memory

    def _cuMemcpyHtoD_v2(self, target: ctypes.c_uint64, source: ctypes.c_void_p, size: ctypes.c_size_t) -> None:  # noqa: N802
        assert size.value <= len(self.live[target.value])
        ctypes.memmove(target.value, source, size.value)

    def _cuMemcpyDtoH_v2(self, target: ctypes.c_void_p, source: ctypes.c_uint64, size: ctypes.c_size_t) -> None:  # noqa: N802
        assert "cuStreamSynchronize" in self.called
        assert size.value <= len(self.live[source.value])
        ctypes.memmove(target, source.value, size.value)

    def _cuMemFree_v2(self, address: ctypes.c_uint64) -> None:  # noqa: N802
        del self.live[address.value]


def plug_in(monkeypatch: pytest.MonkeyPatch, release: str, script: Script, driver: Driver) -> ModuleType:
    """Let the programs of a bundle, run in this process, find the driver and the bindings of a release."""
    stand_in = create_stand_in(release, script)
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    monkeypatch.setattr(tensorrt_device, "open_driver", lambda: driver)
    return stand_in
