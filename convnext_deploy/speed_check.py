"""The honesty check: is an INT8 artifact faster than the float form that it is to replace. What was measured is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from convnext_deploy import code_version
from convnext_deploy.artifact import Artifact
from convnext_deploy.errors import BackendUnavailableError, DeployError, ProcessFailedError, first_line
from convnext_deploy.progress import Progress
from convnext_deploy.recipe import StageEntry
from convnext_deploy.rivals import Rival
from convnext_deploy.validation.speed import Contender, Speed, measure_speed, read_speed, write_speed


def check_speed(
    name: str,
    artifact: Artifact,
    rival: Rival,
    make: Callable[[StageEntry], Artifact],
    *,
    out: Path,
    environment: Mapping[str, Any],
    progress: Progress,
) -> Speed | str:
    """Make the float form of an INT8 artifact's network where it is not there yet, and measure both in turn.

    Args:
        name: of the INT8 artifact's stage.
        artifact: it.
        rival: what it is compared with.
        make: executes a stage, unless its artifact is up to date.
        out: the run's folder; `scores/NAME.speed.json` in it keeps the result.
        environment: of the machine; times of another one do not count.
        progress: where to report.

    Returns: the measurement, kept or new; or in words why there is none, which is no error of the run.
    """
    try:
        for stage in rival.stages:
            made = make(stage)
    except DeployError as error:
        return f"the float form could not be made: {first_line(error)}"
    ours = Contender(name, artifact, rival.runner)
    reference = Contender(rival.stages[-1].name, made, rival.float_runner)
    path = out / "scores" / f"{name}.speed.json"
    key = _key(ours, reference, rival, environment)
    speed = read_speed(path, key)
    if speed is None:
        try:
            speed = measure_speed(ours, reference, rival.batch_sizes, progress, device=rival.device)
        except (BackendUnavailableError, ProcessFailedError) as error:
            return first_line(error)
        write_speed(path, key, speed)
    return speed


def _key(ours: Contender, reference: Contender, rival: Rival, environment: Mapping[str, Any]) -> str:
    content = [
        [(each.name, each.artifact.sha256, str(each.artifact.location), each.runner) for each in (ours, reference)],
        [rival.device, rival.batch_sizes],
        environment,
        code_version.of_module("convnext_deploy.validation.speed"),
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
