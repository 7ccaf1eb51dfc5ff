"""The end of a run that has latency goals: what was made is timed beside what it is to replace. What was measured is kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.recipe import LatencyGoal, Recipe
from convnext_deploy.errors import BackendUnavailableError, ProcessFailedError, first_line
from convnext_deploy.pipeline.float_baseline import CPU_RUNTIMES
from convnext_deploy.runners import default_runner
from convnext_deploy.system.cuda_driver import cuda_driver_error
from convnext_deploy.system.environment import conditions_of
from convnext_deploy.system.progress import Progress

if TYPE_CHECKING:
    from convnext_deploy.evaluation.timing.front import ExploredPoint, Front, TimedPoint

_BATCH_SIZE = 1


def measure_goals(
    recipe: Recipe,
    artifacts: Mapping[str, Artifact],
    out: Path,
    environment: Mapping[str, Any],
    explored: tuple[ExploredPoint, ...],
    progress: Progress,
    *,
    again: bool = False,
) -> Front | str:
    """Time what has a goal together with what it is compared with, unless that was done before.

    Args:
        recipe: with goals.
        artifacts: of its stages.
        out: folder of the run.
        environment: of the machine; times of another one, or with other versions, do not count.
        explored: what was looked at before, for the record.
        progress: where to report.
        again: measure also where a result is kept.

    Returns: the measurement; or in words why there is none, which is no error of the run.
    """
    from convnext_deploy.evaluation.measure import read_kept, write_kept
    from convnext_deploy.evaluation.timing.front import Front, time_front

    named = dict.fromkeys(name for goal in recipe.latency_goals for name in (goal.against, goal.stage))
    ways = {name: _way(artifacts[name]) for name in named}
    for name, way in ways.items():
        if isinstance(way, str):
            return f"{name}: {way}"
    timed = {name: (artifacts[name], *way) for name, way in ways.items() if not isinstance(way, str)}
    key = _key(recipe, timed, environment)
    kept = out / "scores" / "latency-goals.json"
    front = None if again else read_kept(Front, kept, key)
    if front is None:
        try:
            front = time_front(recipe.latency_goals, timed, _BATCH_SIZE, progress)
        except (BackendUnavailableError, ProcessFailedError) as error:
            return first_line(error)
        write_kept(kept, key, front)
    goals = {goal.stage: goal for goal in recipe.latency_goals}
    points = (_asked(point, goals.get(point.name), artifacts[point.name]) for point in front.points)
    return dataclasses.replace(front, points=tuple(points), explored=explored)


def _asked(point: TimedPoint, goal: LatencyGoal | None, artifact: Artifact) -> TimedPoint:
    """Return what was timed, perhaps in an earlier run, with what is asked of it now, and where it lies."""
    point = dataclasses.replace(point, path=str(artifact.place))
    if goal is None or point.is_reference:
        return point
    asked = {name: getattr(goal, name) for name in ("predicted_ratio", "max_ratio", "max_ms")}
    return dataclasses.replace(point, **asked)


def _way(artifact: Artifact) -> tuple[str, str] | str:
    """Return the runner and the device that an artifact is for; or in words why it is not timed here."""
    if artifact.format == "tensorrt":
        return cuda_driver_error() or ("tensorrt", "cuda")
    if artifact.format == "onnx" and artifact.target is not None and artifact.target not in CPU_RUNTIMES:
        return (
            "this graph is for engines, and they are timed on the device; bundle it, and bring the times with collect"
        )
    runner = artifact.target if artifact.format == "onnx" and artifact.target in CPU_RUNTIMES else None
    return runner or default_runner(artifact), "cpu"


def _key(recipe: Recipe, timed: Mapping[str, tuple[Artifact, str, str]], environment: Mapping[str, Any]) -> str:
    from convnext_deploy.evaluation.timing.front import RESULT_VERSION

    content = [
        [(goal.stage, goal.against) for goal in recipe.latency_goals],
        [(name, artifact.sha256, runner, device) for name, (artifact, runner, device) in sorted(timed.items())],
        conditions_of(environment),
        RESULT_VERSION,
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
