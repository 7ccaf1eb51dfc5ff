"""`models`: every variant with its architecture, its cost, what is published about it and how to train it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from convnext_deploy.api.options import verb
from convnext_deploy.models.variants import VARIANTS, resolve_variant
from convnext_deploy.models.zoo import training_settings
from convnext_deploy.models.zoo.catalog import ModelRow, describe_variant


@verb
def list_models(name: str | None = None) -> tuple[ModelRow, ...]:
    """Return all variants, or the one that a full or short name means.

    Raises: RecipeError: if no variant has that name.
    """
    return tuple(map(describe_variant, VARIANTS if name is None else (resolve_variant(name),)))


def to_json(rows: Sequence[ModelRow]) -> str:
    """Return what `--json` prints: the rows, and the training settings that all of them share."""
    shared = {
        "optimizer": "AdamW",
        "weight_decay": training_settings.WEIGHT_DECAY,
        "betas": training_settings.BETAS,
        "learning_rate_batch_size": training_settings.RATE_BATCH_SIZE,
        "mixup_alpha": training_settings.MIXUP_ALPHA,
        "cutmix_alpha": training_settings.CUTMIX_ALPHA,
    }
    return json.dumps({"training": shared, "models": [dataclasses.asdict(row) for row in rows]}, indent=1)
