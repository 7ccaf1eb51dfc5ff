"""When teachers are asked and their lesson is entered; what that takes is imported for stages with teachers alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.recipe import Recipe, StageEntry
from convnext_deploy.pipeline.ledger import Ledger
from convnext_deploy.pipeline.stage import Settings

if TYPE_CHECKING:
    from convnext_deploy.evaluation.lesson import Taught


def ask_teachers(
    stage: StageEntry, inputs: Mapping[str, Artifact], ledger: Ledger, settings: Settings, *, is_new: bool
) -> Taught | None:
    """Score what teaches a stage, None if nothing does; say what speaks against it before the hours of a new training."""
    if stage.config.alone is None:
        return None
    from convnext_deploy.pipeline.lessons import measure_teaching, tell_early

    taught = measure_teaching(stage, inputs, ledger.data, settings)
    if is_new:
        tell_early(stage, taught, ledger, inputs, settings)
    return taught


def enter_taught(
    stage: StageEntry, taught: Taught | None, ledger: Ledger, inputs: Mapping[str, Artifact], recipe: Recipe
) -> None:
    """Let the report say what the teachers of a stage were worth, if it has any, and which images they alone labelled."""
    if taught is not None:
        from convnext_deploy.pipeline.lessons import enter_lesson

        enter_lesson(stage, taught, ledger, inputs, recipe)
    data = ledger.data
    if data is not None and data.unlabelled is not None and stage.config.reads_unlabelled:
        ledger.remark(stage.name, "; ".join(data.unlabelled.notes))
