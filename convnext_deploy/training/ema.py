"""Exponential moving average of the weights, which is what the ConvNeXt papers publish."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class ExponentialMovingAverage:
    """A copy of a network whose weights follow the network's slowly: `ema = d * ema + (1 - d) * weights` after every step.

    `d` is `min(decay, (1 + step) / (10 + step))`: a short training would otherwise end with an average of its first weights.

    Attributes:
        network: the copy, in evaluation mode, without gradients.

    Source: Polyak and Juditsky 1992; arXiv 2201.03545, table 5 (decay 0.9999 for 300 epochs of ImageNet).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay = decay
        self._averages: list[Tensor] = list(self.network.parameters())
        self._weights: list[Tensor] = list(network.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after step `step` (from 0) into the average."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._weights, 1.0 - decay)
