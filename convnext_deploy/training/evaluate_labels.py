"""Score a network in training on the validation images of multi-label data."""

import numpy as np
import torch
from torch import nn

from convnext_deploy.data.evaluation_batches import EvaluationBatches
from convnext_deploy.metrics.multi_label import mean_average_precision
from convnext_deploy.system.distributed import gather_in_order
from convnext_deploy.system.full_float32 import full_float32
from convnext_deploy.training.losses import bce_loss
from convnext_deploy.training.schedule import autocasting


@torch.no_grad()
@full_float32()
def evaluate_labels(
    network: nn.Module, batches: EvaluationBatches, device: str, autocast: torch.dtype | None = None
) -> dict[str, float]:
    """Return the mean binary cross-entropy `validation_loss` and the mean average precision `validation_map`, in [0, 1].

    For multi-label data; otherwise as `training.scoring.evaluate_classifier`.
    """
    network.eval()
    found = []
    for images, targets in batches:
        with autocasting(autocast, torch.device(device).type):
            found.append((network(images.to(device)).float().cpu().numpy(), targets.numpy()))
    logits, labels = (np.concatenate(each) for each in zip(*gather_in_order(found), strict=True))
    loss = bce_loss(torch.from_numpy(logits), torch.from_numpy(labels)).item()
    score = mean_average_precision(labels.astype(np.int8), np.nan_to_num(logits))
    return {"validation_loss": loss, "validation_map": 0.0 if score is None else score}
