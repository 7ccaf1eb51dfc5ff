"""A teacher of another kind: a residual network for CIFAR-10 in plain PyTorch, saved as ONNX, which knows nothing of this package.

    python benchmarks/foreign_teacher.py --data DIR --out teacher.onnx [--epochs 30 15] [--width 16] [--seed 0]

ResNet-20 of He et al. 2016 (arXiv 1512.03385, section 4.2): three groups of three residual blocks of two 3x3 convolutions, 0.27
million parameters at width 16. Crops after padding by 4 pixels, mirror images and a learning rate of 0.1 as in the paper; in place
of 164 epochs one cycle of it (Smith and Topin 2018, arXiv 1708.07120), after which it is at 86.58 %, and a second that begins with
what the first has learned (warm restart, Loshchilov and Hutter 2016, arXiv 1608.03983).
The file takes RGB images in 0..1, `(N, 3, 32, 32)` float32, and normalizes them itself. After every epoch its state lies beside
`--out`; started again it goes on from there.
"""

from __future__ import annotations

import argparse
import time
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the training images of CIFAR-10
PADDING = 4
CLASSES = 10


class Block(nn.Module):
    """Two convolutions and a shortcut, which is a strided mean and zeros for new channels (option A of the paper)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.first_norm, self.second_norm = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.stride, self.new_channels = stride, outputs - inputs

    def forward(self, features: Tensor) -> Tensor:
        """Map `(N, inputs, H, W)` to `(N, outputs, H / stride, W / stride)`."""
        residual = self.second_norm(self.second(F.relu(self.first_norm(self.first(features)))))
        if self.new_channels:
            features = F.pad(F.avg_pool2d(features, self.stride), (0, 0, 0, 0, 0, self.new_channels))
        return F.relu(features + residual)


class ResNet20(nn.Module):
    """Maps RGB images `(N, 3, 32, 32)` in 0..1 to logits `(N, 10)`."""

    mean: Tensor
    std: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(STD)[:, None, None])
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        widths = [width, width, 2 * width, 4 * width]
        blocks = [
            Block(widths[group] if not place else widths[group + 1], widths[group + 1], 2 if group and not place else 1)
            for group in range(3)
            for place in range(3)
        ]
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(widths[-1], CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        features = self.blocks(self.stem((images - self.mean) / self.std))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


def main() -> None:
    """Train, score and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="a folder with train/CLASS/ and test/CLASS/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, nargs="+", default=[30, 15], help="of each cycle of the learning rate")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    images, labels = _read(arguments.data / "train")
    network = ResNet20(arguments.width).to(memory_format=torch.channels_last)
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
    """Train for all cycles, from the stored state on."""
    optimizer = torch.optim.SGD(
        network.parameters(), arguments.learning_rate, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    state_file = arguments.out.with_suffix(".state.pt")
    done, state = 0, {}
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["epochs"]
    for first, last in pairwise(accumulate(arguments.epochs, initial=0)):
        if done >= last:
            continue
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, arguments.learning_rate, epochs=last - first, steps_per_epoch=len(labels) // arguments.batch_size
        )
        if done > first:
            schedule.load_state_dict(state["schedule"])
        for epoch in range(done, last):
            loss, seconds = _epoch(network, optimizer, schedule, images, labels, arguments, epoch)
            done = epoch + 1
            state = {
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "epochs": done,
            }
            partial = state_file.with_suffix(".partial")
            torch.save(state, partial)
            partial.replace(state_file)
            print(f"epoch {done} of {sum(arguments.epochs)}: loss {loss:.4f}, {seconds:.0f} s", flush=True)


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
        batch = _crop(images[index], generator).float().div_(255).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_amx_tile_supported()):
            loss = F.cross_entropy(network(batch).float(), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item()
    return total / steps, time.perf_counter() - start


def _crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image `(N, 3, 32, 32)` by up to 4 pixels, with zeros beside it, and mirror every second one."""
    count, size = len(images), images.shape[-1]
    padded = F.pad(images, (PADDING,) * 4)
    shift = torch.randint(2 * PADDING + 1, (count, 2), generator=generator)
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
