"""Goals of latency in recipes: what a recipe may say, what is timed, and that nothing is timed twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.onnx import ONNXConfig
from convnext_deploy.config.recipe import SOURCE, Gate, LatencyGoal, Recipe, StageEntry
from convnext_deploy.errors import RecipeError
from convnext_deploy.evaluation.timing import front
from convnext_deploy.evaluation.timing.front import ExploredPoint, Front, TimedPoint
from convnext_deploy.pipeline.latency_goals import measure_goals
from convnext_deploy.system.environment import describe_environment
from convnext_deploy.system.progress import SilentProgress

STAGES = (StageEntry("large", ONNXConfig(), SOURCE), StageEntry("small", ONNXConfig(), SOURCE, Gate(against=SOURCE)))


def recipe_of(*goals: LatencyGoal, stages: tuple[StageEntry, ...] = STAGES) -> Recipe:
    return Recipe("goals", stages, source="best.pth", latency_goals=goals)


@pytest.mark.parametrize(
    ("goal", "said"),
    [
        (("smal", "large"), "latency_goals: stage = 'smal' is no stage. Did you mean 'small'? Known: large, small."),
        (("small", "source"), "latency_goals: against = 'source' is no stage."),
        (("small", "large", 0.0), "max_ratio = 0.0 is out of range; expected 0.001 to 100."),
        (("small", "large", None, float("nan")), "max_ms = nan is out of range"),
    ],
)
def test_goals_name_stages_and_have_limits(goal: tuple[Any, ...], said: str) -> None:
    with pytest.raises(RecipeError) as error:
        recipe_of(LatencyGoal(*goal))
    assert said in str(error.value)


def test_drops_are_against_what_comes_earlier() -> None:
    later = (StageEntry("small", ONNXConfig(), SOURCE, Gate(against="large")), STAGES[0])
    with pytest.raises(RecipeError, match="stage 'small': gate: against = 'large' is not an earlier stage"):
        recipe_of(stages=later)
    assert not Gate(against=SOURCE).judges_change  # it limits nothing by itself


def test_goals_are_timed_once_and_graphs_for_engines_never(
    small_artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = []

    def time_front(goals: Any, artifacts: dict[str, tuple[Artifact, str, str]], *_: Any) -> Front:
        timed.append({name: way[1:] for name, way in artifacts.items()})
        points = [TimedPoint(name, "elsewhere", "onnxruntime", 1.0, (0.9, 1.1), "large") for name in artifacts]
        return Front(tuple(points))

    monkeypatch.setattr(front, "time_front", time_front)
    explored = (ExploredPoint(1.0, 0.5, 0.1),)
    artifacts = {"large": small_artifacts["onnx-fp32"], "small": small_artifacts["onnx-fp32"]}
    recipe = recipe_of(LatencyGoal("small", "large", 0.6))

    def measure(**changed: Any) -> Front | str:
        how = {"recipe": recipe, "artifacts": artifacts, **changed}
        return measure_goals(
            how["recipe"],
            how["artifacts"],
            tmp_path,
            describe_environment(),
            explored,
            SilentProgress(),
            again=how.get("again", False),
        )

    found = measure()
    assert isinstance(found, Front)
    assert found.explored == explored
    assert {point.path for point in found.points} == {str(small_artifacts["onnx-fp32"].place)}
    assert timed == [dict.fromkeys(("large", "small"), ("onnxruntime", "cpu"))]
    assert measure() == found
    assert len(timed) == 1
    other = measure(recipe=recipe_of(LatencyGoal("small", "large", 0.5, None, 0.4)))
    assert len(timed) == 1
    assert isinstance(other, Front)
    point = other.of("small")
    assert point is not None
    assert (point.max_ratio, point.predicted_ratio) == (0.5, 0.4)
    assert measure(again=True) == found
    assert len(timed) == 2
    said = measure(artifacts={**artifacts, "small": small_artifacts["onnx-int8"]})
    assert said == (
        "small: this graph is for engines, and they are timed on the device; bundle it, and bring the times with collect"
    )
