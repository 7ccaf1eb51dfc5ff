"""What a run does with images, small: in one process, in threads that stand for processes, and in processes."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from convnext_deploy.artifacts.spec import ModelSpec, Preprocess
from convnext_deploy.config.ptq import PTQSteps
from convnext_deploy.data.datasets import ArrayImages, Data
from convnext_deploy.data.evaluation_batches import EvaluationBatches
from convnext_deploy.data.loaders import Batch, BatchPlan, TrainingBatches
from convnext_deploy.evaluation.label_score import KeepingLabels
from convnext_deploy.evaluation.run_images import Opened
from convnext_deploy.evaluation.score import Guessing, count_guesses
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.quantization.prepare import prepare
from convnext_deploy.quantization.scheme import TensorScheme, resolve_scheme
from convnext_deploy.runners import open_runner
from convnext_deploy.stages.chosen_images import Images, outputs_of
from convnext_deploy.stages.context import StageContext
from convnext_deploy.stages.layer_effects import layer_effects
from convnext_deploy.stages.ptq_steps import observe_images, quantize_network
from convnext_deploy.stages.selection import Judge, ask_about_unseen, choose_unseen
from convnext_deploy.system import distributed
from convnext_deploy.system.execution import Execution
from convnext_deploy.system.shared_work import from_first
from convnext_deploy.training.evaluate_labels import evaluate_labels
from convnext_deploy.training.scoring import evaluate_classifier, own_images
from convnext_deploy.training.teacher import evaluate_features
from convnext_deploy.training.teacher_cache import TeacherCache
from tests.weights import fill, write_weights

SIDE, CLASSES = 32, 3
PREPROCESS = Preprocess(SIDE, 1.0, "bilinear", (0.41, 0.46, 0.5), (0.21, 0.25, 0.3))
PIXELS = np.random.default_rng(0).integers(0, 256, (40, SIDE, SIDE, 3)).astype(np.uint8)
TRAIN = ArrayImages(PIXELS[:26], np.arange(26) % CLASSES)
VALIDATION = ArrayImages(PIXELS[26:], np.arange(14) % CLASSES)
METHODS = ("minmax", "moving_average", "percentile")  # the others search by the counts, which are compared
STEPS = PTQSteps("percentile", smoothing_alpha=0.5, gptq=False)
CACHE = "teacher cache"
GRID = TensorScheme(0, 255, symmetric=False, per_channel=False)
SIZES = {"uneven": (11, 2), "more processes than images": (2, 1)}
"""Images that calibrate and judge, and how many are a batch: 6 batches with a short one, and 2."""


def one_block(seed: int = 0) -> ConvNeXt:
    """Return a network of one block a stage, in which every parameter counts."""
    network = ConvNeXt((1, 1, 1, 1), (8, 8, 12, 12), num_classes=CLASSES, layer_scale_init=0.5).eval()
    fill(network, seed)
    return network


def found_by_first(folder: Path) -> dict[str, Any]:
    """Return what the first process finds, in numbers whose every bit counts."""
    network = one_block()
    scheme = resolve_scheme("onnxruntime")
    data = Data("some", TRAIN, VALIDATION, ("cat", "dog", "owl"))
    found: dict[str, Any] = {}
    for name, (count, size) in SIZES.items():
        images = Images(TRAIN, PREPROCESS, list(range(3, 3 + count)), size, 0, "cpu")
        others = Images(TRAIN, PREPROCESS, list(range(25, 25 - count, -1)), size, 0, "cpu")
        context = StageContext("ptq", folder, data, Execution(), folder)
        found[f"{name}: ranges"] = ranges_of(observe_images(prepare(one_block(), scheme), images, count))
        quantized, _ = quantize_network(network, scheme, STEPS, images, context)
        found[f"{name}: network"] = digest(quantized)
        outputs = outputs_of(network, others)
        unseen = ask_about_unseen(network, choose_unseen(data, others), outputs, others.labels)
        judge = Judge(network, others, 0.5, unseen, 2, outputs)
        steps = [judge.judge("some", quantized, limit_pp=limit) for limit in (judge.least_risk_pp / 2, 1e9)]
        found[f"{name}: steps"] = [repr(step) for step in steps]
        effects = layer_effects(quantized, network, images, outputs_of(network, images))
        found[f"{name}: effects"] = [repr(effect) for effect in effects]
    artifact = open_input(
        write_weights(folder / "source.safetensors", ModelSpec("test_convnext", CLASSES), data.class_names, PREPROCESS)
    )
    runner = open_runner(artifact, "cpu")
    for size, count in ((4, 14), (1, 2)):
        opened = Opened(runner, artifact, Execution(), size)
        found[f"score of {count}"] = repr(count_guesses(opened.run(VALIDATION, range(count), Guessing(), "score")))
        kept = [part[0].tolist() for part in opened.run(VALIDATION, range(count), KeepingLabels(), "labels")]
        found[f"labels of {count}"] = kept
    return found


def found_together() -> dict[str, Any]:
    """Return what all processes find that train together, of a network after an epoch."""
    network, teacher = one_block(), one_block(seed=1)
    rows = (np.arange(14)[:, None] >> np.arange(CLASSES) & 1).astype(np.int64)
    found: dict[str, Any] = {}
    for name, count, size in (("uneven", 14, 3), ("more processes than images", 2, 1)):
        own = own_images(count, size)
        batches, labelled = (
            EvaluationBatches(images, PREPROCESS, size, 0, own)
            for images in (VALIDATION, ArrayImages(VALIDATION.arrays, rows))
        )
        found[f"{name}: classes"] = evaluate_classifier(network, batches, "cpu")
        found[f"{name}: labels"] = evaluate_labels(network, labelled, "cpu")
        found[f"{name}: features"] = evaluate_features(network, teacher, batches, "cpu")
    return found


def found_in_cache(folder: Path) -> list[Any]:
    """Return the teacher's predictions that all processes keep together, read back as one process reads them."""
    teacher = one_block(seed=1)
    options: dict[str, Any] = {"rows": 24, "classes": CLASSES, "temperature": 2.0, "top_k": 0}

    @torch.no_grad()
    def ask(batch: Batch) -> torch.Tensor:
        logits: torch.Tensor = teacher(batch.images)
        return logits

    def forbid(batch: Batch) -> torch.Tensor:
        raise AssertionError(f"nobody filled rows from {batch.first_row} on")

    plan, cache = BatchPlan(6, CLASSES), TeacherCache(folder / "teachers", compute=ask, **options)
    for batch in TrainingBatches(TRAIN, PREPROCESS, plan, world=distributed.world()).epoch(0):
        cache(batch)
    assert cache.computed == 24 // distributed.world().size  # each asks for its own rows
    distributed.gather(None)
    kept = TeacherCache(folder / "teachers", compute=forbid, **options)
    return [kept(batch).tolist() for batch in TrainingBatches(TRAIN, PREPROCESS, plan).epoch(0)]


def ranges_of(seen: Any) -> list[Any]:
    """Return all that is decided by what was seen of each site."""
    return [
        [
            [observer.range.value_range(method, GRID) for method in METHODS],
            observer.range.channel_minimum.tolist(),
            observer.range.channel_maximum.tolist(),
            [hash_of(values) for values in (observer.range._counts, observer.sample and observer.sample.values())],
        ]
        for observer, _, _ in seen.sites()
    ]


def hash_of(values: torch.Tensor | None) -> str | None:
    return None if values is None else hashlib.sha256(values.numpy().tobytes()).hexdigest()


def digest(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def results(folder: Path) -> dict[str, Any]:
    """Return everything, in every process."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng([]):
        found = {**from_first(lambda: found_by_first(folder)), **found_together()}
        return {**found, CACHE: found_in_cache(folder)}


def main() -> None:
    """Find everything; the first process writes it."""
    folder = Path(sys.argv[1])
    found = results(folder)
    if distributed.world().is_first:
        (folder / "results.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
