"""Ten classes of colours, and a network that tells them all: random, but for a head that was solved for."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from convnext_deploy.artifacts.spec import ModelSpec, Preprocess, default_preprocess
from convnext_deploy.config.choices import Dialect
from convnext_deploy.data.transforms import evaluation_transform, normalize
from convnext_deploy.models.checkpoints.key_maps import from_native
from convnext_deploy.models.convnext import ConvNeXt
from tests.weights import random_network

COUNT, SIDE = 10, 32
SPEC = ModelSpec("test_convnext", COUNT)
PREPROCESS: Preprocess = default_preprocess(SIDE)


def draw(output: int, rng: np.random.Generator) -> Image.Image:
    """Return a noisy image of the colour that the network answers with `output`."""
    colour = 30 + 90 * np.array([output % 3, output // 3 % 3, output // 9])
    return Image.fromarray(np.clip(colour + rng.normal(0, 5, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8))


def write_colours(root: Path, names: tuple[str, ...], counts: dict[str, int]) -> Path:
    """Write splits with so many images a class; the class of output k is called `names[k]`. A split "" has the classes alone."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for output, name in enumerate(names):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                draw(output, rng).save(root / split / name / f"{index}.png")
    return root


@cache
def colour_network(variant: str = SPEC.variant) -> ConvNeXt:
    """Return the network, which is right on every image; do not change it."""
    rng = np.random.default_rng(1)
    images: list[NDArray[np.uint8]] = [
        evaluation_transform(draw(k, rng), PREPROCESS) for k in range(COUNT) for _ in range(8)
    ]
    network, kept = random_network(ModelSpec(variant, COUNT)), list[Tensor]()
    hook = network.head.register_forward_hook(lambda _, inputs, __: kept.append(inputs[0]))
    with torch.no_grad():
        network(normalize(torch.from_numpy(np.stack(images)), PREPROCESS))
        hook.remove()
        # linear discriminant analysis: the nearest class mean, by the spread within classes
        features = kept[0].double().reshape(COUNT, 8, -1)
        means = features.mean(1)
        within = (features - means[:, None]).flatten(0, 1)
        spread = within.T @ within / len(within) + 1e-3 * torch.eye(means.shape[1], dtype=torch.float64)
        weights = torch.linalg.solve(spread, means.T).T
        network.head.weight.copy_(weights)
        network.head.bias.copy_(-(weights * means).sum(1) / 2)
    return network


def save_colours(path: Path, dialect: Dialect = "timm") -> Path:
    """Write the network under the names of another library, without those of its classes."""
    state = colour_network().state_dict()
    torch.save(state if dialect == "facebook" else from_native(state, SPEC, dialect), path)
    return path
