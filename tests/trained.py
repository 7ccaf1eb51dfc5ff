"""Two small networks that have learned something, v1 and v2: random ones amplify every rounding, as no network in use does."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from convnext_deploy.models.convnext import ConvNeXt
from tests.shared import make_once

SIDE = 32
CLASSES = 5
_STEPS = 120
_BATCH = 64


def wave_images(count: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return images `(count, 3, 32, 32)` of waves with noise, and their classes, the directions of the waves."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    angle = (np.pi * labels / CLASSES + rng.normal(0, 0.12, count))[:, None, None, None]
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    phase = rng.uniform(0, 2 * np.pi, (count, 1, 1, 1)) + np.arange(3)[:, None, None]
    wave = np.sin(rng.uniform(12, 25, (count, 1, 1, 1)) * (np.cos(angle) * rows + np.sin(angle) * columns) + phase)
    noise = rng.normal(0, 0.5, (count, 3, SIDE, SIDE))
    return (wave + noise).astype(np.float32), labels


@cache
def trained_network(version: int) -> ConvNeXt:
    """Return a network of version 1 (LayerScale) or 2 (GRN) in evaluation mode, one for all workers; do not change it."""
    return make_once(f"waves-{version}", lambda _: _train(version))


def _train(version: int) -> ConvNeXt:
    with torch.random.fork_rng([]), torch.enable_grad():
        torch.manual_seed(version)
        model = ConvNeXt(
            (1, 1, 2, 1),
            (16, 32, 48, 64),
            num_classes=CLASSES,
            in_channels=3,
            patch_size=4,
            layer_scale_init=1.0 if version == 1 else None,
            use_grn=version == 2,
        )
        images, labels = (torch.from_numpy(part) for part in wave_images(_BATCH * 60, seed=0))
        optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, _STEPS)
        for _ in range(_STEPS):
            chosen = torch.randint(len(images), (_BATCH,))
            loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval().requires_grad_(False)
