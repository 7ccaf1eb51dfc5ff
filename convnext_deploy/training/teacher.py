"""A frozen network that teaches, given the student's images."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from convnext_deploy.artifacts.spec import Preprocess
from convnext_deploy.data.ahead import upload
from convnext_deploy.data.evaluation_batches import EvaluationBatches
from convnext_deploy.system.full_float32 import full_float32
from convnext_deploy.training.loss_meter import BatchSums, widest_dtype
from convnext_deploy.training.losses import cosine_loss
from convnext_deploy.training.schedule import autocasting


class Teacher(nn.Module):
    """A frozen network that is given a student's images and sees them as it was itself trained to see them.

    Args:
        network: on its device; maps normalized images `(N, C, S, S)` to logits `(N, its classes)`.
        student: transform of the images that are given.
        own: transform that the network belongs to; its image size and normalization count.
        outputs: its output for each class of the student, `(classes,)`; None: they are in order.
        device: where the images are.
    """

    def __init__(
        self,
        network: nn.Module,
        student: Preprocess,
        own: Preprocess,
        outputs: NDArray[np.int64] | None = None,
        device: str = "cpu",
    ) -> None:
        super().__init__()
        self.network, self.size = network.requires_grad_(False).eval(), own.sides
        self.same = (student.mean, student.std) == (own.mean, own.std)
        mean, std, own_mean, own_std = (
            torch.tensor(values, device=device)[:, None, None]
            for values in (student.mean, student.std, own.mean, own.std)
        )
        self.outputs = None if outputs is None else torch.from_numpy(outputs).to(device)
        self.scale, self.shift = std / own_std, (mean - own_mean) / own_std

    def forward(self, images: Tensor) -> Tensor:
        """Map images `(N, C, H, W)` to logits: the same crop, resized to the network's own size."""
        logits: Tensor = self.network(self.see(images))
        return logits if self.outputs is None else logits[:, self.outputs]

    def see(self, images: Tensor) -> Tensor:
        """Return images `(N, C, H, W)` as the network takes them, `(N, C, *size)`."""
        if images.shape[-2:] != self.size:
            images = F.interpolate(images, size=self.size, mode="bilinear", antialias=True)
        return images if self.same else images * self.scale + self.shift


@torch.no_grad()
@full_float32()
def evaluate_features(
    network: nn.Module, teacher: nn.Module, batches: EvaluationBatches, device: str, autocast: torch.dtype | None = None
) -> dict[str, float]:
    """Return `validation_loss`, the mean of 1 - cos between the features of a network and those of its teacher.

    Everything else as in `scoring.evaluate_classifier`.
    """
    network.eval()
    sums = BatchSums(device)
    for images, _ in batches:
        given = upload(images, device)
        with autocasting(autocast, torch.device(device).type):
            loss = cosine_loss(network(given), teacher(given))
        count = torch.full_like(loss, len(images))
        sums.add(loss.to(widest_dtype(device)) * count, count)
    loss_of_all, count_of_all = sums.read()
    return {"validation_loss": loss_of_all / count_of_all}
