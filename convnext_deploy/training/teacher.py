"""A frozen network that teaches, given the student's images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.spec import Preprocess
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.models.convnext import ConvNeXt


class Teacher(nn.Module):
    """A frozen network that is given a student's images and sees them as it was itself trained to see them.

    Args:
        network: on its device.
        student: transform of the images that are given.
        own: transform that the network belongs to; its image size and normalization count.
    """

    def __init__(self, network: ConvNeXt, student: Preprocess, own: Preprocess) -> None:
        super().__init__()
        self.network, self.image_size = network.requires_grad_(False).eval(), own.image_size
        self.same = (student.mean, student.std) == (own.mean, own.std)
        device = next(network.parameters()).device
        mean, std, own_mean, own_std = (
            torch.tensor(values, device=device)[:, None, None]
            for values in (student.mean, student.std, own.mean, own.std)
        )
        self.scale, self.shift = std / own_std, (mean - own_mean) / own_std

    def forward(self, images: Tensor) -> Tensor:
        """Map images `(N, C, H, W)` to logits: the same crop, resized to the network's own size."""
        size = (self.image_size, self.image_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        return self.network(images if self.same else images * self.scale + self.shift)  # type: ignore[no-any-return]


def open_teacher(artifact: Artifact, student: Preprocess, device: str) -> Teacher:
    """Load a teacher for images under the student's transform; see `load_network` for what it raises."""
    return Teacher(load_network(artifact).to(device), student, artifact.preprocess)
