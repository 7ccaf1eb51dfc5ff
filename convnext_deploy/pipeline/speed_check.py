"""The speed check: is an INT8 artifact faster than the float baseline that it is to replace. What was measured is kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.spec import Preprocess
from convnext_deploy.config.recipe import StageEntry
from convnext_deploy.errors import BackendUnavailableError, ProcessFailedError, first_line
from convnext_deploy.pipeline.float_baseline import FloatBaseline, find_float_baseline
from convnext_deploy.system.environment import conditions_of
from convnext_deploy.system.progress import Progress

if TYPE_CHECKING:
    from convnext_deploy.evaluation.timing.speedup import Contender, Speed


@dataclass(frozen=True)
class Comparison:
    """An INT8 artifact, its float baseline, and what is needed to measure both.

    `missing` are the stages that make the float baseline as far as they have not run; they read `inputs`, where the FP32 ancestor
    is evaluated at the size of the INT8 artifact.
    """

    name: str
    float_name: str
    against: FloatBaseline
    missing: tuple[StageEntry, ...]
    inputs: Mapping[str, Artifact]


def plan_comparison(
    name: str, artifacts: Mapping[str, Artifact], baseline: str, made: Mapping[str, StageEntry]
) -> Comparison | str:
    """Return what an INT8 artifact is to be compared with, or in words why it is not measured.

    Args:
        name: of the INT8 artifact.
        artifacts: all of the run.
        baseline: name of its nearest FP32 PyTorch ancestor, or of another artifact where there is none.
        made: the stages of the run by their names.
    """
    artifact, ancestor = artifacts[name], artifacts[baseline]
    known = [
        stage
        for stage in made.values()
        if _as_large(artifacts[stage.name], artifact.preprocess) == artifacts[stage.name]
    ]
    against = find_float_baseline(artifact, baseline if ancestor.is_baseline else None, known, made)
    if isinstance(against, str):
        return against
    inputs = {**artifacts, baseline: _as_large(ancestor, artifact.preprocess)}
    missing = tuple(stage for stage in against.stages if stage.name not in made)
    return Comparison(name, against.stages[-1].name, against, missing, inputs)


def measure_comparison(
    plan: Comparison,
    artifacts: Mapping[str, Artifact],
    kept: Path,
    environment: Mapping[str, Any],
    progress: Progress,
    *,
    again: bool = False,
) -> Speed | str:
    """Time an INT8 artifact and its float baseline in interleaved, isolated processes, unless that was done before.

    Args:
        plan: from `plan_comparison`.
        artifacts: with that of every stage of the plan.
        kept: file that keeps the result.
        environment: of the machine; times of another one, or with other versions, do not count.
        progress: where to report.
        again: measure also where a result is kept.

    Returns: the measurement, kept or new; or in words why there is none.
    """
    from convnext_deploy.evaluation.measure import read_kept, write_kept
    from convnext_deploy.evaluation.timing.speedup import Contender, Speed, measure_speed

    against = plan.against
    ours = Contender(plan.name, artifacts[plan.name], against.runner)
    reference = Contender(plan.float_name, artifacts[plan.float_name], against.float_runner)
    key = _key(ours, reference, against, environment)
    speed = None if again else read_kept(Speed, kept, key)
    if speed is None:
        try:
            speed = measure_speed(ours, reference, against.batch_sizes, progress, device=against.device)
        except (BackendUnavailableError, ProcessFailedError) as error:
            return first_line(error)
        write_kept(kept, key, speed)
    # as the other artifacts are named here; what was kept may have been measured from another folder
    return dataclasses.replace(speed, path=str(reference.artifact.place))


def _as_large(artifact: Artifact, preprocess: Preprocess) -> Artifact:
    """Return an artifact that is evaluated at the size of another one, which may be asked for; its normalization stays its own.

    Those that 0.2.0 quantized for ONNX Runtime take pixels from 0 to 1 where their ancestor takes normalized images.
    """
    own = dataclasses.replace(preprocess, mean=artifact.preprocess.mean, std=artifact.preprocess.std)
    return dataclasses.replace(artifact, preprocess=own)


def _key(ours: Contender, reference: Contender, against: FloatBaseline, environment: Mapping[str, Any]) -> str:
    from convnext_deploy.evaluation.timing.speedup import RESULT_VERSION

    content = [
        [(each.name, each.artifact.sha256, str(each.artifact.location), each.runner) for each in (ours, reference)],
        [against.device, against.batch_sizes],
        conditions_of(environment),
        RESULT_VERSION,
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
