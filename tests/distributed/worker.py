"""What each process of a test does: train, and let the first one write what came of it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from convnext_deploy.artifacts.spec import default_preprocess
from convnext_deploy.config.fit import Augmentation
from convnext_deploy.data.datasets import ArrayImages
from convnext_deploy.data.evaluation_batches import EvaluationBatches
from convnext_deploy.data.loaders import BatchPlan, TrainingBatches
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.system.distributed import gather, world
from convnext_deploy.system.execution import Execution
from convnext_deploy.training.fit import fit
from convnext_deploy.training.schedule import Schedule
from convnext_deploy.training.scoring import Scoring, evaluate_classifier, own_images

CLASSES, EPOCHS, STEPS = 5, 5, 4
VALIDATION_IMAGES = 37  # not a multiple of two


def train(**options: Any) -> dict[str, Any]:
    """Train for 20 steps of 128 images, and return what should not depend on the number of processes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, 128 * STEPS)
    pixels = rng.integers(0, 120, (len(labels), 32, 32, 3)) + 25 * labels[:, None, None, None]
    images = ArrayImages(pixels.astype(np.uint8), labels)
    held_out = ArrayImages(images.arrays[:VALIDATION_IMAGES], labels[:VALIDATION_IMAGES])
    preprocess = default_preprocess(32)
    own = own_images(VALIDATION_IMAGES, 8)
    validation = EvaluationBatches(held_out, preprocess, 8, 0, own)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ConvNeXt((1, 1, 2, 1), (16, 16, 32, 32), num_classes=CLASSES, layer_scale_init=0.1)
    augmentation = Augmentation(**options.pop("augmentation", {"crop_scale_min": 0.5}))
    batches = TrainingBatches(images, preprocess, BatchPlan(128, CLASSES, augmentation, seed=3), world=world())
    scoring = Scoring(lambda network: evaluate_classifier(network, validation, "cpu"))
    if options.get("patience"):
        scoring = replace(scoring, choose=scoring.validate)
    losses: list[float] = []
    rows: list[tuple[int, int, int]] = []

    def objective(network: torch.nn.Module, batch: Any) -> torch.Tensor:
        loss = F.cross_entropy(network(batch.images), batch.labels)
        losses.append(loss.item())
        rows.append((batch.epoch, batch.first_row, len(batch)))
        return loss

    history = fit(
        model,
        batches,
        objective,
        Schedule(EPOCHS, 0.064, 1.0, 0.1, 0.05, **options),
        Execution(seed=5),
        description="test",
        scoring=scoring,
    )
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return {
        "losses": np.mean(gather(losses), axis=0).tolist(),
        "rows": sorted(row for part in gather(rows) for row in part),
        "validated": sorted(index for part in gather(own) for index in part),
        "history": [{name: value for name, value in row.items() if name != "images_per_s"} for row in history],
        "spread": max(float((other - weights).abs().max()) for other in gather(weights)),
        "weights": weights.double().norm().item(),
    }


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "patient": {"patience": 1, "ema_decay": 0.9},
    "everything": {
        "augmentation": {
            "crop_scale_min": 0.5,
            "mixup_alpha": 0.8,
            "cutmix_alpha": 1.0,
            "random_erasing_probability": 0.25,
            "augmentation_policy": "randaugment",
            "color_jitter": 0.2,
        },
        "accumulation_steps": 2,
        "head_only_epochs": 1.0,
        "gradient_clip_norm": 0.5,
        "ema_decay": 0.9,
        "layer_decay": 0.9,
    },
}


def main() -> None:
    """Train in every variant; the first process writes the results."""
    results = {name: train(**options) for name, options in VARIANTS.items()}
    if world().is_first:
        Path(sys.argv[1]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
