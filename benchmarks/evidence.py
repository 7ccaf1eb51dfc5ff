"""How often the bound is broken by which `quantize` chooses its method: in simulation, and for networks that know images by heart.

    python benchmarks/evidence.py [--trials 200] [--out FILE.json]

A step of the fallback sequence passes when the upper 95 % bound of the drop of top-1 on new images (`stages/drop_bound.py`) is
within the budget. A trial draws the images that judge and validation images from a population, computes the bound, and looks
whether the true drop, that of the whole population, exceeds it: at 95 % that may happen in 10 of 200 trials. `before` is how often
it exceeded the risk of version 0.2, which spoke of 10,000 images however few there were.

Simulated populations have logits of 20,000 images, whose labels are drawn from known probabilities:

- noise: quantization moves each logit a little, so that answers change where two classes are close;
- one class: of one class, every eighth answer is lost, however sure the network was, and nothing else changes;
- timid: the labels are surer than the network says, as after label smoothing;
- too sure: they are less sure;
- known by heart: the images that judge were trained on, so that the network is much surer of them than of new ones.

There are as many validation images as images that judge, 500 at most. The networks are a ConvNeXt of four blocks that was trained
until it knows its 1,000 images, to which 6,000 others are new; INT8 as `quantize` makes it, and with weights of 5 and 4 bits.

Ends with code 1 if a bound is broken more often than it may be.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.quantization.calibration import calibrate
from convnext_deploy.quantization.prepare import prepare
from convnext_deploy.quantization.scheme import resolve_scheme
from convnext_deploy.stages.drop_bound import UnseenImages, answer_costs, bound_drop, sharpest_scale
from convnext_deploy.system.files import write_text

IMAGES = (50, 200, 500, 2000)
KINDS = {
    "noise": (2, 10, 1000),
    "one class": (2, 10),
    "timid": (10,),
    "too sure": (10,),
    "known by heart": (2, 10, 1000),
}
"""Kind of population → numbers of classes."""
POPULATION = 20_000
_VALIDATION = 500
KNOWN, NEW, SIDE = 1_000, 6_000, 16
EPOCHS = 30


@dataclass(frozen=True)
class Population:
    """Logits of images that can judge and of new ones, of the float network and of the other one, and the truth.

    `labels` are those of the new images; `drop` is the true drop of top-1 on them.
    """

    judging: tuple[Tensor, Tensor]
    new: tuple[Tensor, Tensor]
    labels: Tensor
    drop: float


def simulate(kind: str, classes: int, seed: int) -> Population:
    """Return a population, see the module."""
    rng = np.random.default_rng((list(KINDS).index(kind), classes, seed))
    logits = rng.standard_normal((POPULATION, classes), np.float32) * 1.5
    sure = (0.5 + math.log(classes)) * rng.gamma(2.5, 0.8, POPULATION)
    rows, answers = np.arange(POPULATION), rng.integers(0, classes, POPULATION)
    logits[rows, answers] += sure.astype(np.float32)
    noise = _noise(rng, kind, logits)
    truth = {"timid": 2.0, "too sure": 0.5}.get(kind, 1.0)
    probabilities = torch.from_numpy(truth * logits).double().softmax(1)
    labels = (
        (probabilities.cumsum(1) < torch.from_numpy(rng.uniform(size=(POPULATION, 1)))).sum(1).clamp(max=classes - 1)
    )
    before, after = torch.from_numpy(logits), torch.from_numpy(logits + noise)
    first, second = (probabilities.gather(1, each.argmax(1, keepdim=True)) for each in (before, after))
    judging = (before, after)
    if kind == "known by heart":
        known = logits.copy()
        known[rows, answers] += np.float32(6.0)
        judging = (torch.from_numpy(known), torch.from_numpy(known + noise[rng.permutation(POPULATION)]))
    return Population(judging, (before, after), labels, (first - second).mean().item())


def _noise(rng: np.random.Generator, kind: str, logits: NDArray[np.float32]) -> NDArray[np.float32]:
    if kind == "one class":
        noise = np.zeros_like(logits)
        own = logits.argmax(1) == 0 if logits.shape[1] < 100 else logits.argmax(1) < logits.shape[1] // 10
        lost = own & (rng.uniform(size=len(logits)) < 0.125)
        noise[lost, logits.argmax(1)[lost]] = -100.0
        return noise
    return rng.standard_normal(logits.shape, np.float32) * np.float32(0.3)


def earlier_risk(reference: Tensor, logits: Tensor) -> float:
    """Return the risk of version 0.2: the expected drop and what chance adds on 10,000 images, a fraction."""
    costs = answer_costs(reference, logits)
    changed = (reference.argmax(1) != logits.argmax(1)).double().mean().item()
    return float(costs.mean()) + 1.6448536 * math.sqrt(changed / 10_000)


def count_broken(population: Population, images: int, trials: int) -> dict[str, Any]:
    """Return how often the true drop exceeds the bound and the earlier risk, and the mean of the bound and of the expected drop."""
    rng = np.random.default_rng((images, trials))
    broken = before = 0
    found = []
    for _ in range(trials):
        judging = torch.from_numpy(rng.permutation(len(population.judging[0]))[:images])
        others = torch.from_numpy(rng.permutation(len(population.labels))[: min(images, _VALIDATION)])
        reference, logits = (each[judging] for each in population.judging)
        unseen = UnseenImages(population.new[0][others], population.labels[others])
        found.append(bound_drop(reference, logits, unseen, sharpest_scale(unseen)))
        broken += found[-1].bound < population.drop
        before += earlier_risk(reference, logits) < population.drop
    return {
        "images": images,
        "trials": trials,
        "broken": broken,
        "before": before,
        "true_drop_pp": 100 * population.drop,
        "expected_drop_pp": 100 * float(np.mean([risk.expected for risk in found])),
        "bound_pp": 100 * float(np.mean([risk.bound for risk in found])),
    }


def patterns(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return noisy waves `(count, 3, 16, 16)` of ten kinds, and their labels, a seventh of which are wrong."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 10, count)
    angle = (np.pi * kinds / 10 + rng.normal(0, 0.1, count))[:, None, None, None]
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    phase = rng.uniform(0, 2 * np.pi, (count, 1, 1, 1)) + np.arange(3)[:, None, None]
    wave = np.sin(rng.uniform(9, 15, (count, 1, 1, 1)) * (np.cos(angle) * rows + np.sin(angle) * columns) + phase)
    images = (wave + rng.normal(0, 1.0, (count, 3, SIDE, SIDE))).astype(np.float32)
    labels = np.where(rng.uniform(size=count) < 1 / 7, rng.integers(0, 10, count), kinds)
    return torch.from_numpy(images), torch.from_numpy(labels)


def learn_by_heart(images: Tensor, labels: Tensor) -> ConvNeXt:
    """Train a ConvNeXt of four blocks until it knows the images."""
    torch.manual_seed(0)
    network = ConvNeXt(
        (1, 1, 1, 1), (16, 32, 48, 64), num_classes=10, in_channels=3, patch_size=2, layer_scale_init=1.0
    )
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=0.0)
    batches = len(images) // 50
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, EPOCHS * batches)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images)).chunk(batches):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    return network.eval().requires_grad_(False)


@torch.no_grad()
def coarser(network: ConvNeXt, images: Tensor) -> Iterator[tuple[str, nn.Module]]:
    """Yield INT8 as `quantize` makes it first, and the network with weights of fewer and fewer bits."""
    int8 = prepare(copy.deepcopy(network), resolve_scheme("tensorrt", {}))
    calibrate(int8, images.split(50), "minmax", 99.99)
    yield "INT8", int8
    for bits in (5, 4):
        rounded = copy.deepcopy(network)
        for weight in (each for each in rounded.parameters() if each.ndim > 1):
            scale = weight.abs().flatten(1).amax(1).view(-1, *[1] * (weight.ndim - 1)) / (2 ** (bits - 1) - 1)
            weight.copy_((weight / scale.clamp_min(1e-12)).round() * scale)
        yield f"weights of {bits} bits", rounded


@torch.no_grad()
def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    """Return the logits of images."""
    return torch.cat([network(batch) for batch in images.split(250)])


def memorizing(trials: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Return how sure and how right the network is on what it knows and on new images, and a row for each way to quantize it."""
    images, labels = patterns(KNOWN + NEW, 0)
    network = learn_by_heart(images[:KNOWN], labels[:KNOWN])
    before = logits_of(network, images)
    parts = {"known": slice(0, KNOWN), "new": slice(KNOWN, None)}
    right = (before.argmax(1) == labels).double()
    facts = {f"top1_{name}": right[part].mean().item() for name, part in parts.items()}
    facts |= {f"confidence_{name}": before[part].softmax(1).amax(1).mean().item() for name, part in parts.items()}
    rows = []
    for name, quantized in coarser(network, images[:200]):
        after = logits_of(quantized, images)
        changed = (before.argmax(1) != after.argmax(1)).double()
        drop = (right - (after.argmax(1) == labels).double())[KNOWN:].mean().item()
        population = Population((before[:KNOWN], after[:KNOWN]), (before[KNOWN:], after[KNOWN:]), labels[KNOWN:], drop)
        for count in IMAGES[:-1]:
            found = count_broken(population, count, trials)
            found |= {f"changed_{part}": changed[where].mean().item() for part, where in parts.items()}
            rows.append({"network": name, **found})
    return facts, rows


def main() -> int:
    """Run both, print what was found, and return 1 if a bound does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for kind, numbers in KINDS.items():
        for classes in numbers:
            population = simulate(kind, classes, 0)
            for images in IMAGES:
                rows.append({"kind": kind, "classes": classes, **count_broken(population, images, arguments.trials)})
                print(_line(f"{kind}, {classes} classes", rows[-1]), flush=True)
    facts, networks = memorizing(arguments.trials)
    print(", ".join(f"{name} {100 * value:.1f} %" for name, value in facts.items()))
    for row in networks:
        print(_line(row["network"], row), flush=True)
    if arguments.out:
        result = {"trials": arguments.trials, "simulation": rows, "facts": facts, "networks": networks}
        write_text(arguments.out, json.dumps(result, indent=1) + "\n")
    return int(any(row["broken"] > 0.05 * row["trials"] for row in rows + networks))


def _line(name: str, row: dict[str, Any]) -> str:
    return (
        f"{name}, {row['images']} images: broken {row['broken']} of {row['trials']} (before {row['before']}), true drop "
        f"{row['true_drop_pp']:.3f} pp, expected {row['expected_drop_pp']:.3f}, bound {row['bound_pp']:.3f}"
    )


if __name__ == "__main__":
    sys.exit(main())
