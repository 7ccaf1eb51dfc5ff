"""Find before any work what would end a run later: inputs that do not fit, packages, a folder that cannot be written, no room."""

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.config.comparisons import with_comparisons
from convnext_deploy.config.recipe import SOURCE, WEIGHTS_PREFIX, Recipe, StageEntry
from convnext_deploy.data.agreement import check_classes, name_classes
from convnext_deploy.data.contents import Contents
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import OutputError, RecipeError
from convnext_deploy.models.variants import resolve_variant
from convnext_deploy.models.zoo.cost import count_parameters
from convnext_deploy.pipeline.kept import check_replacements
from convnext_deploy.pipeline.stage import Settings
from convnext_deploy.stages import foresee_stage
from convnext_deploy.stages.foresight import Given, Outlook, outlook_of

_FLOAT = 4  # bytes
_PUBLISHED_CLASSES = 1000  # a training replaces the head where it has others
_STATE = 3  # times the weights: themselves, and two moments of AdamW


def check_run(
    recipe: Recipe,
    settings: Settings,
    source: Artifact | None,
    data: Data | None,
    weights: Mapping[str, Artifact],
    downloads: Collection[str] = (),
) -> Contents | None:
    """Check before any work that a run replaces nothing unasked, and that no stage ends for what is known now.

    Args:
        recipe: what is to be done.
        settings: where and how.
        source: the artifact that the recipe calls `source`.
        data: whose images the stages see.
        weights: the initial weights, by the names under which the stages refer to them.
        downloads: names of those that are still to be downloaded: of them only the name is known.

    Returns: what the files of the images hold, which was read for that. Raises: DeployError: the first that would end the run.
    """
    source, weights = name_brought(source, weights, data)
    recipe = with_comparisons(recipe)
    there = check_replacements(recipe, settings, source, data, weights)
    _check_stages(
        recipe.stages, there, settings, data, weights if source is None else {**weights, SOURCE: source}, downloads
    )
    return None if data is None else data.contents


def check_new_run(
    recipe: Recipe, settings: Settings, source: Artifact | None, data: Data | None, weights: Mapping[str, Artifact]
) -> None:
    """Check as `check_run` what can be known without a look at the images, for a folder in which no stage was executed.

    Raises: DeployError: the first that would end the run.
    """
    source, weights = name_brought(source, weights, data)
    brought = weights if source is None else {**weights, SOURCE: source}
    _check_stages(with_comparisons(recipe).stages, {}, settings, data, brought, ())


def name_brought(
    source: Artifact | None, weights: Mapping[str, Artifact], data: Data | None
) -> tuple[Artifact | None, dict[str, Artifact]]:
    """Return what the user brought with names for the classes; see `name_classes`."""
    named = {name: name_classes(artifact, data) for name, artifact in weights.items()}
    return (None if source is None else name_classes(source, data)), named


def _check_stages(
    stages: Sequence[StageEntry],
    there: Mapping[str, Artifact],
    settings: Settings,
    data: Data | None,
    brought: Mapping[str, Artifact],
    downloads: Collection[str],
) -> None:
    """Check what the stages need that would run: those whose artifacts are not `there`, because they are up to date."""
    known: dict[str, Outlook] = {name: outlook_of(artifact) for name, artifact in brought.items()}
    known |= {name: outlook for name in downloads if (outlook := _outlook_of_name(name)) is not None}
    made = []
    for stage in stages:
        if stage.name in there:
            known[stage.name] = outlook_of(there[stage.name])
            continue
        inputs = {role: known[name] for role, name in stage.inputs.items() if name in known}
        if len(inputs) < len(stage.inputs):
            continue  # of a stage of which nothing is known
        given = Given(stage.name, inputs, data, settings.execution.device)
        if (found := foresee_stage(stage.config, given)) is not None:
            known[stage.name] = found
            made.append((stage, found))
        start = inputs.get("source")
        if stage.config.needs_source and start is not None and start.artifact is not None and data is not None:
            check_classes(start.name, start.artifact, data)
    if all(stage.name in there for stage in stages):
        return
    for folder in (settings.out, settings.out / "stages", settings.out / "checkpoints"):
        check_writable(folder, "--out")
    _check_room(settings.out, made)
    cache = settings.execution.cache_dir
    # one that is there and may only be read can be what others have filled
    if cache is not None and not any((cache / name).is_dir() for name in ("pixels", "teachers")):
        check_writable(cache, "--cache-dir")


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
