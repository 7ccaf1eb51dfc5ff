"""Run a recipe: order, cache, resume, validation after every stage. The only file that knows the order."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.comparisons import with_comparisons
from convnext_deploy.config.recipe import BASELINE, SOURCE, TEACHER_PREFIX, Recipe, StageEntry, report_name
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import DeployError, first_line
from convnext_deploy.pipeline.assumptions import Assumptions, find_assumptions
from convnext_deploy.pipeline.final_score import score_test
from convnext_deploy.pipeline.float_baseline import is_judged
from convnext_deploy.pipeline.foresee import check_run, name_brought
from convnext_deploy.pipeline.ingredients import ingredients_of
from convnext_deploy.pipeline.kept import make_room
from convnext_deploy.pipeline.latency_goals import measure_goals
from convnext_deploy.pipeline.ledger import Ledger, open_ledger
from convnext_deploy.pipeline.open_artifact import find_baseline
from convnext_deploy.pipeline.plan import plan_recipe as plan_recipe
from convnext_deploy.pipeline.plan import tell_what_follows
from convnext_deploy.pipeline.run_folder import claim, list_unreadable, see_artifact
from convnext_deploy.pipeline.run_result import RunResult as RunResult
from convnext_deploy.pipeline.speed_check import measure_comparison, plan_comparison
from convnext_deploy.pipeline.stage import Settings, execute_stage, reusable, stage_folder
from convnext_deploy.pipeline.teaching import ask_teachers, enter_taught
from convnext_deploy.pipeline.tracking import Tracking
from convnext_deploy.system.distributed import world
from convnext_deploy.system.shared_work import announce, from_first, receive

if TYPE_CHECKING:
    from convnext_deploy.data.contents import Contents
    from convnext_deploy.evaluation.measure import Measurement
    from convnext_deploy.evaluation.timing.speedup import Speed


def run_recipe(
    recipe: Recipe,
    settings: Settings,
    source: Artifact | None = None,
    data: Data | None = None,
    weights: Mapping[str, Artifact] | None = None,
) -> RunResult:
    """Execute what is not up to date, score every artifact, and write the report after each stage.

    Args:
        recipe: what to do.
        settings: where and how.
        source: the opened artifact that the recipe calls `source`, if it has one.
        data: the opened data; None only when no stage needs any, and then nothing is validated.
        weights: what `open_references` returns for the recipe.

    Raises: DeployError: if a stage cannot do its work; what was finished stays and is not done again.
    """
    brought = [*(weights or {}).values(), *([] if source is None else [source])]
    source, weights = name_brought(source, weights or {}, data)
    asked, recipe = recipe, with_comparisons(recipe)
    if not world().is_first:
        contents = receive()
        known = None if data is None else replace(data, contents=contents)
        return _follow(recipe, settings, source, known, dict(weights))
    with claim(settings.out), ExitStack() as opened:
        tracking = Tracking()

        def begin() -> Contents | None:
            nonlocal tracking
            contents = check_run(recipe, settings, source, data, weights)
            tell_what_follows(recipe, settings, source, data, weights)
            tracking = opened.enter_context(settings.open_trackers(recipe, data))
            return contents

        from_first(begin)
        assumptions = find_assumptions(brought, data)
        return _run(
            recipe, settings, source, data, weights, {each.name for each in asked.stages}, assumptions, tracking
        )


@dataclass(frozen=True)
class _Run:
    """What every step of a run needs; `executed` grows by the names of the stages that were not taken from an earlier run."""

    recipe: Recipe
    settings: Settings
    data: Data | None
    ledger: Ledger
    executed: list[str] = field(default_factory=list)


def _run(
    recipe: Recipe,
    settings: Settings,
    source: Artifact | None,
    data: Data | None,
    weights: Mapping[str, Artifact],
    asked: Collection[str],
    assumptions: Assumptions,
    tracking: Tracking,
) -> RunResult:
    """Do what the first process does: everything, in order; `asked` are the names of the stages that the user's recipe has."""
    for text in assumptions.texts:
        settings.execution.progress.say(text)
    ledger = open_ledger(
        recipe.name,
        data,
        settings.out,
        seed=recipe.seed,
        command=settings.command,
        source=recipe.source,
        artifacts=weights,
        assumptions=assumptions,
    )
    ledger.tracking = tracking
    list_unreadable(settings.out, data)
    run = _Run(recipe, settings, data, ledger)
    ledger.change(
        complete=False,
        source_preprocess=recipe.source_preprocess,
        source_output=recipe.source_output,
        unlabelled=recipe.unlabelled,
        latency_goals=recipe.latency_goals,
    )
    if source is not None:
        _bring(run, source)
    for name, artifact in weights.items():
        if name.startswith(TEACHER_PREFIX):
            _bring_teacher(run, name, artifact)
    for stage in recipe.stages:
        _make(run, stage, ledger.artifacts, for_comparison=stage.name not in asked)
    made = {stage.name: stage for stage in recipe.stages}
    for stage in recipe.stages:
        if is_judged(ledger.artifacts[stage.name]):
            ledger.record_speed(stage, _compare_speed(run, stage, made))
    if recipe.latency_goals:
        environment, progress = ledger.report.environment, settings.execution.progress
        again = settings.measure_again
        ledger.record_front(
            measure_goals(recipe, ledger.artifacts, settings.out, environment, settings.explored, progress, again=again)
        )
    score_test(ledger, lambda name, artifact, test: _measure(replace(run, data=test), f"{name}.test", artifact))
    ledger.change(complete=True)
    return announce(RunResult(ledger.report, tuple(run.executed)))


def _bring(run: _Run, source: Artifact) -> None:
    """Measure the artifact that the user brought, and before it its FP32 ancestor where that is at hand."""
    baseline = source if source.is_baseline else find_baseline(source)
    ancestor = {BASELINE: baseline} if isinstance(baseline, Artifact) and baseline is not source else {}
    for name, artifact in {**ancestor, SOURCE: source}.items():
        may_differ = name == SOURCE and run.recipe.only_starts
        run.ledger.record(name, artifact, _measure(run, name, artifact, may_differ=may_differ))
        _warn(run)
    if isinstance(baseline, str) and not run.recipe.only_starts:
        run.ledger.remark(
            SOURCE,
            f"no FP32 ancestor is at hand ({baseline}): drops are against this {source.precision} artifact itself",
        )


def _bring_teacher(run: _Run, name: str, artifact: Artifact) -> None:
    """Measure a teacher that no stage makes, and that is not the recipe's source."""
    row = report_name(name)
    run.ledger.record(row, artifact, _measure(run, row, artifact, may_differ=True))
    _warn(run)


def _make(run: _Run, stage: StageEntry, inputs: Mapping[str, Artifact], *, for_comparison: bool = False) -> Artifact:
    """Execute a stage unless its artifact is up to date, and measure what it made."""
    made_of = ingredients_of(stage, inputs, run.data, run.recipe.seed)
    artifact = reusable(stage_folder(run.settings, stage), made_of.key, run.settings.execution.progress)

    def is_to_be_made() -> bool:
        if artifact is None:
            make_room(stage, run.settings, made_of)
        return artifact is None

    taught = ask_teachers(stage, inputs, run.ledger, run.settings, is_new=artifact is None)
    if _is_joint(stage):
        from_first(is_to_be_made)
    else:
        is_to_be_made()
    if artifact is None:
        artifact = execute_stage(stage, inputs, run.recipe, run.settings, run.data, made_of, run.ledger.tracking)
        run.executed.append(stage.name)
    else:
        run.settings.execution.progress.say(f"{stage.name}: up to date")
    measured = _measure(run, stage.name, artifact)
    run.ledger.record(stage.name, artifact, measured, stage=stage, for_comparison=for_comparison)
    if (words := run.settings.choices.get(stage.name)) is not None:
        run.ledger.remark(stage.name, "; ".join(words))
    enter_taught(stage, taught, run.ledger, inputs, run.recipe)
    if stage.name in run.executed:
        _warn(run)
    return artifact


def _warn(run: _Run) -> None:
    """Say at once what is wrong with the latest row, before hours are spent on what follows from it."""
    row = run.ledger.report.rows[-1]
    for text in row.warnings:
        run.settings.execution.progress.say(f"WARNING: {row.name}: {text}")


def _compare_speed(run: _Run, stage: StageEntry, made: dict[str, StageEntry]) -> Speed | str:
    """Measure an INT8 artifact against its float baseline, which is made first where it is not there yet.

    Args:
        run: of which the artifact is a part.
        stage: which made it.
        made: the stages of the run by their names; those that are made here come to it.

    Returns: the measurement; or in words why there is none, which is no error of the run.
    """
    if not (run.settings.speed_check and run.recipe.speed_check):
        return "it was left out, as asked for"
    ledger, progress = run.ledger, run.settings.execution.progress
    plan = plan_comparison(stage.name, ledger.artifacts, ledger.baselines[stage.name], made)
    if isinstance(plan, str):
        return plan
    inputs = dict(plan.inputs)
    try:
        for needed in plan.missing:
            progress.say(f"{needed.name}: the float baseline, to compare {stage.name} with")
            inputs[needed.name] = _make(run, needed, inputs, for_comparison=True)
            made[needed.name] = needed
    except DeployError as error:
        return f"the float baseline could not be made: {first_line(error)}"
    kept = run.settings.out / "scores" / f"{stage.name}.speed.json"
    again = run.settings.measure_again
    return measure_comparison(plan, inputs, kept, ledger.report.environment, progress, again=again)


def _follow(
    recipe: Recipe, settings: Settings, source: Artifact | None, data: Data | None, artifacts: dict[str, Artifact]
) -> RunResult:
    """Do what the processes after the first one do: take part in the stages that train, and wait for the others."""
    if source is not None:
        artifacts[SOURCE] = source
    for stage in recipe.stages:
        if not _is_joint(stage) or not receive():
            continue
        for name in stage.inputs.values():
            if name not in artifacts:
                artifacts[name] = see_artifact(settings.out / "stages" / name)
        made_of = ingredients_of(stage, artifacts, data, recipe.seed)
        execute_stage(stage, artifacts, recipe, settings, data, made_of)
    finished: RunResult = receive()
    return finished


def _is_joint(stage: StageEntry) -> bool:
    """Whether all processes work on a stage, where there are several."""
    return world().size > 1 and stage.config.trains


def _measure(run: _Run, name: str, artifact: Artifact, *, may_differ: bool = False) -> Measurement:
    """Score and time an artifact, or take both from an earlier run, see `measure_once`."""
    from convnext_deploy.pipeline.measuring import measure_once

    environment = run.ledger.report.environment
    return measure_once(run.settings, run.data, environment, name, artifact, may_differ=may_differ)
