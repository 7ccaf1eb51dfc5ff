"""What a program around this package may have told PyTorch, put aside while the package computes."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

_KINDS = ("cpu", "cuda", "mps")


@contextmanager
def usual_torch() -> Iterator[None]:
    """Within the block PyTorch makes float32 on the CPU with gradients and without autocast, as where nobody said otherwise.

    A notebook may have set another default type or device, or call from within `torch.inference_mode` or `torch.autocast`; weights
    would then be written in that type, and a training would be another one than its seed and settings say. Where PyTorch is not
    loaded nobody has told it anything, and it is not loaded for this.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_default_device"):  # or it is being imported by another thread
        yield
        return
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        if dtype is not torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        stack.enter_context(_no_autocast(torch))
        yield


@contextmanager
def _no_autocast(torch: Any) -> Iterator[None]:
    """Leave every block of `torch.autocast`, and enter them again.

    One that is only switched off would still count as the outermost: casts of weights are forgotten where that one ends, so that a
    training within it would go on with those of its first step.
    """
    kinds = [kind for kind in _KINDS if torch.is_autocast_enabled(kind)]
    depth = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    for _ in range(depth):
        torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()
    for kind in kinds:
        torch.set_autocast_enabled(kind, False)
    try:
        yield
    finally:
        for kind in kinds:
            torch.set_autocast_enabled(kind, True)
        for _ in range(depth):
            torch.autocast_increment_nesting()
