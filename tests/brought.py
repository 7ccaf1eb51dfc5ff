"""What a user brings: an image folder, and a checkpoint of timm that has learned its classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

NETWORK = "test_convnext"  # 0.2 million parameters at 160 pixels
CLASSES = ("bee", "cat", "dog", "fox", "hen", "owl")  # more than the five that --output top-k gives
_SIDE = 64


def write_photos(root: Path, train: int = 20, validation: int = 10) -> Path:
    """Write `train/` and `val/`, so many images of each class: stripes of a direction of its own, of any strength, with noise."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:_SIDE, :_SIDE] / _SIDE
    for split, count in (("train", train), ("val", validation)):
        for label, name in enumerate(CLASSES):
            (folder := root / split / name).mkdir(parents=True)
            angle = np.pi * label / len(CLASSES)
            for index in range(count):
                wave = np.sin(20 * (np.cos(angle) * rows + np.sin(angle) * columns)[..., None] + np.arange(3) * angle)
                pixels = 128 + rng.uniform(60, 90) * wave + rng.normal(0, 8, wave.shape)
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")
    return root


def write_timm_checkpoint(path: Path, photos: Path) -> Path:
    """Write a checkpoint as timm's `train.py` does: random features, and a head that is fitted to the training images."""
    import timm
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model: Any = timm.create_model(NETWORK, num_classes=len(CLASSES)).eval()
        side = model.default_cfg["input_size"][1]
        config = resolve_data_config({}, model=model)
        transform = create_transform(**config, is_training=False)
        images, labels = [], []
        for label, name in enumerate(CLASSES):
            for file in sorted((photos / "train" / name).iterdir()):
                images.append(transform(Image.open(file)))
                labels.append(label)
        assert images[0].shape == (3, side, side)
        features = model.forward_head(model.forward_features(torch.stack(images)), pre_logits=True).double()
        features = torch.cat([features, torch.ones(len(features), 1)], dim=1)
        wanted = 10.0 * torch.nn.functional.one_hot(torch.tensor(labels), len(CLASSES)).double()
        ridge = features.T @ features + 1.0 * torch.eye(features.shape[1])
        head = torch.linalg.solve(ridge, features.T @ wanted).float()
        model.head.fc.weight.copy_(head[:-1].T)
        model.head.fc.bias.copy_(head[-1])
    torch.save({"arch": NETWORK, "epoch": 0, "state_dict": model.state_dict()}, path)
    return path
