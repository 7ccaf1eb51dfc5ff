"""What the parts of `gpu.py` measure, and on which device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

Figures = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What is measured, on which device; `epochs` of `steps`, of which the first warms up."""

    device: str
    variant: str
    side: int
    batch_size: int
    steps: int
    epochs: int

    @property
    def dtype(self) -> torch.dtype | None:
        """bfloat16 on a GPU that has it."""
        return torch.bfloat16 if self.device == "cuda" and torch.cuda.is_bf16_supported() else None

    def wait(self) -> None:
        """Wait until the device has computed everything."""
        if self.device == "cuda":
            torch.cuda.synchronize()
