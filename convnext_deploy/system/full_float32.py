"""Float32 that is float32, for whatever is compared with something else: baselines, judges, networks that train on a grid."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

_KINDS = ("cpu", "cuda", "mps")


_LOCK = threading.Lock()
_inside: list[dict[str, Any]] = []
"""For each block that is open, in any thread, what the switches were before the first of them: all threads share the switches."""


@contextmanager
def full_float32() -> Iterator[None]:
    """Within the block PyTorch computes float32 in float32: without autocast, TensorFloat-32 or products in bfloat16.

    On NVIDIA GPUs convolutions have the 10 bits of TensorFloat-32 where nobody says otherwise, and a program around this package
    may have said so of products too, or bfloat16 on a CPU (`torch.set_float32_matmul_precision`). Rounding to a grid would then
    begin from other values than on the device that the network is for.

    PyTorch has two sets of switches for this, in each of 2.10 to 2.14, and reading an old one raises an error where the new ones
    say something else; Inductor reads both. So both are set, and both are as they were when the last block has ended that was open
    at the same time, in whatever thread.
    """
    import torch

    with _LOCK:
        _inside.append(_inside[0] if _inside else _switch_off())
    try:
        with ExitStack() as stack:
            for kind in _KINDS:
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        with _LOCK:
            before = _inside.pop()
            if not _inside:
                _put_back(before)


def _operations() -> list[Any]:
    import torch

    backends: Any = torch.backends
    operations = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    return [*operations, backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]


def _switch_off() -> dict[str, Any]:
    """Ask for float32 everywhere, and return what was asked for before."""
    import torch

    before = {
        "operations": [operation.fp32_precision for operation in _operations()],
        "products": _read_old(torch.get_float32_matmul_precision),
        "convolutions": _read_old(lambda: torch.backends.cudnn.allow_tf32),
    }
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    for operation in _operations():
        operation.fp32_precision = "ieee"
    return before


def _put_back(before: dict[str, Any]) -> None:
    import torch

    if before["products"] is not None:
        torch.set_float32_matmul_precision(before["products"])
    if before["convolutions"] is not None:
        torch.backends.cudnn.allow_tf32 = before["convolutions"]
    for operation, precision in zip(_operations(), before["operations"], strict=True):
        operation.fp32_precision = precision


def _read_old(read: Any) -> Any:
    """Return an old switch, or None where the new ones say what it cannot."""
    try:
        return read()
    except RuntimeError:
        return None
