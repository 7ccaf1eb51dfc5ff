"""Find before any work what would end a run later: inputs that do not fit, packages, a folder that cannot be written, no room."""

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from convnext_deploy.artifacts.artifact import Artifact, read_artifact
from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.config.recipe import SOURCE, WEIGHTS_PREFIX, Recipe, StageEntry
from convnext_deploy.data.agreement import check_classes
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import OutputError, RecipeError
from convnext_deploy.models.variants import resolve_variant
from convnext_deploy.models.zoo.cost import count_parameters
from convnext_deploy.pipeline.stage import Settings, stage_folder
from convnext_deploy.stages.foresight import Outlook, foresee, outlook_of

_FLOAT = 4  # bytes
_PUBLISHED_CLASSES = 1000  # a training replaces the head where it has others
_STATE = 3  # times the weights: themselves, and two moments of AdamW


def check_plan(
    plan: Sequence[tuple[StageEntry, bool]],
    settings: Settings,
    source: Artifact | None,
    data: Data | None,
    weights: Mapping[str, Artifact],
    downloads: Collection[str] = (),
) -> None:
    """Check what a plan needs.

    Args:
        plan: stages, and whether each would run.
        settings: where and how.
        source: the artifact that the recipe calls `source`.
        data: whose images the stages see.
        weights: the initial weights, by the names under which the stages refer to them.
        downloads: names of those that are still to be downloaded: of them only the name is known.

    Raises: DeployError: the first that would end the run.
    """
    known: dict[str, Outlook] = {name: outlook_of(artifact) for name, artifact in weights.items()}
    known |= {name: outlook for name in downloads if (outlook := _outlook_of_name(name)) is not None}
    if source is not None:
        known[SOURCE] = outlook_of(source)
    made = []
    for stage, would_run in plan:
        if not would_run:
            known[stage.name] = outlook_of(read_artifact(stage_folder(settings, stage)))
            continue
        inputs = {role: known[name] for role, name in stage.inputs.items() if name in known}
        if len(inputs) < len(stage.inputs):
            continue  # of a stage of which nothing is known
        if (found := foresee(stage, inputs, data, settings.execution.device)) is not None:
            known[stage.name] = found
            made.append((stage, found))
        start = inputs.get("source")
        if stage.config.needs_source and start is not None and start.artifact is not None and data is not None:
            check_classes(start.name, start.artifact, data)
    if any(would_run for _, would_run in plan):
        check_writable(settings.out, "--out")
        _check_room(settings.out, made)
    if settings.execution.cache_dir is not None:
        check_writable(settings.execution.cache_dir, "--cache-dir")


def weights_to_download(recipe: Recipe) -> tuple[str, ...]:
    """Return those of the initial weights that are published ones of our variants, by their name, and not in the cache.

    Raises: DeployError: as `is_at_hand`.
    """
    from convnext_deploy.models.checkpoints.hub import is_at_hand, is_weights_name

    places = sorted({stage.weights for stage in recipe.stages if stage.weights is not None})
    names = {place: place.removeprefix(WEIGHTS_PREFIX) for place in places}
    published = (name for name in names.items() if is_weights_name(name[1]) and not os.path.lexists(name[1]))
    return tuple(place for place, name in published if _outlook_of_name(place) is not None and not is_at_hand(name))


def _outlook_of_name(place: str) -> Outlook | None:
    """Return what the name of published weights tells of them; None where it names no variant of ours."""
    name = place.removeprefix(WEIGHTS_PREFIX)
    try:
        variant = resolve_variant(name.rpartition("/")[2].partition(".")[0])
    except RecipeError:
        return None
    return Outlook(name, "torch", "fp32", ModelSpec(variant, _PUBLISHED_CLASSES))


def check_writable(folder: Path, flag: str) -> None:
    """Check that a folder is there and can be written, or could be made; nothing is written. Raises: OutputError: if not."""
    place = folder.absolute()
    while not os.path.lexists(place):
        place = place.parent
    problem = None
    if not place.is_dir():
        problem = f"{place} is a file" if place.is_file() else f"{place} is no folder"
    elif not os.access(place, os.W_OK | os.X_OK):
        problem = f"{place} may not be written"
    if problem is not None:
        what = "output" if flag == "--out" else "cache"
        raise OutputError(f"the {what} folder {folder} cannot be written ({problem}); choose another one with {flag}.")


def _check_room(out: Path, made: Sequence[tuple[StageEntry, Outlook]]) -> None:
    """Check that weights, and the state of the largest training, have room. Raises: OutputError: if not."""
    sizes = [
        (stage, _FLOAT * count_parameters(found.model)) for stage, found in made if found.model.variant != "unknown"
    ]
    needed = sum(size for _, size in sizes)
    needed += max((_STATE * size for stage, size in sizes if stage.config.trains), default=0)
    place = out.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise OutputError(
            f"the stages that would run write {needed / 1e6:,.0f} MB at least, and {out} has room for {free / 1e6:,.0f} MB; make "
            "room, or choose another folder with --out."
        )
