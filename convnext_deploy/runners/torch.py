"""PyTorch networks, float and fake-quantized, in eager mode and float32."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


class TorchRunner:
    """See `Runner`; `network` is in evaluation mode."""

    name = "torch"

    def __init__(self, network: nn.Module, device: str) -> None:
        self.device = device
        self._network = network.to(device)

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Runner.logits`."""
        with torch.inference_mode():
            result: NDArray[np.float32] = (
                self._network(torch.from_numpy(np.ascontiguousarray(images)).to(self.device)).cpu().numpy()
            )
        return result

    def close(self) -> None:
        """See `Runner.close`."""
        del self._network
