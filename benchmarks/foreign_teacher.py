"""A teacher of another kind: a residual network for CIFAR-10 in plain PyTorch, saved as ONNX, which knows nothing of this package.

    python benchmarks/foreign_teacher.py --data DIR --out teacher.onnx [--epochs 10] [--seed 0]

A first convolution of 2x2 whose filters whiten patches and are not trained, then three groups of two 3x3 convolutions, the second
of each with a shortcut: the kind of network that learns CIFAR-10 in the fewest operations (Jordan 2024, arXiv 2404.00498, with the
residuals of its larger network; before it ResNet-9 of Page 2018). 2.0 million parameters, 118 million multiplications an image.
SGD with a learning rate that rises for a fifth of the steps and then falls to zero, mirror images and shifts by up to 2 pixels. No
label smoothing, which spoils teachers (Mueller et al. 2019, arXiv 1906.02629).
The file takes RGB images in 0..1, `(N, 3, 32, 32)` float32, and normalizes them itself. After every epoch its state lies beside
`--out`; started again it goes on from there.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the training images of CIFAR-10
SHIFT = 2
CLASSES = 10
PATCH = 3 * 2 * 2
WIDTHS = (64, 256, 256)
LOGIT_SCALE = 0.125


class Group(nn.Module):
    """Two convolutions: the first halves the size, the second has a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.first_norm, self.second_norm = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Map `(N, inputs, H, W)` to `(N, outputs, H // 2, W // 2)`."""
        features = F.gelu(self.first_norm(F.max_pool2d(self.first(features), 2)))
        return features + F.gelu(self.second_norm(self.second(features)))


class ResidualNetwork(nn.Module):
    """Maps RGB images `(N, 3, 32, 32)` in 0..1 to logits `(N, 10)`."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(STD)[:, None, None])
        self.whiten = nn.Conv2d(3, 2 * PATCH, 2)
        self.groups = nn.Sequential(*(Group(inputs, outputs) for inputs, outputs in pairwise((2 * PATCH, *WIDTHS))))
        self.head = nn.Linear(WIDTHS[-1], CLASSES, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        features = self.groups(F.gelu(self.whiten((images - self.mean) / self.std)))
        logits: Tensor = self.head(features.amax((2, 3))) * LOGIT_SCALE
        return logits

    @torch.no_grad()
    def set_whitening(self, images: Tensor) -> None:
        """Take the filters from the patches of images `(N, 3, 32, 32)` in 0..1: eigenvectors by deviation, and their negatives."""
        patches = F.unfold((images - self.mean) / self.std, 2).transpose(1, 2).flatten(0, 1)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / (values + 5e-4).sqrt()).T.reshape(PATCH, 3, 2, 2)
        self.whiten.weight.copy_(torch.cat([filters, -filters]))
        self.whiten.bias.zero_()  # type: ignore[union-attr]  # it has one
        self.whiten.weight.requires_grad_(False)


def main() -> None:
    """Train, score and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="a folder with train/CLASS/ and test/CLASS/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--learning-rate", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    images, labels = _read(arguments.data / "train")
    network = ResidualNetwork().to(memory_format=torch.channels_last)
    network.set_whitening(images[:: len(images) // 5000 or 1].float() / 255)
    _train(network, images, labels, arguments)
    print(f"top-1 {_score(network, *_read(arguments.data / 'test')):.2%} of the test images", flush=True)
    network.eval()
    partial = arguments.out.with_suffix(".partial")  # who waits for the file must not find half of it
    torch.onnx.export(
        network,
        (torch.zeros(1, 3, 32, 32),),
        str(partial),
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )
    partial.replace(arguments.out)


def _train(network: nn.Module, images: Tensor, labels: Tensor, arguments: argparse.Namespace) -> None:
    """Train for all epochs, from the stored state on."""
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learned, arguments.learning_rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = arguments.epochs * (len(labels) // arguments.batch_size)
    rising = max(1, steps // 5)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rising, (steps - step) / (steps - rising))
    )
    state_file = arguments.out.with_suffix(".state.pt")
    parts: dict[str, Any] = {"network": network, "optimizer": optimizer, "schedule": schedule}
    done = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        done = state["epochs"]
    for epoch in range(done, arguments.epochs):
        loss, seconds = _epoch(network, optimizer, schedule, images, labels, arguments, epoch)
        partial = state_file.with_suffix(".partial")
        torch.save({"epochs": epoch + 1, **{name: part.state_dict() for name, part in parts.items()}}, partial)
        partial.replace(state_file)
        print(f"epoch {epoch + 1} of {arguments.epochs}: loss {loss:.4f}, {seconds:.0f} s", flush=True)


def _read(folder: Path) -> tuple[Tensor, Tensor]:
    """Return images `(N, 3, 32, 32)` uint8 and labels `(N,)` of `folder/CLASS/FILE`, classes in the order of their names."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    pixels: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        for path in sorted((folder / name).iterdir()):
            with Image.open(path) as image:
                pixels.append(np.asarray(image.convert("RGB")))
            labels.append(label)
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2), torch.tensor(labels)


def _epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    images: Tensor,
    labels: Tensor,
    arguments: argparse.Namespace,
    epoch: int,
) -> tuple[float, float]:
    """Train on all images once, in an order that the seed and the epoch decide. Return the mean loss and the seconds."""
    generator = torch.Generator().manual_seed(arguments.seed * 1000 + epoch)
    order, start, total = torch.randperm(len(labels), generator=generator), time.perf_counter(), 0.0
    network.train()
    steps = len(labels) // arguments.batch_size
    for step in range(steps):
        index = order[step * arguments.batch_size : (step + 1) * arguments.batch_size]
        batch = _crop(images[index], generator).div_(255).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
            loss = F.cross_entropy(network(batch).float(), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item()
    return total / steps, time.perf_counter() - start


def _crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image `(N, 3, 32, 32)` by up to 2 pixels, with its reflection beside it, and mirror every second one."""
    count, size = len(images), images.shape[-1]
    padded = F.pad(images.float(), (SHIFT,) * 4, mode="reflect")
    shift = torch.randint(2 * SHIFT + 1, (count, 2), generator=generator)
    columns = torch.arange(size).expand(count, size)
    mirrored = torch.rand(count, generator=generator) < 0.5
    columns = torch.where(mirrored[:, None], size - 1 - columns, columns) + shift[:, 1:]
    rows = torch.arange(size) + shift[:, :1]
    return padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def _score(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    network.eval()
    right = sum(
        int((network(batch.float() / 255).argmax(1) == wanted).sum())
        for batch, wanted in zip(images.split(500), labels.split(500), strict=True)
    )
    return right / len(labels)


if __name__ == "__main__":
    main()
