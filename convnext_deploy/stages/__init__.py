"""Stages: each turns one artifact into another. They know nothing of how the result is judged."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from convnext_deploy.config.stage import StageConfig

if TYPE_CHECKING:
    from convnext_deploy.artifacts.artifact import Artifact
    from convnext_deploy.stages.context import StageContext
    from convnext_deploy.stages.foresight import Given, Outlook


def run_stage(config: StageConfig, source: Artifact | None, context: StageContext) -> Artifact:
    """Run a stage of any kind. Raises: DeployError: if it cannot do its work."""
    artifact: Artifact = _implementation(config).run(config, source, context)
    return artifact


def check_stage(config: StageConfig) -> None:
    """Look up the names among a stage's settings, so that a wrong one costs no work. Raises: DeployError: if one is unknown."""
    check = getattr(_implementation(config), "check", None)
    if check is not None:
        check(config)


def foresee_stage(config: StageConfig, given: Given) -> Outlook | None:
    """Return what a stage would make of what it is given; None for a kind that does not tell.

    Raises: DeployError: what the stage would end with.
    """
    foresee = getattr(_implementation(config), "foresee", None)
    made: Outlook | None = None if foresee is None else foresee(config, given)
    return made


def _implementation(config: StageConfig) -> ModuleType:
    return importlib.import_module(config.implementation or type(config).__module__)
