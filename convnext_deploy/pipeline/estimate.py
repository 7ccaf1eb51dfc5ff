"""About how long the trainings of a run take on this machine, and how much memory: said before the first of them begins."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.config.comparisons import with_comparisons
from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.image_size import ImageSize, sides_of
from convnext_deploy.config.prune import PruneConfig
from convnext_deploy.config.recipe import Recipe, StageEntry
from convnext_deploy.config.train import TrainConfig
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import DeployError, StoppedError
from convnext_deploy.models.variants import VARIANTS, resolve_variant, with_widths
from convnext_deploy.models.zoo.cost import activation_bytes, count_macs, count_parameters
from convnext_deploy.models.zoo.ranking import FLOPS_PER_CORE, GIB
from convnext_deploy.system.distributed import usable_cores, world
from convnext_deploy.system.execution import Execution
from convnext_deploy.system.progress import describe_time

LONG_S = 3600.0
"""What a terminal is asked about."""
_WORTH_MEASURING_S = 60.0
_REHEARSED_S = 1.0  # about, of a measured step
_GPU_FLOPS = 20e12  # of trainings; only to tell what is short
_BYTES_PER_PARAMETER = 16  # float32 weights, gradients and the two moments of AdamW
_BYTES_PER_VALUE = 4  # of float32; less where the forward pass is in bfloat16
_DECODED = 8  # images


@dataclass(frozen=True)
class Estimate:
    """Of the training of a stage: seconds, and bytes of memory at its largest; measured on steps, or from the cost of a pass.

    `without`: what is not in it.
    """

    stage: str
    seconds: float
    memory: float
    is_measured: bool
    without: str = ""

    def describe(self) -> str:
        """Say it in a line."""
        how = "measured on a few steps" if self.is_measured else "by the cost of a pass"
        return f"{self.stage}: about {describe_time(self.seconds)} and {self.memory / GIB:.1f} GB of memory{self.without} ({how})"


@dataclass(frozen=True)
class _Training:
    """A training on so many images, and the networks that teach in it, with their image sizes; `others` are not timed."""

    stage: str
    spec: ModelSpec
    size: ImageSize
    fit: FitConfig
    images: int
    teachers: tuple[tuple[ModelSpec, ImageSize], ...]
    others: int


def tell_estimates(
    recipe: Recipe,
    there: Collection[str],
    data: Data | None,
    brought: Mapping[str, Artifact],
    execution: Execution,
    *,
    may_ask: bool = True,
) -> tuple[Estimate, ...]:
    """Say how long the trainings take that would run, where it is a minute in all or more; beyond an hour, ask at a terminal.

    Nothing of it changes a result.

    Args:
        recipe: whose stages would run.
        there: names of those that are up to date.
        data: their images.
        brought: artifacts that the user brought, by the names under which stages refer to them.
        execution: how work is done; its progress asks, if it can.
        may_ask: whether a run follows.

    Raises: StoppedError: if the answer is no.
    """
    if data is None or world().size > 1:
        return ()
    found = tuple(
        _estimate(each, data, execution) for each in _trainings(with_comparisons(recipe).stages, there, data, brought)
    )
    total = sum(each.seconds for each in found)
    if total >= _WORTH_MEASURING_S:
        for each in found:
            execution.progress.say(each.describe())
        if len(found) > 1:
            execution.progress.say(f"in all about {describe_time(total)}")
    ask = getattr(execution.progress, "ask", None)
    if may_ask and total > LONG_S and ask is not None and not ask(f"Train for about {describe_time(total)}?"):
        raise StoppedError(
            f"nothing was trained, because it would take about {describe_time(total)}; fewer --epochs, a smaller --image-size or a "
            "smaller model take less, and --yes goes on without a question."
        )
    return found


def _trainings(
    stages: Collection[StageEntry], there: Collection[str], data: Data, brought: Mapping[str, Artifact]
) -> Iterator[_Training]:
    known = {
        name: (artifact.model, artifact.preprocess.image_size)
        for name, artifact in brought.items()
        if artifact.model.variant in VARIANTS
    }
    for stage in stages:
        config, before = stage.config, known.get(stage.inputs.get("source") or stage.inputs.get("weights", ""))
        if isinstance(config, PruneConfig) and before is not None:
            pruned = before[0] if config.widths is None else with_widths(before[0], config.widths)
            known[stage.name] = pruned, before[1]
        if not isinstance(config, TrainConfig | DistillConfig):
            continue
        model = config.model
        spec = ModelSpec(resolve_variant(model.name), len(data.class_names), model.in_channels, model.patch_size)
        if before is not None and before[0].variant == spec.variant:
            spec = replace(spec, hidden_widths=before[0].hidden_widths)
        known[stage.name] = spec, model.image_size
        if stage.name in there:
            continue
        names = [name for role, name in stage.inputs.items() if role.startswith("teacher")]
        teachers = tuple(known[name] for name in names if name in known)
        without = 0 if data.unlabelled is None or not config.reads_unlabelled else len(data.unlabelled.images)
        images, others = len(data.train) + without, len(names) - len(teachers)
        yield _Training(stage.name, spec, model.image_size, config.fit, images, teachers, others)


def _estimate(training: _Training, data: Data, execution: Execution) -> Estimate:
    fit, count = training.fit, training.images
    batch = min(fit.batch_size, count)
    seen = count // batch * batch * fit.epochs
    side = max(sides_of(training.size))
    own = 3 * 2 * count_macs(training.spec, side)
    taught = sum(2 * count_macs(spec, max(sides_of(size))) for spec, size in training.teachers)
    speed = usable_cores() * FLOPS_PER_CORE if execution.device == "cpu" else _GPU_FLOPS
    kept = activation_bytes(
        training.spec, side, _BYTES_PER_VALUE, gradient_checkpointing=fit.gradient_checkpointing
    ) * -(-batch // fit.accumulation_steps)
    memory = _BYTES_PER_PARAMETER * count_parameters(training.spec) + kept
    seconds = seen * (own + taught) / speed
    if seconds < _WORTH_MEASURING_S:
        return Estimate(training.stage, seconds, memory, is_measured=False)
    without = ", without its teacher" if training.others else ""
    try:
        measured = _measure(training, data, execution, seen, speed)
    except (DeployError, RuntimeError):
        # too little memory, or a network that cannot be built alone: the training itself tells better
        return Estimate(training.stage, seconds, memory, False, without)
    return Estimate(training.stage, measured, memory, True, without)


def _measure(training: _Training, data: Data, execution: Execution, seen: int, speed: float) -> float:
    from convnext_deploy.stages.rehearsal import rehearse, rehearse_teacher

    fit, device = training.fit, execution.device

    def images_for(spec: ModelSpec, size: ImageSize) -> int:
        per_image = 3 * 2 * count_macs(spec, max(sides_of(size))) / speed
        return max(1, min(fit.batch_size, round(_REHEARSED_S / max(per_image, 1e-9))))

    own = rehearse(training.spec, training.size, fit, device, images_for(training.spec, training.size))
    taught = sum(rehearse_teacher(spec, size, fit, device, images_for(spec, size)) for spec, size in training.teachers)
    computed = own.image + taught
    decoded = _decoding_seconds(data)
    of_image = max(computed, decoded / execution.workers) if execution.workers else computed + decoded
    scored = len(data.validation) * fit.epochs * own.forward * (2 if fit.ema_decay else 1)
    return seen * of_image + seen / min(fit.batch_size, training.images) * own.optimizer + scored


def _decoding_seconds(data: Data) -> float:
    """Return how long an image takes to load."""
    places = np.unique(np.linspace(0, len(data.train) - 1, _DECODED).astype(int)).tolist()
    start = time.perf_counter()
    for place in places:
        data.train.load(place)
    return (time.perf_counter() - start) / len(places)
