"""What an earlier run left under the names of a recipe's stages: nothing of that is replaced unasked."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from convnext_deploy.artifacts.artifact import MANIFEST, SCHEMA, Artifact, read_artifact
from convnext_deploy.config.recipe import BASELINE, SOURCE, TEACHER_PREFIX, Recipe, StageEntry, report_name
from convnext_deploy.data.datasets import Data
from convnext_deploy.data.read_contents import read_contents
from convnext_deploy.errors import ArtifactError, OutputError
from convnext_deploy.pipeline.ingredients import (
    Ingredients,
    differences,
    ingredients_of,
    is_same,
    join_differences,
    read_ingredients,
    recorded_ingredients,
)
from convnext_deploy.pipeline.run_folder import WAYS_OUT, check_report, is_of_another_version
from convnext_deploy.pipeline.stage import Settings, reusable, training_folder

_MADE = "model."  # so begin the names of all files that stages write beside the manifest
_EARLIER = "made by an earlier version, which did not record all that it depends on"


def check_replacements(
    recipe: Recipe, settings: Settings, source: Artifact | None, data: Data | None, weights: Mapping[str, Artifact]
) -> dict[str, Artifact]:
    """Check that a run would replace nothing that was made otherwise. For that all images are read, see `Data.contents`.

    Returns: the artifacts of the stages that are up to date. Raises: OutputError: naming what differs.
    """
    artifacts = {**weights, **({} if source is None else {SOURCE: source})}
    if data is not None:
        data.contents.keep_in(settings.execution.cache_dir or settings.out / "cache")
        if any(stage.config.reads_images for stage in recipe.stages):
            read_contents(data, settings.execution.progress)
    there = check_kept(recipe, settings.out, artifacts, data, restart=settings.restart)
    check_rows(recipe, settings, source, data, weights)
    return there


def check_rows(
    recipe: Recipe, settings: Settings, source: Artifact | None, data: Data | None, weights: Mapping[str, Artifact]
) -> None:
    """Check that the report of a run would drop none of what a report in its folder says. Raises: OutputError: if it would."""
    brought = {} if source is None else {BASELINE: None, SOURCE: source.sha256}
    teaching = {report_name(name): each.sha256 for name, each in weights.items() if name.startswith(TEACHER_PREFIX)}
    rows = {**brought, **teaching, **{stage.name: None for stage in recipe.stages}}
    check_report(settings.out, recipe.name, rows, data, restart=settings.restart)


def check_kept(
    recipe: Recipe, out: Path, artifacts: Mapping[str, Artifact], data: Data | None, *, restart: bool
) -> dict[str, Artifact]:
    """Check before any work that no stage would replace what was made otherwise.

    Args:
        recipe: what is to be done.
        out: folder of the run.
        artifacts: what the user brought, by the names under which stages refer to it.
        data: the images, if there are any.
        restart: whether that may be replaced; what this tool did not write may not.

    Returns: the artifacts of the stages that are up to date. Raises: OutputError: naming every stage and what differs.
    """
    known, there, found = dict(artifacts), dict[str, Artifact](), dict[str, list[str]]()
    for stage in recipe.stages:
        unknown = [role for role, name in stage.inputs.items() if name not in known]
        wanted = ingredients_of(stage, known, data, recipe.seed)
        if obstacle := find_obstacle(stage, out, wanted, [*unknown, "baseline"] if unknown else ()):
            found.setdefault(obstacle, []).append(stage.name)
        elif not unknown and (artifact := reusable(out / "stages" / stage.name, wanted.key)) is not None:
            known[stage.name] = there[stage.name] = artifact
    if found and not restart:
        made = "; ".join(f"{', '.join(names)} ({obstacle})" for obstacle, names in found.items())
        raise OutputError(f"{out} holds what was made otherwise: {made}. {WAYS_OUT}")
    return there


def make_room(stage: StageEntry, settings: Settings, wanted: Ingredients) -> None:
    """See to it that a stage may write its artifact and the state of its training.

    Raises: OutputError: if that would replace what was made otherwise, and it is not to be replaced.
    """
    from convnext_deploy.training.checkpoint_store import read_owner, remove_state

    obstacle = find_obstacle(stage, settings.out, wanted)
    if obstacle is None:
        return
    if not settings.restart:
        raise OutputError(f"{settings.out} holds what was made otherwise: {stage.name} ({obstacle}). {WAYS_OUT}")
    settings.execution.progress.say(f"{stage.name}: begins anew, in the place of what was made otherwise ({obstacle})")
    folder = training_folder(settings.out, stage)
    if stage.config.trains and read_owner(folder) is not None:
        remove_state(folder)


def find_obstacle(stage: StageEntry, out: Path, wanted: Ingredients, unknown: Collection[str] = ()) -> str | None:
    """Return in what the artifact or the training that is kept under a stage's name differs from what is wanted, in words.

    Args:
        stage: of a recipe.
        out: folder of the run.
        wanted: what it would be made of.
        unknown: roles of inputs that are still to be made.

    Returns: None if there is nothing, the same, or what is damaged and has to be made again in any case.
    Raises: OutputError: if what lies there was not written by this tool.
    """
    folder = out / "stages" / stage.name
    whole, made = _compare_artifact(folder, wanted, unknown)
    if not stage.config.trains or (whole and made is None):
        return made
    from convnext_deploy.training.checkpoint_store import read_owner

    owner = read_owner(training_folder(out, stage))
    if owner is None:
        return made
    recorded = read_ingredients(owner.made_of)
    if owner.key == wanted.key or is_same(recorded, wanted):
        return None  # whoever began it has decided that the artifact is to be replaced
    if made is not None:
        return made
    if recorded is None:
        return f"a training at step {owner.step}, {_EARLIER}"
    found = differences(recorded, wanted, unknown)
    return f"a training at step {owner.step}, with {join_differences(found)}" if found else None


def _compare_artifact(folder: Path, wanted: Ingredients, unknown: Collection[str]) -> tuple[bool, str | None]:
    """Return whether there is an artifact that can be used, and in what it differs from what is wanted."""
    if not folder.exists() and not folder.is_symlink():
        return False, None
    if not folder.is_dir() or not (folder / MANIFEST).is_file():
        others = (
            [folder] if not folder.is_dir() else [path for path in folder.iterdir() if not path.name.startswith(_MADE)]
        )
        if others:
            raise OutputError(
                f"{others[0]} was not written by this tool and would be deleted; choose another --out, or move it away."
            )
        return False, None
    try:
        artifact = read_artifact(folder)
    except ArtifactError:
        other = is_of_another_version(folder / MANIFEST, SCHEMA)
        return False, "written by another version of this tool" if other else None
    if not artifact.lineage:
        return True, "an artifact without a history"
    record = artifact.lineage[-1]
    recorded = recorded_ingredients(record)
    if record.cache_key == wanted.key or is_same(recorded, wanted):
        return True, None
    if recorded is None:
        return True, _EARLIER
    found = differences(recorded, wanted, unknown)
    return True, join_differences(found) if found else None
