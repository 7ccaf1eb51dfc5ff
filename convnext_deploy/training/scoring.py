"""How a network in training is scored: on which images, how often, and what is said of it after an epoch."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.nn.functional as F
from torch import nn

from convnext_deploy.data.ahead import upload
from convnext_deploy.data.evaluation_batches import EvaluationBatches
from convnext_deploy.metrics.epochs import Images, best_epoch, score_of
from convnext_deploy.system.distributed import batches_of, own_numbers
from convnext_deploy.system.full_float32 import full_float32
from convnext_deploy.system.progress import Progress, describe_rate
from convnext_deploy.training.loss_meter import BatchSums
from convnext_deploy.training.schedule import autocasting

Evaluation = Callable[[nn.Module], dict[str, float]]
"""Scores a network: `validation_loss`, and `validation_top1` or `validation_map`; a feature extractor has a loss alone."""
LARGEST_SHARE = 0.2  # of the computation of a training that scoring may add
_PASSES = 3  # forward passes that a training step costs for each image: backward takes two
_LINE_EVERY_S = 1.0


@dataclass(frozen=True)
class Scoring:
    """What a network in training is scored by.

    Attributes:
        validate: called after every `every` epochs and after the last one.
        every: see `epochs_between`.
        choose: called after each epoch, of training images that are set aside; by them patience ends, and the best epoch is found.
            What it returns is called `selection_…` in the history.
    """

    validate: Evaluation | None = None
    every: int = 1
    choose: Evaluation | None = None

    def score(self, network: nn.Module, epoch: int, epochs: int) -> dict[str, float]:
        """Return the figures of a network after an epoch, counted from 1."""
        found: dict[str, float] = {}
        if self.validate is not None and (epoch % self.every == 0 or epoch == epochs):
            found |= self.validate(network)
        if self.choose is not None:
            chosen = self.choose(network)
            found |= {name.replace("validation_", "selection_"): figure for name, figure in chosen.items()}
        return found


NOT_SCORED = Scoring()


def epochs_between(train_images: int, validation_images: int, networks: int) -> int:
    """Return after how many epochs to score, so that it adds at most a fifth to the computation of the training.

    Counts decide and no clock, so that a training is scored alike whenever it is repeated.

    Args:
        train_images: of an epoch.
        validation_images: of a pass.
        networks: that are scored: 2 where the weights are averaged.
    """
    return max(1, math.ceil(validation_images * networks / (_PASSES * train_images * LARGEST_SHARE)))


class EpochLines:
    """Says a line after each epoch, at most one a second, and always after the first and the last.

    Args:
        progress: where.
        description: of the training.
        epochs: how many there are.
        done: the share of the training that was done before, from 0 to 1.
    """

    def __init__(self, progress: Progress, description: str, epochs: int, done: float) -> None:
        self._progress, self._description, self._epochs, self._before = progress, description, epochs, done
        self._started = time.monotonic()
        self._said = -math.inf

    def say(self, history: list[dict[str, float]]) -> None:
        """Say what the last epoch of a history gave, and how long those that are left will take."""
        number, now = len(history), time.monotonic()
        if number < self._epochs and now - self._said < _LINE_EVERY_S:
            return
        self._said = now
        row = history[-1]
        parts = [f"loss {row['train_loss']:.3f}", *_scores(row), *_best(history), _rate(row["images_per_s"])]
        if (done := number / self._epochs - self._before) > 0 and number < self._epochs:
            left = (now - self._started) / done * (1 - number / self._epochs)
            parts.append(f"{timedelta(seconds=round(left))} left")
        self._progress.say(f"{self._description}: epoch {number}/{self._epochs}: {', '.join(parts)}")


def describe_choice(history: list[dict[str, float]], best: int) -> str:
    """Say which epoch is the result of a training that was scored on images set aside; `best` is its place."""
    found = ", ".join(_scores(history[best], ("selection",)))
    return f"epoch {best + 1} of {len(history)} is the result ({found})"


def _scores(row: Mapping[str, float], images: tuple[str, ...] = ("validation", "selection")) -> list[str]:
    """Return what was scored after an epoch, in words; of averaged weights, which are the result, theirs."""
    found = []
    for of in images:
        prefix = "ema_" if any(name.startswith(f"ema_{of}_") for name in row) else ""
        for figure, title in (("top1", "top-1"), ("map", "mAP")):
            if (score := row.get(f"{prefix}{of}_{figure}")) is not None:
                found.append(f"{of} {title} {100 * score:.2f} %")
                break
        else:
            if (loss := row.get(f"{prefix}{of}_loss")) is not None:
                found.append(f"{of} loss {loss:.4f}")
    return found


def _best(history: list[dict[str, float]]) -> list[str]:
    """Say which earlier epoch was better by what chooses, or was scored alone."""
    images: Images = "selection" if score_of(history[-1], "selection") is not None else "validation"
    place = best_epoch(history, images)
    if place is None or place == len(history) - 1 or score_of(history[-1], images) is None:
        return []
    return [f"best {_scores(history[place], (images,))[0].removeprefix(images).strip()} after epoch {place + 1}"]


def _rate(images_per_s: float) -> str:
    return describe_rate(images_per_s, "images")


def own_images(count: int, batch_size: int) -> list[int]:
    """Return which of so many images this process scores: whole batches, cut as one process cuts them."""
    return batches_of(own_numbers(range(-(-count // batch_size))), count, batch_size)


@torch.no_grad()
@full_float32()
def evaluate_classifier(
    network: nn.Module, batches: EvaluationBatches, device: str, autocast: torch.dtype | None = None
) -> dict[str, float]:
    """Return the mean cross-entropy `validation_loss` and the share of right predictions `validation_top1`, in [0, 1].

    The network is left in evaluation mode. Where there are several processes, each has its `own_images`, and the figures are those
    of all images, as one process has them.

    Args:
        network: on the device.
        batches: of this process.
        device: where to compute.
        autocast: dtype of the forward pass; None: float32.
    """
    network.eval()
    sums = BatchSums(device)
    for images, labels in batches:
        with autocasting(autocast, torch.device(device).type):
            logits = network(upload(images, device)).float()
        targets = upload(labels, device)
        loss = F.cross_entropy(logits, targets, reduction="sum")
        right = (logits.argmax(dim=1) == targets).sum()
        sums.add(loss, right, torch.full_like(loss, len(labels)))
    loss_of_all, right_of_all, count = sums.read()
    return {"validation_loss": loss_of_all / count, "validation_top1": right_of_all / count}
