"""The small run itself: every stage executes and every artifact that can run here has a score."""

from __future__ import annotations

from convnext_deploy.config.recipe import Recipe
from convnext_deploy.pipeline.run import RunResult


def test_run_executes_every_stage_and_scores_what_runs_here(small_run: RunResult, small_recipe: Recipe) -> None:
    assert small_run.executed == tuple(stage.name for stage in small_recipe.stages)
    rows = {row.name: row for row in small_run.report.rows}
    assert all(rows[name].accuracy is not None for name in rows if name != "engine")
    assert rows["engine"].accuracy is not None or "built for SM86; not run" in (rows["engine"].not_run or "")
