"""Counts what a GPU would wait for: a stand-in for it is the meta device, whose tensors have no values that anybody could read.

What is read from it is counted with the line of the package that asked, and answered with zeros, so that the training goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import convnext_deploy

DEVICE = "meta"
_PACKAGE = str(Path(convnext_deploy.__file__).parent)
_SYNCHRONIZING = (
    "nonzero",
    "masked_select",
    "is_nonzero",
    "equal",
    "unique",
    "bincount",
    "_unique2",
    "repeat_interleave",
)


class DeviceCopies(TorchDispatchMode):
    """Counts, within its block, copies from the device to the host, and what makes the host wait.

    Attributes:
        step: set by the test.
        reads: `(step, place)` of every copy to the host, and of every operation whose result has a size that the host must know.
        uploads: `(step, place)` of every copy to the device that the host waits for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.step = -1
        self.reads: list[tuple[int, str]] = []
        self.uploads: list[tuple[int, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(func).removeprefix("aten.").split(".")[0]
        tensors = [each for each in args if isinstance(each, Tensor)]
        on_device = any(each.device.type == DEVICE for each in tensors)
        if name == "_local_scalar_dense" and on_device:
            self._note(self.reads, name)
            return 0 if not args[0].is_floating_point() else 0.0
        if name in _SYNCHRONIZING and on_device and kwargs.get("output_size") is None:
            self._note(self.reads, name)
        if name in ("index", "index_put_") and on_device and _needs_a_count(name, args):
            self._note(self.reads, f"{name} with a mask")
        if name == "_to_copy":
            target = torch.device(kwargs.get("device") or args[0].device)
            if on_device and target.type == "cpu":
                self._note(self.reads, name)
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
            if not on_device and target.type == DEVICE and not kwargs.get("non_blocking"):
                self._note(self.uploads, name)
        if name == "copy_" and args[0].device != args[1].device and not _is_number(args[1]):
            into_host = args[0].device.type == "cpu"
            if into_host or not (kwargs.get("non_blocking") or (len(args) > 2 and args[2])):
                self._note(self.reads if into_host else self.uploads, name)
            if into_host:
                return args[0].zero_()
        return func(*args, **kwargs)

    def _note(self, found: list[tuple[int, str]], name: str) -> None:
        frame: FrameType | None = sys._getframe()
        while frame is not None and not frame.f_code.co_filename.startswith(_PACKAGE):
            frame = frame.f_back
        place = "elsewhere" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        found.append((self.step, f"{name} at {place}"))


def _needs_a_count(name: str, args: Any) -> bool:
    """Whether a mask chooses so many values that the host must know; one value for all of them is a fill."""
    is_masked = any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return is_masked and not (name == "index_put_" and args[2].numel() == 1)


def _is_number(value: Tensor) -> bool:
    return value.ndim == 0 and value.device.type == "cpu"


@contextmanager
def counting(patch: pytest.MonkeyPatch) -> Iterator[DeviceCopies]:
    """Count within the block, in which the fused optimizers take the meta device for a GPU."""
    import torch.optim.adam as adam
    import torch.optim.adamw as adamw
    import torch.optim.optimizer as optimizer

    for module in (adam, adamw, optimizer):
        if hasattr(module, "_get_fused_kernels_supported_devices"):
            patch.setattr(module, "_get_fused_kernels_supported_devices", lambda: [DEVICE, "cpu"])
    # which knows real devices only
    is_enabled = torch.is_autocast_enabled
    patch.setattr(torch, "is_autocast_enabled", lambda kind="cpu": kind != DEVICE and is_enabled(kind))
    with DeviceCopies() as copies:
        yield copies
