"""Run a recipe: order, cache, resume, validation after every stage. The only file that knows the order."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from convnext_deploy.artifacts.artifact import Artifact, read_artifact
from convnext_deploy.config.recipe import BASELINE, SOURCE, Gate, Recipe, StageEntry
from convnext_deploy.config.stages import DistillConfig, QATConfig, QuantizeConfig, TrainConfig
from convnext_deploy.data.datasets import Data, check_classes
from convnext_deploy.errors import ArtifactError, DataError, OutputError
from convnext_deploy.pipeline.float_reference import is_judged
from convnext_deploy.pipeline.open_artifact import find_baseline
from convnext_deploy.pipeline.speed_check import check_speed
from convnext_deploy.pipeline.stage import Settings, cache_key, execute_stage, reusable, stage_folder
from convnext_deploy.pipeline.write_report import write_report
from convnext_deploy.reports.record import Report, StageRow
from convnext_deploy.reports.rows import add_speed, create_row, keep_flips
from convnext_deploy.reports.thumbnails import make_thumbnails
from convnext_deploy.system import code_hash as code_version
from convnext_deploy.system.distributed import announce, receive, world
from convnext_deploy.system.environment import describe_environment
from convnext_deploy.system.files import create_output_folder

if TYPE_CHECKING:
    from convnext_deploy.evaluation.measure import Measurement
    from convnext_deploy.evaluation.score import Score
    from convnext_deploy.evaluation.timing.speedup import Speed


@dataclass(frozen=True)
class RunResult:
    """The report, and the names of the stages that were executed and not taken from an earlier run."""

    report: Report
    executed: tuple[str, ...]


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
        weights: what `inputs.open_weights` returns for the recipe.

    Raises: DeployError: if a stage cannot do its work; what was finished stays and is not done again.
    """
    if not world().is_first:
        return _follow(recipe, settings, source, data, dict(weights or {}))
    create_output_folder(settings.out)
    with _lock(settings.out):
        return _run(recipe, settings, source, data, dict(weights or {}))


def plan_recipe(
    recipe: Recipe, out: Path, source: Artifact | None, data: Data | None, weights: Mapping[str, Artifact]
) -> list[tuple[StageEntry, bool]]:
    """Return each stage with whether it would run; nothing is executed or written."""
    artifacts = {**weights, **({SOURCE: source} if source is not None else {})}
    plan = []
    for stage in recipe.stages:
        cached = None
        if all(name in artifacts for name in stage.inputs.values()):
            cached = reusable(out / "stages" / stage.name, cache_key(stage, artifacts, data, recipe.seed))
        if cached is not None:
            artifacts[stage.name] = cached
        plan.append((stage, cached is None))
    return plan


def _run(
    recipe: Recipe, settings: Settings, source: Artifact | None, data: Data | None, artifacts: dict[str, Artifact]
) -> RunResult:
    baselines: dict[str | None, str] = {}
    scores: dict[str, Score] = {}
    rows: list[StageRow] = []
    executed: list[str] = []
    report = Report(
        recipe=recipe.name,
        data="none" if data is None else data.name,
        validation_images=0 if data is None else len(data.validation),
        seed=recipe.seed,
        environment=describe_environment(),
        rows=(),
        command=settings.command,
        source=recipe.source,
        class_names=() if data is None else data.class_names,
    )

    def record(
        name: str, kind: str, artifact: Artifact, stage: StageEntry | None, *, for_comparison: bool = False
    ) -> None:
        nonlocal report
        artifacts[name] = artifact
        # The nearest FP32 PyTorch ancestor; an artifact brought without one is its own reference.
        parent = stage.source if stage is not None else BASELINE
        baselines[name] = name if artifact.is_baseline or parent not in baselines else baselines[parent]
        measured = _measure(name, artifact, settings, data, may_differ=name == SOURCE and _only_starts(recipe))
        if measured.score is not None:
            scores[name] = measured.score
        gate = stage.gate if stage is not None else Gate()
        rows.append(create_row(name, kind, artifact, gate, measured, baselines[name], rows, scores, data))
        keep_flips(settings.out, rows[-1], scores, data)
        if stage is not None:
            rows[-1] = dataclasses.replace(rows[-1], inputs=stage.inputs, for_comparison=for_comparison)
        thumbnails = {**report.thumbnails, **make_thumbnails(data, rows[-1], report.thumbnails)}
        report = dataclasses.replace(report, rows=tuple(rows), thumbnails=thumbnails)
        write_report(report, settings.out)

    write_report(report, settings.out)
    if source is not None:
        baseline = None if source.is_baseline else find_baseline(source)
        if baseline is not None:
            record(BASELINE, BASELINE, baseline, None)
        record(SOURCE, SOURCE, source, None)

    def make(
        stage: StageEntry, inputs: Mapping[str, Artifact] = artifacts, *, for_comparison: bool = False
    ) -> Artifact:
        key = cache_key(stage, inputs, data, recipe.seed)
        artifact = reusable(stage_folder(settings, stage), key)
        if _is_joint(stage):
            announce(artifact is None)
        if artifact is None:
            artifact = execute_stage(stage, inputs, recipe, settings, data, key)
            executed.append(stage.name)
        else:
            settings.execution.progress.say(f"{stage.name}: up to date")
        record(stage.name, stage.config.kind, artifact, stage, for_comparison=for_comparison)
        return artifact

    for stage in recipe.stages:
        make(stage)
    made: dict[str, StageEntry] = {stage.name: stage for stage in recipe.stages}
    for stage in filter(lambda stage: is_judged(artifacts[stage.name]), recipe.stages):
        found: Speed | str = "it was left out, as asked for"
        if settings.speed_check and recipe.speed_check:
            found = check_speed(
                stage.name,
                artifacts,
                baselines[stage.name],
                made,
                make,
                settings.out,
                report.environment,
                settings.execution.progress,
            )
        place = next(place for place, row in enumerate(rows) if row.name == stage.name)
        rows[place] = add_speed(rows[place], found, stage.gate)
        report = dataclasses.replace(report, rows=tuple(rows))
        write_report(report, settings.out)
    report = dataclasses.replace(report, complete=True)
    write_report(report, settings.out)
    return announce(RunResult(report, tuple(executed)))


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
                artifacts[name] = _see_artifact(settings.out / "stages" / name)
        execute_stage(stage, artifacts, recipe, settings, data, cache_key(stage, artifacts, data, recipe.seed))
    finished: RunResult = receive()
    return finished


def _see_artifact(folder: Path) -> Artifact:
    """Read what the first process wrote. Raises: OutputError: if it is not there, because this is another machine's folder."""
    try:
        return read_artifact(folder)
    except ArtifactError as error:
        raise OutputError(
            f"process {world().rank} does not see what the first one wrote ({error}); "
            "--out must be a folder that all machines share."
        ) from None


def _is_joint(stage: StageEntry) -> bool:
    """Whether all processes work on a stage, where there are several."""
    return world().size > 1 and isinstance(stage.config, TrainConfig | DistillConfig | QATConfig | QuantizeConfig)


def _only_starts(recipe: Recipe) -> bool:
    """Whether the recipe's source is nothing but the start of training stages, which may give it another head."""
    uses = [(role, stage) for stage in recipe.stages for role, name in stage.inputs.items() if name == SOURCE]
    return all(role == "source" and isinstance(s.config, TrainConfig | DistillConfig) for role, s in uses)


def _measure(
    name: str, artifact: Artifact, settings: Settings, data: Data | None, *, may_differ: bool = False
) -> Measurement:
    """Score and time an artifact, or take both from an earlier run on the same artifact, images and device."""
    from convnext_deploy.evaluation.measure import Measurement, measure_artifact, read_measurement, write_measurement

    if data is None:
        return Measurement(not_run="not validated: no --data")
    try:
        check_classes(name, artifact, data)
    except DataError as error:
        if not may_differ:
            raise
        return Measurement(not_run=f"not validated: {error}")
    content = [artifact.sha256, dataclasses.asdict(artifact.preprocess), data.fingerprint, settings.execution.device]
    content.append(code_version.of_module("convnext_deploy.evaluation.measure"))
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    path = settings.out / "scores" / f"{name}.json"
    measured = read_measurement(path, key)
    if measured is None:
        measured = measure_artifact(artifact, data, settings.execution, name)
        if measured.score is not None:
            write_measurement(path, key, measured)
    return measured


@contextlib.contextmanager
def _lock(out: Path) -> Iterator[None]:
    """Keep a second process out of the folder; the lock goes with the process, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows has no fcntl; there the user takes care
        yield
        return
    with (out / ".lock").open("w") as file:
        try:
            # lockf and not flock: processes that decode images must not inherit the lock and outlive a killed parent with it
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OutputError(f"another process is working in {out}; wait for it, or choose another --out.") from None
        yield
