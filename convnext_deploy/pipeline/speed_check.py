"""The honesty check: is an INT8 artifact faster than the float form that it is to replace. What was measured is kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.spec import Preprocess
from convnext_deploy.config.recipe import StageEntry
from convnext_deploy.errors import BackendUnavailableError, DeployError, ProcessFailedError, first_line
from convnext_deploy.pipeline.float_reference import Rival, find_rival
from convnext_deploy.system.progress import Progress

if TYPE_CHECKING:
    from convnext_deploy.evaluation.timing.speedup import Contender, Speed


class Make(Protocol):
    """What executes a stage, unless its artifact is up to date, with the artifacts that it may read."""

    def __call__(
        self, stage: StageEntry, inputs: Mapping[str, Artifact], /, *, for_comparison: bool = False
    ) -> Artifact:
        """Return the artifact, which is in the report from then on; `for_comparison`: no stage of the recipe made it."""


def check_speed(
    name: str,
    artifacts: Mapping[str, Artifact],
    baseline: str,
    made: dict[str, StageEntry],
    make: Make,
    out: Path,
    environment: Mapping[str, Any],
    progress: Progress,
) -> Speed | str:
    """Make the float form of an INT8 artifact's network where it is not there yet, and measure both in turn.

    Args:
        name: of the INT8 artifact.
        artifacts: all of the run.
        baseline: name of its nearest FP32 PyTorch ancestor, or of another artifact where there is none.
        made: the stages of the run by their names; those that are made here come to it.
        make: see `Make`.
        out: the run's folder; `scores/NAME.speed.json` in it keeps the result.
        environment: of the machine; times of another one do not count.
        progress: where to report.

    Returns: the measurement, kept or new; or in words why there is none, which is no error of the run.
    """
    from convnext_deploy.evaluation.timing.speedup import Contender, measure_speed, read_speed, write_speed

    artifact, ancestor = artifacts[name], artifacts[baseline]
    inputs = {**artifacts, baseline: _as_large(ancestor, artifact.preprocess)}
    known = [
        stage
        for stage in made.values()
        if _as_large(artifacts[stage.name], artifact.preprocess) == artifacts[stage.name]
    ]
    rival = find_rival(artifact, baseline if ancestor.is_baseline else None, known, made)
    if isinstance(rival, str):
        return rival
    try:
        for stage in rival.stages:
            if stage.name not in made:
                progress.say(f"{stage.name}: the float form, to compare {name} with")
                inputs[stage.name] = make(stage, inputs, for_comparison=True)
                made[stage.name] = stage
    except DeployError as error:
        return f"the float form could not be made: {first_line(error)}"
    last = rival.stages[-1].name
    ours, reference = Contender(name, artifact, rival.runner), Contender(last, inputs[last], rival.float_runner)
    path, key = out / "scores" / f"{name}.speed.json", _key(ours, reference, rival, environment)
    speed = read_speed(path, key)
    if speed is None:
        try:
            speed = measure_speed(ours, reference, rival.batch_sizes, progress, device=rival.device)
        except (BackendUnavailableError, ProcessFailedError) as error:
            return first_line(error)
        write_speed(path, key, speed)
    return speed


def _as_large(artifact: Artifact, preprocess: Preprocess) -> Artifact:
    """Return an artifact that is evaluated at the size of another one, which may be asked for; its normalization stays its own.

    Quantized networks have the normalization inside, where that could be folded.
    """
    own = dataclasses.replace(preprocess, mean=artifact.preprocess.mean, std=artifact.preprocess.std)
    return dataclasses.replace(artifact, preprocess=own)


def _key(ours: Contender, reference: Contender, rival: Rival, environment: Mapping[str, Any]) -> str:
    from convnext_deploy.evaluation.timing.speedup import RESULT_VERSION

    content = [
        [(each.name, each.artifact.sha256, str(each.artifact.location), each.runner) for each in (ours, reference)],
        [rival.device, rival.batch_sizes],
        environment,
        RESULT_VERSION,
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
