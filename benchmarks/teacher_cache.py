"""What a teacher costs: an epoch of plain training, of distillation with a filled teacher cache, and of distillation without one.

    python benchmarks/teacher_cache.py [--student atto] [--teacher tiny] [--image-size 32] [--rounds 10] [--out FILE.json]

All three train a student of the same kind on the same augmented batches through the package's own loop (`training.fit`), an
epoch each in every round, in an order that changes. The figures are the medians over rounds of an epoch's time divided by that
of plain training in the same round, with 95 % intervals. The cache is filled before, and that the teacher was not
asked again is checked.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext_deploy.artifacts.spec import ModelSpec, default_preprocess
from convnext_deploy.data.datasets import ArrayImages
from convnext_deploy.data.loaders import BatchPlan, TrainingBatches
from convnext_deploy.metrics.ratios import median_ratio
from convnext_deploy.models.variants import build_model, resolve_variant
from convnext_deploy.models.zoo.cost import count_macs
from convnext_deploy.stages.teachers import distillation_objective
from convnext_deploy.system.environment import describe_environment
from convnext_deploy.system.execution import Execution
from convnext_deploy.training.fit import fit
from convnext_deploy.training.schedule import Schedule
from convnext_deploy.training.step import Objective
from convnext_deploy.training.student_loss import Distillation
from convnext_deploy.training.teacher_cache import TeacherCache


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--student", default="atto")
    parser.add_argument("--teacher", default="tiny")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    student = ModelSpec(resolve_variant(arguments.student), arguments.classes)
    teacher_spec = ModelSpec(resolve_variant(arguments.teacher), arguments.classes)
    cost = count_macs(teacher_spec, arguments.image_size) / count_macs(student, arguments.image_size)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (arguments.images, arguments.image_size, arguments.image_size, 3), dtype=np.uint8)
    batches = TrainingBatches(
        ArrayImages(pixels, rng.integers(arguments.classes, size=arguments.images)),
        default_preprocess(arguments.image_size),
        BatchPlan(arguments.batch_size, arguments.classes, own_epochs=1),
    )
    teacher = build_model(teacher_spec).requires_grad_(False).eval()

    def predict(images: Tensor) -> Tensor:
        return teacher(images)  # type: ignore[no-any-return]  # modules return Any

    def plain(network: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(network(batch.images).float(), batch.labels, label_smoothing=0.1)

    def distilled(logits: Callable[[Any], Tensor]) -> Objective:
        return distillation_objective(
            logits, Distillation(temperature=1.0, distill_loss_weight=0.5, label_smoothing=0.1)
        )

    with tempfile.TemporaryDirectory() as folder:
        cache = TeacherCache(
            Path(folder),
            rows=arguments.images,
            classes=arguments.classes,
            temperature=1.0,
            top_k=arguments.top_k,
            compute=lambda batch: predict(batch.images),
        )
        objectives = {
            "plain": plain,
            "cached teacher": distilled(cache),
            "teacher": distilled(lambda batch: predict(batch.images)),
        }
        networks = {name: build_model(student) for name in objectives}

        def epoch(name: str) -> float:
            history = fit(
                networks[name],
                batches,
                objectives[name],
                Schedule(1, base_learning_rate=1e-3, final_learning_rate_ratio=1.0, weight_decay=0.05),
                Execution(),
                description=name,
            )
            seconds: float = arguments.images / history[0]["images_per_s"]
            return seconds

        for name in objectives:  # fills the cache, and warms up
            epoch(name)
        computed = cache.computed
        times: dict[str, list[float]] = {name: [] for name in objectives}
        for _ in range(arguments.rounds):
            for name in rng.permutation(list(objectives)):
                times[name].append(epoch(name))
        assert cache.computed == computed, "the teacher was asked again"
        size = cache.size_bytes(1) / arguments.images
    print(
        f"teacher {arguments.teacher} costs {cost:.1f} times the student {arguments.student}; {size:.0f} bytes an image"
    )
    ours = np.array(times["plain"])
    rows = {}
    for name, values in times.items():
        ratio, low, high = median_ratio(np.array(values), ours)
        rows[name] = {
            "images_per_s": arguments.images / float(np.median(values)),
            "ratio": ratio,
            "interval": [low, high],
        }
        print(f"{name:15} {rows[name]['images_per_s']:8.1f} images/s, {ratio:.2f} times plain [{low:.2f}, {high:.2f}]")
    if arguments.out is not None:
        settings = {name: value for name, value in vars(arguments).items() if name != "out"}
        record = {"settings": settings, "teacher_cost": cost, "rows": rows, "environment": describe_environment()}
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
