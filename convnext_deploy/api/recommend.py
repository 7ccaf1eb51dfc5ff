"""`recommend`: which variants to take for a data set, with reasons and a recipe to start from."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convnext_deploy.api.options import DataOptions, ExecutionOptions, verb
from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.config.checks import require
from convnext_deploy.config.image_size import ImageSize, plain_size, show_size, size_option
from convnext_deploy.config.recipe import Recipe
from convnext_deploy.errors import OutputError, RecipeError
from convnext_deploy.models.variants import VARIANTS
from convnext_deploy.models.zoo.ranking import GIB, Candidate, Exclusion, order_for_cpu, rank
from convnext_deploy.models.zoo.starter_recipe import create_start_recipe, write_recipe_text
from convnext_deploy.models.zoo.training_settings import data_size, size_recipe
from convnext_deploy.system.cuda_driver import cuda_driver_error, describe_gpus
from convnext_deploy.system.distributed import usable_cores
from convnext_deploy.system.files import write_text
from convnext_deploy.system.load import Load, unreliable, watch_load
from convnext_deploy.system.memory import memory_sizes
from convnext_deploy.system.progress import Progress
from convnext_deploy.system.results import Result, plain

if TYPE_CHECKING:
    from convnext_deploy.data.survey import Survey

SHORT_LIST = 5
_USUAL_SIZE, _LEAST_SIZE = 224, 64  # pixels; below, hardly anything is left in the last feature map
_SHARE_OF_MEMORY = 0.5


@dataclass(frozen=True, repr=False)
class Recommendation(Result):
    """The candidates for a data set, best first, why the other variants are left out, and a recipe for the first one.

    `recipe_text` is the recipe as TOML with the source of every value. `size_recipe` and `data_recipe` are the paths, in the
    project's repository, of the recipes for the size of the first candidate and for the size of the data. `device` tells where
    latency was measured, if it was. `data`: what was found in the folder. `machine`: what this one has, for which the candidates
    are ranked; None: for a GPU with `gpu_memory_gb`.
    """

    images: int
    classes: int
    image_size: int
    gpu_memory_gb: float | None
    latency_budget_ms: float | None
    device: str | None
    candidates: tuple[Candidate, ...]
    exclusions: tuple[Exclusion, ...]
    recipe: Recipe
    recipe_text: str
    size_recipe: str
    data_recipe: str
    data: Survey | None = None
    machine: str | None = None

    def headline(self) -> str:
        """Say for what it is, and which comes first."""
        return f"{self.candidates[0].variant} for {self.images:,} images of {self.classes} classes at {self.image_size} pixels"

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a record for each candidate, best first."""
        return [
            {**{key: value for key, value in plain(each).items() if key != "settings"}, **plain(each.settings)}
            for each in self.candidates
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` prints: all fields but `recipe`, which `recipe_text` holds."""
        return {name: value for name, value in super().to_dict().items() if name != "recipe"}


@dataclass(frozen=True)
class TrainingMachine:
    """What there is to train on. `gpu`: its name, None without one; `memory_gb`: that of the GPU, or of the machine."""

    gpu: str | None
    memory_gb: float | None
    cores: int

    def describe(self) -> str:
        """Say what it is."""
        memory = "" if self.memory_gb is None else f", {self.memory_gb:.0f} GB"
        return f"{self.gpu}{memory}" if self.gpu else f"{self.cores} cores{memory}, no GPU"


def training_machine() -> TrainingMachine:
    """Return what this machine has."""
    if cuda_driver_error() is None:
        first = describe_gpus()["gpus"][0]
        return TrainingMachine(first["name"], first["memory_bytes"] / GIB, usable_cores())
    memory, _ = memory_sizes()
    return TrainingMachine(None, None if memory is None else memory / GIB, usable_cores())


@verb
def recommend(
    images: int | None = None,
    classes: int | None = None,
    *,
    gpu_memory_gb: float | None = None,
    latency_budget_ms: float | None = None,
    image_size: ImageSize | None = None,
    out: Path | str | None = None,
    data: DataOptions = DataOptions(),
    execution: ExecutionOptions = ExecutionOptions(),
) -> Recommendation:
    """Recommend at most five variants for a classification data set, and a recipe to start from.

    Args:
        images: training images; None: those of `data`.
        classes: >= 2; None: those of `data`.
        gpu_memory_gb: memory of the GPU to train on, as it is sold; None: the training is on this machine, on its GPU if it has
            one, and without one what its cores can train in a night comes first.
        latency_budget_ms: longest time for one image in FP32 PyTorch on this machine, on its GPU if it has one. Candidates are
            timed with fresh weights, which do not change the time.
        image_size: side of the network's input in pixels; None: 224, or of smaller images their own, from 64 on.
        out: new file for the recipe; None: none is written.
        data: the folder to look at, where it is at hand.
        execution: `progress` counts.

    Raises:
        RecipeError: if a number is out of range or missing, or no variant fits the memory or the latency.
        DataError: if the folder cannot be used.
        OutputError: if `out` exists or has no folder.
    """
    image_size = None if image_size is None else plain_size(image_size)
    if image_size is not None and not isinstance(image_size, int):
        larger = max(image_size)
        raise RecipeError(
            f"image_size = {show_size(image_size)} is not square, and recommend counts the memory of square images; give "
            f"the larger side, {larger}, and train with --image-size {size_option(image_size)}."
        )
    in_range = latency_budget_ms is None or 0 < latency_budget_ms < math.inf
    require(in_range, "latency_budget_ms", latency_budget_ms, "> 0")
    out = None if out is None else Path(out)
    if out is not None:
        _check_new_file(out)
    seen = _look_at(data, execution)
    images, classes = _numbers(images, classes, seen)
    image_size, size_source = _choose_size(image_size, seen)
    machine = training_machine() if gpu_memory_gb is None else None
    candidates, exclusions = _rank_for(machine, images, classes, gpu_memory_gb, image_size)
    device = None
    if latency_budget_ms is not None:
        device = "cpu" if cuda_driver_error() else "cuda"
        load = Load()
        try:
            with watch_load() as load:
                candidates, slow = _within_budget(
                    candidates, classes, image_size, latency_budget_ms, device, execution.reporter
                )
        finally:
            if (loaded := load.describe()) is not None:
                execution.reporter.say(unreliable(loaded))
        exclusions = slow + exclusions
    recipe = create_start_recipe(candidates[0], image_size, images, engines=find_spec("tensorrt_rtx") is not None)
    text = write_recipe_text(recipe, candidates[0], images, classes, size_source)
    of_size = size_recipe(candidates[0].variant)
    assert of_size is not None  # candidates are never test networks
    if out is not None:
        write_text(out, text)
    return Recommendation(
        images, classes, image_size, gpu_memory_gb, latency_budget_ms, device, candidates[:SHORT_LIST], exclusions,
        recipe, text, of_size, data_size(images).recipe, seen, None if machine is None else machine.describe(),
    )  # fmt: skip


def _look_at(data: DataOptions, execution: ExecutionOptions) -> Survey | None:
    if data.data is None:
        return None
    # the libraries that read images, which advice for so many images does without
    from convnext_deploy.api.open_inputs import open_named_data
    from convnext_deploy.api.run_stages import create_execution
    from convnext_deploy.data.survey import survey

    return survey(open_named_data(data.data, data, create_execution(execution, data.data)))


def _numbers(images: int | None, classes: int | None, seen: Survey | None) -> tuple[int, int]:
    """Return how many images and classes there are: what was said, otherwise what was seen."""
    images = images if images is not None or seen is None else seen.images
    classes = classes if classes is not None or seen is None else seen.classes
    if images is None or classes is None:
        missing = "--images" if images is None else "--classes"
        raise RecipeError(f"{missing} is missing; give the folder with --data DIR, or both --images N and --classes N.")
    return images, classes


def _choose_size(asked: int | None, seen: Survey | None) -> tuple[int, str]:
    """Return the side of the network's input, and where it is from."""
    if asked is not None:
        return asked, "--image-size"
    if seen is None or seen.median_side >= _USUAL_SIZE:
        return _USUAL_SIZE, "--image-size"
    side = min(_USUAL_SIZE, max(_LEAST_SIZE, -(-seen.median_side // 32) * 32))
    return side, f"the images' own, {seen.median_side} pixels, in steps of 32 from {_LEAST_SIZE} on"


def _rank_for(
    machine: TrainingMachine | None, images: int, classes: int, gpu_memory_gb: float | None, image_size: int
) -> tuple[tuple[Candidate, ...], tuple[Exclusion, ...]]:
    """Rank for a GPU with so much memory, or for this machine."""
    memory = gpu_memory_gb
    if machine is not None and machine.memory_gb is not None:
        # without a GPU the rest of the machine needs memory as well
        memory = machine.memory_gb if machine.gpu else machine.memory_gb * _SHARE_OF_MEMORY
    candidates, exclusions = rank(images, classes, gpu_memory_gb=memory, image_size=image_size)
    if not candidates:
        smallest = data_size(images).order[-1]
        reason = next(exclusion.reason for exclusion in exclusions if exclusion.variant == smallest)
        where = "memory here" if machine is not None and machine.gpu is None else "GPU memory"
        size = memory if gpu_memory_gb is not None else round(memory or 0, 1)
        raise RecipeError(f"{size} GB of {where} are too little: even {smallest} {reason}.")
    if machine is not None and machine.gpu is None:
        candidates = order_for_cpu(candidates, images, classes, image_size, machine.cores)
    return candidates, exclusions


def _check_new_file(path: Path) -> None:
    if path.exists():
        raise OutputError(f"{path} exists and is not overwritten; choose another name with --out, or remove it.")
    if not path.parent.is_dir():
        raise OutputError(
            f"there is no folder {path.parent} to write {path.name} into; make it, or choose another with --out."
        )


def _within_budget(
    candidates: tuple[Candidate, ...], classes: int, image_size: int, budget_ms: float, device: str, progress: Progress
) -> tuple[tuple[Candidate, ...], tuple[Exclusion, ...]]:
    """Time candidates in their order until enough of them are fast enough; return these, and those that are too slow."""
    from convnext_deploy.evaluation.latency import measure_fresh_latency

    fast: list[Candidate] = []
    slow: dict[str, float] = {}
    exclusions: list[Exclusion] = []
    with progress.task(f"latency on {device}", len(candidates), "models") as task:
        for candidate in candidates:
            smaller = next((name for name in slow if _at_least_as_large(candidate.variant, name)), None)
            if smaller is not None:
                # It cannot be faster, and timing large networks is what takes long.
                reason = f"at least as deep and wide as {smaller}, which takes {slow[smaller]:.1f} ms on this {device}"
                exclusions.append(Exclusion(candidate.variant, reason))
                continue
            latency = measure_fresh_latency(ModelSpec(candidate.variant, classes), image_size, device)
            task.advance(note=f"{candidate.variant} {latency:.1f} ms")
            if latency > budget_ms:
                slow[candidate.variant] = latency
                reason = f"takes {latency:.1f} ms for one image on this {device}, the budget is {budget_ms:g} ms"
                exclusions.append(Exclusion(candidate.variant, reason))
                continue
            reason = f"takes {latency:.1f} ms for one image on this {device}, within {budget_ms:g} ms"
            fast.append(dataclasses.replace(candidate, latency_ms=latency, reasons=(*candidate.reasons, reason)))
            if len(fast) == SHORT_LIST:
                break
    if not fast:
        fastest = min(slow, key=lambda name: slow[name])
        raise RecipeError(
            f"no variant takes one image of {image_size} pixels in {budget_ms:g} ms on this {device}; the fastest, "
            f"{fastest}, takes {slow[fastest]:.1f} ms. Allow more, or choose smaller images."
        )
    return tuple(fast), tuple(exclusions)


def _at_least_as_large(variant: str, other: str) -> bool:
    """Whether a variant does all that the other does: its depth, its width, its norms, and the GRN of version 2."""
    a, b = VARIANTS[variant], VARIANTS[other]
    sizes = zip((a.version, *a.depths, *a.dims), (b.version, *b.depths, *b.dims), strict=True)
    return a.norm == b.norm and all(mine >= others for mine, others in sizes)
