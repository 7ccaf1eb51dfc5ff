"""Loss and top-1 of a network in the middle of its training. The verdict on an artifact is made elsewhere, by its runner."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from convnext_deploy.data.loaders import EvaluationBatches
from convnext_deploy.system.distributed import total


@torch.no_grad()
def evaluate_classifier(network: nn.Module, batches: EvaluationBatches, device: str) -> dict[str, float]:
    """Return the mean cross-entropy `validation_loss` and the share of right predictions `validation_top1`, in [0, 1].

    The network is left in evaluation mode. Where there are several processes, each has its own part of the images, and the
    figures are those of all images.
    """
    network.eval()
    loss, correct, count = 0.0, 0.0, 0.0
    for images, labels in batches:
        logits, targets = network(images.to(device)).float(), labels.to(device)
        loss += F.cross_entropy(logits, targets, reduction="sum").item()
        correct += int((logits.argmax(dim=1) == targets).sum())
        count += len(labels)
    loss, correct, count = total([loss, correct, count])
    return {"validation_loss": loss / count, "validation_top1": correct / count}
